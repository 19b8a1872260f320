"""The tables of the papers, with trainings and evaluations that are made up."""

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

from common.config import load, to_yaml
from common.data.corpus import Corpus
from common.errors import DivergenceError, UserError
from common.metrics.estimate import Estimate
from common.provenance import read_label
from common.table import parse_seeds, plan
from common.table_rows import Budget, Row
from common.table_text import over_seeds, read_figure, verdict
from voice2face.config import Config
from voice2face.evaluation import Evaluation
from voice2face.sheet import PORTRAITS, face_rows
from voice2face.table import TABLE, make_table
from voice2face.table_figures import write_figures
from voice2face.table_rows import CLAIMS, METRICS, ROWS, TABLE2, TABLE3, TINY

ROOT = Path(__file__).parents[2]
EXPERIMENTS = ROOT / "experiments" / "voice2face"
SHOWN = tuple(row for row in ROWS if row.experiment in {"table2_stylegan2", "table3_no_se", "table3_relu"})
FID = {"table2_stylegan2": 20.0, "table3_no_se": 30.0, "table3_relu": 21.0}


def evaluation(fid: float, *, half: float = 2.0) -> dict[str, Any]:
    """A metrics.json as `voice2face.evaluation` gives it."""

    def estimate(value: float) -> dict[str, float]:
        return {"value": value, "low": value - 0.1, "high": value + 0.1, "n": 8}

    interval = {"low": fid - half, "high": fid + half}
    return {
        "split": "test", "identities": 4, "recordings": 8, "image_size": 64,
        "quality": {
            "extractor": "toy", "n_fake": 32, "n_real": 16,
            "fid[toy]": fid, "fid_interval": interval, "kid[toy]": estimate(0.5),
        },
        "identity": {
            "retrieval": {"gallery_size": 4, "r@1": estimate(0.25) | {"chance": 0.25}, "r@10": estimate(0.9)},
            "similarity": {"cosine": estimate(0.6), "gap": estimate(0.2)},
            "matching": {"accuracy": estimate(0.7)},
        },
        "path_length": {"ppl_wend[pixel_l2]": estimate(130.0), "ppl2_wend[pixel_l2]": estimate(200.0)},
    }  # fmt: skip


class Trainer:
    """Leaves run folders as training does; counts, fails and is interrupted on demand."""

    def __init__(self, failing: dict[str, BaseException] | None = None) -> None:
        self.failing = failing or {}
        self.done: list[str] = []
        self.encoders: dict[str, str] = {}

    def __call__(self, cfg: Config) -> Path:
        folder, name = cfg.run.folder, cfg.run.name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(to_yaml(cfg))
        (folder / "hardware.txt").write_text("an abacus, 2 threads\n")
        self.encoders[name] = cfg.encoder.checkpoint
        if name in self.failing:
            raise self.failing[name]
        (folder / "metrics.csv").write_text("step,val/fid,train/loss_g_adversarial\n1,90,1.5\n2,80,1.25\n")
        Image.fromarray(np.full((16, 64, 3), len(self.done) * 20, np.uint8)).save(folder / PORTRAITS)
        self.done.append(name)
        return folder


@pytest.fixture
def table(tmp_path: Path, identity_corpus: Corpus) -> Callable[..., str]:
    """Makes the table of `SHOWN` in tmp_path and returns its Markdown."""

    def make(trainer: Trainer, **kwargs: Any) -> str:
        arguments: dict[str, Any] = {
            "corpus": str(identity_corpus.root), "out": tmp_path / "tables", "runs": tmp_path / "runs",
            "experiments": EXPERIMENTS, "rows": SHOWN, "train_run": trainer, "say": lambda _: None, "jobs": 1,
            "measure_run": lambda cfg, _: evaluation(FID[cfg.run.name.rpartition("-")[0]] + cfg.run.seed),
        }  # fmt: skip
        return make_table(TINY, **(arguments | kwargs)).read_text()

    return make


def read_csv(tmp_path: Path) -> dict[tuple[str, str, str], dict[str, str]]:
    with open(tmp_path / "tables" / "voice2face.csv", newline="") as file:
        return {(row["table"], row["row"], row["metric"]): row for row in csv.DictReader(file)}


