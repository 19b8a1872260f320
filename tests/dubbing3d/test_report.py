"""`evaluate` of both stages through the command: files, words, and the same bytes again."""

import csv
import json
from pathlib import Path
from shutil import copyfile

import pytest
import torch
from PIL import Image

from common.checkpoint_file import LAST, SCHEMA
from common.cli import run_cli
from common.config import load, to_dict
from common.data.corpus import Corpus
from common.errors import UserError
from common.provenance import read_label
from common.syncnet import SyncNet
from common.video.clip import VIDEO
from dubbing3d.__main__ import app
from dubbing3d.build import EXPRESSION_KIND, KIND, build_expression, build_renderer
from dubbing3d.clips import corpus_model
from dubbing3d.config import DubbingConfig
from dubbing3d.report import FRAMES, SHEET, STRIP, kind_of
from dubbing3d.speech import SpeechWindows

SMOKE = Path(__file__).parents[2] / "experiments" / "dubbing3d" / "smoke.yaml"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, talking_corpus: Corpus) -> Path:
    """Checkpoints of both stages as training leaves them, of untrained networks: `expression` and `renderer`."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("runs")
    words = [f"data.root={talking_corpus.root}", "evaluation.frames=12", "renderer.width=0.05"]
    cfg = load(DubbingConfig, SMOKE, words)
    _, mark = corpus_model(talking_corpus, cfg.data)
    speech, mean = SpeechWindows(), torch.zeros(len(mark.lengths))
    states = {f"network.{name}": value for name, value in build_expression(cfg, len(mark.lengths)).state_dict().items()}
    states |= {f"speech.{name}": value for name, value in speech.state_dict().items()} | {"mean_expression": mean}
    drawn = {f"renderer.{name}": value for name, value in build_renderer(cfg).state_dict().items()}
    for name, kind, state in (("expression", EXPRESSION_KIND, states), ("renderer", KIND, drawn)):
        (folder / name).mkdir()
        values = {"kind": kind, "schema": SCHEMA, "version": "0", "step": 2, "state_dict": state}
        torch.save(values | {"hyper_parameters": {"cfg": to_dict(cfg), "mark": mark.to_dict()}}, folder / name / LAST)
    return folder


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> SyncNet:
    torch.manual_seed(0)
    net = SyncNet(width=0.05, size=51).eval().requires_grad_(False)
    monkeypatch.setattr("dubbing3d.report.load_judge", lambda *_: net)
    return net


def evaluate(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    with pytest.raises(SystemExit) as ended:
        run_cli(app, ["evaluate", "--device", "cpu", *map(str, words)])
    assert ended.value.code == 0
    return capsys.readouterr().out


def test_stage_1_is_told_by_aed_landmarks_and_sync(
    runs: Path, judge: SyncNet, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = runs / "expression"
    text = evaluate(capsys, "--checkpoint", folder / LAST)
    metrics = json.loads((folder / "metrics.json").read_text())
    ours, mean = (metrics["methods"][name] for name in ("predicted", "mean"))
    assert {"aed", "aed_mouth", "aed_share", "lmd", "mouth_lmd", "lse_c"} <= ours.keys()
    assert ours["aed_share"]["value"] == pytest.approx(ours["aed"]["value"] / mean["aed"]["value"])
    assert metrics["frames"] == 12 * metrics["clips"]
    assert "one person only" in metrics["warnings"][-1]
    for words in ("from speech: AED ", "share of the mean expression's", "px at 224", "drawn on black", "warning: one"):
        assert words in text
    for name in (SHEET, STRIP):
        assert read_label(folder / name) is not None
    with Image.open(folder / STRIP) as strip:
        assert strip.size == (8 * 64, 2 * 64)


def test_stage_2_is_told_beside_copy_and_warp_and_again_alike(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = runs / "renderer"
    text = evaluate(capsys, "--checkpoint", folder / LAST)
    first = (folder / "metrics.json").read_bytes()
    metrics = json.loads(first)
    assert set(metrics["methods"]) == {"rendered", "warp", "copy"}
    assert {"psnr", "ssim", "hidden_psnr", "mouth_ssim", "lmd", "csim"} <= metrics["methods"]["warp"].keys()
    assert metrics["measured_by"]["identity"].startswith("dlib_resnet_v1")
    for words in ("copy the reference: PSNR", "rendered minus warp, no training: PSNR", "Pearson", "px at 192"):
        assert words in text
    with open(folder / FRAMES, newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == metrics["frames"] == 12
    assert float(rows[3]["psnr"]) > 0
    assert (folder / "pose.png").stat().st_size > 1000
    evaluate(capsys, "--checkpoint", folder / LAST)
    assert (folder / "metrics.json").read_bytes() == first


def test_videos_of_another_method_are_scored_by_the_same_figures(
    tmp_path: Path,
    judge: SyncNet,
    talking_corpus: Corpus,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The clips' own videos are perfect."""
    monkeypatch.setattr("common.score_report.load_judge", lambda *_: judge)
    for row in talking_corpus.items(kind="clip", split="test").to_dict("records"):
        name = str(row["id"]).replace("/", "_")
        copyfile(talking_corpus.file(str(row["path"])) / VIDEO, tmp_path / f"{name}.mp4")
    text = evaluate(capsys, "--videos", tmp_path, "--truth", talking_corpus.root)
    found = json.loads((tmp_path / "scores.json").read_text())["methods"]["dub"]
    figures = {name: found[name]["value"] for name in ("psnr", "mouth_ssim", "lmd", "mouth_lmd", "csim")}
    assert figures == pytest.approx({"psnr": 100, "mouth_ssim": 1, "lmd": 0, "mouth_lmd": 0, "csim": 1})
    assert "dubbed: PSNR 100.000" in text
    assert "Sync (LSE-C) " in text


def test_other_files_are_refused(tmp_path: Path) -> None:
    torch.save({"kind": "voice2face", "schema": SCHEMA, "step": 1, "hyper_parameters": {}}, tmp_path / "a.ckpt")
    with pytest.raises(UserError, match="is a checkpoint of 'voice2face'"):
        kind_of(tmp_path / "a.ckpt")
    torch.save([1, 2], tmp_path / "b.ckpt")
    with pytest.raises(UserError, match="was not written by this software"):
        kind_of(tmp_path / "b.ckpt")
