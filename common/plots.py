"""Figures drawn without a display: curves of several runs, pictures side by side."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from common.files import atomic_path
from common.runfolder import Curve

_STYLES = ("-", "--", ":", "-.")


@dataclass(frozen=True)
class Line:
    """A labelled curve; `place` is the run's number, which fixes its colour in every figure."""

    label: str
    curve: Curve
    place: int = 0


def colour(place: int) -> str:
    """Hexadecimal colour of the run number `place`; ten of them, then again with other line styles."""
    return mpl.colors.to_hex(mpl.colormaps["tab10"](place % 10))


def curve_figure(title: str, lines: Sequence[Line], *, legend: bool = True) -> Figure:
    """Values over training steps, one line a run; a curve of one value is a point."""
    figure = Figure(figsize=(6, 3.6), dpi=120, layout="constrained")
    axes = figure.subplots()
    for line in lines:
        style = _STYLES[line.place // 10 % len(_STYLES)]
        marker = "o" if len(line.curve.steps) < 3 else ""
        axes.plot(line.curve.steps, line.curve.values, style, color=colour(line.place), marker=marker, lw=1.3, ms=4)
    axes.set_xlabel("step")
    axes.set_title(title, size=10).set_parse_math(False)
    axes.grid(alpha=0.3)
    if legend and lines:
        # Labels are other people's words: no mathematics in them, and a leading underscore would hide one.
        shown = axes.legend(axes.get_lines(), [f"\u200a{line.label}" for line in lines], fontsize=8)
        for text in shown.get_texts():
            text.set_parse_math(False)
    return figure


def picture_figure(pictures: Sequence[tuple[str, np.ndarray]], *, columns: int = 3, width: float = 3.2) -> np.ndarray:
    """Labelled pictures uint8 (H,W,3) as one uint8 (H,W,3), `columns` in a row of `width` inches each."""
    columns = max(1, min(columns, len(pictures)))
    rows = -(-len(pictures) // columns)
    tallest = max(picture.shape[0] / picture.shape[1] for _, picture in pictures)
    size = (width * columns, (width * tallest + 0.3) * rows)
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for axes, (label, picture) in zip(grid.flat, pictures, strict=False):
        axes.imshow(picture, interpolation="nearest" if picture.shape[1] < width * 120 else "antialiased")
        axes.set_title(label, size=9).set_parse_math(False)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()


def svg(figure: Figure) -> bytes:
    """The figure as SVG; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "speechface"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def save_png(path: Path, figure: Figure) -> None:
    """Write the figure as PNG, whole or not at all."""
    FigureCanvasAgg(figure)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")
