"""RBFIN: the hidden part of the face from warped reference, render and crop, with TMN's textures (eqs. 17 to 22)."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.layers import SPADE
from dubbing3d.networks.blocks import SCALES, Halves, Heads, ResidualBlock, check_shape, conv_norm, scaled
from dubbing3d.networks.convolutions import GrowingConv2d, StackedConv2d
from dubbing3d.networks.texture import texture_channels

Scale = Literal["learnable", "sigmoid"] | float
"""The factor of eq. 22: a free number that starts at 1, one in (0, 1), or a constant (table 5: 0 or 1)."""
_KERNELS = (3, 5, 7)
_HIDDEN = 128
_BLOCKS = 6
_DEEPEST, _NARROWEST = 6, 3
_SIGMOID_START = 4.0


class MSAF(nn.Module):
    """Adds a texture seen through three kernels to features, where a gate lets it (eqs. 19 to 22).

    F + scale * M * sum over s in {3, 5, 7} of W_s T_s, with T_s = conv_sxs(texture), W the softmax of three numbers,
    and M the sigmoid of a 1x1 convolution of F and all T_s to one channel.

    Args:
        channels: of features and texture.
        scale: see `Scale`. The paper's text says [0, 1], its equation leaves it free, as the default does. It starts at
            1: from 0 on, nothing teaches the convolutions behind it, and it was still there after 1000 steps.
        depthwise: False takes eq. 19 as it reads; at full width that alone costs more than table 7 has for RBFIN.

    Shape: (B, C, H, W) twice -> the same.
    """

    def __init__(self, channels: int, *, scale: Scale = "learnable", depthwise: bool = True) -> None:
        super().__init__()
        if isinstance(scale, str) and scale not in get_args(get_args(Scale)[0]):
            raise ValueError(f"scale {scale!r} is neither learnable nor sigmoid nor a number")
        groups = channels if depthwise else 1
        self.convs = nn.ModuleList(
            nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=groups) for kernel in _KERNELS
        )
        self.scale_logits = nn.Parameter(torch.zeros(len(_KERNELS)))
        self.gate = StackedConv2d((1 + len(_KERNELS)) * channels, 1, 1)
        self.form = scale
        self.scale: Tensor
        if isinstance(scale, str):
            self.scale = nn.Parameter(torch.tensor(1.0 if scale == "learnable" else _SIGMOID_START))
        else:
            self.register_buffer("scale", torch.tensor(float(scale)), persistent=False)

    def factor(self) -> Tensor:
        """The factor that the texture has now, a scalar."""
        return self.scale.sigmoid() if self.form == "sigmoid" else self.scale

    def forward(self, features: Tensor, texture: Tensor) -> Tensor:
        seen = [conv(texture) for conv in self.convs]
        gate = self.gate(features, *seen).sigmoid()
        weights = self.scale_logits.softmax(dim=0)
        mixed = weights[0] * seen[0] + weights[1] * seen[1] + weights[2] * seen[2]
        return features + (self.factor() * gate * mixed).to(features.dtype)


class Plain(nn.Module):
    """The sum of features and texture: what is left without MSAF."""

    def forward(self, features: Tensor, texture: Tensor) -> Tensor:
        return features + texture


class RBFIN(nn.Module):
    """U-Net over I_warp, the render and I_crop, modulated by SPADE at S/4 and S/2, with textures fused at S/4 to S.

    It halves six times at 192 px, down to 3 px, and as often as maps of at least 3 px allow at other sizes (five times
    at 96). At the defaults: 37.80 M parameters and 31.0 GMAC (table 7: 37.68 and 31.08).

    Args:
        width: multiplier of all inner widths.
        image_size: S, a multiple of 32 from 64 on.
        guide_channels: of the 3D render: 3, or 4 with its coverage.
        texture: False takes no features of TMN (table 4, no enhancement).
        msaf: False adds textures as they are (table 4, no MSAF).
        scales: where textures come in (table 6), any of "low", "mid", "high".
        scale, depthwise: see `MSAF`.
        recurrent: also take the previous frame's result, moved into this one; its weights start at 0, so that at first
            it changes nothing.
    """

    def __init__(
        self,
        *,
        width: float = 1.0,
        image_size: int = 192,
        guide_channels: int = 3,
        texture: bool = True,
        msaf: bool = True,
        scales: Sequence[str] = SCALES,
        scale: Scale = "learnable",
        depthwise: bool = True,
        recurrent: bool = False,
    ) -> None:
        super().__init__()
        check_shape(image_size, width)
        if unknown := set(scales) - set(SCALES):
            raise ValueError(f"scales {sorted(unknown)} are not among {', '.join(SCALES)}")
        # Channels at S, S/2, S/4, ...
        widths = [scaled(c, width) for c in (64, 128, 256, *[384] * (_levels(image_size) - 2))]
        self.enter = nn.Conv2d(6 + guide_channels, widths[0], 7, padding=3, bias=False)
        self.recall = nn.Conv2d(3, widths[0], 7, padding=3, bias=False) if recurrent else None
        if self.recall is not None:
            nn.init.zeros_(self.recall.weight)
        self.enter_norm = nn.Sequential(nn.InstanceNorm2d(widths[0], affine=True), nn.ReLU(inplace=True))
        pairs = list(pairwise(widths))
        self.down = nn.ModuleList(conv_norm(above, below, stride=2) for above, below in pairs)
        self.blocks = nn.Sequential(*(ResidualBlock(widths[-1]) for _ in range(_BLOCKS)))
        self.up = nn.ModuleList()
        for level, (above, below) in reversed(list(enumerate(pairs))):
            hidden = scaled(_HIDDEN, width) if level in (1, 2) else None
            self.up.append(_UpBlock(below, above, guide_channels, hidden, large=level < len(SCALES)))
        self.fuse = nn.ModuleDict()
        for name, channels in texture_channels(width).items():
            if texture and name in scales:
                self.fuse[name] = MSAF(channels, scale=scale, depthwise=depthwise) if msaf else Plain()
        self.heads = Heads(widths[0])

    def forward(
        self,
        warped: Tensor,
        guide: Tensor,
        crop: Tensor,
        textures: dict[str, Tensor] | None = None,
        previous: Tensor | None = None,
    ) -> Halves:
        """Colour and attention of eq. 17.

        Args:
            warped, crop: (B, 3, S, S).
            guide: (B, guide_channels, S, S).
            textures: TMN's features by scale; may be left out where none are fused.
            previous: (B, 3, S, S) the last frame's result, each piece of the face where it is in this frame; only with
                `recurrent`, and never needed.
        """
        if self.fuse and textures is None:
            raise ValueError("this network fuses textures and got none")
        if previous is not None and self.recall is None:
            raise ValueError("this network was built without the recurrent input")
        x = self.enter(torch.cat([warped, guide, crop], dim=1))
        if self.recall is not None and previous is not None:
            x = x + self.recall(previous)
        x = self.enter_norm(x)
        maps = []
        for layer in self.down:
            maps.append(x)
            x = layer(x)
        x = self.blocks(x)
        names = (*[None] * (len(maps) - len(SCALES)), *SCALES)
        for layer, name in zip(self.up, names, strict=True):
            x = layer(x, maps.pop(), guide)
            if textures is not None and name is not None and name in self.fuse:
                x = self.fuse[name](x, textures[name])
        return self.heads(x)


def _levels(size: int) -> int:
    """How often maps of `size` are halved: at most six times, to whole maps of at least 3 px."""
    return max(n for n in range(1, _DEEPEST + 1) if size % 2**n == 0 and size >> n >= _NARROWEST)


class _UpBlock(nn.Module):
    """Twice the size, the skip beside it, two 3x3 convolutions with norms, by SPADE where `hidden` is given.

    Where maps are `large`, what repeats pixels costs most; where they are small, what reads the weights does.
    """

    def __init__(self, inputs: int, outputs: int, guide_channels: int, hidden: int | None, *, large: bool) -> None:
        super().__init__()
        stacked = inputs + outputs
        first = GrowingConv2d(stacked, outputs) if large else nn.Conv2d(stacked, outputs, 3, padding=1, bias=False)
        self.convs = nn.ModuleList([first, nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)])
        self.large, self.guided = large, hidden is not None
        self.norms = nn.ModuleList(
            nn.InstanceNorm2d(outputs, affine=True) if hidden is None else SPADE(outputs, guide_channels, hidden=hidden)
            for _ in self.convs
        )

    def forward(self, x: Tensor, skip: Tensor, guide: Tensor) -> Tensor:
        first, second = self.convs
        x = first(x, skip) if self.large else first(torch.cat([_repeated(x), skip], dim=1))
        x = self._normed(0, x, guide)
        return self._normed(1, second(x), guide)

    def _normed(self, index: int, x: Tensor, guide: Tensor) -> Tensor:
        norm = self.norms[index]
        return (norm(x, guide) if self.guided else norm(x)).relu()


def _repeated(x: Tensor) -> Tensor:
    """Each pixel four times: (B, C, H, W) -> (B, C, 2H, 2W)."""
    return F.interpolate(x, scale_factor=2, mode="nearest")
