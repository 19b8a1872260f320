"""Raw material for the tests of prepare: voices are tone bursts, faces are squares of noise that a fake finds."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import scipy.ndimage
import torch
from PIL import Image

from common.audio.io import write_wav
from common.data.ingest import Settings, Tools
from common.faces import Face
from common.faces.align import MEAN_FACE

RATE = 16000


def landmarks_in(box: Sequence[float], turn: float = 0.0) -> np.ndarray:
    """68 points of an upright face; the nose tip is moved aside by `turn` half eye distances."""
    points = np.zeros((68, 2), np.float32)
    points[17:] = MEAN_FACE * (box[2] - box[0]) + np.array(box[:2])
    points[30, 0] = points[[36, 45], 0].mean() + turn * (points[45, 0] - points[36, 0]) / 2
    return points


class FakeFaces:
    """Every bright square is a face."""

    name = "fake"

    def detect(self, images: Sequence[np.ndarray]) -> list[list[Face]]:
        return [self.squares(image) for image in images]

    def squares(self, image: np.ndarray) -> list[Face]:
        bright = scipy.ndimage.binary_closing(image.max(axis=2) > 60, iterations=3)
        found = []
        for rows, columns in scipy.ndimage.find_objects(scipy.ndimage.label(bright)[0]):
            box = (float(columns.start), float(rows.start), float(columns.stop), float(rows.stop))
            if min(box[2] - box[0], box[3] - box[1]) > 20:
                found.append(Face(box, 1.0, landmarks_in(box)))
        return sorted(found, key=lambda face: -face.area)


def loud(wave: torch.Tensor, rate: int) -> list[tuple[int, int]]:
    """Speech is where a 20 ms frame is louder than -40 dB."""
    frames = wave[: len(wave) // 320 * 320].reshape(-1, 320).abs().amax(dim=1) > 0.01
    return [
        (s.start * 320, s.stop * 320) for (s,) in scipy.ndimage.find_objects(scipy.ndimage.label(frames.numpy())[0])
    ]


@dataclass(frozen=True)
class FakeKit:
    """`Tools` without networks."""

    settings: Settings
    device: str = "cpu"

    def __call__(self) -> Tools:
        return Tools(self.settings, FakeFaces(), loud)


class SlowFaces(FakeFaces):
    def detect(self, images: Sequence[np.ndarray]) -> list[list[Face]]:
        time.sleep(0.3)
        return super().detect(images)


@dataclass(frozen=True)
class SlowKit(FakeKit):
    def __call__(self) -> Tools:
        return Tools(self.settings, SlowFaces(), loud)


def voice(seconds: float = 2.0, pitch: float = 200.0) -> torch.Tensor:
    """Bursts of 0.4 s with pauses of 0.1 s."""
    t = torch.arange(round(seconds * RATE)) / RATE
    wave = sum(torch.sin(2 * torch.pi * pitch * k * t) / k for k in range(1, 6)) * 0.15
    return wave * ((t % 0.5) < 0.4)


def photo(*boxes: tuple[int, int, int], size: tuple[int, int] = (200, 160), seed: int = 0) -> np.ndarray:
    """Squares of noise (x, y, side) on black, uint8 (H,W,3)."""
    image = np.zeros((size[1], size[0], 3), np.uint8)
    noise = np.random.default_rng(seed).integers(70, 250, (*image.shape[:2], 1), dtype=np.uint8)
    for x, y, side in boxes:
        image[y : y + side, x : x + side] = noise[y : y + side, x : x + side]
    return image


def save_photo(path: Path, *boxes: tuple[int, int, int], seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(photo(*(boxes or ((40, 30, 100),)), seed=seed)).save(path)


def save_voice(path: Path, seconds: float = 2.0, pitch: float = 200.0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_wav(path, voice(seconds, pitch), RATE)


def save_sound(path: Path, wave: torch.Tensor) -> None:
    """WAV, or AAC in MP4 for .m4a."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".wav":
        write_wav(path, wave, RATE)
        return
    with av.open(path, "w") as container:
        encode_sound(container, container.add_stream("aac", rate=RATE, layout="mono"), wave)


def encode_sound(container: av.container.OutputContainer, stream: av.AudioStream, wave: torch.Tensor) -> None:
    frame = av.AudioFrame.from_ndarray(wave.numpy()[None], format="fltp", layout="mono")
    frame.sample_rate = RATE
    container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def save_video(path: Path, frames: Sequence[np.ndarray], wave: torch.Tensor | None, fps: int = 25) -> None:
    """MPEG-4 video and AAC; an MP4's index stands in front, so that a cut file can still be read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"movflags": "faststart"} if path.suffix == ".mp4" else {}
    with av.open(path, "w", options=options) as container:
        video = container.add_stream("mpeg4", rate=fps, width=frames[0].shape[1], height=frames[0].shape[0])
        video.pix_fmt, video.bit_rate = "yuv420p", 4_000_000
        sound = container.add_stream("aac", rate=RATE, layout="mono") if wave is not None else None
        for image in frames:
            container.mux(video.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(video.encode(None))
        if sound is not None:
            encode_sound(container, sound, wave)
