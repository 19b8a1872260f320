"""The expert's training: losses against loops, offsets, curriculum, rates, and what is said when it is stuck."""

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from common.audio.lipsync_features import speech_features
from common.config import load
from common.data.corpus import Corpus
from common.data.sampling import Draw
from lipsync.clips import SpeakingClips
from lipsync.config import LipSyncConfig
from lipsync.data import ExpertWindows
from lipsync.expert_module import (
    ExpertTraining,
    as_float,
    contrast,
    judged,
    lip_windows,
    min_offset,
    offsets_found,
)
from lipsync.networks import sync_window
from lipsync.overfit import overfit_one_batch
from lipsync.plateau import Facts, PlateauWatch, diagnose, gather_facts, is_stuck
from tests.lipsync.toy_talk import toy_talk

WORDS = [
    "run.package=lipsync", "run.name=toy", "data.size=32", "expert.span=20", "expert.windows=6", "expert.clips=3",
    "expert.width=0.06", "feature.name=mel", "data.cache=true", "data.workers=0",
]  # fmt: skip


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return toy_talk(tmp_path_factory.mktemp("talk") / "corpus")


def test_lip_windows_are_the_networks_sync_windows() -> None:
    frames = torch.rand(2, 3, 12, 32, 32)
    starts = torch.tensor([[0, 3, 7], [1, 2, 6]])
    windows = lip_windows(frames, starts)
    for clip in range(2):
        for row, start in enumerate(starts[clip].tolist()):
            expected = sync_window(frames[clip : clip + 1, :, start : start + 5])[0]
            assert torch.equal(windows[clip, row], expected)


@pytest.mark.parametrize("smallest", [1, 3, 50])
def test_balanced_losses_equal_a_loop(smallest: int) -> None:
    probability = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(0)) * 0.98 + 0.01
    starts = torch.tensor([[0, 1, 4, 9], [2, 3, 5, 6]])
    apart = (starts[:, :, None] - starts[:, None]).abs()
    found = judged(probability, apart, smallest)
    losses, hits = [], []
    for clip in range(2):
        right = [float(probability[clip, i, i]) for i in range(4)]
        pairs = [(i, j) for i in range(4) for j in range(4) if i != j and apart[clip, i, j] >= smallest]
        wrong = [float(probability[clip, i, j]) for i, j in pairs]
        parts = [-np.log(right).mean(), -np.log1p(-np.array(wrong)).mean() if wrong else 0.0]
        losses.append(sum(parts) / 2)
        hits.append((np.mean(np.array(right) > 0.5) + (np.mean(np.array(wrong) <= 0.5) if wrong else 0)) / 2)
    assert float(found["bce"]) == pytest.approx(np.mean(losses), rel=1e-5)
    assert float(found["balanced_accuracy"]) == pytest.approx(np.mean(hits), rel=1e-5)


def test_guessing_costs_the_logarithm_of_two() -> None:
    apart = (torch.arange(6)[:, None] - torch.arange(6)).abs()[None]
    found = judged(torch.full((1, 6, 6), 0.5), apart, 1)
    assert float(found["bce"]) == pytest.approx(math.log(2))
    assert float(found["balanced_accuracy"]) == 0.5


def test_contrast_equals_a_loop_and_leaves_near_pairs_out() -> None:
    probability = torch.rand(1, 5, 5, generator=torch.Generator().manual_seed(1))
    apart = (torch.arange(5)[:, None] - torch.arange(5)).abs()[None]
    total = 0.0
    for table in (probability[0], probability[0].T):
        for i in range(5):
            kept = [j for j in range(5) if j == i or abs(i - j) >= 2]
            scores = torch.exp(table[i, kept] / 0.2)
            total -= float(torch.log(scores[kept.index(i)] / scores.sum())) / 10
    assert float(contrast(probability, apart, 2, 0.2)) == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("late", [-3, -1, 0, 1, 2])
def test_offsets_are_found_where_they_are(late: int) -> None:
    """Sound that lies `late` windows after the lips that it belongs to."""
    place = torch.arange(20)
    probability = torch.rand(20, 20, generator=torch.Generator().manual_seed(2)) * 0.5
    probability[place[:, None] + late == place] = 0.9
    found = offsets_found(probability, 5)
    assert float(found["clip"]) == float(abs(late) <= 1)
    assert float(found["window"]) == float(abs(late) <= 1)
    assert offsets_found(probability[:8, :8], 5)["window"].isnan()


def test_the_curriculum() -> None:
    assert [min_offset((5, 1), done) for done in (0.0, 0.25, 0.5, 1.0, 2.0)] == [5, 4, 3, 1, 1]


