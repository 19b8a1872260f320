"""A run folder as data: configuration, curves, final metrics, sample grids; what is broken becomes a hole."""

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from common.config import read
from common.errors import UserError

CONFIG, CURVES, METRICS, COMMIT, HARDWARE = "config.yaml", "metrics.csv", "metrics.json", "git.txt", "hardware.txt"
UNKNOWN = "unknown"
FIRST_STAGES = ("-encoder", "-expert", "-expression")
"""How the packages name the run folder of a first stage, after that of the second."""


@dataclass(frozen=True)
class Curve:
    """One column of metrics.csv where it has a finite value."""

    steps: list[int]
    values: list[float]


@dataclass(frozen=True)
class RunRecord:
    """What a run folder says about its run; every field is empty where the folder has nothing readable."""

    folder: Path
    label: str
    """short and different from that of every other run read with it"""
    config: dict[str, Any] = field(default_factory=dict)
    """dotted key -> plain value"""
    commit: str = UNKNOWN
    hardware: str = UNKNOWN
    curves: dict[str, Curve] = field(default_factory=dict)
    """column of metrics.csv -> curve"""
    metrics: dict[str, Any] = field(default_factory=dict)
    """metrics.json as it stands"""
    sample: Path | None = None
    """the newest sample grid that is whole"""
    holes: list[str] = field(default_factory=list)
    """one sentence for each thing that is missing or broken"""

    @property
    def corpus(self) -> str:
        """The data that the run was trained on: its folder, the options of an embedded corpus, or `unknown`."""
        if root := self.config.get("data.root"):
            path = Path(str(root))
            return str(path.resolve()) if path.exists() else str(root)
        options = {k.removeprefix("data.embedded."): v for k, v in self.config.items() if k.startswith("data.embedded")}
        if options:
            return "embedded: " + ", ".join(f"{key} {value}" for key, value in options.items())
        return str(self.metrics.get("corpus", UNKNOWN))


def find_runs(paths: Sequence[Path]) -> tuple[list[Path], list[str]]:
    """Run folders among `paths`, each once; a folder that is no run stands for the runs below it.

    The run of a first stage (`FIRST_STAGES`) is left out where the run that it served is there: `runs/lipsync/*`
    should not put experts and generators side by side.

    Returns the folders and a sentence for each path that is left out. Raises UserError where a path is missing, or
    none of them holds a run.
    """
    found: dict[Path, Path] = {}
    empty = []
    for path in paths:
        if not path.exists():
            raise UserError(f"no such run: {path}; give run folders, such as runs/voice2face/quickstart")
        inside = [path] if _is_run(path) else sorted(p for p in path.rglob("*") if _is_run(p)) if path.is_dir() else []
        if not inside:
            empty.append(f"{path} holds no run ({CONFIG} and {CURVES} are missing)")
        for folder in inside:
            found.setdefault(folder.resolve(), folder)
    if not found:
        raise UserError(f"nothing to compare: {'; '.join(empty) or 'no run folder was given'}")
    served = [(folder, main) for folder in found if (main := _serves(folder)) and main in found]
    for folder, main in served:
        empty.append(f"{found.pop(folder)} is the first stage of {main.name}; name it without that run to see it")
    return list(found.values()), empty


def _serves(folder: Path) -> Path | None:
    """The run whose first stage `folder` is by its name."""
    suffix = next((suffix for suffix in FIRST_STAGES if folder.name.endswith(suffix)), None)
    return folder.with_name(folder.name.removesuffix(suffix)) if suffix else None


def read_runs(folders: Sequence[Path]) -> list[RunRecord]:
    """Read run folders under labels that tell them apart."""
    return [read_run(folder, label) for folder, label in zip(folders, _labels(folders), strict=True)]


def read_run(folder: Path, label: str = "") -> RunRecord:
    """Read one run folder; nothing in it can raise."""
    holes: list[str] = []
    curves, broken = read_curves(folder / CURVES)
    return RunRecord(
        folder,
        label or folder.name,
        _read_config(folder / CONFIG, holes),
        _read_line(folder / COMMIT),
        _read_line(folder / HARDWARE),
        curves,
        _read_metrics(folder / METRICS, holes),
        _newest_sample(folder / "samples", holes),
        holes + broken,
    )


