"""Sync scores against plain loops over windows and shifts."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from common.errors import UserError
from common.metrics import lse
from common.metrics.lse import (
    LSE,
    SyncScore,
    official_curve,
    read_curve,
    score_clip,
    score_embeddings,
    score_streams,
    shift_distances,
    summarize,
    valid_curve,
)
from common.syncnet import SyncNet


def embeddings(windows: int, dim: int = 1024, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(windows, dim, generator=generator), torch.randn(windows, dim, generator=generator)


def published(lips: torch.Tensor, sounds: torch.Tensor) -> tuple[torch.Tensor, int, float, float]:
    """The loop of syncnet_python: per window 31 rows, stacked, averaged, least, median."""
    padded = F.pad(sounds, (0, 0, 15, 15))
    distances = [
        F.pairwise_distance(lips[[v], :].repeat(31, 1), padded[v : v + 31, :]) for v in range(len(lips))
    ]  # fmt: skip
    mean = torch.mean(torch.stack(distances, 1), 1)
    least, place = torch.min(mean, 0)
    return mean, 15 - int(place), float(least), float(torch.median(mean) - least)


@pytest.mark.parametrize("windows", [1, 2, 14, 31, 70, 301])
def test_distances_and_scores_equal_the_published_loop_to_the_bit(windows: int) -> None:
    lips, sounds = embeddings(windows, seed=windows)
    mean, offset, distance, confidence = published(lips, sounds)
    curve = official_curve(shift_distances(lips, sounds))
    assert torch.equal(curve, mean)
    score = score_embeddings(lips, sounds)
    assert (score.offset, score.distance, score.confidence) == (offset, distance, confidence)
    assert score.windows == windows
    assert torch.equal(torch.tensor(score.curve), mean)


def test_distances_equal_a_loop_over_shifts_to_the_bit() -> None:
    lips, sounds = embeddings(40, 256, seed=3)
    distances = shift_distances(lips, sounds)
    for shift in range(-15, 16):
        moved = torch.zeros_like(sounds)
        if shift >= 0:
            moved[: 40 - shift] = sounds[shift:]
        else:
            moved[-shift:] = sounds[:shift]
        assert torch.equal(distances[:, shift + 15], F.pairwise_distance(lips, moved))


@pytest.mark.parametrize("windows", [1, 4, 20, 71])
def test_valid_curve_equals_a_loop_over_real_pairs(windows: int) -> None:
    lips, sounds = embeddings(windows, 16, seed=windows)
    curve = valid_curve(shift_distances(lips, sounds))
    for shift in range(-15, 16):
        pairs = [(v, v + shift) for v in range(windows) if 0 <= v + shift < windows]
        if 2 * len(pairs) < windows:
            assert curve[shift + 15].isnan()
            continue
        expected = np.mean([float((lips[a] - sounds[b] + 1e-6).norm()) for a, b in pairs])
        assert float(curve[shift + 15]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("delay", [-9, -1, 0, 4, 15])
def test_offset_is_the_delay_that_mends_it(delay: int) -> None:
    """Sound that comes `delay` frames early: what belongs to frame v stands at v - delay."""
    lips, _ = embeddings(60, 64)
    sounds = torch.roll(lips, -delay, dims=0)
    score = score_embeddings(lips, sounds)
    assert score.offset == score.valid_offset == delay
    assert score.valid_distance == pytest.approx(1e-6 * 8, abs=1e-5)


def test_padding_with_zeros_shows_in_the_official_mean_only() -> None:
    lips, _ = embeddings(10, 64)
    far = score_embeddings(lips, torch.full_like(lips, 100.0))
    assert abs(far.offset) == 15
    assert abs(far.valid_offset) <= 5
    assert far.confidence > 100 > far.valid_confidence


def test_blocks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    lips, sounds = embeddings(33, 64)
    whole = shift_distances(lips, sounds)
    monkeypatch.setattr(lse, "_BLOCK_CPU", 7)
    assert torch.equal(shift_distances(lips, sounds), whole)


def test_ties_take_the_first_shift_and_nan_does_not_count() -> None:
    curve = torch.tensor([torch.nan, 3.0, 1.0, 1.0, torch.nan])
    assert read_curve(curve) == (0, 1.0, 0.0)


def test_refuses_unequal_no_and_broken_windows() -> None:
    lips, sounds = embeddings(5, 8)
    with pytest.raises(ValueError, match="must be equal"):
        shift_distances(lips, sounds[:4])
    with pytest.raises(ValueError, match="no windows"):
        score_embeddings(lips[:0], sounds[:0])
    with pytest.raises(UserError, match="not finite"):
        score_embeddings(lips / 0, sounds)


@pytest.fixture(scope="module")
def net() -> SyncNet:
    torch.manual_seed(0)
    return SyncNet(width=0.05, size=64).eval()


def frames(count: int) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (count, 40, 50, 3), dtype=np.uint8))


def noise(samples: int) -> torch.Tensor:
    return torch.rand(samples, generator=torch.Generator().manual_seed(0)) - 0.5


def test_windows_are_those_of_the_shorter_stream_less_five(net: SyncNet) -> None:
    assert score_clip(net, frames(20), noise(20 * 640)).windows == 15
    assert score_clip(net, frames(6), noise(6 * 640)).windows == 1
    longer = score_clip(net, frames(20), noise(30 * 640))
    shorter = score_clip(net, frames(20), noise(12 * 640 + 639))
    assert (longer.windows, shorter.windows) == (15, 7)
    assert "sound is 10 frames longer than the picture" in longer.note
    assert "picture is 8 frames longer than the sound" in shorter.note
    assert score_clip(net, frames(20), noise(20 * 640)).note == ""


def test_what_lies_behind_the_shorter_stream_does_not_count(net: SyncNet) -> None:
    wave = noise(30 * 640)
    other = torch.cat([wave[: 20 * 640], torch.zeros(10 * 640)])
    assert score_clip(net, frames(20), wave).curve == score_clip(net, frames(20), other).curve


@pytest.mark.parametrize(("shown", "heard"), [(0, 20), (1, 20), (5, 20), (20, 5), (20, 0)])
def test_too_short_clips_say_so(net: SyncNet, shown: int, heard: int) -> None:
    with pytest.raises(UserError, match=r"too short to measure sync.*6 of both"):
        score_clip(net, frames(shown), noise(heard * 640))


def test_silence_and_stills_are_doubted(net: SyncNet) -> None:
    silent = score_clip(net, frames(12), torch.zeros(12 * 640))
    assert "silent" in silent.note
    assert np.isfinite(silent.curve).all()
    still = score_clip(net, frames(1) * 12, noise(12 * 640))
    assert "never changes" in still.note


def test_streams_embedded_before_score_alike(net: SyncNet) -> None:
    from common.syncnet import embed_frames

    images, wave = frames(15), noise(15 * 640)
    assert score_streams(net, embed_frames(net, images), wave) == score_clip(net, images, wave)


def score(distance: float, confidence: float, offset: int = 0) -> SyncScore:
    return SyncScore(offset, distance, confidence, offset, distance + 1, confidence + 1, 10, (0.0,) * 31)


def test_summary_states_extractor_protocol_and_count() -> None:
    scores = [score(6, 8), score(8, 6, 3), score(7, 7, -1), score(7, 7, 9)]
    result = summarize(scores, ["a", "a", "b", "c"], extractor="own:12345678", protocol="lrs")
    assert (result.n, result.lse_d.value, result.lse_c.value) == (4, 7.0, 7.0)
    assert result.valid_lse_d.value == 8.0
    assert (result.median_offset, result.in_sync) == (1.5, 0.5)
    assert result.lse_d.low is not None
    assert result.lse_d.low <= 7 <= (result.lse_d.high or 0)
    text, values = str(result), result.to_dict()
    assert "own:12345678" in text
    assert "protocol lrs" in text
    assert "N 4" in text
    assert values["lse_c"]["n"] == 4
    assert values["extractor"] == "own:12345678"


def test_summary_of_one_and_of_nothing() -> None:
    one = summarize([score(5, 4)], extractor="x", protocol="real")
    assert (one.lse_d.value, one.lse_d.low) == (5.0, None)
    none = summarize([], extractor="x", protocol="real")
    assert (none.n, none.lse_d.value, none.in_sync) == (0, None, None)
    assert "no items" in str(none)


def test_metric_gathers_over_ranks_that_saw_unequal_numbers() -> None:
    parts = [[score(6, 8), score(8, 6)], [], [score(10, 1, 5)]]
    ranks = []
    for part in parts:
        metric = LSE("own:12345678", "lrs")
        if part:
            metric.update(part, list(range(len(part))))
        ranks.append(metric)
    assert ranks[1].compute()["lse_d"].isnan()

    def gather(value: torch.Tensor, group: object = None) -> list[torch.Tensor]:
        name = "rows" if value.dim() == 2 else "groups"
        found = [getattr(rank, name) for rank in ranks]
        return [torch.cat(rows) if rows else value[:0] for rows in found]

    whole = LSE("own:12345678", "lrs", dist_sync_fn=gather, distributed_available_fn=lambda: True)
    whole.update(parts[0], [0, 1])
    assert {k: round(float(v), 5) for k, v in whole.compute().items()} == {
        "lse_d": 8.0, "lse_c": 5.0, "in_sync": round(2 / 3, 5)
    }  # fmt: skip
    assert whole.result().n == 3


def test_metric_refuses_other_counts_and_starts_empty() -> None:
    metric = LSE("x", "lrs")
    with pytest.raises(ValueError, match="1 scores of 0 groups"):
        metric.update([score(1, 1)], [])
    assert metric.compute()["lse_c"].isnan()
    assert metric.result().n == 0


@pytest.mark.gpu
def test_cuda_scores_like_the_cpu(net: SyncNet) -> None:
    images, wave = frames(30), noise(30 * 640)
    here = score_clip(net, images, wave)
    there = score_clip(net.cuda(), images, wave)
    net.cpu()
    np.testing.assert_allclose(there.curve, here.curve, rtol=1e-3)
    lips, sounds = embeddings(70)
    torch.testing.assert_close(
        shift_distances(lips.cuda(), sounds.cuda()).cpu(), shift_distances(lips, sounds), rtol=1e-5, atol=1e-5
    )
