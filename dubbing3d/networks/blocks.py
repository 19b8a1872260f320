"""Blocks and conventions that the networks of dubbing3d share.

Images are (B, 3, S, S) in [-1, 1]. Every width is the paper's times a multiplier, at least 1.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from dubbing3d.networks.convolutions import SlimConv2d

SCALES = ("low", "mid", "high")
"""Maps of S/4, S/2 and S: the 48, 96 and 192 px of the paper's 192 px images, coarse to fine."""
_LOWEST = 64
_STEP = 32


def scaled(channels: int, width: float) -> int:
    """`channels` times the width multiplier, at least 1."""
    return max(1, round(channels * width))


def check_shape(size: int, width: float) -> None:
    """Raise ValueError where the renderer has no form for images of this size and this width."""
    if size < _LOWEST or size % _STEP:
        raise ValueError(
            f"images of {size} px do not halve to whole maps; give a multiple of {_STEP} from {_LOWEST} on, such as "
            "96 or the paper's 192"
        )
    if not width > 0:
        raise ValueError(f"width {width} must be positive")


class Halves(NamedTuple):
    """What a network proposes: colours (B, 3, S, S) in [-1, 1] and where they count (B, 1, S, S) in [0, 1]."""

    colour: Tensor
    attention: Tensor

    def over(self, image: Tensor) -> Tensor:
        """A * C + (1 - A) * image (eqs. 16 and 18)."""
        return torch.lerp(image, self.colour.to(image.dtype), self.attention.to(image.dtype))


class Heads(nn.Module):
    """7x7 convolutions to colours (tanh) and to attention (sigmoid), without bias as GANimation's (Pumarola et al.).

    (B, C, S, S) -> `Halves`.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.colour = SlimConv2d(channels, 3, 7)
        self.attention = SlimConv2d(channels, 1, 7)

    def forward(self, x: Tensor) -> Halves:
        return Halves(self.colour(x).tanh(), self.attention(x).sigmoid())


def conv_norm(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """Convolution, instance norm with scale and shift, ReLU; "same" padding, or half the size with stride 2.

    A convolution before a norm that removes its mean needs no bias.
    """
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
        nn.InstanceNorm2d(outputs, affine=True),
        nn.ReLU(inplace=True),
    )


class ResidualBlock(nn.Module):
    """x + two 3x3 convolutions with instance norms, the first with ReLU; keeps the shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *conv_norm(channels, channels),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.InstanceNorm2d(channels, affine=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)
