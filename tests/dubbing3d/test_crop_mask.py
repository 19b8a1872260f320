"""The mask that hides the lower face."""

import numpy as np
import pytest
import torch
from skimage.draw import polygon2mask
from torch import Tensor

from common.errors import UserError
from common.face3d.morphable import FaceModel, load_face_model
from dubbing3d.crop_mask import crop_mask
from dubbing3d.guide import FaceFrames, project

SIZE = 96
CROP = torch.eye(2, 3, dtype=torch.float64)


@pytest.fixture(scope="module")
def model() -> FaceModel:
    return load_face_model("builtin")


def turned(model: FaceModel, *angles: tuple[float, float, float], jaw: float = 0.0) -> FaceFrames:
    """Faces in degrees of pitch, yaw and roll."""
    count, sizes = len(angles), model.sizes
    expression = torch.zeros(count, sizes[1])
    expression[:, model.expression_index("jawOpen")] = jaw
    return FaceFrames(
        identity=torch.zeros(1, sizes[0]),
        albedo=torch.zeros(1, sizes[2]),
        expression=expression,
        angles=torch.deg2rad(torch.tensor(angles)),
        translation=torch.tensor([[0.0, 0.1, -2.0]]).expand(count, 3),
        gamma=torch.zeros(count, 27),
        matrix=CROP.expand(count, 2, 3),
        size=SIZE,
    )


POSES = [(0.0, 0.0, 0.0), (15.0, 0.0, 0.0), (-15.0, 0.0, 0.0), (0.0, 35.0, 0.0), (5.0, -20.0, 20.0)]


def at(mask: Tensor, points: Tensor) -> Tensor:
    """Values (B,N) of masks at pixels (B,N,2)."""
    column, row = points.long().clamp(0, SIZE - 1).unbind(2)
    return torch.stack([image[0][y, x] for image, x, y in zip(mask, column, row, strict=True)])


def test_the_expression_does_not_move_a_bit(model: FaceModel) -> None:
    closed = crop_mask(model, turned(model, *POSES), CROP, SIZE)
    wide = crop_mask(model, turned(model, *POSES, jaw=1.0), CROP, SIZE)
    assert torch.equal(closed, wide)


@pytest.mark.parametrize("jaw", [0.0, 1.0])
def test_mouth_and_jaw_lie_inside_and_eyes_and_nose_outside(model: FaceModel, jaw: float) -> None:
    face = turned(model, *POSES, jaw=jaw)
    mask = crop_mask(model, face, CROP, SIZE)
    landmarks = model.landmarks(project(model, face, CROP)[0])
    assert bool((at(mask, landmarks[:, 48:]) == 1).all())
    assert bool((at(mask, landmarks[:, 4:13]) == 1).all())
    assert bool((at(mask, landmarks[:, 17:36]) < 0.5).all())
    assert bool((at(mask, landmarks[:, 36:48]) == 0).all())


def test_the_mask_follows_pose_identity_and_crop(model: FaceModel) -> None:
    face = turned(model, (0.0, 0.0, 0.0))
    mask = crop_mask(model, face, CROP, SIZE)
    shifted = CROP.clone()
    shifted[0, 2] = 7.0
    torch.testing.assert_close(crop_mask(model, face, shifted, SIZE)[..., 7:], mask[..., :-7], atol=1e-3, rtol=0)
    other = crop_mask(model, turned(model, (0.0, 20.0, 0.0)), CROP, SIZE)
    assert (other - mask).abs().sum() > 100
    torch.testing.assert_close(mask.flip(3), mask, atol=0.02, rtol=0)


@pytest.mark.parametrize("yaw", [-90.0, 90.0])
def test_a_profile_gives_a_mask_of_the_jaw(model: FaceModel, yaw: float) -> None:
    face = turned(model, (0.0, yaw, 0.0))
    mask = crop_mask(model, face, CROP, SIZE)
    landmarks = model.landmarks(project(model, face, CROP)[0])
    assert bool((at(mask, landmarks[:, [8, 51, 57]]) == 1).all())
    assert bool((at(mask, landmarks[:, 27:31]) == 0).all())
    assert 0.02 < mask.mean() < 0.3


def test_expressions_without_names_open_the_mouth_as_far(model: FaceModel) -> None:
    unnamed = FaceModel(
        mean_shape=model.mean_shape,
        identity_basis=model.identity_basis,
        expression_basis=model.expression_basis,
        mean_albedo=model.mean_albedo,
        albedo_basis=model.albedo_basis,
        triangles=model.triangles,
        landmark_vertices=model.landmark_vertices,
        name="unnamed",
        expression_names=[f"expression_{index:02d}" for index in range(model.sizes[1])],
    )
    face = turned(model, (0.0, 0.0, 0.0))
    ours, theirs = crop_mask(model, face, CROP, SIZE), crop_mask(unnamed, face, CROP, SIZE)
    assert (theirs - ours).abs().sum() / ours.sum() < 0.15


def test_the_landmark_mask_is_the_polygon_of_jaw_and_nose_base(model: FaceModel) -> None:
    landmarks = model.landmarks(project(model, turned(model, *POSES[:2]), CROP)[0])
    mask = crop_mask(None, None, None, SIZE, kind="landmark", landmarks=landmarks)
    order = [*range(2, 15), *range(35, 30, -1)]
    for image, points in zip(mask, landmarks, strict=True):
        fine = 8 * points[order].numpy() - 0.5
        known = polygon2mask((8 * SIZE, 8 * SIZE), fine[:, ::-1]).reshape(SIZE, 8, SIZE, 8).mean(axis=(1, 3))
        assert np.abs(image[0].numpy() - known).max() < 0.3
        assert abs(image.mean() - known.mean()) < 2e-3


def test_a_mask_that_cannot_be_made_is_refused(model: FaceModel) -> None:
    with pytest.raises(UserError, match="kind 'landmark' cannot be made"):
        crop_mask(model, turned(model, (0.0, 0.0, 0.0)), CROP, SIZE, kind="landmark")
    with pytest.raises(UserError, match="kind 'model' cannot be made"):
        crop_mask(None, None, None, SIZE)
