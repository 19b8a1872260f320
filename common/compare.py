"""Runs of any package beside each other: one HTML page that needs no network, and the same curves as PNG files."""

import base64
import re
from collections.abc import Callable, Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from common.config import config_hash
from common.files import write_text
from common.plots import Line, colour, curve_figure, picture_figure, save_png, svg
from common.provenance import Provenance, ProvenanceConfig, write_png
from common.runfolder import UNKNOWN, RunRecord, find_runs, flatten, read_runs

SYNTHETIC = "Every picture of a person on this page was generated, or stands beside generated ones for comparison."
_OWN_NAMES = {"run.name", "run.out"}
_NOT_COMPARED = {"checkpoint_sha256", "config"}
_TIMES = "time/"
_STYLE = """
body { font: 14px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 1280px; padding: 0 1em; color: #1b1b1b }
h1 { font-size: 1.5em } h2 { font-size: 1.15em; margin-top: 2em; border-bottom: 1px solid #ccc }
table { border-collapse: collapse; display: block; overflow-x: auto }
th, td { border: 1px solid #d5d5d5; padding: .25em .6em; text-align: left; vertical-align: top }
th { background: #f4f4f4 } .warning { background: #fff3cd; border: 1px solid #e0b400; padding: .6em 1em }
.hole { color: #8a4b00 } .flow { display: flex; flex-wrap: wrap; gap: 1em } figure { margin: 0 }
figure img { max-width: 600px; width: 100% } .swatch { display: inline-block; width: .8em; height: .8em }
"""


def compare(paths: Sequence[Path], out: Path, figures: Path | None = None) -> list[str]:
    """Write the page `out` about the runs in `paths`, and PNG figures into `figures` where given.

    Returns lines for the terminal: warnings, holes, what was written. Raises UserError where a path is missing or no
    path holds a run; a run that is torn is shown as far as it can be read.
    """
    folders, empty = find_runs(paths)
    runs = read_runs(folders)
    warnings = differences(runs)
    write_text(out, page(runs, warnings, empty))
    lines = [f"warning: {text}" for text in warnings] + [f"left out: {text}" for text in empty]
    lines += [f"{run.label}: {hole}" for run in runs for hole in run.holes]
    lines.append(f"written: {out} ({len(runs)} runs)")
    if figures is not None:
        lines += [f"written: {path}" for path in write_figures(runs, figures)]
    return lines


def differences(runs: Sequence[RunRecord]) -> list[str]:
    """Why figures of these runs do not compare: other corpora, evaluations that differ in split or counts."""
    found = []
    corpora = {run.corpus: run.label for run in runs if run.corpus != UNKNOWN}
    if len(corpora) > 1:
        named = "; ".join(f"{label}: {corpus}" for corpus, label in corpora.items())
        found.append(f"the runs were trained on different corpora, so their figures do not compare ({named})")
    evaluated = [run for run in runs if run.metrics]
    for key in sorted({key for run in evaluated for key in run.metrics} - _NOT_COMPARED):
        values = [run.metrics.get(key) for run in evaluated]
        if any(isinstance(value, dict | list) for value in values) or len(set(map(str, values))) < 2:
            continue
        shown = ", ".join(f"{run.label}: {value}" for run, value in zip(evaluated, values, strict=True))
        found.append(f"the evaluations differ in {key} ({shown})")
    return found


def write_figures(runs: Sequence[RunRecord], folder: Path) -> list[Path]:
    """One PNG for each logged loss and validation figure, and the runs' last sample grids in one labelled PNG."""
    written = []
    for key in _keys(runs):
        path = folder / f"{re.sub(r'[^A-Za-z0-9_.@-]+', '-', key)}.png"
        save_png(path, curve_figure(key, lines_of(runs, key)))
        written.append(path)
    pictures = [(run.label, _pixels(run.sample)) for run in runs if run.sample is not None]
    if pictures:
        digest = config_hash({run.label: run.config for run in runs})
        label = Provenance.create(ProvenanceConfig(), config_hash=digest)
        write_png(folder / "samples.png", picture_figure(pictures), label)
        written.append(folder / "samples.png")
    return written


def lines_of(runs: Sequence[RunRecord], key: str) -> list[Line]:
    """The curve `key` of each run that has it; a run keeps its colour from key to key."""
    return [Line(run.label, run.curves[key], place) for place, run in enumerate(runs) if key in run.curves]


def page(runs: Sequence[RunRecord], warnings: Sequence[str] = (), empty: Sequence[str] = ()) -> str:
    """The page as HTML: no script, nothing from elsewhere, every word of a run escaped."""
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        f"<title>{len(runs)} runs</title><style>{_STYLE}</style></head><body>",
        f"<h1>{len(runs)} runs</h1>",
        *(f"<p class='warning'>{escape(text)}</p>" for text in warnings),
        f"<p><strong>{SYNTHETIC}</strong></p>",
        _head(runs),
        *(f"<p class='hole'>Left out: {escape(text)}</p>" for text in empty),
        _holes(runs),
        "<h2>Configuration: what differs</h2>",
        _configuration(runs),
        "<h2>Final figures</h2>",
        _figures(runs),
        "<h2>Curves</h2>",
        _curves(runs),
        "<h2>Last samples</h2>",
        _samples(runs),
        "</body></html>\n",
    ]
    return "\n".join(part for part in parts if part)


