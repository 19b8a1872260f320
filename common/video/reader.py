"""Streaming decode by timestamps: as stored, or resampled to a fixed rate; a few frames in memory at any length."""

import logging
import math
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

import av
import numpy as np
from av.codec.context import ThreadType
from av.container import InputContainer
from av.format import Flags
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from common.errors import UserError, reason_of
from common.video.picture import Upright, most_threads

LOG = logging.getLogger(__name__)

_SMALL = 1e-6  # seconds; below any clock that a container keeps
_JUMP = 10.0  # seconds; in formats whose clock may restart, a longer step is a restart
_STEP = 0.001  # seconds; given to a picture whose time does not grow
_USUAL_RATE = 25.0
_HIGHEST_RATE = 480.0


@dataclass(frozen=True)
class Frame:
    """One picture of a video."""

    index: int
    """Counts from 0 in this reading."""
    time: float
    """Seconds since the file's first picture."""
    image: np.ndarray
    """uint8 (H,W,3) RGB, upright, square pixels; the same size for the whole file. May be shared by equal frames:
    copy it before writing into it."""


@dataclass(frozen=True)
class Timed:
    """A decoded frame before its conversion."""

    time: float
    end: float
    """When the file says that it is replaced, or a frame length later where it says nothing."""
    picture: VideoFrame
    aspect: Fraction | None
    """Width of a pixel over its height."""


def read_frames(
    path: Path, *, fps: float | None = None, start: float = 0.0, seconds: float | None = None, strict: bool = False
) -> Iterator[Frame]:
    """Yield the pictures of a video one by one.

    Args:
        path: any container and codec that FFmpeg reads.
        fps: None for the pictures as stored, at their own times. Otherwise frame k stands for the time from
            start + k / fps to start + (k + 1) / fps and is the picture that is shown in the middle of it, so that
            jitter of the timestamps does not matter; the number is round(length * fps), at least 1.
        start: seconds; the first picture is the one that is shown then.
        seconds: at most so much from `start` on; None for all.
        strict: refuse a damaged file. Otherwise what can be decoded is yielded, and the damage is logged.

    Raises:
        UserError: missing, unreadable or without pictures, none of which can be decoded; `start` behind the end.
        ValueError: fps or seconds not above 0, or start below 0.
    """
    if (fps is not None and not 0 < fps < math.inf) or start < 0 or (seconds is not None and seconds <= 0):
        raise ValueError(f"cannot read at fps {fps} from {start} s for {seconds} s")
    return _convert(path, fps, start, seconds, strict)


def _convert(path: Path, fps: float | None, start: float, seconds: float | None, strict: bool) -> Iterator[Frame]:
    damage: list[str] = []
    upright: Upright | None = None
    before: tuple[VideoFrame, np.ndarray] | None = None
    frames = _from_start(timed_frames(path, damage, start), start)
    chosen = _stored(frames, start, seconds) if fps is None else _resampled(frames, fps, start, seconds)
    for index, (time, frame) in enumerate(chosen):
        if upright is None:
            upright = Upright(frame.picture, frame.aspect)
        if before is None or before[0] is not frame.picture:
            before = (frame.picture, upright(frame.picture))
        yield Frame(index, time, before[1])
    if upright is None:
        raise UserError(f"{path} has no picture at {start:g} s: {damage[0] if damage else 'it ends before'}")
    if damage:
        problem = f"{path} is damaged ({damage[0]})"
        if strict:
            raise UserError(f"{problem}; repair or replace the file")
        LOG.warning("%s: what could be decoded was used", problem)


def _stored(frames: Iterator[Timed], start: float, seconds: float | None) -> Iterator[tuple[float, Timed]]:
    for frame in frames:
        if seconds is not None and frame.time >= start + seconds - _SMALL:
            return
        yield frame.time, frame


def _resampled(
    frames: Iterator[Timed], fps: float, start: float, seconds: float | None
) -> Iterator[tuple[float, Timed]]:
    most = math.inf if seconds is None else max(1, math.floor(seconds * fps + 0.5))
    index, held = 0, None
    for frame in frames:
        while held is not None and index < most and start + (index + 0.5) / fps < frame.time - _SMALL:
            yield start + index / fps, held
            index += 1
        if index >= most:
            return
        held = frame
    if held is None:
        return
    total = min(most, max(1, math.floor((held.end - start) * fps + 0.5)))
    while index < total:
        yield start + index / fps, held
        index += 1


def _from_start(frames: Iterator[Timed], start: float) -> Iterator[Timed]:
    """Leave out what is replaced before `start`."""
    held: Timed | None = None
    for frame in frames:
        if frame.time > start + _SMALL:
            if held is not None:
                yield held
            held = None
            yield frame
            yield from frames
            return
        held = frame
    if held is not None and held.end > start + _SMALL:
        yield held


def timed_frames(path: Path, damage: list[str], start: float = 0.0) -> Generator[Timed]:
    """Decoded frames with growing times, from the last key frame before `start` or earlier; `damage` is appended to.

    MPEG program and transport streams are decoded from their beginning: their times after a jump are guesses.

    Raises:
        UserError: as `open_video`; nothing can be decoded.
    """
    with open_video(path) as (container, stream):
        clock = _Clock(container, stream)
        frames = _decoded(container, stream, damage)
        first = next(frames, None)
        if first is None:
            reason = damage[0] if damage else "its video track is empty"
            raise UserError(f"no picture can be decoded from {path}: {reason}")
        opening = clock.stamp(first)
        if start <= opening.end or first.pts is None or clock_may_restart(container):
            yield opening
            yield from map(clock.stamp, frames)
            return
        frames.close()
        frames = _sought(container, stream, first.pts, start)
        landed = next(frames, None)
        if landed is not None and landed.pts is not None and clock.since_first(landed.pts) <= start:
            yield clock.stamp(landed, sought=True)
            yield from map(clock.stamp, frames)
            return
    # No index, or an inexact one: everything before the start is decoded.
    with open_video(path) as (container, stream):
        yield from map(_Clock(container, stream).stamp, _decoded(container, stream, damage))


