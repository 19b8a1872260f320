"""The README's commands, options, configuration keys, make targets and files exist; nothing is run."""

import importlib
import re
import shlex
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import typer

from common.config import ExperimentConfig, load
from common.errors import UserError

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
PACKAGES = tuple(path.parent.name for path in sorted(ROOT.glob("*/__main__.py")) if path.parent.name != "benchmarks")
FENCE = re.compile(r"^```\w*\n(.*?)^```", re.MULTILINE | re.DOTALL)
CALL = re.compile(rf"-m ({'|'.join(PACKAGES)})\b *(.*)")
BLOCKS = [block.replace("\\\n", " ") for block in FENCE.findall(TEXT)]
LINES = [line.strip() for block in BLOCKS for line in block.splitlines()]
INLINE = re.findall(r"`([^`\n]+)`", FENCE.sub("", TEXT))
FILES_OF_RUNS = {"config.yaml"}


def words_of(line: str) -> list[str]:
    """The words of a command; the signs of a usage line (`[`, `]`, `|`, `...`) are dropped."""
    return shlex.split(re.sub(r"[\[\]|]|\.\.\.", " ", line), comments=True)


def find_command(package: str, words: list[str]) -> tuple[Any, list[str]]:
    """The command that the words name, and the words after its name."""
    command: Any = typer.main.get_command(importlib.import_module(f"{package}.__main__").app)
    while hasattr(command, "commands"):
        assert words, f"python -m {package}: which command?"
        assert words[0] in command.commands, f"python -m {package} has no command {words[0]!r}"
        command, words = command.commands[words[0]], words[1:]
    return command, words


def check_call(package: str, words: list[str]) -> None:
    """Parse a whole command as typed: its name, options, values; for a training also the keys over its experiment."""
    command, rest = find_command(package, words)
    try:
        values = command.make_context(command.name, rest).params
    except Exception as error:
        if not hasattr(error, "format_message"):  # the parser's own have it
            raise
        raise AssertionError(f"python -m {package} {' '.join(words)}: {error.format_message()}") from error
    experiment = values.get("experiment")
    if experiment is not None and not experiment.stem.isupper():
        check_experiment(package, ROOT / experiment, values["overrides"] or [])


def schemas(package: str) -> list[type[ExperimentConfig]]:
    """What an experiment of the package may be."""
    if not (ROOT / package / "config.py").is_file() or package == "common":
        return []
    module = importlib.import_module(f"{package}.config")
    kinds = [kind for kind in vars(module).values() if isinstance(kind, type) and issubclass(kind, ExperimentConfig)]
    return [kind for kind in kinds if kind.__module__ == module.__name__]


def check_experiment(package: str, path: Path, overrides: list[str]) -> None:
    """Load the experiment under its words, as one of the package's kinds."""
    errors = []
    for kind in schemas(package):
        try:
            load(kind, path, overrides)
            return
        except UserError as error:
            errors.append(error)
    raise errors[0]


def calls(lines: list[str]) -> list[tuple[str, list[str]]]:
    found = [match for line in lines if (match := CALL.search(line))]
    return [(match[1], words_of(match[2])) for match in found]


@pytest.mark.parametrize(("package", "words"), calls(LINES), ids=lambda value: str(value)[:60])
def test_every_command_line_is_one_that_the_program_takes(package: str, words: list[str]) -> None:
    check_call(package, words)


@pytest.mark.parametrize(("package", "words"), calls(INLINE), ids=lambda value: str(value)[:60])
def test_every_command_in_a_sentence_exists(package: str, words: list[str]) -> None:
    find_command(package, words)


def test_every_benchmark_exists() -> None:
    names = importlib.import_module("benchmarks.__main__").NAMES
    found = re.findall(r"python -m benchmarks ?([a-z0-9_ ]*)", TEXT)
    assert {name for words in found for name in words.split()} <= set(names)


def make_words() -> list[str]:
    said = [line for line in [*LINES, *INLINE] if line.startswith("make ")]
    return sorted({word for line in said for word in line.split("#")[0].split()[1:] if word != "&&"} - {"make"})


def test_every_make_target_and_variable_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^([a-zA-Z0-9_%-]+):", makefile, re.MULTILINE)
    patterns = [re.escape(target).replace("%", "(" + "|".join(PACKAGES) + ")") for target in targets]
    variables = re.findall(r"^(\w+) [?:]?=", makefile, re.MULTILINE)
    assert make_words()
    for word in make_words():
        name, equals, _ = word.partition("=")
        known = name in variables if equals else any(re.fullmatch(pattern, name) for pattern in patterns)
        assert known, f"the Makefile has no {word}"


def test_every_experiment_exists() -> None:
    names = set(re.findall(r"[\w./-]+\.yaml", TEXT)) - FILES_OF_RUNS
    known = {path.name for path in (ROOT / "experiments").rglob("*.yaml")}
    for name in names:
        stem = Path(name).stem
        assert stem.isupper() or ((ROOT / name).is_file() if "/" in name else name in known), name


def configuration_keys() -> list[str]:
    """Dotted names in sentences and commands whose first part is a section of a configuration."""
    sections = {f.name for package in PACKAGES for kind in schemas(package) for f in fields(kind)}
    text = " ".join([*INLINE, *LINES])
    dotted = re.findall(r"(?<![\w./-])([a-z_]+(?:\.[a-z_0-9]+)+)(?==)", text)
    return sorted({name for name in dotted if name.split(".")[0] in sections})


@pytest.mark.parametrize("key", configuration_keys())
def test_every_configuration_key_is_one_of_a_package(key: str) -> None:
    def holds(section: Any) -> bool:
        for name in key.split("."):
            if isinstance(section, dict):
                return True
            if not hasattr(section, name):
                return False
            section = getattr(section, name)
        return True

    assert any(holds(kind()) for package in PACKAGES for kind in schemas(package))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["portray"], "no command 'portray'"),
        (["generate", "--audoi", "x.wav"], "--audoi"),
        (["generate", "--samples", "2"], "Missing option"),
        (["generate", "--checkpoint", "c", "--out", "o", "--samples", "many"], "many"),
    ],
)
def test_a_command_that_does_not_exist_is_noticed(words: list[str], said: str) -> None:
    with pytest.raises(AssertionError, match=said):
        check_call("voice2face", words)
    with pytest.raises(UserError, match="no such configuration file"):
        check_call("voice2face", ["train", "experiments/voice2face/absent.yaml"])
    with pytest.raises(UserError, match=r"unknown key 'data\.rot'"):
        check_call("voice2face", ["train", "experiments/voice2face/smoke.yaml", "data.rot=x"])
