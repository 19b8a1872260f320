"""The renderer that needs no training, against faces whose new expression is known."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from common.face3d.morphable import FaceModel
from dubbing3d.crop_mask import crop_mask
from dubbing3d.guide import FaceFrames
from dubbing3d.render_parts import RenderParts
from dubbing3d.warp_renderer import WarpRenderer
from tests.dubbing3d.toy_film import SIDE, faces, filmed, model

CROP = torch.eye(2, 3, dtype=torch.float64)


def dubbed(
    old: FaceFrames, wanted: Tensor, *, references: FaceFrames | None = None, given: FaceFrames | None = None,
    of: FaceModel | None = None, blind: bool = False,
) -> tuple[Tensor, RenderParts, Tensor]:  # fmt: skip
    """The pictures as they were, what the renderer makes of them, and the mask; `given` is a wrong fit of `old`."""
    images, landmarks = filmed(old)
    crops = images * 2 - 1
    shown, there = filmed(references or old)
    renderer = WarpRenderer(of or model())
    first = references or given or old
    masks = crop_mask(model(), first, CROP, SIDE)
    renderer.begin(shown * 2 - 1, first, CROP.expand(len(shown), 2, 3), masks, there)
    fit = given or old
    masks = crop_mask(model(), fit, CROP, SIDE)
    points = torch.full_like(landmarks, torch.nan) if blind else landmarks
    return crops, renderer.render(crops, fit, wanted, CROP.expand(len(crops), 2, 3), masks, points), masks


def psnr(ours: Tensor, truth: Tensor, old: FaceFrames) -> float:
    """Of the mouth and its surroundings, for pictures in [-1,1]."""
    points = filmed(old)[1][0, 48:]
    (x0, y0), (x1, y1) = (points.amin(0) - 6).int().tolist(), (points.amax(0) + 14).int().tolist()
    error = ((ours - truth)[..., y0:y1, x0:x1] / 2).square().mean()
    return float(-10 * error.log10())


@pytest.mark.parametrize("turn", [0.0, 0.35])
@pytest.mark.parametrize(("before", "after"), [(0.0, 0.7), (0.7, 0.0), (0.5, 0.9)])
def test_a_moved_face_is_nearer_to_the_truth_than_a_copy(before: float, after: float, turn: float) -> None:
    old, new = faces([before], turn=turn), faces([after], turn=turn, smile=0.3)
    crops, parts, _ = dubbed(old, new.expression, references=faces([0.0, 0.9], turn=0.1))
    truth = filmed(new)[0] * 2 - 1
    assert psnr(parts.image, truth, old) > psnr(crops, truth, old) + 3.5


def test_the_same_expression_leaves_the_picture_as_it_is() -> None:
    old = faces([0.0, 0.6], turn=0.2)
    crops, parts, _ = dubbed(old, old.expression)
    assert (parts.image - crops).abs().max() < 0.02
    assert not parts.attention.any()


def test_nothing_changes_outside_of_the_mask() -> None:
    old = faces([0.0, 0.7], turn=-0.2)
    crops, parts, masks = dubbed(old, faces([0.8, 0.0]).expression)
    outside = (masks == 0).expand_as(crops)
    assert torch.equal(parts.image[outside], crops[outside])
    assert not torch.equal(parts.image[~outside], crops[~outside])


def test_closing_lips_hide_the_old_inside() -> None:
    old, new = faces([0.8]), faces([0.0])
    crops, parts, _ = dubbed(old, new.expression)
    assert parts.attention.mean() < 0.1 * dubbed(new, old.expression)[1].attention.mean()
    points = filmed(new)[1][0]
    truth = filmed(new)[0] * 2 - 1
    x, y = points[[62, 66]].mean(0).int().tolist()
    around = (slice(None), slice(None), slice(y - 3, y + 4), slice(x - 5, x + 6))
    assert (parts.image[around] - truth[around]).abs().mean() < 0.5 * (crops[around] - truth[around]).abs().mean()


def test_a_clip_without_an_open_mouth_gets_the_models_inside() -> None:
    old, new = faces([0.0]), faces([0.8])
    closed = replace(old, expression=old.expression.clone())
    crops, parts, _ = dubbed(old, new.expression, references=closed)
    truth = filmed(new)[0] * 2 - 1
    assert parts.attention.max() > 0.9
    assert psnr(parts.image, truth, old) > psnr(crops, truth, old) + 3.5


def test_a_model_without_an_inside_opens_a_dark_mouth() -> None:
    whole = model()
    bare = FaceModel(
        **{name: whole.get_buffer(name) for name in (
            "mean_shape", "identity_basis", "expression_basis", "mean_albedo", "albedo_basis", "landmark_vertices",
        )},
        triangles=whole.triangles[~(whole.regions["mouth_cavity"] | whole.regions["teeth"])[whole.triangles].any(1)],
        name="bare",
        expression_names=whole.expression_names,
    )  # fmt: skip
    old, new = faces([0.0]), faces([0.8])
    _, parts, _ = dubbed(old, new.expression, of=bare)
    x, y = filmed(new)[1][0, [62, 66]].mean(0).int().tolist()
    assert parts.attention[0, 0, y, x] > 0.9
    assert parts.image[0, :, y, x].max() < -0.5


def test_a_fit_that_is_off_is_brought_onto_the_landmarks() -> None:
    old, new = faces([0.1]), faces([0.7])
    off = replace(old, translation=old.translation + torch.tensor([0.03, -0.03, 0.0]))
    truth = filmed(new)[0] * 2 - 1
    _, right, _ = dubbed(old, new.expression)
    _, helped, _ = dubbed(old, new.expression, given=off)
    _, blind, _ = dubbed(old, new.expression, given=off, blind=True)
    values = [psnr(parts.image, truth, old) for parts in (right, helped, blind)]
    assert values[1] > values[2] + 1
    assert values[1] > values[0] - 2.5


def test_crops_are_about_as_fine_as_the_frame() -> None:
    renderer = WarpRenderer(model())
    assert renderer.crop_size(300.0) == 320
    assert renderer.crop_size(20.0) == 96
    assert renderer.crop_size(4000.0) == 640
