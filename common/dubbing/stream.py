"""The passes of a dub, in constant memory: listen, find the faces, prepare, then picture by picture draw and encode.

What is drawn is the caller's: it makes a `Dubber` from the `Scene`, once the faces are known.
"""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch

from common.background import ahead, behind
from common.dubbing.footage import Footage, Playback, Shown, open_footage
from common.dubbing.places import check_output
from common.dubbing.report import DubReport, progress_bars
from common.dubbing.speech import Detector, Speech, listen
from common.faces.base import FaceBackend, load_backend
from common.faces.track import track_frames
from common.faces.tracks import Tracking
from common.progress import Bars
from common.provenance import Provenance
from common.stopwatch import Stopwatch
from common.video import VideoWriter

HELD_BYTES = 3 << 27
"""Frames in memory at once: those that were read ahead, those of the batch in hand, those that wait to be encoded."""
_TRACKED_AHEAD = 4
"""Frames that are read ahead of the tracking."""

WhenShorter = Literal["stop", "keep"]


@dataclass(frozen=True)
class Scene:
    """All that is known before the first picture is drawn."""

    footage: Footage
    tracking: Tracking
    speech: Speech
    seconds: float
    """Length of the output."""
    clock: Stopwatch
    """Of the stages, for the report."""
    bars: Bars


class Dubber(Protocol):
    """Turns batches of pictures into dubbed ones, in the order of time."""

    @property
    def batch(self) -> int:
        """Pictures that it takes at once."""
        ...

    def __call__(self, batch: list[tuple[Shown, np.ndarray]], report: DubReport) -> list[np.ndarray]:
        """The pictures, those with a face dubbed, the others the very same arrays; counts them in the report."""
        ...


def dub_stream(
    video: Path,
    audio: Path,
    out: Path,
    prepare: Callable[[Scene], Dubber],
    *,
    when_shorter: WhenShorter,
    crf: int,
    backend: FaceBackend | None,
    detect: Detector,
    label: Provenance,
    progress: bool,
) -> DubReport:
    """Write `out`: the pictures of a video as a dubber makes them, with other speech.

    Args:
        video: any video, or a still image.
        audio: any sound file, or a video with sound; it becomes the output's sound, packet by packet where MP4 can
            hold its codec.
        out: ends in .mp4; appears only when it is complete.
        prepare: makes the dubber once the faces are known; may read the footage itself.
        when_shorter: speech shorter than the video: stop the video with it, or keep the rest.
        crf: x264's quality.
        backend: finds faces; None is dlib.
        detect: finds speech in the sound.
        label: the output's.
        progress: show how far it is.

    Raises:
        UserError: inputs that cannot be read or have no picture, face or sound; an output that cannot be written.
    """
    check_output(out, ".mp4", (video, audio))
    clock, reader, encoder = Stopwatch(), Stopwatch(), Stopwatch()
    with clock("wait"), torch.inference_mode():
        footage = open_footage(video)
        with clock("listen"):
            speech = listen(audio, detect)
        seconds = max(speech.seconds, footage.seconds if when_shorter == "keep" else 0.0)
        writer = VideoWriter(out, footage.size, footage.fps, audio=audio, seconds=seconds, crf=crf, provenance=label)
        report = DubReport(seconds=seconds, stages=clock.seconds)
        with progress_bars(progress) as bars, writer:
            frames = reader.each("read", footage.read_until(seconds))
            tracking = _track(bars.counted(frames, f"faces in {video.name}", footage.frames), footage, backend, clock)
            playback = Playback(footage, tracking.times, seconds)
            dubber = prepare(Scene(footage, tracking, speech, seconds, clock, bars))
            pictures = ahead(reader.each("read", playback.pictures()), dubber.batch)
            task = bars.add_task(f"lips of {out.name}", total=playback.total)
            with behind(encoder.around("encode", writer.write), dubber.batch) as write:
                while batch := list(islice(pictures, dubber.batch)):
                    for (shown, _), image in zip(batch, dubber(batch, report), strict=True):
                        write(image, None if playback.even else shown.time)
                    bars.advance(task, len(batch))
    report.beside = reader.seconds | encoder.seconds
    return report


def held_at_once(footage: Footage, wanted: int) -> int:
    """Pictures of a batch: as many as are wanted and may be in memory."""
    frame_bytes = 3 * footage.size[0] * footage.size[1]
    return max(1, min(wanted, HELD_BYTES // (3 * frame_bytes)))


@contextmanager
def ordinary_ending() -> Iterator[None]:
    """Make an ending by SIGTERM an ordinary one, so that it leaves no temporary file."""
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _track(
    frames: Iterator[tuple[float, np.ndarray]], footage: Footage, backend: FaceBackend | None, clock: Stopwatch
) -> Tracking:
    """All faces; frames are decoded a little ahead."""
    with clock("track"):
        found = backend or load_backend()
        return track_frames(clock.each("wait", ahead(frames, _TRACKED_AHEAD)), found, fps=float(footage.fps))
