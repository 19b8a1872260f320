"""Coefficients of clips: what is stored comes back in one frame of 224 px, and foreign ones are refused in one line."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from common.errors import UserError
from common.face3d.camera import REFERENCE_SIZE, Camera, pose
from common.face3d.fit import Fit
from common.face3d.morphable import load_face_model
from dubbing3d.coefficients import ClipCoefficients, FaceModelMark, spoken_columns
from dubbing3d.guide import FaceFrames, project
from tests.dubbing3d.toy_dub import toy_coefficients, toy_landmarks


def test_coefficients_keep_the_place_of_landmarks() -> None:
    stored = toy_coefficients(0, 5)
    found = ClipCoefficients.load(stored)
    assert (found.size, len(found), found.model_spec) == (REFERENCE_SIZE, 5, "builtin")
    model = load_face_model("builtin")
    xy, _, _ = project(model, FaceFrames.of(found, torch.arange(5)), torch.eye(2, 3))
    assert np.abs(model.landmarks(xy).numpy() - toy_landmarks(stored)).max() < 1e-3
    again = ClipCoefficients.load(found.arrays())
    for name in ("identity", "expression", "angles", "gamma", "matrix", "confidence"):
        assert torch.allclose(getattr(again, name), getattr(found, name))
    assert again.expression_names == found.expression_names == model.expression_names


def test_a_fit_becomes_coefficients_in_the_same_place() -> None:
    model, stored = load_face_model("builtin"), ClipCoefficients.load(toy_coefficients(1, 4))
    matrix = torch.tensor([[2.0, 0.1, 3.0], [-0.1, 2.0, 5.0]]).double().expand(4, 2, 3)
    parts = {name: getattr(stored, name) for name in ("identity", "albedo", "expression", "angles", "translation")}
    fit = Fit(
        "builtin", 224, **parts, gamma=stored.gamma, confidence=torch.rand(4), residual=torch.rand(4), matrix=matrix
    )
    found = ClipCoefficients.from_fit(fit, model)
    assert torch.equal(found.matrix, matrix)
    assert torch.equal(found.confidence, fit.confidence)
    xy, _, _ = project(model, FaceFrames.of(found, torch.tensor([2])), torch.eye(2, 3))
    shape = model.shape(stored.identity[None], stored.expression[2:3])
    own, _ = Camera(224).project(pose(shape, stored.angles[2:3], stored.translation[2:3]))
    back = xy @ matrix[2, :, :2].T.float() + matrix[2, :, 2].float()
    assert torch.allclose(back, own, atol=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"expression": np.zeros((4, 3, 2), np.float32)}, "expression is"),
        ({"angles": np.zeros((3, 3), np.float32)}, r"angles is \(3, 3\) for 4 frames"),
        ({"gamma": np.zeros((4, 9), np.float32)}, "gamma is"),
        ({"matrix": np.zeros((4, 3, 3))}, "matrix is"),
        ({"identity": np.full(3, np.nan, np.float32)}, "no numbers in identity"),
        ({"size": np.array(0)}, "of 0 px"),
        ({"identity": np.array(["a"])}, "cannot be read"),
        ({"expression": np.zeros((0, 5), np.float32)}, "for 0 frames"),
    ],
)
def test_what_does_not_belong_together_is_refused(change: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        ClipCoefficients.load(toy_coefficients(0, 4) | change, "clip a")
    assert "clip a" in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_coefficients_say_how_to_get_them() -> None:
    with pytest.raises(UserError, match="python -m dubbing3d prepare"):
        ClipCoefficients.load(None, "clip a")
    stored = toy_coefficients(0, 4)
    del stored["gamma"]
    with pytest.raises(UserError, match="gamma"):
        ClipCoefficients.load(stored)


def test_another_face_model_is_refused_in_one_line() -> None:
    model = load_face_model("builtin")
    mark = FaceModelMark.of(model, "builtin")
    found = ClipCoefficients.load(toy_coefficients(0, 4))
    mark.check_coefficients(found, "a clip")
    mark.check_model(model, "a checkpoint")
    mark.check_coefficients(replace(found, expression_names=()), "a clip")
    same = FaceModelMark.from_dict(mark.to_dict())
    assert (same.spec, same.expression_names, same.lengths) == (mark.spec, mark.expression_names, mark.lengths)
    for other in (
        replace(found, model_spec="ict"),
        replace(found, expression=found.expression[:, 1:]),
        replace(found, expression_names=found.expression_names[::-1]),
    ):
        with pytest.raises(UserError, match="fit the clips with that model") as error:
            mark.check_coefficients(other, "a clip")
        assert "\n" not in str(error.value)
    stretched = replace(mark, lengths=tuple(1.1 * length for length in mark.lengths))
    with pytest.raises(UserError, match="use the same face model"):
        stretched.check_model(model, "a checkpoint")
    rounded = replace(mark, lengths=tuple((1 + 1e-5) * length for length in mark.lengths))
    rounded.check_model(model, "a checkpoint")
    bfm = replace(mark, spec="bfm09:/some/where")
    bfm.check_coefficients(replace(found, model_spec="bfm09"), "a clip")


def test_the_spoken_expressions_are_those_of_jaw_mouth_and_tongue() -> None:
    names = ("eyeBlink_L", "jawOpen", "browDown_L", "mouthClose", "cheekPuff_L", "noseSneer_L", "tongueOut")
    assert spoken_columns(names) == [1, 3, 6]
    assert spoken_columns(("expression_00", "expression_01")) == [0, 1]
