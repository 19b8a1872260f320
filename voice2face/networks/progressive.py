"""Paper 1's generator: three stages from contour to detail, conditioned after every convolution.

The abstract states the three stages, the self-attention and the AdaIN injection layer by layer; all else is a choice
made here: a learned 4 px start, a first stage that doubles up to its size, later stages of residual blocks and a
doubling (Zhang et al., "AttnGAN", 2018), an RGB head per stage, equalised convolutions without noise inputs.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from common.attention import SelfAttention2d
from common.errors import UserError
from common.layers import (
    LEAKY_GAIN,
    AdaIN,
    EqualConv2d,
    convolve_same,
    leaky_relu_,
    normalise_second_moment,
    upsample,
)
from voice2face.networks.growth import Growing, Growth, blend, enlarge, stage_sizes
from voice2face.networks.mapping import MappedGenerator, MappingNetwork
from voice2face.networks.stylegan2_generator import NoiseMode, channels_at, working_memory

Injection = Literal["adain", "concat"]


def attention_kernels(*, twice: bool) -> list[SDPBackend]:
    """What `sdpa_kernel` may choose from; where gradients of gradients are needed (`twice`), the plain formula only."""
    plain = [SDPBackend.MATH]
    return plain if twice else [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, *plain]


class AdaINConv(nn.Module):
    """Convolution, AdaIN from the voice, leaky rectifier: (B, in, H, W), (B, w_dim) -> (B, out, H, W).

    No bias: the normalisation would remove it.
    """

    def __init__(self, in_channels: int, out_channels: int, w_dim: int) -> None:
        super().__init__()
        self.conv = EqualConv2d(in_channels, out_channels, 3, bias=False)
        self.inject = AdaIN(out_channels, w_dim)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        return leaky_relu_(self.inject(self.conv(x), w))


class ConcatConv(nn.Module):
    """The ablation of AdaIN: the voice vector, tiled over the plane, joins the convolution's input.

    (B, in, H, W), (B, w_dim) -> (B, out, H, W), leaky rectifier and pixel norm included; instance normalisation would
    remove what a tiled vector adds. The tiled part is computed without tiling: per sample its kernel's nine taps,
    each times the region in which the tap does not fall on the zero padding.
    """

    def __init__(self, in_channels: int, out_channels: int, w_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels + w_dim, 3, 3))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.in_channels = in_channels
        self.gain = LEAKY_GAIN / math.sqrt((in_channels + w_dim) * 9)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        by_image, by_voice = (self.weight * self.gain).split([self.in_channels, w.shape[1]], dim=1)
        taps = torch.einsum("oikl,bi->bokl", by_voice, w).flatten(2)
        inside = F.unfold(x.new_ones(1, 1, *x.shape[2:]), 3, padding=1)
        voice = (taps @ inside).unflatten(2, x.shape[2:])
        y = convolve_same(x, by_image, self.bias * LEAKY_GAIN) + voice
        return normalise_second_moment(leaky_relu_(y))


INJECTIONS: dict[str, type[AdaINConv] | type[ConcatConv]] = {"adain": AdaINConv, "concat": ConcatConv}


class Block(nn.Module):
    """Two injected convolutions, around a doubling or beside a residual connection, then perhaps self-attention."""

    def __init__(
        self, in_channels: int, out_channels: int, w_dim: int, *, injection: str, up: bool, residual: bool, attend: bool
    ) -> None:
        super().__init__()
        conv = INJECTIONS[injection]
        self.conv0 = conv(in_channels, out_channels, w_dim)
        self.conv1 = conv(out_channels, out_channels, w_dim)
        self.attention = SelfAttention2d(out_channels) if attend else nn.Identity()
        self.up, self.residual = up, residual

    def forward(self, x: Tensor, ws: Tensor) -> Tensor:
        """(B, in, H, W) and (B, 2, w_dim) -> (B, out, H or 2H, W or 2W)."""
        y = self.conv0(x, ws[:, 0])
        y = self.conv1(upsample(y) if self.up else y, ws[:, 1])
        return self.attention((x + y) * math.sqrt(0.5) if self.residual else y)


class Stage(nn.Module):
    """The blocks that lead to one image size, and its RGB head."""

    def __init__(self, blocks: list[Block], channels: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.to_rgb = EqualConv2d(channels, 3, 1)

    def forward(self, x: Tensor, ws: Tensor) -> tuple[Tensor, Tensor]:
        """Features and (B, 2 * blocks, w_dim) -> features and image (B, 3, S, S) of this stage."""
        for i, block in enumerate(self.blocks):
            x = block(x, ws[:, 2 * i : 2 * i + 2])
        return x, self.to_rgb(x)


class StagedSynthesis(Growing):
    """From one vector per injection (B, num_ws, w_dim) to the image of every stage."""

    def __init__(
        self,
        resolution: int,
        sizes: Sequence[int],
        *,
        w_dim: int,
        channel_base: int,
        channel_max: int,
        injection: Injection,
        attention: Sequence[int],
        refine_blocks: int,
    ) -> None:
        super().__init__(sizes)
        self.resolution, self.w_dim = resolution, w_dim

        def block(before: int, after: int) -> Block:
            inner, outer = (channels_at(size, channel_base, channel_max) for size in (before, after))
            return Block(
                inner,
                outer,
                w_dim,
                injection=injection,
                up=after > before,
                residual=after == before and after > 4,
                attend=after in attention and after > before,
            )

        self.const = nn.Parameter(torch.randn(channels_at(4, channel_base, channel_max), 4, 4))
        self.levels = nn.ModuleList()
        self.shares: list[int] = []
        size = 4
        for number, target in enumerate(sizes):
            blocks = [block(size, size) for _ in range(refine_blocks if number else 1)]
            while size < target:
                blocks.append(block(size, 2 * size))
                size *= 2
            self.levels.append(Stage(blocks, channels_at(target, channel_base, channel_max)))
            self.shares.append(2 * len(blocks))
        self.num_ws = sum(self.shares)

    def noise_shapes(self) -> list[int]:
        """No noise planes: the variety of portraits comes from the latent."""
        return []

    def stages(
        self, ws: Tensor, *, active: int | None = None, fade: float | None = None, force_fp32: bool = False
    ) -> list[Tensor]:
        """Images (B, 3, S, S) of the stages, small to large.

        `active` and `fade` default to the network's growth (see `Growing`); with `active` alone the newest stage
        counts fully, below a `fade` of 1 its image is mixed with the enlarged one before it. Always float32;
        `force_fp32` says that gradients of gradients are needed. Raises UserError for ws of another shape.
        """
        if ws.ndim != 3 or ws.shape[1:] != (self.num_ws, self.w_dim):
            raise UserError(
                f"this generator wants w+ of shape (batch, {self.num_ws}, {self.w_dim}), got {tuple(ws.shape)}"
            )
        growth = self.growth
        if active is not None or fade is not None:
            growth = Growth(active or len(self.sizes), 1.0 if fade is None else fade)
        kernels = attention_kernels(twice=force_fp32)
        with torch.autocast(ws.device.type, enabled=False), sdpa_kernel(kernels):
            ws = ws.float()
            x = self.const[None].expand(len(ws), -1, -1, -1)
            x = x.contiguous(memory_format=working_memory(x))
            images: list[Tensor] = []
            for level, styles in zip(self.levels[: growth.active], ws.split(self.shares, dim=1), strict=False):
                x, image = level(x, styles)
                images.append(image)
            return blend(images, growth.fade)

    def forward(
        self,
        ws: Tensor,
        *,
        noise: list[Tensor] | None = None,
        noise_mode: NoiseMode = "random",
        force_fp32: bool = False,
    ) -> Tensor:
        """The newest active stage's image at full size, (B, 3, R, R), about [-1, 1] after training."""
        if noise:
            raise UserError(f"{len(noise)} noise planes were given to a generator that takes none")
        return enlarge(self.stages(ws, force_fp32=force_fp32)[-1], self.resolution)