def _sought(container: InputContainer, stream: VideoStream, first: int, start: float) -> Generator[VideoFrame]:
    """Frames from the key frame at or before `start` seconds after the timestamp `first`; nothing where that fails."""
    assert stream.time_base is not None
    try:
        container.seek(first + int(start / stream.time_base), stream=stream)
    except (av.FFmpegError, OSError):
        return
    yield from _decoded(container, stream, [])


class _Clock:
    """Seconds since the first picture, growing whatever the file's timestamps do."""

    def __init__(self, container: InputContainer, stream: VideoStream) -> None:
        rate = float(stream.average_rate or stream.guessed_rate or 0)
        self._usual = 1 / rate if 0 < rate <= _HIGHEST_RATE else 1 / _USUAL_RATE
        self._restarts = clock_may_restart(container)
        self._base = stream.time_base or Fraction(1, 1)
        self._aspect = stream.sample_aspect_ratio
        self._zero: float | None = None
        self._last = -math.inf
        self._next = 0.0

    def since_first(self, pts: int) -> float:
        """Seconds between a timestamp and the first picture's."""
        return float(pts * self._base) - (self._zero or 0.0)

    def stamp(self, frame: VideoFrame, sought: bool = False) -> Timed:
        """The frame with its time; `sought` marks the first after a jump in the file, which may lie anywhere."""
        if frame.pts is None:
            time = self._next
        else:
            if self._zero is None:
                self._zero = float(frame.pts * self._base)
            time = self.since_first(frame.pts)
        step = time - self._next
        if not sought and (step < -1 or (self._restarts and step > _JUMP)):
            self._zero = (self._zero or 0.0) + step
            time = self._next
        time = max(time, self._last + _STEP)
        length = float(frame.duration * self._base) if frame.duration > 0 else self._usual
        self._last, self._next = time, time + length
        return Timed(time, self._next, frame, self._aspect)


def _decoded(container: InputContainer, stream: VideoStream, damage: list[str]) -> Generator[VideoFrame]:
    """All frames that can be decoded from here on; the rest is described in `damage`."""
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except (av.FFmpegError, OSError) as error:
            damage.append(f"reading stopped: {reason_of(error)}")
            return
        if packet is None:
            return
        if packet.is_corrupt:
            damage.append("corrupt packet")
        try:
            frames = packet.decode()
        except av.EOFError:
            return
        except av.FFmpegError as error:
            damage.append(f"undecodable packet: {reason_of(error)}")
            continue
        yield from frames


def clock_may_restart(container: InputContainer) -> bool:
    """Whether timestamps of this format (MPEG program and transport streams) may jump inside a file."""
    return bool(container.format.flags & cast(int, Flags.ts_discont.value))


def has_pictures(container: InputContainer) -> bool:
    """Whether there is a video track, cover pictures aside."""
    return next(_tracks(container), None) is not None


def _tracks(container: InputContainer) -> Iterator[VideoStream]:
    return (track for track in container.streams.video if not track.disposition & Disposition.attached_pic)


@contextmanager
def open_video(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The container and its first video track, cover pictures aside.

    Raises:
        UserError: no such file, a folder, empty, not media, without a video track, or of an unknown codec.
    """
    with open_media(path, "video") as container:
        stream = next(_tracks(container), None)
        if stream is None:
            raise UserError(f"{path} has no video track")
        if stream.codec_context is None:
            raise UserError(f"the video track of {path} is of an unknown codec: convert the file to H.264")
        stream.thread_type = ThreadType.AUTO
        stream.thread_count = most_threads()
        yield container, stream


@contextmanager
def open_media(path: Path, wanted: str = "audio or video") -> Iterator[InputContainer]:
    """A file's demuxer; every failure to open it becomes a `UserError` that names what was wanted."""
    path = Path(path)
    if not path.exists():
        raise UserError(f"no such file: {path}")
    if not path.is_file():
        raise UserError(f"{path} is not a file: give one {wanted} file")
    with encodable_path(path) as name:
        try:
            if path.stat().st_size == 0:
                raise UserError(f"{path} is an empty file")
            # The prefix keeps a colon in the name from being read as a protocol, the list a playlist from the network.
            container = av.open(f"file:{name}", metadata_errors="replace", options={"protocol_whitelist": "file"})
        except (av.FFmpegError, OSError, ValueError) as error:
            raise UserError(
                f"cannot read {path} as {wanted}, its header is damaged or of another kind: {reason_of(error)}"
            ) from error
        with container:
            yield container


@contextmanager
def encodable_path(path: Path) -> Iterator[Path]:
    """The path, or a link to it where its name is not UTF-8, which FFmpeg's binding refuses."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        with TemporaryDirectory() as folder:
            link = Path(folder, "media").with_suffix(path.suffix)
            link.symlink_to(path.absolute())
            yield link
    else:
        yield path
