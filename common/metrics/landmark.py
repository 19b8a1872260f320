"""LMD: how far the landmarks of generated frames lie from the real ones, in pixels of a stated image size."""

from typing import Any

import torch
from torch import Tensor

from common.metrics.image import MOUTH
from common.metrics.means import FrameMeans

COLUMNS = ("lmd", "mouth_lmd", "mouth_lmd_centred", "lost")


def landmark_distance(preds: Tensor, target: Tensor, scale: float = 1.0) -> dict[str, Tensor]:
    """Figures (B,) of landmarks (B,68,2) of generated against real frames.

    `lmd` is the mean Euclidean distance over all 68 points, `mouth_lmd` over points 48 to 67, `mouth_lmd_centred` over
    the same after each mouth's mean is taken off, so that only its shape counts (Chen et al. 2018, ATVGnet, who sum
    over the 20 points where this takes the mean). All are multiplied by `scale`. `lost` is 1 where the real frame has
    a face and the generated one has none (NaN landmarks), 0 where both have one, and NaN where the real one has none.

    Raises:
        ValueError: other shapes.
    """
    if preds.shape != target.shape or preds.shape[1:] != (68, 2):
        raise ValueError(f"expected two batches (B,68,2), got {tuple(preds.shape)} and {tuple(target.shape)}")
    first, second = preds.double(), target.double()
    mouths = [points[:, MOUTH] for points in (first, second)]
    centred = [points - points.mean(dim=1, keepdim=True) for points in mouths]
    wanted = second.isfinite().flatten(1).all(dim=1)
    got = first.isfinite().flatten(1).all(dim=1)
    return {
        "lmd": scale * _mean_distance(first, second),
        "mouth_lmd": scale * _mean_distance(*mouths),
        "mouth_lmd_centred": scale * _mean_distance(*centred),
        "lost": (~got).double().masked_fill(~wanted, torch.nan),
    }


def _mean_distance(first: Tensor, second: Tensor) -> Tensor:
    distances = (first - second).norm(dim=-1).mean(dim=-1)
    return distances.masked_fill(~distances.isfinite(), torch.nan)


class LandmarkDistance(FrameMeans):
    """`lmd`, `mouth_lmd`, `mouth_lmd_centred` and `lost` over frames: `update(preds, target, clips)`.

    Args:
        size: side in pixels of the crops that the landmarks are given in.
        stated: side for which distances are stated, so that runs of several sizes compare; None for `size`.
    """

    higher_is_better = False

    def __init__(self, size: int, stated: int | None = None, **kwargs: Any) -> None:
        super().__init__(COLUMNS, **kwargs)
        self.stated = stated or size
        self.scale = self.stated / size

    @property
    def unit(self) -> str:
        """What the figures count, for tables: `px at 256`."""
        return f"px at {self.stated}"

    def update(self, preds: Tensor, target: Tensor, clips: Tensor | int | None = None) -> None:
        """Add landmarks (B,68,2) in pixels; NaN where no face was found."""
        self.add(landmark_distance(preds, target, self.scale), clips)
