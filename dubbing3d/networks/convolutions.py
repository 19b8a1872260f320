"""Convolutions in forms that cost less where the renderer has them; parameters and results are `nn.Conv2d`'s."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class StackedConv2d(nn.Conv2d):
    """A convolution of maps stacked by channel, (B, C1, H, W), (B, C2, H, W), ..., that never stacks them."""

    def forward(self, *maps: Tensor) -> Tensor:
        """The sum of what each of the maps adds to the result."""
        first, *others = zip(maps, self.weight.split([x.shape[1] for x in maps], dim=1), strict=True)
        total = self._conv_forward(*first, self.bias)
        for each in others:
            total += self._conv_forward(*each, None)
        return total


class GrowingConv2d(nn.Conv2d):
    """A 3x3 convolution, padded by 1, of maps enlarged to twice their size by repetition and others beside them.

    Repeating and convolving is one transposed 4x4 convolution with 4 instead of 9 multiplications for each input
    channel and output pixel.
    """

    def __init__(self, inputs: int, outputs: int, *, bias: bool = False) -> None:
        super().__init__(inputs, outputs, 3, padding=1, bias=bias)

    def forward(self, small: Tensor, beside: Tensor) -> Tensor:  # type: ignore[override]
        """(B, C1, H, W) and (B, C2, 2H, 2W) -> (B, outputs, 2H, 2W)."""
        ours, theirs = self.weight.split([small.shape[1], beside.shape[1]], dim=1)
        grown = F.conv_transpose2d(small, _repeating(ours).to(small.dtype), stride=2, padding=1)
        return grown + self._conv_forward(beside, theirs, self.bias)


class SlimConv2d(nn.Conv2d):
    """An odd convolution to the same size with a handful of output channels, which leave a processor's lanes empty.

    Each row of the kernel is convolved to channels of its own, which are shifted and added.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__(inputs, outputs, kernel, padding=kernel // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H, W)."""
        outputs, _, kernel, _ = self.weight.shape
        height, half = x.shape[2], kernel // 2
        rows = self.weight.permute(2, 0, 1, 3).reshape(kernel * outputs, -1, 1, kernel)
        found = F.pad(F.conv2d(x, rows, padding=(0, half)), (0, 0, half, half)).unflatten(1, (kernel, outputs))
        exact = found if found.dtype == torch.float64 else found.float()
        total = exact[:, 0, :, :height]
        for row in range(1, kernel):
            total = total + exact[:, row, :, row : row + height]
        return total.to(found.dtype)


def _repeating(weight: Tensor) -> Tensor:
    """(O, I, 3, 3) -> (I, O, 4, 4), which is for a transposed convolution with stride 2."""
    padded = F.pad(weight.flip(2, 3), (1, 1, 1, 1))
    across = padded[..., :-1] + padded[..., 1:]
    return (across[..., :-1, :] + across[..., 1:, :]).transpose(0, 1)
