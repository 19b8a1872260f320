"""The renderer's crop is steady, holds an open jaw, and references are chosen apart from their targets."""

import numpy as np
import pytest
import torch

from common.errors import UserError
from common.face3d.camera import Camera, pose
from common.face3d.morphable import load_face_model
from dubbing3d.crops import cut_crops, moved, render_matrices
from dubbing3d.references import choose_references, lip_opening, training_references


def faces(jaw: float, angles: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> np.ndarray:
    """Landmarks (1,68,2) of the built-in face in 224 px."""
    model = load_face_model("builtin")
    expression = torch.zeros(1, model.sizes[1])
    expression[0, model.expression_index("jawOpen")] = jaw
    shape = model.shape(torch.zeros(1, model.sizes[0]), expression)
    xy, _ = Camera(224).project(pose(shape, torch.tensor([angles]), torch.tensor([[0.0, 0.0, -2.0]])))
    return model.landmarks(xy).numpy()


@pytest.mark.parametrize("angles", [(0.0, 0.0, 0.0), (0.3, 0.0, 0.0), (0.0, 0.6, 0.0), (0.0, 0.0, 0.35)])
def test_a_wide_open_jaw_lies_inside(angles: tuple[float, float, float]) -> None:
    points = faces(1.0, angles)
    inside = moved(points, render_matrices(points, 96))
    assert (inside > 3).all()
    assert (inside < 93).all()


def test_the_mouth_does_not_move_the_crop() -> None:
    shut, wide = (render_matrices(np.repeat(faces(jaw), 5, axis=0), 96) for jaw in (0.0, 1.0))
    assert np.allclose(shut, wide, atol=1e-3)


def test_crops_cut_where_landmarks_go() -> None:
    points = faces(0.2)
    matrices = render_matrices(points, 64)
    image = np.zeros((1, 224, 224, 3), np.uint8)
    x, y = np.round(points[0, 30]).astype(int)
    image[0, y - 3 : y + 3, x - 3 : x + 3] = 255
    crop = cut_crops(image, matrices, 64)[0, 0].float()
    centre = (crop.sum(0) @ (torch.arange(64) + 0.5), crop.sum(1) @ (torch.arange(64) + 0.5))
    place = moved(np.array([[[x, y]]]).repeat(68, 1), matrices)[0, 0]
    assert np.allclose([float(c / crop.sum()) for c in centre], place, atol=0.1)


def test_frames_without_a_face_have_no_crop() -> None:
    points = np.repeat(faces(0.0), 6, axis=0)
    points[2:4] = np.nan
    assert np.isnan(render_matrices(points, 64)).any((1, 2)).tolist() == [False, False, True, True, False, False]


def test_references_lie_apart_from_their_target() -> None:
    known = np.ones(40, bool)
    known[5:15] = False
    for target in (0, 20, 39):
        found = training_references(known, target, 4, 10, np.random.default_rng(target))
        assert len(set(found.tolist())) == 4
        assert (np.abs(found - target) >= 10).all()
        assert known[found].all()
    short = training_references(np.ones(6, bool), 1, 3, 10, np.random.default_rng(0))
    assert set(short.tolist()) == {5}
    with pytest.raises(UserError, match="no reference"):
        training_references(np.eye(1, 9, 4, dtype=bool)[0], 4, 1, 10, np.random.default_rng(0))


def test_a_clips_references_show_its_usual_pose_and_what_differs_most() -> None:
    rng = np.random.default_rng(0)
    angles, opening = rng.normal(0, 0.02, (50, 3)), rng.uniform(0, 0.2, 50)
    angles[7], opening[30] = (0.0, 0.8, 0.0), 2.0
    known = np.ones(50, bool)
    found = choose_references(known, angles, opening, 3)
    assert np.array_equal(found, choose_references(known, angles, opening, 3))
    assert set(found[1:].tolist()) == {7, 30}
    assert abs(angles[found[0], 1]) < 0.1
    assert found[0] == choose_references(known, angles, opening, 1)[0]
    known[[7, 30]] = False
    assert not {7, 30} & set(choose_references(known, angles, opening, 5).tolist())
    assert choose_references(np.eye(1, 50, 3, dtype=bool)[0], angles, opening, 2).tolist() == [3, 3]
    with pytest.raises(UserError, match="no frame"):
        choose_references(np.zeros(50, bool), angles, opening, 1)


def test_lips_open_with_the_jaw() -> None:
    opened = lip_opening(np.concatenate([faces(jaw) for jaw in (0.0, 0.5, 1.0)]))
    assert opened[0] < opened[1] < opened[2]
    turned = lip_opening(faces(0.5, (0.0, 0.0, 0.4)))
    assert turned[0] == pytest.approx(opened[1], abs=0.01)
