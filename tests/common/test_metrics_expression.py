import numpy as np
import pytest
import torch

from common.metrics.expression import ExpressionDistance, expression_distance


def test_distances_equal_plain_loops() -> None:
    rng = np.random.default_rng(0)
    preds, real = rng.standard_normal((2, 6, 64))
    values = expression_distance(torch.from_numpy(preds), torch.from_numpy(real))
    for frame in range(6):
        differences = [abs(a - b) for a, b in zip(preds[frame], real[frame], strict=True)]
        assert float(values["aed"][frame]) == pytest.approx(sum(differences) / 64)
        assert float(values["aed_l2"][frame]) == pytest.approx(sum(d**2 for d in differences) ** 0.5)


def test_the_metric_is_the_mean_over_frames_and_leaves_out_unknown_ones() -> None:
    metric = ExpressionDistance("bfm09")
    preds = torch.ones(4, 10)
    preds[2, 3] = torch.nan
    metric.update(preds, torch.zeros(4, 10), clips=0)
    metric.update(3 * torch.ones(2, 10), torch.zeros(2, 10), clips=1)
    means, estimates = metric.compute(), metric.estimates()
    assert float(means["aed"]) == pytest.approx((3 * 1 + 2 * 3) / 5)
    assert float(means["aed_l2"]) == pytest.approx((3 * 10**0.5 + 2 * 90**0.5) / 5)
    assert estimates["aed"].n == 5
    assert metric.basis == "bfm09"


@pytest.mark.parametrize("shapes", [((2, 3), (2, 4)), ((3,), (3,)), ((2, 0), (2, 0))])
def test_other_shapes_are_refused(shapes: tuple[tuple[int, ...], ...]) -> None:
    with pytest.raises(ValueError, match="two batches"):
        expression_distance(*(torch.zeros(shape) for shape in shapes))
