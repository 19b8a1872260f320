"""Which frames of a clip show the renderer how the person looks."""

import numpy as np

from common.errors import UserError

_UPPER, _LOWER = 62, 66
"""Landmarks in the middle of the inner lips."""
_EYES = (36, 45)


def training_references(known: np.ndarray, target: int, count: int, apart: int, rng: np.random.Generator) -> np.ndarray:
    """Random references (count,) for a target: known frames (T,) bool at least `apart` frames from it.

    They differ from each other where there are enough. A clip that is too short gives the farthest there are, but
    never the target itself.

    Raises:
        UserError: no other frame is known.
    """
    places = np.flatnonzero(known)
    distance = np.abs(places - target)
    if not (distance > 0).any():
        raise UserError("a clip with a single known frame has no reference for it")
    free = places[distance >= min(apart, int(distance.max()))]
    return np.asarray(rng.choice(free, count, replace=len(free) < count))


def lip_opening(landmarks: np.ndarray) -> np.ndarray:
    """Gap (T,) between the inner lips in distances of the outer corners of the eyes, of landmarks (T,68,2)."""
    points = np.asarray(landmarks, np.float64)
    gap = np.linalg.norm(points[:, _LOWER] - points[:, _UPPER], axis=1)
    eyes = np.linalg.norm(points[:, _EYES[1]] - points[:, _EYES[0]], axis=1)
    return gap / np.maximum(eyes, 1e-6)


def choose_references(known: np.ndarray, angles: np.ndarray, opening: np.ndarray, count: int) -> np.ndarray:
    """The references (count,) of a whole clip, fixed for it, so that they do not flicker.

    The first shows the clip's usual pose with teeth visible (the mouth more open than in three quarters of the clip);
    each further one is the frame that differs most from those chosen in pose and opening.

    Args:
        known: (T,) bool, frames that may be taken.
        angles: (T,3) pitch, yaw and roll in rad.
        opening: (T,) of the lips, see `lip_opening`.
        count: how many; frames repeat where fewer are known.

    Raises:
        UserError: no frame is known.
    """
    places = np.flatnonzero(known)
    if not len(places):
        raise UserError("no frame of the clip shows a face that could serve as a reference")
    spread = np.maximum(opening[places].std(), 1e-3)
    space = np.concatenate([angles[places] / np.radians(10.0), opening[places, None] / spread], axis=1)
    usual = np.concatenate([np.median(space[:, :3], axis=0), [np.percentile(space[:, 3], 75)]])
    chosen = [int(np.argmin(np.linalg.norm(space - usual, axis=1)))]
    while len(chosen) < count:
        away = np.linalg.norm(space[:, None] - space[chosen][None], axis=2).min(axis=1)
        chosen.append(int(np.argmax(away)))
    return places[chosen]
