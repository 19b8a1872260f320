"""What is known of one face while a video runs; the working memory of `common.faces.track`."""

from dataclasses import dataclass, field

import numpy as np
import torch

from common.faces.patch import Box, grey_patch
from common.faces.tracks import Track, face_pose

_LOOK = 24
"""Side of the grey picture by which a followed face is compared with its last detection."""


@dataclass(frozen=True, slots=True)
class Sight:
    """A face in one frame; all of them are kept, so they are small."""

    box: Box
    points: np.ndarray
    score: float
    detected: bool


@dataclass
class FollowedFace:
    """What is known of one person's face while the video runs."""

    sights: dict[int, Sight] = field(default_factory=dict)
    points: np.ndarray = field(default_factory=lambda: np.zeros((68, 2), np.float32))
    """Landmarks of the last frame."""
    centre: complex = 0j
    sides: tuple[float, float] = (1.0, 1.0)
    """Middle, width and height of the detector's box in units of the mean face, averaged over detections."""
    look: np.ndarray = field(default_factory=lambda: np.zeros((_LOOK, _LOOK), np.float32))
    score: float = 0.0
    confirmed: int = -1
    """Frame of the last detection."""
    detections: int = 0
    searches: int = 0
    """Runs of the detector that could have confirmed the face."""
    chips: list[np.ndarray] = field(default_factory=list)
    identity: torch.Tensor | None = None
    """(1,D) unit vector; once it is known the chips are gone."""

    def box_at(self, points: np.ndarray) -> Box:
        """Where the detector would put its box around these landmarks."""
        turn, shift = face_pose(points)
        middle = self.centre * turn + shift
        half_x, half_y = (abs(turn) * side / 2 for side in self.sides)
        return (
            float(middle.real - half_x),
            float(middle.imag - half_y),
            float(middle.real + half_x),
            float(middle.imag + half_y),
        )

    def learn_box(self, box: Box, points: np.ndarray) -> None:
        """Average a detector's box into the relation of boxes to landmarks.

        Detectors place boxes on a coarse grid; the mean of several lies between its lines.
        """
        turn, shift = face_pose(points)
        centre = (complex(box[0] + box[2], box[1] + box[3]) / 2 - shift) / turn
        sides = ((box[2] - box[0]) / abs(turn), (box[3] - box[1]) / abs(turn))
        weight = max(1 / (self.detections + 1), 0.2)
        self.centre += weight * (complex(centre) - self.centre)
        old_x, old_y = self.sides
        self.sides = (float(old_x + weight * (sides[0] - old_x)), float(old_y + weight * (sides[1] - old_y)))


def look_at(image: np.ndarray, box: Box) -> np.ndarray:
    """The inside of a box as grey values of mean 0 and length 1, (24,24)."""
    grey = grey_patch(image, box, _LOOK).astype(np.float32)
    grey -= grey.mean()
    scaled: np.ndarray = grey / max(float(np.linalg.norm(grey)), 1e-6)
    return scaled


def likeness(look: np.ndarray, image: np.ndarray, box: Box) -> float:
    """Correlation in [-1,1] of a look with the inside of a box."""
    return float((look * look_at(image, box)).sum())


def as_track(number: int, face: FollowedFace) -> Track:
    start, end = min(face.sights), max(face.sights) + 1
    boxes = np.full((end - start, 4), np.nan, np.float32)
    landmarks = np.full((end - start, 68, 2), np.nan, np.float32)
    scores = np.full(end - start, np.nan, np.float32)
    detected = np.zeros(end - start, bool)
    for frame, sight in face.sights.items():
        row = frame - start
        boxes[row], landmarks[row], scores[row], detected[row] = sight.box, sight.points, sight.score, sight.detected
    return Track(number, start, boxes, landmarks, scores, detected)
