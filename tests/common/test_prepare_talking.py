"""Raw videos to clips: every video ends in the corpus or the report, killed runs resume, sound stays in step."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from common.audio.io import load_audio
from common.data import talking_prepare
from common.data.corpus import Corpus, Item
from common.data.engine import WORK
from common.data.prepare import Report
from common.data.talking import Recording, TalkingSettings
from common.data.talking_filter import RECIPES
from common.data.talking_prepare import prepare_talking, split_items
from common.errors import UserError
from common.video import Clip
from tests.common.toy_media import RATE, loud, save_video, voice
from tests.common.toy_talking import (
    SILENT,
    SQUARE,
    FakeSync,
    FakeTalkingKit,
    pictures,
    save_talk,
    save_wav,
)

SMALL = {"size": 64}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Pictures this small gain nothing from threads, which wait for each other where cores are few."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def run(source: Path, out: Path, kind: str = "folder", **options: object) -> Report:
    settings = {**SMALL, **options.pop("settings", {})}
    return prepare_talking(kind, source, out, settings, **{"workers": 0, "toolkit": FakeTalkingKit, **options})


def dropped(report: Report) -> dict[str, str]:
    reasons: dict[str, str] = {}
    for drop in report.dropped:
        reasons[drop.source] = "; ".join(filter(None, [reasons.get(drop.source), drop.reason]))
    return reasons


def contents(root: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file() and WORK not in p.parts
    }


# ---- clips


def test_a_video_becomes_clips_with_everything_in_them(tmp_path):
    save_talk(tmp_path / "in/ann/talk.mp4", pictures(100))
    (tmp_path / "in/README").write_text("not media")
    report = run(tmp_path / "in", tmp_path / "out")
    assert report.dropped == []
    assert report.ignored == ["README"]
    corpus = Corpus.open(tmp_path / "out")
    rows = corpus.items(kind="clip")
    assert corpus.split_by == report.split_by == "recording"
    assert list(rows["split"].sort_values()) == ["test", "train", "val"], "one file is cut so that some is held out"
    assert rows["frames"].sum() == 100
    assert list(rows["start"]) == [0.0, *(rows["frames"].cumsum()[:-1] / 25)]
    assert report.counts["train"]["clips"] == report.counts["val"]["clips"] == 1
    for row in rows.to_dict("records"):
        folder = corpus.file(row["path"])
        assert {path.name for path in folder.iterdir()} == {"video.mp4", "audio.wav", "landmarks.npy"}
        clip = Clip(folder)
        assert (len(clip), clip.size, clip.fps) == (row["frames"], (64, 64), 25)
        assert clip.wave().shape == (row["samples"],) == (640 * row["frames"],)
        assert row["face_pixels"] == pytest.approx(SQUARE[2], abs=2)
        assert row["faces"] == 1
        assert row["missing"] == 0
        assert 0.05 < row["silence"] < 0.3, "bursts of 0.4 s with pauses of 0.1 s"
        assert row["source"] == "ann/talk.mp4"


def test_landmarks_lie_in_the_crop(tmp_path):
    """The toy's landmarks span its square, which must be where they say in the crop."""
    save_talk(tmp_path / "in/ann/talk.mp4", pictures(30))
    run(tmp_path / "in", tmp_path / "out", settings={"size": 128})
    corpus = Corpus.open(tmp_path / "out")
    clip = Clip(corpus.file(corpus.items()["path"].iloc[0]))
    points = clip.landmarks
    assert points.shape == (len(clip), 68, 2)
    assert np.isfinite(points).all()
    bright = clip.frames(0, 1)[0].max(axis=2) > 40
    rows, columns = np.flatnonzero(bright.any(axis=1)), np.flatnonzero(bright.any(axis=0))
    # Brow to mid-chin and cheek to cheek span the square; see MEAN_FACE and landmarks_in.
    left, right = points[0, 17, 0], points[0, 26, 0]
    assert [columns[0], columns[-1] + 1] == pytest.approx([left, right], abs=3)
    assert (rows[0] + rows[-1] + 1) / 2 == pytest.approx(points[0, 17:, 1].mean() + 0.02 * 128, abs=8)


