"""The pictures to dub: a video or a still image, played forth and back for as long as the speech lasts."""

import math
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path

import numpy as np

from common.faces.images import read_image
from common.video import probe_video, read_frames

STILL_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})
STILL_RATE = Fraction(25)
_REVERSED_BYTES = 1 << 27
"""Decoded frames that are held at once to play them backwards."""


@dataclass(frozen=True)
class Footage:
    """What is known of the pictures before they are read."""

    path: Path
    size: tuple[int, int]
    """Width and height in pixels."""
    fps: Fraction
    seconds: float
    """Length of the video; 0 for a still image."""
    still: np.ndarray | None = None
    """uint8 (H,W,3) of a still image."""
    frames: int | None = None
    """Their number, where the file states it."""

    def read(self, start: float = 0.0) -> Generator[tuple[float, np.ndarray]]:
        """Times in seconds and pictures uint8 (H,W,3) as stored, from the one that is shown at `start` on."""
        if self.still is not None:
            yield 0.0, self.still
            return
        for frame in read_frames(self.path, start=start):
            yield frame.time, frame.image

    def read_until(self, seconds: float) -> Iterator[tuple[float, np.ndarray]]:
        """As `read`, without the pictures that begin at `seconds` or later, but for the first."""
        for time, image in self.read():
            if time > 0 and time >= seconds:
                return
            yield time, image


def open_footage(path: Path) -> Footage:
    """Look at a video or a still image.

    Raises:
        UserError: missing, or nothing that can be read as either.
    """
    if path.suffix.lower() in STILL_SUFFIXES:
        image = read_image(path)
        return Footage(path, (image.shape[1], image.shape[0]), STILL_RATE, 0.0, image, 1)
    info = probe_video(path)
    return Footage(path, (info.width, info.height), info.fps, info.seconds, None, info.frames)


@dataclass(frozen=True)
class Shown:
    """One picture of the output."""

    source: int
    """Index of the picture in the footage."""
    time: float
    """Seconds at which it is shown."""


class Playback:
    """The first `len(times)` pictures of a footage, forth and back, until `seconds` are filled.

    Each picture is shown for as long as in the footage; at the turning points it is shown once.

    Args:
        footage: the pictures.
        times: (n,) seconds of the pictures that are played, as `Footage.read` gives them.
        seconds: length of the output.
    """

    def __init__(self, footage: Footage, times: np.ndarray, seconds: float) -> None:
        self._footage, self._times, self.seconds = footage, times, seconds
        usual = float(1 / footage.fps)
        even = np.arange(len(times)) * usual
        self.even = bool(np.abs(times - even).max() < 0.5 * usual)
        """Whether the pictures are evenly spaced, so that the output has a constant rate."""
        self._lengths = np.append(np.diff(times), usual)

    @property
    def total(self) -> int:
        """Pictures of the output."""
        if self.even:
            return max(1, math.floor(Fraction(self.seconds) * self._footage.fps + Fraction(1, 2)))
        return sum(1 for _ in self.shown())

    def shown(self) -> Iterator[Shown]:
        """Which picture when."""
        order = _forth_and_back(len(self._times))
        if self.even:
            for index, source in enumerate(islice(order, self.total)):
                yield Shown(source, float(index / self._footage.fps))
            return
        time = 0.0
        for source in order:
            yield Shown(source, time)
            time += float(self._lengths[source])
            if time >= self.seconds:
                return

    def pictures(self) -> Iterator[tuple[Shown, np.ndarray]]:
        """The output's pictures, uint8 (H,W,3), decoded as they are needed. Equal ones may share memory."""
        yield from zip(self.shown(), self._endless(), strict=False)

    def _endless(self) -> Iterator[np.ndarray]:
        count = len(self._times)
        first = 0
        while True:
            image: np.ndarray | None = None
            for _, image in islice(self._footage.read(), first, count):
                yield image
            if image is None:
                return
            if count == 1:
                while True:
                    yield image
            yield from self._backwards()
            first = 1

    def _backwards(self) -> Iterator[np.ndarray]:
        """The pictures before the last one, backwards to the first, a part of the video at a time."""
        width, height = self._footage.size
        step = max(8, _REVERSED_BYTES // (3 * width * height))
        end = len(self._times) - 1
        while end > 0:
            begin = max(0, end - step)
            part = [image for _, image in islice(self._footage.read(float(self._times[begin])), end - begin)]
            part += part[-1:] * (end - begin - len(part))  # a damaged file may break off earlier this time
            yield from reversed(part)
            end = begin


def _forth_and_back(count: int) -> Iterator[int]:
    """0 1 2 1 0 1 2 ... for 3."""
    period = max(1, 2 * (count - 1))
    index = 0
    while True:
        position = index % period
        yield min(position, period - position) if count > 1 else 0
        index += 1
