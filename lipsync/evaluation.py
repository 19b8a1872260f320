"""One deterministic report on a trained generator: sync and likeness on held-out clips, beside what needs no network.

Every clip is dubbed with its own speech, where the real frames are the truth, and with the speech of another clip,
where only sync can be measured but nothing of the right mouth can leak. The reference is never the frame itself: it is
a frame of the same clip half the clip's length away, for all rows alike. What the network draws is pasted as Wav2Lip's
evaluation does it, the whole face crop with a hard edge.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from common.clip_scores import IMAGE, ClipScore, ClipScorer, HeldOut, paired_difference, report
from common.faces.paste import box_mask, cut_crops, paste_crops
from common.metrics.lse import MIN_FRAMES
from common.progress import counted
from common.provenance import Provenance
from common.score_videos import names_of
from common.syncnet import SAMPLES_PER_FRAME, SyncNet
from common.video import Clip, VideoWriter
from lipsync.clips import face_matrices
from lipsync.infer import LipSync
from lipsync.networks.blocks import WINDOW
from lipsync.networks.expert import FRAMES
from lipsync.windows import FPS, cut_windows, drawing_window, features_between

DUB, REAL, MASKED, COPIED = "dub", "real", "masked", "copied"
"""The generator's; the clip itself; what the generator sees of it, its lower half black; the reference in its place."""
OTHER = "other_"
"""Before the names of sync's figures: with the speech of another clip."""
SHORTEST = 2 * MIN_FRAMES
"""Frames with a face that a clip needs, so that its reference is another window of five."""
COLUMNS = 8
"""Pictures in a row of the sheet."""
BASELINES = (MASKED, COPIED)
_BATCH = 16


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found."""

    metrics: dict[str, Any]
    """plain values, ready for JSON"""
    pictures: dict[str, list[np.ndarray]] = field(default_factory=dict)
    """method -> frames uint8 (H,W,3) of the same places"""


@dataclass(frozen=True)
class _Batch:
    """Frames `first` and following of a clip, by method."""

    first: int
    frames: dict[str, list[np.ndarray]]
    landmarks: np.ndarray


def evaluate(
    model: LipSync,
    clips: Sequence[HeldOut],
    net: SyncNet,
    *,
    save: Path | None = None,
    label: Provenance | None = None,
) -> Evaluation:
    """Measure `model` on clips.

    On the CPU the same files, settings and number of threads give the same numbers to the last digit. Memory does not
    grow with the length of a clip but for the embeddings of its lips.

    Args:
        model: draws whole faces (`LipSync.load(..., whole=True)`).
        clips: with `SHORTEST` frames with a face or more.
        net: SyncNet.
        save: folder for the dubbed clips as MP4 under their names, own speech; for `--videos` and `survey`.
        label: of these videos.
    """
    chosen, pictures = _chosen(clips), dict[str, list[np.ndarray]]()
    scores: dict[str, list[ClipScore]] = {}
    others = other_speech(clips)
    for place, clip in enumerate(counted(clips, "dubbed clips")):
        wanted = [frame for number, frame in chosen if number == place]
        with ExitStack() as stack:
            writer = None if save is None else stack.enter_context(_writer(save, clip, label))
            found, real_lips = _with_own_speech(model, clip, net, writer, pictures, wanted)
        if len(clips) > 1:
            for name, score in _with_other_speech(model, clip, others[place], net, real_lips).items():
                more = {f"{OTHER}{key}": value for key, value in score.figures.items()}
                found[name] = replace(found[name], figures={**found[name].figures, **more})
        for name, score in found.items():
            scores.setdefault(name, []).append(score)
    metrics = report(scores, net.name)
    metrics |= {
        "clips": len(clips),
        "people": len({clip.person for clip in clips}),
        "frames": sum(clip.frames for clip in clips),
        "face_size": model.size,
        "reference": "half a clip away",
        "paste": "face crop, hard edge",
        "against": {name: _against(metrics["scores"], name) for name in BASELINES},
    }
    return Evaluation(metrics, pictures)


def dubbed(model: LipSync, clip: HeldOut, speech: HeldOut, *, baselines: bool = True) -> Iterator[_Batch]:
    """The clip with lips that follow `speech`, a batch of frames at a time; as long as the shorter of the two.

    Frames without a face stay as they are. With `baselines` the masked and the copied ones come as well.
    """
    count = min(clip.frames, speech.frames)
    matrices = face_matrices(clip.landmarks, model.size)
    sources = references(np.isfinite(matrices[:, 0, 0]))
    offset = clip.offset if speech.id == clip.id else 0
    for first in range(0, count, _BATCH):
        rows = np.arange(first, min(first + _BATCH, count))
        real = list(clip.clip.frames(first, len(rows)))
        frames = {name: list(real) for name in ((REAL, DUB, *BASELINES) if baselines else (DUB,))}
        faces = np.flatnonzero(sources[rows] >= 0)
        if len(faces):
            seen, other = rows[faces], sources[rows[faces]]
            targets = cut_crops([real[i] for i in faces], matrices[seen], model.size, model.device)
            copied = cut_crops(_frames_at(clip.clip, other), matrices[other], model.size, model.device)
            drawn = {DUB: model.draw(_windows(model, speech, seen - offset), targets, copied), COPIED: copied}
            masked = targets.clone()
            masked[:, :, model.size // 2 :] = 0
            for name, crops in (drawn | {MASKED: masked}).items():
                if name in frames:
                    masks = box_mask(len(crops), model.size, model.device)
                    pasted = paste_crops([real[i] for i in faces], crops, masks, matrices[seen])
                    for i, image in zip(faces, pasted, strict=True):
                        frames[name][i] = image
        yield _Batch(first, frames, clip.landmarks[rows])


def references(present: np.ndarray) -> np.ndarray:
    """For each frame the frame whose face is its reference, half of the frames with a face away; -1 without a face.

    Args:
        present: (T,) bool.
    """
    faces = np.flatnonzero(present)
    sources = np.full(len(present), -1)
    sources[faces] = np.roll(faces, -(len(faces) // 2))
    return sources


def other_speech(clips: Sequence[HeldOut]) -> list[HeldOut]:
    """For each clip the one whose speech it gets: half of the list away, so of another person where there are two."""
    return [clips[(place + len(clips) // 2) % len(clips)] for place in range(len(clips))]


def _with_own_speech(
    model: LipSync,
    clip: HeldOut,
    net: SyncNet,
    writer: VideoWriter | None,
    pictures: dict[str, list[np.ndarray]],
    wanted: Sequence[int],
) -> tuple[dict[str, ClipScore], Tensor]:
    """Scores of generator and baselines, and the embeddings of the real lips; adds frames `wanted` to `pictures`."""
    scorers = {name: ClipScorer(net) for name in (REAL, DUB, *BASELINES)}
    for batch in dubbed(model, clip, clip):
        for name, scorer in scorers.items():
            if name == REAL:
                scorer.add(batch.frames[REAL])
            else:
                scorer.add(batch.frames[name], batch.frames[REAL], batch.landmarks)
        if writer is not None:
            for image in batch.frames[DUB]:
                writer.write(image)
        _collect(pictures, batch, wanted)
    lips, wave = {name: scorer.lips() for name, scorer in scorers.items()}, _sound(clip, clip.frames)
    return {name: scorer.against(lips[name], clip, wave) for name, scorer in scorers.items()}, lips[REAL]


def _with_other_speech(
    model: LipSync, clip: HeldOut, speech: HeldOut, net: SyncNet, real_lips: Tensor
) -> dict[str, ClipScore]:
    """The generator's lips, and the clip's own, with the speech of another clip."""
    scorer = ClipScorer(net)
    for batch in dubbed(model, clip, speech, baselines=False):
        scorer.add(batch.frames[DUB])
    count = min(clip.frames, speech.frames)
    wave = _sound(speech, count)
    lips = {DUB: scorer.lips(), REAL: real_lips[: count - FRAMES + 1]}
    return {name: scorer.against(found, clip, wave) for name, found in lips.items()}


def _against(scores: dict[str, Any], baseline: str) -> dict[str, Any]:
    """Differences of the dubbed clips to a baseline, clip by clip."""
    found = {}
    for figure in ("lse_d", "lse_c", *IMAGE):
        difference = paired_difference(scores[DUB], scores[baseline], figure)
        if difference is not None:
            found[figure] = difference.to_dict()
    return found


def _windows(model: LipSync, speech: HeldOut, frames: np.ndarray) -> Tensor:
    """Feature windows (B,1,rows,16) from which frames (B,) of a clip with this speech are drawn."""
    starts, clip = drawing_window(frames), speech.clip
    first = min(max(0, int(starts.min())), model.features.frames(clip.samples) - 1)
    stop = max(int(starts.max()) + WINDOW, first + 1)

    def read(start: int, count: int) -> Tensor:
        return clip.wave(start, count).to(model.device)

    found = features_between(model.features, read, clip.samples, first, stop)
    return cut_windows(found.cpu(), starts - first, model.silence.cpu())


def _frames_at(clip: Clip, indices: np.ndarray) -> list[np.ndarray]:
    """Frames in the order of `indices`; runs of consecutive ones are read together."""
    cuts = np.flatnonzero(np.diff(indices) != 1) + 1
    return [image for run in np.split(indices, cuts) for image in clip.frames(int(run[0]), len(run))]


def _sound(clip: HeldOut, frames: int) -> Tensor:
    return clip.clip.wave(0, frames * SAMPLES_PER_FRAME)


def _chosen(clips: Sequence[HeldOut]) -> list[tuple[int, int]]:
    """(clip, frame) of the sheet's columns: two of each of up to four clips, or more of fewer."""
    count = min(len(clips), COLUMNS // 2)
    places = np.linspace(0, len(clips) - 1, count).round().astype(int)
    each = COLUMNS // count
    return [(int(p), int(clips[p].frames * (k + 1) / (each + 1))) for p in places for k in range(each)]


def _collect(pictures: dict[str, list[np.ndarray]], batch: _Batch, wanted: Sequence[int]) -> None:
    for frame in wanted:
        if batch.first <= frame < batch.first + len(batch.landmarks):
            for name, images in batch.frames.items():
                pictures.setdefault(name, []).append(images[frame - batch.first])


def _writer(folder: Path, clip: HeldOut, label: Provenance | None) -> VideoWriter:
    path = folder / f"{names_of(clip.id)[-1]}.mp4"
    return VideoWriter(path, clip.clip.size, FPS, audio=_sound(clip, clip.frames), provenance=label)
