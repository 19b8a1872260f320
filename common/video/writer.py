"""H.264 and AAC in MP4, of an exact length, labelled, and whole or not there at all."""

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Self

import av
import numpy as np
from av.container import OutputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from torch import Tensor

from common.errors import UserError, reason_of
from common.files import atomic_path
from common.provenance import MP4_OPTIONS, Provenance, draw_words, read_label
from common.video.picture import Encodable, most_threads
from common.video.probe import video_start
from common.video.reader import encodable_path, open_media
from common.video.sound import Sound, from_file, from_wave

_FINE = Fraction(1, 90000)  # seconds; the clock of a variable rate
_NEAR_NTSC = 1e-3


def as_rate(fps: float | Fraction) -> Fraction:
    """A frame rate as a fraction; 29.97, 23.976 and 59.94 become 30000/1001, 24000/1001 and 60000/1001.

    Raises:
        ValueError: not above 0 and at most 1000.
    """
    if not 0 < fps <= 1000:
        raise ValueError(f"a frame rate of {fps} cannot be written")
    if isinstance(fps, Fraction):
        return fps
    if not float(fps).is_integer() and abs(fps * 1.001 - round(fps * 1.001)) < _NEAR_NTSC:
        return Fraction(round(fps * 1.001) * 1000, 1001)
    return Fraction(fps).limit_denominator(1001)


class _AbandonedError(Exception):
    """Makes the output's temporary file go, whatever the block's own exception was."""


