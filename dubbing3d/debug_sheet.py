"""One picture that shows how a dub came about: every step of some frames, and how sure the fit was of all."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

from common.provenance import Provenance, write_png
from dubbing3d.render_parts import RenderParts

COLUMNS = ("reference", "before", "3D render", "warp", "colour mask", "attention mask", "output")
_PANEL, _HEAD, _PLOT = 176, 18, 90


class DebugSheet:
    """Collects rows while a video is dubbed; memory does not grow with its length.

    Args:
        total: pictures of the output.
        rows: how many of them are shown, evenly spread.
    """

    def __init__(self, total: int, rows: int = 8) -> None:
        self._wanted = {int(index) for index in np.linspace(0, max(0, total - 1), rows + 2)[1:-1].round()}
        self._rows: list[tuple[str, np.ndarray]] = []
        self._confidence: list[float] = []

    def count(self, confidence: np.ndarray) -> None:
        """Remember how sure the fit was of the next pictures (B,); 0 where nothing was dubbed."""
        self._confidence += confidence.tolist()

    def wants(self, index: int) -> bool:
        """Whether a row begins at picture `index` of the output; a picture without a face hands it on to the next."""
        waiting = [number for number in self._wanted if number <= index]
        return bool(waiting)

    def add(self, index: int, confidence: float, reference: Tensor, before: Tensor, guide: Tensor, parts: RenderParts,
            row: int) -> None:  # fmt: skip
        """Add a row.

        Args:
            index: number of the picture.
            confidence: of its fit.
            reference, before, guide: (3,S,S) in [-1,1].
            parts: of the batch.
            row: which of it.
        """
        self._wanted = {number for number in self._wanted if number > index}
        attention = parts.attention[row].expand(3, -1, -1) * 2 - 1
        panels = [reference, before, guide, parts.warp[row], parts.colour[row], attention, parts.image[row]]
        shown = [
            F.interpolate(panel[None].float().cpu(), (_PANEL, _PANEL), mode="bilinear", antialias=True)[0]
            for panel in panels
        ]
        strip = torch.cat(shown, dim=2).add(1).mul(127.5).round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
        self._rows.append((f"frame {index}, confidence {confidence:.2f}", np.ascontiguousarray(strip)))

    def save(self, path: Path, label: Provenance) -> None:
        """Write the sheet as a labelled PNG, atomically."""
        width, height = _PANEL * len(COLUMNS), _HEAD + len(self._rows) * (_PANEL + _HEAD) + _HEAD + _PLOT
        sheet = Image.new("RGB", (width, height), "white")
        draw, font = ImageDraw.Draw(sheet), ImageFont.load_default()
        for column, name in enumerate(COLUMNS):
            draw.text((column * _PANEL + 4, 3), name, "black", font)
        for number, (text, strip) in enumerate(self._rows):
            top = _HEAD + number * (_PANEL + _HEAD)
            sheet.paste(Image.fromarray(strip), (0, top))
            draw.text((4, top + _PANEL + 3), text, "black", font)
        top = height - _PLOT
        draw.text((4, top - _HEAD + 3), f"confidence of {len(self._confidence)} frames, 0 to 1", "black", font)
        draw.rectangle((0, top, width - 1, height - 1), outline="grey")
        values = np.asarray(self._confidence or [0.0])
        edges = np.linspace(0, len(values), min(width, len(values)) + 1).astype(int)
        lows = np.minimum.reduceat(values, edges[:-1])  # a pixel shows the least sure of its frames
        across = (np.arange(len(lows)) + 0.5) / len(lows) * width
        points = [(float(x), float(height - 2 - v * (_PLOT - 4))) for x, v in zip(across, lows, strict=True)]
        draw.line(points if len(points) > 1 else points * 2, "blue")
        write_png(path, np.asarray(sheet), label)
