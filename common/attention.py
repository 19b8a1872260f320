"""Attention blocks that more than one package uses."""

from torch import Tensor, nn


class SqueezeExcitation(nn.Module):
    """Channel weights from global average pooling and a two-layer bottleneck (Hu et al.; paper 2, fig. 5).

    Args:
        channels: C of the input, at least `reduction`.
        reduction: bottleneck factor r; paper 2 uses 16.

    Shape: (B, C, H, W) -> the same; each channel is scaled by a weight in (0, 1).
    """

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        if channels < reduction:
            raise ValueError(f"squeeze-excitation needs channels >= reduction, got {channels} < {reduction}")
        self.squeeze = nn.Linear(channels, channels // reduction, bias=False)
        self.excite = nn.Linear(channels // reduction, channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.excite(self.squeeze(x.mean(dim=(2, 3))).relu()).sigmoid()
        return x * weights[:, :, None, None]
