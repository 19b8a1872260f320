"""Short films of the built-in face before a noise, a backend that knows where it is, networks that say one thing."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from common.audio.io import write_wav
from common.face3d.morphable import FaceModel, load_face_model
from common.face3d.render import render
from common.faces.base import Face
from common.faces.patch import Box
from dubbing3d.build import LoadedExpression
from dubbing3d.coefficients import FaceModelMark
from dubbing3d.config import DubbingConfig
from dubbing3d.crop_mask import MaskKind
from dubbing3d.guide import FaceFrames
from dubbing3d.render_parts import RenderParts
from dubbing3d.speech import SpeechWindows
from tests.common.toy_media import voice

SIDE = 128
NOBODY = 200
"""Code of a frame without a face."""


def model() -> FaceModel:
    return load_face_model("builtin")


def faces(jaw: Sequence[float], *, turn: float = 0.0, smile: float = 0.0) -> FaceFrames:
    """One person in a frame of 128 px, the jaw as open as told."""
    count, sizes = len(jaw), model().sizes
    expression = torch.zeros(count, sizes[1])
    expression[:, model().expression_index("jawOpen")] = torch.tensor(jaw)
    for side in "LR":
        expression[:, model().expression_index(f"mouthSmile_{side}")] = smile
    generator = torch.Generator().manual_seed(3)
    return FaceFrames(
        identity=0.4 * torch.randn(1, sizes[0], generator=generator),
        albedo=0.6 * torch.randn(1, sizes[2], generator=generator),
        expression=expression,
        angles=torch.tensor([[0.05, turn, 0.0]]).expand(count, 3),
        translation=torch.tensor([[0.0, 0.1, -1.0]]).expand(count, 3),
        gamma=torch.zeros(count, 27),
        matrix=torch.eye(2, 3, dtype=torch.float64).expand(count, 2, 3),
        size=SIDE,
    )


def filmed(face: FaceFrames) -> tuple[Tensor, Tensor]:
    """Pictures (B,3,128,128) in [0,1] and landmarks (B,68,2)."""
    noise = torch.rand(3, SIDE, SIDE, generator=torch.Generator().manual_seed(1)) * 0.5
    count = len(face)
    drawn = render(
        model(), face.identity.expand(count, -1), face.expression, face.albedo.expand(count, -1), face.angles,
        face.translation, face.gamma, SIDE, background=noise, supersample=2,
    )  # fmt: skip
    return drawn.image.clamp(0, 1), drawn.landmarks


class Film:
    """Frames uint8 (H,W,3) whose corner tells their number, and where the face is; a face backend for them."""

    name = "film"

    def __init__(self, jaw: Sequence[float], *, without: Sequence[int] = (), turn: float = 0.0) -> None:
        images, self.points = filmed(faces(jaw, turn=turn))
        self.frames = (images * 255).round().byte().permute(0, 2, 3, 1).numpy().copy()
        for index, frame in enumerate(self.frames):
            frame[:8, :8] = NOBODY if index in without else index

    def boxes(self, image: np.ndarray, max_side: int | None = None) -> list[tuple[Box, float]]:
        return [] if self._code(image) >= len(self.frames) else [(self._box(self._code(image)), 1.0)]

    def landmarks(self, image: np.ndarray, boxes: np.ndarray | Box) -> np.ndarray:
        shape = np.asarray(boxes, float).shape[:-1]
        index = self._code(image)
        points = self.points[min(index, len(self.frames) - 1)].numpy() + (1000 if index >= len(self.frames) else 0)
        return np.broadcast_to(points, (*shape, 68, 2)).astype(np.float32)

    def detect(self, images: Sequence[np.ndarray]) -> list[list[Face]]:
        return [[Face(box, score, self.landmarks(image, box)) for box, score in self.boxes(image)] for image in images]

    def _code(self, image: np.ndarray) -> int:
        return round(float(image[2:6, 2:6].mean()))

    def _box(self, index: int) -> Box:
        low, high = self.points[index].amin(0).tolist(), self.points[index].amax(0).tolist()
        return (low[0], low[1], high[0], high[1])


class Saying(nn.Module):
    """Gives one jaw in speech and none where its cepstra are those of silence."""

    semantic = False

    def __init__(self, jaw: float) -> None:
        super().__init__()
        self.jaw = nn.Parameter(torch.tensor(jaw))
        self.lengths: list[int] = []

    def forward(self, mfcc: Tensor, images: Tensor | None = None) -> Tensor:
        self.lengths.append(mfcc.shape[1])
        found = torch.zeros(*mfcc.shape[:2], model().sizes[1])
        loud = mfcc.flatten(2).std(2) > 1e-3
        found[..., model().expression_index("jawOpen")] = self.jaw * loud
        found[..., model().expression_index("eyeBlink_L")] = 1.0
        return found


def stage_one(jaw: float = 0.6) -> LoadedExpression:
    """What `load_expression` gives, with a network that says one thing."""
    mark = FaceModelMark.of(model(), "builtin")
    mean = torch.zeros(model().sizes[1])
    return LoadedExpression(Saying(jaw), SpeechWindows(), mark, mean, DubbingConfig())  # type: ignore[arg-type]


class Painter:
    """A renderer that paints one colour and remembers what it was given."""

    name, batch = "painter", 4
    mask: MaskKind = "model"

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.old: list[FaceFrames] = []
        self.wanted: list[Tensor] = []

    def crop_size(self, side: float) -> int:
        return 64

    def begin(self, crops: Tensor, faces: FaceFrames, matrices: Tensor, masks: Tensor, landmarks: Tensor) -> None:
        self.begun.append(len(crops))

    def render(
        self, crops: Tensor, old: FaceFrames, expression: Tensor, matrices: Tensor, masks: Tensor, landmarks: Tensor
    ) -> RenderParts:
        self.old.append(old)
        self.wanted.append(expression)
        red = torch.tensor([1.0, -1.0, -1.0])[None, :, None, None].expand_as(crops)
        return RenderParts(red, torch.zeros_like(crops[:, :2]), crops, red, masks)


class Rememberer(Painter):
    """A painter with a memory; notes after how many faces it was to forget them."""

    def __init__(self) -> None:
        super().__init__()
        self.restarts: list[int] = []

    def restart(self) -> None:
        self.restarts.append(sum(map(len, self.wanted)))


def save_speech(path: Path, seconds: float) -> Path:
    write_wav(path, voice(seconds))
    return path
