"""Figure 7: how far a drawn face's landmarks lie off, and how alike it is, over the frames of a clip whose head moves.

The paper reads it as robustness: SSIM hardly falls where landmarks go astray. It does not say which landmarks it means,
those of the drawn frame beside the real one (LMD, which is plotted) or those of the moving head beside its reference
(`motion`); the correlation with both is told.
"""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from common.errors import UserError
from common.files import write_text
from common.plots import colour, save_png
from dubbing3d.evaluation import FrameRow
from dubbing3d.likeness import STATED

NAME = "pose"
"""The figure and its numbers are `pose.png` and `pose.csv`."""
PAPER = -0.796
"""The paper's correlation of LMD and SSIM."""
_ANGLES = ("pitch", "yaw", "roll")


def write_pose_plot(folder: Path, rows: Sequence[FrameRow], clip: str = "") -> dict[str, Any]:
    """Write `pose.png` and `pose.csv` of a clip, that whose head turns most unless named; return what they say.

    Args:
        folder: existing.
        rows: frames of an evaluation.
        clip: its id.

    Raises:
        UserError: no such clip.
    """
    clip = clip or most_moving(rows)
    chosen = sorted((row for row in rows if row.clip == clip), key=lambda row: row.frame)
    if not chosen:
        raise UserError(f"no frame of the clip {clip} was drawn")
    values = {name: column(chosen, name) for name in ("lmd", "ssim", "motion")}
    found = {name: pearson(values[name], values["ssim"]) for name in ("lmd", "motion")}
    write_text(folder / f"{NAME}.csv", frame_table(chosen))
    frames = np.array([row.frame for row in chosen])
    save_png(folder / f"{NAME}.png", _figure(clip, frames, values["lmd"], values["ssim"], found["lmd"]))
    return {
        "clip": clip,
        "frames": len(chosen),
        "pearson_lmd_ssim": found["lmd"],
        "pearson_motion_ssim": found["motion"],
        "lowest_ssim": float(np.nanmin(values["ssim"])),
        "paper_pearson": PAPER,
    }


def most_moving(rows: Sequence[FrameRow]) -> str:
    """The clip whose head turns most: the largest spread of its angles."""
    spread = {
        clip: sum(float(np.std(column([row for row in rows if row.clip == clip], name))) for name in _ANGLES)
        for clip in dict.fromkeys(row.clip for row in rows)
    }
    if not spread:
        raise UserError("no frame was drawn, so there is no clip whose head moves")
    return max(spread, key=lambda clip: spread[clip])


def pearson(first: np.ndarray, second: np.ndarray) -> float | None:
    """Correlation of two columns (n,), where both are known; None of fewer than three or of one that never changes."""
    known = np.isfinite(first) & np.isfinite(second)
    x, y = first[known].astype(np.float64), second[known].astype(np.float64)
    if len(x) < 3 or x.std() < 1e-12 or y.std() < 1e-12:
        return None
    return float(np.corrcoef(x, y)[0, 1])


def column(rows: Sequence[FrameRow], name: str) -> np.ndarray:
    """A figure (n,) of frames; NaN where a frame has none."""
    return np.array([row.figures.get(name, np.nan) for row in rows], np.float64)


def frame_table(rows: Sequence[FrameRow]) -> str:
    """Frames as CSV: clip, frame, and every figure with 6 significant digits; empty where there is none."""
    names = list(dict.fromkeys(name for row in rows for name in row.figures))
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["clip", "frame", *names])
    for row in rows:
        values = [row.figures.get(name, np.nan) for name in names]
        writer.writerow([row.clip, row.frame, *(f"{value:.6g}" if np.isfinite(value) else "" for value in values)])
    return buffer.getvalue()


def _figure(clip: str, frames: np.ndarray, lmd: np.ndarray, ssim: np.ndarray, correlation: float | None) -> Figure:
    figure = Figure(figsize=(10, 3.6), dpi=120, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(2, 1))
    left.plot(frames, lmd, color=colour(0), lw=1.3)
    left.set_xlabel("frame")
    left.set_ylabel(f"LMD, px at {STATED}", color=colour(0))
    other = left.twinx()
    other.plot(frames, ssim, color=colour(1), lw=1.3)
    other.set_ylabel("SSIM", color=colour(1))
    left.set_title(clip, size=9).set_parse_math(False)
    right.scatter(lmd, ssim, s=9, color=colour(2))
    right.set_xlabel(f"LMD, px at {STATED}")
    right.set_ylabel("SSIM")
    said = "no correlation to tell" if correlation is None else f"Pearson {correlation:.3f}"
    right.set_title(f"{said} (the paper's {PAPER})", size=9)
    for axes in (left, right):
        axes.grid(alpha=0.3)
    return figure