def test_the_table_says_what_it_measured_and_on_what(
    table: Callable[..., str], tmp_path: Path, identity_corpus: Corpus
) -> None:
    text = table(Trainer())
    assert "**This is not a replication of the papers: the people are synthetic and the budget" in text
    for words in (
        str(identity_corpus.root), "N = 32 portraits against 16 faces by toy", "gallery of 4 (chance 0.25)",
        "2200 steps of 8 images (17600 images seen)", "- hardware: an abacus, 2 threads\n", "commit", "seeds: 0;",
    ):  # fmt: skip
        assert words in text
    assert "| StyleGAN2 | 20 [18, 22] | 28.9 | 0.5 [0.4, 0.6] | 130 [129.9, 130.1] | 131 | 25 [15, 35] |" in text
    rows = read_csv(tmp_path)
    fid = rows[TABLE3, "BaseModel-NoSE", "fid"]
    assert [fid[key] for key in ("experiment", "seeds", "value", "low", "high", "n", "paper", "note")] == [
        "table3_no_se", "0", "30.0", "28.0", "32.0", "32", "34", "",
    ]  # fmt: skip
    assert rows[TABLE2, "StyleGAN2", "r@1"]["value"] == "0.25"
    assert len(rows) == len(SHOWN) * len(METRICS)


def test_orderings_are_judged_by_intervals(table: Callable[..., str]) -> None:
    text = table(Trainer())
    assert "FID of BaseModel lower than of BaseModel-NoSE: **holds** (20 [18, 22] against 30 [28, 32])" in text
    assert "FID of BaseModel lower than of BaseModel-ReLU: **within the intervals, the point figures agree**" in text
    assert "FID of StyleGAN2 lower than of StyleGAN: **not judged**, StyleGAN has no figure (not measured)" in text


@pytest.mark.parametrize(
    ("better", "worse", "direction", "said"),
    [
        ((1, 0, 2), (4, 3, 5), "lower", "holds"),
        ((4, 3, 5), (1, 0, 2), "lower", "does not hold"),
        ((4, 3, 5), (1, 0, 2), "higher", "holds"),
        ((1, 0, 3), (2, 1, 5), "lower", "within the intervals, the point figures agree"),
        ((2, 1, 5), (1, 0, 3), "lower", "within the intervals, the point figures disagree"),
        ((1, 0, 2), (3, 2, 4), "lower", "within the intervals, the point figures agree"),
        ((1, None, None), (2, 1, 5), "lower", "holds by the point figures, which have no intervals"),
        ((2, None, None), (2, 1, 5), "lower", "does not hold by the point figures, which have no intervals"),
    ],
)
def test_verdicts(better: tuple[Any, ...], worse: tuple[Any, ...], direction: str, said: str) -> None:
    assert verdict(Estimate(*better), Estimate(*worse), direction) == said


def test_an_interrupted_table_stands_and_goes_on(table: Callable[..., str], tmp_path: Path) -> None:
    first = Trainer({"table3_no_se-seed0": KeyboardInterrupt()})
    with pytest.raises(KeyboardInterrupt):
        table(first)
    assert first.done == ["table2_stylegan2-seed0"]
    text = (tmp_path / "tables" / "voice2face.md").read_text()
    assert "| BaseModel-NoSE |" in text
    assert "seed 0: not run yet" in text
    second = Trainer()
    text = table(second)
    assert second.done == [f"{row}-seed0" for row in ("table2_stylegan2", "table3_no_se", "table3_relu")]
    assert "not run yet" not in text
    assert not list((tmp_path / "tables").rglob(".*"))


def test_a_diverged_row_is_reported_and_the_others_go_on(table: Callable[..., str], tmp_path: Path) -> None:
    words = "step 9: train/g_loss | is nan"
    text = table(Trainer({"table3_no_se-seed0": DivergenceError(words)}))
    assert "| BaseModel-NoSE |  | 34 |" in text
    assert "seed 0 diverged: step 9: train/g_loss \\| is nan" in text
    assert "BaseModel-NoSE has no figure (seed 0 diverged" in text
    assert "| BaseModel-ReLU | 21 [19, 23] |" in text
    row = read_csv(tmp_path)[TABLE3, "BaseModel-NoSE", "fid"]
    assert row["value"] == ""
    assert row["note"].startswith("seed 0 diverged")


