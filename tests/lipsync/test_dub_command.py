"""The command `dub`: what it refuses in one line, what it leaves behind, and that nothing grows with the length."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from common.config import to_dict
from common.errors import UserError
from common.provenance import read_label
from common.video import read_frames
from lipsync.__main__ import app
from lipsync.build import KIND, build_generator
from lipsync.config import LipSyncConfig
from lipsync.dub import DubSettings, dub, dub_files
from lipsync.infer import LipSync
from tests.common.toy_videos import make_video
from tests.lipsync.toy_dub import TalkingFaces, Witness, all_of_it, coded, model_of, save_exactly, save_speech, talking


@pytest.fixture
def media_files(tmp_path: Path) -> tuple[Path, Path]:
    return save_exactly(tmp_path / "v.mp4", talking(6)), save_speech(tmp_path / "a.wav", 0.4)


def small_run(path: Path) -> LipSyncConfig:
    """A checkpoint as a run leaves it, of a tiny network."""
    cfg = LipSyncConfig()
    cfg.data.size, cfg.generator.width, cfg.feature.name = 32, 0.03, "mel"
    torch.manual_seed(0)
    state = {f"generator_ema.{key}": value for key, value in build_generator(cfg).state_dict().items()}
    stored = {"kind": KIND, "schema": 1, "step": 7, "version": "0"}
    torch.save(stored | {"hyper_parameters": {"cfg": to_dict(cfg)}, "state_dict": state}, path)
    return cfg


def command(*words: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["dub", *map(str, words)])
    return result.exit_code, result.output


@pytest.fixture
def toy_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lipsync.dub.load_backend", lambda *_: TalkingFaces())


def test_a_checkpoint_dubs_and_is_named_in_the_label(
    tmp_path: Path, media_files: tuple[Path, Path], toy_backend: None
) -> None:
    small_run(tmp_path / "last.ckpt")
    out = tmp_path / "new folder" / "o.mp4"
    words = ["--checkpoint", tmp_path / "last.ckpt", "--video", media_files[0], "--audio", media_files[1], "--out", out]
    code, text = command(*words, "--device", "cpu", "--visible-label")
    assert code == 0, text
    assert "10 frames" in text
    assert "generate" in text
    label = read_label(out)
    assert len(label["speechface"]["checkpoint_sha256"]) == 64
    corner = next(read_frames(out)).image[-8:, -60:]
    assert (corner.max(axis=2) < 60).any()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\3\4" + bytes(60)])
def test_what_is_no_checkpoint_is_named(content: bytes, tmp_path: Path, media_files: tuple[Path, Path]) -> None:
    (tmp_path / "c.ckpt").write_bytes(content)
    arguments = ["--video", media_files[0], "--audio", media_files[1], "--out", tmp_path / "o.mp4"]
    code, text = command("--checkpoint", tmp_path / "c.ckpt", *arguments, "--device", "cpu")
    assert code == 2
    assert "c.ckpt" in text
    assert len(text.strip().splitlines()) == 1
    assert not (tmp_path / "o.mp4").exists()


def test_files_are_looked_for_before_a_network_is_read(
    tmp_path: Path, media_files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lipsync.dub.LipSync.load", lambda *_, **__: pytest.fail("a network was read"))
    (tmp_path / "c.ckpt").write_bytes(b"any")
    given = {"checkpoint": tmp_path / "c.ckpt", "video": media_files[0], "audio": media_files[1]}
    for wrong in ({"video": tmp_path / "x"}, {"audio": tmp_path / "x"}, {"checkpoint": tmp_path / "x"}):
        words = given | {"out": tmp_path / "o.mp4"} | wrong
        code, text = command(*(f"--{name}={value}" for name, value in words.items()))
        assert code == 2
        assert text == f"error: --{next(iter(wrong))}: no such file: {tmp_path / 'x'}\n"
    places = {"o.mov": "does not end in .mp4", "v.mp4": "is an input as well", "c.ckpt/o.mp4": "is a file"}
    for out, reason in places.items():
        code, text = command(*(f"--{name}={value}" for name, value in (given | {"out": tmp_path / out}).items()))
        assert (code, len(text.splitlines())) == (2, 1)
        assert reason in text


def expect_refusal(words: str, video: Path, audio: Path, out: Path, **settings: str) -> None:
    before = sorted(out.parent.iterdir()) if out.parent.is_dir() else None
    with pytest.raises(UserError, match=words) as error:
        dub(
            model_of(Witness()),
            video,
            audio,
            out,
            DubSettings(**settings),  # type: ignore[arg-type]
            backend=TalkingFaces(),
            detect=all_of_it,
            progress=False,
        )
    assert "\n" not in str(error.value)
    assert before is None or sorted(out.parent.iterdir()) == before


def faceless(path: Path) -> Path:
    return save_exactly(path, [coded(t) for t in range(5)])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: path, "no such file"),
        (lambda path: (path.touch(), path)[1], "empty file"),
        (lambda path: (path.write_bytes(bytes(500)), path)[1], "cannot read"),
        (lambda path: (path.mkdir(), path)[1], "not a file"),
        (lambda path: save_speech(path.with_suffix(".wav"), 0.5), "no video track"),
        (faceless, "no face was found in 5 frames"),
    ],
)
def test_what_cannot_be_dubbed_is_refused_in_one_line(
    make: Callable[[Path], Path], words: str, tmp_path: Path, media_files: tuple[Path, Path]
) -> None:
    expect_refusal(words, make(tmp_path / "other.mp4"), media_files[1], tmp_path / "o.mp4")


def test_a_broken_still_image_is_refused(tmp_path: Path, media_files: tuple[Path, Path]) -> None:
    (tmp_path / "x.png").write_bytes(b"no image")
    expect_refusal("not an image", tmp_path / "x.png", media_files[1], tmp_path / "o.mp4")


def test_sound_and_output_are_looked_at_before_the_video_is_read(
    tmp_path: Path, media_files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("common.dubbing.stream.track_frames", lambda *_, **__: pytest.fail("the video was read"))
    video, audio = media_files
    expect_refusal("no audio track", video, make_video(tmp_path / "mute.mp4"), tmp_path / "o.mp4")
    expect_refusal("does not end in .mp4", video, audio, tmp_path / "o.avi")
    expect_refusal("is an input as well", video, audio, video)
    expect_refusal("is an input as well", video, audio, tmp_path / "." / "a.wav")
    (tmp_path / "file").touch()
    expect_refusal("cannot write", video, audio, tmp_path / "file" / "o.mp4")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_refused(tmp_path: Path, media_files: tuple[Path, Path]) -> None:
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    expect_refusal("cannot write", *media_files, folder / "o.mp4")


def test_a_face_that_is_not_there_is_refused_with_those_that_are(
    tmp_path: Path, media_files: tuple[Path, Path]
) -> None:
    expect_refusal("no face 3. Faces found: 0: 6 frames", *media_files, tmp_path / "o.mp4", face="index:3")
    expect_refusal("unknown choice", *media_files, tmp_path / "o.mp4", face="left")


@pytest.mark.parametrize("wrong", [{"feather": 0.7}, {"crf": 60}, {"batch": -1}])
def test_settings_out_of_range_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(UserError, match="dubbing needs"):
        DubSettings(**wrong)  # type: ignore[arg-type]


def test_networks_that_do_not_fit_are_refused() -> None:
    network = Witness()
    network.rows = 119
    with pytest.raises(ValueError, match="hears 119 feature rows"):
        model_of(network)
    with pytest.raises(ValueError, match="states its size"):
        model_of(torch.nn.Linear(1, 1))


class Fatal(Witness):
    """Ends the process at the second batch."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__()
        self.number = number

    def forward(self, audio: Tensor, faces: Tensor) -> Tensor:
        if self.windows:
            os.kill(os.getpid(), self.number)
        return super().forward(audio, faces)