class VideoWriter:
    """Writes one MP4; use it as a context manager, and the file is there when the block has ended without exception.

    The pictures take the time from 0 to `seconds`: missing ones repeat the last, those that begin later are left out.
    At a constant rate their number is round(seconds * fps), at least 1. The sound is cut to `seconds` as well; a wave
    (or a file's sound that has to be encoded anew) is filled with silence up to it, to the sample. Copied packets end
    where they end in their file. Without `seconds` the pictures that were written decide.

    Colours are BT.709, limited range, tagged; a flat colour comes back within 2 levels at the default quality. Sizes
    with an odd side are written in 4:4:4, which keeps every pixel in place; FFmpeg, VLC and Chrome play it, Apple's
    players do not.

    Args:
        path: ends in .mp4.
        size: (width, height) in pixels.
        fps: constant rate, or the length of the last picture when `write` is given times.
        audio: mono float32 (n,) in [-1, 1], or a file whose first audio track is taken over: packet by packet where
            MP4 can hold the codec, otherwise as AAC. A file's first picture marks its time 0, if it has pictures.
        sample_rate: Hz of an `audio` tensor.
        seconds: wanted length.
        crf: x264's quality, 0 (lossless) to 51.
        intra: every picture is a key frame, for random access; encoded by one thread, so that it repeats exactly.
        provenance: label that is written in the same pass, and with `visible` drawn into every picture.

    Raises:
        UserError: another suffix, a place that cannot be written, an audio file without sound, no picture written.
    """

    def __init__(
        self,
        path: Path,
        size: tuple[int, int],
        fps: float | Fraction,
        *,
        audio: Path | Tensor | None = None,
        sample_rate: int = 16000,
        seconds: float | None = None,
        crf: int = 18,
        intra: bool = False,
        provenance: Provenance | None = None,
    ) -> None:
        self._path, self._size, self._rate = Path(path), size, as_rate(fps)
        if self._path.suffix.lower() != ".mp4":
            raise UserError(f"videos are written as MP4; {path} does not end in .mp4")
        if min(size) < 2 or max(size) > 16384 or (seconds is not None and not 0 < seconds < math.inf):
            raise ValueError(f"cannot write {size[0]}x{size[1]} px for {seconds} s")
        self._audio, self._sample_rate, self._seconds = audio, sample_rate, seconds
        self._crf, self._intra, self._provenance = crf, intra, provenance
        self._total = None if seconds is None else max(1, math.floor(Fraction(seconds) * self._rate + Fraction(1, 2)))
        self._stack = ExitStack()
        self._encodable = Encodable(*size)
        self._variable: bool | None = None
        self._held: tuple[VideoFrame, int] | None = None
        self._durations: dict[int, int] = {}
        self._count = 0

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._temporary = stack.enter_context(atomic_path(self._path))
            self._link = stack.enter_context(encodable_path(self._temporary))
            self._temporary.touch()  # FFmpeg would find out about a read-only folder only after many pictures
            # The default clock of the file, a millisecond, would round the tracks' lengths.
            options = {"movflags": "+".join([*MP4_OPTIONS.values(), "faststart"]), "movie_timescale": "90000"}
            opened = av.open(f"file:{self._link}", "w", format="mp4", options=options)
            self._container: OutputContainer = stack.enter_context(opened)
            if self._provenance is not None:
                self._container.metadata.update(self._provenance.tags())
            self._sound = self._open_sound(stack)
            self._stack = stack.pop_all()
        return self

    def _open_sound(self, stack: ExitStack) -> Sound | None:
        if self._audio is None:
            return None
        if isinstance(self._audio, Tensor):
            return from_wave(self._container, self._audio, self._sample_rate)
        source = stack.enter_context(open_media(self._audio))
        return from_file(self._container, source, self._audio, video_start(self._audio))

    def write(self, image: np.ndarray, time: float | None = None) -> None:
        """Add a picture.

        Args:
            image: uint8 (H,W,3) RGB of the writer's size.
            time: seconds at which it is shown, for a variable rate; growing. The first one is shown from 0 on,
                whatever its time. Give it for all pictures or for none.

        Raises:
            ValueError: another size or type, or times that do not grow.
        """
        if image.dtype != np.uint8 or image.shape != (*self._size[::-1], 3):
            raise ValueError(f"expected uint8 {(*self._size[::-1], 3)}, got {image.dtype} {image.shape}")
        if self._variable is None:
            self._variable = time is not None
            self._stream = self._open_stream()
        if self._variable != (time is not None):
            raise ValueError("give the time of all pictures or of none")
        tick = self._count if time is None else self._tick(time)
        if self._total is not None and tick >= (self._total if time is None else self._end_tick()):
            return
        if self._provenance is not None and self._provenance.visible:
            image = draw_words(image, self._provenance.visible_font)
        frame = self._encodable(image)
        if self._held is not None:
            with self._reported():
                self._encode(tick)
        self._held = (frame, tick)
        self._count += 1

    def _tick(self, time: float) -> int:
        if not math.isfinite(time) or time < 0:
            raise ValueError(f"a picture cannot be shown at {time} s")
        if self._held is None:
            return 0
        tick = round(time / _FINE)
        if tick <= self._held[1]:
            raise ValueError(f"the picture at {time} s does not come after the one before it")
        return tick

    def _open_stream(self) -> VideoStream:
        options = {"crf": str(self._crf), **self._encodable.options}
        if self._intra or self._variable:
            # Without reordering the decoding times are the pictures' own, and so the stored lengths are exact.
            options["bf"] = "0"
        if self._intra:
            options["g"] = "1"
        stream = self._container.add_stream("libx264", rate=self._rate, options=options)
        context = stream.codec_context
        context.width, context.height = self._size
        context.pix_fmt = self._encodable.pixel_format
        context.time_base = self._base
        context.thread_count = 1 if self._intra else most_threads()
        context.color_primaries, context.color_trc = self._encodable.primaries, self._encodable.transfer
        context.colorspace, context.color_range = self._encodable.matrix, self._encodable.limits
        return stream

    @property
    def _base(self) -> Fraction:
        return _FINE if self._variable else 1 / self._rate

    def _end_tick(self) -> int:
        """Where the pictures end: as wanted, or after the last one that was written."""
        if not self._variable:
            return self._total or self._count
        if self._seconds is not None:
            return max(1, round(self._seconds / _FINE))
        return (self._held[1] if self._held else 0) + max(1, round(1 / (self._rate * _FINE)))

    def _encode(self, until: int) -> None:
        """Encode the held picture, which is shown up to tick `until`, and the sound up to there."""
        assert self._held is not None
        frame, tick = self._held
        frame.pts, frame.time_base = tick, self._base
        self._durations[tick] = until - tick
        self._mux(self._stream.encode(frame))
        if self._sound is not None:
            heard = float(until * self._base)
            self._sound.feed(heard if self._seconds is None else min(heard, self._seconds))

    def _mux(self, packets: "list[Packet[VideoStream]]") -> None:
        for packet in packets:
            packet.duration = self._durations.pop(packet.pts or 0)
            self._container.mux(packet)

    def _finish(self) -> None:
        if self._held is None:
            raise UserError(f"no picture was written to {self._path}")
        end = self._end_tick()
        while not self._variable and self._held[1] < end - 1:
            self._encode(self._held[1] + 1)
            self._held = (self._held[0], self._held[1] + 1)
        self._encode(end)
        self._mux(self._stream.encode(None))
        if self._sound is not None:
            self._sound.finish(float(end * self._base) if self._seconds is None else self._seconds)
        self._container.close()
        if self._provenance is not None and read_label(self._link) != self._provenance.as_dict():
            raise UserError(f"the label of {self._path} did not survive writing; nothing was written")

    @contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except (av.FFmpegError, OSError) as error:
            raise UserError(
                f"cannot write {self._path}: {reason_of(error)}; check the disk and its permissions"
            ) from error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._abandon()
            return
        try:
            with self._reported():
                self._finish()
        except BaseException:
            self._abandon()
            raise
        self._stack.close()

    def _abandon(self) -> None:
        """Remove what was written; closing an unfinished file may fail as well, and does not matter."""
        try:
            self._stack.__exit__(_AbandonedError, _AbandonedError(), None)
        except (_AbandonedError, av.FFmpegError, OSError, UserError):
            return
