"""From a take to a clip: read its frames again, crop, write, measure what was written, judge it, move the sound."""

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from common.audio.io import write_wav
from common.data.corpus import SAMPLE_RATE, SCHEMA
from common.data.engine import InputError, Product
from common.data.talking import Recording, Scorer, TalkingSettings, TalkingTools
from common.data.talking_measures import FPS, SAMPLES_PER_FRAME, Measures, sharpness_measure, spread
from common.data.talking_sound import Sound
from common.data.talking_takes import Take
from common.errors import UserError
from common.faces.tracks import crop_frames
from common.video import Clip, read_frames, write_clip
from common.video.reader import encodable_path

SYNC_FRAMES = 250
"""Frames of a clip that sync is measured on: 10 s, from its beginning."""
_SHARP_FRAMES = 8
_FRAMES_AT_ONCE = 16


def fill_clip(
    folder: Path,
    *,
    recording: Recording,
    take: Take,
    sound: Sound,
    tools: TalkingTools,
    measures: Measures,
    product: Product,
) -> Product:
    """Write a take's clip into its folder, measure what only its pictures tell, and judge it again.

    Raises:
        InputError: the pictures cannot be read again, or the clip is dropped by the filter.
    """
    settings, count = tools.settings, len(take)
    write_take(folder, recording, take, sound, settings)
    measures = measure_written(folder, measures, tools.sync)
    if reason := settings.bounds.refuse(measures):
        raise InputError(f"{recording.span(take.start, len(take))}: {reason}")
    item, extra = product.item, clip_columns(measures)
    if measures.sync_offset is not None:
        shift = round(measures.sync_offset) if settings.shift else 0
        if shift:
            moved = sound.wave((take.start - shift) * SAMPLES_PER_FRAME, count * SAMPLES_PER_FRAME)
            write_wav(folder / "audio.wav", moved, SAMPLE_RATE)
        extra["sync_shift"] = shift
        left = measures.sync_offset - shift
        item = replace(item, sync_offset=left, sync_confidence=measures.columns()["sync_confidence"])
    return replace(product, item=item, extra={**product.extra, **extra})


def write_take(folder: Path, recording: Recording, take: Take, sound: Sound, settings: TalkingSettings) -> None:
    """Read the frames of a take again and write its clip, with landmarks in the pixels of the crop.

    Raises:
        InputError: the pictures cannot be read again.
    """
    matrices = take.matrices(settings.size, follow_of(settings))
    points = take.landmarks @ matrices[:, :, :2].transpose(0, 2, 1) + matrices[:, None, :, 2]
    points[~take.found] = np.nan
    wave = sound.wave(take.start * SAMPLES_PER_FRAME, len(take) * SAMPLES_PER_FRAME)
    crops = crop_frames(_pictures(recording, take), matrices, settings.size)
    write_clip(folder, crops, wave, fps=FPS, landmarks=points)


def measure_written(folder: Path, measures: Measures, sync: Scorer | None) -> Measures:
    """Add the sharpness and the sync of a written clip to its measures.

    Sync is that of real sound only (`SyncScore.valid_offset`), since clips are short.
    """
    clip = Clip(folder)
    landmarks = clip.landmarks
    if landmarks is not None:
        places = spread(len(clip), _SHARP_FRAMES)
        images = (clip.frames(place, 1)[0] for place in places)
        measures = replace(measures, sharpness=sharpness_measure(images, landmarks[places]))
    if sync is not None:
        count = min(len(clip), SYNC_FRAMES)
        starts = range(0, count, _FRAMES_AT_ONCE)
        frames = (image for start in starts for image in clip.frames(start, min(_FRAMES_AT_ONCE, count - start)))
        score = sync(frames, clip.wave(0, count * SAMPLES_PER_FRAME))
        measures = replace(
            measures, sync_offset=float(score.valid_offset), sync_confidence=float(score.valid_confidence)
        )
    return measures


def follow_of(settings: TalkingSettings) -> Literal["head", "face"]:
    """A tube's crop is fixed; its framing is not asked for then."""
    return "face" if settings.framing == "face" else "head"


def _pictures(recording: Recording, take: Take) -> Iterator[np.ndarray]:
    """The frames of a take; whatever goes wrong in reading them is the input's fault."""
    start, read, span = recording.start + take.start / FPS, 0, recording.span(take.start, len(take))
    try:
        with encodable_path(Path(recording.path)) as path:
            frames = read_frames(path, fps=FPS, start=start, seconds=len(take) / FPS)
            for frame in itertools.islice(frames, len(take)):
                yield frame.image
                read += 1
    except UserError as error:
        raise InputError(str(error).replace(recording.path, "it")) from error
    except Exception as error:  # a decoder met something nobody foresaw: the clip is named, the run goes on
        raise InputError(f"{span}: {type(error).__name__}: {error}") from error
    if read < len(take):
        raise InputError(f"{span}: only {read} of {len(take)} pictures can be read again")


def clip_columns(measures: Measures) -> dict[str, Any]:
    """Measured values that are no columns of the manifest already."""
    return {name: value for name, value in measures.columns().items() if value is not None and name not in SCHEMA.names}
