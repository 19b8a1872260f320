"""A 95 % interval for FID, whose bias rules the bootstrap out."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import t as student
from torch import Tensor

from common.metrics.estimate import CONFIDENCE, Estimate
from common.metrics.fid import frechet_distance


def fid_estimate(
    real: Tensor,
    real_ids: Sequence[Any] | NDArray[Any],
    fake: Tensor,
    fake_ids: Sequence[Any] | NDArray[Any],
    *,
    groups: int = 24,
    seed: int = 0,
) -> Estimate:
    """FID of features (N,D) and (M,D) with the interval of a jackknife that deletes groups of identities.

    Resampling with replacement repeats images, which shrinks covariances and moves FID; leaving a group out moves it
    hardly, and equally for each group (Efron & Tibshirani, An Introduction to the Bootstrap, 11.5). Identities are
    dealt into at most `groups` groups by `seed`. The interval speaks of other people like these, not of other seeds of
    the training, and is symmetric by construction; its low end is cut at 0.

    Returns None with the reason below three identities, or where a feature is not finite or a set has fewer than 2.
    """
    sides = [(rows.double(), np.asarray(ids)) for rows, ids in ((real, real_ids), (fake, fake_ids))]
    for rows, ids in sides:
        if ids.shape != (len(rows),):
            raise ValueError(f"{len(rows)} features with identities of shape {ids.shape}")
    count = min(len(real), len(fake))
    if count < 2 or not all(rows.isfinite().all() for rows, _ in sides):
        return Estimate(None, n=count, reason="a set with fewer than 2 images, or features that are not finite")
    value = float(_distance([rows for rows, _ in sides]))
    names = np.unique(np.concatenate([ids for _, ids in sides]))
    if len(names) < 3:
        return Estimate(value, n=count, reason="no interval below 3 identities")
    order = np.random.default_rng(seed).permutation(len(names))
    left_out = [names[order[start :: min(groups, len(names))]] for start in range(min(groups, len(names)))]
    kept = [[rows[torch.from_numpy(~np.isin(ids, out))] for rows, ids in sides] for out in left_out]
    if min(len(rows) for pair in kept for rows in pair) < 2:
        return Estimate(value, n=count, reason="no interval: one group holds all but one image")
    values = np.array([float(_distance(pair)) for pair in kept])
    spread = np.sqrt((len(values) - 1) / len(values) * ((values - values.mean()) ** 2).sum())
    half = float(student.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * spread)
    return Estimate(value, max(0.0, value - half), value + half, count)


def _distance(sets: Sequence[Tensor]) -> Tensor:
    moments = [moment for rows in sets for moment in (rows.mean(dim=0), torch.cov(rows.T).reshape(rows.shape[1], -1))]
    return frechet_distance(*moments)
