"""Blocks that more than one network has: equalised rates and anti-aliased resampling as in StyleGAN2, modulated norms.

Sources: Karras et al., "Progressive Growing of GANs" (equalised rates, minibatch deviation), "Analyzing and Improving
the Image Quality of StyleGAN" (FIR resampling with [1, 3, 3, 1]). Everything is plain PyTorch that differentiates
twice, so gradient penalties work on every device.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.convolution import Geometry, convolve

LEAKY_SLOPE = 0.2
LEAKY_GAIN = math.sqrt(2)  # keeps the variance of a unit Gaussian through the leaky rectifier
Activation = Literal["lrelu", "linear"]


def leaky_relu_(x: Tensor, clamp: float | None = None) -> Tensor:
    """Leaky rectifier with slope .2, in place; then a clamp to [-clamp, clamp].

    It is positively homogeneous, so callers fold the gain sqrt(2) into the weights and biases before it.
    """
    x = F.leaky_relu_(x, LEAKY_SLOPE)
    return x if clamp is None else x.clamp(-clamp, clamp)


def normalise_second_moment(x: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    """x / sqrt(mean(x^2) + eps) over `dim`."""
    return x * (x.square().mean(dim=dim, keepdim=True) + eps).rsqrt()


class PixelNorm(nn.Module):
    """Feature vector normalisation over the channels: (B, C, ...) -> (B, C, ...) with unit mean square."""

    def forward(self, x: Tensor) -> Tensor:
        return normalise_second_moment(x)


class EqualLinear(nn.Module):
    """Linear layer whose weights are stored with unit variance over `lr_mul` and scaled at run time.

    (..., in_features) -> (..., out_features). `lr_mul` slows the layer's learning; `bias_init` is the value that the
    bias has at run time.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool = True,
        lr_mul: float = 1.0,
        activation: Activation = "linear",
        bias_init: float = 0.0,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_features, in_features) / lr_mul)
        self.bias = nn.Parameter(torch.full((out_features,), bias_init / lr_mul)) if bias else None
        self.activation = activation
        gain = LEAKY_GAIN if activation == "lrelu" else 1.0
        self.weight_gain = gain * lr_mul / math.sqrt(in_features)
        self.bias_gain = gain * lr_mul

    def forward(self, x: Tensor) -> Tensor:
        weight = (self.weight * self.weight_gain).to(x.dtype)
        bias = None if self.bias is None else (self.bias * self.bias_gain).to(x.dtype)
        x = F.linear(x, weight, bias)
        return leaky_relu_(x) if self.activation == "lrelu" else x


class AdaIN(nn.Module):
    """Adaptive instance normalisation: gamma(w) * (x - mean) / deviation + beta(w), per sample and channel.

    (B, channels, H, W) and (B, w_dim) -> (B, channels, H, W). Mean and deviation are over H and W; gamma and beta are
    one equalised linear layer of w that begins near gamma = 1, beta = 0 (Huang and Belongie, 2017; Karras et al.,
    2019, eq. 1). Statistics are taken in float32.
    """

    def __init__(self, channels: int, w_dim: int, *, eps: float = 1e-5) -> None:
        super().__init__()
        self.affine = EqualLinear(w_dim, 2 * channels)
        assert self.affine.bias is not None
        nn.init.ones_(self.affine.bias[:channels])
        self.eps = eps

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        gamma, beta = self.affine(w).float()[:, :, None, None].chunk(2, dim=1)
        variance, mean = torch.var_mean(x.float(), dim=(2, 3), correction=0, keepdim=True)
        scale = gamma * (variance + self.eps).rsqrt()
        # Folded into one multiplication and one addition over the planes.
        return torch.addcmul((beta - mean * scale).to(x.dtype), x, scale.to(x.dtype))


class SPADE(nn.Module):
    """Instance norm whose scale and shift are drawn from a condition map (Park et al., 2019).

    norm(x) * (1 + gamma(c)) + beta(c), where gamma and beta are 3x3 convolutions of a 3x3 convolution with ReLU of the
    condition, which is averaged down (or repeated up) to the size of x. The norm has no parameters of its own, and is
    per sample, so that small batches do.

    Args:
        channels: of x.
        condition_channels: of the condition.
        hidden: width between the two convolutions.

    Shape: (B, channels, H, W) and (B, condition_channels, H', W') -> (B, channels, H, W).
    """

    def __init__(self, channels: int, condition_channels: int, *, hidden: int = 128) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm2d(channels)
        self.shared = nn.Conv2d(condition_channels, hidden, 3, padding=1)
        self.modulation = nn.Conv2d(hidden, 2 * channels, 3, padding=1)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        condition = F.adaptive_avg_pool2d(condition, (x.shape[2], x.shape[3]))
        gamma, beta = self.modulation(self.shared(condition).relu()).chunk(2, dim=1)
        return torch.addcmul(beta, self.norm(x).to(beta.dtype), 1 + gamma)


