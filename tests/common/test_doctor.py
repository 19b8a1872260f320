"""The data doctor: what it measures is there, what is wrong is named, raw data stay, copies are treated."""

import re
from collections.abc import Iterator
from functools import partial
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from common.audio.io import load_audio
from common.data.corpus import Corpus, Item, write_manifest
from common.data.engine import WORK
from common.data.talking_filter import RECIPES, parse_filter
from common.data.talking_measures import Measures
from common.doctor import examine
from common.doctor_findings import Examination, Finding
from common.doctor_page import page
from common.doctor_treat import treat
from common.errors import UserError
from common.provenance import Provenance, ProvenanceConfig
from common.video import Clip, write_clip
from tests.common.toy_media import RATE, landmarks_in, photo, save_video, voice
from tests.common.toy_talking import SILENT, FakeSync, FakeTalkingKit, full, pictures, save_talk

BOX = (16, 20, 80, 84)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Pictures this small gain nothing from threads, which wait for each other where cores are few."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make_corpus(root: Path, **waves: torch.Tensor) -> Corpus:
    """Clips of 50 frames, 96 px, one identity each; the name is that of the keyword."""
    image = photo((16, 20, 64), size=(96, 96))
    points = np.repeat(full(landmarks_in(BOX))[None], 50, axis=0)
    items = []
    for place, (name, wave) in enumerate(waves.items()):
        folder = root / "clips" / name
        folder.mkdir(parents=True)
        label = Provenance.create(ProvenanceConfig(), config_hash="0") if name == "generated" else None
        write_clip(folder, [image] * 50, wave, landmarks=points, provenance=label)
        split = ("train", "val", "test")[place % 3]
        items.append(Item(f"clips/{name}", name, split, "clip", f"clips/{name}", 50, 25.0, 2 * RATE, "zh"))
    extra = {item.id: {"text": "今天天气好", "start": 0.5} for item in items}
    write_manifest(root, items, extra=extra)
    return Corpus.open(root)


def run(target: Path, html: Path, **options: object) -> Examination:
    return examine(target, html, **{"workers": 0, "toolkit": FakeTalkingKit, "sync": "none", **options})


def contents(root: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file() and WORK not in p.parts
    }


