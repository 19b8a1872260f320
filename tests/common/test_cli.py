"""Endings of a command line: one line and a code for what the user can mend, a traceback for what is a defect."""

import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from common.cli import Checkpoint, ConfigFile, Out, Overrides, Resume, Seed, make_app, pick_device, run_cli
from common.errors import UserError

app = make_app("A toy.")


@app.command()
def train(config: ConfigFile, words: Overrides = None, resume: Resume = False) -> None:
    """Train a toy."""
    typer.echo(f"{config} {words} {resume}")


@app.command()
def make(checkpoint: Checkpoint, out: Out = Path("o.png"), seed: Seed = 0) -> None:
    """End in one of many ways."""
    match checkpoint.name:
        case "torn":
            raise UserError(f"{checkpoint} is torn;\n take another")
        case "defect":
            raise ZeroDivisionError("a defect")
        case "stop":
            raise KeyboardInterrupt
        case "three":
            raise typer.Exit(3)
    typer.echo(f"{out} {seed}")


def run(*words: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(words))
    return result.exit_code, result.stdout, result.stderr


def test_words_and_options_arrive() -> None:
    assert run("train", "a.yaml", "x=1", "y.z=[2]", "--resume") == (0, "a.yaml ['x=1', 'y.z=[2]'] True\n", "")
    assert run("train", "a.yaml") == (0, "a.yaml None False\n", "")
    assert run("make", "-c", "ok", "-o", "p.png", "--seed", "4") == (0, "p.png 4\n", "")


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        (("make", "-c", "torn"), 2, "error: torn is torn; take another\n"),
        (("make", "-c", "stop"), 130, "interrupted\n"),
        (("make", "-c", "three"), 3, ""),
        (("make", "-c", "ok", "--sede", "1"), 2, "error: No such option: --sede"),
        (("make", "-c", "ok", "--seed", "x"), 2, "error: Invalid value for '--seed'"),
        (("make",), 2, "error: Missing option '--checkpoint'"),
        (("mkae",), 2, "error: No such command 'mkae'."),
    ],
)
def test_endings(words: tuple[str, ...], code: int, line: str) -> None:
    got, out, err = run(*words)
    assert (got, out) == (code, "")
    assert err.strip().split("\n")[-1].startswith(line.strip())
    assert "Traceback" not in err


def test_a_defect_keeps_its_traceback() -> None:
    result = CliRunner().invoke(app, ["make", "-c", "defect"])
    assert isinstance(result.exception, ZeroDivisionError)


@pytest.mark.parametrize("words", [(), ("--help",)])
def test_help_names_the_commands(words: tuple[str, ...]) -> None:
    code, out, err = run(*words)
    assert (code, err) == (0, "")
    assert all(part in out for part in ("A toy.", "train", "Train a toy.", "make"))


def test_label_and_weights_wait_for_no_big_library() -> None:
    check = (
        "import sys, common.__main__, common.provenance, common.weights; "
        "print(sorted({'torch', 'matplotlib', 'pandas', 'scipy', 'lightning'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", check], capture_output=True, text=True).stdout == "[]\n"


def test_a_single_command_keeps_its_name() -> None:
    single = make_app("One.")
    single.command("only")(lambda: typer.echo("yes"))
    assert CliRunner().invoke(single, ["only"]).stdout == "yes\n"


def test_run_cli_exits_like_the_app(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as ending:
        run_cli(app, ["make", "-c", "torn"])
    assert ending.value.code == 2
    assert capsys.readouterr().err == "error: torn is torn; take another\n"


def test_a_process_ends_in_one_line() -> None:
    code = (
        "from common.cli import make_app, run_cli; from common.errors import UserError; app = make_app('x')\n"
        "@app.command()\ndef go(): raise UserError('no such file: a.wav')\nrun_cli(app)"
    )
    command = [sys.executable, "-c", code, "go"]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "error: no such file: a.wav\n")


def test_devices() -> None:
    assert pick_device("cpu") == "cpu"
    assert pick_device("auto") in {"cpu", "cuda", "mps"}
    for name in ("gpu", "cuda:99"):
        with pytest.raises(UserError, match=f"device '{name}' is not there"):
            pick_device(name)
