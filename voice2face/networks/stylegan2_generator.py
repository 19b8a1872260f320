"""StyleGAN2's generator: mapping network, modulated convolutions, skip connections to RGB.

Source: Karras et al., "Analyzing and Improving the Image Quality of StyleGAN" (2020), and the conditional and
half-precision variants of "Training Generative Adversarial Networks with Limited Data" (2020). Structure and parameter
counts equal theirs, so their weights load (`voice2face.weights_io`).
"""

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.convolution import Geometry, convolve
from common.errors import UserError
from common.layers import LEAKY_GAIN, Blur, EqualLinear, convolve_same, leaky_relu_, pad_even, upsample
from voice2face.networks.mapping import MappingNetwork

NoiseMode = Literal["random", "const", "none"]
HalfType = Literal["bf16", "fp16"]
HALF_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
DOUBLING = Geometry(stride=2, transposed=True)
CONV_CLAMP = 256.0  # bound of activations in networks with half-precision blocks


def check_resolution(resolution: int) -> int:
    """log2 of the resolution; UserError unless it is a power of two in 32..1024."""
    power = resolution.bit_length() - 1
    if resolution != 2**power or not 32 <= resolution <= 1024:
        raise UserError(f"resolution {resolution} is not a power of two from 32 to 1024; choose 64, 128, 256 …")
    return power


