"""Training that survives a crash: killed runs equal uninterrupted ones, torn and hostile checkpoints, full disks."""

import csv
import pickle
import resource
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch import Callback
from PIL import Image
from torch import Tensor, nn

from common.callbacks import StepLogger, ema_update, to_grid
from common.checkpoints import LAST, PREVIOUS, AtomicCheckpointIO
from common.config import from_dict, load
from common.errors import UserError
from common.loggers import CsvLogger, make_loggers, wandb_mode
from common.rng import StepRandom
from common.run import fit, git_version, load_checkpoint
from common.training import TrainModule
from tests.common.toy_gan import ToyConfig, ToyData, ToyGAN, toy_config
from tests.common.toy_processes import KILLED, run_folder

ROOT = Path(__file__).parents[2]


def train(cfg: ToyConfig, **options: Any) -> tuple[Path, ToyGAN]:
    module = ToyGAN(cfg)
    return fit(module, ToyData(cfg), cfg, **options), module


def rows(folder: Path) -> list[dict[str, str]]:
    """metrics.csv without the times."""
    with open(folder / "metrics.csv", newline="", encoding="utf-8") as file:
        return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in csv.DictReader(file)]


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
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of an uninterrupted run."""
    return train(toy_config(tmp_path_factory.mktemp("whole")))[0]


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
    folder, module = train(toy_config(out, workers=workers), resume=True)
    assert rows(folder) == rows(whole)
    ours, theirs = (load_checkpoint(f / LAST, "toy") for f in (folder, whole))
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "random", "step", "kind"):
        assert_same(ours[key], theirs[key], key)
    assert module.step == 12
    assert not list(folder.glob(".*"))
    assert {p.name for p in folder.iterdir()} == {p.name for p in whole.iterdir()}
    for sample in (whole / "samples").iterdir():
        assert (folder / "samples" / sample.name).read_bytes() == sample.read_bytes()


def test_the_run_folder_explains_itself(whole: Path) -> None:
    assert load(ToyConfig, whole / "config.yaml") == toy_config(whole.parents[1])
    assert (whole / "git.txt").read_text().strip() == git_version()
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


def test_times_are_logged(whole: Path) -> None:
    with open(whole / "metrics.csv", newline="", encoding="utf-8") as file:
        assert all(float(r["time/step"]) > 0 and float(r["time/data"]) >= 0 for r in csv.DictReader(file))


def test_a_torn_last_checkpoint_falls_back_with_a_warning(tmp_path: Path, whole: Path) -> None:
    folder, _ = train(toy_config(tmp_path, trainer={"steps": 8}))
    last = folder / LAST
    last.write_bytes(last.read_bytes()[:-1000])
    with pytest.warns(UserWarning, match=r"last\.ckpt is torn.*previous\.ckpt \(step 6\)"):
        train(toy_config(tmp_path), resume=True)
    assert rows(folder) == rows(whole)


def test_both_torn_is_one_line(tmp_path: Path) -> None:
    folder, _ = train(toy_config(tmp_path, trainer={"steps": 6}))
    for name in (LAST, PREVIOUS):
        (folder / name).write_bytes(b"PK torn")
    with pytest.raises(UserError, match=r"nothing to resume from: .*last\.ckpt is torn.*previous\.ckpt is torn"):
        train(toy_config(tmp_path), resume=True)


def test_a_flipped_byte_is_noticed(tmp_path: Path, whole: Path) -> None:
    data = (whole / LAST).read_bytes()
    with zipfile.ZipFile(whole / LAST) as archive:
        content = archive.read(max(archive.infolist(), key=lambda entry: entry.file_size))
    at = data.index(content) + len(content) // 2
    (tmp_path / LAST).write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    with pytest.raises(UserError, match="torn"):
        load_checkpoint(tmp_path / LAST, "toy")


def test_an_occupied_folder_is_refused_resumed_or_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    short = {"steps": 2, "val_every": 0}
    folder, _ = train(toy_config(tmp_path, trainer=short))
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="already holds a run"):
        train(toy_config(tmp_path, trainer=short))
    _, module = train(toy_config(tmp_path, trainer=short), resume=True)
    assert "has completed its 2 steps" in capsys.readouterr().out
    before = (folder / LAST).stat().st_mtime_ns
    train(toy_config(tmp_path, trainer=short), overwrite=True)
    assert (folder / LAST).stat().st_mtime_ns > before
    assert len(rows(folder)) == 2
    assert (folder / "notes.txt").read_text() == "mine"
    assert module.step == 2


def test_a_longer_run_goes_on_and_tells_what_changed(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder, _ = train(toy_config(tmp_path, trainer={"steps": 4}))
    capsys.readouterr()
    train(toy_config(tmp_path, trainer={"steps": 5}), resume=True)
    printed = capsys.readouterr().out
    assert "resumed with changes in: trainer" in printed
    assert "steps: 4 to 5" in printed
    assert len(rows(folder)) == 5


def test_another_architecture_is_named(tmp_path: Path) -> None:
    train(toy_config(tmp_path, trainer={"steps": 2}))
    with pytest.raises(UserError, match=r"G\.0\.weight is \(6, 5\) there and \(7, 5\) here"):
        train(toy_config(tmp_path, width=7), resume=True)


@pytest.mark.parametrize("second_save", [False, True])
def test_a_full_disk_keeps_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, second_save: bool
) -> None:
    saves: list[Path] = []
    whole_write = AtomicCheckpointIO.write

    def write(self: AtomicCheckpointIO, checkpoint: dict[str, Any], path: Path) -> None:
        saves.append(path)
        if len(saves) > second_save:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        whole_write(self, checkpoint, path)

    monkeypatch.setattr(AtomicCheckpointIO, "write", write)
    with pytest.raises(UserError, match=r"cannot write .*last\.ckpt: No space left on device") as caught:
        train(toy_config(tmp_path))
    assert "\n" not in str(caught.value)
    folder = tmp_path / "toy" / "gan"
    assert not list(folder.glob(".*"))
    assert [p.name for p in folder.glob("*.ckpt")] == ([LAST] if second_save else [])
    if second_save:
        assert load_checkpoint(folder / LAST, "toy")["step"] == 3


def test_a_real_write_error_surfaces_as_the_system_named_it(tmp_path: Path) -> None:
    """Torch's writer turns a failed write into a RuntimeError of its own; the limit on file size provokes one."""
    path = tmp_path / LAST
    AtomicCheckpointIO().save_checkpoint({"x": torch.zeros(8)}, path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    try:
        with pytest.raises(UserError, match="File too large"):
            AtomicCheckpointIO().save_checkpoint({"x": torch.zeros(1 << 20)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [p.name for p in tmp_path.iterdir()] == [LAST]
    assert torch.load(path, weights_only=True)["x"].shape == (8,)


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_a_pickle_that_would_run_code_does_not(tmp_path: Path, form: str) -> None:
    path, target = tmp_path / "bomb.ckpt", tmp_path / "exploded"
    if form == "pickle":
        path.write_bytes(pickle.dumps(Bomb(target)))
    else:
        torch.save({"kind": "toy", "x": Bomb(target)}, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(UserError, match="could run code" if form == "zip" else "nothing was read"):
        load_checkpoint(path, "toy")
    assert not target.exists()


def test_wrong_checkpoints_are_told_apart(tmp_path: Path, whole: Path) -> None:
    with pytest.raises(UserError, match="no such checkpoint"):
        load_checkpoint(tmp_path / "none.ckpt", "toy")
    with pytest.raises(UserError, match="no such checkpoint"):
        load_checkpoint(tmp_path, "toy")
    with pytest.raises(UserError, match="'toy', but 'voice2face' is needed"):
        load_checkpoint(whole / LAST, "voice2face")
    (tmp_path / "text.ckpt").write_text("hello")
    with pytest.raises(UserError, match="torn or not a checkpoint"):
        load_checkpoint(tmp_path / "text.ckpt", "toy")
    torch.save({"state_dict": {}}, tmp_path / "foreign.ckpt")
    with pytest.raises(UserError, match="not written by this software"):
        load_checkpoint(tmp_path / "foreign.ckpt", "toy")
    newer = torch.load(whole / LAST, weights_only=True) | {"schema": 99, "version": "9.9"}
    torch.save(newer, tmp_path / "newer.ckpt")
    with pytest.raises(UserError, match=r"newer version 9\.9"):
        load_checkpoint(tmp_path / "newer.ckpt", "toy")


def test_a_loss_that_is_no_number_ends_the_run_before_it_is_saved(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"step 8: train/d_loss is nan"):
        train(toy_config(tmp_path, bad_at=7, trainer={"log_every": 50}))
    assert load_checkpoint(tmp_path / "toy" / "gan" / LAST, "toy")["step"] == 6


def test_rows_are_means_of_their_window_also_across_a_resume(tmp_path: Path, whole: Path) -> None:
    each = rows(whole)
    train(toy_config(tmp_path, trainer={"log_every": 5, "steps": 7}))
    folder = tmp_path / "toy" / "gan"
    (folder / LAST).unlink()  # go on from step 6, inside the window 6..10
    train(toy_config(tmp_path, trainer={"log_every": 5}), resume=True)
    logged = {row["step"]: row for row in rows(folder)}
    for end, window in ((5, each[:5]), (10, each[5:10]), (12, each[10:])):
        for key in ("train/d_loss", "train/loss_r1"):
            values = [float(row[key]) for row in window if row[key]]
            got = logged[str(end)][key]
            assert float(got) == pytest.approx(np.mean(values), rel=1e-12) if values else got == ""
    assert list(logged) == ["4", "5", "8", "10", "12"]


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
    again, _ = train(toy_config(tmp_path))
    assert rows(again) == rows(whole)
    cfg = toy_config(tmp_path, trainer={"steps": 2})
    cfg.run.name, cfg.run.seed = "other", 4
    assert rows(train(cfg)[0])[0] != rows(whole)[0]


def test_what_lightning_refuses_and_what_is_reserved(tmp_path: Path) -> None:
    for changes, match in (
        ({"precision": "3-bit"}, "trainer: Lightning refuses"),
        ({"strategy": "teleport"}, "trainer: Lightning refuses"),
        ({"kwargs": {"no_such_argument": 1}}, "no_such_argument"),
        ({"kwargs": {"max_steps": 1}}, r"trainer\.kwargs\.max_steps is set by other keys"),
    ):
        with pytest.raises(UserError, match=match):
            train(toy_config(tmp_path, trainer=changes))
    cfg = toy_config(tmp_path)
    cfg.run.name = ""
    with pytest.raises(UserError, match="needs a package and a name"):
        train(cfg)
    assert not list(tmp_path.iterdir())


def test_ctrl_c_reaches_the_caller(tmp_path: Path) -> None:
    class Stop(Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(toy_config(tmp_path), callbacks=[Stop()])


def test_wandb_offline_writes_into_the_run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    monkeypatch.delenv("WANDB_MODE", raising=False)
    cfg = toy_config(tmp_path, trainer={"steps": 2, "val_every": 2})
    cfg.wandb.mode = "offline"
    folder, _ = train(cfg)
    wandb.teardown()  # its service writes the last records shortly after the run has ended
    (run,) = (folder / "wandb").glob("offline-run-*")
    (log,) = run.glob("*.wandb")
    data = log.read_bytes()
    assert all(word in data for word in (b"train/d_loss", b"val/real", b"samples", b"toy", b"gan"))
    assert (folder / "wandb_train.txt").read_text().strip() in run.name


def test_an_unreachable_dashboard_makes_the_run_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

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


def test_git_version_outside_a_clone_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert git_version() == "unknown"


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


def test_training_is_quiet(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        train(toy_config(tmp_path, trainer={"steps": 1, "val_every": 0}))
    printed = capfd.readouterr()
    assert printed.err == ""
    assert yaml.safe_load(printed.out.split("source:")[0])["trainer"]["steps"] == 1
