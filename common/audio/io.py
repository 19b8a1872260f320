"""Sound files: any container, codec, sample rate and channel count in; float32 mono at the wanted rate out."""

import logging
import math
import wave as wave_file
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import av
import numpy as np
import scipy.signal
import torch
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer
from torch import Tensor

from common.errors import UserError, reason_of
from common.files import atomic_path

LOG = logging.getLogger(__name__)

# Sinc lobes on each side of the resampling filter, and its Kaiser window: 80 dB down at the lower Nyquist frequency,
# flat to 0.9 of it.
_LOBES, _BETA, _CUTOFF = 48, 8.0, 0.945
_MIN_SECONDS, _MIN_DBFS, _MAX_CLIPPED = 0.3, -60.0, 0.05
_MIN_RATE, _MAX_RATE = 2000, 768000


@dataclass(frozen=True)
class AudioInfo:
    """What a container promises about its first audio track; `load_audio` may find less in a truncated file."""

    seconds: float
    sample_rate: int
    """Hz, before resampling."""
    channels: int


def load_audio(
    path: Path, sample_rate: int = 16000, *, max_seconds: float | None = None, strict: bool = False
) -> Tensor:
    """First audio track of a media file as float32 mono (n,) in [-1, 1] at `sample_rate` Hz.

    Channels are averaged and the rate is changed by a streaming polyphase filter, so that beside the result, with
    room for a quarter more, only about a second of sound is held. N samples at rate r become exactly
    round(N * sample_rate / r). Samples beyond full scale are clipped, those that are not finite become 0.

    Args:
        path: audio or video file.
        sample_rate: Hz wanted.
        max_seconds: decode no more than this from the start.
        strict: refuse a damaged file. Otherwise what can be decoded is returned, with a warning in the log.

    Raises:
        UserError: missing, a directory, unreadable, not media, without an audio track, or nothing decodable in it.
    """
    limit = None if max_seconds is None else round(max_seconds * sample_rate)
    if limit is not None and limit <= 0:
        raise ValueError(f"max_seconds {max_seconds} leaves no sample")
    damage: list[str] = []
    samples, filled = np.zeros(0, dtype=np.float32), 0
    for piece in stream_audio(path, sample_rate, damage):
        if filled + piece.size > samples.size:
            # realloc moves no bytes for large arrays: a long file is never held twice
            samples.resize(filled + piece.size + samples.size // 4, refcheck=False)
        samples[filled : filled + piece.size] = piece
        filled += piece.size
        if limit is not None and filled >= limit:
            filled = limit
            break
    if filled == 0:
        raise UserError(f"no sound can be decoded from {path}: the audio track is empty or damaged")
    if limit is None and (shortfall := _shortfall(path, filled / sample_rate)):
        damage.append(shortfall)
    if damage:
        problem = f"{path} is damaged ({damage[0]}): {filled / sample_rate:.2f} s were decoded"
        if strict:
            raise UserError(problem + "; repair or replace the file")
        LOG.warning(problem)
    samples.resize(filled, refcheck=False)
    return torch.from_numpy(samples)


def probe_audio(path: Path) -> AudioInfo:
    """Length, rate and channels of the first audio track from the headers, or by decoding where they are silent.

    Raises:
        UserError: as `load_audio`.
    """
    with _open(path) as (container, stream):
        if stream.duration and stream.time_base:
            seconds = float(stream.duration * stream.time_base)
        elif container.duration:
            seconds = container.duration / av.time_base
        else:
            seconds = sum(chunk.size / rate for chunk, rate in _decoded(path, []))
        if seconds <= 0 or not stream.rate:
            raise UserError(f"no sound can be decoded from {path}: the audio track is empty or damaged")
        return AudioInfo(seconds, stream.rate, stream.channels)


def write_wav(path: Path, wave: Tensor | np.ndarray, sample_rate: int = 16000) -> None:
    """Write mono (n,) as 16-bit PCM, atomically.

    A sample x becomes round(32768 x), half to even, clipped to [-32768, 32767]; `load_audio` divides by 32768, so
    that a wave read from 16-bit PCM is written back bit for bit.

    Raises:
        ValueError: not one-dimensional, or not finite.
        UserError: the file cannot be written.
    """
    samples = np.asarray(wave.detach().cpu() if isinstance(wave, Tensor) else wave, dtype=np.float64)
    if samples.ndim != 1 or not np.isfinite(samples).all():
        raise ValueError(f"expected finite mono samples (n,), got {samples.shape}")
    integers = np.clip(np.rint(samples * 32768.0), -32768, 32767).astype("<i2")
    with atomic_path(path) as temporary, wave_file.open(str(temporary), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(sample_rate)
        file.writeframes(integers.tobytes())


def check_voice(wave: Tensor, sample_rate: int = 16000) -> str | None:
    """Why a wave (n,) cannot serve as a voice, or None if it can.

    Reasons: samples that are not finite; under 0.3 s (pass what `keep_speech` left to ask for 0.3 s of speech); a
    root mean square without the mean under -60 dBFS; over 5 % of samples within 0.1 % of the wave's own peak, where
    that peak is over 0.1 (clean speech has under 0.1 % there, a sine 3 %).
    """
    seconds = wave.numel() / sample_rate
    if not bool(wave.isfinite().all()):
        return "not finite: it holds NaN or infinite samples"
    if seconds < _MIN_SECONDS:
        return f"too short: {seconds:.2f} s, at least {_MIN_SECONDS} s are needed"
    level = 20 * math.log10(max(float((wave - wave.mean()).square().mean().sqrt()), 1e-10))
    if level < _MIN_DBFS:
        return f"silent: {level:.0f} dBFS, at least {_MIN_DBFS:.0f} dBFS are needed"
    peak = float(wave.abs().max())
    clipped = float((wave.abs() >= 0.999 * peak).float().mean())
    if peak > 0.1 and clipped > _MAX_CLIPPED:
        return f"clipped: {clipped:.0%} of its samples sit at the peak; record it at a lower level"
    return None


def _shortfall(path: Path, seconds: float) -> str | None:
    """What the header promised, if a twentieth or more of it, and half a second, are missing."""
    with _open(path) as (_, stream):
        if stream.duration is None or stream.time_base is None:
            return None
        promised = float(stream.duration * stream.time_base)
    return f"its header promises {promised:.2f} s" if seconds < min(promised - 0.5, 0.95 * promised) else None


@contextmanager
def _open(path: Path) -> Iterator[tuple[InputContainer, AudioStream]]:
    """The container and its first audio track; every failure of the demuxer becomes a `UserError`."""
    path = Path(path)
    if not path.exists():
        raise UserError(f"no such file: {path}")
    if not path.is_file():
        raise UserError(f"{path} is not a file: give one audio or video file")
    if path.stat().st_size == 0:
        raise UserError(f"{path} is an empty file")
    try:
        # The prefix keeps a colon in the name from being read as a protocol, the list a playlist from the network.
        container = av.open(f"file:{path}", metadata_errors="replace", options={"protocol_whitelist": "file"})
    except (av.FFmpegError, OSError, ValueError) as error:
        raise UserError(
            f"cannot read {path} as audio or video, its header is damaged or of another kind: {reason_of(error)}"
        ) from error
    with container:
        stream = next(iter(container.streams.audio), None)
        if stream is None:
            raise UserError(f"{path} has no audio track")
        if stream.codec_context is None:
            raise UserError(f"the audio track of {path} is of an unknown codec: convert the file to WAV")
        if stream.rate and not _MIN_RATE <= stream.rate <= _MAX_RATE:
            raise UserError(f"the header of {path} gives a sample rate of {stream.rate} Hz: the file is damaged")
        yield container, stream


def _decoded(path: Path, damage: list[str]) -> Iterator[tuple[np.ndarray, int]]:
    """Mono float32 chunks with their sample rate; what could not be decoded is described in `damage`."""
    with _open(path) as (container, stream):
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
            for frame in frames:
                if isinstance(frame, AudioFrame) and frame.samples and frame.sample_rate:
                    yield _mono(frame), frame.sample_rate


def _mono(frame: AudioFrame) -> np.ndarray:
    """Average of the channels, float32, integers scaled to [-1, 1)."""
    raw = frame.to_ndarray()
    channels = raw if frame.format.is_planar else raw.reshape(-1, len(frame.layout.channels)).T
    if channels.dtype == np.uint8:
        mono = (channels.mean(axis=0, dtype=np.float32) - 128.0) / 128.0
    elif np.issubdtype(channels.dtype, np.integer):
        mono = channels.mean(axis=0, dtype=np.float64) / 2.0 ** (8 * channels.dtype.itemsize - 1)
    else:
        finite = np.nan_to_num(channels, nan=0.0, posinf=0.0, neginf=0.0)
        mono = finite.mean(axis=0, dtype=np.float64)
    return np.asarray(mono, dtype=np.float32)


def stream_audio(path: Path, sample_rate: int, damage: list[str]) -> Iterator[np.ndarray]:
    """The samples of `load_audio` in chunks, for files of any length; about a second of sound is held.

    A change of rate inside the file starts a new filter. What could not be decoded is described in `damage`, which
    is complete when the chunks have ended.

    Raises:
        UserError: missing, a directory, unreadable, not media, or without an audio track.
    """
    resampler: StreamResampler | None = None
    for chunk, rate in _decoded(path, damage):
        if resampler is not None and resampler.source != rate:
            yield resampler.finish()
            resampler = None
        if resampler is None:
            resampler = StreamResampler(rate, sample_rate)
        yield resampler.push(chunk)
    if resampler is not None:
        yield resampler.finish()


@lru_cache(maxsize=8)
def _taps(up: int, down: int) -> np.ndarray:
    longer = max(up, down)
    return scipy.signal.firwin(2 * _LOBES * longer + 1, _CUTOFF / longer, window=("kaiser", _BETA)).astype(np.float32)


class StreamResampler:
    """Polyphase change of rate for sound that comes in chunks; the chunking does not show in the output.

    `push` returns the samples that are certain so far, `finish` the rest: round(N * target / source) in all for N
    pushed. Output is clipped to [-1, 1].
    """

    def __init__(self, source: int, target: int) -> None:
        ratio = Fraction(target, source)
        self.source, self.up, self.down = source, ratio.numerator, ratio.denominator
        # Whole periods of `down` inputs give whole periods of `up` outputs, so that blocks join without a phase.
        context = -(-_LOBES * max(self.up, self.down) // (self.up * self.down)) + 1
        self.context = context * self.down
        self.block = max(1, source // self.down) * self.down
        self.pending = [np.zeros(self.context, dtype=np.float32)]
        self.held, self.pushed, self.returned = self.context, 0, 0

    def push(self, chunk: np.ndarray) -> np.ndarray:
        """Take float32 samples (n,); return what they complete, often nothing."""
        self.pushed += chunk.size
        if self.up == self.down:
            self.returned += chunk.size
            return np.clip(chunk, -1.0, 1.0)
        self.pending.append(chunk)
        self.held += chunk.size
        if self.held < self.block + 2 * self.context:
            return np.zeros(0, dtype=np.float32)
        whole = np.concatenate(self.pending)
        ready = (whole.size - 2 * self.context) // self.down * self.down
        rest = whole[ready:].copy()
        self.pending, self.held = [rest], rest.size
        return self._filter(whole[: ready + 2 * self.context])

    def finish(self) -> np.ndarray:
        """The end of the sound, with silence behind it."""
        total = (2 * self.pushed * self.up + self.down) // (2 * self.down)
        missing = total - self.returned
        if missing <= 0:
            return np.zeros(0, dtype=np.float32)
        periods = -(-missing // self.up) * self.down + 2 * self.context
        whole = np.concatenate(self.pending)
        return self._filter(np.pad(whole, (0, max(0, periods - whole.size))))[:missing]

    def _filter(self, samples: np.ndarray) -> np.ndarray:
        """Resample a block whose first and last `context` samples only surround it."""
        edge = self.context // self.down * self.up
        result = scipy.signal.resample_poly(samples, self.up, self.down, window=_taps(self.up, self.down))
        kept = result[edge : result.size - edge]
        self.returned += kept.size
        return np.clip(kept, -1.0, 1.0, dtype=np.float32)
