"""A recurrent renderer in use: faces in their order, whatever the batches, and no glance at the true mouth."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from dubbing3d.build import LoadedRenderer, build_renderer
from dubbing3d.coefficients import FaceModelMark
from dubbing3d.config import DubbingConfig
from dubbing3d.crop_mask import crop_mask
from dubbing3d.guide import FaceFrames
from dubbing3d.infer import LearnedRenderer, Remembering
from dubbing3d.motion import carried
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


def learned(*, recurrent: bool) -> LearnedRenderer:
    """A network whose weights are any but 0."""
    cfg = DubbingConfig()
    cfg.renderer.width, cfg.renderer.size, cfg.renderer.recurrent = 0.03, SIZE, recurrent
    torch.manual_seed(0)
    network = build_renderer(cfg)
    randomise(network)
    return LearnedRenderer(LoadedRenderer(network.eval(), FaceModelMark.of(model(), "builtin"), cfg), model())


@pytest.fixture(scope="module")
def renderer() -> LearnedRenderer:
    return learned(recurrent=True)


def drawn(renderer: LearnedRenderer, clip: tuple[Tensor, FaceFrames, Tensor, Tensor], rows: slice) -> Tensor:
    crops, face, masks, landmarks = clip
    part = face.at(rows)
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


def test_the_face_before_is_shown_where_the_face_is_now(
    renderer: LearnedRenderer, clip: tuple[Tensor, FaceFrames, Tensor, Tensor]
) -> None:
    crops, face, masks, landmarks = clip
    face = replace(face, identity=face.identity.expand(COUNT, -1))
    wanted = face.expression[[0, 0, 2, 2]]  # whereas all of the frames' own differ
    matrices = MATRICES.clone()
    matrices[:, :, 2] = torch.arange(COUNT)[:, None] * torch.tensor([2.0, -1.0])
    shown: list[Tensor] = []
    begun(renderer, clip)
    recall = renderer.network.rbfin.recall
    assert recall is not None
    hook = recall.register_forward_pre_hook(lambda _, inputs: shown.append(inputs[0]))
    image = renderer.render(crops, face, wanted, matrices, masks, landmarks).image
    hook.remove()
    assert len(shown) == COUNT - 1
    for row in (1, 3):  # the same face, two px further right and one further up
        expected = image[row - 1].roll((-1, 2), dims=(1, 2))
        torch.testing.assert_close(shown[row - 1][0, :, 1:-1, 2:], expected[:, 1:-1, 2:], rtol=0, atol=1e-3)
    said, before, now = face.with_expression(wanted), slice(0, -1), slice(1, COUNT)
    moved = carried(model(), image[before], said.at(before), matrices[before], said.at(now), matrices[now])
    torch.testing.assert_close(torch.cat(shown), moved, rtol=0, atol=1e-3)
    assert (shown[1][0] - image[1].roll((-1, 2), dims=(1, 2)))[:, 1:-1, 2:].abs().max() > 0.05  # the jaw moved


def test_a_renderer_without_memory_moves_no_picture(
    clip: tuple[Tensor, FaceFrames, Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, recurrent = learned(recurrent=False), learned(recurrent=True)
    recurrent.network.load_state_dict(plain.network.state_dict(), strict=False)
    recall = recurrent.network.rbfin.recall
    assert recall is not None
    torch.nn.init.zeros_(recall.weight)  # as at the beginning of the training
    expected = drawn(begun(recurrent, clip), clip, slice(0, COUNT))
    monkeypatch.setattr("dubbing3d.infer.carried", None)
    torch.testing.assert_close(drawn(begun(plain, clip), clip, slice(0, COUNT)), expected, rtol=0, atol=5e-3)
