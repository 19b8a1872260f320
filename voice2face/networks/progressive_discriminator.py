"""A discriminator for each stage of paper 1's generator (one per image size, as in AttnGAN and SF2F)."""

import math
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.attention import sdpa_kernel
from torch.nn.utils import parametrizations

from common.attention import SelfAttention2d
from common.errors import UserError
from common.layers import LEAKY_SLOPE, EqualConv2d, EqualLinear, MinibatchStdDev
from voice2face.networks.growth import stage_sizes
from voice2face.networks.progressive import attention_kernels
from voice2face.networks.stylegan2_discriminator import DiscriminatorBlock, IdentityClassifier
from voice2face.networks.stylegan2_generator import channels_at, working_memory


def spectral_conv(in_channels: int, out_channels: int, kernel: int) -> nn.Module:
    """Convolution of spectral norm 1 that keeps height and width (Miyato et al., 2018)."""
    return parametrizations.spectral_norm(nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2))


class SpectralBlock(nn.Module):
    """`DiscriminatorBlock` with spectral norm in place of equalised rates: (B, in, H, W) -> (B, out, H/2, W/2)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            spectral_conv(in_channels, in_channels, 3),
            nn.LeakyReLU(LEAKY_SLOPE),
            spectral_conv(in_channels, out_channels, 3),
            nn.LeakyReLU(LEAKY_SLOPE),
            nn.AvgPool2d(2),
        )
        self.skip = nn.Sequential(nn.AvgPool2d(2), spectral_conv(in_channels, out_channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (self.body(x) + self.skip(x)) * math.sqrt(0.5)


class StageDiscriminator(nn.Module):
    """Image (B, 3, S, S) to realness logits (B, 1), by a residual trunk that an identity classifier shares.

    Args:
        resolution: S, a power of two from 8.
        channel_base, channel_max: min(base / size, max) feature maps at each size.
        stddev_group: samples per group of the minibatch deviation; 0 leaves it out.
        spectral_norm: every weight has spectral norm 1, in place of equalised rates.
        attention: sizes after which self-attention follows; none by default.
    """

    def __init__(
        self,
        resolution: int,
        *,
        channel_base: int = 16384,
        channel_max: int = 512,
        stddev_group: int = 4,
        spectral_norm: bool = False,
        attention: Sequence[int] = (),
    ) -> None:
        super().__init__()
        (self.resolution,) = stage_sizes(resolution, [resolution])
        sizes = [resolution >> i for i in range(resolution.bit_length() - 2)]
        widths = [channels_at(size, channel_base, channel_max) for size in sizes]
        self.num_features = last = widths[-1]
        self.from_rgb: nn.Module = EqualConv2d(3, widths[0], 1, activation="lrelu")
        if spectral_norm:
            self.from_rgb = nn.Sequential(spectral_conv(3, widths[0], 1), nn.LeakyReLU(LEAKY_SLOPE))
        block = SpectralBlock if spectral_norm else partial(DiscriminatorBlock, kernel=3, clamp=None)
        blocks: list[nn.Module] = []
        for (inner, outer), size in zip(pairwise(widths), sizes[1:], strict=True):
            blocks.append(block(inner, outer))
            if size in attention:
                blocks.append(SelfAttention2d(outer, spectral_norm=spectral_norm))
        self.blocks = nn.Sequential(*blocks)
        self.stddev = MinibatchStdDev(stddev_group) if stddev_group else nn.Identity()
        pooled = last + (1 if stddev_group else 0)
        self.end, self.out = self._spectral_end(pooled) if spectral_norm else self._equal_end(pooled)

    def _equal_end(self, pooled: int) -> tuple[nn.Module, nn.Module]:
        last = self.num_features
        conv = EqualConv2d(pooled, last, 3, activation="lrelu")
        end = nn.Sequential(conv, nn.Flatten(), EqualLinear(last * 16, last, activation="lrelu"))
        return end, EqualLinear(last, 1)

    def _spectral_end(self, pooled: int) -> tuple[nn.Module, nn.Module]:
        last = self.num_features
        end = nn.Sequential(
            spectral_conv(pooled, last, 3),
            nn.LeakyReLU(LEAKY_SLOPE),
            nn.Flatten(),
            parametrizations.spectral_norm(nn.Linear(last * 16, last)),
            nn.LeakyReLU(LEAKY_SLOPE),
        )
        return end, parametrizations.spectral_norm(nn.Linear(last, 1))

    def features(self, x: Tensor, *, force_fp32: bool = False) -> Tensor:
        """Image (B, 3, S, S) in [-1, 1] -> trunk features (B, num_features), always float32.

        `force_fp32` says that gradients of gradients are needed. Raises UserError for images of another size.
        """
        if x.shape[1:] != (3, self.resolution, self.resolution):
            raise UserError(
                f"this stage's discriminator wants images (3, {self.resolution}, {self.resolution}), "
                f"got {tuple(x.shape[1:])}; give generator and discriminator the same stages"
            )
        kernels = attention_kernels(twice=force_fp32)
        with torch.autocast(x.device.type, enabled=False), sdpa_kernel(kernels):
            x = x.float().contiguous(memory_format=working_memory(x))
            return self.end(self.stddev(self.blocks(self.from_rgb(x))))

    def logits(self, features: Tensor) -> Tensor:
        """Trunk features (B, num_features) -> (B, 1)."""
        with torch.autocast(features.device.type, enabled=False):
            return self.out(features.float())

    def forward(self, x: Tensor, *, force_fp32: bool = False) -> Tensor:
        return self.logits(self.features(x, force_fp32=force_fp32))

    def identity_head(self, identities: int) -> IdentityClassifier:
        """A new identity classifier (B, num_features) -> (B, identities) for this trunk."""
        return IdentityClassifier(self.num_features, identities)


class StageDiscriminators(nn.ModuleList):
    """`[k]` judges stage k's images. As one discriminator it is the last stage's.

    Args:
        resolution, stages: as `ProgressiveGenerator`'s.
        kwargs: of `StageDiscriminator`.
    """

    def __init__(self, resolution: int = 256, *, stages: Sequence[int] | None = None, **kwargs: Any) -> None:
        sizes = stage_sizes(resolution, stages)
        super().__init__(StageDiscriminator(size, **kwargs) for size in sizes)
        self.sizes = sizes
        self.num_features = self.last.num_features

    @property
    def last(self) -> StageDiscriminator:
        """The judge of full-sized images."""
        return cast(StageDiscriminator, self[-1])

    def features(self, x: Tensor, *, force_fp32: bool = False) -> Tensor:
        """Trunk features of full-sized images."""
        return self.last.features(x, force_fp32=force_fp32)

    def logits(self, features: Tensor) -> Tensor:
        """Logits of full-sized images' features."""
        return self.last.logits(features)

    def forward(self, x: Tensor, *, force_fp32: bool = False) -> Tensor:
        return self.last(x, force_fp32=force_fp32)

    def identity_head(self, identities: int) -> IdentityClassifier:
        """A new identity classifier (B, num_features) -> (B, identities) for the last stage's trunk."""
        return self.last.identity_head(identities)
