"""The convolutional blocks of Wav2Lip's three networks, under the published names, and their form for inference."""

import copy
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

WINDOW = 16
"""Feature frames that the networks hear at once: 0.2 s."""
MEL_ROWS = 80
_LEAK = 0.01

Size = int | tuple[int, int]
Network = TypeVar("Network", bound=nn.Module)


class ConvBlock(nn.Module):
    """Convolution, norm, optional sum with the input, activation; (B, C, H, W) -> (B, C', H', W').

    The convolution and the norm are `conv_block.0` and `conv_block.1`, as in the published files.

    Args:
        conv: a convolution or transposed convolution with bias.
        norm: what follows it, or None.
        residual: add the input before the activation; the convolution must keep the shape.
        slope: of the activation below 0; 0 is ReLU.
    """

    def __init__(self, conv: nn.Module, norm: nn.Module | None, *, residual: bool = False, slope: float = 0.0) -> None:
        super().__init__()
        self.conv_block = nn.Sequential(conv) if norm is None else nn.Sequential(conv, norm)
        self.residual, self.slope = residual, slope

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv_block(x)
        if self.residual:
            y = y + x
        return F.leaky_relu(y, self.slope, inplace=True) if self.slope else torch.relu_(y)


def conv(inputs: int, outputs: int, kernel: Size = 3, stride: Size = 1, padding: int = 1) -> ConvBlock:
    """Convolution, batch norm, ReLU."""
    return ConvBlock(nn.Conv2d(inputs, outputs, kernel, stride, padding), nn.BatchNorm2d(outputs))


def residual(channels: int) -> ConvBlock:
    """3x3 convolution, batch norm, sum with the input, ReLU."""
    return ConvBlock(nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels), residual=True)


def transposed(inputs: int, outputs: int, kernel: int = 3, stride: int = 2, padding: int = 1) -> ConvBlock:
    """Transposed convolution, batch norm, ReLU; with stride 2 it doubles the map."""
    layer = nn.ConvTranspose2d(inputs, outputs, kernel, stride, padding, output_padding=stride - 1)
    return ConvBlock(layer, nn.BatchNorm2d(outputs))


def leaky(inputs: int, outputs: int, kernel: int, stride: Size = 1, padding: int = 0, *, norm: bool) -> ConvBlock:
    """Convolution, instance norm where `norm`, leaky ReLU of 0.01."""
    layer = nn.Conv2d(inputs, outputs, kernel, stride, padding)
    return ConvBlock(layer, nn.InstanceNorm2d(outputs) if norm else None, slope=_LEAK)


def scaled(channels: int, width: float) -> int:
    """`channels` times the width multiplier, at least 1."""
    return max(1, round(channels * width))


def check_shape(size: int, width: float) -> None:
    """Raise ValueError where no network of this image size and width exists."""
    if size < 32 or size % 32:
        raise ValueError(f"faces of {size} px do not halve to whole maps; give a multiple of 32, such as 96")
    if width <= 0:
        raise ValueError(f"width {width} must be positive")


def audio_layers(rows: int, width: float, residuals: Sequence[int]) -> nn.Sequential:
    """Encoder of feature windows (N, 1, rows, 16) -> (N, 512 width, 1, 1).

    `residuals` counts the residual blocks after each of the four strides (32, 64, 128, 256 channels); the generator
    has (2, 2, 2, 1), the expert (2, 2, 2, 2). The strides leave ceil(ceil(ceil(rows / 3) / 3) / 3) x 3 positions,
    which the last but one convolution takes whole: 3x3 for 80 rows as published, 2x3 for 39, 5x3 for 119.
    """
    if rows < 1:
        raise ValueError(f"speech features need at least one row, got {rows}")
    channels = [1, *(scaled(c, width) for c in (32, 64, 128, 256, 512))]
    strides: tuple[Size, ...] = (1, (3, 1), 3, (3, 2))
    layers: list[nn.Module] = []
    for inputs, outputs, stride, count in zip(channels, channels[1:], strides, residuals, strict=False):
        layers += [conv(inputs, outputs, 3, stride), *(residual(outputs) for _ in range(count))]
    height = rows
    for _ in range(3):
        height = -(-height // 3)
    layers += [conv(channels[4], channels[5], (height, 3), padding=0), conv(channels[5], channels[5], 1, padding=0)]
    return nn.Sequential(*layers)


def channels_last(network: Network) -> Network:
    """Order the kernels of a network, in place, so that its convolutions compute channels last; values stay.

    In float32 on a CPU a training step of narrow networks takes a quarter to a half less time this way.
    """
    for parameter in network.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return network


class RowProjection(nn.Linear):
    """Learned map of feature rows (N, 1, rows, W) -> (N, 1, 80, W), at first [I | 0].

    Put before a network for 80 rows it keeps the published weights' function where the first 80 rows are mel, and lets
    the network learn to use the others.
    """

    def __init__(self, rows: int) -> None:
        super().__init__(rows, MEL_ROWS, bias=False)
        nn.init.eye_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.weight @ x


def fold_batch_norm(network: Network) -> Network:
    """A copy in eval mode whose batch norms and residual sums are part of the convolutions before them.

    The copy computes what the network computes in eval mode, up to rounding, in fewer passes over memory. Its state
    no longer has the published names, and batch statistics no longer train it. Works for all three networks; instance
    norms stay, since they depend on the input.
    """
    folded = copy.deepcopy(network).eval()
    for block in folded.modules():
        if isinstance(block, ConvBlock) and len(block.conv_block) > 1:
            layer, norm = block.conv_block
            if isinstance(norm, nn.BatchNorm2d):
                block.conv_block = nn.Sequential(_fold(layer, norm, residual=block.residual))
                block.residual = False
    return folded


def _fold(layer: nn.Module, norm: nn.BatchNorm2d, *, residual: bool) -> nn.Module:
    """One convolution for both, in the layer's precision, worked out in float64."""
    assert isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)
    dtype = layer.weight.dtype
    fused = fuse_conv_bn_eval(layer.double(), norm.double(), transpose=isinstance(layer, nn.ConvTranspose2d))
    if residual:
        with torch.no_grad():
            fused.weight[:, :, 1, 1] += torch.eye(len(fused.weight), dtype=torch.float64, device=fused.weight.device)
    return fused.to(dtype)