def test_a_terminated_dub_leaves_nothing(
    tmp_path: Path, media_files: tuple[Path, Path], toy_backend: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "c.ckpt").touch()
    monkeypatch.setattr(LipSync, "load", lambda *_, **__: (model_of(Fatal(signal.SIGTERM)), None))
    handler, before = signal.getsignal(signal.SIGTERM), sorted(tmp_path.iterdir())
    with pytest.raises(SystemExit) as ending:
        dub_files(tmp_path / "c.ckpt", *media_files, tmp_path / "o.mp4", DubSettings(batch=3))
    assert ending.value.code == 143
    assert sorted(tmp_path.iterdir()) == before
    assert signal.getsignal(signal.SIGTERM) == handler


def in_process(folder: Path, script: str) -> subprocess.CompletedProcess[str]:
    """Run lines of Python that see the test's names, in a process of their own."""
    names = "from pathlib import Path\nfrom tests.lipsync.test_dub_command import *\nfolder = Path(sys.argv[1])\n"
    return subprocess.run(
        [sys.executable, "-c", names + script, str(folder)], capture_output=True, text=True, timeout=500
    )


def test_a_killed_dub_leaves_the_old_output(tmp_path: Path, media_files: tuple[Path, Path]) -> None:
    (tmp_path / "o.mp4").write_bytes(b"old")
    script = (
        "dub(model_of(Fatal(signal.SIGKILL)), folder / 'v.mp4', folder / 'a.wav', folder / 'o.mp4', "
        "DubSettings(batch=3), backend=TalkingFaces(), detect=all_of_it)"
    )
    ended = in_process(tmp_path, script)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert (tmp_path / "o.mp4").read_bytes() == b"old"


class Quick(TalkingFaces):
    """Knows where the face is."""

    def squares(self, image: np.ndarray) -> list[tuple[tuple[float, float, float, float], int]]:
        return [((70.0, 60.0, 130.0, 120.0), 3600)]


class Forgetful(Witness):
    """Keeps nothing."""

    def forward(self, audio: Tensor, faces: Tensor) -> Tensor:
        return faces[:, 3:]


def peak_of_dub(folder: Path, audio: str) -> int:
    """MB that the process has held at most after dubbing ten seconds of pictures, forth and back."""
    dub(model_of(Forgetful()), folder / "v.mp4", folder / audio, folder / "o.mp4", backend=Quick(), progress=False)
    # Not getrusage's figure, which begins with the peak of the process that started this one.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) >> 10


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="a process's peak is read from Linux's /proc")
def test_memory_does_not_grow_with_the_length(tmp_path: Path) -> None:
    save_exactly(tmp_path / "v.mp4", [coded(t, (0, 100, 90)) for t in range(250)])
    peaks = []
    for seconds in (15, 600):
        save_speech(tmp_path / f"{seconds}.wav", seconds)
        ended = in_process(tmp_path, f"print(peak_of_dub(folder, '{seconds}.wav'))")
        assert ended.returncode == 0, ended.stderr
        peaks.append(int(ended.stdout.split()[-1]))
    assert peaks[1] < peaks[0] + 40