def test_sound_of_its_own_file_is_cut_to_the_sample(tmp_path):
    wave = voice(4.0) * torch.linspace(0.2, 1, 4 * RATE)
    save_talk(tmp_path / "in/ann/a.mp4", pictures(100), SILENT)
    save_wav(tmp_path / "in/ann/a.wav", wave)
    run(tmp_path / "in", tmp_path / "out")
    corpus = Corpus.open(tmp_path / "out")
    whole = load_audio(tmp_path / "in/ann/a.wav")
    for row in corpus.items().to_dict("records"):
        start = round(row["start"] * RATE)
        assert torch.equal(Clip(corpus.file(row["path"])).wave(), whole[start : start + row["samples"]])


def test_measured_sync_moves_the_sound(tmp_path):
    save_talk(tmp_path / "in/ann/a.mp4", pictures(50), SILENT)
    save_wav(tmp_path / "in/ann/a.wav", voice(2.0))
    whole = torch.nn.functional.pad(load_audio(tmp_path / "in/ann/a.wav"), (4 * 640, 4 * 640))
    for offset in (0, 3, -4):
        out = tmp_path / f"out{offset}"
        kit = partial(FakeTalkingKit, sync=FakeSync(offset))
        run(tmp_path / "in", out, toolkit=kit, settings={"longest": 2.0, "shortest": 2.0})
        (row,) = Corpus.open(out).items().to_dict("records")
        assert (row["sync_offset"], row["sync_confidence"], row["sync_shift"]) == (0, 5, offset)
        # Delayed by `offset` frames: sample i is what was 640 * offset earlier.
        start = 4 * 640 - offset * 640
        assert torch.equal(Clip(out / row["path"]).wave(), whole[start : start + 2 * RATE])
    kit = partial(FakeTalkingKit, sync=FakeSync(3))
    run(tmp_path / "in", tmp_path / "kept", toolkit=kit, settings={"shift": False})
    rows = Corpus.open(tmp_path / "kept").items()
    assert (rows["sync_offset"] == 3).all()
    assert (rows["sync_shift"] == 0).all()


def test_weak_sync_is_dropped_by_the_recipe_and_leaves_nothing(tmp_path):
    save_talk(tmp_path / "in/ann/a.mp4", pictures(50))
    for sync, words in ((FakeSync(0, 2.5), "confidence is 2.5, at least 3"), (FakeSync(-6), "apart by 6 frames")):
        with pytest.raises(UserError, match=f"nothing in the input can be used.*{words}"):
            run(
                tmp_path / "in",
                tmp_path / f"out{sync.offset}",
                toolkit=partial(FakeTalkingKit, sync=sync),
                settings={"bounds": RECIPES["clr"]},
            )
        assert not list((tmp_path / f"out{sync.offset}").glob("clips/*"))
        assert not (tmp_path / f"out{sync.offset}/manifest.parquet").exists()


# ---- what videos do


def test_cuts_and_gaps_split_and_are_reported(tmp_path):
    black = [np.zeros((120, 160, 3), np.uint8)]
    frames = [*pictures(40), *pictures(40, (20, 30, 60), seed=5), *black * 30, *pictures(40, seed=2)]
    save_talk(tmp_path / "in/ann/a.mp4", frames)
    report = run(tmp_path / "in", tmp_path / "out", settings={"longest": 60.0, "shortest": 1.5})
    rows = Corpus.open(tmp_path / "out").items()
    for expected, row in zip([0, 40, 110], rows.sort_values("start").to_dict("records"), strict=True):
        assert row["start"] * 25 == pytest.approx(expected, abs=1)
        assert row["frames"] == pytest.approx(40, abs=1)
    assert "1.2 s of its 6.0 s show no face that can be followed" in dropped(report)["ann/a.mp4"]


