"""StyleGAN2's residual discriminator, with its trunk open to a second head.

Source: Karras et al. (2020); conditional projection as in "Training Generative Adversarial Networks with Limited Data".
"""

import math
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from common.errors import UserError
from common.layers import EqualConv2d, EqualLinear, MinibatchStdDev
from voice2face.networks.mapping import MappingNetwork
from voice2face.networks.stylegan2_generator import (
    CONV_CLAMP,
    HALF_TYPES,
    HalfType,
    channels_at,
    check_resolution,
    kernel_at,
    working_memory,
)


class DiscriminatorBlock(nn.Module):
    """Two convolutions, the second of which halves, beside a halving 1x1 skip; both times sqrt(.5)."""

    def __init__(self, in_channels: int, out_channels: int, *, kernel: int, clamp: float | None) -> None:
        super().__init__()
        half = math.sqrt(0.5)
        self.conv0 = EqualConv2d(in_channels, in_channels, kernel, activation="lrelu", clamp=clamp)
        self.conv1 = EqualConv2d(
            in_channels, out_channels, kernel, activation="lrelu", down=True, gain=half, clamp=clamp
        )
        self.skip = EqualConv2d(in_channels, out_channels, 1, bias=False, down=True, gain=half)

    def forward(self, x: Tensor) -> Tensor:
        return self.skip(x) + self.conv1(self.conv0(x))


class StyleGAN2Discriminator(nn.Module):
    """Image (B, 3, R, R) to realness logits (B, 1); any batch size.

    `c_dim` > 0 adds the projection of a condition. `features` returns the trunk's last activation, which
    `IdentityClassifier` shares. Arguments are those of `StyleGAN2Generator`; `config` holds them as plain values.
    """

    def __init__(
        self,
        resolution: int = 64,
        *,
        c_dim: int = 0,
        image_channels: int = 3,
        mapping_layers: int = 8,
        channel_base: int = 32768,
        channel_max: int = 512,
        num_fp16_res: int = 0,
        half_type: HalfType = "bf16",
        conv_clamp: float | None = None,
        low_res_kernel: int = 3,
        stddev_group: int = 4,
        stddev_channels: int = 1,
    ) -> None:
        super().__init__()
        if conv_clamp is None and num_fp16_res > 0:
            conv_clamp = CONV_CLAMP
        self.config: dict[str, Any] = {
            "resolution": resolution,
            "c_dim": c_dim,
            "image_channels": image_channels,
            "mapping_layers": mapping_layers,
            "channel_base": channel_base,
            "channel_max": channel_max,
            "num_fp16_res": num_fp16_res,
            "half_type": half_type,
            "conv_clamp": conv_clamp,
            "low_res_kernel": low_res_kernel,
            "stddev_group": stddev_group,
            "stddev_channels": stddev_channels,
        }
        power = check_resolution(resolution)
        widths = [channels_at(2**k, channel_base, channel_max) for k in range(power, 1, -1)]
        self.resolution, self.image_channels, self.c_dim = resolution, image_channels, c_dim
        self.num_features = widths[-1]
        self.from_rgb = EqualConv2d(image_channels, widths[0], 1, activation="lrelu", clamp=conv_clamp)
        self.blocks = nn.ModuleList(
            DiscriminatorBlock(
                inner,
                outer,
                kernel=kernel_at(resolution >> i, low_res_kernel),
                clamp=conv_clamp,
            )
            for i, (inner, outer) in enumerate(pairwise(widths))
        )
        self.block_types = [
            HALF_TYPES[half_type] if i < num_fp16_res else torch.float32 for i in range(len(self.blocks))
        ]
        self.stddev = MinibatchStdDev(stddev_group, stddev_channels)
        self.conv = EqualConv2d(
            self.num_features + stddev_channels,
            self.num_features,
            kernel_at(4, low_res_kernel),
            activation="lrelu",
            clamp=conv_clamp,
        )
        self.fc = EqualLinear(self.num_features * 16, self.num_features, activation="lrelu")
        self.out = EqualLinear(self.num_features, self.num_features if c_dim else 1)
        self.mapping = (
            MappingNetwork(z_dim=0, c_dim=c_dim, w_dim=self.num_features, num_layers=mapping_layers) if c_dim else None
        )

    def features(self, x: Tensor, *, force_fp32: bool = False) -> Tensor:
        """Image (B, 3, R, R) in [-1, 1] -> trunk features (B, num_features), float32.

        Precision is the network's own (`num_fp16_res`): autocast is off inside; `force_fp32` overrides it for
        gradient penalties. Raises UserError for images of another size.
        """
        if x.shape[1:] != (self.image_channels, self.resolution, self.resolution):
            raise UserError(
                f"the discriminator wants images ({self.image_channels}, {self.resolution}, {self.resolution}), "
                f"got {tuple(x.shape[1:])}; check data.size against the network's resolution"
            )
        with torch.autocast(x.device.type, enabled=False):
            for i, (block, dtype) in enumerate(zip(self.blocks, self.block_types, strict=True)):
                x = x.to(torch.float32 if force_fp32 else dtype)
                x = x.contiguous(memory_format=working_memory(x))
                x = block(self.from_rgb(x) if i == 0 else x)
            x = self.conv(self.stddev(x.float()))
            return self.fc(x.flatten(1))

    def logits(self, features: Tensor, c: Tensor | None = None) -> Tensor:
        """Trunk features (B, num_features), and the condition of a conditional network, to logits (B, 1)."""
        with torch.autocast(features.device.type, enabled=False):
            logits = self.out(features.float())
            if self.mapping is None:
                return logits
            return (logits * self.mapping(c=c)).sum(dim=1, keepdim=True) / math.sqrt(self.num_features)

    def forward(self, x: Tensor, c: Tensor | None = None, *, force_fp32: bool = False) -> Tensor:
        return self.logits(self.features(x, force_fp32=force_fp32), c)

    def identity_head(self, identities: int) -> "IdentityClassifier":
        """A new identity classifier (B, num_features) -> (B, identities) for this trunk."""
        return IdentityClassifier(self.num_features, identities)


class IdentityClassifier(nn.Module):
    """Identity logits (B, identities) from the discriminator's trunk features (B, features), as Wen et al. share it."""

    def __init__(self, features: int, identities: int) -> None:
        super().__init__()
        self.out = EqualLinear(features, identities)

    def forward(self, features: Tensor) -> Tensor:
        return self.out(features)
