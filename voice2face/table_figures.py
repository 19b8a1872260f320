"""Paper 2's figures 7 to 15 from the logs and portraits of the runs of a table."""

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
from voice2face.sheet import PEOPLE, PORTRAITS
from voice2face.table_rows import TABLE2, TABLE3, Row


@dataclass(frozen=True)
class PaperFigure:
    """A curve of the paper: a column of metrics.csv for the rows of a table."""

    number: int
    table: str
    key: str
    title: str


FIGURES = (
    PaperFigure(7, TABLE2, "train/loss_d_fake", "discriminator loss on generated faces"),
    PaperFigure(8, TABLE2, "train/loss_d_real", "discriminator loss on real faces"),
    PaperFigure(9, TABLE2, "train/loss_g_adversarial", "generator loss through the discriminator"),
    PaperFigure(10, TABLE2, "train/loss_g_identity", "generator loss through the classifier"),
    PaperFigure(11, TABLE2, "val/fid", "FID during training"),
    PaperFigure(12, TABLE2, "val/path_length", "path length during training"),
    PaperFigure(14, TABLE3, "val/fid", "FID during training"),
    PaperFigure(15, TABLE3, "val/path_length", "path length during training"),
)


def write_figures(folder: Path, runs: Mapping[str, Path], rows: Sequence[Row]) -> list[str]:
    """Write what the runs (experiment -> run folder) have logged as `figure_NN.png`; return a sentence for each.

    A figure that no run can fill is said and not written.
    """
    said = []
    for figure in FIGURES:
        records = _records(figure.table, runs, rows)
        lines = lines_of(records, figure.key)
        if not lines:
            said.append(f"figure {figure.number} ({figure.title}): no run logged {figure.key}")
            continue
        path = folder / f"figure_{figure.number:02d}.png"
        save_png(path, curve_figure(f"{figure.title} ({figure.key})", lines))
        said.append(f"figure {figure.number} ({figure.title}): [{path.name}]({folder.name}/{path.name})")
    return said + _portraits(folder, _records(None, runs, rows))


def _portraits(folder: Path, records: Sequence[RunRecord]) -> list[str]:
    """Figure 13: the real faces, and a row of portraits for each run that has them."""
    rows: list[tuple[str, np.ndarray]] = []
    for record in records:
        if not (record.folder / PORTRAITS).is_file():
            continue
        with Image.open(record.folder / PORTRAITS) as image:
            both = np.asarray(image.convert("RGB"))
        real, drawn = np.split(both, 2)
        rows += [*([] if rows else [("real faces", real)]), (record.label, drawn)]
    if not rows:
        return ["figure 13 (portraits of each model): no run was evaluated"]
    label = Provenance.create(ProvenanceConfig(), config_hash=config_hash({r.label: r.config for r in records}))
    write_png(folder / "figure_13.png", picture_figure(rows, columns=1, width=PEOPLE), label)
    return [f"figure 13 (real faces and portraits of each model): [figure_13.png]({folder.name}/figure_13.png)"]


def _records(table: str | None, runs: Mapping[str, Path], rows: Sequence[Row]) -> list[RunRecord]:
    """The runs of a table's rows, or of all rows, under the rows' names; each run once."""
    names: dict[str, str] = {}
    for row in rows:
        if table in (None, row.table) and row.experiment in runs:
            names.setdefault(row.experiment, row.name if table else f"{row.table}: {row.name}")
    return [read_run(runs[experiment], name) for experiment, name in names.items() if runs[experiment].is_dir()]
