"""Rendering of whole models: compositing, landmarks, supersampling, batches, gradients."""

import pytest
import torch
from torch import Tensor

from common.errors import UserError
from common.face3d.camera import Camera, pose
from common.face3d.morphable import FaceModel
from common.face3d.render import Rendered, render


def ball(rings: int = 8, columns: int = 12) -> FaceModel:
    """A sphere of radius 0.6 dm: red on its right half, blue on its left; one mode of each kind."""
    polar = torch.linspace(0, torch.pi, rings + 1)[1:-1]
    turn = torch.arange(columns) * 2 * torch.pi / columns
    grid = torch.stack(
        [
            polar.sin()[:, None] * turn.sin(),
            polar.cos()[:, None].expand(-1, columns),
            polar.sin()[:, None] * turn.cos(),
        ],
        dim=2,
    )
    points = 0.6 * torch.cat([grid.reshape(-1, 3), torch.tensor([[0.0, 1, 0], [0, -1, 0]])])
    ids = torch.arange((rings - 1) * columns).view(rings - 1, columns)
    after = ids.roll(-1, dims=1)
    top, bottom = len(points) - 2, len(points) - 1
    upper, lower = ids[:-1].flatten(), ids[1:].flatten()
    right, below = after[:-1].flatten(), after[1:].flatten()
    triangles = torch.cat(
        [
            torch.stack([upper, lower, right], 1),
            torch.stack([right, lower, below], 1),
            torch.stack([torch.full((columns,), top), ids[0], after[0]], 1),
            torch.stack([torch.full((columns,), bottom), after[-1], ids[-1]], 1),
        ]
    )
    red = (points[:, :1] > 0).float()
    colours = torch.cat([red, torch.zeros_like(red), 1 - red], dim=1)
    return FaceModel(
        mean_shape=points,
        identity_basis=0.2 * points[None],
        expression_basis=torch.tensor([0.0, 0.3, 0.0]).expand(1, len(points), 3).clone(),
        mean_albedo=colours,
        albedo_basis=torch.full((1, len(points), 3), 0.5),
        triangles=triangles,
        landmark_vertices=torch.arange(68),
        name="ball",
        expression_names=("up",),
    )


MODEL = ball()


def picture(batch: int = 1, size: int = 45, **changes: Tensor | int | None) -> Rendered:
    values: dict[str, Tensor | int | None] = {
        "identity": torch.zeros(batch, 1),
        "expression": torch.zeros(batch, 1),
        "albedo": torch.zeros(batch, 1),
        "angles": torch.zeros(batch, 3),
        "translation": torch.zeros(batch, 3),
        "gamma": torch.zeros(batch, 27),
        "size": size,
    }
    return render(MODEL, **(values | changes))  # type: ignore[arg-type]


