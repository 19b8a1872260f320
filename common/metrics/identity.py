"""Does a portrait look like its speaker? Feature cosine, ih_sim, the mode-collapse alarm, matching accuracy."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric

from common.errors import UserError
from common.metrics.estimate import Estimate, cluster_bootstrap, plain
from common.metrics.gather import fill_empty, joined, no_rows
from common.metrics.retrieval import (
    TIE,
    Floats,
    Identities,
    RetrievalResult,
    build_gallery,
    gallery_targets,
    ranks,
    unit_rows,
)

COLLAPSE_GAP = 0.02
"""A cosine gap below this is "close" for the alarm: random pairs of one face network differ by more."""


@dataclass(frozen=True)
class IdentityResult:
    """How near generated faces are to their own identity and to others, under one embedder.

    `cosine` = mean cos(generated_i, gallery_i); `ih_sim` = mean over i ≠ j of cos(generated_i, gallery_j); `gap` is
    their difference, paired by query. `between_generated` and `between_real` are the mean cosine of two portraits,
    and of two gallery vectors, of different identities.
    """

    embedder: str
    cosine: Estimate
    ih_sim: Estimate
    gap: Estimate
    between_generated: float | None
    between_real: float | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for metrics.json."""
        return {
            "embedder": self.embedder,
            "cosine": self.cosine.to_dict(),
            "ih_sim": self.ih_sim.to_dict(),
            "gap": self.gap.to_dict(),
            "between_generated": plain(self.between_generated),
            "between_real": plain(self.between_real),
        }


def identity_similarity(
    generated: Tensor,
    generated_ids: Identities,
    real: Tensor,
    real_ids: Identities,
    *,
    embedder: str,
    seed: int = 0,
    samples: int = 2000,
) -> IdentityResult:
    """Cosine, ih_sim and their gap for generated embeddings (Q,D) against galleries of real ones (N,D).

    Intervals resample identities. Raises UserError as `retrieval.retrieval` does.
    """
    gallery = build_gallery(real, real_ids)
    targets = gallery_targets(gallery.identities, generated_ids)
    queries = unit_rows(generated, "generated faces")
    own, others = _similarity_compute(queries @ gallery.vectors.T, targets)

    def estimate(values: Floats | None) -> Estimate:
        if values is None:
            return Estimate(None, n=len(targets), reason="one identity only: no impostors")
        return cluster_bootstrap(values, targets, samples=samples, seed=seed)

    return IdentityResult(
        embedder,
        estimate(own),
        estimate(others),
        estimate(None if others is None else own - others),
        _between(queries, targets),
        _between(gallery.vectors, np.arange(len(gallery.vectors))),
    )


def _similarity_compute(similarity: Floats, targets: NDArray[np.int64]) -> tuple[Floats, Floats | None]:
    """Per query: cosine to the own column of (Q,G), and its mean over the other columns (None if there are none)."""
    own = np.take_along_axis(similarity, targets[:, None], axis=1)[:, 0]
    others = similarity.shape[1] - 1
    return own, (similarity.sum(axis=1) - own) / others if others else None


def _between(vectors: Floats, labels: NDArray[np.int64]) -> float | None:
    """Mean dot product over pairs of rows with different labels: all pairs minus those inside a label."""
    sums = np.zeros((labels.max() + 1, vectors.shape[1]))
    np.add.at(sums, labels, vectors)
    counts = np.bincount(labels)
    pairs = len(labels) ** 2 - (counts**2).sum()
    total = sums.sum(axis=0)
    return float((total @ total - (sums**2).sum()) / pairs) if pairs else None


