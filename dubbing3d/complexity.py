"""Table 7: parameters and multiply-accumulates of the four networks at the paper's sizes; nothing is trained or run.

MACs are those of Conv2d and Linear layers, one per weight and output position. The table was made with torchstat, whose
"Flops" column counts just so and skips transposed convolutions (SFM has them, 0.68 GMAC), recurrent layers, attention
products and resampling; all of these are left out here as well. What the paper calls FLOPs are therefore GMACs.
"""

from typing import Any

import torch
from torch import Tensor, nn

from dubbing3d.networks import RBFIN, SFM, TMN, ExpressionNet

EXPRESSION, WHOLE = "expression prediction", "whole model"
_FRAMES, _SIDE = 16, 192


def count(network: nn.Module, *inputs: Any) -> tuple[int, int]:
    """Parameters of a network, and MACs of one forward pass with these inputs."""
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
    return sum(parameter.numel() for parameter in network.parameters()), macs


def complexity() -> dict[str, dict[str, float]]:
    """Network -> `params` in millions and `gmacs`, of 16 frames for the expressions and of one for the others."""
    with torch.device("meta"):
        image = torch.zeros(1, 3, _SIDE, _SIDE)
        textures = {
            name: torch.zeros(1, channels, side, side)
            for name, channels, side in (("low", 256, _SIDE // 4), ("mid", 128, _SIDE // 2), ("high", 64, _SIDE))
        }
        heard, seen = torch.zeros(1, _FRAMES, 28, 12), torch.zeros(1, _FRAMES, 3, 96, 96)
        counts = {
            EXPRESSION: count(ExpressionNet(expressions=64), heard, seen),
            "SFM": count(SFM(), image, image),
            "TMN": count(TMN(), image, image),
            "RBFIN": count(RBFIN(), image, image, image, textures),
        }
    counts[WHOLE] = (sum(each[0] for each in counts.values()), sum(each[1] for each in counts.values()))
    return {name: {"params": params / 1e6, "gmacs": macs / 1e9} for name, (params, macs) in counts.items()}
