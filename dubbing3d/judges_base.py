"""What the judges share: staying frozen, sizes of images, and the small trainings of our own ones."""

import math
from collections.abc import Callable, Sequence
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.errors import UserError
from common.progress import counted

SIDE = 96
"""Side in px of the frames that own judges learn from."""
FEWEST = 32
"""Frames without which nothing is learnt."""


class Frozen(nn.Module):
    """A network that stays as it is: no gradients of its parameters, always in evaluation mode."""

    name: str

    def freeze(self) -> Self:
        """To be called once, when everything is in place."""
        return self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Self:
        """Without effect, so that the module that holds a judge cannot set its norms moving."""
        return super().train(False)


def learn(
    network: nn.Module,
    frames: Tensor,
    loss_of: Callable[[Tensor], Tensor],
    *,
    generator: torch.Generator,
    steps: int,
    batch: int,
    rate: float,
    what: str,
) -> None:
    """Adam at a rate that rises over a tenth of the steps and falls to 0 along a cosine, on frames (N, 3, S, S)."""
    optimiser = torch.optim.Adam(network.parameters(), lr=rate)
    for step in counted(range(steps), what, transient=True):
        rise = min(1.0, (step + 1) / (0.1 * steps + 1))
        optimiser.param_groups[0]["lr"] = rate * rise * 0.5 * (1 + math.cos(math.pi * step / steps))
        chosen = torch.randint(len(frames), (batch,), generator=generator)
        loss = loss_of(flipped(frames[chosen], generator))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def flipped(frames: Tensor, generator: torch.Generator) -> Tensor:
    """Half of the frames as in a mirror."""
    turned = torch.rand(len(frames), 1, 1, 1, generator=generator) < 0.5
    return torch.where(turned, frames.flip(3), frames)


def relight(frames: Tensor, generator: torch.Generator) -> Tensor:
    """Each frame and colour a little lighter or darker, flatter or harsher, with noise."""
    count = len(frames)
    gain = 1 + 0.15 * torch.randn(count, 1, 1, 1, generator=generator)
    shift = 0.08 * torch.randn(count, 3, 1, 1, generator=generator)
    level = 0.08 * torch.rand(count, 1, 1, 1, generator=generator)
    return frames * gain + shift + level * torch.randn(frames.shape, generator=generator)


def hide(frames: Tensor, generator: torch.Generator, largest: float) -> Tensor:
    """Bool (N, 1, S, S): one box in each frame, its sides up to `largest` of the frame's."""
    count, side = len(frames), frames.shape[2]
    extent = largest * side * torch.rand(count, 2, 1, 1, generator=generator)
    corner = torch.rand(count, 2, 1, 1, generator=generator) * (side - extent)
    place = torch.arange(side) + 0.5
    inside = (place > corner[:, :1]) & (place < corner[:, :1] + extent[:, :1])
    return inside & (place[:, None] > corner[:, 1:]) & (place[:, None] < corner[:, 1:] + extent[:, 1:])


def split(frames: Tensor) -> tuple[Tensor, Tensor]:
    """The last frames (N, ...), to measure on, and the rest: of other clips and mostly other people, if in order."""
    if len(frames) < FEWEST:
        raise UserError(f"judges learn from at least {FEWEST} frames, got {len(frames)}; give them more clips")
    last = max(8, len(frames) // 12)
    return frames[-last:], frames[:-last]


def shrink(images: Tensor) -> Tensor:
    """To 96 px a side; an image that has them passes as it is."""
    if images.shape[2:] == (SIDE, SIDE):
        return images
    return F.interpolate(images.float(), size=(SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False)


def resize(x: Tensor, sides: Sequence[int]) -> Tensor:
    """Bilinear; what has these sides passes as it is."""
    if tuple(x.shape[2:]) == tuple(sides):
        return x
    return F.interpolate(x.float(), size=tuple(sides), mode="bilinear", align_corners=False)


def resize_flow(flow: Tensor, sides: Sequence[int]) -> Tensor:
    """A flow (B, 2, H, W) for images of other sides (height, width), its values in their pixels."""
    scale = flow.new_tensor([sides[1] / flow.shape[3], sides[0] / flow.shape[2]])
    return resize(flow, sides) * scale[:, None, None]
