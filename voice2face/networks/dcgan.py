"""DCGAN, the first baseline of paper 2's table 2: the networks of Wen et al., or with Radford et al.'s traits.

Source: Wen et al., "Reconstructing faces from voices" (2019), whose generator has neither normalisation nor a bounded
output; Radford et al., "Unsupervised representation learning with deep convolutional GANs" (2016), for the variant
with both. Sizes other than 64 px go on with the same doubling of sizes and halving of channels.
"""

from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn

from common.errors import UserError
from voice2face.networks.mapping import MappedGenerator
from voice2face.networks.stylegan2_generator import NoiseMode, channels_at, check_resolution

Variant = Literal["wen", "vanilla"]
VANILLA_DEVIATION = 0.02  # of the initial weights (Radford et al., section 4)


def _precision(device: torch.device, force_fp32: bool) -> torch.autocast:
    """The caller's autocast state, or none."""
    return torch.autocast(device.type, enabled=torch.is_autocast_enabled(device.type) and not force_fp32)


def _finish(network: nn.Module, variant: str) -> None:
    """Check the name of the variant and draw the vanilla one's initial weights."""
    if variant not in ("wen", "vanilla"):
        raise UserError(f"unknown DCGAN variant {variant!r}: wen or vanilla")
    if variant == "vanilla":
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.normal_(module.weight, std=VANILLA_DEVIATION)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, mean=1.0, std=VANILLA_DEVIATION)


class IdentityMapping(nn.Module):
    """Takes the place of a mapping network: the latent itself is the one vector of W.

    `w_avg` is the running mean of the latents, the centre of truncation.
    """

    w_avg: Tensor
    num_ws = 1

    def __init__(self, z_dim: int, w_avg_beta: float = 0.995) -> None:
        super().__init__()
        self.z_dim = self.w_dim = z_dim
        self.w_avg_beta = w_avg_beta
        self.register_buffer("w_avg", torch.zeros(z_dim))

    def forward(
        self,
        z: Tensor,
        *,
        truncation: float = 1.0,
        truncation_cutoff: int | None = None,
        update_average: bool = False,
    ) -> Tensor:
        """(B, z_dim) -> (B, 1, z_dim), float32. `truncation` 0 gives the average face, a cutoff of 0 leaves z alone."""
        if z.ndim != 2 or z.shape[1] != self.z_dim:
            raise UserError(
                f"the DCGAN wants a latent of shape (batch, {self.z_dim}), got {tuple(z.shape)}; the generator and "
                "what feeds it were configured differently"
            )
        z = z.float()
        if update_average:
            self.w_avg.lerp_(z.detach().mean(dim=0), 1 - self.w_avg_beta)
        if truncation != 1 and truncation_cutoff != 0:
            z = self.w_avg.lerp(z, truncation)
        return z[:, None]


class DCGANSynthesis(nn.Module):
    """Transposed convolutions from a vector to an image: (B, 1, w_dim) -> (B, 3, R, R)."""

    def __init__(self, resolution: int, *, w_dim: int, channel_base: int, channel_max: int, variant: str) -> None:
        super().__init__()
        self.resolution, self.w_dim, self.num_ws = resolution, w_dim, 1
        vanilla = variant == "vanilla"
        sizes = [2**k for k in range(2, check_resolution(resolution) + 1)]
        widths = [w_dim] + [channels_at(size, channel_base, channel_max) for size in sizes]
        layers: list[nn.Module] = []
        for i, (inner, outer) in enumerate(pairwise(widths)):
            # The first layer spreads the vector over 4 x 4, each further one doubles the size.
            stride, padding = (1, 0) if i == 0 else (2, 1)
            layers.append(nn.ConvTranspose2d(inner, outer, 4, stride, padding, bias=not vanilla))
            layers += [nn.BatchNorm2d(outer), nn.ReLU()] if vanilla else [nn.ReLU()]
        layers.append(nn.ConvTranspose2d(widths[-1], 3, 1))
        self.model = nn.Sequential(*layers, nn.Tanh()) if vanilla else nn.Sequential(*layers)

    def noise_shapes(self) -> list[int]:
        """No noise planes: the variety of portraits comes from the latent."""
        return []

    def forward(
        self,
        ws: Tensor,
        *,
        noise: list[Tensor] | None = None,
        noise_mode: NoiseMode = "random",
        force_fp32: bool = False,
    ) -> Tensor:
        """Float32 images, about [-1, 1] after training; the vanilla variant's lie within. There is no noise to choose.

        `force_fp32` turns autocast off. Raises UserError for ws of another shape, or noise planes.
        """
        if ws.ndim != 3 or ws.shape[1:] != (1, self.w_dim):
            raise UserError(f"the DCGAN wants w+ of shape (batch, 1, {self.w_dim}), got {tuple(ws.shape)}")
        if noise:
            raise UserError(f"{len(noise)} noise planes were given to a generator that takes none")
        with _precision(ws.device, force_fp32):
            return self.model(ws[:, 0, :, None, None]).float()


