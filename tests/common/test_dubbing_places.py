"""What a dub refuses at a glance: files that are not there, and outputs that cannot be."""

import os
from pathlib import Path

import pytest

from common.dubbing.places import check_inputs, check_output
from common.errors import UserError


def test_what_is_there_passes(tmp_path: Path) -> None:
    (tmp_path / "v.mp4").write_bytes(b"v")
    check_inputs({"--video": tmp_path / "v.mp4", "--audio": None})
    for out in (tmp_path / "o.mp4", tmp_path / "new" / "newer" / "o.MP4"):
        check_output(out, ".mp4", (tmp_path / "v.mp4", None, tmp_path / "absent"))
    assert [path.name for path in tmp_path.iterdir()] == ["v.mp4"]


def test_a_missing_input_is_named_with_its_option(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^--audio: no such file: .*a\.wav$"):
        check_inputs({"--video": None, "--audio": tmp_path / "a.wav"})
    with pytest.raises(UserError, match=r"^--expression: no such file: .*last\.ckpt; run the training"):
        check_inputs({"--expression": tmp_path / "last.ckpt"})


def test_a_run_folder_is_told_from_its_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--checkpoint .* is a folder; give a file"):
        check_inputs({"--checkpoint": tmp_path})
    (tmp_path / "last.ckpt").touch()
    with pytest.raises(UserError, match=r"is a folder; did you mean .*last\.ckpt\?"):
        check_inputs({"--checkpoint": tmp_path})


def test_outputs_that_cannot_be_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "v.mp4").touch()
    (tmp_path / "link.mp4").symlink_to(tmp_path / "v.mp4")
    for out, words in (
        ("o.avi", "does not end in .mp4"),
        ("folder.mp4", "it is a folder"),
        ("file/deep/o.mp4", "file is a file, not a folder"),
        ("v.mp4", "is an input as well"),
        ("link.mp4", "is an input as well"),
    ):
        with pytest.raises(UserError, match=words):
            check_output(tmp_path / out, ".mp4", (None, tmp_path / "v.mp4"))


@pytest.mark.parametrize("absent", [False, True])
def test_a_folder_without_permission_is_refused(tmp_path: Path, absent: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path or not mode & os.W_OK)
    with pytest.raises(UserError, match=r"cannot write .*o\.mp4: no permission to write in"):
        check_output(tmp_path / ("new/o.mp4" if absent else "o.mp4"), ".mp4", ())
