"""TMN: texture of the warped reference under the guidance of the 3D render (paper 4, eqs. 15 and 16)."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from common.layers import SPADE
from dubbing3d.networks.blocks import Halves, Heads, ResidualBlock, check_shape, conv_norm, scaled
from dubbing3d.networks.convolutions import GrowingConv2d

_HIDDEN = 64
_BLOCKS = 9


def texture_channels(width: float) -> dict[str, int]:
    """Channels of the features of each scale."""
    return {"low": scaled(256, width), "mid": scaled(128, width), "high": scaled(64, width)}


class Texture(NamedTuple):
    """What TMN gives: colour and attention (eq. 16), and its decoder's features by scale (S/4, S/2, S)."""

    halves: Halves
    features: dict[str, Tensor]


class TMN(nn.Module):
    """Encoder to S/4, nine residual blocks, decoder with skips; the last block and the S/2 maps are modulated by SPADE.

    At the defaults: 12.48 M parameters and 39.2 GMAC (table 7: 12.53 and 39.23).

    Args:
        width: multiplier of all inner widths.
        image_size: S, a multiple of 32 from 64 on.
        guide_channels: of the 3D render: 3, or 4 with its coverage.
    """

    def __init__(self, *, width: float = 1.0, image_size: int = 192, guide_channels: int = 3) -> None:
        super().__init__()
        check_shape(image_size, width)
        channels = texture_channels(width)
        high, mid, low = channels["high"], channels["mid"], channels["low"]
        hidden = scaled(_HIDDEN, width)
        self.enter = conv_norm(3 + guide_channels, high, 7)
        self.halve = conv_norm(high, mid, stride=2)
        self.quarter = conv_norm(mid, low, stride=2)
        self.blocks = nn.Sequential(*(ResidualBlock(low) for _ in range(_BLOCKS - 1)))
        self.guided = GuidedResidualBlock(low, guide_channels, hidden)
        self.skip = SPADE(mid, guide_channels, hidden=hidden)
        self.merge = GrowingConv2d(low + mid, mid)
        self.modulate = SPADE(mid, guide_channels, hidden=hidden)
        self.leave = nn.Sequential(
            GrowingConv2d(mid + high, high), nn.InstanceNorm2d(high, affine=True), nn.ReLU(inplace=True)
        )
        self.heads = Heads(high)

    def forward(self, warped: Tensor, guide: Tensor) -> Texture:
        """The texture from I_warp (B, 3, S, S) and the render (B, guide_channels, S, S)."""
        first = self.enter(torch.cat([warped, guide], dim=1))
        second = self.halve(first)
        low = self.guided(self.blocks(self.quarter(second)), guide)
        merged = self.merge(low, self.skip(second, guide))
        mid = self.modulate(merged, guide).relu()
        high = self.leave[1:](self.leave[0](mid, first))
        return Texture(self.heads(high), {"low": low, "mid": mid, "high": high})


class GuidedResidualBlock(nn.Module):
    """x + two 3x3 convolutions with SPADE instead of norms of their own; keeps the shape."""

    def __init__(self, channels: int, guide_channels: int, hidden: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.first_norm = SPADE(channels, guide_channels, hidden=hidden)
        self.second = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.second_norm = SPADE(channels, guide_channels, hidden=hidden)

    def forward(self, x: Tensor, guide: Tensor) -> Tensor:
        y = self.first_norm(self.first(x), guide).relu()
        return x + self.second_norm(self.second(y), guide)
