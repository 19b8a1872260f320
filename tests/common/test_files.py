"""Files and folders are whole or absent."""

import pytest

from common.data.engine import WORK, Job, Unit, begin, clean, run_units
from common.errors import UserError
from common.files import atomic_folder
from tests.common import toy_units


def test_a_folder_appears_when_it_is_full(tmp_path):
    target = tmp_path / "clips" / "a b"
    with atomic_folder(target) as folder:
        (folder / "video.mp4").write_bytes(b"1")
        assert not target.exists()
    assert [path.name for path in target.iterdir()] == ["video.mp4"]
    with atomic_folder(target) as folder:
        (folder / "audio.wav").write_bytes(b"2")
    assert [path.name for path in target.iterdir()] == ["audio.wav"]
    assert [path.name for path in target.parent.iterdir()] == ["a b"]


def test_a_failed_folder_leaves_the_old_one(tmp_path):
    target = tmp_path / "a"
    target.mkdir()
    (target / "old").write_bytes(b"1")
    with pytest.raises(ZeroDivisionError), atomic_folder(target) as folder:
        (folder / "new").write_bytes(b"2" * (1 // 0))
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "old"]


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match=r"cannot write .*file/a: "), atomic_folder(tmp_path / "file" / "a"):
        pass


def test_the_engine_stores_clips_as_folders(tmp_path):
    begin(tmp_path, {})
    job = Job(tmp_path, toy_units.clip, toy_units.tools, toy_units.key_of)
    records = run_units([Unit("a", "1", "")], job, workers=0, label="clips")
    assert [item.path for record in records for item in record.items] == ["clips/a"]
    assert sorted(path.name for path in (tmp_path / "clips/a").iterdir()) == ["landmarks.npy", "video.mp4"]


def test_a_full_disk_ends_the_run_and_leaves_nothing(tmp_path):
    begin(tmp_path, {})
    job = Job(tmp_path, toy_units.clip, toy_units.tools, toy_units.key_of)
    with pytest.raises(UserError, match="the disk is full"):
        run_units([Unit("a", "1", "full")], job, workers=0, label="clips")
    assert not (tmp_path / "clips/a").exists()
    assert not list((tmp_path / WORK / "records").glob("*"))


def test_a_torn_input_is_a_drop_and_leaves_nothing(tmp_path):
    begin(tmp_path, {})
    job = Job(tmp_path, toy_units.clip, toy_units.tools, toy_units.key_of)
    records = run_units([Unit("a", "1", "torn"), Unit("b", "1", "")], job, workers=0, label="clips")
    assert [[item.path for item in record.items] for record in records] == [[], ["clips/b"]]
    assert [(drop.source, drop.reason) for drop in records[0].drops] == [("a", "the video is cut off")]
    assert [path.name for path in (tmp_path / "clips").iterdir()] == ["b"]


def test_clean_removes_half_written_clips(tmp_path):
    half = tmp_path / "clips" / ".a.0123abcd"
    half.mkdir(parents=True)
    (half / ".video.0123abcd.wav").write_bytes(b"1")
    (tmp_path / "clips" / "b").mkdir()
    clean(tmp_path)
    assert [path.name for path in (tmp_path / "clips").iterdir()] == ["b"]
