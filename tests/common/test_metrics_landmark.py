import numpy as np
import pytest
import torch

from common.metrics.landmark import LandmarkDistance, landmark_distance


def batches(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    real = rng.uniform(0, 96, (4, 68, 2))
    return real + rng.normal(0, 3, real.shape), real


def test_distances_equal_plain_loops() -> None:
    preds, real = batches()
    values = landmark_distance(torch.from_numpy(preds), torch.from_numpy(real), scale=2.0)
    for frame in range(4):
        every = [np.hypot(*(preds[frame, i] - real[frame, i])) for i in range(68)]
        own, true = preds[frame, 48:].mean(axis=0), real[frame, 48:].mean(axis=0)
        shape = [np.hypot(*(preds[frame, i] - own - real[frame, i] + true)) for i in range(48, 68)]
        assert float(values["lmd"][frame]) == pytest.approx(2 * np.mean(every))
        assert float(values["mouth_lmd"][frame]) == pytest.approx(2 * np.mean(every[48:]))
        assert float(values["mouth_lmd_centred"][frame]) == pytest.approx(2 * np.mean(shape))
    assert values["lost"].tolist() == [0.0] * 4


def test_a_moved_mouth_counts_unless_it_is_centred() -> None:
    real = torch.from_numpy(batches()[1])
    values = landmark_distance(real + torch.tensor([3.0, 4.0]), real)
    for name, expected in (("lmd", 5.0), ("mouth_lmd", 5.0), ("mouth_lmd_centred", 0.0)):
        assert values[name].tolist() == pytest.approx([expected] * 4, abs=1e-9)


def test_frames_without_a_face_are_left_out_and_counted() -> None:
    preds, real = (torch.from_numpy(batch) for batch in batches())
    preds[0], real[1] = torch.nan, torch.nan
    preds[2] = real[2] = torch.nan
    values = landmark_distance(preds, real)
    assert values["lmd"].isnan().tolist() == [True, True, True, False]
    assert values["lost"][0] == 1
    assert values["lost"][1:3].isnan().all()
    assert values["lost"][3] == 0
    metric = LandmarkDistance(96)
    metric.update(preds, real, clips=torch.tensor([0, 0, 1, 1]))
    means = metric.compute()
    assert float(means["lost"]) == 0.5
    assert float(means["lmd"]) == pytest.approx(float(values["lmd"][3]), rel=1e-6)


def test_figures_are_stated_for_one_size() -> None:
    preds, real = (torch.from_numpy(batch) for batch in batches())
    small, large = LandmarkDistance(96, stated=256), LandmarkDistance(192, stated=256)
    small.update(preds, real)
    large.update(2 * preds, 2 * real)
    assert small.unit == large.unit == "px at 256"
    assert LandmarkDistance(96).unit == "px at 96"
    assert float(small.compute()["lmd"]) == pytest.approx(float(large.compute()["lmd"]), rel=1e-6)


@pytest.mark.parametrize("shape", [(2, 67, 2), (2, 68, 3), (68, 2)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="68"):
        landmark_distance(torch.zeros(shape), torch.zeros(shape))
