"""Paper 3's tables, with trainings and evaluations that are made up, and one of two steps."""

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from common.checkpoint_file import LAST, SCHEMA
from common.config import to_yaml
from common.data.corpus import Corpus
from common.errors import UserError
from common.syncnet import SyncNet
from common.table import configure, plan, read_given
from common.table_rows import Budget, Row
from lipsync.build import EXPERT_KIND, build_expert, build_generator, expert_feature
from lipsync.config import LipSyncConfig
from lipsync.evaluation import COPIED, DUB, MASKED, REAL
from lipsync.report import FRAMES
from lipsync.table import EXPERIMENTS, TABLE, make_table
from lipsync.table_rows import BUDGETS, CLAIMS, FULL, METRICS, ROWS, TABLE1, TABLE2, WAV2LIP
from tests.lipsync.toy_talk import toy_talk

SHOWN = tuple(row for row in ROWS if row.experiment in {"table2_full", "table2_wav2lip", ""})
LSE_D = {"table2_full": 7.0, "table2_wav2lip": 7.5}
TINY = BUDGETS["tiny"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return toy_talk(tmp_path_factory.mktemp("talk") / "corpus", train=3, frames=28)


def evaluation(lse_d: float) -> dict[str, Any]:
    """A metrics.json as `lipsync.report` gives it; clips differ by much more than methods do."""

    def estimate(value: float, half: float) -> dict[str, float]:
        return {"value": value, "low": value - half, "high": value + half, "n": 4}

    def figures(value: float) -> dict[str, Any]:
        return {"lse_d": estimate(value, 1.0), "lse_c": estimate(10 - value, 1.0), "mouth_ssim": estimate(0.5, 0.1)}

    methods = {REAL: figures(6.0), DUB: figures(lse_d), MASKED: figures(9.0), COPIED: figures(8.0)}
    spread = np.array([-2.0, -1.0, 1.0, 2.0])
    return {
        "split": "test", "clips": 4, "people": 1, "frames": 99, "picture": [64, 64], "face_size": 32, "paste": "hard",
        "reference": "far", "extractor": "toy", "protocol": "lrs", "resampled": "clips", "methods": methods,
        "scores": {
            name: {
                f"c{i}": {"person": "a", "lse_d": values["lse_d"]["value"] + s + 0.01 * i}
                for i, s in enumerate(spread)
            }
            for name, values in methods.items()
        },
        "warnings": ["one person only"],
    }  # fmt: skip


class Trainer:
    """Leaves run folders as both trainings do; counts, and fails on demand."""

    def __init__(self, expert_steps: int | None = None) -> None:
        self.expert_steps = expert_steps
        self.done: list[str] = []
        self.experts: dict[str, str] = {}

    def expert(self, cfg: LipSyncConfig) -> Path:
        folder = cfg.run.folder.with_name(f"{cfg.run.name}-expert")
        folder.mkdir(parents=True, exist_ok=True)
        step = cfg.expert.steps if self.expert_steps is None else self.expert_steps
        values = {"kind": EXPERT_KIND, "schema": SCHEMA, "version": "0", "step": step, "state_dict": {}}
        torch.save(values | {"hyper_parameters": {"cfg": {}}}, folder / LAST)
        self.done.append(folder.name)
        if self.expert_steps is not None:
            raise UserError("the disk is full")
        return folder

    def __call__(self, cfg: LipSyncConfig) -> Path:
        folder = cfg.run.folder
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(to_yaml(cfg))
        (folder / "hardware.txt").write_text("an abacus, 2 threads\n")
        (folder / "metrics.csv").write_text("step,val/loss_sync\n1,0.7\n2,0.6\n")
        Image.fromarray(np.full((16, 64, 3), len(self.done) * 40, np.uint8)).save(folder / FRAMES)
        self.done.append(cfg.run.name)
        self.experts[cfg.run.name] = cfg.expert.checkpoint
        return folder


@pytest.fixture
def table(tmp_path: Path, corpus: Corpus) -> Callable[..., str]:
    """Makes the table of `SHOWN` in tmp_path and returns its Markdown."""

    def make(trainer: Trainer, **kwargs: Any) -> str:
        arguments: dict[str, Any] = {
            "corpus": str(corpus.root), "out": tmp_path / "tables", "runs": tmp_path / "runs", "rows": SHOWN,
            "train_run": trainer, "train_first": trainer.expert, "say": lambda _: None, "jobs": 1,
            "measure_run": lambda cfg, _: evaluation(LSE_D[cfg.run.name.rpartition("-")[0]] + cfg.run.seed),
        }  # fmt: skip
        return make_table(TINY, **(arguments | kwargs)).read_text()

    return make


def test_one_expert_is_trained_first_and_teaches_all_rows(table: Callable[..., str], tmp_path: Path) -> None:
    trainer = Trainer()
    table(trainer)
    assert trainer.done == ["table2_full-seed0-expert", "table2_full-seed0", "table2_wav2lip-seed0"]
    expert = tmp_path / "runs" / "lipsync" / "table2_full-seed0-expert" / LAST
    assert set(trainer.experts.values()) == {str(expert)}


def test_an_expert_that_failed_is_named_by_every_row(table: Callable[..., str]) -> None:
    said: list[str] = []
    trainer = Trainer(expert_steps=7)
    text = table(trainer, say=said.append)
    assert said[0].startswith("sync expert: the disk is full: ")
    assert trainer.done == ["table2_full-seed0-expert"]
    steps = configure(LipSyncConfig, TINY, EXPERIMENTS / "table2_full.yaml").expert.steps
    assert text.count(f"-expert, ended at step 7 of {steps} |") == 8  # rows of these two experiments


def test_rows_of_one_run_show_their_own_parts(table: Callable[..., str]) -> None:
    text = table(Trainer())
    assert "| real video | 6 [5, 7] | 8.063 | 4 [3, 5] | 6.51 |" in text
    assert f"| {FULL} | 7 [6, 8] | 8.318 | 3 [2, 4] | 6.488 |" in text
    assert "| masked input | 9 [8, 10] | 1 [0, 2] | 0.5 [0.4, 0.6] |  |" in text
    assert "| ATVGnet |  | 9.869 |" in text
    assert "no figures given |" in text
    for words in (
        "4 clips of 1 people, 99 frames of 64x64 px", "LSE by toy, protocol lrs", "one expert, which hears mel+mfcc",
        "**This is not a replication of the paper: the budget is a small part of the paper's.**",
        "## Do the paper's orderings hold?",
    ):  # fmt: skip
        assert words in text
    assert text.count("one person only") == 1


def test_claims_are_judged_clip_by_clip(table: Callable[..., str]) -> None:
    text = table(Trainer())
    better = f"LSE-D of {FULL} lower than of {WAV2LIP}: **holds** (7 [6, 8] against 7.5 [6.5, 8.5]; difference -0.5"
    assert f"- {TABLE1}: {better}" in text
    assert f"LSE-C of {FULL} higher than of {WAV2LIP}: **within the intervals, the point figures agree**" in text
    assert f"LSE-D of {FULL} lower than of masked input: **holds** (7 [6, 8] against 9 [8, 10]; difference -2 " in text
    assert f"PSNR of {FULL} higher than of {WAV2LIP}: **not judged**" in text


def test_several_seeds_compare_seed_by_seed(table: Callable[..., str]) -> None:
    text = table(Trainer(), seeds=(0, 1))
    assert f"LSE-D of {FULL} lower than of {WAV2LIP}: **holds** (7.5 [1.147, 13.85] against 8 " in text
    assert "difference -0.5 [-0.5, -0.5] on the same items" in text


def test_other_methods_fill_their_rows(table: Callable[..., str], tmp_path: Path) -> None:
    path = tmp_path / "diff2lip.json"
    path.write_text(json.dumps(evaluation(8.5)))
    given = read_given([f"Diff2Lip={path}"], "lipsync")
    text = table(Trainer(), given=given)
    assert "| Diff2Lip | 8.5 [7.5, 9.5] | 9.362 |" in text
    with open(tmp_path / "tables" / "lipsync.csv", newline="") as file:
        rows = {(row["table"], row["row"], row["metric"]): row for row in csv.DictReader(file)}
    assert rows[TABLE1, "Diff2Lip", "lse_d"]["value"] == "8.5"
    assert rows[TABLE1, "PC-AVS", "lse_d"]["note"] == "no figures given"
    with pytest.raises(UserError, match="there is no row for the method 'Nobody'; rows for other methods: ATVGnet"):
        table(Trainer(), given={"Nobody": evaluation(1.0)})


def test_broken_figures_of_other_methods_end_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('{"methods": 3}')
    for word, said in (
        ("Diff2Lip", "wants NAME=FILE"), (f"Diff2Lip={tmp_path / 'absent'}", "cannot read"),
        (f"Diff2Lip={path}", "holds no figures of"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=said):
            read_given([word], "lipsync")


def test_figures_show_curves_and_faces(table: Callable[..., str], tmp_path: Path) -> None:
    text = table(Trainer())
    assert sorted(path.name for path in (tmp_path / "tables" / "lipsync").iterdir()) == [
        "figure_04.png",
        "sync_loss.png",
    ]
    assert "mouth SSIM (validation's SSIM of the mouth): no run logged val/mouth_ssim" in text
    assert "[figure_04.png](lipsync/figure_04.png)" in text


def test_figure_4_shows_drawings_under_the_names_of_their_rows(
    table: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[Row] = []
    monkeypatch.setattr("lipsync.table.write_strips", lambda *given, **_: rows.extend(given[6]) or "written")
    table(Trainer())
    names = {row.experiment: row.name for row in reversed(rows)}
    assert names["table2_full"] == FULL
    assert "real video" not in names.values()


def test_claims_and_printed_figures_speak_of_rows_and_metrics_that_exist() -> None:
    rows, metrics = {(row.table, row.name): row for row in ROWS}, {metric.key: metric for metric in METRICS}
    for claim in CLAIMS:
        better, worse = (rows[claim.table, name].printed for name in (claim.better, claim.worse))
        if claim.metric in better:  # what the paper prints must itself hold
            sign = 1 if metrics[claim.metric].better == "lower" else -1
            assert sign * better[claim.metric] < sign * worse[claim.metric]
    assert all(row.printed.keys() <= metrics.keys() for row in ROWS)
    assert all((EXPERIMENTS / f"{row.experiment}.yaml").is_file() for row in ROWS if row.experiment)


@pytest.mark.parametrize("experiment", dict.fromkeys(row.experiment for row in ROWS if row.experiment))
def test_every_row_builds_under_the_tiny_budget(experiment: str) -> None:
    cfg, recipe = (
        configure(LipSyncConfig, *arguments)
        for arguments in (
            (TINY, EXPERIMENTS / f"{experiment}.yaml"),
            (Budget("none", printed=True), EXPERIMENTS / "quickstart.yaml"),
        )
    )
    with torch.device("meta"):
        networks = [build_generator(cfg), build_expert(cfg)]
    assert all(sum(p.numel() for p in network.parameters()) < 1e7 for network in networks)
    assert replace(cfg.data, batch_size=recipe.data.batch_size) == recipe.data
    assert cfg.optim == recipe.optim
    assert replace(cfg.expert, feature="") == replace(recipe.expert, feature="")
    assert expert_feature(cfg) == "mel+mfcc"
    assert cfg.weights.adversarial == 0  # so that no discriminator is built, whose width the recipe does not name
    assert (cfg.weights.sync > 0) == (experiment != "ablation_no_sync")


def test_tiny_rows_still_differ_in_what_they_ablate() -> None:
    found = {
        row.name: configure(LipSyncConfig, TINY, EXPERIMENTS / f"{row.experiment}.yaml")
        for row in ROWS
        if row.table == TABLE2
    }
    assert {name: (cfg.feature.name, cfg.generator.attention) for name, cfg in found.items()} == {
        WAV2LIP: ("mel", "none"), "MFCC-Wav2Lip": ("mfcc", "none"), "M-Wav2Lip": ("mel+mfcc", "none"),
        "CAT-Wav2Lip": ("mel", "channel"), "SAT-Wav2Lip": ("mel", "spatial"), "CSA-Wav2Lip": ("mel", "both"),
        FULL: ("mel+mfcc", "both"),
    }  # fmt: skip


@pytest.mark.parametrize("name", BUDGETS)
def test_all_rows_of_a_seed_share_one_expert(name: str, tmp_path: Path) -> None:
    jobs = plan(TABLE, BUDGETS[name], corpus="c", seeds=(0, 1), runs=tmp_path)
    assert len({job.shared for job in jobs if job.seed == 0}) == 1
    assert len({job.shared for job in jobs}) == 2


@pytest.mark.slow
def test_a_table_of_two_steps_is_trained_measured_and_reused(
    tmp_path: Path, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    net = SyncNet(width=0.05, size=51).eval().requires_grad_(False)
    for module in ("table", "report"):
        monkeypatch.setattr(f"lipsync.{module}.load_judge", lambda *_: net)
    smoke = Budget("smoke", printed=False, recipe="smoke", kept=TINY.kept, words=(
        "expert.feature=mel", "trainer.accelerator=cpu", "trainer.devices=1", "trainer.progress=false",
        "wandb.mode=disabled", "data.workers=0", "trainer.keep_every=0",
    ))  # fmt: skip
    rows = (Row(TABLE2, WAV2LIP, "table2_wav2lip", part=("methods", DUB)),
            Row(TABLE2, "CAT-Wav2Lip", "table2_cat", part=("methods", DUB)))  # fmt: skip
    out, runs = tmp_path / "tables", tmp_path / "runs"

    def make() -> str:
        return make_table(smoke, corpus=str(corpus.root), out=out, runs=runs, rows=rows).read_text()

    text = make()
    assert "failed" not in text
    names = {path.name for path in (runs / "lipsync").iterdir()}
    assert names == {"table2_wav2lip-seed0", "table2_cat-seed0", "table2_wav2lip-seed0-expert"}
    first = {path: path.stat().st_mtime_ns for path in runs.rglob("metrics.json")}
    assert len(first) == 2
    assert make() == text
    assert {path: path.stat().st_mtime_ns for path in runs.rglob("metrics.json")} == first
