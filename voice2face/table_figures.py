"""Paper 2's figures 7 to 15 from the logs and portraits of the runs of a table."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from common.table_figures import CurveFigure, write_curves, write_strips
from common.table_rows import Row
from voice2face.sheet import PEOPLE, PORTRAITS
from voice2face.table_rows import TABLE2, TABLE3

FIGURES = (
    CurveFigure("figure 7", TABLE2, "train/loss_d_fake", "discriminator loss on generated faces"),
    CurveFigure("figure 8", TABLE2, "train/loss_d_real", "discriminator loss on real faces"),
    CurveFigure("figure 9", TABLE2, "train/loss_g_adversarial", "generator loss through the discriminator"),
    CurveFigure("figure 10", TABLE2, "train/loss_g_identity", "generator loss through the classifier"),
    CurveFigure("figure 11", TABLE2, "val/fid", "FID during training"),
    CurveFigure("figure 12", TABLE2, "val/path_length", "path length during training"),
    CurveFigure("figure 14", TABLE3, "val/fid", "FID during training"),
    CurveFigure("figure 15", TABLE3, "val/path_length", "path length during training"),
)


def write_figures(folder: Path, runs: Mapping[str, Path], rows: Sequence[Row]) -> list[str]:
    """Write what the runs (experiment -> run folder) have logged as `figure_NN.png`; return a sentence for each.

    A figure that no run can fill is said and not written. Figure 13 shows the real faces, and a row of portraits for
    each run that has them.
    """
    said = write_curves(folder, FIGURES, runs, rows)
    title, real = "portraits of each model", "real faces"
    return [*said, write_strips(folder, "figure 13", title, PORTRAITS, real, runs, rows, width=PEOPLE)]
