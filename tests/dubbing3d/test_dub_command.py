"""The command `dub`: files of every kind in, one line out where they do not belong together, and what it leaves."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from common.config import to_dict
from common.errors import UserError
from common.face3d.morphable import load_face_model
from common.provenance import read_label
from common.video import probe_video
from dubbing3d.__main__ import app
from dubbing3d.build import EXPRESSION_KIND, KIND, build_expression, build_renderer
from dubbing3d.coefficients import FaceModelMark
from dubbing3d.config import DubbingConfig
from dubbing3d.dub import dub, load_performer
from dubbing3d.dubber import DubSettings, Performer
from dubbing3d.speech import SpeechWindows
from dubbing3d.warp_renderer import WarpRenderer
from lipsync.build import KIND as LIPSYNC_KIND
from lipsync.build import build_generator
from lipsync.config import LipSyncConfig
from tests.common.toy_faces import ToyEmbedder
from tests.dubbing3d.toy_film import Film, model, save_speech, stage_one
from tests.lipsync.toy_dub import all_of_it, save_exactly


@pytest.fixture(autouse=True)
def toy_backend(monkeypatch: pytest.MonkeyPatch) -> Film:
    film = Film([0.0, 0.2, 0.4, 0.2])
    monkeypatch.setattr("common.faces.track.load_embedder", lambda *_, **__: ToyEmbedder())
    monkeypatch.setattr("dubbing3d.dub.load_backend", lambda *_: film)
    return film


@pytest.fixture
def inputs(tmp_path: Path, toy_backend: Film) -> tuple[Path, Path]:
    return save_exactly(tmp_path / "v.mp4", list(toy_backend.frames)), save_speech(tmp_path / "a.wav", 0.2)


def small_config(*, semantic: bool = False) -> DubbingConfig:
    cfg = DubbingConfig()
    cfg.expression.width, cfg.expression.semantic, cfg.semantic.size = 0.03, semantic, 32
    cfg.renderer.width, cfg.renderer.size = 0.03, 64
    return cfg


def save_run(path: Path, kind: str, cfg: DubbingConfig, *, names: tuple[str, ...] | None = None) -> Path:
    """A checkpoint as a run leaves it, of a tiny network with fresh weights; `names` makes it another face model's."""
    mark = FaceModelMark.of(model(), "builtin")
    if names is not None:
        mark = FaceModelMark("other", names, tuple(1.0 for _ in names))
    torch.manual_seed(0)
    if kind == EXPRESSION_KIND:
        network, speech = build_expression(cfg, len(mark.lengths)), SpeechWindows()
        state = {f"network.{key}": value for key, value in network.state_dict().items()}
        state |= {f"speech.{key}": value for key, value in speech.state_dict().items()}
        state["mean_expression"] = torch.zeros(len(mark.lengths))
    else:
        state = {f"renderer.{key}": value for key, value in build_renderer(cfg).state_dict().items()}
    head = {"kind": kind, "schema": 1, "step": 7, "version": "0"}
    torch.save(head | {"hyper_parameters": {"cfg": to_dict(cfg), "mark": mark.to_dict()}, "state_dict": state}, path)
    return path


def save_teacher(path: Path) -> Path:
    """A lipsync checkpoint of a tiny generator."""
    cfg = LipSyncConfig()
    cfg.data.size, cfg.generator.width, cfg.feature.name = 32, 0.03, "mel"
    state = {f"generator_ema.{key}": value for key, value in build_generator(cfg).state_dict().items()}
    head = {"kind": LIPSYNC_KIND, "schema": 1, "step": 7, "version": "0"}
    torch.save(head | {"hyper_parameters": {"cfg": to_dict(cfg)}, "state_dict": state}, path)
    return path


def command(*words: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["dub", *map(str, words), "--device", "cpu", "--no-colours"])
    return result.exit_code, result.output


def test_both_stages_dub_and_are_named_in_the_label(tmp_path: Path, inputs: tuple[Path, Path]) -> None:
    first = save_run(tmp_path / "e.ckpt", EXPRESSION_KIND, small_config(semantic=True))
    second = save_run(tmp_path / "r.ckpt", KIND, small_config())
    teacher = save_teacher(tmp_path / "lips.ckpt")
    out, sheet = tmp_path / "new folder" / "o.mp4", tmp_path / "new folder" / "sheet.png"
    code, text = command(
        "--expression", first, "--renderer", second, "--semantic", teacher, "--video", inputs[0], "--audio", inputs[1],
        "--out", out, "--debug", sheet, "--face-model", "builtin", "--smooth",
    )  # fmt: skip
    assert code == 0, text
    assert "5 frames" in text
    assert "fit" in text
    assert read_label(sheet)["AIGC"]["Label"] == "1"
    assert probe_video(out).frames == 5
    assert len(read_label(out)["speechface"]["checkpoint_sha256"]) == 64


def test_the_renderer_without_training_needs_the_first_stage_only(tmp_path: Path, inputs: tuple[Path, Path]) -> None:
    first = save_run(tmp_path / "e.ckpt", EXPRESSION_KIND, small_config())
    out = tmp_path / "o.mp4"
    words = ["--expression", first, "--renderer", "warp", "--video", inputs[0], "--audio", inputs[1], "--out", out]
    code, text = command(*words)
    assert code == 0, text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.wav", "e.ckpt", "o.mp4", "v.mp4"]


def refused(words: str, tmp_path: Path, inputs: tuple[Path, Path], *options: str | Path) -> None:
    before = sorted(tmp_path.iterdir())
    code, text = command("--video", inputs[0], "--audio", inputs[1], "--out", tmp_path / "o.mp4", *options)
    assert code == 2
    assert words in " ".join(text.split())
    assert len(text.strip().splitlines()) == 1
    assert sorted(tmp_path.iterdir()) == before


