"""Typed configuration: dataclasses merged with YAML files and command-line words.

The only importer of omegaconf. Code elsewhere sees dataclass instances; checkpoints hold plain dictionaries.
"""

import dataclasses
import difflib
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException, ValidationError

from common.errors import UserError
from common.provenance import ProvenanceConfig

T = TypeVar("T")

_ONE_LINE = {"default_flow_style": True, "sort_keys": False, "allow_unicode": True, "width": math.inf}
"""Forms of `yaml.safe_dump`."""
_UNFIT = (OmegaConfBaseException, TypeError)
"""What a merge raises at a value that its field cannot take."""
_KINDS = {
    bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path", NoneType: "null",
    dict: "`key: value` lines",
}  # fmt: skip


@dataclass
class RunConfig:
    """Who a run is and where it writes."""

    package: str = ""
    """The package that trains (voice2face, lipsync, dubbing3d): run folder, W&B group, kind of checkpoint."""
    name: str = ""
    """Run name; empty means the stem of the YAML file."""
    seed: int = 0
    """Seed of the initial weights, of the order of the data, of every crop and every noise."""
    out: Path = Path("runs")
    """Parent of the run folders: a run writes only below `out/package/name`."""

    def __post_init__(self) -> None:
        for key, value in (("run.package", self.package), ("run.name", self.name)):
            if value in {".", ".."} or "/" in value or "\\" in value:
                raise ValueError(f"{key} is one folder name, not a path: {value!r}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"run.seed must be in [0, 2**32): {self.seed}")

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.out / self.package / self.name


@dataclass
class TrainerConfig:
    """How long and on what a run trains; what is not named here goes to Lightning through `kwargs`."""

    steps: int = 1000
    """Training steps; for a GAN one step is one generator update."""
    accelerator: str = "auto"
    """Lightning's accelerator: auto, cpu, gpu, mps ..."""
    devices: int | str = "auto"
    """Devices per node: a number, "auto", or a list such as "0,2"."""
    num_nodes: int = 1
    """Machines."""
    strategy: str = "auto"
    """Lightning's strategy: auto, ddp, fsdp ...; ddp allows unused parameters where a module has two optimisers."""
    precision: str = "32-true"
    """Lightning's precision: 32-true, bf16-mixed, 16-mixed ..."""
    threads: int = 0
    """CPU threads of one process; 0 leaves PyTorch's choice."""
    log_every: int = 50
    """Steps between two rows of the log; each row is the mean since the last one."""
    val_every: int = 1000
    """Steps between two validations and sample grids; 0 for none."""
    save_every: int = 500
    """Steps between two saves of last.ckpt (the one before stays as previous.ckpt)."""
    keep_every: int = 0
    """Steps between two numbered checkpoints that stay for good; a multiple of `save_every`; 0 for none."""
    progress: bool = True
    """Show the progress on standard error: a bar on a terminal, else a line every half a minute."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    """Further arguments of lightning.Trainer, unchanged (deterministic, sync_batchnorm, limit_val_batches ...)."""

    def __post_init__(self) -> None:
        for name in ("steps", "num_nodes", "log_every", "save_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"trainer.{name} must be at least 1: {getattr(self, name)}")
        for name in ("threads", "val_every", "keep_every"):
            if getattr(self, name) < 0:
                raise ValueError(f"trainer.{name} must not be negative: {getattr(self, name)}")
        if self.keep_every % self.save_every:
            raise ValueError(
                f"trainer.keep_every={self.keep_every} must be a multiple of trainer.save_every={self.save_every}"
            )


@dataclass
class WandbConfig:
    """Weights & Biases; the CSV log is written in any case."""

    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    """auto = online where a key is stored (WANDB_API_KEY or netrc), else offline; never asks."""
    project: str = "speechface"
    """W&B project."""
    entity: str | None = None
    """W&B team or user; none = the account's default."""
    tags: list[str] = field(default_factory=list)
    """Tags of the run."""


@dataclass
class ExperimentConfig:
    """What every package's configuration starts from: subclass it and add sections."""

    run: RunConfig = field(default_factory=RunConfig)
    """Name, seed, folder."""
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    """Length, devices, intervals."""
    wandb: WandbConfig = field(default_factory=WandbConfig)
    """Dashboard."""
    provenance: ProvenanceConfig = field(default_factory=ProvenanceConfig)
    """Label of everything that is generated."""


def read(path: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Read a YAML file and the files that its `base:` key names, the deepest base first.

    `base` is a path relative to the file that names it. Raises UserError for a missing or malformed file and for
    a circle of bases.
    """
    layers: list[tuple[Path, dict[str, Any]]] = []
    seen: list[Path] = []
    current: Path | None = path
    while current is not None:
        if current.resolve() in seen:
            chain = " -> ".join(str(p) for p, _ in layers)
            raise UserError(f"{path}: base: goes in a circle: {chain} -> {current}")
        seen.append(current.resolve())
        values = _read_yaml(current)
        layers.append((current, values))
        base = values.pop("base", None)
        if base is not None and not isinstance(base, str):
            raise UserError(f"{current}: base: must be the path of one YAML file, not {base!r}")
        current = None if base is None else current.parent / base
    return layers[::-1]


def load(schema: type[T], path: Path | None, overrides: Sequence[str] = ()) -> T:
    """Merge dataclass defaults, the bases of `path`, `path` and `key=value` words into an instance of `schema`.

    Nested keys are dotted in the words (`trainer.steps=10`), values are YAML. For an `ExperimentConfig` the run's
    name is the file's stem unless given. Raises UserError naming the source, the key and the nearest valid key.
    """
    layers: list[tuple[str, dict[str, Any]]] = []
    if path is not None:
        if issubclass(schema, ExperimentConfig):
            layers.append((str(path), {"run": {"name": path.stem}}))
        layers += [(str(file), values) for file, values in read(path)]
    layers += [("command line", _read_word(word)) for word in overrides]
    return _build(schema, layers)


def to_dict(cfg: Any) -> dict[str, Any]:
    """A dataclass instance as plain JSON types: Path becomes str, tuple becomes list, Enum becomes its name."""
    return cast(dict[str, Any], _plain(cfg))


def from_dict(
    schema: type[T], values: Mapping[str, Any], source: str = "checkpoint", overrides: Sequence[str] = ()
) -> T:
    """The inverse of `to_dict`, with `key=value` words on top; `source` names the origin in error messages."""
    return _build(schema, [(source, dict(values)), *(("command line", _read_word(word)) for word in overrides)])


def to_yaml(cfg: Any) -> str:
    """The resolved configuration as YAML that `load` reads back."""
    return OmegaConf.to_yaml(OmegaConf.create(to_dict(cfg)))


def to_lines(cfg: Any) -> str:
    """The same YAML with a line for each section, for people who read it on a terminal."""
    sections = (yaml.safe_dump({key: value}, **_ONE_LINE) for key, value in to_dict(cfg).items())
    return "".join(f"{section.strip()[1:-1]}\n" for section in sections)


def config_hash(cfg: Any) -> str:
    """Twelve hexadecimal digits of the SHA-256 of the resolved configuration."""
    text = json.dumps(to_dict(cfg), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a configuration holds plain values, not {type(value).__name__}")


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        config = OmegaConf.load(path)
    except FileNotFoundError as error:
        raise UserError(f"no such configuration file: {path}{_alternative(path)}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {error}") from error
    except OmegaConfBaseException as error:
        raise UserError(f"{path}: {_first_line(error)}") from error
    if not isinstance(config, DictConfig):
        raise UserError(f"{path}: must hold `key: value` lines, not a list")
    return cast(dict[str, Any], OmegaConf.to_container(config, resolve=False))


def _alternative(path: Path) -> str:
    """The nearest name of a file beside the one that is missing."""
    near = difflib.get_close_matches(path.name, [other.name for other in path.parent.glob("*.yaml")], n=1, cutoff=0.5)
    return f"; did you mean {path.with_name(near[0])}?" if near else ""


def _read_word(word: str) -> dict[str, Any]:
    key, equals, _ = word.partition("=")
    if not equals or not all(key.split(".")):
        raise UserError(f"command line: {word!r} is not of the form key=value")
    try:
        return cast(dict[str, Any], OmegaConf.to_container(OmegaConf.from_dotlist([word]), resolve=False))
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"command line: the value of {word!r} is not valid YAML") from error


def _build(schema: type[T], layers: Sequence[tuple[str, dict[str, Any]]]) -> T:
    config = OmegaConf.structured(schema)
    for source, values in layers:
        leaves = list(_leaves(schema, schema, values, "", source))
        try:
            config = OmegaConf.merge(config, values)
        except _UNFIT as error:
            raise _blame(schema, leaves, source, error) from error
    source = layers[-1][0] if layers else schema.__name__
    files = [name for name, _ in layers if name != "command line"]
    try:
        return cast(T, OmegaConf.to_object(config))
    except MissingMandatoryValue as error:
        raise UserError(f"{files[-1] if files else source}: {error.full_key} has no value and needs one") from error
    except OmegaConfBaseException as error:
        raise UserError(f"{source}: {error.full_key}: {_first_line(error)}") from error
    except (ValueError, TypeError, UserError) as error:  # raised by a __post_init__
        raise UserError(f"{files[-1] if files else source}: {error}") from error


def _sections(schema: type) -> dict[str, type]:
    """The fields of a dataclass that are dataclasses themselves."""
    hints = get_type_hints(schema)
    names = (f.name for f in dataclasses.fields(schema))
    return {name: hints[name] for name in names if dataclasses.is_dataclass(hints[name])}


def _leaves(root: type, schema: type, values: Mapping[str, Any], prefix: str, source: str) -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) of every field that is set; an unknown key or a scalar section raises UserError."""
    known = [f.name for f in dataclasses.fields(schema)]
    sections = _sections(schema)
    for key, value in values.items():
        full = f"{prefix}{key}"
        if key not in known:
            raise UserError(f"{source}: unknown key {full!r}; {_nearest(root, prefix, str(key), known)}")
        if key not in sections:
            yield full, value
        elif isinstance(value, Mapping):
            yield from _leaves(root, sections[key], value, f"{full}.", source)
        else:
            raise UserError(f"{source}: {full!r} is a section with keys of its own, not the value {value!r}")


def _nearest(root: type, prefix: str, key: str, known: Sequence[str]) -> str:
    if near := difflib.get_close_matches(key, known, n=1):
        return f"did you mean {prefix + near[0]!r}?"
    everywhere = {name.rpartition(".")[2]: name for name in reversed(list(_names(root, "")))}
    if near := difflib.get_close_matches(key, list(everywhere), n=1):
        return f"did you mean {everywhere[near[0]]!r}?"
    return f"known here: {', '.join(known)}"


def _names(schema: type, prefix: str) -> Iterator[str]:
    sections = _sections(schema)
    for f in dataclasses.fields(schema):
        yield prefix + f.name
        if f.name in sections:
            yield from _names(sections[f.name], f"{prefix}{f.name}.")


def _blame(schema: type, leaves: Sequence[tuple[str, Any]], source: str, error: Exception) -> UserError:
    """Say over which key a failed merge stumbled, what it was given and what it wants."""
    for key, value in leaves:
        nested = value
        for part in reversed(key.split(".")):
            nested = {part: nested}
        try:
            OmegaConf.merge(OmegaConf.structured(schema), nested)
        except (ValidationError, TypeError):
            given = "null" if value is None else repr(value)
            return UserError(f"{source}: {key} wants {_wanted(_hint(schema, key))}, not {given}")
        except OmegaConfBaseException as single:
            return UserError(f"{source}: {key}: {_first_line(single)}")
    return UserError(f"{source}: {_first_line(error)}")


def _hint(schema: type, key: str) -> Any:
    """The type of the field that a dotted key names."""
    *sections, name = key.split(".")
    for section in sections:
        schema = _sections(schema)[section]
    return get_type_hints(schema)[name]


def _wanted(hint: Any) -> str:
    """A type in the words of a person who writes YAML."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Literal:
        return f"one of {', '.join(map(str, parts))}"
    if origin in (Union, UnionType):
        return " or ".join(map(_wanted, parts))
    if origin is tuple:
        return f"a list of {len(parts)} items, each {_wanted(parts[0])}"
    if origin is list:
        return f"a list, each item {_wanted(parts[0])}"
    return _KINDS.get(origin or hint, str(hint))


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0]
