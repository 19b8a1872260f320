"""A number with its 95 % interval and the count behind it, and the bootstrap that makes the interval."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95


def plain(value: float | None) -> float | None:
    """A float for JSON: 8 significant digits (what survives a change of thread count), None for NaN and infinity."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.8g}")


@dataclass(frozen=True)
class Estimate:
    """A mean over `n` items with a 95 % interval; None where it does not exist, with the reason."""

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int = 0
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for metrics.json; `reason` only where a number is missing."""
        shown = {"value": plain(self.value), "low": plain(self.low), "high": plain(self.high), "n": self.n}
        return shown | ({"reason": self.reason} if self.reason else {})


def cluster_bootstrap(
    values: NDArray[np.float64], clusters: NDArray[Any], *, samples: int = 2000, seed: int = 0
) -> Estimate:
    """Mean of `values` (n,) with a percentile interval from resampling whole clusters (n,) with replacement.

    Items of one identity resemble each other, so that resampling single items would give intervals that are too
    narrow (Davison & Hinkley, Bootstrap Methods, 3.8). With one item per cluster this is the ordinary bootstrap.
    Where all items are equal (every query right, or none) the interval has no width: read it with `n`.
    """
    if len(values) == 0:
        return Estimate(None, reason="no items")
    _, members = np.unique(clusters, return_inverse=True)
    counts = np.bincount(members).astype(np.float64)
    sums = np.bincount(members, weights=values)
    mean = float(sums.sum() / counts.sum())
    if len(counts) < 2:
        return Estimate(mean, n=len(values), reason="one identity only: no interval")
    generator = np.random.default_rng(seed)
    rows = max(1, 2_000_000 // len(counts))  # bounds the memory of one draw
    means: list[NDArray[np.float64]] = []
    for start in range(0, samples, rows):
        drawn = generator.integers(len(counts), size=(min(rows, samples - start), len(counts)))
        means.append(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
    return Estimate(mean, float(low), float(high), len(values))
