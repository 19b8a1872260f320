"""Training that survives a crash: killed runs equal uninterrupted ones to the bit."""

import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch import Callback
from PIL import Image
from torch import Tensor, nn

from common.checkpoints import LAST, PREVIOUS
from common.config import from_dict, load
from common.errors import DivergenceError, UserError
from common.run import fit, git_version, load_checkpoint
from common.training import TrainModule
from tests.common.toy_gan import ToyConfig, ToyData, rows, toy_config, train_toy
from tests.common.toy_processes import KILLED, run_folder

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.usefixtures("threads")


def assert_same(a: Any, b: Any, where: str = "checkpoint") -> None:
    """Bitwise, all the way down."""
    if isinstance(a, Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, pair in enumerate(zip(a, b, strict=True)):
            assert_same(*pair, f"{where}[{i}]")
    else:
        assert a == b, where


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs that died by SIGKILL in processes of their own."""
    out = tmp_path_factory.mktemp("killed")
    command = [sys.executable, "-m", "tests.common.toy_processes", "kill", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.parametrize(("deaths", "workers"), KILLED)
def test_a_killed_run_resumes_to_the_same_bits(killed: Path, whole: Path, deaths: str, workers: int) -> None:
    out = run_folder(killed, deaths, workers)
    folder, module = train_toy(toy_config(out, workers=workers), resume=True)
    assert rows(folder) == rows(whole)
    ours, theirs = (load_checkpoint(f / LAST, "toy") for f in (folder, whole))
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "random", "step", "kind"):
        assert_same(ours[key], theirs[key], key)
    assert module.step == 12
    assert not list(folder.glob(".*"))
    assert {p.name for p in folder.iterdir()} == {p.name for p in whole.iterdir()}
    for sample in (whole / "samples").iterdir():
        with Image.open(sample) as theirs, Image.open(folder / "samples" / sample.name) as ours:  # labels name the run
            assert ours.tobytes() == theirs.tobytes()


def test_the_run_folder_explains_itself(whole: Path) -> None:
    assert load(ToyConfig, whole / "config.yaml") == toy_config(whole.parents[1])
    assert re.fullmatch(r"([0-9a-f]{40}( \(modified\))?|unknown)\n", (whole / "git.txt").read_text())
    hardware = (whole / "hardware.txt").read_text()
    assert ", 1 thread;" in hardware
    assert hardware.endswith(f"; torch {torch.__version__}\n")
    assert [row["step"] for row in rows(whole)] == [str(i) for i in range(1, 13)]
    assert [row["step"] for row in rows(whole) if row["val/real"]] == ["4", "8", "12"]
    assert [row["step"] for row in rows(whole) if row["train/loss_r1"]] == ["1", "4", "7", "10"]
    assert sorted(p.name for p in (whole / "samples").iterdir()) == [f"step_{s:08d}.png" for s in (4, 8, 12)]
    with Image.open(whole / "samples" / "step_00000004.png") as picture:
        assert picture.size == (4 * 10 + 2, 4 * 10 + 2)
    for name, step in ((LAST, 12), (PREVIOUS, 9), ("step_00000006.ckpt", 6)):
        checkpoint = load_checkpoint(whole / name, "toy")
        assert checkpoint["step"] == step
        assert from_dict(ToyConfig, checkpoint["cfg"]) == toy_config(whole.parents[1])


def test_an_occupied_folder_is_refused_resumed_or_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    short = {"steps": 2, "val_every": 0}
    folder, _ = train_toy(toy_config(tmp_path, trainer=short))
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="already holds a run"):
        train_toy(toy_config(tmp_path, trainer=short))
    _, module = train_toy(toy_config(tmp_path, trainer=short), resume=True)
    assert "has completed its 2 steps" in capsys.readouterr().out
    before = (folder / LAST).stat().st_mtime_ns
    train_toy(toy_config(tmp_path, trainer=short), overwrite=True)
    assert (folder / LAST).stat().st_mtime_ns > before
    assert len(rows(folder)) == 2
    assert (folder / "notes.txt").read_text() == "mine"
    assert module.step == 2


def test_a_longer_run_goes_on_and_tells_what_changed(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder, _ = train_toy(toy_config(tmp_path, trainer={"steps": 4}))
    capsys.readouterr()
    train_toy(toy_config(tmp_path, trainer={"steps": 5}), resume=True)
    printed = capsys.readouterr().out
    assert "resumed with changes in: trainer" in printed
    assert "steps: 4 to 5" in printed
    assert len(rows(folder)) == 5


def test_a_loss_that_is_no_number_ends_the_run_before_it_is_saved(tmp_path: Path) -> None:
    with pytest.raises(DivergenceError, match=r"step 8: train/d_loss is nan"):
        train_toy(toy_config(tmp_path, bad_at=7, trainer={"log_every": 50}))
    assert load_checkpoint(tmp_path / "toy" / "gan" / LAST, "toy")["step"] == 6


class Classifier(TrainModule):
    """Automatic optimisation with momentum and a schedule, as an encoder's pre-training has."""

    def __init__(self, cfg: ToyConfig) -> None:
        super().__init__(cfg, kind="toy.classifier")
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(192, 2), nn.Dropout(0.5))

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = torch.optim.SGD(self.parameters(), 0.1, momentum=0.9)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=12)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def training_step(self, images: Tensor) -> dict[str, Any]:
        return {"loss": self.net(images).square().mean(), "lr": self.optimizers().param_groups[0]["lr"]}