class Blur(nn.Module):
    """Low-pass [1, 3, 3, 1] x [1, 3, 3, 1] / 64, times `gain`, over zero-padded planes; keeps each `stride`-th sample.

    (B, C, H, W) -> (B, C, (H + before + after - 3) // stride, ...) with `padding` = (before, after) on both axes.
    A depthwise convolution: on CPU it is the fastest of the exact forms in channels-last memory, and its derivative
    is one as well.
    """

    kernel: Tensor

    def __init__(self, padding: tuple[int, int], *, stride: int = 1, gain: float = 1.0) -> None:
        super().__init__()
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
        self.register_buffer("kernel", torch.outer(taps, taps) * gain, persistent=False)
        self.padding, self.stride = padding, stride

    def forward(self, x: Tensor) -> Tensor:
        before, after = self.padding
        channels = x.shape[1]
        kernel = self.kernel.to(x.dtype).expand(channels, 1, -1, -1)
        if before != after:
            x = F.pad(x, (0, after - before, 0, after - before))
        return convolve(x, kernel, geometry=Geometry(self.stride, before, channels))


def upsample(image: Tensor) -> Tensor:
    """Double height and width with zero insertion and the [1, 3, 3, 1] filter of gain 4 over zero-padded planes.

    (B, C, H, W) -> (B, C, 2H, 2W). In the interior this filter is bilinear interpolation; one ring of zeros makes
    the borders equal as well.
    """
    doubled = F.interpolate(F.pad(image, (1, 1, 1, 1)), scale_factor=2, mode="bilinear", align_corners=False)
    return doubled[:, :, 2:-2, 2:-2]


class EqualConv2d(nn.Module):
    """Convolution with equalised rate, optional bias, leaky rectifier and anti-aliased halving.

    (B, in, H, W) -> (B, out, H, W), or (B, out, H/2, W/2) with `down` (H and W even). `gain` scales the output, and
    `clamp` (before that gain) bounds it, which keeps float16 finite. Weights are cast to the input's type.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        *,
        bias: bool = True,
        activation: Activation = "linear",
        down: bool = False,
        gain: float = 1.0,
        clamp: float | None = None,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        self.activation = activation
        self.clamp = None if clamp is None else clamp * gain
        gain *= LEAKY_GAIN if activation == "lrelu" else 1.0
        self.weight_gain = gain / math.sqrt(in_channels * kernel**2)
        self.bias_gain = gain
        self.kernel, self.down = kernel, down
        before, after = (kernel + 1) // 2, kernel // 2 + 1
        # A 1x1 convolution commutes with dropping samples, so the blur drops them first.
        self.blur = Blur((before, after), stride=2 if kernel == 1 else 1) if down else None

    def forward(self, x: Tensor) -> Tensor:
        weight = (self.weight * self.weight_gain).to(x.dtype)
        bias = None if self.bias is None else (self.bias * self.bias_gain).to(x.dtype)
        if self.blur is not None:
            stride = 1 if self.kernel == 1 else 2
            x = convolve(self.blur(x), weight, bias, geometry=Geometry(stride))
        else:
            x = convolve_same(x, weight, bias)
        if self.activation == "lrelu":
            return leaky_relu_(x, self.clamp)
        return x if self.clamp is None else x.clamp(-self.clamp, self.clamp)


def pad_even(x: Tensor, kernel: int) -> Tensor:
    """One row and column of zeros at the end where the kernel is even, so that its output can keep the size."""
    return F.pad(x, (0, 1, 0, 1)) if kernel % 2 == 0 else x


def convolve_same(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolution that keeps height and width; an even kernel looks one sample further right and down."""
    kernel = weight.shape[-1]
    return convolve(pad_even(x, kernel), weight, bias, geometry=Geometry(padding=(kernel - 1) // 2))


class MinibatchStdDev(nn.Module):
    """Append the mean deviation over a group of samples as `channels` constant planes.

    (B, C, H, W) -> (B, C + channels, H, W), for any B. The group is the largest divisor of B that is at most
    `group_size`; where that would be 1 (a prime batch, say) it is the smallest divisor above it, so that only a batch
    of one has no deviation. Members of a group are B / group apart, as in NVIDIA's code. Computed in float32.
    """

    def __init__(self, group_size: int = 4, channels: int = 1) -> None:
        super().__init__()
        self.group_size, self.channels = group_size, channels

    def group(self, batch: int) -> int:
        """Samples per group for a batch of `batch`."""
        divisors = [n for n in range(2, batch + 1) if batch % n == 0]
        fitting = [n for n in divisors if n <= self.group_size]
        return fitting[-1] if fitting else (divisors or [1])[0]

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        group = self.group(batch)
        y = x.float().reshape(group, -1, self.channels, channels // self.channels, height, width)
        deviation = (y.var(dim=0, correction=0) + 1e-8).sqrt()
        planes = deviation.mean(dim=(2, 3, 4)).repeat(group, 1).to(x.dtype)
        return torch.cat([x, planes[:, :, None, None].expand(-1, -1, height, width)], dim=1)
