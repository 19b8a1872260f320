"""Networks that grow: stages of rising resolution, the newest of which is blended in.

Source: Karras et al., "Progressive Growing of GANs" (2018), section 2. Enlarging repeats pixels and reducing averages
them, so reducing undoes enlarging exactly and a judge of full-sized images sees what the active stage drew.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.errors import UserError


@dataclass(frozen=True)
class Growth:
    """How far networks have grown: `active` stages, of which the newest counts with `fade` in [0, 1]."""

    active: int
    fade: float = 1.0


def growth_at(step: int, *, stages: int, stage_steps: int, fade: float) -> Growth:
    """The growth at a training step: each stage lasts `stage_steps`, the last one until the end.

    A new stage is blended in linearly over the first `fade` (a share) of its steps; it has a weight from its first
    step on, and the full one at the last of them.
    """
    stage = min(step // stage_steps, stages - 1)
    fading = round(fade * stage_steps)
    if stage == 0 or fading == 0:
        return Growth(stage + 1)
    return Growth(stage + 1, min(1.0, (step - stage * stage_steps + 1) / fading))


def stage_sizes(resolution: int, stages: Sequence[int] | None) -> tuple[int, ...]:
    """Image sizes of the stages; a quarter, a half and all of the resolution where `stages` is None.

    Raises UserError unless they are rising powers of two from 8 to the resolution.
    """
    sizes = tuple(stages) if stages is not None else (resolution // 4, resolution // 2, resolution)
    rising = list(sizes) == sorted(set(sizes))
    if not sizes or not rising or sizes[-1] != resolution or any(s < 8 or s & (s - 1) for s in sizes):
        raise UserError(
            f"stages {list(sizes)} are not rising powers of two from 8 to the image size {resolution}; "
            f"for example [{resolution // 4}, {resolution // 2}, {resolution}]"
        )
    return sizes


def enlarge(image: Tensor, size: int) -> Tensor:
    """(B, C, S, S) -> (B, C, size, size), each pixel repeated; `size` is a multiple of S."""
    return image if image.shape[-1] == size else F.interpolate(image, size=(size, size), mode="nearest")


def reduce(image: Tensor, size: int) -> Tensor:
    """(B, C, S, S) -> (B, C, size, size), the mean of each square; S is a multiple of `size`."""
    return image if image.shape[-1] == size else F.avg_pool2d(image, image.shape[-1] // size)


def blend(images: list[Tensor], fade: float) -> list[Tensor]:
    """Images of rising sizes whose last is mixed with the enlarged one before it: 0 takes that one, 1 the last."""
    if len(images) < 2 or fade == 1:
        return images
    before = enlarge(images[-2], images[-1].shape[-1])
    return [*images[:-1], before.lerp(images[-1], fade)]


def pyramid(image: Tensor, sizes: Sequence[int], growth: Growth) -> list[Tensor]:
    """Real images (B, 3, S, S) at the active stages' sizes, the newest blended as the generator's is."""
    return blend([reduce(image, size) for size in sizes[: growth.active]], growth.fade)


class Growing(nn.Module):
    """A network with one stage for each of `sizes`; its growth travels with its weights. It begins fully grown."""

    def __init__(self, sizes: Sequence[int]) -> None:
        super().__init__()
        self.sizes = tuple(sizes)
        self.growth = Growth(len(self.sizes))

    def grow(self, growth: Growth) -> None:
        """Use this many stages from now on; UserError outside 1..stages and [0, 1]."""
        if not (1 <= growth.active <= len(self.sizes) and 0 <= growth.fade <= 1):
            raise UserError(f"{growth} does not fit a network of {len(self.sizes)} stages")
        self.growth = growth

    def get_extra_state(self) -> Tensor:
        """The growth as a tensor: a part of `state_dict` that no forward pass has to fetch from a device."""
        return torch.tensor([self.growth.active, self.growth.fade], dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        """The inverse of `get_extra_state`."""
        active, fade = state.tolist()
        self.grow(Growth(int(active), fade))
