"""Drawn faces in the light of the frame that they are pasted into."""

import torch
from torch import Tensor
from torch.nn import functional as F

_LEAST = 1e-4
"""Keeps the division by the share of known pixels finite where there is none."""
_RELAXED = 6
"""Averagings a level. They bring what is unknown near the harmonic field, which has no bumps of its own."""


def match_seam(drawn: Tensor, frames: Tensor, masks: Tensor) -> Tensor:
    """Add to drawn crops the smooth field of colour that lets them meet the frames along the mask's edge.

    What a network gets wrong about a face that it never saw is above all its colour and light. The difference between
    frame and drawing is known where the mask fades out, and is carried inwards from there as smoothly as can be (the
    membrane of Perez et al. 2003, relaxed from coarse to fine), so that shapes and detail stay as they were drawn.

    Args:
        drawn: (B,C,S,S), of any range.
        frames: (B,C,S,S), the same part of the frames.
        masks: (B,1,S,S) in [0,1]: how much of the drawing will be seen.

    Returns:
        (B,C,S,S), in no way clipped; `drawn` itself where a mask has no soft edge.
    """
    known = (masks > 0) * (1 - masks)
    return drawn + _fill((frames - drawn) * known, known)


def _fill(weighted: Tensor, known: Tensor) -> Tensor:
    """Values `weighted / known` where they are known, and a smooth field between them where they are not."""
    value = weighted / known.clamp(min=_LEAST)
    if min(known.shape[-2:]) == 1:
        return value
    coarse = _fill(*(F.avg_pool2d(part, 2, ceil_mode=True, count_include_pad=False) for part in (weighted, known)))
    field = F.interpolate(coarse, size=known.shape[-2:], mode="bilinear", align_corners=False)
    for _ in range(_RELAXED):
        around = F.avg_pool2d(F.pad(field, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
        field = torch.lerp(around, value, known)
    return field
