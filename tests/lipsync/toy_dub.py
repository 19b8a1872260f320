"""Small exact videos of toy faces, sound beside them, networks that remember what they were asked, and a writer that
keeps the frames as they are before they are encoded."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, Self

import av
import numpy as np
import torch
from torch import Tensor, nn

from common.audio.io import write_wav
from common.audio.lipsync_features import speech_features
from common.faces.patch import Box
from lipsync.infer import LipSync
from tests.common.toy_faces import ToyFaces, scene
from tests.common.toy_media import voice

SIZE = (240, 180)


def save_exactly(path: Path, images: Sequence[np.ndarray], fps: int | Fraction = 25, times: Any = None) -> Path:
    """A video that decodes to the very same pictures."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264rgb", rate=fps, options={"crf": "0", "g": "6"})
        stream.width, stream.height, stream.pix_fmt = images[0].shape[1], images[0].shape[0], "rgb24"
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for index, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = round(times[index] * 1000), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def coded(index: int, *faces: tuple[int, float, float], opening: int = 0) -> np.ndarray:
    """A scene whose corner tells its number and how far the mouth is open, in pixels."""
    image = scene(*faces, size=SIZE)
    image[:8, :8] = (index, opening, 0)
    return image


def code(image: np.ndarray) -> int:
    """The number in the corner."""
    return int(image[2, 2, 0])


def talking(count: int, openings: Sequence[int] = (4,)) -> list[np.ndarray]:
    """A face that moves a little, its mouth open as told in turn."""
    return [coded(t, (0, 100 + 0.7 * t, 90), opening=openings[t % len(openings)]) for t in range(count)]


class TalkingFaces(ToyFaces):
    """Sees the toy faces, with their lower lip as low as the corner says."""

    def landmarks(self, image: np.ndarray, boxes: np.ndarray | Box) -> np.ndarray:
        points = super().landmarks(image, boxes)
        points[[57, 58, 56, 65, 66, 67], 1] += float(image[2, 2, 1])
        return points


class Witness(nn.Module):
    """Draws one colour over the reference, and keeps what it was given."""

    def __init__(self, colour: tuple[float, float, float] | None = (1.0, 0.0, 0.0), size: int = 32) -> None:
        super().__init__()
        self.rows, self.size, self.colour = 80, size, colour
        self.windows: list[Tensor] = []
        self.faces: list[Tensor] = []

    def forward(self, audio: Tensor, faces: Tensor) -> Tensor:
        self.windows += list(audio[:, 0])
        self.faces += list(faces)
        if self.colour is None:
            return faces[:, 3:]
        blue_first = torch.tensor(self.colour[::-1])
        return blue_first[None, :, None, None].expand(len(faces), 3, self.size, self.size)


def model_of(network: nn.Module) -> LipSync:
    return LipSync(network, speech_features("mel"))


def save_speech(path: Path, seconds: float) -> Path:
    write_wav(path, voice(seconds))
    return path


def all_of_it(wave: Tensor) -> list[tuple[int, int]]:
    """A detector to whom everything is speech."""
    return [(0, len(wave))]


def none_of_it(wave: Tensor) -> list[tuple[int, int]]:
    return []


class KeptFrames:
    """In place of `VideoWriter`: keeps what would be encoded."""

    made: "KeptFrames"

    def __init__(self, path: Path, size: tuple[int, int], fps: Fraction, **options: Any) -> None:
        self.size, self.fps, self.options = size, fps, options
        self.images: list[np.ndarray] = []
        self.times: list[float | None] = []
        KeptFrames.made = self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def write(self, image: np.ndarray, time: float | None = None) -> None:
        self.images.append(image)
        self.times.append(time)
