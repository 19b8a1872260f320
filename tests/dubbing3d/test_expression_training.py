"""Stage 1 resumes to the same bits, measures itself against the mean expression, and shares its work."""

import csv
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from common.checkpoints import LAST, load_checkpoint
from common.config import load
from common.data.corpus import Corpus
from common.errors import UserError
from common.face3d.camera import Camera, pose
from common.face3d.morphable import load_face_model
from dubbing3d.build import EXPRESSION_KIND, load_expression
from dubbing3d.clips import corpus_model
from dubbing3d.config import DubbingConfig
from dubbing3d.expression_module import ExpressionTraining
from dubbing3d.landmarks import LandmarkProjector
from dubbing3d.speech import SpeechWindows, reader
from dubbing3d.train import fitted_speech, train, train_expression
from tests.dubbing3d.toy_dub import toy_dub

ROOT = Path(__file__).parents[2]
SMOKE = ROOT / "experiments" / "dubbing3d" / "smoke.yaml"
STEPS = ["expression.steps=3", "trainer.val_every=2", "expression.timbre=0.3"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return toy_dub(tmp_path_factory.mktemp("dub") / "corpus")


def words(corpus: Corpus, out: Path, *more: str) -> list[str]:
    fixed = [f"data.root={corpus.root}", f"run.out={out}", "wandb.mode=disabled", "trainer.progress=false"]
    return [*fixed, "trainer.threads=1", "renderer.train=false", *more]


def config(corpus: Corpus, out: Path, *more: str) -> DubbingConfig:
    return load(DubbingConfig, SMOKE, words(corpus, out, *more))


def losses(folder: Path) -> list[dict[str, str]]:
    with open(folder / "metrics.csv", newline="") as file:
        return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, corpus: Corpus) -> Path:
    """The run folder of three steps."""
    return train(config(corpus, tmp_path_factory.mktemp("whole"), *STEPS))


def test_a_run_in_two_sittings_equals_one(corpus: Corpus, tmp_path: Path, whole: Path) -> None:
    train_expression(config(corpus, tmp_path, *STEPS, "trainer.kwargs={limit_train_batches: 1}"), corpus)
    folder = train(config(corpus, tmp_path, *STEPS), resume=True)
    assert folder.name == whole.name == "smoke-expression"
    assert losses(folder) == losses(whole)
    ours, theirs = (load_checkpoint(path / LAST, EXPRESSION_KIND) for path in (folder, whole))
    assert all(torch.equal(ours["state_dict"][key], value) for key, value in theirs["state_dict"].items())


def test_the_log_has_the_houses_keys(whole: Path) -> None:
    rows = losses(whole)
    for row in rows:
        total, expression, shape = (float(row[f"train/{key}"]) for key in ("loss", "loss_expression", "loss_shape"))
        assert total == pytest.approx(expression + 0.5 * shape, rel=1e-5)
    names = [f"val/{name}{end}" for name in ("aed", "aed_mouth", "lmd", "mouth_lmd") for end in ("", "_share")]
    assert all(float(rows[1][name]) > 0 for name in names)


def test_checkpoints_hold_speech_mean_and_face_model(corpus: Corpus, whole: Path) -> None:
    found = load_expression(whole / LAST)
    assert not found.network.training
    assert found.mark.spec == "builtin"
    fresh = fitted_speech(corpus)
    assert torch.equal(found.speech.mean, fresh.mean)
    assert found.mean[load_face_model("builtin").expression_index("jawOpen")] > 0.1
    state = load_checkpoint(whole / LAST, EXPRESSION_KIND)["state_dict"]
    assert not any(name.startswith(("projector", "aed", "lmd")) for name in state)
    drawn = found.network(found.speech(reader(torch.randn(6400)), 0, 10)[None])
    assert drawn.shape == (1, 10, len(found.mark.lengths))
    with pytest.raises(UserError, match="'dubbing3d-expression', but 'dubbing3d' is needed"):
        load_checkpoint(whole / LAST, "dubbing3d")


def test_a_finished_stage_is_not_trained_again(corpus: Corpus, tmp_path: Path, whole: Path) -> None:
    folder = train(config(corpus, tmp_path, f"expression.checkpoint={whole / LAST}"))
    assert folder == whole
    assert not (tmp_path / "dubbing3d").exists()


def module(corpus: Corpus, out: Path, *more: str) -> ExpressionTraining:
    cfg = config(corpus, out, *more)
    model, mark = corpus_model(corpus, cfg.data)
    return ExpressionTraining(cfg, model, mark, SpeechWindows(), torch.full((len(mark.lengths),), 0.1))


