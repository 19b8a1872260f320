"""Torn, hostile and foreign checkpoints, and disks that are full."""

import pickle
import resource
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from common.checkpoints import LAST, PREVIOUS, AtomicCheckpointIO
from common.errors import UserError
from common.run import load_checkpoint
from tests.common.toy_gan import rows, toy_config, train_toy

pytestmark = pytest.mark.usefixtures("threads")


def test_a_torn_last_checkpoint_falls_back_with_a_warning(tmp_path: Path, whole: Path) -> None:
    folder, _ = train_toy(toy_config(tmp_path, trainer={"steps": 8}))
    last = folder / LAST
    last.write_bytes(last.read_bytes()[:-1000])
    with pytest.warns(UserWarning, match=r"last\.ckpt is torn.*previous\.ckpt \(step 6\)"):
        train_toy(toy_config(tmp_path), resume=True)
    assert rows(folder) == rows(whole)


def test_both_torn_is_one_line(tmp_path: Path) -> None:
    folder, _ = train_toy(toy_config(tmp_path, trainer={"steps": 6}))
    for name in (LAST, PREVIOUS):
        (folder / name).write_bytes(b"PK torn")
    with pytest.raises(UserError, match=r"nothing to resume from: .*last\.ckpt is torn.*previous\.ckpt is torn"):
        train_toy(toy_config(tmp_path), resume=True)


def test_a_flipped_byte_is_noticed(tmp_path: Path, whole: Path) -> None:
    data = (whole / LAST).read_bytes()
    with zipfile.ZipFile(whole / LAST) as archive:
        content = archive.read(max(archive.infolist(), key=lambda entry: entry.file_size))
    at = data.index(content) + len(content) // 2
    (tmp_path / LAST).write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    with pytest.raises(UserError, match="torn"):
        load_checkpoint(tmp_path / LAST, "toy")


def test_another_architecture_is_named(tmp_path: Path) -> None:
    train_toy(toy_config(tmp_path, trainer={"steps": 2}))
    with pytest.raises(UserError, match=r"G\.0\.weight is \(6, 5\) there and \(7, 5\) here"):
        train_toy(toy_config(tmp_path, width=7), resume=True)


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
        train_toy(toy_config(tmp_path))
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