class Cells(HTMLParser):
    """The table of clips as rows of text, the images' sources, and every tag."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.images: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        elif tag == "img":
            self.images.append(str(dict(attrs)["src"]))

    def handle_data(self, data: str) -> None:
        if self.rows and self.rows[-1] and self.tags[-1] != "script":
            self.rows[-1][-1] += data


def test_a_corpus_is_measured_and_left_alone(tmp_path):
    loud = voice(2.0)
    make_corpus(tmp_path / "corpus", good=loud, silent=loud * 0, generated=loud, clipped=(loud * 100).clamp(-1, 1))
    before = contents(tmp_path / "corpus")
    examination = run(tmp_path / "corpus", tmp_path / "doctor.html", bounds=parse_filter("plain", ["max_clipped=0.1"]))
    assert contents(tmp_path / "corpus") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus", "doctor.html", "doctor.parquet"]
    table = pd.read_parquet(tmp_path / "doctor.parquet").set_index("id")
    assert list(table.index) == ["clips/clipped", "clips/generated", "clips/good", "clips/silent"]
    good = table.loc["clips/good"]
    assert (good["seconds"], good["fps"], good["frames"], good["av_difference"]) == (2.0, 25.0, 50, 0.0)
    assert good["silence"] == pytest.approx(0.2, abs=0.05)
    assert (good["faces"], good["missing"], good["n_chars"]) == (1, 0, 5)
    reference = full(landmarks_in(BOX))
    width, height = reference.max(axis=0) - reference.min(axis=0)
    assert good["face_pixels"] == pytest.approx(np.sqrt(width * height), rel=1e-4)
    middle = (reference.max(axis=0) + reference.min(axis=0)) / 2 - 48
    assert good["centre_offset"] == pytest.approx(np.linalg.norm(middle) / 96, rel=1e-4)
    assert good["sharpness"] > 0.1
    assert table["sync_offset"].isna().all()
    assert table.loc["clips/silent", "loudness"] == -70
    assert table["synthetic"].to_dict() == {
        f"clips/{n}": n == "generated" for n in ("clipped", "generated", "good", "silent")
    }
    problems = table["problems"].to_dict()
    assert problems["clips/good"] == problems["clips/generated"] == ""
    assert "(max_silence)" in problems["clips/silent"]
    assert "(max_clipped)" in problems["clips/clipped"]
    assert "4 clips, 2 with problems" in examination.summary()
    assert "no SyncNet weights are here" in examination.summary()


def test_the_page_shows_it_without_network_or_foreign_words(tmp_path):
    make_corpus(tmp_path / "corpus", good=voice(2.0), silent=torch.zeros(2 * RATE))
    kit = partial(FakeTalkingKit, sync=FakeSync(-3, 6.5))
    run(tmp_path / "corpus", tmp_path / "a <b>.html", toolkit=kit)
    text = (tmp_path / "a <b>.html").read_text()
    cells = Cells(text)
    rows = {row[1].split()[0]: row for row in cells.rows if len(row) > 5 and row[1].startswith("clips/")}
    assert list(rows) == ["clips/silent", "clips/good"], "those with problems first"
    heads = next(row for row in cells.rows if row[0] == "picture")
    shown = dict(zip(heads, rows["clips/good"], strict=True))
    expected = {"clip": "clips/good\ngood train", "problems": "", "AV offset, frames": "-3", "confidence": "6.5"}
    expected |= {"seconds": "2.00", "fps": "25", "sound minus pictures, s": "+0.00", "faces": "1", "face missing": "0%"}
    assert {name: shown[name] for name in expected} == expected
    assert all(shown[name] for name in ("silence", "LUFS", "clipped", "face, px", "off centre", "sharpness"))
    assert len(cells.images) == 2
    assert all(source.startswith("data:image/jpeg;base64,") for source in cells.images)
    assert not re.search(r"(?:src|href)=.http", text)
    assert "default-src 'none'" in text
    hostile = Finding("<script>alert(1)</script>", "'x'", "", Measures(seconds=1.0), ("a < b & \"c\" 'd'",))
    shown = page(Examination(tmp_path / "<i>", "own:<b>", RECIPES["plain"], [hostile], ["<u>"]))
    assert Cells(shown).tags.count("script") == 1
    assert not {"i", "b", "u"} & set(Cells(shown).tags)


def test_long_pages_keep_what_is_wrong(tmp_path):
    well = [Finding(f"clip{number}", "ann", "train", Measures(seconds=1.0), ()) for number in range(510)]
    ill = Finding("last", "ann", "train", Measures(), ("cannot be read",))
    text = page(Examination(tmp_path, "", RECIPES["plain"], [*well, ill], []))
    assert "11 more clips stand in the table" in text
    assert "cannot be read" in text
    assert text.count("<td class='words'") == 500


def test_a_folder_of_raw_videos(tmp_path):
    black = [np.zeros((120, 160, 3), np.uint8)] * 25
    root = tmp_path / "in"
    save_talk(root / "good.mp4", pictures(50))
    save_talk(root / "gap.mp4", [*pictures(50), *black])
    save_talk(root / "pair.mp4", pictures(50, (10, 20, 60), (90, 20, 62)))
    save_video(root / "long_sound.mp4", pictures(50), voice(3.0))
    save_talk(root / "thirty.mp4", pictures(60), fps=30)
    save_talk(root / "mute.mp4", pictures(30), SILENT)
    save_talk(root / "nobody.mp4", black)
    (root / "text.mp4").write_text("hello")
    (root / "empty.mp4").touch()
    before = contents(root)
    kit = partial(FakeTalkingKit, sync=FakeSync(2))
    run(root, tmp_path / "out/doctor.html", toolkit=kit, bounds=RECIPES["clr"])
    assert contents(root) == before
    table = pd.read_parquet(tmp_path / "out/doctor.parquet").set_index("id")
    assert set(table.index) == set(before)
    problems = table["problems"].to_dict()
    assert problems["good.mp4"] == problems["thirty.mp4"] == ""
    assert "(max_missing)" in problems["gap.mp4"]
    assert "it shows 2 faces" in problems["pair.mp4"]
    assert "the sound is 1.0" in problems["long_sound.mp4"]
    assert "no audio" in problems["mute.mp4"]
    assert "no face" in problems["nobody.mp4"]
    assert problems["empty.mp4"] == "the file is empty"
    assert problems["text.mp4"]
    assert table.loc["gap.mp4", "missing"] == pytest.approx(25 / 75, abs=0.02)
    assert table.loc["good.mp4", "sync_offset"] == 2
    assert table.loc["good.mp4", "face_pixels"] == pytest.approx(64, abs=2)
    assert table.loc["thirty.mp4", "fps"] == 30
    assert len(Cells((tmp_path / "out/doctor.html").read_text()).images) == 5


def test_a_treated_copy(tmp_path):
    corpus = make_corpus(
        tmp_path / "corpus", good=voice(2.0), silent=torch.zeros(2 * RATE), generated=voice(2.0, 300.0)
    )
    (tmp_path / "corpus/clips/good/visemes.json").write_text("[]")
    before = contents(tmp_path / "corpus")
    kit = partial(FakeTalkingKit, sync=FakeSync(3, 4.0))
    examination = run(tmp_path / "corpus", tmp_path / "doctor.html", toolkit=kit)
    report = treat(examination, tmp_path / "new", workers=0)
    assert contents(tmp_path / "corpus") == before
    assert [drop.source for drop in report.dropped] == ["clips/silent"]
    treated = Corpus.open(tmp_path / "new")
    assert treated.split_by == corpus.split_by
    assert list(treated.items()["id"]) == ["clips/generated", "clips/good"]
    assert "(max_silence)" in treated.table.set_index("id").loc["clips/silent", "dropped"]
    row = treated.items().iloc[1]
    assert (row["sync_offset"], row["sync_confidence"], row["sync_shift"], row["text"]) == (0, 4, 3, "今天天气好")
    old, new = (load_audio(root / "clips/good/audio.wav") for root in (tmp_path / "corpus", tmp_path / "new"))
    assert torch.equal(new[3 * 640 :], old[: -3 * 640])
    assert (new[: 3 * 640] == 0).all()
    assert {path.name for path in (tmp_path / "new/clips/good").iterdir()} == {
        "video.mp4",
        "audio.wav",
        "landmarks.npy",
    }
    for name in ("video.mp4", "landmarks.npy"):
        assert before[f"clips/good/{name}"] == (tmp_path / f"new/clips/good/{name}").read_bytes()
    assert len(Clip(tmp_path / "new/clips/good")) == 50
    first = contents(tmp_path / "new")
    treat(examination, tmp_path / "new", workers=0)
    assert contents(tmp_path / "new") == first
    with pytest.raises(UserError, match="begun with other options"):
        treat(examination, tmp_path / "new", shift=False, workers=0)


def test_doubtful_offsets_move_nothing(tmp_path):
    make_corpus(tmp_path / "corpus", good=voice(2.0))
    kit = partial(FakeTalkingKit, sync=FakeSync(3, 2.0))
    examination = run(tmp_path / "corpus", tmp_path / "doctor.html", toolkit=kit)
    for name, shift in (("doubtful", True), ("asked", False)):
        treat(examination, tmp_path / name, shift=shift, workers=0)
        assert Corpus.open(tmp_path / name).items()["sync_offset"].tolist() == [3]
        wave = (tmp_path / name / "clips/good/audio.wav").read_bytes()
        assert wave == (tmp_path / "corpus/clips/good/audio.wav").read_bytes()


def test_an_interrupted_examination_goes_on_and_another_starts_anew(tmp_path):
    make_corpus(tmp_path / "corpus", a=voice(2.0), b=voice(2.0))

    def fail(*_: object) -> None:
        raise UserError("the disk is full")

    html = tmp_path / "doctor.html"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("common.doctor.write_table", fail)
        with pytest.raises(UserError, match="the disk is full"):
            run(tmp_path / "corpus", html)
    (record, _) = sorted((tmp_path / f".doctor.doctor/{WORK}/records").iterdir())
    record.write_text(record.read_text().replace('"loudness": -', '"loudness": -100'))  # shows whether it is read again
    run(tmp_path / "corpus", html)
    table = pd.read_parquet(tmp_path / "doctor.parquet")
    assert sorted(table["loudness"] < -100) == [False, True]
    assert not (tmp_path / ".doctor.doctor").exists()


def test_what_cannot_be_examined_is_one_line(tmp_path):
    with pytest.raises(UserError, match="no input folder"):
        run(tmp_path / "absent", tmp_path / "a.html")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no videos"):
        run(tmp_path / "empty", tmp_path / "a.html")
    write_manifest(tmp_path / "faces", [], split_by="identity")
    with pytest.raises(UserError, match="holds no clips"):
        run(tmp_path / "faces", tmp_path / "a.html")
    corpus = make_corpus(tmp_path / "corpus", good=voice(2.0), torn=voice(2.0))
    video = corpus.root / "clips/torn/video.mp4"
    video.write_bytes(video.read_bytes()[:500])
    examination = run(corpus.root, tmp_path / "a.html")
    assert [bool(finding.problems) for finding in examination.findings] == [False, True]
    (tmp_path / "raw").mkdir()
    save_talk(tmp_path / "raw/a.mp4", pictures(30))
    with pytest.raises(UserError, match="no corpus"):
        treat(run(tmp_path / "raw", tmp_path / "b.html"), tmp_path / "new")
    with pytest.raises(UserError, match="lie in one another"):
        treat(examination, corpus.root / "new")


@pytest.mark.media
def test_real_clips(media, tmp_path):
    examination = examine(media / "real/clips", tmp_path / "doctor.html", workers=0, sync="none")
    assert [finding.problems for finding in examination.findings] == [()] * 5
    for finding in examination.findings:
        assert finding.measures.missing == 0
        assert finding.measures.faces == 1
        assert finding.measures.face_pixels is not None
        assert 100 < finding.measures.face_pixels < 400
        assert abs(finding.measures.av_difference or 0) < 0.1