def test_every_bad_video_is_named_with_its_reason(tmp_path):
    root = tmp_path / "in"
    save_talk(root / "ann/good.mp4", pictures(60))
    save_talk(root / "ann/mute.mp4", pictures(30), SILENT)
    save_talk(root / "ann/one.mp4", pictures(1))
    save_talk(root / "ann/nobody.mp4", [np.zeros((120, 160, 3), np.uint8)] * 30)
    save_video(root / "ann/short_sound.mp4", pictures(60), voice(1.2))
    save_video(root / "ann/long_sound.mp4", pictures(30), voice(3.0))
    save_talk(root / "ann/still.mp4", pictures(30), torch.zeros(round(1.2 * RATE)))
    save_talk(root / "ann/tiny.mp4", pictures(30, (60, 40, 26)))
    (root / "ann/text.mp4").write_text("hello")
    (root / "ann/empty.mp4").touch()
    torn = (root / "ann/good.mp4").read_bytes()
    (root / "ann/torn.mp4").write_bytes(torn[: len(torn) // 2])
    save_wav(root / "ann/lone.wav", voice(1.0))
    report = run(root, tmp_path / "out")
    expected = {
        "ann/mute.mp4": "no audio",
        "ann/one.mp4": "it lasts 0.04 s, at least 1 s are needed",
        "ann/nobody.mp4": "no face was found in its 30 pictures",
        "ann/short_sound.mp4": "s before its pictures, which are cut",
        "ann/still.mp4": "nobody speaks in a share of 1 of the time, at most 0.9 of the time (max_silence)",
        "ann/tiny.mp4": "the face has 26 px, at least 32 px (min_face)",
        "ann/text.mp4": "",
        "ann/empty.mp4": "the file is empty",
        "ann/torn.mp4": "",
        "ann/lone.wav": "a sound file without a video of its name",
    }
    reasons = dropped(report)
    assert set(reasons) == set(expected)
    for source, words in expected.items():
        assert words in reasons[source], (source, reasons[source])
        assert "\n" not in reasons[source]
        assert f"dropped {source}: " in report.text()
    assert any("1 by max_silence" in note and "1 by min_face" in note for note in report.notes)
    used = dict(Corpus.open(tmp_path / "out").items().groupby("source")["frames"].sum())
    assert 29 <= used.pop("ann/short_sound.mp4") <= 33, "1.2 s, and what AAC adds to fill its last block"
    assert used == {"ann/good.mp4": 60, "ann/long_sound.mp4": 30}


def test_rates_rotations_and_names_of_all_kinds(tmp_path):
    """30 and 12.5 fps become 25 fps of the same length; a name that is no UTF-8 is read and stored printable."""
    save_talk(tmp_path / "in/ann/thirty.mp4", pictures(60), fps=30)
    save_talk(tmp_path / "in/ann/slow.mp4", pictures(25), fps=12.5)
    save_talk(tmp_path / "in/ann/plain.mp4", pictures(50))
    odd = bytes(tmp_path / "in/ann") + b"/J\xf6rg x.mp4"
    (tmp_path / "in/ann/plain.mp4").rename(odd.decode("utf-8", "surrogateescape"))
    report = run(tmp_path / "in", tmp_path / "out")
    assert report.dropped == []
    rows = Corpus.open(tmp_path / "out").items()
    assert dict(rows.groupby("source")["frames"].sum()) == {
        "ann/thirty.mp4": 50,
        "ann/slow.mp4": 50,
        "ann/J\\xf6rg x.mp4": 50,
    }
    assert all(path.isprintable() for path in rows["path"])


def test_two_faces_pass_plainly_and_not_as_clr(tmp_path):
    save_talk(tmp_path / "in/ann/pair.mp4", pictures(50, (10, 20, 60), (90, 20, 62)))
    run(tmp_path / "in", tmp_path / "out")
    assert (Corpus.open(tmp_path / "out").items()["faces"] == 2).all()
    with pytest.raises(UserError, match="it shows 2 faces, at most 1 faces"):
        run(tmp_path / "in", tmp_path / "clr", settings={"bounds": RECIPES["clr"]})


# ---- splits, resuming, output


def test_only_crops_that_were_enlarged_visibly_are_noted():
    def said(*scales):
        items = [Item(f"c{n}", "a", "train", "clip", f"c{n}", frames=9, fps=25.0) for n in range(len(scales))]
        extra = {item.id: {"crop_scale": scale} for item, scale in zip(items, scales, strict=True)}
        return [note for note in talking_prepare._notes(items, extra, [], TalkingSettings()) if "enlarged" in note]

    assert said(0.5, 1.04) == []
    assert said(0.5, 1.04, 1.52) == ["1 of 3 clips were enlarged to 224 px, 1.5 times at most"]


def test_official_splits_hold_and_others_are_made(tmp_path):
    def items(*pairs: tuple[str, str]) -> list[Item]:
        return [Item(f"clips/{key}", person, "train", "clip", f"clips/{key}") for key, person in pairs]

    def owners(**splits: str) -> dict[str, Recording]:
        return {f"clips/{key}": Recording("", f"{key}.mp4", "", key, split=split) for key, split in splits.items()}

    two = items(("a", "ann"), ("b", "bob"))
    assert split_items(two, owners(a="train", b="test"), "auto") == (
        "identity",
        {"clips/a": "train", "clips/b": "test"},
    )
    one = items(("a", "ann"), ("b", "ann"))
    assert split_items(one, owners(a="train", b="val"), "auto")[0] == "recording"
    assert split_items(one, owners(a="train", b="val"), "identity")[1]["clips/a"] == "train"
    dated = items(*((f"{speaker}{day}{take}", speaker) for speaker in "xy" for day in "123456" for take in "ab"))
    groups = {item.id: Recording("", item.id, item.identity, "", group=item.id[-3:-1]) for item in dated}
    split_by, places = split_items(dated, groups, "auto")
    assert split_by == "recording"
    for speaker in "xy":
        days = {split: {key[-2] for key, place in places.items() if place == split and speaker in key[-3:]}
                for split in ("train", "val", "test")}  # fmt: skip
        assert days == {"train": set("1234"), "val": {"5"}, "test": {"6"}}, "whole dates, of every speaker"


KILLED = """
import sys
from pathlib import Path
from tests.common.test_prepare_talking import run
from tests.common.toy_talking import SlowTalkingKit
run(Path(sys.argv[1]), Path(sys.argv[2]), toolkit=SlowTalkingKit)
"""


def test_killed_and_resumed_is_as_uninterrupted(tmp_path):
    source, out = tmp_path / "in", tmp_path / "killed"
    for person in range(3):
        for take in range(3):
            save_talk(source / f"p{person}/{take}.mp4", pictures(30, seed=3 * person + take))
    (source / "p0/bad.mp4").write_text("no video")
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(source), str(out)], cwd=Path(__file__).parents[2])
    records = out / WORK / "records"
    deadline = time.monotonic() + 120
    while len(list(records.glob("*.json"))) < 3 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    before = {path.name: path.stat().st_mtime_ns for path in records.glob("*.json")}
    assert 3 <= len(before) < 10
    assert not (out / "manifest.parquet").exists()
    half = out / "clips/.p0.0123abcd"
    half.mkdir(parents=True, exist_ok=True)
    (half / "video.mp4").write_bytes(b"left by the kill")
    resumed = run(source, out)
    assert all((records / name).stat().st_mtime_ns == stamp for name, stamp in before.items())
    assert resumed == run(source, tmp_path / "whole")
    assert contents(out) == contents(tmp_path / "whole")
    assert set(dropped(resumed)) == {"p0/bad.mp4"}
    with pytest.raises(UserError, match="begun with other options \\(size 64 -> 96\\)"):
        run(source, out, settings={"size": 96})