def channels_at(resolution: int, base: int, maximum: int) -> int:
    """min(base / resolution, maximum) feature maps; base 32768 is config-f, 16384 the light one for 256 px."""
    return max(1, min(base // resolution, maximum))


def kernel_at(resolution: int, low_res_kernel: int) -> int:
    """Kernel size of a block: 3, or `low_res_kernel` (3, 4 or 5) in the 4 and 8 px blocks."""
    if low_res_kernel not in (3, 4, 5):
        raise UserError(f"low_res_kernel {low_res_kernel} is not 3, 4 or 5")
    return low_res_kernel if resolution <= 8 else 3


@dataclass(frozen=True)
class SizePlan:
    """What generator and discriminator have in common: sizes, widths, precision. Fields are plain values.

    Raises UserError for a resolution or kernel that does not exist.
    """

    resolution: int = 64
    """R, a power of two from 32 to 1024"""
    image_channels: int = 3
    channel_base: int = 32768
    """min(channel_base / size, channel_max) feature maps at each size"""
    channel_max: int = 512
    num_fp16_res: int = 0
    """top resolutions that compute in `half_type`"""
    half_type: HalfType = "bf16"
    conv_clamp: float | None = None
    """bound of activations; 256 where some resolutions are in half precision, none otherwise, unless given"""
    low_res_kernel: int = 3
    """kernel of the 4 and 8 px blocks: 3, 4 or 5"""

    def __post_init__(self) -> None:
        check_resolution(self.resolution)
        kernel_at(4, self.low_res_kernel)
        if self.conv_clamp is None and self.num_fp16_res > 0:
            object.__setattr__(self, "conv_clamp", CONV_CLAMP)

    @property
    def sizes(self) -> list[int]:
        """4, 8 ... R."""
        return [2**k for k in range(2, self.resolution.bit_length())]

    def width(self, size: int) -> int:
        """Feature maps at a size."""
        return channels_at(size, self.channel_base, self.channel_max)

    def kernel(self, size: int) -> int:
        """Kernel of the block at a size."""
        return kernel_at(size, self.low_res_kernel)

    def dtype(self, size: int) -> torch.dtype:
        """What the block at a size computes in."""
        return HALF_TYPES[self.half_type] if size << self.num_fp16_res > self.resolution else torch.float32


def working_memory(x: Tensor) -> torch.memory_format:
    """Channels-last where it is the faster layout: on CPU, and on CUDA in half precision."""
    fast = x.device.type == "cpu" or x.dtype in HALF_TYPES.values()
    return torch.channels_last if fast else torch.contiguous_format


class ModulatedConv2d(nn.Module):
    """Convolution whose input channels are scaled by a style and whose outputs are normalised to unit deviation.

    Unfused, it scales the activations before and after one shared convolution: cheap to train, as the weights are
    not copied per sample. Fused, it builds one kernel per sample and convolves in groups.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, w_dim: int, *, up: bool = False, demodulate: bool = True
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel, kernel))
        self.affine = EqualLinear(w_dim, in_channels, bias_init=1.0)
        self.fan_gain = 1 / math.sqrt(in_channels * kernel**2)
        self.demodulate = demodulate
        self.blur = Blur(((5 - kernel) // 2, (6 - kernel) // 2), gain=4.0) if up else None

    def forward(self, x: Tensor, w: Tensor, *, gain: float = 1.0, fused: bool = False) -> tuple[Tensor, Tensor | None]:
        """(B, in, H, W), (B, w_dim) -> features (B, out, H', W') and the factor (B, out, 1, 1) still to apply.

        The factor (None when there is none) includes `gain`; returning it lets the caller multiply and add its noise
        in one pass. Demodulation cancels any scale of weights and styles, so half precision normalises both first.
        """
        style: Tensor = self.affine(w)
        weight: Tensor = self.weight
        if not self.demodulate:
            style = style * (self.fan_gain * gain)
        elif x.dtype != torch.float32:
            weight = weight * (self.fan_gain / weight.abs().amax(dim=(1, 2, 3), keepdim=True))
            style = style / style.abs().amax(dim=1, keepdim=True)
        factor = None
        if self.demodulate:
            energy = style.square() @ weight.square().sum(dim=(2, 3)).t()
            factor = (energy + 1e-8).rsqrt() * gain
        if fused:
            return self._grouped(x, weight, style, factor), None
        y = self._convolve(x * style[:, :, None, None].to(x.dtype), weight.to(x.dtype))
        return y, None if factor is None else factor[:, :, None, None].to(x.dtype)

    def _convolve(self, x: Tensor, weight: Tensor) -> Tensor:
        if self.blur is None:
            return convolve_same(x, weight)
        return self.blur(convolve(x, weight.transpose(0, 1), geometry=DOUBLING))

    def _grouped(self, x: Tensor, weight: Tensor, style: Tensor, factor: Tensor | None) -> Tensor:
        batch, _, height, width = x.shape
        kernels = weight * style[:, None, :, None, None]
        if factor is not None:
            kernels = kernels * factor[:, :, None, None, None]
        kernels = kernels.to(x.dtype)
        grouped = x.reshape(1, -1, height, width)
        # PyTorch's own operators: these kernels carry the style's gradient, which `input_gradients_only` would drop.
        if self.blur is None:
            grouped = pad_even(grouped, kernels.shape[-1])
            y = F.conv2d(grouped, kernels.flatten(0, 1), padding=(kernels.shape[-1] - 1) // 2, groups=batch)
        else:
            y = F.conv_transpose2d(grouped, kernels.transpose(1, 2).flatten(0, 1), stride=2, groups=batch)
        y = y.reshape(batch, -1, *y.shape[2:])
        return y if self.blur is None else self.blur(y)


class StyledConv(nn.Module):
    """Modulated convolution, scaled noise, bias and leaky rectifier: (B, in, H, W) -> (B, out, R, R)."""

    noise_const: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        w_dim: int,
        resolution: int,
        *,
        up: bool,
        clamp: float | None,
    ) -> None:
        super().__init__()
        self.conv = ModulatedConv2d(in_channels, out_channels, kernel, w_dim, up=up)
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.noise_strength = nn.Parameter(torch.zeros(()))
        self.register_buffer("noise_const", torch.randn(resolution, resolution))
        self.resolution, self.clamp = resolution, clamp

    def forward(self, x: Tensor, w: Tensor, noise: Tensor | None, *, fused: bool) -> Tensor:
        """`noise` is (B or 1, 1, R, R) of unit variance, or None."""
        y, factor = self.conv(x, w, gain=LEAKY_GAIN, fused=fused)
        added = (self.bias * LEAKY_GAIN).to(y.dtype)[:, None, None]
        if noise is not None:
            scaled = (noise * (self.noise_strength * LEAKY_GAIN)).to(y.dtype)
            y = y + scaled if factor is None else torch.addcmul(scaled, y, factor)
            y = y.add_(added)
        else:
            y = y + added if factor is None else torch.addcmul(added, y, factor)
        return leaky_relu_(y, self.clamp)


class ToRGB(nn.Module):
    """1x1 modulated convolution to the image, without demodulation: (B, in, H, W) -> (B, image, H, W) float32."""

    def __init__(self, in_channels: int, image_channels: int, w_dim: int, *, clamp: float | None) -> None:
        super().__init__()
        self.conv = ModulatedConv2d(in_channels, image_channels, 1, w_dim, demodulate=False)
        self.bias = nn.Parameter(torch.zeros(image_channels))
        self.clamp = clamp

    def forward(self, x: Tensor, w: Tensor, *, fused: bool) -> Tensor:
        y, _ = self.conv(x, w, fused=fused)
        y = y + self.bias.to(y.dtype)[:, None, None]
        return (y if self.clamp is None else y.clamp(-self.clamp, self.clamp)).float()


class SynthesisBlock(nn.Module):
    """One resolution: two styled convolutions (one at 4 px, on the learned constant) and the RGB head."""

    def __init__(self, plan: SizePlan, resolution: int, w_dim: int) -> None:
        super().__init__()
        self.dtype = plan.dtype(resolution)
        self.resolution = resolution
        first, outer = resolution == 4, plan.width(resolution)
        self.const = nn.Parameter(torch.randn(outer, 4, 4)) if first else None

        def styled(inner: int, up: bool) -> StyledConv:
            return StyledConv(inner, outer, plan.kernel(resolution), w_dim, resolution, up=up, clamp=plan.conv_clamp)

        self.conv0 = None if first else styled(plan.width(resolution // 2), up=True)
        self.conv1 = styled(outer, up=False)
        self.to_rgb = ToRGB(outer, plan.image_channels, w_dim, clamp=plan.conv_clamp)

    def forward(
        self, x: Tensor | None, image: Tensor | None, ws: Tensor, noise: list[Tensor | None], *, fused: bool, full: bool
    ) -> tuple[Tensor, Tensor]:
        """`ws` (B, n + 1, w_dim) and `noise` (n) for the block's n convolutions; `full` forces float32."""
        dtype = torch.float32 if full else self.dtype
        styles = list(ws.unbind(dim=1))
        if self.const is not None:
            x = self.const.to(dtype)[None].expand(len(ws), -1, -1, -1)
        assert x is not None
        x = x.to(dtype)
        x = x.contiguous(memory_format=working_memory(x))
        if self.conv0 is not None:
            x = self.conv0(x, styles[0], noise[0], fused=fused)
        x = self.conv1(x, styles[-2], noise[-1], fused=fused)
        rgb = self.to_rgb(x, styles[-1], fused=fused)
        return x, rgb if image is None else upsample(image) + rgb


class SynthesisNetwork(nn.Module):
    """From W+ to the image, doubling from 4 px; each block's RGB is added to the upsampled sum of those before it."""

    def __init__(self, plan: SizePlan, w_dim: int) -> None:
        super().__init__()
        self.resolution, self.w_dim = plan.resolution, w_dim
        self.num_ws = 2 * len(plan.sizes)
        self.blocks = nn.ModuleList(SynthesisBlock(plan, size, w_dim) for size in plan.sizes)

    def noise_shapes(self) -> list[int]:
        """Height (= width) of each noise plane, in the order in which `forward` takes them."""
        return [layer.resolution for layer in self._styled_convs()]

    def _styled_convs(self) -> list[StyledConv]:
        return [module for module in self.modules() if isinstance(module, StyledConv)]

    def make_noise(self, batch: int, generator: torch.Generator | None = None) -> list[Tensor]:
        """Unit Gaussian noise planes (batch, 1, r, r), drawn on the generator's device, on this network's device."""
        device = self._styled_convs()[0].noise_const.device
        source = device if generator is None else generator.device
        return [torch.randn(batch, 1, r, r, generator=generator, device=source).to(device) for r in self.noise_shapes()]

    def forward(
        self,
        ws: Tensor,
        *,
        noise_mode: NoiseMode = "random",
        noise: list[Tensor] | None = None,
        generator: torch.Generator | None = None,
        fused: bool | None = None,
        force_fp32: bool = False,
    ) -> Tensor:
        """(B, num_ws, w_dim) -> float32 image (B, 3, R, R), about [-1, 1] after training.

        `noise` gives every plane (see `noise_shapes`); otherwise `noise_mode` draws them ("random", from
        `generator`), takes the stored ones ("const") or leaves noise out ("none"). `fused` None means: fused
        modulation in eval mode on CUDA; on CPU grouped convolutions take twice the time of unfused ones. Precision is
        the network's own (`num_fp16_res`): autocast is off inside, and `force_fp32` overrides it for gradient
        penalties. Raises UserError for another number of vectors or planes.
        """
        if ws.ndim != 3 or ws.shape[1:] != (self.num_ws, self.w_dim):
            raise UserError(
                f"a {self.resolution} px generator wants w+ of shape (batch, {self.num_ws}, {self.w_dim}), got "
                f"{tuple(ws.shape)}"
            )
        planes = self._planes(len(ws), noise_mode, noise, generator)
        fused = (ws.is_cuda and not self.training) if fused is None else fused
        x, image, start = None, None, 0
        with torch.autocast(ws.device.type, enabled=False):
            for block in self.blocks:
                n = 1 if start == 0 else 2
                styles = ws[:, start : start + n + 1].float()
                # Neighbouring blocks share the style of a block's RGB head with the next block's first convolution.
                x, image = block(x, image, styles, planes[start : start + n], fused=fused, full=force_fp32)
                start += n
        assert image is not None
        return image

    def _planes(
        self, batch: int, mode: NoiseMode, noise: list[Tensor] | None, generator: torch.Generator | None
    ) -> list[Tensor | None]:
        shapes = self.noise_shapes()
        if noise is not None:
            if [plane.shape[-1] for plane in noise] != shapes:
                raise UserError(f"noise planes have sizes {[p.shape[-1] for p in noise]}, wanted {shapes}")
            return list(noise)
        if mode == "random":
            return list(self.make_noise(batch, generator))
        if mode == "const":
            return [layer.noise_const for layer in self._styled_convs()]
        if mode == "none":
            return [None] * len(shapes)
        raise UserError(f"noise_mode {mode!r} is not one of random, const, none")


class StyleGAN2Generator(nn.Module):
    """Latent or voice embedding (B, z_dim) to image (B, 3, R, R).

    A voice embedding takes the place of z by default (z_dim is its width); `c_dim` > 0 instead concatenates a
    condition to z. `sizes` are the fields of `SizePlan`. `config` holds the arguments, as plain values.
    """

    def __init__(
        self,
        resolution: int = 64,
        *,
        z_dim: int = 512,
        c_dim: int = 0,
        w_dim: int = 512,
        mapping_layers: int = 8,
        **sizes: Any,
    ) -> None:
        super().__init__()
        plan = SizePlan(resolution, **sizes)
        own = {"z_dim": z_dim, "c_dim": c_dim, "w_dim": w_dim, "mapping_layers": mapping_layers}
        self.config: dict[str, Any] = own | asdict(plan)
        self.synthesis = SynthesisNetwork(plan, w_dim)
        self.num_ws = self.synthesis.num_ws
        self.mapping = MappingNetwork(
            z_dim=z_dim, c_dim=c_dim, w_dim=w_dim, num_ws=self.num_ws, num_layers=mapping_layers
        )

    def forward(
        self,
        z: Tensor,
        c: Tensor | None = None,
        *,
        truncation: float = 1.0,
        truncation_cutoff: int | None = None,
        noise_mode: NoiseMode = "random",
        noise: list[Tensor] | None = None,
        generator: torch.Generator | None = None,
        fused: bool | None = None,
        force_fp32: bool = False,
    ) -> Tensor:
        """Mapping, truncation and synthesis; see `MappingNetwork.forward` and `SynthesisNetwork.forward`."""
        ws = self.mapping(z, c, truncation=truncation, truncation_cutoff=truncation_cutoff)
        return self.synthesis(
            ws, noise_mode=noise_mode, noise=noise, generator=generator, fused=fused, force_fp32=force_fp32
        )
