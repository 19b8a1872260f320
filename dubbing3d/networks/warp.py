"""Bilinear resampling along a flow, the sampler of a spatial transformer (Jaderberg et al., 2015; paper 4, eq. 14)."""

from typing import Literal

import torch
from torch import Tensor

Border = Literal["replicate", "reflection"]


def warp(image: Tensor, flow: Tensor, *, border: Border = "replicate") -> Tensor:
    """Each pixel p of the result is the image at p + flow(p).

    Positions never leave pixel units, so that no flow gives the very image, to the bit, whatever its size;
    `grid_sample` rounds them through [-1, 1], and in half precision would move pixels by a tenth of one. Gradients flow
    to both arguments.

    Args:
        image: (B, C, H, W).
        flow: (B, 2, H, W) in pixels, first to the right, then down.
        border: what lies outside: the outermost pixel's value, or the mirror image about its centre.

    Returns:
        (B, C, H, W) of the image's type.
    """
    if flow.shape != (image.shape[0], 2, *image.shape[2:]):
        raise ValueError(f"a flow for images {tuple(image.shape)} cannot have shape {tuple(flow.shape)}")
    height, width = image.shape[2:]
    flow = flow if flow.dtype == torch.float64 else flow.float()
    rows = torch.arange(height, device=flow.device, dtype=flow.dtype)[:, None]
    columns = torch.arange(width, device=flow.device, dtype=flow.dtype)
    left, right, across = _neighbours(columns + flow[:, 0], width, border)
    above, below, down = _neighbours(rows + flow[:, 1], height, border)
    planes = image.flatten(2)

    def look(row: Tensor, column: Tensor) -> Tensor:
        index = (row * width + column).flatten(1)[:, None].expand(-1, planes.shape[1], -1)
        return planes.gather(2, index).unflatten(2, (height, width))

    across, down = across[:, None].to(image.dtype), down[:, None].to(image.dtype)
    upper = torch.lerp(look(above, left), look(above, right), across)
    lower = torch.lerp(look(below, left), look(below, right), across)
    return torch.lerp(upper, lower, down)


def _neighbours(position: Tensor, length: int, border: Border) -> tuple[Tensor, Tensor, Tensor]:
    """The pixels before and after positions along one axis, and the weight of the latter."""
    last = length - 1
    if border == "reflection" and last:
        position = last - (position.abs() % (2 * last) - last).abs()
    position = position.clamp(0, last)
    first = position.detach().floor()
    index = first.long()
    return index, (index + 1).clamp(max=last), position - first
