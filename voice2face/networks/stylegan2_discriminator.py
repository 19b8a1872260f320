"""StyleGAN2's residual discriminator, with its trunk open to a second head.

Source: Karras et al. (2020); conditional projection as in "Training Generative Adversarial Networks with Limited Data".
"""

import math
from dataclasses import asdict
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from common.errors import UserError
from common.layers import EqualConv2d, EqualLinear, MinibatchStdDev
from voice2face.networks.mapping import MappingNetwork
from voice2face.networks.stylegan2_generator import SizePlan, working_memory


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
    `IdentityClassifier` shares. `sizes` are the fields of `SizePlan`; `config` holds the arguments, as plain values.
    """

    def __init__(
        self,
        resolution: int = 64,
        *,
        c_dim: int = 0,
        mapping_layers: int = 8,
        stddev_group: int = 4,
        stddev_channels: int = 1,
        **sizes: Any,
    ) -> None:
        super().__init__()
        plan = SizePlan(resolution, **sizes)
        own = {"c_dim": c_dim, "mapping_layers": mapping_layers, "stddev_group": stddev_group}
        self.config: dict[str, Any] = own | {"stddev_channels": stddev_channels} | asdict(plan)
        self.resolution, self.image_channels, self.c_dim = resolution, plan.image_channels, c_dim
        self.num_features = last = plan.width(4)
        falling, clamp = plan.sizes[::-1], plan.conv_clamp
        self.from_rgb = EqualConv2d(plan.image_channels, plan.width(resolution), 1, activation="lrelu", clamp=clamp)
        self.blocks = nn.ModuleList(
            DiscriminatorBlock(plan.width(size), plan.width(half), kernel=plan.kernel(size), clamp=clamp)
            for size, half in pairwise(falling)
        )
        self.block_types = [plan.dtype(size) for size in falling[:-1]]
        self.stddev = MinibatchStdDev(stddev_group, stddev_channels)
        self.conv = EqualConv2d(last + stddev_channels, last, plan.kernel(4), activation="lrelu", clamp=clamp)
        self.fc = EqualLinear(last * 16, last, activation="lrelu")
        self.out = EqualLinear(last, last if c_dim else 1)
        self.mapping = MappingNetwork(z_dim=0, c_dim=c_dim, w_dim=last, num_layers=mapping_layers) if c_dim else None

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
