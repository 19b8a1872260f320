"""Cosine, ih_sim, the collapse alarm and matching accuracy against plain loops; the metric for training."""

import json

import numpy as np
import pytest
import torch
from torch import Tensor

from common.errors import UserError
from common.metrics.identity import (
    IdentityMetric,
    collapse_alarm,
    identity_similarity,
    matching_accuracy,
)
from common.metrics.retrieval import retrieval


def faces(identities: int, each: int, noise: float, seed: int, width: int = 12) -> tuple[Tensor, list[str]]:
    """Embeddings about one centre per identity, all leaning to one side as face embeddings do."""
    centres = torch.randn(identities, width, generator=torch.Generator().manual_seed(99)) + 0.7
    rows = centres.repeat_interleave(each, dim=0)
    rows = rows + noise * torch.randn(rows.shape, generator=torch.Generator().manual_seed(seed))
    return rows, [f"id{number:02d}" for number in range(identities) for _ in range(each)]


def cosine(one: Tensor, other: Tensor) -> float:
    return torch.cosine_similarity(one.double(), other.double(), dim=0).item()


def gallery_by_loops(real: Tensor, real_ids: list[str]) -> dict[str, Tensor]:
    return {
        name: torch.stack(
            [row.double() / row.double().norm() for row, owner in zip(real, real_ids, strict=True) if owner == name]
        ).mean(dim=0)
        for name in sorted(set(real_ids))
    }


def test_similarities_equal_plain_loops():
    (real, real_ids), (queries, ids) = faces(7, 3, 0.3, 1), faces(7, 2, 1.0, 2)
    result = identity_similarity(queries, ids, real * 2, real_ids, embedder="toy")
    gallery = gallery_by_loops(real, real_ids)
    own = [cosine(query, gallery[name]) for query, name in zip(queries, ids, strict=True)]
    others = [
        cosine(query, vector)
        for query, name in zip(queries, ids, strict=True)
        for other, vector in gallery.items()
        if other != name
    ]
    rows = range(len(ids))
    pairs = [cosine(queries[i], queries[j]) for i in rows for j in rows if ids[i] != ids[j]]
    real_pairs = [cosine(gallery[x], gallery[y]) for x in gallery for y in gallery if x != y]
    assert result.cosine.value == pytest.approx(np.mean(own), rel=1e-9)
    assert result.ih_sim.value == pytest.approx(np.mean(others), rel=1e-9)
    assert result.gap.value == pytest.approx(np.mean(own) - np.mean(others), rel=1e-9)
    assert result.gap.low < result.gap.value < result.gap.high
    assert result.between_generated == pytest.approx(np.mean(pairs), rel=1e-9)
    assert result.between_real == pytest.approx(np.mean(real_pairs), rel=1e-9)


def judge(queries: Tensor, ids: list[str], real: Tensor, real_ids: list[str]):
    found = retrieval(queries, ids, real, real_ids, embedder="toy")
    return collapse_alarm(found, identity_similarity(queries, ids, real, real_ids, embedder="toy"))


def test_collapse_alarm_tells_one_face_from_unrelated_faces_from_learning():
    (real, real_ids), (queries, ids) = faces(20, 3, 0.3, 1), faces(20, 2, 0.5, 2)
    learned = judge(queries, ids, real, real_ids)
    assert not learned.raised
    assert learned.text.startswith("no alarm: R@1")
    mean_face = real.mean(dim=0) + 0.01 * torch.randn(40, 12, generator=torch.Generator().manual_seed(3))
    collapsed = judge(mean_face, ids, real, real_ids)
    assert collapsed.raised
    assert "mode collapse" in collapsed.text
    similarity = identity_similarity(mean_face, ids, real, real_ids, embedder="toy")
    assert similarity.cosine.value > 0.5, "the very trap: the mean face has a high cosine"
    # each identity gets the face of another one: diverse, and unrelated to the voice
    unrelated = judge(queries.roll(6, dims=0), ids, real, real_ids)
    assert unrelated.raised
    assert "differ, but not by voice" in unrelated.text
    json.dumps([learned.to_dict(), collapsed.to_dict()])


def test_one_identity_has_no_impostors():
    real, ids = faces(1, 4, 0.3, 1)
    result = identity_similarity(real, ids, real, ids, embedder="toy")
    assert result.ih_sim.value is None
    assert result.gap.reason == "one identity only: no impostors"
    assert result.between_generated is None
    assert result.cosine.low is None
    alarm = judge(real, ids, real, ids)
    assert (alarm.raised, alarm.text) == (False, "not judged: one identity only: no impostors")
    assert matching_accuracy(real, ids, real, ids, embedder="toy").accuracy.reason == "no identity has an impostor"
    json.dumps(result.to_dict(), allow_nan=False)


def matching_by_loops(queries, ids, real, real_ids, groups) -> float:
    values = []
    for query, name in zip(queries, ids, strict=True):
        true = [cosine(query, row) for row, owner in zip(real, real_ids, strict=True) if owner == name]
        impostors = [
            cosine(query, row)
            for row, owner in zip(real, real_ids, strict=True)
            if owner != name and groups[owner] == groups[name]
        ]
        if impostors:
            values.append(np.mean([t > i for t in true for i in impostors]))
    return float(np.mean(values))


