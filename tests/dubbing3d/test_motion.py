"""Pictures that follow the face, against the same painted surface drawn anew."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from common.face3d.raster import interpolate, rasterise
from dubbing3d.guide import FaceFrames, face_triangles, project
from dubbing3d.motion import carried, filled, visible
from tests.dubbing3d.toy_film import SIDE, faces, model
from tests.dubbing3d.toy_networks import images

OWN = torch.eye(2, 3, dtype=torch.float64)[None]
STRIPES = ([14.0, 0.0, 0.0], [0.0, 14.0, 0.0], [9.0, 9.0, 0.0])
FRAMEWISE = ("expression", "angles", "translation", "gamma", "matrix")


def painted(face: FaceFrames, matrices: Tensor) -> tuple[Tensor, Tensor]:
    """The face with stripes that are fixed to its skin, (B,3,128,128) in [-1,1] on grey, and its mask (B,1,128,128)."""
    place = model().mean_shape
    colours = torch.stack([torch.sin(place @ torch.tensor(way)) for way in STRIPES], dim=1)
    xy, depth, _ = project(model(), face, matrices)
    fragments = rasterise(xy, depth, face_triangles(model()), (SIDE, SIDE))
    image = interpolate(fragments, colours.expand(len(face), -1, -1), face_triangles(model()))
    return image, fragments.mask[:, None].to(image)


def inside(*masks: Tensor) -> Tensor:
    """Pixels that lie at least two px within all of the masks."""
    least = torch.stack(masks).amin(dim=0)
    return F.max_pool2d(1 - least, 5, 1, 2) == 0


def moved(name: str) -> tuple[FaceFrames, Tensor]:
    """The face of `faces([0.1])` after something happened, and its crop."""
    face = faces([0.1])
    if name == "turns":
        return replace(face, angles=face.angles + torch.tensor([[0.06, 0.12, 0.05]])), OWN
    if name == "speaks":
        return faces([0.5], smile=0.4), OWN
    if name == "comes nearer":
        return replace(face, translation=face.translation + torch.tensor([[0.06, -0.05, 0.5]])), OWN
    crop = torch.tensor([[[1.05, 0.08, -9.3], [-0.08, 1.05, 4.6]]], dtype=torch.float64)
    return replace(face, angles=face.angles - 0.04), crop


@pytest.mark.parametrize("name", ["turns", "speaks", "comes nearer", "is cut otherwise"])
def test_a_carried_picture_is_the_face_as_it_is_drawn_there(name: str) -> None:
    before, (now, crop) = faces([0.1]), moved(name)
    picture, was = painted(before, OWN)
    truth, mask = painted(now, crop)
    found = carried(model(), picture, before, OWN, now, crop)
    both = inside(was, mask).expand_as(truth)
    assert both.float().mean() > 0.1
    error, still = ((image - truth)[both].abs().mean() for image in (found, picture))
    assert error < 0.006
    assert still > (0.04 if name == "speaks" else 0.3)  # speech moves the lower face alone


@pytest.mark.parametrize(("right", "down"), [(3, -2), (-5, 0), (0, 7)])
def test_a_crop_that_moves_by_whole_pixels_shifts_the_picture(right: int, down: int) -> None:
    face, picture = faces([0.3], turn=0.1), images(1, 3, SIDE, SIDE)
    there = OWN.clone()
    there[0, :, 2] = torch.tensor([right, down], dtype=torch.float64)
    wide = F.pad(picture, (8, 8, 8, 8), mode="replicate")
    expected = wide[..., 8 - down : 8 - down + SIDE, 8 - right : 8 - right + SIDE]
    found = carried(model(), picture, face, OWN, face, there)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)


def test_the_same_face_leaves_the_picture_as_it_is() -> None:
    face, picture = faces([0.0, 0.7], turn=0.3), images(2, 3, SIDE, SIDE)
    crops = OWN.expand(2, 2, 3)
    torch.testing.assert_close(carried(model(), picture, face, crops, face, crops), picture, rtol=0, atol=1e-5)


def test_a_face_outside_of_the_crop_leaves_the_picture_as_it_is() -> None:
    face, picture, away = faces([0.0]), images(1, 3, SIDE, SIDE), OWN.clone()
    away[0, 0, 2] = 1000
    assert torch.equal(carried(model(), picture, face, away, replace(face, angles=face.angles + 0.1), away), picture)


def test_each_frame_is_carried_by_itself() -> None:
    before, now = faces([0.1, 0.6, 0.3]), faces([0.5, 0.2, 0.3], turn=0.1)
    pictures, crops = images(3, 3, SIDE, SIDE), OWN.expand(3, 2, 3)
    whole = carried(model(), pictures, before, crops, now, crops)
    for row in range(3):
        one = slice(row, row + 1)
        then, there = (
            replace(face, **{name: getattr(face, name)[one] for name in FRAMEWISE}) for face in (before, now)
        )
        alone = carried(model(), pictures[one], then, OWN, there, OWN)
        torch.testing.assert_close(alone, whole[one], rtol=0, atol=1e-3)


def test_no_gradient_passes() -> None:
    picture = images(1, 3, SIDE, SIDE).requires_grad_()
    assert not carried(model(), picture, faces([0.1]), OWN, faces([0.4]), OWN).requires_grad


def test_what_was_hidden_follows_what_lies_around_it(monkeypatch: pytest.MonkeyPatch) -> None:
    before, now = faces([0.3], turn=-0.4), faces([0.4], turn=-0.2)
    (picture, _), (truth, mask) = painted(before, OWN), painted(now, OWN)
    xy, depth, _ = project(model(), before, OWN)
    triangles = face_triangles(model())
    seen = visible(xy, depth, rasterise(xy, depth, triangles, (SIDE, SIDE)).depth)
    xy, depth, _ = project(model(), now, OWN)
    share = interpolate(rasterise(xy, depth, triangles, (SIDE, SIDE)), seen[..., None], triangles)
    new = ((mask == 1) & (share <= 0.5)).expand_as(truth)
    assert 10 < new[:, 0].sum() < 100
    found = carried(model(), picture, before, OWN, now, OWN)
    monkeypatch.setattr("dubbing3d.motion.visible", lambda xy, depth, nearest: torch.ones_like(depth))
    blind = carried(model(), picture, before, OWN, now, OWN)
    error, without = ((image - truth)[new].abs().mean() for image in (found, blind))
    assert error < 0.8 * without


def test_values_are_carried_on_smoothly_and_known_ones_stay() -> None:
    values, known = images(2, 2, 37, 37), torch.zeros(2, 1, 37, 37)
    known[0, :, 10:20, 5:30] = 1
    found = filled(values, known)
    assert torch.equal(found[0, :, 10:20, 5:30], values[0, :, 10:20, 5:30])
    assert not found[1].any()  # nothing is known
    assert found.abs().max() <= 1
    low, high = (getattr(values[0, :, 10:20, 5:30], end)(dim=(1, 2)) for end in ("amin", "amax"))
    assert bool(((found[0] >= low[:, None, None] - 1e-5) & (found[0] <= high[:, None, None] + 1e-5)).all())
    even = filled(torch.full((1, 2, 37, 37), 3.0), known[:1])
    torch.testing.assert_close(even, torch.full((1, 2, 37, 37), 3.0))
    nothing = torch.where(known[:1] == 1, values[:1], 1e3)
    torch.testing.assert_close(filled(nothing, known[:1]), found[:1])
