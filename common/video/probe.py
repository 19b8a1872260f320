"""What a video is, without decoding it: size, rate, length, sound."""

import itertools
import math
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from av.container import InputContainer
from av.video.stream import VideoStream
from torch import Tensor

from common.audio.io import load_audio
from common.errors import UserError
from common.video.picture import Upright
from common.video.reader import Timed, clock_may_restart, has_pictures, open_media, open_video, timed_frames

_LOOKED_AT = 300
_JITTER = 0.3
_HIGHEST_RATE = 480


@dataclass(frozen=True)
class VideoInfo:
    """Header of a video, and its first picture's properties."""

    width: int
    """Pixels of the upright picture with square pixels, as `read_frames` yields it."""
    height: int
    fps: Fraction
    """Mean rate; the nominal one of files whose rate is constant."""
    seconds: float
    """From the first picture to the end of the last, as the headers promise."""
    frames: int | None
    """Number of pictures, where the header states it."""
    codec: str
    """FFmpeg's name: h264, hevc, mpeg1video, ..."""
    rotation: int
    """Clockwise degrees (0, 90, 180, 270) by which the stored picture is turned to stand upright."""
    variable: bool
    """Whether the pictures, of which the first 300 are looked at, are unevenly spaced."""
    has_audio: bool
    audio_seconds: float
    """Length of the first audio track, 0 without."""
    bits: int
    """Bits per sample: 8, 10, 12."""
    audio_start: float = 0.0
    """Seconds from the first picture to the first sound sample, negative where the sound comes first."""


def probe_video(path: Path) -> VideoInfo:
    """Look into a video's headers, first packets and first picture.

    Raises:
        UserError: one line for a file that is missing, empty, damaged, without pictures, or not decodable.
    """
    first = _first(path)
    picture, start = first.picture, _clock(first)
    with open_video(path) as (container, stream):
        fps, variable = _rate(container, stream)
        seconds = _seconds(path, container, stream, start, fps)
        sound = next(iter(container.streams.audio), None)
        heard, delay = 0.0, 0.0
        if sound is not None and sound.time_base is not None:
            heard = float((sound.duration or 0) * sound.time_base) or (container.duration or 0) / av.time_base
            delay = _sound_start(path) - start
        width, height = Upright(picture, stream.sample_aspect_ratio).size
        return VideoInfo(
            width,
            height,
            fps,
            seconds,
            stream.frames or None,
            stream.codec_context.codec.canonical_name,
            round(-picture.rotation / 90) * 90 % 360,
            variable,
            sound is not None,
            heard,
            max(component.bits for component in picture.format.components),
            delay,
        )


def read_times(path: Path) -> np.ndarray:
    """Times of all pictures (n,) float64 in seconds since the first, growing.

    They come from the packets; only where these carry no times, or times that may restart (MPEG program and transport
    streams), are the pictures decoded, so that the times are those of `read_frames`.

    Raises:
        UserError: as `probe_video`.
    """
    with open_video(path) as (container, stream):
        stamps: list[int | None] = []
        if not clock_may_restart(container):
            stamps = _stamps(container, stream, None)
        if stamps and None not in stamps and len(set(stamps)) == len(stamps) and stream.time_base is not None:
            ticks = np.sort(np.array(stamps, dtype=np.int64))
            return (ticks - ticks[0]).astype(np.float64) * float(stream.time_base)
    return np.array([frame.time for frame in timed_frames(path, [])])


def read_wave(path: Path, *, sample_rate: int = 16000, start: float = 0.0, seconds: float | None = None) -> Tensor:
    """The first audio track on the clock of the pictures: sample i is heard at start + i / sample_rate.

    Sound before the first picture is left out; where there is none yet, or no more, it is silent. Without `seconds` it
    ends with the track.

    Returns:
        float32 mono (n,) in [-1, 1]; n = round(seconds * sample_rate) where that is given.

    Raises:
        UserError: as `probe_video` and `common.audio.io.load_audio`; no sound from `start` on and no `seconds`.
    """
    delay = round(probe_video(path).audio_start * sample_rate)
    with_end = None if seconds is None else start + seconds - delay / sample_rate
    first = round(start * sample_rate) - delay
    count = None if seconds is None else round(seconds * sample_rate)
    if with_end is not None and with_end * sample_rate < 1:
        return torch.zeros(count or 0)
    wave = load_audio(path, sample_rate, max_seconds=with_end)
    if count is None:
        count = wave.shape[0] - first
        if count <= 0:
            raise UserError(f"{path} has no sound at {start:g} s: it ends before")
    heard = wave[max(first, 0) : max(first + count, 0)]
    silence = torch.zeros(min(max(-first, 0), count))
    rest = torch.zeros(count - silence.shape[0] - heard.shape[0])
    return torch.cat([silence, heard, rest])


