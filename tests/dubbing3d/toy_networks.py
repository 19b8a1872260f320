"""Inputs and checks that the network tests share."""

import torch
from torch import Tensor, nn


def images(*shape: int, seed: int = 0) -> Tensor:
    """Uniform in [-1, 1]."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def randomise(network: nn.Module) -> None:
    """Fill what starts at 0, so that gradients pass."""
    generator = torch.Generator().manual_seed(1)
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.3, generator=generator)


def without_gradient(network: nn.Module) -> list[str]:
    """Parameters that the last backward pass did not reach."""
    return [name for name, value in network.named_parameters() if value.grad is None or not value.grad.any()]
