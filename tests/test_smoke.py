"""Train, kill, resume, evaluate, generate and read the label, through the commands that users type."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.audio.io import write_wav
from common.data.corpus import Corpus
from common.synthetic.speech import speak, voice_from_vector

ROOT = Path(__file__).parent.parent


def run(*words: str | Path, folder: Path, code: int = 0) -> str:
    """Run `python -m ...` in `folder`; return what it printed."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "WANDB_SILENT": "true"}
    result = subprocess.run(
        [sys.executable, "-m", *map(str, words)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == code, result.stdout + result.stderr
    assert code == 0 or "Traceback" not in result.stderr
    return result.stdout + result.stderr


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, identity_corpus: Corpus) -> Path:
    """A run folder of experiments/voice2face/smoke.yaml, trained in two sittings."""
    folder = tmp_path_factory.mktemp("smoke")
    experiment = ROOT / "experiments" / "voice2face" / "smoke.yaml"
    words = ("voice2face", "train", experiment, f"data.root={identity_corpus.root}")
    run(*words, "trainer.steps=1", folder=folder)
    run(*words, "--resume", folder=folder)
    return folder / "runs" / "voice2face" / "smoke"


def test_a_run_folder_explains_itself(trained: Path) -> None:
    for name in ("config.yaml", "git.txt", "metrics.csv", "last.ckpt", "previous.ckpt"):
        assert (trained / name).is_file()
    with open(trained / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    steps = [int(row["step"]) for row in rows if row["train/g_loss"]]
    assert steps == [1, 2]
    assert all(
        float(row[key]) == float(row[key]) for row in rows for key in row if key.startswith("train/") and row[key]
    )
    assert any((trained / "samples").glob("*.png"))


def test_evaluate_writes_metrics_and_a_labelled_sheet(trained: Path) -> None:
    printed = run("voice2face", "evaluate", "--checkpoint", trained / "last.ckpt", folder=trained.parents[2])
    assert "chance 0.333" in printed
    first = (trained / "metrics.json").read_bytes()
    metrics = json.loads(first)
    assert metrics["identity"]["retrieval"]["gallery_size"] == 3
    assert metrics["recordings"] == 3
    with Image.open(trained / "sheet.png") as sheet:
        assert np.array(sheet).std() > 10
    assert "generated" in run("common", "label", trained / "sheet.png", folder=trained)
    run("voice2face", "evaluate", "--checkpoint", trained / "last.ckpt", folder=trained.parents[2])
    assert (trained / "metrics.json").read_bytes() == first


def test_generate_draws_a_labelled_portrait_of_any_voice(trained: Path, tmp_path: Path) -> None:
    wave = speak("How are you today?", "en", voice_from_vector(np.ones(8)), seed=1).wave
    write_wav(tmp_path / "my voice.wav", wave, 16000)
    out = tmp_path / "portrait.png"
    words = ("voice2face", "generate", "--checkpoint", trained / "last.ckpt", "--audio", tmp_path / "my voice.wav")
    printed = run(*words, "--out", out, "--samples", "3", "--refine-steps", "2", folder=tmp_path)
    assert " s (" in printed
    with Image.open(out) as image:
        assert image.size == (96, 32)
        first = np.array(image)
    run(*words, "--out", out, "--samples", "3", "--refine-steps", "2", folder=tmp_path)
    with Image.open(out) as image:
        assert (np.array(image) == first).all()
    assert "AIGC" in run("common", "label", out, folder=tmp_path)


def test_generate_refuses_in_one_line(trained: Path, tmp_path: Path) -> None:
    write_wav(tmp_path / "silent.wav", speak("a", "en", voice_from_vector(np.zeros(8))).wave * 0, 16000)
    (tmp_path / "text.wav").write_text("no audio here")
    (tmp_path / "torn.ckpt").write_bytes((trained / "last.ckpt").read_bytes()[:5000])
    good, out = trained / "last.ckpt", tmp_path / "x.png"
    for checkpoint, audio in (
        (good, tmp_path / "silent.wav"),
        (good, tmp_path / "text.wav"),
        (good, tmp_path / "none.wav"),
        (tmp_path / "torn.ckpt", tmp_path / "silent.wav"),
    ):
        printed = run(
            "voice2face",
            "generate",
            "--checkpoint",
            checkpoint,
            "--audio",
            audio,
            "--out",
            out,
            folder=tmp_path,
            code=2,
        )
        assert printed.startswith("error: ")
        assert len(printed.strip().splitlines()) == 1
        assert not out.exists()


def test_lipsync_trains_both_stages_in_two_sittings(talking_corpus: Corpus, tmp_path: Path) -> None:
    experiment = ROOT / "experiments" / "lipsync" / "smoke.yaml"
    words = ("lipsync", "train", experiment, f"data.root={talking_corpus.root}")
    run(*words, "trainer.steps=1", folder=tmp_path)
    run(*words, "--resume", folder=tmp_path)
    runs = tmp_path / "runs" / "lipsync"
    for name, key in (("smoke-expert", "train/loss"), ("smoke", "train/g_loss")):
        for file in ("config.yaml", "git.txt", "metrics.csv", "last.ckpt", "previous.ckpt"):
            assert (runs / name / file).is_file()
        with open(runs / name / "metrics.csv") as file:
            rows = [row for row in csv.DictReader(file) if row[key]]
        assert [int(row["step"]) for row in rows] == [1, 2]
        assert all(np.isfinite(float(row[key])) for row in rows)
    (sample,) = (runs / "smoke" / "samples").glob("*.png")
    assert "AIGC" in run("common", "label", sample, folder=tmp_path)
    missing = run("lipsync", "train", experiment, "data.root=nowhere", folder=tmp_path, code=2)
    assert missing.strip().splitlines()[-1].startswith("error: no corpus at nowhere")


def test_dubbing3d_trains_both_stages_in_two_sittings(talking_corpus: Corpus, tmp_path: Path) -> None:
    experiment = ROOT / "experiments" / "dubbing3d" / "smoke.yaml"
    words = ("dubbing3d", "train", experiment, f"data.root={talking_corpus.root}")
    run(*words, "trainer.steps=1", folder=tmp_path)
    run(*words, "--resume", folder=tmp_path)
    runs = tmp_path / "runs" / "dubbing3d"
    for name, key in (("smoke-expression", "train/loss"), ("smoke", "train/g_loss")):
        for file in ("config.yaml", "git.txt", "metrics.csv", "last.ckpt", "previous.ckpt"):
            assert (runs / name / file).is_file()
        with open(runs / name / "metrics.csv") as file:
            rows = [row for row in csv.DictReader(file) if row[key]]
        assert [int(row["step"]) for row in rows] == [1, 2]
        assert all(np.isfinite(float(row[key])) for row in rows)
    (sample,) = (runs / "smoke" / "samples").glob("*.png")
    assert "AIGC" in run("common", "label", sample, folder=tmp_path)
    wrong = run(*words[:3], "data.root=nowhere", folder=tmp_path, code=2)
    assert wrong.strip().splitlines()[-1].startswith("error: no corpus at nowhere")
    foreign = run(*words, "data.face_model=ict:nowhere", "run.name=other", folder=tmp_path, code=2)
    assert foreign.strip().splitlines()[-1].startswith("error: ")