def _table(first: str, runs: Sequence[RunRecord], rows: Iterable[tuple[str, Sequence[str]]]) -> str:
    """A table with a column a run; cells and row names are text."""
    head = "".join(f"<th>{_name(place, run)}</th>" for place, run in enumerate(runs))
    body = "".join(
        f"<tr><th>{escape(name)}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"
        for name, cells in rows
    )
    return f"<table><tr><th>{escape(first)}</th>{head}</tr>{body}</table>"


def _name(place: int, run: RunRecord) -> str:
    return f"<span class='swatch' style='background:{colour(place)}'></span> {escape(run.label)}"


def _head(runs: Sequence[RunRecord]) -> str:
    def last_step(run: RunRecord) -> str:
        done = max((curve.steps[-1] for curve in run.curves.values()), default=0)
        return f"{done} of {run.config.get('trainer.steps', UNKNOWN)}"

    rows: list[tuple[str, Callable[[RunRecord], str]]] = [
        ("folder", lambda run: str(run.folder)),
        ("corpus", lambda run: run.corpus),
        ("seed", lambda run: str(run.config.get("run.seed", UNKNOWN))),
        ("steps", last_step),
        ("seconds a step", _mean_time),
        ("commit", lambda run: run.commit),
        ("hardware", lambda run: run.hardware),
    ]
    return _table("run", runs, [(name, [value(run) for run in runs]) for name, value in rows])


def _mean_time(run: RunRecord) -> str:
    curve = run.curves.get("time/step")
    return UNKNOWN if curve is None else f"{np.mean(curve.values):.3g}"


def _holes(runs: Sequence[RunRecord]) -> str:
    found = [f"<li>{escape(run.label)}: {escape(hole)}</li>" for run in runs for hole in run.holes]
    return f"<ul class='hole'>{''.join(found)}</ul>" if found else ""


def _configuration(runs: Sequence[RunRecord]) -> str:
    """Only keys whose values differ, the run's own name and place left out."""
    known = [run for run in runs if run.config]
    keys = sorted({key for run in known for key in run.config} - _OWN_NAMES)
    rows = [(key, [_text(run.config.get(key, "")) for run in runs]) for key in keys]
    differing = [(key, cells) for key, cells in rows if len(set(cells)) > 1]
    if not differing:
        return "<p>Nothing.</p>"
    return _table("key", runs, differing)


def _text(value: Any) -> str:
    return "null" if value is None else str(value)


def _figures(runs: Sequence[RunRecord]) -> str:
    """Every number of metrics.json with its interval, and every logged validation figure at its last step."""
    flat = [final_figures(run) for run in runs]
    keys = list(dict.fromkeys(key for figures in flat for key in figures if key not in _NOT_COMPARED))
    if not keys:
        return "<p>No run was evaluated or validated.</p>"
    return _table("figure", runs, [(key, [figures.get(key, "") for figures in flat]) for key in keys])


def final_figures(run: RunRecord) -> dict[str, str]:
    """Name -> text such as `0.25 [0.125, 0.375]`; validation figures carry `@ step`."""
    shown = {}
    values = flatten(run.metrics)
    for key, value in values.items():
        stem, _, leaf = key.rpartition(".")
        if leaf == "value" and stem:
            low, high = values.get(f"{stem}.low"), values.get(f"{stem}.high")
            interval = f" [{_number(low)}, {_number(high)}]" if low is not None and high is not None else ""
            missing = f" ({values[f'{stem}.reason']})" if f"{stem}.reason" in values else ""
            shown[stem] = f"{_number(value)}{interval}{missing}"
        elif f"{stem}.value" not in values or leaf not in {"low", "high", "reason"}:
            shown[key] = "; ".join(map(str, value)) if isinstance(value, list) else _number(value)
    for key, curve in sorted(run.curves.items()):
        if key.startswith("val/"):
            shown[key] = f"{_number(curve.values[-1])} @ {curve.steps[-1]}"
    return shown


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "none" if value is None else str(value)


def _keys(runs: Sequence[RunRecord]) -> list[str]:
    """Curves worth a panel: validation first, then losses; times are in the head."""
    keys = {key for run in runs for key in run.curves if not key.startswith(_TIMES)}
    return sorted(keys, key=lambda key: (not key.startswith("val/"), key))


def _curves(runs: Sequence[RunRecord]) -> str:
    keys = _keys(runs)
    if not keys:
        return "<p>No run logged anything.</p>"
    panels = (_image(svg(curve_figure(key, lines_of(runs, key))), "image/svg+xml", key) for key in keys)
    return f"<div class='flow'>{''.join(f'<figure>{panel}</figure>' for panel in panels)}</div>"


def _samples(runs: Sequence[RunRecord]) -> str:
    shown = []
    for place, run in enumerate(runs):
        if run.sample is None:
            shown.append(f"<figure><figcaption>{_name(place, run)}: none</figcaption></figure>")
            continue
        # The file's own bytes, so that its label as synthetic stays in it.
        picture = _image(run.sample.read_bytes(), "image/png", f"generated by {run.label}")
        caption = f"{_name(place, run)}: {escape(run.sample.stem)}, generated"
        shown.append(f"<figure><figcaption>{caption}</figcaption>{picture}</figure>")
    return f"<div class='flow'>{''.join(shown)}</div>"


def _pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def _image(content: bytes, kind: str, words: str) -> str:
    return f'<img alt="{escape(words)}" src="data:{kind};base64,{base64.b64encode(content).decode()}">'
