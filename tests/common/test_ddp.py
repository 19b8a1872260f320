"""Two processes over gloo train what one process trains with the same global batch, and resume to the same bits."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from common.checkpoints import LAST
from common.run import load_checkpoint
from tests.common.toy_gan import ToyGAN, rows, toy_config, train_toy
from tests.common.toy_processes import DDP_CHANGES

pytestmark = pytest.mark.usefixtures("threads")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two ranks left: a whole run, a killed and resumed one, and the final state of each rank."""
    out = tmp_path_factory.mktemp("ddp")
    command = [sys.executable, "-m", "tests.common.toy_processes", "ddp", str(out)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr + done.stdout
    return out


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ToyGAN]:
    """The single-process run with the doubled batch: `batch_size` counts the items of all processes."""
    cfg = toy_config(tmp_path_factory.mktemp("one"), **DDP_CHANGES)
    return train_toy(cfg)


def test_losses_and_validation_reduced_over_ranks_are_those_of_one_process(two: Path, one: tuple[Path, ToyGAN]) -> None:
    ours, theirs = rows(two / "whole" / "toy" / "gan"), rows(one[0])
    assert [row["step"] for row in ours] == [row["step"] for row in theirs] == [str(i) for i in range(1, 13)]
    for our, their in zip(ours, theirs, strict=True):
        assert our.keys() == their.keys()
        for key, value in their.items():
            assert bool(our[key]) == bool(value), key
            if value:
                assert float(our[key]) == pytest.approx(float(value), rel=1e-4, abs=1e-4), key


def test_both_ranks_hold_the_same_weights_averages_and_means(two: Path, one: tuple[Path, ToyGAN]) -> None:
    first, second = (torch.load(two / f"rank{rank}.pt", weights_only=True) for rank in range(2))
    for name, value in one[1].state_dict().items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], value, rtol=1e-4, atol=1e-4)


def test_two_killed_ranks_resume_to_the_same_bits(two: Path) -> None:
    resumed, whole = (two / name / "toy" / "gan" for name in ("killed", "whole"))
    assert rows(resumed) == rows(whole)
    ours, theirs = (load_checkpoint(folder / LAST, "toy")["state_dict"] for folder in (resumed, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