class DCGANGenerator(MappedGenerator):
    """Voice latent (B, z_dim) to image (B, 3, R, R).

    Args:
        resolution: R, a power of two; 64 in both sources.
        z_dim: width of the latent; 64 in the published weights.
        channel_base, channel_max: min(base / size, max) feature maps at each size: 1024 at 4 px to 64 at 64 px.
        variant: "wen" (biases, no normalisation, unbounded output), or "vanilla" (batch norm, tanh, weights from
            N(0, 0.02)) on the same layers.

    `config` holds the arguments, as plain values.
    """

    def __init__(
        self,
        resolution: int = 64,
        *,
        z_dim: int = 512,
        channel_base: int = 4096,
        channel_max: int = 1024,
        variant: Variant = "wen",
    ) -> None:
        super().__init__()
        shared = {"channel_base": channel_base, "channel_max": channel_max, "variant": variant}
        self.config: dict[str, Any] = {"resolution": resolution, "z_dim": z_dim} | shared
        self.mapping = IdentityMapping(z_dim)
        self.synthesis = DCGANSynthesis(
            resolution, w_dim=z_dim, channel_base=channel_base, channel_max=channel_max, variant=variant
        )
        self.num_ws = 1
        _finish(self, variant)


class DCGANDiscriminator(nn.Module):
    """Image (B, 3, R, R) to realness logits (B, 1), with its trunk open to an identity head.

    A 1x1 convolution, halving 4x4 convolutions to 4 px and one to a single vector; leaky ReLU of slope 0.2 between
    them. Both heads are linear without bias, on the vector as it is.

    Args:
        resolution: R, a power of two; 64 in both sources.
        channel_base, channel_max: min(base / size, max) feature maps at each size: 32 at 64 px to 512 at 4 px.
        num_features: width of the trunk's vector.
        variant: "wen", or "vanilla" (batch norm after the inner convolutions, weights from N(0, 0.02)).

    `config` holds the arguments, as plain values.
    """

    def __init__(
        self,
        resolution: int = 64,
        *,
        channel_base: int = 2048,
        channel_max: int = 512,
        num_features: int = 64,
        variant: Variant = "wen",
    ) -> None:
        super().__init__()
        self.resolution, self.num_features = resolution, num_features
        self.config: dict[str, Any] = {
            "resolution": resolution,
            "channel_base": channel_base,
            "channel_max": channel_max,
            "num_features": num_features,
            "variant": variant,
        }
        vanilla = variant == "vanilla"
        widths = [channels_at(2**k, channel_base, channel_max) for k in range(check_resolution(resolution), 1, -1)]
        layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 1), nn.LeakyReLU(0.2)]
        for inner, outer in pairwise(widths):
            layers.append(nn.Conv2d(inner, outer, 4, 2, 1, bias=not vanilla))
            layers += [nn.BatchNorm2d(outer), nn.LeakyReLU(0.2)] if vanilla else [nn.LeakyReLU(0.2)]
        self.model = nn.Sequential(*layers, nn.Conv2d(widths[-1], num_features, 4))
        self.out = nn.Linear(num_features, 1, bias=False)
        _finish(self, variant)

    def features(self, x: Tensor, *, force_fp32: bool = False) -> Tensor:
        """Image (B, 3, R, R) in [-1, 1] -> trunk features (B, num_features), float32. UserError for other sizes."""
        if x.shape[1:] != (3, self.resolution, self.resolution):
            raise UserError(
                f"the discriminator wants images (3, {self.resolution}, {self.resolution}), got {tuple(x.shape[1:])}; "
                "check data.image_size against the network's resolution"
            )
        with _precision(x.device, force_fp32):
            return self.model(x).flatten(1).float()

    def logits(self, features: Tensor) -> Tensor:
        """Trunk features (B, num_features) -> logits (B, 1)."""
        return self.out(features)

    def forward(self, x: Tensor, *, force_fp32: bool = False) -> Tensor:
        return self.logits(self.features(x, force_fp32=force_fp32))

    def identity_head(self, identities: int) -> nn.Linear:
        """A new identity classifier (B, num_features) -> (B, identities) for this trunk, as Wen et al. have it."""
        return nn.Linear(self.num_features, identities, bias=False)