def read_curves(path: Path) -> tuple[dict[str, Curve], list[str]]:
    """The columns of a metrics.csv, and a sentence for each kind of damage; damaged cells and rows are left out."""
    try:
        text = path.read_text(encoding="utf-8")
        rows = list(csv.reader(text.splitlines()))
    except FileNotFoundError:
        return {}, [f"{path.name} is missing: nothing was logged"]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        return {}, [f"{path.name} cannot be read: {error}"]
    if not rows or rows[0][:1] != ["step"]:
        return {}, [f"{path.name} does not begin with a column `step`: not a log of this software"]
    holes = []
    if len(rows) > 1 and not text.endswith("\n"):
        holes.append(f"{path.name}: the last line is torn and left out")
        rows.pop()
    columns = {name: Curve([], []) for name in rows[0][1:]}
    bad_rows, infinite = [], dict[str, list[int]]()
    for number, row in enumerate(rows[1:], start=2):
        values = _numbers(row, len(rows[0]))
        if values is None:
            bad_rows.append(number)
            continue
        step = int(values[0] or 0)
        for name, value in zip(columns, values[1:], strict=True):
            if value is None:
                continue
            if math.isfinite(value):
                columns[name].steps.append(step)
                columns[name].values.append(value)
            else:
                infinite.setdefault(name, []).append(step)
    if bad_rows:
        holes.append(f"{path.name}: {len(bad_rows)} damaged line(s) left out, the first is line {bad_rows[0]}")
    holes += [f"{name} is not finite in {len(s)} row(s), first at step {s[0]}" for name, s in infinite.items()]
    return {name: curve for name, curve in columns.items() if curve.steps}, holes


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one with dotted keys; empty mappings stay values."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _is_run(path: Path) -> bool:
    return (path / CONFIG).is_file() or (path / CURVES).is_file()


def _labels(folders: Sequence[Path]) -> list[str]:
    """As many trailing path components as tell the folders apart."""
    parts = [folder.resolve().parts for folder in folders]
    for depth in range(1, max(map(len, parts), default=0) + 1):
        labels = ["/".join(part[-depth:]) for part in parts]
        if len(set(labels)) == len(labels):
            return labels
    return [str(folder) for folder in folders]


def _numbers(row: Sequence[str], width: int) -> list[float | None] | None:
    """The cells of a row, None where empty; None for a row of another width, without step or with words."""
    if len(row) != width or not row[0].isdecimal() or len(row[0]) > 15:
        return None
    try:
        return [float(cell) if cell else None for cell in row]
    except ValueError:
        return None


def _read_config(path: Path, holes: list[str]) -> dict[str, Any]:
    try:
        return flatten(read(path)[-1][1])
    except UserError as error:
        holes.append(f"no readable {path.name}: {error}")
        return {}


def _read_line(path: Path) -> str:
    try:
        return " ".join(path.read_text(encoding="utf-8").split()) or UNKNOWN
    except (OSError, UnicodeDecodeError):  # not every run recorded it
        return UNKNOWN


def _read_metrics(path: Path, holes: list[str]) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        holes.append(f"not evaluated: no {path.name}")
        return {}
    except (OSError, ValueError, RecursionError) as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        holes.append(f"{path.name} cannot be read: {error}")
        return {}
    if not isinstance(values, dict):
        holes.append(f"{path.name} holds no table of metrics")
        return {}
    return values


def _newest_sample(folder: Path, holes: list[str]) -> Path | None:
    for path in sorted(folder.glob("*.png"), reverse=True):
        try:
            with Image.open(path, formats=["PNG"]) as image:
                image.load()
            return path
        except (OSError, SyntaxError, ValueError) as error:  # PIL's words for a torn or foreign file
            holes.append(f"{folder.name}/{path.name} cannot be read: {error}")
    holes.append("no sample grids")
    return None