def batch_of(expressions: int, identities: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "mfcc": torch.randn(2, 8, 28, 12, generator=generator),
        "expression": torch.rand(2, 8, expressions, generator=generator),
        "identity": torch.randn(2, identities, generator=generator),
        "angles": 0.2 * torch.randn(2, 8, 3, generator=generator),
        "translation": 0.2 * torch.randn(2, 8, 3, generator=generator),
        "clip": torch.tensor([0, 1]),
    }


def test_landmarks_are_the_meshs_and_pass_gradients() -> None:
    model = load_face_model("builtin")
    batch = batch_of(model.sizes[1], model.sizes[0])
    projector = LandmarkProjector(model)
    expression = batch["expression"].clone().requires_grad_()
    found = projector(batch["identity"], expression, batch["angles"], batch["translation"])
    shape = model.shape(batch["identity"].repeat_interleave(8, 0), batch["expression"].flatten(0, 1))
    posed = pose(shape, batch["angles"].flatten(0, 1), batch["translation"].flatten(0, 1))
    expected, _ = Camera(224).project(posed)
    assert torch.allclose(found.flatten(0, 1), model.landmarks(expected), atol=1e-3)
    found[..., 48:, :].sum().backward()
    assert expression.grad is not None
    assert expression.grad[..., model.expression_index("jawOpen")].abs().min() > 0
    assert not projector.state_dict()


def test_losses_are_the_papers(corpus: Corpus, tmp_path: Path) -> None:
    found = module(corpus, tmp_path)
    model = load_face_model("builtin")
    batch = batch_of(model.sizes[1], model.sizes[0])
    guess = batch["expression"] + 0.1
    terms = found.losses(guess, batch)
    assert float(terms["expression"]) == pytest.approx(0.1 * model.sizes[1], rel=1e-5)
    ours, true = (found.landmarks(batch, value) / 224 for value in (guess, batch["expression"]))
    assert float(terms["shape"]) == pytest.approx(float((ours - true).abs().sum((2, 3)).mean()), rel=1e-4)
    same = found.losses(batch["expression"], batch)
    assert float(same["expression"]) == float(same["shape"]) == 0


def test_shares_are_of_the_mean_expression(corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, logged = module(corpus, tmp_path), {}
    model = load_face_model("builtin")
    batch = batch_of(model.sizes[1], model.sizes[0])
    mean = found.mean_expression.expand_as(batch["expression"])
    monkeypatch.setattr(found, "predict", lambda batch: (mean + batch["expression"]) / 2)
    monkeypatch.setattr(found, "log_dict", logged.update)
    found.validation_step(batch, 0)
    found.on_validation_epoch_end()
    assert float(logged["val/aed_share"]) == pytest.approx(0.5, rel=1e-5)
    assert float(logged["val/aed_mouth_share"]) == pytest.approx(0.5, rel=1e-5)
    assert float(logged["val/aed"]) == pytest.approx(float((mean - batch["expression"]).abs().mean()) / 2, rel=1e-5)
    assert 0.3 < float(logged["val/mouth_lmd_share"]) < 0.7
    assert not found.aed.rows  # emptied for the next validation


def test_semantic_images_must_come_from_somewhere(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"set semantic\.checkpoint"):
        train(config(corpus, tmp_path, "expression.semantic=true"))


def test_another_face_model_is_refused(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown face model"):
        train(config(corpus, tmp_path, "data.face_model=flame"))


def test_two_processes_equal_one_on_the_same_global_batch(corpus: Corpus, tmp_path: Path) -> None:
    steps = ["expression.steps=2", "expression.lr=1e-4"]
    train(config(corpus, tmp_path / "one", *steps))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={port}", "-m"]
    command += ["dubbing3d", "train", str(SMOKE), *words(corpus, tmp_path / "two", *steps)]
    done = subprocess.run(
        [*command, "trainer.devices=2", "trainer.strategy=ddp"],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    ours, theirs = (losses(tmp_path / count / "dubbing3d" / "smoke-expression") for count in ("two", "one"))
    assert len(ours) == len(theirs) == 2
    for our, their in zip(ours, theirs, strict=True):
        for key, value in their.items():
            if value:
                assert float(our[key]) == pytest.approx(float(value), rel=1e-3, abs=1e-5), key
    assert np.isfinite(float(ours[1]["val/aed"]))
