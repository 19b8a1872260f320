"""What every face backend gives, and the factory that picks one by name."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from common.errors import UserError
from common.faces.patch import Box, area


@dataclass(frozen=True)
class Face:
    """One detected face.

    Coordinates are continuous pixels: x to the right, y down, pixel (row i, column j) covers [j, j+1) x [i, i+1),
    so its centre is (j + 0.5, i + 0.5). Points may lie outside the image when a face is cut off.
    """

    box: Box
    """x0, y0, x1, y1."""
    score: float
    """The detector's confidence; comparable only within one backend."""
    landmarks: np.ndarray
    """(68,2) float32, xy, in iBUG order: jaw, brows, nose, eyes, outer lips, inner lips."""

    @property
    def area(self) -> float:
        """Area of the box in square pixels."""
        return area(self.box)


class FaceBackend(Protocol):
    """Finds faces and their landmarks."""

    name: str

    def detect(self, images: Sequence[np.ndarray]) -> list[list[Face]]:
        """Find every face in every image.

        Args:
            images: uint8 pictures of any size and channel count (see `common.faces.images.as_rgb`).

        Returns:
            For each image its faces, the largest box first; an empty list where there is none.

        Raises:
            UserError: an image is empty or of another type.
        """
        ...

    def boxes(self, image: np.ndarray, max_side: int | None = None) -> list[tuple[Box, float]]:
        """Find faces without their landmarks, in a picture that may be reduced first.

        Args:
            image: uint8 (H,W,3) RGB.
            max_side: a larger picture is reduced to this longer side; None is the backend's own limit.

        Returns:
            Boxes in pixels of `image` and their scores, the largest first.
        """
        ...

    def landmarks(self, image: np.ndarray, boxes: np.ndarray | Box) -> np.ndarray:
        """Regress the landmarks of faces whose boxes are known.

        Args:
            image: uint8 (H,W,3) RGB.
            boxes: (...,4) x0, y0, x1, y1 in continuous pixels, framed as this backend's detector frames faces; they
                may leave the picture.

        Returns:
            (...,68,2) float32, continuous pixels.
        """
        ...


def largest_first(faces: Sequence[Face]) -> list[Face]:
    """Order by box area, then score, then position, so that ties never depend on a detector's internal order."""
    return sorted(faces, key=lambda face: (-face.area, -face.score, face.box))


def load_backend(name: str = "dlib", device: str = "cpu", weights: Path | None = None) -> FaceBackend:
    """Build a face backend.

    Args:
        name: "dlib" (weights inside an installed package, CPU only) or "face_alignment" (S3FD and FAN).
        device: torch device of the networks; dlib ignores it.
        weights: folder with the weights of "face_alignment"; None searches the weights folder, then downloads.

    Raises:
        UserError: an unknown name, or weights that cannot be had.
    """
    if name == "dlib":
        from common.faces.dlib_backend import DlibBackend

        return DlibBackend()
    if name == "face_alignment":
        from common.faces.face_alignment_backend import FaceAlignmentBackend

        return FaceAlignmentBackend(device=device, weights=weights)
    raise UserError(f"unknown face backend {name!r}; choose dlib or face_alignment")