class ProgressiveGenerator(MappedGenerator):
    """Voice latent (B, z_dim) to image (B, 3, R, R).

    Args:
        resolution: R of the last stage.
        stages: image sizes, R / 4, R / 2 and R unless given; one size for the one-stage ablation.
        z_dim: width of the voice latent.
        mapping_layers: layers of an MLP before the injections. 0, the default: the acoustic vector itself becomes
            the dynamic parameters, as the abstract says.
        w_dim: width of the MLP; without one it is z_dim.
        channel_base, channel_max: min(base / size, max) feature maps at each size.
        injection: "adain", or "concat" for the ablation.
        attention: sizes with self-attention; those that the network does not reach are left out.
        refine_blocks: residual blocks at the start of each stage but the first.

    `config` holds the arguments, as plain values.
    """

    def __init__(
        self,
        resolution: int = 256,
        *,
        stages: Sequence[int] | None = None,
        z_dim: int = 512,
        mapping_layers: int = 0,
        w_dim: int | None = None,
        channel_base: int = 16384,
        channel_max: int = 512,
        injection: Injection = "adain",
        attention: Sequence[int] = (32, 64),
        refine_blocks: int = 1,
    ) -> None:
        super().__init__()
        sizes = stage_sizes(resolution, stages)
        if injection not in INJECTIONS:
            raise UserError(f"unknown injection {injection!r}: one of {', '.join(INJECTIONS)}")
        if mapping_layers == 0 and w_dim not in (None, z_dim):
            raise UserError(f"without mapping layers w_dim is z_dim, {z_dim}, not {w_dim}")
        width = w_dim or z_dim
        self.config = {
            "resolution": resolution,
            "stages": list(sizes),
            "z_dim": z_dim,
            "mapping_layers": mapping_layers,
            "w_dim": width,
            "channel_base": channel_base,
            "channel_max": channel_max,
            "injection": injection,
            "attention": list(attention),
            "refine_blocks": refine_blocks,
        }
        self.synthesis = StagedSynthesis(
            resolution,
            sizes,
            w_dim=width,
            channel_base=channel_base,
            channel_max=channel_max,
            injection=injection,
            attention=attention,
            refine_blocks=refine_blocks,
        )
        self.num_ws = self.synthesis.num_ws
        self.mapping = MappingNetwork(
            z_dim=z_dim, w_dim=width, num_ws=self.num_ws, num_layers=mapping_layers, lr_mul=1.0
        )
