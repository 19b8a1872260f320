"""Grey cut-outs of large pictures, cheap enough to make several per frame and face."""

import numpy as np
from PIL import Image

Box = tuple[float, float, float, float]
"""x0, y0, x1, y1 in continuous pixels."""


def grey_patch(image: np.ndarray, box: Box, side: int) -> np.ndarray:
    """The grey content of a box at another size; what lies outside the picture repeats its edge.

    Only the box is read. Enlarging is bilinear, shrinking anti-aliased (a triangle as wide as the step), and the box's
    corners need not be whole pixels.

    Args:
        image: uint8 (H,W,3) RGB.
        box: with x1 > x0 and y1 > y0; it may lie outside the picture in part or whole.
        side: rows and columns of the result.

    Returns:
        uint8 (side,side), the mean of the colours as dlib's predictor takes it.
    """
    x0, y0, x1, y1 = box
    left, top = int(np.floor(x0)) - 1, int(np.floor(y0)) - 1
    right, bottom = int(np.ceil(x1)) + 1, int(np.ceil(y1)) + 1
    height, width = image.shape[:2]
    row, column = min(max(top, 0), height - 1), min(max(left, 0), width - 1)
    cut = image[row : max(bottom, row + 1), column : max(right, column + 1)]
    grey = ((cut[..., 0].astype(np.uint16) + cut[..., 1] + cut[..., 2]) // 3).astype(np.uint8)
    if grey.shape != (bottom - top, right - left):
        grey = grey[(np.arange(top, bottom) - row).clip(0, len(grey) - 1)]
        grey = grey[:, (np.arange(left, right) - column).clip(0, grey.shape[1] - 1)]
    part = (x0 - left, y0 - top, x1 - left, y1 - top)
    return np.asarray(Image.fromarray(grey).resize((side, side), Image.Resampling.BILINEAR, box=part))


def area(box: Box) -> float:
    """Area of a box in square pixels, 0 where it is turned inside out."""
    return max(box[2] - box[0], 0.0) * max(box[3] - box[1], 0.0)


def overlap(a: Box, b: Box) -> float:
    """Intersection over union of two boxes, in [0,1]."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    both = width * height
    return both / (area(a) + area(b) - both)


def visible_share(box: Box, shape: tuple[int, ...]) -> float:
    """The share of a box that lies inside a picture of `shape` (H, W, ...)."""
    x0, y0, x1, y1 = box
    width = min(x1, shape[1]) - max(x0, 0.0)
    height = min(y1, shape[0]) - max(y0, 0.0)
    return max(width, 0.0) * max(height, 0.0) / max(area(box), 1e-9)