def test_bad_arguments_are_one_line(tmp_path):
    save_talk(tmp_path / "in/ann/a.mp4", pictures(30))
    with pytest.raises(UserError, match="unknown source 'films'; use one of folder, cmlr, lrs2, lrw, voxceleb-video"):
        run(tmp_path / "in", tmp_path / "out", kind="films")
    with pytest.raises(UserError, match="lie in one another"):
        run(tmp_path / "in", tmp_path / "in/out")
    with pytest.raises(UserError, match="make no corpus"):
        TalkingSettings(shortest=5, longest=2)
    with pytest.raises(UserError, match="are missing"):
        run(tmp_path / "in", tmp_path / "out", sync=str(tmp_path / "absent.model"))
    (tmp_path / "photos").mkdir()
    with pytest.raises(UserError, match="holds no videos"):
        run(tmp_path / "photos", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.media
def test_real_clips_become_a_corpus(media, tmp_path):
    report = prepare_talking("folder", media / "real/clips", tmp_path / "out", workers=0)
    corpus = Corpus.open(tmp_path / "out")
    assert report.dropped == []
    assert len(corpus.identities()) == 5
    rows = corpus.items(kind="clip")
    assert (rows["missing"] == 0).all()
    assert rows["frames"].sum() == pytest.approx(250 + 166 + 125 + 75 + 75, abs=5)
    for row in rows.to_dict("records"):
        points = Clip(corpus.file(row["path"])).landmarks
        assert np.isfinite(points).all()
        middle = points[:, 27:].mean(axis=(0, 1)) / 224
        assert 0.35 < middle[0] < 0.65
        assert 0.4 < middle[1] < 0.75
    assert json.loads((tmp_path / "out/report.json").read_text())["counts"] == report.counts


def test_toy_speech_is_what_the_tests_say():
    assert sum(end - start for start, end in loud(voice(2.0), RATE)) == pytest.approx(0.8 * 2 * RATE, rel=0.05)