def test_automatic_optimisation_with_a_schedule_resumes_too(tmp_path: Path) -> None:
    tables = []
    for name, lengths in (("whole", (12,)), ("parts", (5, 12))):
        for steps in lengths:
            cfg = toy_config(tmp_path / name, trainer={"steps": steps})
            folder = fit(Classifier(cfg), ToyData(cfg), cfg, resume=True)
        tables.append(rows(folder))
        assert load_checkpoint(folder / LAST, "toy.classifier")["step"] == 12
    assert tables[0] == tables[1]
    rates = [float(row["train/lr"]) for row in tables[0]]
    assert rates == pytest.approx([0.05 * (1 + np.cos(np.pi * step / 12)) for step in range(12)])


def test_two_fits_with_the_same_seed_agree_and_other_seeds_differ(tmp_path: Path, whole: Path) -> None:
    again, _ = train_toy(toy_config(tmp_path))
    assert rows(again) == rows(whole)
    cfg = toy_config(tmp_path, trainer={"steps": 2})
    cfg.run.name, cfg.run.seed = "other", 4
    assert rows(train_toy(cfg)[0])[0] != rows(whole)[0]


def test_what_lightning_refuses_and_what_is_reserved(tmp_path: Path) -> None:
    for changes, match in (
        ({"precision": "3-bit"}, "trainer: Lightning refuses"),
        ({"strategy": "teleport"}, "trainer: Lightning refuses"),
        ({"kwargs": {"no_such_argument": 1}}, "no_such_argument"),
        ({"kwargs": {"max_steps": 1}}, r"trainer\.kwargs\.max_steps is set by other keys"),
    ):
        with pytest.raises(UserError, match=match):
            train_toy(toy_config(tmp_path, trainer=changes))
    cfg = toy_config(tmp_path)
    cfg.run.name = ""
    with pytest.raises(UserError, match="needs a package and a name"):
        train_toy(cfg)
    assert not list(tmp_path.iterdir())


def test_ctrl_c_reaches_the_caller(tmp_path: Path) -> None:
    class Stop(Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_toy(toy_config(tmp_path), callbacks=[Stop()])


def test_git_version_outside_a_clone_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert git_version() == "unknown"


def test_training_is_quiet(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        train_toy(toy_config(tmp_path, trainer={"steps": 1, "val_every": 0}))
    printed = capfd.readouterr()
    assert printed.err == ""
    said = printed.out.split("source:")[0]
    assert yaml.safe_load(said)["trainer"]["steps"] == 1
    assert [line.split(": ")[0] for line in said.splitlines()] == list(yaml.safe_load(said))  # a line a section
