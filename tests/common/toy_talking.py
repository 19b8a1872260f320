"""Raw material for the tests of talking clips: squares of noise that a fake finds and follows, without networks."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common.audio.io import write_wav
from common.data.talking import TalkingSettings, TalkingTools
from common.faces import Face
from common.faces.patch import Box
from common.metrics.lse import SyncScore
from common.video import VideoWriter
from tests.common.toy_media import RATE, FakeFaces, landmarks_in, loud, photo, voice

SQUARE = (50, 20, 64)
"""x, y and side of the usual face in a picture of 160x120."""


class FakeTrackable(FakeFaces):
    """Every bright square is a face, in whatever picture; landmarks follow from the square under the box."""

    def detect(self, images: Sequence[np.ndarray]) -> list[list[Face]]:
        return [[replace(face, landmarks=full(face.landmarks)) for face in self.squares(image)] for image in images]

    def boxes(self, image: np.ndarray, max_side: int | None = None) -> list[tuple[Box, float]]:
        return [(face.box, face.score) for face in self.squares(image)]

    def landmarks(self, image: np.ndarray, boxes: np.ndarray | Box) -> np.ndarray:
        flat = np.asarray(boxes, np.float32).reshape(-1, 4)
        points = np.stack([full(landmarks_in(box.tolist())) for box in flat])
        return points.reshape(*np.shape(boxes)[:-1], 68, 2)


def full(points: np.ndarray) -> np.ndarray:
    """The jaw too, which the toy leaves at 0: a line below the mouth."""
    points = points.copy()
    points[:17] = points[57] + np.linspace(-20, 20, 17)[:, None] * (1, 0) + (0, 10)
    return points


class SlowTrackable(FakeTrackable):
    def boxes(self, image: np.ndarray, max_side: int | None = None) -> list[tuple[Box, float]]:
        time.sleep(0.1)
        return super().boxes(image, max_side)


@dataclass(frozen=True)
class FakeSync:
    """A scorer with one answer; counts the frames and samples that it is given."""

    offset: int = 0
    confidence: float = 5.0

    def __call__(self, frames: Iterable[np.ndarray], wave: Tensor) -> SyncScore:
        count = sum(1 for _ in frames)
        assert wave.shape == (640 * count,)
        return SyncScore(0, 0.0, 0.0, self.offset, 7.0, self.confidence, count - 5, (0.0,) * 31)


@dataclass(frozen=True)
class FakeTalkingKit:
    """`TalkingTools` without networks."""

    settings: TalkingSettings
    device: str = "cpu"
    syncnet: Path | None = None
    sync: FakeSync | None = None

    def __call__(self) -> TalkingTools:
        return TalkingTools(self.settings, FakeTrackable(), loud, self.sync)


@dataclass(frozen=True)
class SlowTalkingKit(FakeTalkingKit):
    def __call__(self) -> TalkingTools:
        return TalkingTools(self.settings, SlowTrackable(), loud, self.sync)


def pictures(count: int, *boxes: tuple[int, int, int], seed: int = 0) -> list[np.ndarray]:
    """The same frame so many times, 160x120."""
    return [photo(*(boxes or (SQUARE,)), size=(160, 120), seed=seed)] * count


def save_talk(path: Path, frames: Sequence[np.ndarray], wave: Tensor | None = None, fps: float = 25.0) -> None:
    """An MP4 whose sound, unless given, is bursts of 0.4 s as long as the pictures."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sound = voice(len(frames) / fps) if wave is None else wave
    size = (frames[0].shape[1], frames[0].shape[0])
    with VideoWriter(path, size, fps, audio=sound if len(sound) else None, sample_rate=RATE) as writer:
        for frame in frames:
            writer.write(frame)


def save_wav(path: Path, wave: Tensor) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_wav(path, wave, RATE)


SILENT = torch.zeros(0)
"""For a video without sound."""
