"""StyleGAN, the baseline of paper 2's table 2: AdaIN styles, noise, and resolutions that join one after another.

Source: Karras et al., "A Style-Based Generator Architecture for Generative Adversarial Networks" (2019), and
"Progressive Growing of GANs" (2018) for growth and discriminator. Mapping, style mixing, equalised layers and
resampling are StyleGAN2's code. Growth starts at 8 px.
"""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from common.errors import UserError
from common.layers import AdaIN, EqualConv2d, EqualLinear, MinibatchStdDev, leaky_relu_, upsample
from voice2face.networks.growth import Growing, blend, enlarge, reduce
from voice2face.networks.mapping import MappedGenerator, MappingNetwork
from voice2face.networks.stylegan2_discriminator import IdentityClassifier
from voice2face.networks.stylegan2_generator import NoiseMode, channels_at, check_resolution, working_memory


def growing_sizes(resolution: int) -> list[int]:
    """8, 16 ... resolution: the sizes of the stages."""
    return [2**k for k in range(3, check_resolution(resolution) + 1)]


class StyleLayer(nn.Module):
    """Noise scaled per channel, bias, leaky rectifier, AdaIN: (B, C, R, R), (B, w_dim) -> (B, C, R, R)."""

    noise_const: Tensor

    def __init__(self, channels: int, resolution: int, w_dim: int) -> None:
        super().__init__()
        self.noise_strength = nn.Parameter(torch.zeros(channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(channels, 1, 1))
        self.style = AdaIN(channels, w_dim)
        self.register_buffer("noise_const", torch.randn(resolution, resolution))
        self.resolution = resolution

    def forward(self, x: Tensor, w: Tensor, noise: Tensor | None) -> Tensor:
        """`noise` is (B or 1, 1, R, R) of unit variance, or None."""
        x = x + self.bias
        if noise is not None:
            x = x + self.noise_strength * noise
        return self.style(leaky_relu_(x), w)


class StyleBlock(nn.Module):
    """One resolution: two style layers, each after a convolution but for the first, which follows the constant."""

    def __init__(self, in_channels: int, out_channels: int, resolution: int, w_dim: int) -> None:
        super().__init__()
        first = resolution == 4
        self.conv0 = None if first else EqualConv2d(in_channels, out_channels, 3, bias=False)
        self.layer0 = StyleLayer(out_channels, resolution, w_dim)
        self.conv1 = EqualConv2d(out_channels, out_channels, 3, bias=False)
        self.layer1 = StyleLayer(out_channels, resolution, w_dim)

    def forward(self, x: Tensor, ws: Tensor, noise: list[Tensor | None]) -> Tensor:
        """(B, in, R / 2, R / 2), (B, 2, w_dim) and two planes -> (B, out, R, R)."""
        if self.conv0 is not None:
            # Repeated pixels under StyleGAN's [1, 2, 1] are [1, 3, 3, 1]; the filter may as well precede the kernel.
            x = self.conv0(upsample(x))
        x = self.layer0(x, ws[:, 0], noise[0])
        return self.layer1(self.conv1(x), ws[:, 1], noise[1])


class StyleSynthesis(Growing):
    """From W+ (B, num_ws, w_dim) to the image; resolutions above the active one are left out."""

    def __init__(self, resolution: int, *, w_dim: int, channel_base: int, channel_max: int) -> None:
        super().__init__(growing_sizes(resolution))
        self.resolution, self.w_dim = resolution, w_dim
        widths = {size: channels_at(size, channel_base, channel_max) for size in (4, *self.sizes)}
        self.const = nn.Parameter(torch.randn(widths[4], 4, 4))
        self.blocks = nn.ModuleList([StyleBlock(0, widths[4], 4, w_dim)])
        self.blocks.extend(StyleBlock(widths[size // 2], widths[size], size, w_dim) for size in self.sizes)
        self.to_rgb = nn.ModuleList(EqualConv2d(widths[size], 3, 1) for size in self.sizes)
        self.num_ws = 2 * len(self.blocks)

    def _layers(self) -> list[StyleLayer]:
        return [module for module in self.modules() if isinstance(module, StyleLayer)]

    def noise_shapes(self) -> list[int]:
        """Height (= width) of each noise plane, in the order in which `forward` takes them."""
        return [layer.resolution for layer in self._layers()]

    def forward(
        self,
        ws: Tensor,
        *,
        noise: list[Tensor] | None = None,
        noise_mode: NoiseMode = "random",
        force_fp32: bool = False,
    ) -> Tensor:
        """Image (B, 3, R, R), about [-1, 1] after training, enlarged from the active resolution.

        `noise` gives every plane; otherwise `noise_mode` draws them ("random"), takes the stored ones ("const") or
        none ("none"). Always float32, so `force_fp32` changes nothing. Raises UserError for other shapes and modes.
        """
        if ws.ndim != 3 or ws.shape[1:] != (self.num_ws, self.w_dim):
            raise UserError(
                f"this generator wants w+ of shape (batch, {self.num_ws}, {self.w_dim}), got {tuple(ws.shape)}"
            )
        planes = self._planes(len(ws), noise, noise_mode)
        with torch.autocast(ws.device.type, enabled=False):
            ws = ws.float()
            x = self.const[None].expand(len(ws), -1, -1, -1)
            x = x.contiguous(memory_format=working_memory(x))
            features = []
            for i, block in enumerate(self.blocks[: self.growth.active + 1]):
                x = block(x, ws[:, 2 * i : 2 * i + 2], planes[2 * i : 2 * i + 2])
                features.append(x)
            heads = list(zip(self.to_rgb, features[1:], strict=False))
            images = blend([head(x) for head, x in heads[-2:]], self.growth.fade)
            return enlarge(images[-1], self.resolution)

    def _planes(self, batch: int, noise: list[Tensor] | None, mode: NoiseMode) -> list[Tensor | None]:
        shapes = self.noise_shapes()
        if noise is not None:
            if [plane.shape[-1] for plane in noise] != shapes:
                raise UserError(f"noise planes have sizes {[p.shape[-1] for p in noise]}, wanted {shapes}")
            return list(noise)
        if mode == "random":
            return [torch.randn(batch, 1, r, r, device=self.const.device) for r in shapes]
        if mode == "const":
            return [layer.noise_const for layer in self._layers()]
        if mode == "none":
            return [None] * len(shapes)
        raise UserError(f"noise_mode {mode!r} is not one of random, const, none")


class StyleGANGenerator(MappedGenerator):
    """Latent or voice embedding (B, z_dim) to image (B, 3, R, R). Arguments are those of `StyleGAN2Generator`."""

    def __init__(
        self,
        resolution: int = 64,
        *,
        z_dim: int = 512,
        w_dim: int = 512,
        mapping_layers: int = 8,
        channel_base: int = 16384,
        channel_max: int = 512,
    ) -> None:
        super().__init__()
        shared: dict[str, Any] = {"w_dim": w_dim, "channel_base": channel_base, "channel_max": channel_max}
        self.config = {"resolution": resolution, "z_dim": z_dim, "mapping_layers": mapping_layers} | shared
        self.synthesis = StyleSynthesis(resolution, **shared)
        self.num_ws = self.synthesis.num_ws
        self.mapping = MappingNetwork(z_dim=z_dim, w_dim=w_dim, num_ws=self.num_ws, num_layers=mapping_layers)


class StyleGANDiscriminator(Growing):
    """Full-sized image (B, 3, R, R) to realness logits (B, 1): reduced to the active resolution, judged from there.

    Two convolutions a resolution without residual connections, the minibatch deviation at 4 px. While a resolution
    fades in, its block's output is mixed with the reduced image's own projection.
    """

    def __init__(
        self, resolution: int = 64, *, channel_base: int = 16384, channel_max: int = 512, stddev_group: int = 4
    ) -> None:
        super().__init__(growing_sizes(resolution))
        self.config = {
            "resolution": resolution,
            "channel_base": channel_base,
            "channel_max": channel_max,
            "stddev_group": stddev_group,
        }
        self.resolution = resolution
        widths = [channels_at(size, channel_base, channel_max) for size in (4, *self.sizes)]
        self.num_features = widths[0]
        self.from_rgb = nn.ModuleList(EqualConv2d(3, width, 1, activation="lrelu") for width in widths[1:])
        self.blocks = nn.ModuleList(
            nn.Sequential(
                EqualConv2d(outer, outer, 3, activation="lrelu"),
                EqualConv2d(outer, inner, 3, activation="lrelu", down=True),
            )
            for inner, outer in pairwise(widths)
        )
        self.stddev = MinibatchStdDev(stddev_group)
        self.conv = EqualConv2d(self.num_features + 1, self.num_features, 3, activation="lrelu")
        self.fc = EqualLinear(self.num_features * 16, self.num_features, activation="lrelu")
        self.out = EqualLinear(self.num_features, 1)

    def features(self, x: Tensor, *, force_fp32: bool = False) -> Tensor:
        """Image (B, 3, R, R) in [-1, 1] -> trunk features (B, num_features). Always float32, as the generator.

        Raises UserError for images of another size.
        """
        if x.shape[1:] != (3, self.resolution, self.resolution):
            raise UserError(
                f"the discriminator wants images (3, {self.resolution}, {self.resolution}), got {tuple(x.shape[1:])}; "
                "check data.image_size against the network's resolution"
            )
        top = self.growth.active - 1
        with torch.autocast(x.device.type, enabled=False):
            image = reduce(x.float(), self.sizes[top])
            image = image.contiguous(memory_format=working_memory(image))
            h = self.blocks[top](self.from_rgb[top](image))
            if top > 0 and self.growth.fade < 1:
                before = self.from_rgb[top - 1](reduce(image, self.sizes[top - 1]))
                h = before.lerp(h, self.growth.fade)
            for block in reversed(list(self.blocks)[:top]):
                h = block(h)
            return self.fc(self.conv(self.stddev(h)).flatten(1))

    def logits(self, features: Tensor) -> Tensor:
        """Trunk features (B, num_features) -> (B, 1)."""
        with torch.autocast(features.device.type, enabled=False):
            return self.out(features.float())

    def forward(self, x: Tensor, *, force_fp32: bool = False) -> Tensor:
        return self.logits(self.features(x, force_fp32=force_fp32))

    def identity_head(self, identities: int) -> IdentityClassifier:
        """A new identity classifier (B, num_features) -> (B, identities) for this trunk."""
        return IdentityClassifier(self.num_features, identities)