def test_an_evaluations_warnings_are_in_the_table(table: Callable[..., str]) -> None:
    def measure(cfg: Config, _: Path) -> dict[str, Any]:
        raised = ["portraits differ, but not by voice"] if cfg.run.name.startswith("table2_stylegan2") else []
        return evaluation(20.0) | {"warnings": raised}

    text = table(Trainer(), measure_run=measure)
    shared = f"{TABLE2}: StyleGAN2, {TABLE3}: BaseModel"
    assert f"- {shared} (seed 0): portraits differ, but not by voice\n" in text
    assert text.count("portraits differ") == 1
    assert "## Warnings" not in table(Trainer())


def test_another_failure_is_no_divergence(table: Callable[..., str]) -> None:
    text = table(Trainer({"table3_no_se-seed0": UserError("the disk is full")}))
    assert "seed 0 failed: the disk is full" in text


def test_several_seeds_are_averaged_with_students_t(table: Callable[..., str], tmp_path: Path) -> None:
    trainer = Trainer()
    text = table(trainer, seeds=(0, 1, 2))
    assert trainer.done[:4] == [
        "table2_stylegan2-seed0", "table3_no_se-seed0", "table3_relu-seed0", "table2_stylegan2-seed1",
    ]  # fmt: skip
    assert "Student's t over the seeds" in text
    fid = read_csv(tmp_path)[TABLE2, "StyleGAN2", "fid"]
    half = 4.302653 / np.sqrt(3)  # t(0.975, 2 degrees of freedom), standard deviation 1
    assert (fid["value"], fid["n"], fid["seeds"]) == ("21.0", "3", "0 1 2")
    assert float(fid["high"]) == pytest.approx(21 + half, rel=1e-6)
    assert over_seeds([Estimate(1.0), Estimate(1.0)]).low == 1.0


def test_rows_with_equal_encoders_share_stage_a(tmp_path: Path, table: Callable[..., str]) -> None:
    twin = EXPERIMENTS / "base_se_stylegan2.yaml"
    rows = (Row(TABLE2, "one", "table2_stylegan2"), Row(TABLE2, "two", twin.stem), Row(TABLE3, "other", "table3_no_se"))
    jobs = plan(replace(TABLE, rows=rows), TINY, corpus="c", seeds=(0, 1), runs=tmp_path)
    shared = [job.shared and job.shared.parent.name for job in jobs]
    assert shared == [None, "table2_stylegan2-seed0-encoder", None, None, "table2_stylegan2-seed1-encoder", None]
    trainer = Trainer()
    text = table(trainer, rows=rows)  # the toy trainer leaves no encoder behind
    assert "its voice encoder" in text
    assert "ended at step 0 of 300" in text
    assert "base_se_stylegan2-seed0" not in trainer.encoders


def test_a_run_folder_of_another_configuration_is_refused_before_anything_is_trained(
    table: Callable[..., str], tmp_path: Path
) -> None:
    table(Trainer())
    path = tmp_path / "runs" / "voice2face" / "table3_relu-seed0" / "config.yaml"
    cfg = load(Config, path)
    path.write_text(to_yaml(replace(cfg, trainer=replace(cfg.trainer, steps=7))))
    trainer = Trainer()
    with pytest.raises(UserError, match=r"table3_relu-seed0 holds a run that differs in trainer.steps; remove it"):
        table(trainer)
    assert trainer.encoders == {}


