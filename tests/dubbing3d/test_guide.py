"""I_3D: the model's face drawn straight into a crop."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from common.errors import UserError
from common.face3d.morphable import FaceModel, load_face_model
from common.face3d.render import render
from dubbing3d.guide import FaceFrames, draw_guide, face_triangles, project

SIZE = 48
OWN = torch.eye(2, 3, dtype=torch.float64)


@pytest.fixture(scope="module")
def model() -> FaceModel:
    return load_face_model("builtin")


def faces(model: FaceModel, count: int = 2, *, matrix: Tensor = OWN) -> FaceFrames:
    """Faces that are turned and speak, in a frame of 48 px."""
    generator = torch.Generator().manual_seed(0)
    sizes = model.sizes
    return FaceFrames(
        identity=0.5 * torch.randn(1, sizes[0], generator=generator),
        albedo=0.5 * torch.randn(1, sizes[2], generator=generator),
        expression=0.4 * torch.rand(count, sizes[1], generator=generator),
        angles=0.2 * torch.randn(count, 3, generator=generator),
        translation=torch.tensor([[0.0, 0.1, -3.0]]).expand(count, 3),
        gamma=0.05 * torch.randn(count, 27, generator=generator),
        matrix=matrix.expand(count, 2, 3),
        size=SIZE,
    )


def test_a_guide_is_the_render_of_the_coefficients_without_hair_ears_and_neck(model: FaceModel) -> None:
    face = faces(model)
    image, cover = draw_guide(model, face, OWN, SIZE, supersample=1)
    parts = (face.expression, face.albedo.expand(2, -1), face.angles, face.translation, face.gamma)
    whole = render(model, face.identity.expand(2, -1), *parts, SIZE)
    same = ((image + 1) / 2 - whole.image).abs().amax(dim=1, keepdim=True) < 1e-5
    inside = F.max_pool2d(1 - cover, 5, 1, 2) == 0
    assert inside.sum() > 500
    assert (same & inside).sum() / inside.sum() > 0.98  # hair hangs before the face at its edge only
    assert 0.4 < cover.sum() / whole.mask.sum() < 0.8
    assert bool((image[cover.expand_as(image) == 0] == -1).all())


def test_a_guide_is_drawn_at_its_final_size(model: FaceModel) -> None:
    face = faces(model)
    fine, fine_cover = draw_guide(model, face, 2 * OWN, 2 * SIZE, supersample=1)
    image, cover = draw_guide(model, face, OWN, SIZE, supersample=2)
    torch.testing.assert_close(F.avg_pool2d(fine, 2), image, atol=1e-5, rtol=0)
    torch.testing.assert_close(F.avg_pool2d(fine_cover, 2), cover, atol=1e-5, rtol=0)


def test_where_the_coefficients_live_does_not_matter(model: FaceModel) -> None:
    there = torch.tensor([[0.7, 0.1, -3.0], [-0.1, 0.7, 5.0]], dtype=torch.float64)
    moved = draw_guide(model, faces(model, matrix=there), there, SIZE)[0]
    torch.testing.assert_close(moved, draw_guide(model, faces(model), OWN, SIZE)[0], atol=1e-4, rtol=0)


def test_landmarks_lie_where_the_model_is_projected(model: FaceModel) -> None:
    face = faces(model)
    crop = torch.tensor([[1.5, 0.0, 2.25], [0.0, 1.5, -4.5]], dtype=torch.float64)
    xy, depth, posed = project(model, face, crop)
    parts = (face.expression, face.albedo.expand(2, -1), face.angles, face.translation, face.gamma)
    known = render(model, face.identity.expand(2, -1), *parts, SIZE).landmarks
    torch.testing.assert_close(model.landmarks(xy), known * 1.5 + torch.tensor([2.25, -4.5]), atol=1e-3, rtol=0)
    torch.testing.assert_close(depth, 10 - posed[..., 2])


def test_frames_of_a_clip_are_taken_by_number(model: FaceModel) -> None:
    face = faces(model, 3)

    class Clip:
        identity, albedo = face.identity[0], face.albedo[0]
        expression, angles, translation, gamma = face.expression, face.angles, face.translation, face.gamma
        matrix, size = OWN, SIZE

    chosen = FaceFrames.of(Clip(), torch.tensor([2, 0]))
    torch.testing.assert_close(chosen.expression, face.expression[[2, 0]])
    assert chosen.matrix.shape == (2, 2, 3)
    assert len(chosen) == 2


def test_the_face_keeps_mouth_and_eyes_and_loses_the_neck(model: FaceModel) -> None:
    kept = torch.zeros(len(model.mean_shape), dtype=torch.bool)
    kept[face_triangles(model).flatten()] = True
    corners = model.landmark_vertices
    assert bool(kept[corners].all())
    assert bool(kept[model.regions["teeth"]].all())
    assert not bool(kept[model.regions["ears"] | model.regions["hair"]].any())
    assert not bool(kept[model.mean_shape[:, 1] < model.mean_shape[corners[8], 1] - 0.2].any())


def test_coefficients_of_another_model_and_a_zero_supersample_are_refused(model: FaceModel) -> None:
    face = faces(model)
    with pytest.raises(UserError, match="builtin: expression coefficients"):
        draw_guide(model, face.with_expression(torch.zeros(2, 64)), OWN, SIZE)
    with pytest.raises(UserError, match="supersample is 0"):
        draw_guide(model, face, OWN, SIZE, supersample=0)
