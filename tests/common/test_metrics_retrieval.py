"""Retrieval and the bootstrap against plain loops, chance, perfect and tied queries, hostile input."""

import json

import numpy as np
import pytest
import torch
from torch import Tensor

from common.errors import UserError
from common.metrics.estimate import Estimate, cluster_bootstrap, plain
from common.metrics.retrieval import build_gallery, ranks, retrieval


def faces(identities: int, each: int, width: int = 16, noise: float = 0.3, seed: int = 0) -> tuple[Tensor, list[str]]:
    """Embeddings that scatter about one random centre per identity; identities are named, unsorted."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(identities, width, generator=torch.Generator().manual_seed(99))
    rows = centres.repeat_interleave(each, dim=0)
    rows = rows + noise * torch.randn(rows.shape, generator=generator)
    return rows, [f"id{(7 * number) % identities:03d}" for number in range(identities) for _ in range(each)]


def recall_by_loops(queries: Tensor, ids: list[str], real: Tensor, real_ids: list[str], k: int) -> float:
    gallery = {}
    for name in set(real_ids):
        rows = [row / row.norm() for row, owner in zip(real.double(), real_ids, strict=True) if owner == name]
        gallery[name] = sum(rows) / len(rows)
    hits = 0
    for query, name in zip(queries.double(), ids, strict=True):
        cosines = {other: torch.cosine_similarity(query, vector, dim=0).item() for other, vector in gallery.items()}
        hits += sum(cosines[other] >= cosines[name] for other in cosines if other != name) < k
    return hits / len(ids)


def test_recall_equals_plain_loops():
    real, real_ids = faces(13, 3, seed=1)
    queries, ids = faces(13, 4, noise=1.5, seed=2)
    result = retrieval(queries, ids, real * 3.7, real_ids, embedder="toy")
    for k in (1, 5, 10):
        assert result.recall[k].value == pytest.approx(recall_by_loops(queries, ids, real, real_ids, k))
    assert 0 < result.recall[1].value < result.recall[5].value < 1
    assert (result.gallery_size, result.galleries, result.queries) == (13, 1, 52)


def test_perfect_and_random_queries():
    real, ids = faces(40, 2, noise=0.01)
    perfect = retrieval(real, ids, real, ids, embedder="toy")
    assert [perfect.recall[k].value for k in (1, 5, 10)] == [1, 1, 1]
    assert perfect.median_rank == 1
    assert perfect.above_chance()
    generator = torch.Generator().manual_seed(3)
    covered = 0
    for trial in range(20):
        noise = torch.randn(80, 16, generator=generator)
        result = retrieval(noise, ids, real, ids, embedder="toy", seed=trial, samples=500)
        covered += all(result.recall[k].low <= result.chance(k) <= result.recall[k].high for k in (5, 10))
    assert result.chance(5) == 5 / 40
    assert covered >= 16


def test_ties_count_against():
    real, ids = faces(6, 1)
    one_face = real[:1].expand(6, -1)
    collapsed = retrieval(one_face, ids, one_face, ids, embedder="toy")
    assert collapsed.recall[1].value == 0, "every gallery face equals the query: nobody is recognised"
    assert collapsed.recall[5].value == 0
    assert collapsed.median_rank == 6
    similarity = np.array([[0.5, 0.5 + 1e-12, 0.2], [0.1, 0.9, 0.9 - 1e-6], [np.inf, 0.3, 0.3 - 1e-12]])
    assert ranks(similarity, np.array([0, 1, 2])).tolist() == [2, 1, 3]
    candidates = np.array([[True, False, True]] * 3)
    assert ranks(similarity, np.array([0, 2, 2]), candidates).tolist() == [1, 1, 2]


def test_disjoint_galleries_of_a_stated_size():
    real, real_ids = faces(17, 2, seed=1)
    queries, ids = faces(17, 3, noise=1.5, seed=2)
    result = retrieval(queries, ids, real, real_ids, embedder="toy", gallery_size=5, galleries=3, seed=4)
    names = sorted(set(real_ids))
    order = np.random.default_rng(4).permutation(17)[:15]
    values = []
    for group in order.reshape(3, 5):
        members = {names[row] for row in group}
        chosen = [row for row, name in enumerate(ids) if name in members]
        kept = [row for row, name in enumerate(real_ids) if name in members]
        values.append(
            recall_by_loops(queries[chosen], [ids[i] for i in chosen], real[kept], [real_ids[i] for i in kept], 1)
        )
    assert result.recall[1].value == pytest.approx(np.mean(values))
    assert (result.gallery_size, result.galleries, result.queries) == (5, 3, 45)
    assert result.chance(1) == 0.2
    whole = retrieval(queries, ids, real, real_ids, embedder="toy")
    assert result.recall[1].value > whole.recall[1].value, "a smaller gallery is easier"
    assert result.recall[10].value is None
    assert result.recall[10].reason == "a gallery of 5 has no 10 candidates"
    with pytest.raises(UserError, match="4 galleries of 5 need 20 identities with real faces; there are 17"):
        retrieval(queries, ids, real, real_ids, embedder="toy", gallery_size=5, galleries=4)
    outside = names[np.random.default_rng(4).permutation(17)[-1]]
    with pytest.raises(UserError, match="no generated face belongs"):
        retrieval(queries[:1], [outside], real, real_ids, embedder="toy", gallery_size=5, galleries=3, seed=4)


def test_gallery_is_the_mean_of_normalised_faces_in_sorted_order():
    gallery = build_gallery(torch.tensor([[3.0, 0.0], [0.0, 0.1], [0.0, 5.0]]), ["b", "b", "a"])
    assert gallery.identities == ("a", "b")
    assert gallery.vectors == pytest.approx(np.array([[0, 1], [0.5**0.5, 0.5**0.5]]))
    assert build_gallery(torch.eye(3), torch.tensor([5, 3, 5])).identities == (3, 5)


def test_bad_input_is_one_line():
    real, ids = faces(4, 2)
    with pytest.raises(UserError, match="2 identities have generated faces but no real face in the gallery, first: x"):
        retrieval(real[:3], ["y", "x", ids[0]], real, ids, embedder="toy")
    broken = real.clone()
    broken[2] = torch.nan
    broken[5] = 0
    with pytest.raises(UserError, match="2 of 8 embeddings of generated faces are zero or not finite, first number 2"):
        retrieval(broken, ids, real, ids, embedder="toy")
    with pytest.raises(UserError, match="of real faces are zero or not finite"):
        retrieval(real, ids, broken, ids, embedder="toy")
    with pytest.raises(UserError, match="there are no real faces"):
        retrieval(real, ids, real[:0], [], embedder="toy")
    with pytest.raises(UserError, match="there are no generated faces"):
        retrieval(real[:0], [], real, ids, embedder="toy")
    with pytest.raises(ValueError, match="8 embeddings of generated faces with identities of shape"):
        retrieval(real, ids[:3], real, ids, embedder="toy")


def test_same_input_gives_the_same_json_in_any_order():
    real, real_ids = faces(9, 2, seed=1)
    queries, ids = faces(9, 3, noise=1.5, seed=2)
    order = np.random.default_rng(0).permutation(len(ids))
    shuffled = queries[order], [ids[row] for row in order]
    texts = {
        json.dumps(retrieval(*query, real, real_ids, embedder="toy").to_dict(), allow_nan=False)
        for query in [(queries, ids), (queries, ids), shuffled]
    }
    assert len(texts) == 1
    result = json.loads(texts.pop())
    assert result["embedder"] == "toy"
    assert result["r@1"].keys() == {"value", "low", "high", "n", "chance", "above_chance"}
    assert result["r@10"]["reason"] == "a gallery of 9 has no 10 candidates"
    other = retrieval(queries, ids, real, real_ids, embedder="toy", seed=1).to_dict()
    assert other["r@1"]["value"] == result["r@1"]["value"]


def test_bootstrap_resamples_clusters():
    values, clusters = np.array([1.0, 0, 0, 1, 1]), np.array(["a", "b", "b", "c", "c"])
    generator = np.random.default_rng(5)
    means = []
    for drawn in generator.integers(3, size=(400, 3)):
        sample = np.concatenate([values[clusters == "abc"[row]] for row in drawn])
        means.append(sample.mean())
    estimate = cluster_bootstrap(values, clusters, samples=400, seed=5)
    assert (estimate.value, estimate.n) == (0.6, 5)
    assert (estimate.low, estimate.high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])))


def test_bootstrap_interval_has_the_normal_width_and_widens_with_clusters():
    draws = np.random.default_rng(0).standard_normal(900)
    single = cluster_bootstrap(draws, np.arange(900))
    assert single.high - single.low == pytest.approx(2 * 1.96 * draws.std() / 30, rel=0.06)
    repeated = cluster_bootstrap(np.repeat(draws[:100], 9), np.repeat(np.arange(100), 9))
    assert repeated.high - repeated.low == pytest.approx(2 * 1.96 * draws[:100].std() / 10, rel=0.1)


def test_bootstrap_memory_is_bounded_but_results_are_whole(monkeypatch):
    values = np.random.default_rng(1).random(3_000)
    estimate = cluster_bootstrap(values, np.arange(3_000), samples=1500)
    assert estimate.low < values.mean() < estimate.high
    assert estimate.high - estimate.low == pytest.approx(2 * 1.96 * values.std() / 3000**0.5, rel=0.1)


def test_estimates_without_a_number():
    assert cluster_bootstrap(np.empty(0), np.empty(0)) == Estimate(None, reason="no items")
    single = cluster_bootstrap(np.array([1.0, 0.0]), np.array(["a", "a"]))
    assert (single.value, single.low, single.reason) == (0.5, None, "one identity only: no interval")
    assert single.to_dict()["reason"]
    assert [plain(value) for value in (None, float("nan"), float("inf"), 1 / 3)] == [None, None, None, 0.33333333]
