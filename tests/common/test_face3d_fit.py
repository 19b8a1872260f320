"""The fitter on clips whose coefficients are known."""

from pathlib import Path

import numpy as np
import pytest
import torch

from common.errors import UserError
from common.face3d.camera import Camera, pose
from common.face3d.fit import Fit, fit_sequence
from common.face3d.morphable import FaceModel, load_face_model

FRAMES, SIZE = 10, 224


def clip(model: FaceModel) -> tuple[torch.Tensor, np.ndarray]:
    """Expression (T,Ke) and landmarks (T,68,2) of a head that turns and opens its mouth."""
    time = torch.linspace(0, 1, FRAMES)
    expression = torch.zeros(FRAMES, len(model.expression_names))
    expression[:, model.expression_index("jawOpen")] = 0.3 + 0.25 * torch.sin(6.28 * time)
    angles = torch.stack([0.05 * time, 0.15 * torch.sin(3 * time), 0.03 * time], dim=1)
    identity = 0.5 * torch.randn(1, model.sizes[0], generator=torch.Generator().manual_seed(3))
    shape = model.shape(identity.expand(FRAMES, -1), expression)
    xy, _ = Camera(SIZE).project(pose(model.landmarks(shape), angles, torch.zeros(FRAMES, 3)))
    return expression, xy.numpy()


@pytest.fixture(scope="module")
def fitted() -> tuple[torch.Tensor, np.ndarray, Fit]:
    model = load_face_model("builtin")
    expression, landmarks = clip(model)
    landmarks[4] = np.nan
    return expression, landmarks, fit_sequence(model, landmarks, size=(SIZE, SIZE))


def test_landmarks_are_met_and_a_lost_frame_is_bridged(fitted: tuple[torch.Tensor, np.ndarray, Fit]) -> None:
    truth, _, fit = fitted
    there = torch.arange(FRAMES) != 4
    assert len(fit) == FRAMES
    assert fit.residual[there].mean() < 0.5
    assert fit.residual[4].isnan()
    assert fit.confidence[4] == 0
    assert fit.confidence[there].min() > 0.5
    assert fit.expression.isfinite().all()
    jaw = load_face_model("builtin").expression_index("jawOpen")
    assert np.corrcoef(fit.expression[:, jaw], truth[:, jaw])[0, 1] > 0.95


def test_a_fit_is_read_back_as_written_and_other_files_are_refused(
    fitted: tuple[torch.Tensor, np.ndarray, Fit], tmp_path: Path
) -> None:
    fitted[2].save(tmp_path / "fit.npz")
    again = Fit.load(tmp_path / "fit.npz")
    assert again.model_name == fitted[2].model_name
    assert torch.equal(again.expression, fitted[2].expression)
    (tmp_path / "torn.npz").write_bytes((tmp_path / "fit.npz").read_bytes()[:100])
    with pytest.raises(UserError, match="is no fit that can be read"):
        Fit.load(tmp_path / "torn.npz")
    with pytest.raises(UserError, match="no such fit"):
        Fit.load(tmp_path / "none.npz")