def test_image_mask_and_background() -> None:
    size = 45
    result = picture(size=size, background=torch.tensor([0.1, 0.9, 0.3]))
    assert result.image.shape == (1, 3, size, size)
    assert result.mask.shape == (1, 1, size, size)
    outside = result.mask[0, 0] == 0
    torch.testing.assert_close(
        result.image[0, :, outside].T, torch.tensor([0.1, 0.9, 0.3]).expand(int(outside.sum()), 3)
    )
    # radius 0.6 dm seen from 10 dm, and the faceted sphere is a little smaller
    radius = Camera(size).focal * 0.6 / (100 - 0.36) ** 0.5
    assert result.mask.sum() == pytest.approx(torch.pi * radius**2, rel=0.08)
    light = 0.8 * 0.886227
    assert result.image[0, 0, size // 2, size // 2 + 7] == pytest.approx(light, abs=1e-5)
    assert result.image[0, 2, size // 2, size // 2 - 7] == pytest.approx(light, abs=1e-5)


def test_backgrounds_of_all_shapes_agree() -> None:
    colour = torch.tensor([0.2, 0.4, 0.6])
    plain = picture(2, background=colour).image
    for background in (
        colour.expand(2, 3),
        colour[:, None, None].expand(3, 45, 45),
        colour.view(1, 3, 1, 1).expand(2, 3, 45, 45),
    ):
        assert torch.equal(picture(2, background=background).image, plain)
    for wrong in (torch.zeros(4), torch.zeros(3, 3), torch.zeros(3, 44, 45), torch.zeros(5, 3, 45, 45)):
        with pytest.raises(UserError, match="background"):
            picture(2, background=wrong)


@pytest.mark.parametrize("size", [31, 64])
def test_supersampling_refines_edges_and_keeps_places(size: int) -> None:
    coarse, fine = picture(size=size), picture(size=size, supersample=3)
    torch.testing.assert_close(fine.landmarks, coarse.landmarks)
    assert set(coarse.mask.unique().tolist()) == {0.0, 1.0}
    assert ((fine.mask > 0) & (fine.mask < 1)).any()
    solid = (fine.mask == 1)[0, 0]
    assert coarse.mask[0, 0, solid].all()
    assert fine.mask.sum() == pytest.approx(float(coarse.mask.sum()), rel=0.03)
    with pytest.raises(UserError, match="supersample"):
        picture(supersample=0)


def test_landmarks_are_projected_posed_vertices() -> None:
    angles, translation = torch.tensor([[0.1, -0.4, 0.2]]), torch.tensor([[0.1, 0.2, -0.3]])
    result = picture(angles=angles, translation=translation, expression=torch.ones(1, 1), identity=torch.ones(1, 1))
    posed = pose(MODEL.mean_shape[None] * 1.2 + torch.tensor([0.0, 0.3, 0.0]), angles, translation)
    torch.testing.assert_close(result.landmarks, Camera(45).project(posed)[0][:, :68])


def test_pose_and_coefficients_move_the_picture() -> None:
    def centre(result: Rendered) -> Tensor:
        rows, columns = torch.nonzero(result.mask[0, 0], as_tuple=True)
        return torch.stack([columns.float().mean(), rows.float().mean()])

    middle = centre(picture())
    assert centre(picture(translation=torch.tensor([[0.3, 0.0, 0.0]])))[0] > middle[0] + 4
    assert centre(picture(expression=torch.ones(1, 1)))[1] < middle[1] - 4
    assert picture(identity=torch.ones(1, 1)).mask.sum() > 1.3 * picture().mask.sum()
    turned = picture(angles=torch.tensor([[0.0, torch.pi, 0.0]]))  # red and blue change sides
    assert turned.image[0, 2, 22, 29] > 0.5
    assert picture(albedo=torch.ones(1, 1)).image[0, 1].max() > 0.3


def test_batch_equals_single_and_repeats_exactly() -> None:
    generator = torch.Generator().manual_seed(0)
    changes = {
        "identity": torch.randn(3, 1, generator=generator),
        "angles": torch.randn(3, 3, generator=generator),
        "gamma": 0.2 * torch.randn(3, 27, generator=generator),
    }
    together = picture(3, supersample=2, **changes)
    again = picture(3, supersample=2, **changes)
    assert torch.equal(together.image, again.image)
    for index in range(3):
        single = picture(1, supersample=2, **{k: v[index : index + 1] for k, v in changes.items()})
        torch.testing.assert_close(single.image[0], together.image[index], atol=1e-6, rtol=0)
        assert torch.equal(single.mask[0], together.mask[index])
    assert together.image.min() >= 0
    assert together.image.max() <= 1


def test_every_coefficient_gets_a_gradient() -> None:
    leaves = {
        name: torch.full((1, width), 0.1, requires_grad=True)
        for name, width in {
            "identity": 1,
            "expression": 1,
            "albedo": 1,
            "angles": 3,
            "translation": 3,
            "gamma": 27,
        }.items()
    }
    result = picture(**leaves)
    (result.image * torch.linspace(0, 1, 45)).sum().backward()
    for name, leaf in leaves.items():
        assert leaf.grad is not None, name
        assert torch.isfinite(leaf.grad).all(), name
        assert leaf.grad.abs().sum() > 0, name
