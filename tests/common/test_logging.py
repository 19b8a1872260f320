"""Rows, samples, dashboards; the average of weights and the noise of a step."""

import csv
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
import wandb
from torch import Tensor, nn

from common.callbacks import StepLogger, ema_update, to_grid
from common.checkpoints import LAST
from common.loggers import CsvLogger, make_loggers, wandb_mode
from common.rng import StepRandom
from tests.common.toy_gan import ToyConfig, rows, toy_config, train_toy

pytestmark = pytest.mark.usefixtures("threads")


def test_wandb_offline_writes_into_the_run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    cfg = toy_config(tmp_path, trainer={"steps": 2, "val_every": 2})
    cfg.wandb.mode = "offline"
    folder, _ = train_toy(cfg)
    wandb.teardown()  # its service writes the last records shortly after the run has ended
    (run,) = (folder / "wandb").glob("offline-run-*")
    (log,) = run.glob("*.wandb")
    data = log.read_bytes()
    assert all(word in data for word in (b"train/d_loss", b"val/real", b"samples", b"toy", b"gan"))
    assert (folder / "wandb_train.txt").read_text().strip() in run.name


def test_an_unreachable_dashboard_makes_the_run_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[str] = []

    def init(**arguments: Any) -> MagicMock:
        modes.append(arguments["mode"])
        if modes == ["online"]:
            raise wandb.errors.CommError("no route to host")
        return MagicMock()

    monkeypatch.setattr(wandb, "init", init)
    cfg = toy_config(tmp_path)
    cfg.wandb.mode = "online"
    _, logger = make_loggers(cfg, tmp_path)
    with pytest.warns(UserWarning, match="logs offline: no route to host"):
        logger.log_metrics({"a": 1.0}, step=3)
    logger.log_metrics({"a": 2.0}, step=4)
    assert modes == ["online", "offline"]


def test_wandb_mode_never_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = ToyConfig().wandb
    assert wandb_mode(cfg) == "disabled"
    cfg.mode = "auto"
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert wandb_mode(cfg) == "offline"
    (tmp_path / ".netrc").write_text("not a netrc {")
    assert wandb_mode(cfg) == "offline"
    (tmp_path / ".netrc").write_text("machine api.wandb.ai login user password key\n")
    assert wandb_mode(cfg) == "online"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert wandb_mode(cfg) == "disabled"
    monkeypatch.setenv("WANDB_MODE", "")
    (tmp_path / ".netrc").unlink()
    monkeypatch.setenv("WANDB_API_KEY", "key")
    assert wandb_mode(cfg) == "online"


def test_csv_keeps_rows_up_to_a_step_and_takes_new_columns(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("step,a\n1,0.5\n2,0.25\n3,0.125\n4,0.0")
    with open(path, "a") as file:
        file.write("\n5")
    logger = CsvLogger(path)
    logger.resume(3)
    logger.log_metrics({"a": 1 / 3, "epoch": 0}, step=4)
    logger.log_metrics({"b": 2.0}, step=4)
    assert path.read_text() == "step,a\n1,0.5\n2,0.25\n3,0.125\n"
    logger.finalize("success")
    with open(path, newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["step"] for row in table] == ["1", "2", "3", "4"]
    assert float(table[3]["a"]) == 1 / 3
    assert [row["b"] for row in table] == ["", "", "", "2.0"]


def test_rows_are_means_of_their_window_also_across_a_resume(tmp_path: Path, whole: Path) -> None:
    each = rows(whole)
    train_toy(toy_config(tmp_path, trainer={"log_every": 5, "steps": 7}))
    folder = tmp_path / "toy" / "gan"
    (folder / LAST).unlink()  # go on from step 6, inside the window 6..10
    train_toy(toy_config(tmp_path, trainer={"log_every": 5}), resume=True)
    logged = {row["step"]: row for row in rows(folder)}
    for end, window in ((5, each[:5]), (10, each[5:10]), (12, each[10:])):
        for key in ("train/d_loss", "train/loss_r1"):
            values = [float(row[key]) for row in window if row[key]]
            got = logged[str(end)][key]
            assert float(got) == pytest.approx(np.mean(values), rel=1e-12) if values else got == ""
    assert list(logged) == ["4", "5", "8", "10", "12"]


def test_times_are_logged(whole: Path) -> None:
    with open(whole / "metrics.csv", newline="", encoding="utf-8") as file:
        assert all(float(r["time/step"]) > 0 and float(r["time/data"]) >= 0 for r in csv.DictReader(file))


def test_no_step_waits_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    logger = StepLogger(every=3)
    fetched = []
    monkeypatch.setattr(Tensor, "tolist", lambda self: fetched.append(self) or [0.0] * self.numel())

    class Fake:
        step = 0
        loggers: tuple[()] = ()

    for step in (1, 2):
        Fake.step = step
        logger.on_train_batch_end(Fake(), Fake(), {"g_loss": torch.tensor(1.0, requires_grad=True)})
        assert not fetched
    Fake.step = 3
    logger.on_train_batch_end(Fake(), Fake(), {"g_loss": torch.tensor(1.0)})
    assert [len(values) for values in fetched] == [3]


def test_grid_places_images_and_clips() -> None:
    images = torch.stack([torch.full((3, 2, 2), v) for v in (-1.0, 0.0, 5.0)])
    grid = np.asarray(to_grid(images))
    assert grid.shape == (10, 10, 3)
    assert [grid[y, x].tolist() for y, x in ((2, 2), (2, 6), (6, 2))] == [[0] * 3, [128] * 3, [255] * 3]


def test_ema_follows_the_formula_and_copies_buffers() -> None:
    torch.manual_seed(0)
    average, module = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    nn.init.normal_(module.weight)
    module(torch.randn(4, 3))
    expected = 0.9 * average.weight.detach() + 0.1 * module.weight.detach()
    ema_update(average, module, 0.9)
    torch.testing.assert_close(average.weight, expected, rtol=0, atol=1e-7)
    assert torch.equal(average.running_mean, module.running_mean)
    assert average.num_batches_tracked == 1
    ema_update(average, module, 0.0)
    assert torch.equal(average.weight, module.weight)


def test_noise_of_two_ranks_is_that_of_one() -> None:
    one = StepRandom(5)
    two = [StepRandom(5, rank=r, world_size=2) for r in range(2)]
    for draw in (
        lambda r, n: r.normal(3, "z", (n, 7)),
        lambda r, n: r.uniform(3, "u", (n, 2, 2)),
        lambda r, n: r.integers(3, "i", 10, (n,)),
    ):
        whole = draw(one, 6)
        assert all(torch.equal(draw(r, 3), whole[i::2]) for i, r in enumerate(two))
    z = one.normal(3, "z", (500, 40))
    assert abs(z.mean()) < 0.02
    assert abs(z.std() - 1) < 0.02
    different = [one.normal(4, "z", (8,)), one.normal(3, "y", (8,)), StepRandom(6).normal(3, "z", (8,)), z[:8, 0]]
    assert len({tuple(d.tolist()) for d in different}) == 4
