"""The sound of a video that is being written: copied packets, or AAC, fed in step with the pictures."""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Protocol

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.packet import Packet
from torch import Tensor

from common.errors import UserError

COPIED = frozenset({"aac", "mp3", "ac3", "eac3", "alac", "flac", "opus"})
"""Codecs whose packets go into an MP4 as they are; players know them there."""
_AAC_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)
_AAC_BLOCK = 1024
_GAP = 0.1  # seconds; a shorter hole between decoded pieces is a rounded timestamp
_PRIMING = 0.1  # seconds of packets before the start that a decoder may need


class Sound(Protocol):
    """One audio track in the making; `feed` as the pictures go on, `finish` once."""

    def feed(self, until: float) -> None:
        """Mux what is heard before `until` seconds."""

    def finish(self, end: float) -> None:
        """Mux the rest, so that the track ends at `end` seconds."""


class EncodedSound:
    """AAC from chunks of float32 (channels, n); silence where they end before the pictures."""

    def __init__(self, container: OutputContainer, chunks: Iterator[np.ndarray], rate: int, channels: int) -> None:
        self._container, self._chunks, self._rate, self._channels = container, chunks, rate, channels
        layout = "mono" if channels == 1 else "stereo"
        self._stream = container.add_stream("aac", rate=rate, layout=layout, format="fltp")
        self._stream.bit_rate = channels * (96_000 if rate > 24_000 else 64_000)
        self._layout = layout
        self._held = np.zeros((channels, 0), dtype=np.float32)
        self._position = 0

    def feed(self, until: float) -> None:
        while (self._position + _AAC_BLOCK) <= until * self._rate:
            self._encode(_AAC_BLOCK)

    def finish(self, end: float) -> None:
        total = round(end * self._rate)
        while self._position < total:
            self._encode(min(_AAC_BLOCK, total - self._position))
        self._container.mux(self._stream.encode(None))

    def _encode(self, count: int) -> None:
        while self._held.shape[1] < count:
            more = next(self._chunks, None)
            if more is None:
                more = np.zeros((self._channels, _AAC_BLOCK), dtype=np.float32)
            self._held = np.concatenate([self._held, more], axis=1)
        piece, self._held = np.ascontiguousarray(self._held[:, :count]), self._held[:, count:]
        frame = AudioFrame.from_ndarray(piece, format="fltp", layout=self._layout)
        frame.sample_rate, frame.time_base, frame.pts = self._rate, Fraction(1, self._rate), self._position
        self._position += count
        self._container.mux(self._stream.encode(frame))


class CopiedSound:
    """The packets of another file, moved so that its first picture is at 0."""

    def __init__(self, container: OutputContainer, source: InputContainer, stream: AudioStream, start: float) -> None:
        self._container, self._packets = container, source.demux(stream)
        self._stream = container.add_stream_from_template(stream)
        self._base = stream.time_base or Fraction(1, 1)
        self._shift = round(start / self._base)
        self._held: Packet[AudioStream] | None = None
        self._last = -(1 << 62)

    def feed(self, until: float) -> None:
        while (packet := self._peek()) is not None and self._end(packet) <= until / self._base:
            self._mux(packet)

    def finish(self, end: float) -> None:
        limit = round(end / self._base)
        while (packet := self._peek()) is not None and (packet.pts or 0) < limit:
            # The track's length is the sum of its packets' durations, so the last one's is cut.
            packet.duration = min(packet.duration or 0, limit - (packet.pts or 0))
            self._mux(packet)

    def _peek(self) -> "Packet[AudioStream] | None":
        while self._held is None:
            try:
                packet = next(self._packets, None)
            except (av.FFmpegError, OSError):
                return None  # the source breaks off: the rest is silent
            if packet is None:
                return None
            if packet.pts is None or packet.dts is None or packet.size == 0:
                continue
            packet.pts -= self._shift
            packet.dts = packet.pts
            if self._end(packet) > -_PRIMING / self._base and packet.pts > self._last:
                self._held = packet
        return self._held

    def _mux(self, packet: "Packet[AudioStream]") -> None:
        self._last = packet.pts or 0
        self._held = None
        packet.stream = self._stream
        self._container.mux(packet)

    def _end(self, packet: "Packet[AudioStream]") -> int:
        return (packet.pts or 0) + (packet.duration or 0)