def test_files_that_do_not_belong_together_are_refused_in_one_line(tmp_path: Path, inputs: tuple[Path, Path]) -> None:
    first = save_run(tmp_path / "e.ckpt", EXPRESSION_KIND, small_config())
    looking = save_run(tmp_path / "looking.ckpt", EXPRESSION_KIND, small_config(semantic=True))
    foreign = save_run(tmp_path / "foreign.ckpt", EXPRESSION_KIND, small_config(), names=("a", "b"))
    second = save_run(tmp_path / "r.ckpt", KIND, small_config())
    other = save_run(tmp_path / "r2.ckpt", KIND, small_config(), names=("a", "b"))
    teacher = save_teacher(tmp_path / "lips.ckpt")
    refused("e.ckpt", tmp_path, inputs, "--expression", first, "--renderer", first)
    refused("r.ckpt", tmp_path, inputs, "--expression", second)
    refused("was made with the face model other", tmp_path, inputs, "--expression", foreign, "--face-model", "builtin")
    refused("was made with the face model other", tmp_path, inputs, "--expression", first, "--renderer", other)
    refused("unknown face model", tmp_path, inputs, "--expression", first, "--face-model", "basel")
    refused("--semantic", tmp_path, inputs, "--expression", looking)
    refused("leave --semantic out", tmp_path, inputs, "--expression", first, "--semantic", teacher)
    refused("first.ckpt", tmp_path, inputs, "--expression", tmp_path / "first.ckpt")


def test_words_and_places_are_looked_at_before_a_network_is_read(
    tmp_path: Path, inputs: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dubbing3d.dub.load_performer", lambda *_, **__: pytest.fail("a network was read"))
    (tmp_path / "e.ckpt").write_bytes(b"any")
    first = ("--expression", tmp_path / "e.ckpt")
    refused("wrap: no such file; give a checkpoint, or the word warp", tmp_path, inputs, *first, "--renderer", "wrap")
    refused("does not end in .png", tmp_path, inputs, *first, "--debug", tmp_path / "sheet.jpg")
    refused("--semantic: no such file", tmp_path, inputs, *first, "--semantic", tmp_path / "x")
    refused("--expression: no such file", tmp_path, inputs, "--expression", tmp_path / "x")
    refused("--video: no such file", tmp_path, (tmp_path / "x", inputs[1]), *first)
    refused("is a folder", tmp_path, inputs, *first, "--renderer", tmp_path)


def test_a_semantic_checkpoint_of_another_kind_is_refused(tmp_path: Path, inputs: tuple[Path, Path]) -> None:
    looking = save_run(tmp_path / "looking.ckpt", EXPRESSION_KIND, small_config(semantic=True))
    refused("looking.ckpt", tmp_path, inputs, "--expression", looking, "--semantic", looking)


def test_what_cannot_be_dubbed_is_refused_in_one_line(tmp_path: Path, inputs: tuple[Path, Path]) -> None:
    performer = Performer(stage_one(), WarpRenderer(model()), model())
    film = Film([0.0] * 3, without=range(3))
    nobody = save_exactly(tmp_path / "nobody.mp4", list(film.frames))
    (tmp_path / "broken.mp4").write_bytes(bytes(500))
    for video, words in (
        (nobody, "no face was found in 3 frames"),
        (tmp_path / "broken.mp4", "cannot read"),
        (tmp_path / "absent.mp4", "no such file"),
        (inputs[1], "no video track"),
    ):
        with pytest.raises(UserError, match=words) as error:
            dub(performer, video, inputs[1], tmp_path / "o.mp4", backend=film, progress=False)
        assert "\n" not in str(error.value)
    assert not (tmp_path / "o.mp4").exists()
    with pytest.raises(UserError, match="dubbing needs"):
        DubSettings(feather=0.7)


def test_a_performers_parts_are_loaded_once_with_the_checkpoints_face_model(tmp_path: Path) -> None:
    first = save_run(tmp_path / "e.ckpt", EXPRESSION_KIND, small_config())
    performer = load_performer(first, "warp", semantic=None, face_model=None, device="cpu")
    assert performer.model is load_face_model("builtin")
    assert performer.renderer.name == "warp"


_KILLED = """
import sys
from pathlib import Path
from tests.dubbing3d.toy_film import Film, Painter, model, stage_one
from tests.common.toy_faces import ToyEmbedder
from dubbing3d.dub import dub
from dubbing3d.dubber import DubSettings, Performer
import common.faces.track, os, signal
common.faces.track.load_embedder = lambda *_, **__: ToyEmbedder()
class Fatal(Painter):
    def render(self, *arguments):
        os.kill(os.getpid(), signal.SIGKILL)
film, folder = Film([0.0, 0.2, 0.4, 0.2]), Path(sys.argv[1])
performer = Performer(stage_one(), Fatal(), model())
dub(performer, folder / "v.mp4", folder / "a.wav", folder / "o.mp4", DubSettings(colours=False), backend=film)
"""


def test_a_killed_dub_leaves_no_broken_output(tmp_path: Path, inputs: tuple[Path, Path]) -> None:
    done = subprocess.run([sys.executable, "-c", _KILLED, str(tmp_path)], env=os.environ | {"PYTHONPATH": "."})
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "o.mp4").exists()
    film = Film([0.0, 0.2, 0.4, 0.2])
    performer = Performer(stage_one(), WarpRenderer(model()), model())
    dub(
        performer, *inputs, tmp_path / "o.mp4", DubSettings(colours=False), backend=film, detect=all_of_it,
        progress=False,
    )  # fmt: skip
    assert (tmp_path / "o.mp4").is_file()
