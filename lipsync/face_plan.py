"""Which face of a video is dubbed, where it lies in every frame, and what it looks like with its mouth closed."""

from dataclasses import dataclass

import numpy as np

from common.faces.tracks import POSE_POINTS, Tracking, choose, crop_matrices, face_pose, segments, smooth

_SMALLEST = 16
"""Pixels; a crop of a smaller part of the frame shows no face that could speak."""
_NEAR = 5.0
"""Seconds; a picture with a closed mouth is looked for within so long a part of a shot."""
_NEARLY_CLOSED = 0.1
"""Share of the frames of such a part whose mouths are open least; the most usual pose among them is taken."""
_INNER_LIPS = (62, 66)
_NOSE = 30
"""The tip of the nose, which the pose's points leave out, shows best where a head is turned to."""


@dataclass(frozen=True)
class FacePlan:
    """One face through a video; rows are frames of the footage.

    Attributes:
        matrices: (n,2,3) frame to crop; NaN where there is no face to dub.
        landmarks: (n,68,2) in pixels of the frame, smoothed; NaN where there is none.
        closed: (n,) for each frame the frame nearby whose mouth is closed; -1 without a face.
    """

    matrices: np.ndarray
    landmarks: np.ndarray
    closed: np.ndarray

    @property
    def present(self) -> np.ndarray:
        """(n,) bool: frames with a face to dub."""
        found: np.ndarray = np.isfinite(self.matrices[:, 0, 0])
        return found

    def landmarks_in_crop(self, frames: np.ndarray) -> np.ndarray:
        """(B,68,2) in pixels of the crop."""
        return _moved(self.landmarks[frames], self.matrices[frames])


def plan_face(tracking: Tracking, which: str, size: int) -> FacePlan:
    """Choose a face and place its crops.

    Args:
        tracking: of the footage.
        which: "largest", "longest" or "index:K"; see `common.faces.tracks.choose`.
        size: side of the crops in pixels.

    Raises:
        UserError: no face, or not the one that was asked for.
    """
    track = choose(tracking, which)
    rows = slice(track.start, track.start + len(track))
    landmarks = np.full((tracking.frames, 68, 2), np.nan, np.float32)
    landmarks[rows] = smooth(track, tracking.shots, fps=tracking.fps)
    matrices = crop_matrices(landmarks, tracking.shots, size, framing="face", fps=tracking.fps)
    matrices[~_usable(matrices, size, tracking.size)] = np.nan
    landmarks[~np.isfinite(matrices[:, 0, 0])] = np.nan
    closed = _closed(landmarks, _moved(landmarks, matrices), tracking.shots, tracking.fps)
    return FacePlan(matrices, landmarks, closed)


def _moved(landmarks: np.ndarray, matrices: np.ndarray) -> np.ndarray:
    """Landmarks (B,68,2) of frames in pixels of their crops."""
    return np.asarray(np.einsum("bij,bkj->bki", matrices[:, :, :2], landmarks) + matrices[:, None, :, 2])


def _usable(matrices: np.ndarray, size: int, frame: tuple[int, int]) -> np.ndarray:
    """(n,) bool: crops of a sensible part of the frame whose middle lies in it."""
    scale = matrices[:, (0, 1), (0, 1)]
    middle = (size / 2 - matrices[:, :, 2]) / scale
    with np.errstate(invalid="ignore"):
        large = (size / scale >= _SMALLEST).all(axis=1)
        inside = ((middle > 0) & (middle < frame)).all(axis=1)
    usable: np.ndarray = large & inside
    return usable


def _closed(landmarks: np.ndarray, in_crop: np.ndarray, shots: tuple[int, ...], fps: float) -> np.ndarray:
    """(n,) for each frame the frame in the same part of its shot whose mouth is closed and whose pose is usual there.

    Args:
        landmarks: (n,68,2) in pixels of the frames; NaN where there is no face.
        in_crop: the same in pixels of the crops, which are upright: a rolled head is rolled there.
        shots: first frames of the shots.
        fps: frames per second.
    """
    with np.errstate(invalid="ignore"):
        lips = landmarks[:, _INNER_LIPS[1]] - landmarks[:, _INNER_LIPS[0]]
        opening = np.hypot(lips[:, 0], lips[:, 1]) / np.abs(face_pose(landmarks)[0])
    pose = in_crop[:, [*POSE_POINTS, _NOSE]].reshape(len(in_crop), -1)
    closed = np.full(len(in_crop), -1)
    for shot in segments(np.isfinite(opening), shots):
        parts = max(1, round((shot.stop - shot.start) / (_NEAR * fps)))
        for frames in np.array_split(np.arange(shot.start, shot.stop), parts):
            shut = frames[opening[frames] <= np.quantile(opening[frames], _NEARLY_CLOSED)]
            unusual = np.abs(pose[shut] - np.median(pose[frames], axis=0)).sum(axis=1)
            closed[frames] = shut[np.argmin(unusual)]
    return closed
