"""Table 7: parameters and multiply-accumulates of the four networks at the paper's sizes.

MACs are those of Conv2d and Linear layers, one per weight and output position. The table was made with torchstat, whose
"Flops" column counts just so and skips transposed convolutions (SFM has them, 0.68 GMAC), recurrent layers, attention
products and resampling; all of these are left out here as well. What the paper calls FLOPs are therefore GMACs.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dubbing3d.networks import RBFIN, SFM, TMN, ExpressionNet, Renderer


def count(network: nn.Module, *inputs: Any) -> tuple[float, float]:
    """Millions of parameters and GMACs of one forward pass."""
    macs = 0

    def hook(module: nn.Module, _: Any, output: Tensor) -> None:
        nonlocal macs
        weight = module.get_parameter("weight")
        macs += output.numel() // weight.shape[0] * weight.numel()

    hooks = [m.register_forward_hook(hook) for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    with torch.no_grad():
        network.eval()(*inputs)
    for each in hooks:
        each.remove()
    return sum(p.numel() for p in network.parameters()) / 1e6, macs / 1e9


def image(channels: int = 3) -> Tensor:
    return torch.zeros(1, channels, 192, 192)


def textures() -> dict[str, Tensor]:
    return {name: torch.zeros(1, c, s, s) for name, c, s in (("low", 256, 48), ("mid", 128, 96), ("high", 64, 192))}


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], tuple[Any, ...]], float, float]] = {
    "expression": (
        lambda: ExpressionNet(expressions=64),
        lambda: (torch.zeros(1, 16, 28, 12), torch.zeros(1, 16, 3, 96, 96)),
        12.50,
        14.30,
    ),
    "SFM": (SFM, lambda: (image(), image()), 38.68, 2.27),
    "TMN": (TMN, lambda: (image(), image()), 12.53, 39.23),
    "RBFIN": (RBFIN, lambda: (image(), image(), image(), textures()), 37.68, 31.08),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_table_7(name: str) -> None:
    build, inputs, parameters, gmacs = NETWORKS[name]
    with torch.device("meta"):
        measured = count(build(), *inputs())
    assert measured == (pytest.approx(parameters, rel=0.01), pytest.approx(gmacs, rel=0.01))


def test_the_renderer_is_the_sum_of_its_three_networks() -> None:
    """Nothing is computed twice, and one reference costs what the paper's costs."""
    with torch.device("meta"):
        measured = count(Renderer(), image(), image(), image())
        parts = [count(NETWORKS[name][0](), *NETWORKS[name][1]()) for name in ("SFM", "TMN", "RBFIN")]
    assert measured == pytest.approx([sum(part[0] for part in parts), sum(part[1] for part in parts)])
