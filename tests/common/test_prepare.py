"""Raw folders to corpora: every file ends in the corpus or the report, killed runs resume, bad output is one line."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common.audio.io import load_audio, write_wav
from common.data.corpus import Corpus, Item
from common.data.engine import WORK, Job, Unit, begin, run_units
from common.data.folder import Plan, plan_folder, safe_name
from common.data.ingest import ToolKit
from common.data.prepare import Report, prepare, shared_files
from common.errors import UserError
from tests.common import toy_units
from tests.common.toy_media import RATE, FakeKit, photo, save_photo, save_video, save_voice, voice

GOLDEN_FILES = ("manifest.parquet", "report.json")


def run(source: Path, out: Path, **options: object) -> Report:
    return prepare("folder", source, out, **{"workers": 0, "size": 64, "toolkit": FakeKit, **options})


def dropped(report: Report) -> dict[str, str]:
    return {drop.source: drop.reason for drop in report.dropped}


def contents(root: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file() and WORK not in p.parts
    }


# ---- the folder source


def test_pieces_of_one_file_in_two_splits_are_noted():
    def item(file: str, piece: int, split: str, dropped: str = "") -> Item:
        return Item(f"{file}/{piece}", "ann", split, "voice", f"voices/{file}-{piece}.wav", dropped=dropped)

    items = [item("a", 0, "train"), item("a", 1, "test"), item("b", 0, "train"), item("b", 1, "test", "silent")]
    origin = {i.id: i.id.partition("/")[0] for i in items}
    notes = shared_files(items, origin)
    assert len(notes) == 1
    assert notes[0].startswith("pieces of 1 files both train and are held out, the first is a: ")
    assert shared_files(items[2:], origin) == []


def test_pairs_by_person_become_a_corpus(tmp_path):
    for number, person in enumerate(("ann", "Bob Smith", "张三")):
        for take in range(3):
            save_voice(tmp_path / f"in/{person}/voices/take {take}.wav", 2 + take, 150 + 50 * number)
            save_photo(tmp_path / f"in/{person}/photos/{take}.png", seed=take)
    (tmp_path / "in/README.txt").write_text("not media")
    report = run(tmp_path / "in", tmp_path / "out")
    corpus = Corpus.open(tmp_path / "out")
    assert corpus.identities() == ["Bob Smith", "ann", "张三"]
    assert report.dropped == []
    assert report.ignored == ["README.txt"]
    assert report.split_by == corpus.split_by == "recording"
    assert report.counts == {s: {"voices": 3, "faces": 3, "identities": 3} for s in ("train", "val", "test")}
    row = corpus.items(kind="voice", split="train").iloc[0]
    wave = load_audio(corpus.file(row["path"]))
    assert wave.shape == (row["samples"],)
    assert wave.shape[0] == pytest.approx(2 * 0.8 * RATE, abs=2 * 320)
    crop = np.asarray(Image.open(corpus.file(corpus.items(kind="face").iloc[0]["path"])))
    assert crop.shape == (64, 64, 3)
    assert (corpus.items(kind="face")["face_pixels"] > 64).all()
    assert json.loads((tmp_path / "out/report.json").read_text())["counts"] == report.counts
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"voices", "faces", WORK, *GOLDEN_FILES}


def test_one_video_per_person_in_one_folder(tmp_path):
    frames = [photo((20 + i, 20, 100), seed=i // 5) for i in range(50)]
    for name in ("a.mp4", "b.mkv"):
        save_video(tmp_path / "in" / name, frames, voice(6.0))
    report = run(tmp_path / "in", tmp_path / "out", faces_per_video=4)
    corpus = Corpus.open(tmp_path / "out")
    assert report.dropped == []
    assert corpus.identities() == ["a", "b"]
    assert report.counts["train"] == {"voices": 2, "faces": 4, "identities": 2}
    assert report.counts["val"] == report.counts["test"] == {"voices": 2, "faces": 2, "identities": 2}
    total = corpus.items(kind="voice")["samples"].sum() / RATE
    assert total == pytest.approx(2 * 6 * 0.8, rel=0.1)


def test_a_cut_video_gives_what_it_holds_and_is_named(tmp_path):
    frames = [photo((20, 20, 100), seed=i) for i in range(50)]
    for name in ("a", "b"):
        save_video(tmp_path / f"in/{name}.mp4", frames, voice(4.0))
    whole = (tmp_path / "in/a.mp4").read_bytes()
    (tmp_path / "in/a.mp4").write_bytes(whole[: len(whole) // 2])
    report = run(tmp_path / "in", tmp_path / "out", keep_incomplete=True)
    assert any("break off after" in drop.reason for drop in report.dropped)
    assert set(dropped(report)) == {"a.mp4"}
    faces = Corpus.open(tmp_path / "out").items(kind="face")["identity"].value_counts()
    assert 0 < faces["a"] < faces["b"] == 8


def test_every_bad_file_is_named_with_its_reason(tmp_path):
    root = tmp_path / "in"
    for take in range(2):
        save_voice(root / f"ann/{take}.wav")
        save_photo(root / f"ann/{take}.png", seed=take)
    save_photo(root / "ann/twins.png", (10, 20, 70), (110, 20, 72))
    save_photo(root / "ann/dominant.png", (5, 20, 100), (140, 20, 40))
    save_photo(root / "ann/tiny.png", (40, 40, 30))
    Image.new("RGB", (64, 64)).save(root / "ann/nobody.png")
    (root / "ann/torn.png").write_bytes((root / "ann/0.png").read_bytes()[:2000])
    (root / "ann/text.jpg").write_text("hello")
    (root / "ann/text.wav").write_text("hello")
    (root / "ann/empty.mp3").touch()
    save_voice(root / "ann/short.wav", 0.2)
    write_wav(root / "ann/silent.wav", torch.zeros(3 * RATE), RATE)
    write_wav(root / "ann/clipped.wav", (voice(3.0) * 100).clamp(-1, 1), RATE)
    save_video(root / "ann/mute.mp4", [photo((40, 30, 100))] * 10, None)
    save_voice(root / "eve/only.wav")
    save_photo(root / "joe/only.png")
    save_voice(tmp_path / "elsewhere.wav")
    (root / "ann/link.wav").symlink_to(tmp_path / "elsewhere.wav")
    (root / "ann/loop").symlink_to(root)
    (root / "ann/dangling.png").symlink_to(root / "nothing.png")
    os.mkfifo(root / "ann/pipe.wav")
    report = run(root, tmp_path / "out")
    expected = {
        "ann/twins.png": "several faces",
        "ann/tiny.png": "smaller than 64 px",
        "ann/nobody.png": "no face was found",
        "ann/torn.png": "cannot read",
        "ann/text.jpg": "not an image",
        "ann/text.wav": "",
        "ann/empty.mp3": "the file is empty",
        "ann/short.wav": "",
        "ann/silent.wav": "silent",
        "ann/clipped.wav": "clipped",
        "ann/mute.mp4": "no audio",
        "ann/link.wav": "outside the input folder",
        "ann/loop": "linked folder",
        "ann/dangling.png": "",
        "ann/pipe.wav": "not a regular file",
        "eve": "has voices but no faces",
        "joe": "has faces but no voices",
    }
    reasons = dropped(report)
    assert set(reasons) == set(expected)
    for source, words in expected.items():
        assert words in reasons[source], (source, reasons[source])
        assert "\n" not in reasons[source]
        assert f"dropped {source}: {reasons[source]}" in report.text()
    corpus = Corpus.open(tmp_path / "out")
    assert corpus.identities() == ["ann"]
    assert len(corpus.items(kind="voice")) == 2
    assert (corpus.table["dropped"] != "").sum() == 2

    kept = run(root, tmp_path / "out", keep_incomplete=True)
    assert Corpus.open(tmp_path / "out").identities() == ["ann", "eve", "joe"]
    assert not {"eve", "joe"} & set(dropped(kept))


def test_names_that_are_no_text(tmp_path):
    root = tmp_path / "in"
    raw = os.fsencode(root) + b"/J\xf6rg/x:y\n.wav"
    os.makedirs(os.path.dirname(raw))
    save_voice(tmp_path / "v.wav")
    os.rename(tmp_path / "v.wav", raw)
    with open(os.path.dirname(raw) + b"/\xff.png", "wb") as file:
        Image.fromarray(photo((40, 30, 100))).save(file, format="png")
    with open(os.path.dirname(raw) + b"/\xfe.wav", "wb") as file:
        file.write(b"no sound")
    save_photo(root / "ann/1.png")
    report = run(root, tmp_path / "out")
    reasons = dropped(report)
    assert set(reasons) == {"J\\xf6rg/\\xfe.wav", "ann"}
    corpus = Corpus.open(tmp_path / "out")
    assert len(corpus.items()) == 2
    assert all(path.isprintable() and ":" not in path for path in corpus.items()["path"])


def test_who_is_who(tmp_path):
    def people(*files: str) -> tuple[dict[str, list[str]], Plan]:
        root = tmp_path / str(len(list(tmp_path.iterdir())))
        for file in files:
            path = root / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"x")
        plan = plan_folder(root)
        found: dict[str, list[str]] = {}
        for unit in plan.units:
            found.setdefault(unit.payload[0].identity, []).append(unit.payload[0].source)
        return found, plan

    assert people("ann.wav", "ann.jpg", "bob.mp4")[0] == {"ann": ["ann.jpg", "ann.wav"], "bob": ["bob.mp4"]}
    assert set(people("one/ann.mp4", "one/bob.mp4")[0]) == {"ann", "bob"}
    assert set(people("ann/1.mp4", "bob/1.mp4")[0]) == {"ann", "bob"}
    assert set(people("Voices/ann/1.wav", "faces/ann/1.png", "faces/bob/1.png")[0]) == {"ann", "bob"}
    assert set(people("set/ann/wav/1.wav", "set/ann/photos/1.png")[0]) == {"ann"}
    found, plan = people("a/s1/1.wav", "b/s1/1.wav")
    assert set(found) == {"s1"}
    assert plan.notes == ["s1 is taken for one person in 2 folders: a/s1, b/s1"]
    with pytest.raises(UserError, match="holds no videos"):
        people("a.txt")


def test_safe_names_stay_apart():
    same = ["ann", "Bob Smith", "张三", "O'Neil, J.-P. (2)"]
    assert [safe_name(name) for name in same] == same
    odd = ["a/b", "a\\b", "a:b", "..", ".", "", " a", "a.", "x" * 300, "字" * 200, "\udcff", "a\nb", "e\u0301"]
    safe = [safe_name(name) for name in odd]
    assert len({*safe, *same}) == len(odd) + len(same)
    for name in safe:
        assert name.isprintable()
        assert not set(name) & set('/\\:*?"<>|')
        assert name == name.strip(". ")
        assert 0 < len(name.encode()) <= 110


def test_split_by_identity_when_there_are_many(tmp_path):
    for person in range(6):
        for take in range(2):
            save_voice(tmp_path / f"in/p{person}/{take}.wav", 1.5)
        save_photo(tmp_path / f"in/p{person}/face.png")
    report = run(tmp_path / "in", tmp_path / "out", split="identity", limit=5)
    corpus = Corpus.open(tmp_path / "out")
    assert corpus.split_by == report.split_by == "identity"
    assert corpus.identities() == [f"p{person}" for person in range(5)]
    assert corpus.table.groupby("identity")["split"].nunique().max() == 1


# ---- resuming, options, output


def make_input(root: Path, people: int = 4) -> Path:
    for person in range(people):
        save_voice(root / f"p{person}/a.wav", 1.5, 100 + 40 * person)
        save_photo(root / f"p{person}/b.png", seed=person)
        save_photo(root / f"p{person}/twins.png", (10, 20, 70), (110, 20, 72))
    return root


KILLED = """
import sys
from pathlib import Path
from tests.common.test_prepare import run
from tests.common.toy_media import SlowKit
run(Path(sys.argv[1]), Path(sys.argv[2]), toolkit=SlowKit)
"""


def test_killed_and_resumed_is_as_uninterrupted(tmp_path):
    source, out = make_input(tmp_path / "in"), tmp_path / "killed"
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(source), str(out)], cwd=Path(__file__).parents[2])
    records = out / WORK / "records"
    deadline = time.monotonic() + 120
    while len(list(records.glob("*.json"))) < 3 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    before = {path.name: path.stat().st_mtime_ns for path in records.glob("*.json")}
    assert 3 <= len(before) < 12
    assert not (out / "manifest.parquet").exists()
    (out / "voices/p0/.a.0123abcd.wav").write_bytes(b"left by the kill")
    resumed = run(source, out)
    assert all((records / name).stat().st_mtime_ns == stamp for name, stamp in before.items())
    assert resumed == run(source, tmp_path / "whole")
    assert contents(out) == contents(tmp_path / "whole")
    assert len(resumed.dropped) == 4


def test_a_changed_file_is_done_again(tmp_path):
    source, out = make_input(tmp_path / "in", 2), tmp_path / "out"
    run(source, out)
    old = set(contents(out))
    save_photo(source / "p0/twins.png", seed=9)
    save_photo(source / "p1/b.png", (10, 20, 70), (110, 20, 72))
    save_photo(source / "p1/c.png", seed=5)
    report = run(source, out)
    assert set(dropped(report)) == {"p1/twins.png", "p1/b.png"}
    new = set(contents(out))
    assert len(new - old) == 2
    assert [name.split("/")[1] for name in old - new] == ["p1"]


def test_other_options_are_refused_or_start_afresh(tmp_path):
    source, out = make_input(tmp_path / "in", 2), tmp_path / "out"
    run(source, out)
    with pytest.raises(UserError, match=r"begun with other options \(size 64 -> 128\)"):
        run(source, out, size=128)
    (out / "voices/mine.txt").write_text("the user's own")
    run(source, out, size=128, fresh=True)
    face = next((out / "faces").rglob("*.png"))
    assert Image.open(face).size == (128, 128)
    assert (out / "voices/mine.txt").exists()


def test_output_that_is_not_ours_or_not_writable(tmp_path, monkeypatch):
    source = make_input(tmp_path / "in", 2)
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="is a file"):
        run(source, tmp_path / "file")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign/manifest.parquet").write_bytes(b"x")
    with pytest.raises(UserError, match="did not write"):
        run(source, tmp_path / "foreign")
    for inside in (source / "out", source, tmp_path):
        with pytest.raises(UserError, match="lie in one another"):
            run(source, inside)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"cannot write .*No space left on device") as caught:
        run(source, tmp_path / "full")
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    assert contents(tmp_path / "full") == {}
    assert len(Corpus.open((run(source, tmp_path / "full"), tmp_path / "full")[1]).items()) == 4


def test_nothing_usable_and_bad_arguments(tmp_path):
    save_photo(tmp_path / "in/ann.png")
    with pytest.raises(UserError, match=r"nothing in the input can be used.*ann: the person has faces but no voices"):
        run(tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out/manifest.parquet").exists()
    assert (tmp_path / "out/report.json").exists()
    with pytest.raises(UserError, match="unknown source 'films'; use one of folder, voxceleb"):
        prepare("films", tmp_path, tmp_path / "x")
    with pytest.raises(UserError, match="no input folder"):
        run(tmp_path / "absent", tmp_path / "x")
    with pytest.raises(UserError, match="make no corpus"):
        run(tmp_path / "in", tmp_path / "x", size=4)


def test_worker_processes_survive_a_crash_and_an_exception(tmp_path):
    units = [Unit(f"u{i}", "", word) for i, word in enumerate(("fine", "raise", "die"))]
    begin(tmp_path, {})
    job = Job(tmp_path, toy_units.hostile, toy_units.tools, toy_units.key_of)
    records = run_units(units, job, workers=1, label="test")
    assert [record.drops[0].reason.split(" (")[0] for record in records] == [
        "done with 1 thread",
        "RuntimeError: odd file",
        "the process that read it died",
    ]
    assert run_units(units, job, workers=1, label="test") == records


# ---- real media


@pytest.mark.media
def test_real_clips_become_a_trainable_corpus(media, tmp_path):
    report = prepare("folder", media / "real/clips", tmp_path / "out", workers=0, faces_per_video=3, toolkit=ToolKit)
    corpus = Corpus.open(tmp_path / "out")
    assert report.dropped == []
    assert len(corpus.identities()) == 5
    assert corpus.split_by == "recording"
    for split in ("train", "val", "test"):
        assert len(corpus.items(kind="voice", split=split)) > 0
        assert len(corpus.items(kind="face", split=split)) > 0
    assert set(corpus.identities("test")) <= set(corpus.identities("train"))
    assert (corpus.items(kind="voice")["samples"] >= RATE).all()
