"""Table 7: parameters and multiply-accumulates of the four networks at the paper's sizes."""

import pytest
import torch

from dubbing3d.complexity import EXPRESSION, complexity, count
from dubbing3d.networks import Renderer

PRINTED = {EXPRESSION: (12.50, 14.30), "SFM": (38.68, 2.27), "TMN": (12.53, 39.23), "RBFIN": (37.68, 31.08)}


@pytest.mark.parametrize("name", PRINTED)
def test_table_7(name: str) -> None:
    parameters, gmacs = PRINTED[name]
    assert complexity()[name] == {
        "params": pytest.approx(parameters, rel=0.01),
        "gmacs": pytest.approx(gmacs, rel=0.01),
    }


def test_the_renderer_is_the_sum_of_its_three_networks() -> None:
    """Nothing is computed twice, and one reference costs what the paper's costs."""
    found = complexity()
    with torch.device("meta"):
        image = torch.zeros(1, 3, 192, 192)
        parameters, macs = count(Renderer(), image, image, image)
    parts = [found[name] for name in ("SFM", "TMN", "RBFIN")]
    assert parameters / 1e6 == pytest.approx(sum(part["params"] for part in parts))
    assert macs / 1e9 == pytest.approx(sum(part["gmacs"] for part in parts))


def test_counts_by_hand() -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 3, stride=2, padding=1), torch.nn.ReLU(), torch.nn.Flatten())
    assert count(network, torch.zeros(1, 3, 8, 6)) == (3 * 5 * 9 + 5, 3 * 5 * 9 * 4 * 3)
