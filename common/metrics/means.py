"""Means of figures that every frame has, with intervals over clips, gathered over ranks."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric

from common.metrics.estimate import CONFIDENCE, Estimate, cluster_bootstrap
from common.metrics.gather import fill_empty, joined, no_rows


def frame_means(
    values: Mapping[str, Tensor], clips: Tensor | NDArray[Any] | None = None, *, samples: int = 2000, seed: int = 0
) -> dict[str, Estimate]:
    """Mean of each named figure over its frames (n,), with an interval that resamples clips.

    Frames of one clip resemble each other, so whole clips are drawn; `clips` (n,) numbers them, None takes each frame
    for its own. NaN means that a frame has no such figure (no face, no mouth box): it is left out, and `n` says how
    many remain.
    """
    results = {}
    for name, column in values.items():
        numbers = column.detach().cpu().double().numpy()
        owners = np.arange(len(numbers)) if clips is None else np.asarray(torch.as_tensor(clips).cpu())
        used = ~np.isnan(numbers)
        results[name] = cluster_bootstrap(numbers[used], owners[used], samples=samples, seed=seed)
    return results


def ratio_of_means(
    over: Tensor, under: Tensor, clips: Tensor | NDArray[Any], *, samples: int = 2000, seed: int = 0
) -> Estimate:
    """Sum of `over` by sum of `under` (n,) with an interval from resampling clips; pairs with a NaN are left out."""
    above, below = (column.detach().cpu().double().numpy() for column in (over, under))
    used = ~(np.isnan(above) | np.isnan(below))
    if not used.any():
        return Estimate(None, reason="no items")
    _, members = np.unique(np.asarray(torch.as_tensor(clips).cpu())[used], return_inverse=True)
    sums = np.stack([np.bincount(members, weights=column[used]) for column in (above, below)])
    total = sums.sum(axis=1)
    if total[1] <= 0:
        return Estimate(None, n=int(used.sum()), reason="the denominator is 0")
    value = float(total[0] / total[1])
    count = sums.shape[1]
    if count < 2:
        return Estimate(value, n=int(used.sum()), reason="one clip only: no interval")
    generator = np.random.default_rng(seed)
    weights = generator.multinomial(count, np.full(count, 1 / count), size=samples)
    drawn = weights @ sums.T
    tail = (1 - CONFIDENCE) / 2
    ratios = drawn[drawn[:, 1] > 0]
    low, high = np.quantile(ratios[:, 0] / ratios[:, 1], [tail, 1 - tail])
    return Estimate(value, float(low), float(high), int(used.sum()))


class FrameMeans(Metric):
    """Base of metrics that give every frame some figures: `compute` yields their means, by the names of `columns`.

    Each row is kept (8 columns of a million frames are 32 MB), so that `estimates` can give intervals over clips.
    """

    full_state_update = False
    rows: list[Tensor]
    clips: list[Tensor]

    def __init__(self, columns: Sequence[str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.columns = tuple(columns)
        self.add_state("rows", default=[], dist_reduce_fx="cat")
        self.add_state("clips", default=[], dist_reduce_fx="cat")

    def add(self, values: Mapping[str, Tensor], clips: Tensor | int | None) -> None:
        """Keep the figures (B,) of a batch of frames; `clips` is the number of the clip, or of each frame's clip."""
        rows = torch.stack([values[name].detach().float() for name in self.columns], dim=1)
        owners = torch.as_tensor(0 if clips is None else clips, dtype=torch.int64, device=rows.device)
        self.rows.append(rows)
        self.clips.append(owners.expand(len(rows)).clone())

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Gather over ranks, some of which may have seen nothing."""
        fill_empty(self, {"rows": no_rows(len(self.columns)), "clips": no_rows(dtype=torch.int64)})
        super().sync(*args, **kwargs)

    def compute(self) -> dict[str, Tensor]:
        """Means as float64 scalars; NaN where no frame has the figure."""
        rows = joined(self.rows)
        if rows is None:
            return {name: torch.tensor(torch.nan, dtype=torch.float64, device=self.device) for name in self.columns}
        return dict(zip(self.columns, rows.double().nanmean(dim=0).unbind(), strict=True))

    def estimates(self, *, samples: int = 2000, seed: int = 0) -> dict[str, Estimate]:
        """The same with intervals over clips and counts; gathers over ranks, so all have to call it."""
        with self.sync_context(dist_sync_fn=self.dist_sync_fn):
            rows, clips = joined(self.rows), joined(self.clips)
            if rows is None or clips is None:
                rows, clips = no_rows(len(self.columns)), no_rows(dtype=torch.int64)
            return self.estimates_of(rows, clips, samples=samples, seed=seed)

    def estimates_of(self, rows: Tensor, clips: Tensor, *, samples: int, seed: int) -> dict[str, Estimate]:
        """Estimates from rows (N, columns) and the number of each row's clip (N,)."""
        return frame_means(dict(zip(self.columns, rows.unbind(dim=1), strict=True)), clips, samples=samples, seed=seed)
