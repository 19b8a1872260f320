"""dlib's identity network in PyTorch: the same numbers, batched, on any device, differentiable.

dlib runs it picture by picture on one core, about ten times slower. The architecture is that of dlib's
examples/dnn_face_recognition_ex.cpp; the weights are read from dlib's own file.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.errors import UserError

_CHANNEL_MEANS = (122.782, 117.001, 104.298)
"""dlib's input_rgb_image: what is subtracted from red, green and blue before they are divided by 256."""
_STAGES = ((32, 3, False), (64, 4, True), (128, 3, True), (256, 3, True), (256, 1, True))
"""Channels, residual blocks, and whether the first block halves the picture."""
_LONGEST_TAIL = 4096


class _Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut; dlib's affine layers (frozen batch norm) are folded into them."""

    def __init__(self, inputs: int, outputs: int, halve: bool) -> None:
        super().__init__()
        self.halve = halve
        # dlib pads a convolution only where its stride is 1.
        self.first = nn.Conv2d(inputs, outputs, 3, stride=2 if halve else 1, padding=0 if halve else 1)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        main = self.second(F.relu(self.first(x)))
        shortcut = F.avg_pool2d(x, 2) if self.halve else x
        return F.relu(_add(main, shortcut))


class DlibResNet(nn.Module):
    """29 convolutions, (B,3,150,150) RGB chips in [-1,1] to (B,128) descriptors that are not normalised."""

    means: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 7, stride=2)
        blocks, inputs = [], 32
        for outputs, count, halve in _STAGES:
            for index in range(count):
                blocks.append(_Block(inputs, outputs, halve and index == 0))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(inputs, 128, bias=False)
        self.register_buffer("means", torch.tensor(_CHANNEL_MEANS).view(1, 3, 1, 1), persistent=False)

    def forward(self, chips: Tensor) -> Tensor:
        """Descriptors of chips (B,3,150,150) in [-1,1]; persons differ at Euclidean distances above about 0.6."""
        x = ((chips + 1) * 127.5 - self.means) / 256
        x = F.max_pool2d(F.relu(self.stem(x)), 3, stride=2)
        descriptors: Tensor = self.head(self.blocks(x).mean(dim=(2, 3)))
        return descriptors


def load_dlib_resnet(path: Path) -> DlibResNet:
    """Read dlib_face_recognition_resnet_model_v1.dat.

    Raises:
        UserError: the file cannot be read or is another network.
    """
    try:
        reader = _TensorReader(path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    network = DlibResNet()
    try:
        for convolution in network.modules():
            if isinstance(convolution, nn.Conv2d):
                _read_convolution(reader, convolution)
        network.head.weight.data = reader.take(network.head.in_features, network.head.out_features).T.contiguous()
        reader.finish()
    except ValueError as error:
        raise UserError(f"{path} is torn or is not dlib's face recognition ResNet v1: {error}") from error
    return network.eval().requires_grad_(False)


def _read_convolution(reader: "_TensorReader", convolution: nn.Conv2d) -> None:
    """Filters, then biases, then the affine layer behind them, whose scale and shift are folded in."""
    outputs, filters = convolution.out_channels, convolution.weight.numel()
    values = reader.take(filters + outputs)
    scale, shift = reader.take(2 * outputs).view(2, outputs)
    weight = values[:filters].view_as(convolution.weight) * scale.view(-1, 1, 1, 1)
    convolution.weight.data = weight.contiguous(memory_format=torch.channels_last)  # a third faster on CPUs
    assert convolution.bias is not None
    convolution.bias.data = values[filters:] * scale + shift


class _TensorReader:
    """Takes tensors of known sizes, in order, out of a dlib archive.

    dlib writes a tensor as the integers 2 (a version), samples, channels, rows and columns, then little-endian
    float32; an integer is one byte that counts its bytes, then those, lowest first. Layers come input first.
    """

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def take(self, samples: int, channels: int = 1) -> Tensor:
        """The next tensor of samples x channels x 1 x 1 numbers, flat where there is one channel."""
        header = b"".join(_integer(value) for value in (2, samples, channels, 1, 1))
        start = self._data.find(header, self._at)
        end = start + len(header) + 4 * samples * channels
        if start < 0 or end > len(self._data):
            raise ValueError(f"there is no tensor of {samples} x {channels} after byte {self._at}")
        values = np.frombuffer(self._data[start + len(header) : end], dtype="<f4").astype(np.float32)
        if not np.isfinite(values).all():
            raise ValueError(f"the tensor at byte {start} is not finite")
        self._at = end
        tensor = torch.from_numpy(values)
        return tensor.view(samples, channels) if channels > 1 else tensor

    def finish(self) -> None:
        """Check that only the loss layer's few settings are left."""
        if len(self._data) - self._at > _LONGEST_TAIL:
            raise ValueError(f"{len(self._data) - self._at} bytes are left over")


def _integer(value: int) -> bytes:
    length = max(1, (value.bit_length() + 7) // 8)
    return bytes([length]) + value.to_bytes(length, "little")


def _add(a: Tensor, b: Tensor) -> Tensor:
    """dlib's add_prev: the smaller operand counts as 0 where it has no channel, row or column."""
    channels, rows, columns = (max(p, q) for p, q in zip(a.shape[1:], b.shape[1:], strict=True))

    def grow(x: Tensor) -> Tensor:
        return F.pad(x, (0, columns - x.shape[3], 0, rows - x.shape[2], 0, channels - x.shape[1]))

    return grow(a) + grow(b)