def test_writing_is_all_or_nothing(table: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = table(Trainer())

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(UserError, match="No space left"):
        table(Trainer(), measure_run=lambda *_: evaluation(1.0))
    monkeypatch.undo()
    assert (tmp_path / "tables" / "voice2face.md").read_text() == before
    assert not list((tmp_path / "tables").rglob(".*"))


def test_unknown_budget_experiment_and_corpus_end_in_one_line(table: Callable[..., str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown budget 'huge', one of tiny, full"):
        TABLE.budget("huge")
    with pytest.raises(UserError, match="no such configuration file"):
        table(Trainer(), rows=(Row(TABLE2, "x", "absent"),))
    with pytest.raises(UserError, match="no corpus at"):
        table(Trainer(), corpus=str(tmp_path / "absent"))


def test_seeds_are_read_with_spaces_or_commas() -> None:
    assert parse_seeds("0 1,2 1") == (0, 1, 2)
    for words in ("", "a", "-1", "1.5", str(2**32)):
        with pytest.raises(UserError, match="seeds are whole numbers"):
            parse_seeds(words)


def test_figures_come_from_the_logs_and_name_what_is_missing(table: Callable[..., str], tmp_path: Path) -> None:
    text = table(Trainer())
    folder = tmp_path / "tables" / "voice2face"
    written = ["figure_09.png", "figure_11.png", "figure_13.png", "figure_14.png"]
    assert sorted(path.name for path in folder.iterdir()) == written
    assert "figure 12 (path length during training): no run logged val/path_length" in text
    assert "[figure_13.png](voice2face/figure_13.png)" in text
    assert read_label(folder / "figure_13.png")["AIGC"]["Label"] == "1"
    assert write_figures(folder, {}, SHOWN)[-1] == "figure 13 (portraits of each model): no run was evaluated"


def test_face_rows_pair_each_portrait_with_its_speaker() -> None:
    identities, faces = torch.tensor([1, 0, 1, 2]), torch.tensor([2, 1, 0])

    def plain(levels: torch.Tensor) -> torch.Tensor:
        return (levels.float() / 10)[:, None, None, None].expand(-1, 3, 4, 4)

    result = Evaluation({}, ["a", "b", "c"], identities, plain(identities), [], plain(faces), faces)
    rows = face_rows(result)
    assert rows.shape == (8, 12, 3)
    assert (rows[:4] == rows[4:]).all()
    assert len(np.unique(rows)) == 3


def test_figures_are_found_by_their_names_without_settings() -> None:
    metrics = json.loads(json.dumps(evaluation(10.0), sort_keys=True))
    found = {metric.key: read_figure(metrics, metric) for metric in METRICS}
    assert {key: figure and figure.value for key, figure in found.items()} == {
        "fid": 10.0, "kid": 0.5, "path_length": 130.0, "r@1": 0.25, "cosine": 0.6, "gap": 0.2, "matching": 0.7,
    }  # fmt: skip
    del metrics["quality"]["fid_interval"]
    assert read_figure(metrics, METRICS[0]) == Estimate(10.0, n=32)
    assert all(read_figure({}, metric) is None for metric in METRICS)


def test_claims_and_printed_figures_speak_of_rows_and_metrics_that_exist() -> None:
    rows, metrics = {(row.table, row.name) for row in ROWS}, {metric.key for metric in METRICS}
    for claim in CLAIMS:
        assert {(claim.table, claim.better), (claim.table, claim.worse)} <= rows
        assert claim.metric in metrics
    assert all(row.printed.keys() <= metrics for row in ROWS)


@pytest.mark.slow
def test_a_table_of_two_steps_is_trained_measured_and_reused(tmp_path: Path, identity_corpus: Corpus) -> None:
    smoke = Budget("smoke", printed=False, words=(
        "trainer.steps=2", "trainer.accelerator=cpu", "trainer.devices=1", "trainer.val_every=2", "trainer.log_every=1",
        "trainer.save_every=1", "trainer.keep_every=0", "wandb.mode=disabled", "data.image_size=32", "data.workers=0",
        "data.crop_seconds=[0.5,0.6]", "data.batch_size=4", "encoder.steps=2", "encoder.batch_size=4",
        "encoder.face_width=16", "encoder.kwargs.width=16", "generator.kwargs.channel_base=256",
        "discriminator.kwargs.channel_base=256", "evaluation.portraits=2", "evaluation.path_length_samples=2",
        "evaluation.bootstrap=50",
    ))  # fmt: skip
    rows = (Row(TABLE2, "StyleGAN2", "table2_stylegan2"), Row(TABLE2, "DCGAN", "table2_dcgan"))
    out, runs = tmp_path / "tables", tmp_path / "runs"

    def make() -> str:
        return make_table(smoke, corpus=str(identity_corpus.root), out=out, runs=runs, rows=rows).read_text()

    text = make()
    assert "failed" not in text
    assert "diverged" not in text
    folders = {path.name for path in (runs / "voice2face").iterdir()}
    assert folders == {"table2_stylegan2-seed0", "table2_stylegan2-seed0-encoder", "table2_dcgan-seed0"}
    for name in ("table2_stylegan2-seed0", "table2_dcgan-seed0"):
        assert read_label(runs / "voice2face" / name / PORTRAITS)["AIGC"]["Label"] == "1"
    first = {path: path.stat().st_mtime_ns for path in runs.rglob("metrics.json")}
    assert len(first) == 2
    assert make() == text
    assert {path: path.stat().st_mtime_ns for path in runs.rglob("metrics.json")} == first
