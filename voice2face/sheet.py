"""Pictures of an evaluation: for each voice its spectrogram, the portrait, and the real face."""

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from common.audio.features import LogMel
from common.data.corpus import SAMPLE_RATE
from common.metrics.fid import to_uint8
from voice2face.evaluation import Evaluation

PORTRAITS = "portraits.png"
"""In a run folder: a row of real faces over the row of portraits drawn from those people's voices."""
PEOPLE = 8
"""Columns of that picture."""


def sample_sheet(result: Evaluation, *, rows: int = 12, columns: int = 2) -> np.ndarray:
    """A picture uint8 (H,W,3): for up to rows x columns people a log-mel spectrogram, the portrait, a real face."""
    chosen = _one_recording_each(result, rows * columns)
    columns = min(columns, len(chosen))
    rows = -(-len(chosen) // columns)
    figure = Figure(figsize=(5.6 * columns, 1.35 * rows + 0.5), dpi=100, layout="constrained")
    grid = figure.subplots(rows, 3 * columns, squeeze=False, width_ratios=[2.2, 1, 1] * columns)
    for axes in grid.flat:
        axes.axis("off")
    spectrum = LogMel(normalize=False)
    for place, recording in enumerate(chosen):
        row, first = place // columns, 3 * (place % columns)
        person = int(result.identities[recording])
        wave = result.waves[recording]
        grid[row, first].imshow(
            spectrum(wave[None])[0, 0].numpy(), aspect="auto", origin="lower", extent=(0, len(wave) / SAMPLE_RATE, 0, 1)
        )
        grid[row, first].text(
            0.01, 0.97, result.people[person], color="white", size=7, va="top", transform=grid[row, first].transAxes
        )
        real = result.real[int(torch.nonzero(result.real_identities == person)[0])]
        for axes, image in ((grid[row, first + 1], result.portraits[recording]), (grid[row, first + 2], real)):
            axes.imshow(_picture(image), interpolation="nearest")
        if row == 0:
            for offset, title in enumerate(("voice (log-mel)", "portrait", "real face")):
                grid[0, first + offset].set_title(title, size=9)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()


def face_rows(result: Evaluation, count: int = PEOPLE) -> np.ndarray:
    """Real faces over the portraits of their voices, uint8 (2S, count * S, 3), of people spread over the split."""
    first = {person: index for index, person in reversed(list(enumerate(result.identities.tolist())))}
    people = sorted(first)
    chosen = [people[i] for i in np.unique(np.linspace(0, len(people) - 1, count).round().astype(int))]
    real = [result.real[int(torch.nonzero(result.real_identities == person)[0])] for person in chosen]
    drawn = [result.portraits[first[person]] for person in chosen]
    strips = [torch.cat(list(to_uint8(torch.stack(images))), dim=2) for images in (real, drawn)]
    return torch.cat(strips, dim=1).permute(1, 2, 0).numpy()


def _one_recording_each(result: Evaluation, count: int) -> list[int]:
    """The first recording of each person, in the order of people."""
    first: dict[int, int] = {}
    for recording, person in enumerate(result.identities.tolist()):
        first.setdefault(person, recording)
    return [first[person] for person in sorted(first)][:count]


def _picture(image: Tensor) -> np.ndarray:
    return to_uint8(image[None])[0].permute(1, 2, 0).numpy()