def test_matching_accuracy_equals_plain_loops_with_and_without_groups():
    (real, real_ids), (queries, ids) = faces(7, 3, 0.8, 1), faces(7, 2, 1.5, 2)
    everyone = dict.fromkeys(real_ids, "any")
    # the last one is alone in its group: no impostor, left out
    groups = {name: "alone" if name == "id06" else "fm"[int(name[2:]) % 2] for name in real_ids}
    result = matching_accuracy(queries, ids, real, real_ids, embedder="toy", groups=groups)
    assert result.accuracy.value == pytest.approx(matching_by_loops(queries, ids, real, real_ids, everyone))
    assert result.same_group.value == pytest.approx(matching_by_loops(queries, ids, real, real_ids, groups))
    assert (result.accuracy.n, result.same_group.n) == (14, 12)
    assert result.to_dict().keys() == {"embedder", "chance", "accuracy", "same_group"}
    assert "same_group" not in matching_accuracy(queries, ids, real, real_ids, embedder="toy").to_dict()


def test_matching_by_gender_alone_falls_to_chance_within_the_gender():
    """Portraits that show only the group: right against the other group, a coin's toss within the own."""
    generator = torch.Generator().manual_seed(0)
    names = [f"id{number:02d}" for number in range(40)]
    group = {name: number % 2 for number, name in enumerate(names)}
    side = torch.tensor([[8.0 if group[name] else -8.0] for name in names])
    real = torch.cat([side, torch.randn(40, 12, generator=generator)], dim=1)
    portraits = torch.cat([side, torch.randn(40, 12, generator=generator)], dim=1)
    result = matching_accuracy(portraits, names, real, names, embedder="toy", groups=group)
    assert result.accuracy.low > 0.6
    assert result.same_group.low < 0.5 < result.same_group.high


def test_matching_ties_are_wrong_and_perfect_is_one():
    real, ids = faces(5, 2, 0.01, 1)
    assert matching_accuracy(real, ids, real, ids, embedder="toy").accuracy.value == 1
    same = real[:1].expand(10, -1)
    assert matching_accuracy(real, ids, same, ids, embedder="toy").accuracy.value == 0


def test_bad_input_is_one_line():
    real, ids = faces(4, 2, 0.3, 1)
    for measure in (identity_similarity, matching_accuracy):
        with pytest.raises(UserError, match=r"1 identities have generated faces but no real face.*first: nobody"):
            measure(real[:2], ["nobody", ids[0]], real, ids, embedder="toy")
        with pytest.raises(UserError, match="zero or not finite"):
            measure(real * torch.nan, ids, real, ids, embedder="toy")
    with pytest.raises(UserError, match="1 identities have no group, first: id03"):
        matching_accuracy(real, ids, real, ids, embedder="toy", groups=dict.fromkeys(ids[:6], "f"))


def test_same_input_gives_the_same_json():
    (real, real_ids), (queries, ids) = faces(7, 3, 0.3, 1), faces(7, 2, 1.0, 2)
    groups = {name: int(name[2:]) % 2 for name in ids}

    def text() -> str:
        similarity = identity_similarity(queries, ids, real, real_ids, embedder="toy")
        matching = matching_accuracy(queries, ids, real, real_ids, embedder="toy", groups=groups)
        return json.dumps([similarity.to_dict(), matching.to_dict()], allow_nan=False)

    assert len({text() for _ in range(3)}) == 1


def test_training_metric_equals_the_functions_and_survives_partial_data():
    (real, real_ids), (queries, ids) = faces(7, 3, 0.3, 1), faces(7, 2, 1.5, 2)
    number = {name: 100 - row for row, name in enumerate(sorted(set(ids)))}
    metric = IdentityMetric(dim=12, ks=(1, 5))
    metric.update(queries[:3], torch.tensor([number[name] for name in ids[:3]]), "generated")
    assert all(value.isnan() for value in metric.compute().values()), "no real face yet"
    metric.update(queries[3:], torch.tensor([number[name] for name in ids[3:]]), "generated")
    for rows, names in [(real[:10], real_ids[:10]), (real[10:], real_ids[10:])]:
        metric.update(rows, torch.tensor([number[name] for name in names]), "real")
    values = metric.compute()
    found = retrieval(queries, ids, real, real_ids, embedder="toy")
    similarity = identity_similarity(queries, ids, real, real_ids, embedder="toy")
    assert values.keys() == {"top1", "top5", "csim", "ih_sim"}
    assert values["top1"].item() == pytest.approx(found.recall[1].value)
    assert values["top5"].item() == pytest.approx(found.recall[5].value)
    assert values["csim"].item() == pytest.approx(similarity.cosine.value, rel=1e-6)
    assert values["ih_sim"].item() == pytest.approx(similarity.ih_sim.value, rel=1e-6)
    strangers = torch.stack([queries[0], queries[0] * torch.nan])
    metric.update(strangers, torch.tensor([5, 100]), "generated")
    assert metric.compute()["top1"].item() == pytest.approx(found.recall[1].value), "unknown and broken are left out"
    metric.reset()
    metric.update(queries[:1], torch.tensor([1]), "generated")
    metric.update(real[:1], torch.tensor([1]), "real")
    assert metric.compute()["csim"].isnan(), "a gallery of one has no meaning"
