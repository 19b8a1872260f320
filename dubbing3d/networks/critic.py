"""The critic of the adversarial loss (paper 4, eqs. 25 and 26)."""

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from common.convolution import Geometry, convolve
from dubbing3d.networks.blocks import check_shape, scaled

_SLOPE = 0.2


class PatchCritic(nn.Module):
    """One score per patch: four halvings by 4x4 convolutions, one 3x3 convolution (Isola et al., 2017).

    It has no norm: the gradient penalty is per sample, which batch norm would mix. One critic judges both of the
    renderer's images. Its convolutions differentiate twice at the cost of once.

    Args:
        width: multiplier of the widths 64, 128, 256, 512.
        image_size: S, a multiple of 32 from 64 on.

    Shape: (B, 3, S, S) -> (B, 1, S/16, S/16), unbounded. A sample's score is the mean.
    """

    def __init__(self, *, width: float = 1.0, image_size: int = 192) -> None:
        super().__init__()
        check_shape(image_size, width)
        widths = [3, *(scaled(channels, width) for channels in (64, 128, 256, 512))]
        self.layers = nn.ModuleList(nn.Conv2d(inputs, outputs, 4, 2, 1) for inputs, outputs in pairwise(widths))
        self.score = nn.Conv2d(widths[-1], 1, 3, padding=1)
        for layer in self.layers:
            nn.init.kaiming_normal_(layer.get_parameter("weight"), _SLOPE)

    def forward(self, images: Tensor) -> Tensor:
        x = images
        for layer in self.layers:
            x = F.leaky_relu(_apply(layer, x, Geometry(2, 1)), _SLOPE)
        return _apply(self.score, x, Geometry(1, 1))


def _apply(layer: nn.Module, x: Tensor, geometry: Geometry) -> Tensor:
    weight, bias = layer.get_parameter("weight"), layer.get_parameter("bias")
    return convolve(x, weight.to(x.dtype), bias.to(x.dtype), geometry=geometry)
