"""Faces whose finding is trivial: textured squares whose blue value is their owner's, and a backend that sees them."""

from collections.abc import Sequence

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from common.faces.align import MEAN_FACE
from common.faces.base import Face
from common.faces.patch import Box, overlap

SIDE = 60
SIZE = (240, 180)


def scene(*faces: tuple[int, float, float], size: tuple[int, int] = SIZE, ground: int = 0) -> np.ndarray:
    """A frame (H,W,3) of `size` (W,H): faces (person, x, y of the middle) drawn in order, later ones in front.

    The background is a noise of its own for every `ground`, with no blue.
    """
    image = np.random.default_rng([7, ground]).integers(0, 255, (size[1] // 12 + 1, size[0] // 12 + 1, 3), np.uint8)
    image = np.kron(image, np.ones((12, 12, 1), np.uint8))[: size[1], : size[0]].copy()
    image[..., 2] = 0
    for person, x, y in faces:
        cells = np.random.default_rng([3, person]).integers(0, 255, (6, 6, 3), np.uint8)
        square = np.kron(cells, np.ones((SIDE // 6, SIDE // 6, 1), np.uint8))
        square[..., 2] = 50 + 40 * person
        left, top = round(x - SIDE / 2), round(y - SIDE / 2)
        rows, columns = np.arange(top, top + SIDE), np.arange(left, left + SIDE)
        inside_y, inside_x = (rows >= 0) & (rows < size[1]), (columns >= 0) & (columns < size[0])
        image[np.ix_(rows[inside_y], columns[inside_x])] = square[np.ix_(inside_y, inside_x)]
    return image


def marks(box: Box) -> np.ndarray:
    """(68,2) the mean face in a box; the jaw on its lower half."""
    x0, y0, x1, y1 = box
    angle = np.linspace(np.pi, 0, 17)
    jaw = np.stack([0.5 + 0.5 * np.cos(angle), 0.5 + 0.5 * np.sin(angle)], axis=1)
    points = np.concatenate([jaw, 0.15 + 0.6 * MEAN_FACE])
    return (points * (x1 - x0, y1 - y0) + (x0, y0)).astype(np.float32)


class ToyFaces:
    """A `FaceBackend` that sees whole squares only, and regresses landmarks of whatever square is near a box."""

    name = "toy"

    def __init__(self) -> None:
        self.searches: list[int | None] = []

    def squares(self, image: np.ndarray) -> list[tuple[Box, int]]:
        """Boxes around what shows of every face, and how many pixels that is."""
        found = []
        for value in set(np.unique(image[..., 2]).tolist()) - {0}:
            labels, _ = ndimage.label(image[..., 2] == value)
            for number, (y, x) in enumerate(ndimage.find_objects(labels), start=1):
                box = (float(x.start), float(y.start), float(x.stop), float(y.stop))
                found.append((box, int((labels == number).sum())))
        return found

    def boxes(self, image: np.ndarray, max_side: int | None = None) -> list[tuple[Box, float]]:
        self.searches.append(max_side)
        return [(box, 1.0) for box, pixels in self.squares(image) if pixels >= 0.9 * SIDE**2]

    def landmarks(self, image: np.ndarray, boxes: np.ndarray | Box) -> np.ndarray:
        (box,) = np.asarray(boxes, float).reshape(-1, 4).tolist()
        squares = [square for square, _ in self.squares(image)]
        nearest = max(squares, key=lambda square: overlap(square, box), default=box)
        return marks(nearest if overlap(nearest, box) > 0.2 else box)

    def detect(self, images: Sequence[np.ndarray]) -> list[list[Face]]:
        return [[Face(box, score, marks(box)) for box, score in self.boxes(image)] for image in images]


class ToyEmbedder:
    """Knows people by their blue."""

    name, dim = "toy", 6

    def embed(self, images: Sequence[np.ndarray]) -> Tensor:
        people = [round((float(np.median(image[..., 2])) - 50) / 40) for image in images]
        return torch.eye(self.dim)[people]
