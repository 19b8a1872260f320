"""SFM: how the reference must move to lie under the 3D render (paper 4, eq. 14)."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dubbing3d.networks.blocks import check_shape, scaled

_SLOPE = 0.1
_STRIDE = 4
"""The finest flow is predicted on maps of S/4."""


class Motion(NamedTuple):
    """Flow (B, 2, S, S) in pixels for `warp`, and the references' logits (B, 1, S, S), None unless asked for."""

    flow: Tensor
    logits: Tensor | None


class SFM(nn.Module):
    """FlowNetS with batch norm (Dosovitskiy et al., 2015), which has the parameters and MACs that table 7 prints.

    Its first convolution is kept in two halves, one for the render and one for the reference, whose sum is the
    convolution of both stacked: what concerns the reference alone is computed once per clip. The flow is in pixels of
    the S/4 map and is enlarged in size and value; the layer that predicts it starts at 0, so that at first the
    reference stays as it is.

    Args:
        width: multiplier of all widths.
        image_size: S, a multiple of 32 from 64 on.
        guide_channels: of the 3D render: 3, or 4 with its coverage.
        reference_channels: 3, or those of the reference with its own render.
        weigh: also predict logits by which several references share a pixel; equal at first.
    """

    def __init__(
        self,
        *,
        width: float = 1.0,
        image_size: int = 192,
        guide_channels: int = 3,
        reference_channels: int = 3,
        weigh: bool = False,
    ) -> None:
        super().__init__()
        check_shape(image_size, width)
        c = [scaled(channels, width) for channels in (64, 128, 256, 512, 512, 1024)]
        self.guide = nn.Conv2d(guide_channels, c[0], 7, 2, 3, bias=False)
        self.reference = nn.Conv2d(reference_channels, c[0], 7, 2, 3, bias=False)
        self.first = nn.Sequential(nn.BatchNorm2d(c[0]), nn.LeakyReLU(_SLOPE, inplace=True))
        self.down = nn.ModuleList(
            [
                _conv(c[0], c[1], 5, 2),
                nn.Sequential(_conv(c[1], c[2], 5, 2), _conv(c[2], c[2])),
                nn.Sequential(_conv(c[2], c[3], 3, 2), _conv(c[3], c[3])),
                nn.Sequential(_conv(c[3], c[4], 3, 2), _conv(c[4], c[4])),
                nn.Sequential(_conv(c[4], c[5], 3, 2), _conv(c[5], c[5])),
            ]
        )
        up = [scaled(channels, width) for channels in (512, 256, 128, 64)]
        merged = [c[5]] + [skip + channels + 2 for skip, channels in zip((c[4], c[3], c[2], c[1]), up, strict=True)]
        self.predict = nn.ModuleList([nn.Conv2d(channels, 2, 3, padding=1, bias=False) for channels in merged])
        self.enlarge = nn.ModuleList([nn.ConvTranspose2d(2, 2, 4, 2, 1, bias=False) for _ in up])
        self.up = nn.ModuleList(
            nn.Sequential(nn.ConvTranspose2d(inputs, outputs, 4, 2, 1, bias=False), nn.LeakyReLU(_SLOPE, inplace=True))
            for inputs, outputs in zip(merged[:-1], up, strict=True)
        )
        self.weigh = nn.Conv2d(merged[-1], 1, 3, padding=1) if weigh else None
        self._initialise()

    def _initialise(self) -> None:
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(layer.weight, _SLOPE)
        # The halves of one convolution share its fan-in.
        whole = self.guide.in_channels + self.reference.in_channels
        with torch.no_grad():
            for half in (self.guide, self.reference):
                half.weight.mul_((half.in_channels / whole) ** 0.5)
        nn.init.zeros_(self.predict[-1].get_parameter("weight"))
        if self.weigh is not None:
            nn.init.zeros_(self.weigh.weight)
            nn.init.zeros_(self.weigh.get_parameter("bias"))

    def encode_reference(self, reference: Tensor) -> Tensor:
        """(B, reference_channels, S, S) -> (B, C, S/2, S/2), the same for all frames of a clip."""
        return self.reference(reference)

    def encode_guide(self, guide: Tensor) -> Tensor:
        """(B, guide_channels, S, S) -> (B, C, S/2, S/2), the same for all references of a frame."""
        return self.guide(guide)

    def forward(self, guide: Tensor, reference: Tensor) -> Motion:
        """The motion for renders (B, guide_channels, S, S) and references (B, reference_channels, S, S)."""
        return self.decode(self.encode_guide(guide), self.encode_reference(reference))

    def decode(self, guide: Tensor, reference: Tensor) -> Motion:
        """The motion from both encodings (B, C, S/2, S/2)."""
        x = self.first(guide + reference)
        maps = []
        for layer in self.down:
            x = layer(x)
            maps.append(x)
        flow = self.predict[0](x)
        for up, enlarge, predict, skip in zip(self.up, self.enlarge, self.predict[1:], maps[-2::-1], strict=True):
            # Maps of odd sides come back one larger.
            rows, columns = skip.shape[2:]
            x = torch.cat([skip, up(x)[:, :, :rows, :columns], enlarge(flow)[:, :, :rows, :columns]], dim=1)
            flow = predict(x)
        logits = None if self.weigh is None else _enlarge(self.weigh(x))
        return Motion(_enlarge(flow) * _STRIDE, logits)


def _enlarge(x: Tensor) -> Tensor:
    """Bilinearly to S, in at least float32: half a pixel matters."""
    x = x if x.dtype == torch.float64 else x.float()
    return F.interpolate(x, scale_factor=_STRIDE, mode="bilinear", align_corners=False)


def _conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.LeakyReLU(_SLOPE, inplace=True),
    )