def test_variation_is_a_function_of_the_step_and_the_rank(corpus: Corpus) -> None:
    words = [f"data.vary.{name}=0.2" for name in ("jitter", "zoom", "light", "gain", "timbre")]
    cfg = load(LipSyncConfig, None, WORDS + words)
    module = ExpertTraining(cfg, speech_features("mel"))
    clips = SpeakingClips(corpus, "train", 32, 20, cache=True)
    data = ExpertWindows(clips, module.speech, cfg.expert, flip=False)
    batch = torch.utils.data.default_collate([data[Draw(i, i)] for i in range(2)])
    module.trainer = SimpleNamespace(global_rank=0, world_size=1)
    first, again = module.varied(batch), module.varied(batch)
    assert torch.equal(first["frames"], again["frames"])
    assert torch.equal(first["audio"], again["audio"])
    assert not torch.equal(first["frames"], as_float(batch["frames"]))
    module.step = 1
    assert not torch.equal(module.varied(batch)["audio"], first["audio"])
    module.step, shares = 0, []
    for rank in range(2):
        module.trainer = SimpleNamespace(global_rank=rank, world_size=2)
        shares.append(module.varied({name: value[rank::2] for name, value in batch.items()})["frames"])
    torch.testing.assert_close(torch.cat(shares), first["frames"])


FINE = Facts(0.0, 0.0, 0, 100, 20, 600.0, 1e-4, 128, 5)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"silent": 0.5}, "silent"),
        ({"still": 0.9}, "stands still"),
        ({"lr": 1e-3, "batch": 64}, "expert.lr"),
        ({"batch": 8}, "raise expert.clips"),
        ({"people": 1}, "too few"),
        ({"seconds": 20.0}, "too few"),
        ({"unmeasured": 90}, "never measured"),
        ({"min_offset": 1}, "hard at first"),
        ({}, "train longer"),
    ],
)
def test_a_diagnosis_names_what_is_wrong_in_one_line(changes: dict[str, float], word: str) -> None:
    text = diagnose(Facts(**(FINE.__dict__ | changes)))
    assert word in text
    assert "\n" not in text


def test_facts_see_silence_and_still_pictures(corpus: Corpus, tmp_path: Path) -> None:
    cfg = load(LipSyncConfig, None, WORDS)
    speech = speech_features("mel")
    data = ExpertWindows(SpeakingClips(corpus, "train", 32, 20, cache=True), speech, cfg.expert, flip=False)
    facts = gather_facts(cfg, data, 5)
    assert (facts.silent, facts.still, facts.people, facts.clips, facts.batch) == (0, 0, 3, 3, 18)
    data.clips._kept = [torch.zeros_like(faces) for faces in data.clips._kept]
    data.speech._kept = {index: torch.full((80, 200), -4.0) for index in range(3)}
    facts = gather_facts(cfg, data, 5)
    assert (facts.silent, facts.still) == (1, 1)


@pytest.mark.parametrize(
    ("losses", "stuck"),
    [
        ([0.69] * 20, True),
        ([0.72, 0.68] * 10, True),
        ([0.9] * 20, True),  # worse than guessing
        ([0.8 - 0.01 * i for i in range(20)], False),  # on its way down from above
        ([0.66] * 20, False),
    ],
)
def test_stuck_is_near_guessing_and_not_on_the_way_down(losses: list[float], stuck: bool) -> None:
    assert is_stuck(losses) is stuck


def test_the_watch_speaks_once_and_remembers(corpus: Corpus, capsys: pytest.CaptureFixture[str]) -> None:
    cfg = load(LipSyncConfig, None, [*WORDS, "expert.warmup=3"])
    module = ExpertTraining(cfg, speech_features("mel"))
    data = ExpertWindows(SpeakingClips(corpus, "train", 32, 20), module.speech, cfg.expert, flip=False)
    trainer = SimpleNamespace(is_global_zero=True)

    def see(watch: PlateauWatch, loss: float, steps: int) -> str:
        for _ in range(steps):
            module.step += 1
            watch.on_train_batch_end(trainer, module, {"loss_bce": torch.tensor(loss), "min_offset": torch.tensor(5.0)})
        return capsys.readouterr().err

    learning, stuck = PlateauWatch(cfg, data, 20), PlateauWatch(cfg, data, 20)
    assert see(learning, 0.6, 50) == ""
    module.step = 0
    assert see(stuck, 0.7, 18) == ""
    resumed = PlateauWatch(cfg, data, 20)
    resumed.load_state_dict(stuck.state_dict())
    said = see(resumed, 0.7, 40)
    assert said.count("stuck at 0.700") == 1
    assert "18 windows a step are few" in said
    again = PlateauWatch(cfg, data, 20)
    again.load_state_dict(resumed.state_dict())
    assert see(again, 0.7, 40) == ""


def test_one_batch_is_learnt_by_heart_unless_the_rate_is_nil(corpus: Corpus) -> None:
    cfg = load(LipSyncConfig, None, [*WORDS, "expert.lr=0.003", "expert.width=0.1"])
    found = overfit_one_batch(cfg, corpus, steps=80)
    assert found.cause == "", found.text()
    assert found.last < 0.35 < found.first
    assert found.steps < 80
    stuck = overfit_one_batch(load(LipSyncConfig, None, [*WORDS, "expert.lr=0"]), corpus, steps=3)
    assert "18 windows a step are few" in stuck.text()