@dataclass(frozen=True)
class CollapseAlarm:
    """Whether portraits ignore their voice, in one sentence."""

    raised: bool
    text: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values for metrics.json."""
        return {"raised": self.raised, "text": self.text}


def collapse_alarm(retrieved: RetrievalResult, similarity: IdentityResult) -> CollapseAlarm:
    """Raised when R@1 is not significantly above chance and ih_sim is as high as the cosine.

    A model that always draws the mean face has a high cosine, the same ih_sim, and R@1 at chance. "As high" means
    a gap below `COLLAPSE_GAP` or an interval of the gap that reaches zero.
    """
    gap = similarity.gap
    if gap.value is None or retrieved.recall[1].value is None:
        return CollapseAlarm(False, f"not judged: {gap.reason or retrieved.recall[1].reason}")
    at_chance = not retrieved.above_chance(1)
    close = gap.value < COLLAPSE_GAP or (gap.low is not None and gap.low <= 0)
    figures = (
        f"R@1 {retrieved.recall[1].value:.3f} (chance {retrieved.chance(1):.3f}), "
        f"cosine - ih_sim {gap.value:.3f}, between portraits {_shown(similarity.between_generated)}, "
        f"between real identities {_shown(similarity.between_real)}"
    )
    if not (at_chance and close):
        return CollapseAlarm(False, f"no alarm: {figures}")
    alike = (similarity.between_generated or 0) > (similarity.between_real or 0) + COLLAPSE_GAP
    cause = (
        "portraits are more alike than real people: mode collapse" if alike else "portraits differ, but not by voice"
    )
    return CollapseAlarm(True, f"{cause}: {figures}")


def _shown(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"


@dataclass(frozen=True)
class MatchingResult:
    """Accuracy of picking the true face over an impostor's (chance 0.5), over all and within groups."""

    embedder: str
    accuracy: Estimate
    same_group: Estimate | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for metrics.json."""
        same = {} if self.same_group is None else {"same_group": self.same_group.to_dict()}
        return {"embedder": self.embedder, "chance": 0.5, "accuracy": self.accuracy.to_dict()} | same


def matching_accuracy(
    generated: Tensor,
    generated_ids: Identities,
    real: Tensor,
    real_ids: Identities,
    *,
    embedder: str,
    groups: Mapping[Any, Any] | None = None,
    seed: int = 0,
    samples: int = 2000,
) -> MatchingResult:
    """Wen et al. 2019: right if cos(generated, true face) > cos(generated, impostor's face); ties are wrong.

    Every pair of a true and an impostor's single face counts, instead of one random draw, so that the figure has no
    sampling noise. `groups` maps identities to a group (gender): impostors of the same group only, without
    which the figure mostly measures gender. Intervals resample identities.

    Raises:
        UserError: an identity without real faces or without group, or broken embeddings.
    """
    names = np.asarray(generated_ids).tolist()
    owners = np.asarray(real_ids)
    gallery_targets(np.unique(owners), names)
    queries, faces = unit_rows(generated, "generated faces"), unit_rows(real, "real faces")

    def accuracy(group_of_face: NDArray[Any] | None, group_of_query: Sequence[Any]) -> Estimate:
        values, judged = [], []
        for query, name, group in zip(queries, names, group_of_query, strict=True):
            true = owners == name
            impostors = ~true if group_of_face is None else ~true & (group_of_face == group)
            if impostors.any():
                similarity = faces @ query
                values.append(_wins(similarity[true], similarity[impostors]))
                judged.append(name)
        if not values:
            return Estimate(None, reason="no identity has an impostor")
        return cluster_bootstrap(np.array(values), np.asarray(judged), samples=samples, seed=seed)

    everyone = accuracy(None, names)
    if groups is None:
        return MatchingResult(embedder, everyone, None)
    unknown = sorted({str(name) for name in [*names, *owners.tolist()] if name not in groups})
    if unknown:
        raise UserError(f"{len(unknown)} identities have no group, first: {unknown[0]}")
    group_of_face = np.array([str(groups[name]) for name in owners.tolist()])
    same = accuracy(group_of_face, [str(groups[name]) for name in names])
    return MatchingResult(embedder, everyone, same)


def _wins(true: Floats, impostors: Floats) -> float:
    """Share of pairs in which the true similarity is strictly the greater."""
    return float(np.searchsorted(np.sort(impostors), true - TIE, side="left").mean() / len(impostors))


class IdentityMetric(Metric):
    """R@K, cosine and ih_sim during training, gathered over ranks: `update(embeddings, identities, kind)`.

    Identities are numbers. `compute` gives `top1`, `top5`, ..., `csim`, `ih_sim` as float64 scalars; NaN before
    there are two identities with real faces. Generated faces whose identity has no real face yet are left out,
    since a partial validation (Lightning's sanity check) may not have seen them, and so are broken ones.
    """

    higher_is_better = True
    full_state_update = False
    generated: list[Tensor]
    generated_ids: list[Tensor]
    real: list[Tensor]
    real_ids: list[Tensor]

    def __init__(self, dim: int, ks: Sequence[int] = (1, 5, 10), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.dim = dim
        self.ks = tuple(ks)
        for name in ("generated", "generated_ids", "real", "real_ids"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, embeddings: Tensor, identities: Tensor, kind: Literal["generated", "real"]) -> None:
        """Add embeddings (B,dim) of generated or real faces of `identities` (B,) int64."""
        getattr(self, kind).append(embeddings.detach().float())
        getattr(self, f"{kind}_ids").append(identities.long())

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Gather over ranks, some of which may have seen nothing."""
        faces, ids = no_rows(self.dim), no_rows(dtype=torch.int64)
        fill_empty(self, {"generated": faces, "generated_ids": ids, "real": faces, "real_ids": ids})
        super().sync(*args, **kwargs)

    def compute(self) -> dict[str, Tensor]:
        """Scalars by the names of the shared logging keys."""
        values = self._values()
        return {name: torch.tensor(value, dtype=torch.float64, device=self.device) for name, value in values.items()}

    def _values(self) -> dict[str, float]:
        missing = {f"top{k}": float("nan") for k in self.ks} | {"csim": float("nan"), "ih_sim": float("nan")}
        queries, faces = joined(self.generated), joined(self.real)
        generated_ids, face_ids = joined(self.generated_ids), joined(self.real_ids)
        if queries is None or faces is None or generated_ids is None or face_ids is None:
            return missing
        ids, real_ids = generated_ids.cpu().numpy(), face_ids.cpu().numpy()
        used = np.isin(ids, real_ids) & queries.isfinite().all(dim=1).cpu().numpy()
        if len(np.unique(real_ids)) < 2 or not used.any():
            return missing
        gallery = build_gallery(faces, real_ids)
        targets = gallery_targets(gallery.identities, ids[used])
        similarity = unit_rows(queries.cpu()[used], "generated faces") @ gallery.vectors.T
        places = ranks(similarity, targets)
        own, others = _similarity_compute(similarity, targets)
        recall = {f"top{k}": float((places <= k).mean()) for k in self.ks}
        return recall | {"csim": float(own.mean()), "ih_sim": float(np.asarray(others).mean())}
