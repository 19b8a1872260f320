"""Small videos of many kinds, encoded with PyAV directly, so that the code under test has no part in them."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np


def picture(index: int, width: int = 64, height: int = 48) -> np.ndarray:
    """uint8 (H,W,3): four flat quarters, the upper right one brighter with each index (mod 32), and a corner mark."""
    image = np.full((height, width, 3), 40, np.uint8)
    image[: height // 2, width // 2 :] = 6 * (index % 32) + 20
    image[height // 2 :, : width // 2] = (180, 60, 50)
    image[height // 2 :, width // 2 :] = (40, 90, 200)
    image[: height // 4, : width // 8] = 250
    return image


def index_of(image: np.ndarray) -> int:
    """The index (mod 32) that `picture` drew, read from the upper right quarter of an upright image."""
    height, width = image.shape[:2]
    patch = image[height // 8 : height // 3, 5 * width // 8 : 7 * width // 8]
    return round((float(patch.mean()) - 20) / 6)


def tone(seconds: float, rate: int, start: float = 0.0) -> np.ndarray:
    """float32 (n,) from time `start` on: a sine of half scale that rises from 300 Hz at time 0 by 800 Hz per second,
    so that no shift of it looks like another."""
    times = start + np.arange(round(seconds * rate)) / rate
    return (0.5 * np.sin(2 * np.pi * (300 * times + 400 * times**2))).astype(np.float32)


def make_video(
    path: Path,
    codec: str = "libx264",
    *,
    frames: int = 25,
    fps: int | Fraction = 25,
    size: tuple[int, int] = (64, 48),
    pixels: str = "yuv420p",
    times: Sequence[float] | None = None,
    audio: str | None = None,
    audio_rate: int = 44100,
    audio_seconds: float | None = None,
    audio_start: float = 0.0,
    aspect: Fraction | None = None,
    rotation: float | None = None,
    mirrored: bool = False,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
) -> Path:
    """A video of `picture`s, with a `tone` from `audio_start` on where an audio codec is named."""
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream: Any = container.add_stream(codec, rate=fps, options=options or {})
        stream.width, stream.height = size
        stream.pix_fmt = pixels
        if codec.startswith("mpeg"):
            stream.bit_rate = 2_000_000  # the default skips blocks whose brightness changes a little
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        if rotation is not None:
            stream.set_display_rotation(rotation, hflip=mirrored)
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        track = container.add_stream(audio, rate=audio_rate, layout="mono") if audio else None
        for index in range(frames if times is None else len(times)):
            frame = av.VideoFrame.from_ndarray(picture(index, *size), format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = round(times[index] * 1000), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if track is not None:
            length = frames / float(fps) if audio_seconds is None else audio_seconds
            _add_sound(container, track, tone(length, audio_rate, audio_start), audio_rate, audio_start)
    return path


def _add_sound(container: Any, track: Any, samples: np.ndarray, rate: int, start: float) -> None:
    whole = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
    whole.sample_rate, whole.pts, whole.time_base = rate, round(start * rate), Fraction(1, rate)
    context = track.codec_context
    resampler = av.AudioResampler(context.format.name, "mono", rate, frame_size=context.frame_size or None)
    for frame in [*resampler.resample(whole), *resampler.resample(None)]:
        container.mux(track.encode(frame))
    container.mux(track.encode(None))
