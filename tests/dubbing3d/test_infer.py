"""A recurrent renderer in use: faces in their order, whatever the batches, and no glance at the true mouth."""

import pytest
import torch
from torch import Tensor

from dubbing3d.build import LoadedRenderer, build_renderer
from dubbing3d.coefficients import FaceModelMark
from dubbing3d.config import DubbingConfig
from dubbing3d.crop_mask import crop_mask
from dubbing3d.guide import FaceFrames
from dubbing3d.infer import LearnedRenderer, Remembering
from tests.dubbing3d.toy_film import SIDE, faces, filmed, model
from tests.dubbing3d.toy_networks import randomise

SIZE, COUNT = 64, 4
MATRICES = torch.eye(2, 3, dtype=torch.float64).expand(COUNT, 2, 3) * SIZE / SIDE


@pytest.fixture(scope="module")
def clip() -> tuple[Tensor, FaceFrames, Tensor, Tensor]:
    """Crops, faces, masks and landmarks."""
    face = faces([0.0, 0.3, 0.6, 0.2])
    images, landmarks = filmed(face)
    crops = torch.nn.functional.avg_pool2d(images * 2 - 1, SIDE // SIZE)
    return crops, face, crop_mask(model(), face, MATRICES, SIZE), landmarks * SIZE / SIDE


@pytest.fixture(scope="module")
def renderer() -> LearnedRenderer:
    cfg = DubbingConfig()
    cfg.renderer.width, cfg.renderer.size, cfg.renderer.recurrent = 0.03, SIZE, True
    torch.manual_seed(0)
    network = build_renderer(cfg)
    randomise(network)
    return LearnedRenderer(LoadedRenderer(network.eval(), FaceModelMark.of(model(), "builtin"), cfg), model())


def drawn(renderer: LearnedRenderer, clip: tuple[Tensor, FaceFrames, Tensor, Tensor], rows: slice) -> Tensor:
    crops, face, masks, landmarks = clip
    part = FaceFrames(
        face.identity, face.albedo, face.expression[rows], face.angles[rows], face.translation[rows],
        face.gamma[rows], face.matrix[rows], face.size,
    )  # fmt: skip
    return renderer.render(crops[rows], part, part.expression, MATRICES[rows], masks[rows], landmarks[rows]).image


def begun(renderer: LearnedRenderer, clip: tuple[Tensor, FaceFrames, Tensor, Tensor]) -> LearnedRenderer:
    crops, face, masks, landmarks = clip
    renderer.begin(crops, face, MATRICES, masks, landmarks)
    return renderer


def test_each_face_follows_the_last_one_in_batches_of_any_size(
    renderer: LearnedRenderer, clip: tuple[Tensor, FaceFrames, Tensor, Tensor]
) -> None:
    assert isinstance(renderer, Remembering)
    whole = drawn(begun(renderer, clip), clip, slice(0, COUNT))
    begun(renderer, clip)
    parts = [drawn(renderer, clip, part) for part in (slice(0, 1), slice(1, 3), slice(3, COUNT))]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=5e-3)
    begun(renderer, clip)
    alone = drawn(renderer, clip, slice(2, 3))
    assert (alone - whole[2:3]).abs().max() > 0.05
    drawn(renderer, clip, slice(0, 2))
    renderer.restart()
    torch.testing.assert_close(drawn(renderer, clip, slice(2, 3)), alone, rtol=0, atol=5e-3)


def test_the_hidden_part_of_the_frame_is_never_seen(
    renderer: LearnedRenderer, clip: tuple[Tensor, FaceFrames, Tensor, Tensor]
) -> None:
    crops, face, masks, landmarks = clip
    before = drawn(begun(renderer, clip), clip, slice(0, COUNT))
    changed = torch.where(masks == 1, -crops, crops)
    assert not torch.equal(changed, crops)
    after = drawn(begun(renderer, clip), (changed, face, masks, landmarks), slice(0, COUNT))
    assert torch.equal(before, after)
