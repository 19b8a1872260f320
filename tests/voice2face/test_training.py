"""The portrait GAN resumes to the same bits, and two processes train what one does with the same global batch."""

import csv
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from common.checkpoints import LAST, load_checkpoint
from common.data.corpus import Corpus
from voice2face import encoder_module, module

ROOT = Path(__file__).parents[2]
SMOKE = ROOT / "experiments" / "voice2face" / "smoke.yaml"
Train = Callable[..., Path]


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory, identity_corpus: Corpus) -> Train:
    """Runs the command in a process (or two) of its own and returns the folder that holds the run folders."""
    out = tmp_path_factory.mktemp("training")

    def command(name: str, *words: str, ranks: int = 1) -> Path:
        launcher: list[str] = []
        if ranks > 1:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = probe.getsockname()[1]
            launcher = ["torch.distributed.run", f"--nproc-per-node={ranks}", f"--master-port={port}", "-m"]
        common = [f"data.root={identity_corpus.root}", f"run.out={out}", f"run.name={name}", "wandb.mode=disabled"]
        result = subprocess.run(
            [sys.executable, "-m", *launcher, "voice2face", "train", str(SMOKE), *common, *words],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert result.returncode == 0, result.stdout + result.stderr
        return out / "voice2face"

    return command


def losses(folder: Path) -> list[dict[str, str]]:
    with open(folder / "metrics.csv", newline="") as file:
        return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in csv.DictReader(file)]


def test_a_run_in_two_sittings_equals_one_in_one_sitting(train: Train) -> None:
    whole = train("whole", "trainer.steps=3") / "whole"
    train("split", "trainer.steps=2")
    split = train("split", "trainer.steps=3", "--resume") / "split"
    assert losses(whole) == losses(split)
    parts = [[float(row[f"train/loss_d_{part}"]) for part in ("real", "fake", "adversarial")] for row in losses(whole)]
    assert all(real + fake == pytest.approx(both, rel=1e-5) for real, fake, both in parts[:3])
    assert float(losses(whole)[1]["val/path_length"]) > 0
    ours, theirs = (load_checkpoint(folder / LAST, module.KIND) for folder in (split, whole))
    assert all(torch.equal(ours["state_dict"][name], value) for name, value in theirs["state_dict"].items())


def test_two_processes_equal_one_on_the_same_global_batch(train: Train) -> None:
    # Stage A has batch norm, whose statistics are a rank's own; stage B keeps the encoder frozen in eval mode.
    encoder = train("base", "trainer.steps=1") / "base-encoder" / LAST
    words = ("trainer.steps=3", f"encoder.checkpoint={encoder}", "data.batch_size=8", "trainer.val_every=3")
    one = train("one", *words) / "one"
    two = train("two", *words, "trainer.devices=2", "trainer.strategy=ddp", ranks=2) / "two"
    for ours, theirs in zip(losses(two), losses(one), strict=True):
        for key, value in theirs.items():
            assert bool(ours[key]) == bool(value), key
            if value and value != "nan":
                assert float(ours[key]) == pytest.approx(float(value), rel=1e-4, abs=1e-4), key
    ours, theirs = (load_checkpoint(folder / LAST, module.KIND)["state_dict"] for folder in (two, one))
    for name in ("path_length_mean", "generator_ema.mapping.w_avg", "generator_ema.synthesis.blocks.0.const"):
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-4)


def test_the_encoder_of_stage_a_arrives_in_stage_b_unchanged(train: Train) -> None:
    folder = train("arrive", "trainer.steps=1")
    before = load_checkpoint(folder / "arrive-encoder" / LAST, encoder_module.KIND)["state_dict"]
    after = load_checkpoint(folder / "arrive" / LAST, module.KIND)["state_dict"]
    for name, value in before.items():
        if name.startswith(("voice.", "face_tower.")):
            assert torch.equal(after[name], value), name
