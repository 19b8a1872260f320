"""Figures of a table: curves of its rows' runs, and what they draw in strips under the real pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from common.compare import lines_of
from common.config import config_hash
from common.plots import curve_figure, picture_figure, save_png
from common.provenance import Provenance, ProvenanceConfig, write_png
from common.runfolder import RunRecord, read_run
from common.table_rows import Row


@dataclass(frozen=True)
class CurveFigure:
    """A column of metrics.csv for the rows of a table."""

    name: str
    """what a person calls it: `figure 7`; its file is named after it"""
    table: str
    key: str
    title: str


def write_curves(
    folder: Path, figures: Sequence[CurveFigure], runs: Mapping[str, Path], rows: Sequence[Row]
) -> list[str]:
    """Write what the runs (experiment -> run folder) have logged as `NAME.png`; return a sentence for each figure.

    A figure that no run can fill is said and not written.
    """
    said = []
    for figure in figures:
        records = records_of(figure.table, runs, rows)
        lines = lines_of(records, figure.key)
        if not lines:
            said.append(f"{figure.name} ({figure.title}): no run logged {figure.key}")
            continue
        path = folder / f"{_file_name(figure.name)}.png"
        save_png(path, curve_figure(f"{figure.title} ({figure.key})", lines))
        said.append(f"{figure.name} ({figure.title}): [{path.name}]({folder.name}/{path.name})")
    return said


def write_strips(
    folder: Path,
    name: str,
    title: str,
    strip: str,
    real: str,
    runs: Mapping[str, Path],
    rows: Sequence[Row],
    *,
    width: float,
) -> str:
    """Write `NAME.png`: the real pictures, and below them what each run draws in their place; return a sentence.

    Args:
        folder: of the figures.
        name: as of a `CurveFigure`.
        title: what is seen.
        strip: name of a picture in the run folders, a row of real pictures over a row of generated ones.
        real: title of the first row.
        runs: experiment -> run folder.
        rows: of all tables.
        width: of a row in inches.
    """
    shown: list[tuple[str, np.ndarray]] = []
    records = [record for record in records_of(None, runs, rows) if (record.folder / strip).is_file()]
    for record in records:
        with Image.open(record.folder / strip) as image:
            both = np.asarray(image.convert("RGB"))
        above, drawn = np.split(both, 2)
        shown += [*([] if shown else [(real, above)]), (record.label, drawn)]
    if not shown:
        return f"{name} ({title}): no run was evaluated"
    path = folder / f"{_file_name(name)}.png"
    label = Provenance.create(ProvenanceConfig(), config_hash=config_hash({r.label: r.config for r in records}))
    write_png(path, picture_figure(shown, columns=1, width=width), label)
    return f"{name} ({real} and {title}): [{path.name}]({folder.name}/{path.name})"


def records_of(table: str | None, runs: Mapping[str, Path], rows: Sequence[Row]) -> list[RunRecord]:
    """The runs of a table's rows, or of all rows, under the rows' names; each run once."""
    names: dict[str, str] = {}
    for row in rows:
        if table in (None, row.table) and row.experiment in runs:
            names.setdefault(row.experiment, row.name if table else f"{row.table}: {row.name}")
    return [read_run(runs[experiment], name) for experiment, name in names.items() if runs[experiment].is_dir()]


def _file_name(name: str) -> str:
    """`figure 7` -> `figure_07`."""
    stem, _, number = name.rpartition(" ")
    return f"{stem}_{int(number):02d}".replace(" ", "_") if number.isdecimal() else name.replace(" ", "_")