def from_wave(container: OutputContainer, wave: Tensor, sample_rate: int) -> Sound:
    """AAC from mono float32 (n,) in [-1, 1]; a rate that AAC lacks is raised to the next one it has."""
    samples = wave.detach().cpu().float().clamp(-1, 1).numpy()
    if samples.ndim != 1 or not np.isfinite(samples).all():
        raise ValueError(f"expected finite mono samples (n,), got {samples.shape}")
    pieces = (samples[None, at : at + sample_rate] for at in range(0, samples.size, sample_rate))
    rate = _aac_rate(sample_rate)
    if rate == sample_rate:
        return EncodedSound(container, pieces, rate, 1)
    frames = (_audio_frame(piece, sample_rate) for piece in pieces)
    return EncodedSound(container, _resampled(frames, rate, "mono"), rate, 1)


def from_file(container: OutputContainer, source: InputContainer, path: Path, start: float) -> Sound:
    """The first audio track of an open file: its packets where MP4 holds the codec, otherwise AAC at its own rate,
    mono or stereo.

    Args:
        container: the video that is written.
        source: the opened file, which must stay open.
        path: its name, for messages.
        start: container time in seconds that becomes 0.

    Raises:
        UserError: no audio track, or one of an unknown codec.
    """
    stream = next(iter(source.streams.audio), None)
    if stream is None:
        raise UserError(f"{path} has no audio track to take over")
    if stream.codec_context is None:
        raise UserError(f"the audio track of {path} is of an unknown codec: convert the file to WAV")
    if stream.codec_context.codec.canonical_name in COPIED:
        return CopiedSound(container, source, stream, start)
    rate = _aac_rate(stream.rate)
    layout = "mono" if stream.channels == 1 else "stereo"
    chunks = _on_time(_decoded(source, stream), start, rate, layout)
    return EncodedSound(container, chunks, rate, 1 if layout == "mono" else 2)


def _aac_rate(rate: int) -> int:
    return next((allowed for allowed in _AAC_RATES if allowed >= rate), _AAC_RATES[-1])


def _audio_frame(samples: np.ndarray, rate: int) -> AudioFrame:
    frame = AudioFrame.from_ndarray(np.ascontiguousarray(samples), format="fltp", layout="mono")
    frame.sample_rate = rate
    return frame


def _decoded(source: InputContainer, stream: AudioStream) -> Iterator[AudioFrame]:
    packets = source.demux(stream)
    while True:
        try:
            packet = next(packets, None)
            if packet is None:
                return
            yield from packet.decode()
        except av.EOFError:
            return
        except av.InvalidDataError:
            continue  # what is missing becomes silence, by the next piece's time
        except (av.FFmpegError, OSError):
            return


def _resampled(frames: Iterator[AudioFrame], rate: int, layout: str) -> Iterator[np.ndarray]:
    """float32 (channels, n) at `rate`."""
    resampler = AudioResampler(format="fltp", layout=layout, rate=rate)
    for frame in frames:
        frame.pts = None  # the resampler shall count samples, not stretch them to rounded stamps
        yield from (piece.to_ndarray() for piece in resampler.resample(frame))
    yield from (piece.to_ndarray() for piece in resampler.resample(None))


def _on_time(frames: Iterator[AudioFrame], start: float, rate: int, layout: str) -> Iterator[np.ndarray]:
    """Resampled chunks from time `start` on: silence before a late beginning and in holes, an early one cut."""
    channels = 1 if layout == "mono" else 2
    skip = 0

    def timely() -> Iterator[AudioFrame]:
        nonlocal skip
        heard: float | None = None
        for frame in frames:
            length = frame.samples / frame.sample_rate
            time = frame.time - start if frame.time is not None else heard or 0.0
            hole = time - (0.0 if heard is None else heard)
            if heard is None and hole < 0:
                skip = round(-hole * rate)
            elif hole > (_GAP if heard is not None else 0):
                yield _silence(frame, hole)
            heard = time + length if heard is None or abs(hole) > _GAP else heard + length
            yield frame

    for chunk in _resampled(timely(), rate, layout):
        if skip >= chunk.shape[1]:
            skip -= chunk.shape[1]
        else:
            yield chunk[:channels, skip:]
            skip = 0


def _silence(like: AudioFrame, seconds: float) -> AudioFrame:
    samples = max(1, round(seconds * like.sample_rate))
    frame = AudioFrame(format=like.format, layout=like.layout, samples=samples)
    for plane in frame.planes:
        plane.update(bytes(plane.buffer_size))
    frame.sample_rate = like.sample_rate
    return frame
