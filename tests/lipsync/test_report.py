"""The commands evaluate and survey on files: what they write, what they refuse, what tells evaluations apart."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from common.cli import run_cli
from common.data.corpus import Corpus
from common.errors import UserError
from common.files import sha256
from common.provenance import read_label
from common.syncnet import SyncNet
from lipsync.__main__ import app
from lipsync.networks import Wav2Lip
from lipsync.report import corpus_of
from tests.lipsync.toy_talk import toy_talk


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return toy_talk(tmp_path_factory.mktemp("talk") / "corpus", train=1, frames=18)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "generator.pth"
    torch.save({"state_dict": Wav2Lip(rows=80, size=32, width=0.0625).state_dict()}, path)
    return path


@pytest.fixture(autouse=True)
def judge(monkeypatch: pytest.MonkeyPatch) -> SyncNet:
    torch.manual_seed(0)
    net = SyncNet(width=0.05, size=51).eval().requires_grad_(False)
    monkeypatch.setattr("common.sync_scoring.own_weights", lambda *_: Path("own"))
    monkeypatch.setattr("common.sync_scoring.load_syncnet", lambda *_: net)
    return net


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    """Exit code, and what was printed."""
    with pytest.raises(SystemExit) as ended:
        run_cli(app, [str(word) for word in words])
    said = capsys.readouterr()
    return int(str(ended.value.code or 0)), said.out + said.err


def test_evaluate_writes_figures_pictures_and_videos_that_score_and_survey(
    corpus: Corpus, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], judge: SyncNet
) -> None:
    out, videos = tmp_path / "out", tmp_path / "videos"
    fixed = ("--corpus", corpus.root, "--split", "val", "--device", "cpu")
    code, text = run(capsys, "evaluate", "-c", checkpoint, *fixed, "--limit", 2, "--out", out, "--save", videos)
    assert code == 0, text
    assert "2 clips of 1 people" in text
    metrics = json.loads((out / "metrics.json").read_text())
    known = {"checkpoint_sha256": sha256(checkpoint), "extractor": judge.name, "split": "val", "limit": 2}
    assert known.items() <= metrics.items()
    for name in ("sheet.png", "frames.png"):
        assert read_label(out / name)["AIGC"]["Label"] == "1"
    with Image.open(out / "frames.png") as image:
        assert image.size == (512, 128)
    code, text = run(capsys, "evaluate", "--videos", videos, *fixed)
    assert code == 0, text
    assert "warning: 1 of 3 clips have no score" in text
    scores = json.loads((videos / "scores.json").read_text())
    before, after = (values["methods"]["dub"]["ssim"]["value"] for values in (metrics, scores))
    assert after == pytest.approx(before, abs=0.05)
    page = tmp_path / "page.html"
    code, text = run(capsys, "survey", "--method", f"a={videos}", "--method", f"b={videos}", "--out", page)
    assert code == 0, text
    assert "4 videos: 2 clips by 2 methods" in text
    assert (tmp_path / "page.key.json").is_file()


def test_what_cannot_be_evaluated_ends_in_one_line(
    corpus: Corpus, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, said in (
        (("evaluate",), "either --checkpoint FILE or --videos FOLDER"),
        (("evaluate", "-c", checkpoint), "does not say what it was trained on; give --corpus FOLDER"),
        (("evaluate", "-c", checkpoint, "--corpus", corpus.root, "--split", "best"), "unknown split 'best'"),
        (("evaluate", "--videos", tmp_path / "absent", "--corpus", corpus.root), "no folder of videos at"),
        (("survey",), "either --method NAME=FOLDER (repeatable) or --ratings FOLDER"),
        (("table", "--budget", "huge"), "unknown budget 'huge', one of tiny, full"),
        (("table", "--method", "x"), "--method wants NAME=FILE"),
    ):
        code, text = run(capsys, *words)
        assert code == 2
        assert said in text
        assert len(text.splitlines()) == 1


def test_a_corpus_is_the_one_that_is_given(corpus: Corpus, checkpoint: Path) -> None:
    assert corpus_of(checkpoint, str(corpus.root)).root == corpus.root
    with pytest.raises(UserError, match="no corpus at"):
        corpus_of(checkpoint, str(corpus.root / "absent"))
