"""From one raw video to clips of a talking face: track, choose, cut, measure, filter.

A video is read twice, in constant memory: once to track its faces, once more for the frames of each clip. Everything
is a pure function of the file and the settings, and reports what it leaves out. Pictures are resampled to 25 fps by
their timestamps, sound to 16 kHz on the same clock.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from common.data.corpus import Item
from common.data.engine import Drop, Outcome, Product, Unit
from common.data.talking import Recording, TalkingSettings, TalkingTools, frames_in
from common.data.talking_clip import clip_columns, fill_clip, follow_of
from common.data.talking_measures import (
    FPS,
    SAMPLES_PER_FRAME,
    Measures,
    count_chars,
    face_measures,
    sound_measures,
    speech_within,
)
from common.data.talking_sound import Sound
from common.data.talking_takes import Take, cut_lengths, main_person, pauses_between, takes_of, tubes
from common.errors import UserError
from common.faces.patch import Box
from common.faces.track import TrackSettings, track_frames
from common.faces.tracks import Track, Tracking
from common.video import probe_video, read_frames
from common.video.reader import encodable_path

_LOST = 5


def talk(unit: Unit, tools: TalkingTools) -> Outcome:
    """The clips of a unit, whose payload is a `Recording`.

    Raises:
        UserError: unreadable, without sound, or no face in it; the engine makes it the drop of the file.
    """
    recording: Recording = unit.payload
    outcome = Outcome()
    try:
        with (
            encodable_path(Path(recording.path)) as path,
            encodable_path(Path(recording.audio or recording.path)) as audio,
        ):
            sound = sound_of(recording, path, audio)
            tracking = track_faces(recording, path, tools)
    except UserError as error:
        raise UserError(str(error).replace(recording.path, "it")) from error
    if sound.damage:
        outcome.drops.append(Drop(recording.source, f"its sound is damaged ({sound.damage[0]}); the rest is used"))
    speech = sound.speech(tools.speech)
    kept = []
    for take, reason in _takes(recording, tracking, sound, speech, tools.settings, outcome):
        measures = _measure(recording, take, tracking, sound, speech, whole=len(take) >= 0.9 * tracking.frames)
        reason = reason or tools.settings.bounds.refuse(measures)
        if reason:
            outcome.drops.append(Drop(recording.source, f"{recording.span(take.start, len(take))}: {reason}"))
        else:
            kept.append((take, measures))
    for index, (take, measures) in enumerate(kept):
        product = _product(recording, index, take, measures, tools.settings)
        fill = partial(fill_clip, recording=recording, take=take, sound=sound, tools=tools, measures=measures)
        outcome.products.append(replace(product, data=partial(fill, product=product)))
    return outcome


def sound_of(recording: Recording, path: Path, audio: Path) -> Sound:
    """The sound of a recording on the clock of the frames that are taken of it.

    Raises:
        UserError: the video cannot be read, or has no sound.
    """
    info = probe_video(path)
    if recording.audio is None and not info.has_audio:
        raise UserError(f"{recording.path} has no audio track")
    delay = info.audio_start if recording.audio is None else 0.0
    if recording.window is not None:
        delay -= recording.window[0]
    return Sound(audio, delay=delay)


def track_faces(recording: Recording, path: Path, tools: TalkingTools) -> Tracking:
    """All faces of what is taken of a recording, at 25 fps.

    Raises:
        UserError: the video cannot be read, or shows no face.
    """
    frames = (
        (frame.time, frame.image)
        for frame in read_frames(path, fps=FPS, start=recording.start, seconds=recording.seconds)
    )
    tracking = track_frames(frames, tools.faces, TrackSettings(recognise=not recording.whole), fps=FPS)
    if recording.box is not None:
        tracking = replace(tracking, tracks=[t for t in tracking.tracks if _inside(t, recording.box, tracking.size)])
    if not tracking.tracks:
        raise UserError(f"no face was found in its {tracking.frames} pictures")
    return tracking


def _inside(track: Track, box: Box, size: tuple[int, int]) -> bool:
    """Whether a face is at most times in the fixed crop of its data set, given as fractions."""
    middle = np.nanmedian((track.boxes[:, :2] + track.boxes[:, 2:]) / 2, axis=0) / np.array(size)
    return bool(box[0] <= middle[0] <= box[2] and box[1] <= middle[1] <= box[3])


def _takes(
    recording: Recording,
    tracking: Tracking,
    sound: Sound,
    speech: list[tuple[int, int]],
    settings: TalkingSettings,
    outcome: Outcome,
) -> Iterator[tuple[Take, str | None]]:
    """Takes cut to length, each with why it is dropped, or None; what is lost besides is noted in `outcome`."""
    heard = len(sound) // SAMPLES_PER_FRAME
    found = takes_of(tracking, settings.speaker)
    whole = f"of its {tracking.frames / FPS:.1f} s"
    lost = tracking.frames - sum(map(len, found))
    if lost >= _LOST:
        outcome.drops.append(Drop(recording.source, f"{lost / FPS:.1f} s {whole} show no face that can be followed"))
    person = main_person(found)
    others = sum(len(take) for take in found if take.person != person)
    if others:
        outcome.drops.append(Drop(recording.source, f"{others / FPS:.1f} s {whole} show another person speaking"))
    if heard < tracking.frames - _LOST:
        over = (tracking.frames - heard) / FPS
        outcome.drops.append(Drop(recording.source, f"its sound ends {over:.1f} s before its pictures, which are cut"))
    for whole_take in found:
        take = whole_take.part(0, max(0, heard - whole_take.start))
        if not len(take) or take.person != person:
            continue
        if settings.framing == "tube" and recording.box is None:
            yield from tubes(take, settings.tube, tracking.size)
        else:
            yield from _pieces(recording, take, speech, settings, tracking.size)


def _pieces(
    recording: Recording, take: Take, speech: list[tuple[int, int]], settings: TalkingSettings, size: tuple[int, int]
) -> Iterator[tuple[Take, str | None]]:
    if recording.box is not None:
        left, top, right, bottom = recording.box
        take = replace(take, box=(left * size[0], top * size[1], right * size[0], bottom * size[1]))
    span = (take.start * SAMPLES_PER_FRAME, (take.start + len(take)) * SAMPLES_PER_FRAME)
    pauses = pauses_between(speech_within(speech, *span), SAMPLES_PER_FRAME)
    longest = min(settings.longest, settings.bounds.max_seconds or settings.longest)
    limits = {"shortest": frames_in(settings.shortest), "pieces": recording.pieces}
    whole = recording.whole
    edges = [(0, len(take))] if whole else cut_lengths(len(take), frames_in(longest), pauses, **limits)
    for start, end in edges:
        short = (end - start) / FPS < settings.shortest
        reason = f"it lasts {(end - start) / FPS:.2f} s, at least {settings.shortest:g} s are needed" if short else None
        yield take.part(start, end), reason


def _measure(
    recording: Recording, take: Take, tracking: Tracking, sound: Sound, speech: list[tuple[int, int]], *, whole: bool
) -> Measures:
    """What is known of a take before its frames are read again. Text is known of a whole utterance only."""
    start, samples = take.start * SAMPLES_PER_FRAME, len(take) * SAMPLES_PER_FRAME
    landmarks = np.where(take.found[:, None, None], take.landmarks, np.nan)
    wave = sound.wave(start, samples)
    known = recording.text and recording.whole and whole
    return Measures(
        seconds=len(take) / FPS,
        fps=float(FPS),
        frames=len(take),
        faces=take.faces,
        n_chars=count_chars(recording.text) if known else None,
        **sound_measures(wave, speech_within(speech, start, start + samples)),
        **face_measures(take.boxes, landmarks, tracking.size),
    )


def _product(recording: Recording, index: int, take: Take, measures: Measures, settings: TalkingSettings) -> Product:
    identifier = f"clips/{recording.name}_{index:03}"
    item = Item(
        identifier,
        recording.identity,
        recording.split or "train",
        "clip",
        identifier,
        frames=len(take),
        fps=float(FPS),
        samples=len(take) * SAMPLES_PER_FRAME,
        language=recording.language,
    )
    scale = float(np.median(take.matrices(settings.size, follow_of(settings))[:, 0, 0]))
    extra = {"source": recording.source, "start": recording.time_of(take.start), "crop_scale": float(f"{scale:.6g}")}
    if measures.n_chars is not None:
        extra["text"] = recording.text
    return Product(item, np.zeros(0), {**recording.extra, **extra, **clip_columns(measures)})