def video_start(path: Path) -> float:
    """The container's time in seconds at the first picture; at the first sound in a file without a video track.

    Raises:
        UserError: the file cannot be opened, or its pictures cannot be decoded.
    """
    with open_media(path) as container:
        pictures = has_pictures(container)
    return _clock(_first(path)) if pictures else _sound_start(path)


def _first(path: Path) -> Timed:
    frames = timed_frames(path, [])
    first = next(frames)
    frames.close()
    return first


def _clock(frame: Timed) -> float:
    return frame.picture.time or 0.0


def _sound_start(path: Path) -> float:
    """The container's time at the first sample. The stream's own start is 0 for late tracks in Matroska; the first
    packet may begin with samples that only prime the decoder."""
    with open_media(path) as container:
        stream = next(iter(container.streams.audio), None)
        if stream is None or stream.time_base is None:
            return 0.0
        try:
            packet = next(container.demux(stream), None)
        except (av.FFmpegError, OSError):
            packet = None
        stamps = [stream.start_time, None if packet is None else packet.pts]
        return float(max((stamp for stamp in stamps if stamp is not None), default=0) * stream.time_base)


def _stamps(container: InputContainer, stream: VideoStream, most: int | None) -> list[int | None]:
    """Presentation stamps of the packets that are shown, in the order of the file; those before a break."""
    stamps: list[int | None] = []
    packets = container.demux(stream)
    try:
        for packet in itertools.islice(packets, most):
            if packet.size and not packet.is_discard:
                stamps.append(packet.pts)
    except (av.FFmpegError, OSError):
        return stamps
    return stamps


def _rate(container: InputContainer, stream: VideoStream) -> tuple[Fraction, bool]:
    """Mean rate, and whether the first packets are unevenly spaced or tell another rate than the header."""
    base = stream.time_base or Fraction(1, 1000)
    ticks = sorted({stamp for stamp in _stamps(container, stream, _LOOKED_AT) if stamp is not None})
    steps = np.diff(ticks) if len(ticks) > 2 else np.ones(1)
    # Two ticks of jitter are what rounding to a coarse clock (1 ms in Matroska) makes of an even rate.
    uneven = bool(steps.max() - steps.min() > max(2, _JITTER * float(np.median(steps))))
    stated = stream.average_rate or stream.guessed_rate
    if len(ticks) > 2:
        measured = Fraction(len(ticks) - 1) / ((ticks[-1] - ticks[0]) * base)
        if not stated or not 0 < stated <= _HIGHEST_RATE:
            return measured.limit_denominator(1001), uneven
        return stated, uneven or abs(stated / measured - 1) > 0.05
    return (stated if stated and 0 < stated <= _HIGHEST_RATE else Fraction(25)), False


def _seconds(path: Path, container: InputContainer, stream: VideoStream, start: float, fps: Fraction) -> float:
    """Length of the pictures. Matroska states the file's only, whose sound may go on when the pictures end, and MPEG
    streams estimate it, so that the packets behind the last key frame tell there."""
    if stream.duration and stream.time_base and not clock_may_restart(container):
        return float(stream.duration * stream.time_base)
    base = stream.time_base or Fraction(1, 1000)
    for target in (container.duration, None):
        if target is None:
            with open_video(path) as (fresh, track):
                stamps = _stamps(fresh, track, None)
        else:
            try:
                container.seek(target + (container.start_time or 0))
            except (av.FFmpegError, OSError):
                continue
            stamps = _stamps(container, stream, None)
        last = max((stamp for stamp in stamps if stamp is not None), default=-math.inf)
        if last > -math.inf:
            return float(Fraction(int(last)) * base) - start + float(1 / fps)
    return len(stamps) / float(fps)
