"""Typed configuration: what merges, and the one line in which each mistake dies."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from common.config import (
    ExperimentConfig,
    RunConfig,
    TrainerConfig,
    WandbConfig,
    config_hash,
    from_dict,
    load,
    read,
    to_dict,
    to_yaml,
)
from common.errors import UserError


@dataclass
class Layers:
    width: int = 8
    depths: tuple[int, int] = (1, 2)


@dataclass
class Model:
    name: Literal["small", "large"] = "small"
    learning_rate: float = 1e-3
    layers: Layers = field(default_factory=Layers)
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass
class Config(ExperimentConfig):
    run: RunConfig = field(default_factory=lambda: RunConfig(package="toy"))
    model: Model = field(default_factory=Model)
    root: Path | None = None
    scales: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.model.layers.width > self.trainer.steps:
            raise ValueError("model.layers.width must not exceed trainer.steps")


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def message(schema: type, path: Path | None, *words: str) -> str:
    with pytest.raises(UserError) as caught:
        load(schema, path, words)
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    ("word", "wanted"),
    [
        ("trainer.steps=abc", "a whole number, not 'abc'"),
        ("trainer.steps=", "a whole number, not null"),
        ("trainer.progress=perhaps", "true or false, not 'perhaps'"),
        ("model.learning_rate=[1]", "a number, not [1]"),
        ("model.name=medium", "one of small, large, not 'medium'"),
        ("model.layers.depths=[1,two]", "a list of 2 items, each a whole number, not [1, 'two']"),
        ("scales={a: 1}", "a list, each item a number, not {'a': 1}"),
        ("model.kwargs=5", "`key: value` lines, not 5"),
        ("root=[a]", "a path or null, not ['a']"),
        ("trainer.devices=[0]", "a whole number or text, not [0]"),
    ],
)
def test_a_wrong_type_is_told_in_words(word: str, wanted: str) -> None:
    assert message(Config, None, word) == f"command line: {word.partition('=')[0]} wants {wanted}"


def test_defaults_base_file_and_words_merge_in_that_order(tmp_path: Path) -> None:
    write(tmp_path, "bases/deep.yaml", "trainer: {steps: 20}\n")
    write(tmp_path, "bases/base.yaml", "base: deep.yaml\nmodel: {learning_rate: 5e-5, layers: {width: 4}}\nroot: a\n")
    path = write(tmp_path, "mine.yaml", "base: bases/base.yaml\nmodel: {name: large, kwargs: {a: {b: 1}}}\n")
    cfg = load(Config, path, ["model.layers.depths=[3,4]", "model.kwargs.a.c=2", "run.seed=7", "scales=[1, 2.5]"])
    assert cfg.trainer.steps == 20
    assert cfg.model == Model("large", 5e-5, Layers(4, (3, 4)), {"a": {"b": 1, "c": 2}})
    assert cfg.root == Path("a")
    assert cfg.scales == [1.0, 2.5]
    assert cfg.run == RunConfig("toy", "mine", 7, Path("runs"))
    assert cfg.run.folder == Path("runs/toy/mine")
    assert [p.name for p, _ in read(path)] == ["deep.yaml", "base.yaml", "mine.yaml"]


def test_without_a_file_the_defaults_hold_and_a_given_name_wins(tmp_path: Path) -> None:
    assert load(Config, None) == Config()
    assert load(Config, write(tmp_path, "empty.yaml", ""), ["run.name=other"]).run.name == "other"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("modell: {}", ["unknown key 'modell'", "did you mean 'model'?"]),
        ("model: {learning_rat: 1}", ["unknown key 'model.learning_rat'", "did you mean 'model.learning_rate'?"]),
        ("model: {layers: {widht: 1}}", ["'model.layers.widht'", "did you mean 'model.layers.width'?"]),
        ("model: {steps: 1}", ["unknown key 'model.steps'", "did you mean 'trainer.steps'?"]),
        ("zzz: 1", ["unknown key 'zzz'", "known here: run, trainer, wandb, provenance, model"]),
        ("3: 1", ["unknown key '3'"]),
        ("trainer: {steps: many}", ["trainer.steps", "'many'"]),
        ("trainer: {steps: 1.5}", ["trainer.steps", "1.5"]),
        ("trainer: {steps: null}", ["trainer.steps"]),
        ("model: {name: huge}", ["model.name", "'huge'", "small", "large"]),
        ("model: 3", ["'model' is a section", "3"]),
        ("model: {layers: [1]}", ["'model.layers' is a section"]),
        ("model: {layers: {depths: [1, 2, 3]}}", ["model.layers.depths"]),
        ("model: {layers: {depths: [x, 2]}}", ["model.layers.depths", "'x'"]),
        ("scales: [a]", ["scales wants a list, each item a number", "'a'"]),
        ("root: ${nowhere}", ["root", "nowhere"]),
        ("trainer: {steps: 0}", ["trainer.steps must be at least 1"]),
        ("trainer: {steps: 4}", ["model.layers.width must not exceed trainer.steps"]),
        ("trainer: {keep_every: 7}", ["trainer.keep_every=7 must be a multiple"]),
        ("run: {name: ../x}", ["run.name is one folder name"]),
        ("wandb: {mode: maybe}", ["wandb.mode", "offline"]),
        ("model: {name: small", ["not valid YAML"]),
        ("- a", ["key: value"]),
        ("base: [a, b]", ["base: must be the path"]),
        ("base: nowhere.yaml", ["no such configuration file", "nowhere.yaml"]),
    ],
)  # fmt: skip
def test_a_mistake_in_a_file_names_file_and_key(tmp_path: Path, text: str, parts: list[str]) -> None:
    path = write(tmp_path, "bad.yaml", text)
    text = message(Config, path)
    assert all(part in text for part in parts), text
    assert "bad.yaml" in text or "nowhere.yaml" in text, text


@pytest.mark.parametrize(
    ("word", "parts"),
    [
        ("trainer.stps=3", ["command line", "did you mean 'trainer.steps'?"]),
        ("trainer.steps=x", ["command line", "trainer.steps", "'x'"]),
        ("trainer.steps", ["command line", "'trainer.steps' is not of the form key=value"]),
        ("=3", ["not of the form key=value"]),
        ("a..b=3", ["not of the form key=value"]),
        ("scales=[1", ["command line", "not valid YAML"]),
    ],
)
def test_a_mistake_on_the_command_line_says_so(word: str, parts: list[str]) -> None:
    text = message(Config, None, word)
    assert all(part in text for part in parts), text


def test_the_mistake_of_a_base_is_blamed_on_the_base(tmp_path: Path) -> None:
    write(tmp_path, "base.yaml", "model: {widht: 1}")
    path = write(tmp_path, "mine.yaml", "base: base.yaml")
    assert "base.yaml" in message(Config, path)
    assert "mine.yaml" not in message(Config, path)


def test_bases_in_a_circle_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "a.yaml", "base: b.yaml")
    write(tmp_path, "b.yaml", "base: a.yaml")
    assert "circle" in message(Config, path)


def test_missing_and_binary_files(tmp_path: Path) -> None:
    assert message(Config, tmp_path / "none.yaml").endswith(f"no such configuration file: {tmp_path / 'none.yaml'}")
    write(tmp_path, "quickstart.yaml", "")
    assert message(Config, tmp_path / "quikstart.yaml").endswith(f"did you mean {tmp_path / 'quickstart.yaml'}?")
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00\x81")
    assert "binary.yaml" in message(Config, binary)
    assert str(tmp_path) in message(Config, tmp_path)


def test_a_field_without_value_is_named() -> None:
    @dataclass
    class Needy:
        path: str = "???"

    assert "path has no value" in message(Needy, None)


def test_plain_form_is_json_and_goes_back() -> None:
    cfg = load(Config, None, ["root=a/b", "model.kwargs={x: [1, null]}", "model.learning_rate=3e-7"])
    plain = to_dict(cfg)
    assert json.loads(json.dumps(plain)) == plain
    assert plain["root"] == "a/b"
    assert plain["model"]["layers"]["depths"] == [1, 2]
    assert from_dict(Config, plain) == cfg
    assert from_dict(Config, {}) == Config()
    with pytest.raises(UserError, match="checkpoint: unknown key 'rooot'; did you mean 'root'"):
        from_dict(Config, {"rooot": "x"})
    with pytest.raises(TypeError, match="plain values, not object"):
        to_dict(dataclasses.replace(cfg, model=Model(kwargs={"x": object()})))


def test_the_saved_yaml_loads_to_the_same_configuration(tmp_path: Path) -> None:
    cfg = load(Config, None, ["run.name=x", "model.layers.depths=[5,6]", "wandb.tags=[a]", "model.kwargs={n: '1'}"])
    assert load(Config, write(tmp_path, "config.yaml", to_yaml(cfg))) == cfg


def test_the_hash_follows_the_values_only() -> None:
    assert config_hash(Config()) == config_hash(load(Config, None))
    assert len(config_hash(Config())) == 12
    assert config_hash(Config()) != config_hash(load(Config, None, ["run.seed=1"]))


@pytest.mark.parametrize("schema", [RunConfig, TrainerConfig, WandbConfig, ExperimentConfig])
def test_every_field_has_a_docstring(schema: type) -> None:
    lines = Path(load.__code__.co_filename).read_text(encoding="utf-8").split("\n")
    for f in dataclasses.fields(schema):
        at = next(i for i, line in enumerate(lines) if line.startswith(f"    {f.name}: "))
        assert lines[at + 1].strip().startswith('"""'), f.name
