"""Retrieval of the right person's real faces by a generated face: R@K with gallery, chance and interval.

Protocol of SF2F (Bai et al. 2022): the gallery holds one vector per identity, the mean of its L2-normalised real
embeddings; a query is one generated face; ranks are by cosine within galleries of a stated size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.errors import UserError
from common.metrics.estimate import Estimate, cluster_bootstrap, plain

Floats = NDArray[np.float64]
Identities = Sequence[Any] | NDArray[Any]
TIE = 1e-9  # cosines closer than this are ties: far above float64 rounding, far below any real difference


@dataclass(frozen=True)
class Gallery:
    """One unit vector per identity (G,D), in the sorted order of `identities`."""

    identities: tuple[Any, ...]
    vectors: Floats


def unit_rows(embeddings: Tensor | Floats, what: str) -> Floats:
    """Rows (N,D) scaled to length 1 in float64; raises UserError for rows that are zero or not finite."""
    rows = np.asarray(torch.as_tensor(embeddings).detach().cpu().double().numpy())
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    bad = np.flatnonzero(~np.isfinite(lengths[:, 0]) | (lengths[:, 0] < 1e-12))
    if len(bad):
        raise UserError(f"{len(bad)} of {len(rows)} embeddings of {what} are zero or not finite, first number {bad[0]}")
    return rows / lengths


def build_gallery(embeddings: Tensor | Floats, identities: Identities) -> Gallery:
    """Mean of the L2-normalised embeddings (N,D) of each of N `identities`, scaled to length 1 (cosine ignores it).

    Raises:
        UserError: no faces, or an embedding that is zero or not finite.
    """
    labels = _labels(embeddings, identities, "real faces")
    names, members = np.unique(labels, return_inverse=True)
    sums = np.zeros((len(names), embeddings.shape[1]))
    np.add.at(sums, members, unit_rows(embeddings, "real faces"))
    return Gallery(tuple(names.tolist()), unit_rows(sums, "gallery means"))


def gallery_targets(known: Identities, identities: Identities) -> NDArray[np.int64]:
    """Row of each query's identity among the gallery's `known` ones; raises UserError where one is not there."""
    rows = {name: row for row, name in enumerate(np.asarray(known).tolist())}
    names = np.asarray(identities).tolist()
    missing = sorted({str(name) for name in names if name not in rows})
    if missing:
        raise UserError(
            f"{len(missing)} identities have generated faces but no real face in the gallery, first: {missing[0]}"
        )
    return np.array([rows[name] for name in names], dtype=np.int64)


def ranks(similarity: Floats, targets: NDArray[np.int64], candidates: NDArray[np.bool_] | None = None) -> NDArray[Any]:
    """Rank (Q,) of column `targets[q]` in each row of `similarity` (Q,G), 1 = best.

    Pessimistic: an impostor with the same similarity (to 1e-9) comes first, so that a model that draws one face
    for all gains nothing. `candidates` (Q,G) limits the columns that count.
    """
    own = np.take_along_axis(similarity, targets[:, None], axis=1)
    before = similarity >= own - TIE
    if candidates is not None:
        before &= candidates
    np.put_along_axis(before, targets[:, None], True, axis=1)
    return before.sum(axis=1)


@dataclass(frozen=True)
class RetrievalResult:
    """R@K over `queries` generated faces in `galleries` disjoint galleries of `gallery_size` identities."""

    embedder: str
    gallery_size: int
    galleries: int
    queries: int
    recall: dict[int, Estimate]
    median_rank: float | None

    def chance(self, k: int) -> float:
        """R@K of random embeddings."""
        return min(1.0, k / self.gallery_size)

    def above_chance(self, k: int = 1) -> bool:
        """Whether the lower end of the 95 % interval of R@K is over chance."""
        low = self.recall[k].low
        return low is not None and low > self.chance(k)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for metrics.json: `r@1`, ... each with interval, count and chance."""
        recall = {
            f"r@{k}": estimate.to_dict() | {"chance": plain(self.chance(k)), "above_chance": self.above_chance(k)}
            for k, estimate in self.recall.items()
        }
        return {
            "embedder": self.embedder,
            "gallery_size": self.gallery_size,
            "galleries": self.galleries,
            "queries": self.queries,
            "median_rank": plain(self.median_rank),
        } | recall


def retrieval(
    generated: Tensor,
    generated_ids: Identities,
    real: Tensor,
    real_ids: Identities,
    *,
    embedder: str,
    ks: Sequence[int] = (1, 5, 10),
    gallery_size: int | None = None,
    galleries: int = 1,
    seed: int = 0,
    samples: int = 2000,
) -> RetrievalResult:
    """R@K of generated embeddings (Q,D) against real ones (N,D), with identities as names or numbers.

    Without `gallery_size` all real identities are one gallery. With it they are shuffled by `seed` and cut into
    `galleries` disjoint ones (SF2F: 100 and 3), and queries whose identity is in none are left out. Intervals
    resample identities. R@K of a gallery of fewer than K identities is None.

    Raises:
        UserError: an identity without real faces, too few identities, broken embeddings.
    """
    gallery = build_gallery(real, real_ids)
    labels = _labels(generated, generated_ids, "generated faces")
    targets = gallery_targets(gallery.identities, generated_ids)
    group = _groups(len(gallery.identities), gallery_size, galleries, seed)
    used = group[targets] >= 0
    if not used.any():
        raise UserError(f"no generated face belongs to the {galleries} galleries of {gallery_size} identities")
    queries = unit_rows(generated, "generated faces")[used]
    targets, labels = targets[used], labels[used]
    candidates = group[None, :] == group[targets][:, None]
    places = ranks(queries @ gallery.vectors.T, targets, candidates)
    size = gallery_size or len(gallery.identities)
    recall = {k: _recall(places, labels, k, size, seed, samples) for k in ks}
    return RetrievalResult(embedder, size, galleries, len(places), recall, float(np.median(places)))


def _labels(embeddings: Tensor | Floats, identities: Identities, what: str) -> NDArray[Any]:
    labels = np.asarray(identities)
    if labels.shape != (len(embeddings),):
        raise ValueError(f"{len(embeddings)} embeddings of {what} with identities of shape {labels.shape}")
    if len(labels) == 0:
        raise UserError(f"there are no {what} to compare")
    return labels


def _groups(identities: int, size: int | None, count: int, seed: int) -> NDArray[np.int64]:
    """Gallery number of each identity (G,), -1 for those in none."""
    if size is None:
        return np.zeros(identities, dtype=np.int64)
    if size < 1 or count < 1 or size * count > identities:
        raise UserError(
            f"{count} galleries of {size} need {size * count} identities with real faces; there are {identities}"
        )
    group = np.full(identities, -1, dtype=np.int64)
    order = np.random.default_rng(seed).permutation(identities)[: size * count]
    group[order] = np.arange(size * count) // size
    return group


def _recall(places: NDArray[Any], labels: NDArray[Any], k: int, size: int, seed: int, samples: int) -> Estimate:
    if k > size:
        return Estimate(None, n=len(places), reason=f"a gallery of {size} has no {k} candidates")
    return cluster_bootstrap((places <= k).astype(np.float64), labels, samples=samples, seed=seed)
