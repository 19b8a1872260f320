"""One face of a video: where it lies, which coefficients it has, and what it shall say."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import torch
from scipy.ndimage import gaussian_filter1d
from torch import Tensor

from common.dubbing.footage import Footage
from common.errors import UserError
from common.face3d.fit import Fit, fit_sequence
from common.face3d.morphable import FaceModel
from common.faces.tracks import Tracking, choose, segments, smooth
from dubbing3d.crops import moved, render_matrices
from dubbing3d.references import choose_references, lip_opening

_SMALLEST = 24
"""px; crops of a smaller part of the frame show no face that could speak."""
_SURE = 0.3
"""Frames whose fit is less sure pass through untouched."""
_MOST_YAW = np.radians(60.0)
"""A head that is turned farther shows too little of its mouth."""
_RAMP = 0.12
"""Seconds over which new lips come in where the face appears, and go where it is lost."""
_CLOSED = 0.1
"""Share of the frames, those with the least open mouth, whose median expression is the person's closed mouth."""


@dataclass(frozen=True)
class FacePlan:
    """One face through a video; rows are frames of the footage.

    Attributes:
        fit: coefficients of all frames.
        landmarks: (n,68,2) px of the frame, smoothed; NaN where there is none.
        matrices: (n,2,3) maps from frame to crop; NaN where there is no face to dub.
        size: side of the crops in px.
        share: (n,) in [0,1], how much of the new expression is shown.
        references: (N,) frames that tell the renderer how the person looks.
        closed: (Ke,) the person's expression with a closed mouth.
    """

    fit: Fit
    landmarks: np.ndarray
    matrices: np.ndarray
    size: int
    share: np.ndarray
    references: np.ndarray
    closed: Tensor

    @property
    def present(self) -> np.ndarray:
        """(n,) bool: frames with a face to dub."""
        found: np.ndarray = np.isfinite(self.matrices[:, 0, 0])
        return found

    def landmarks_in_crop(self, frames: np.ndarray) -> Tensor:
        """(B,68,2) in px of the crops."""
        return torch.from_numpy(moved(self.landmarks[frames], self.matrices[frames]))


def plan_face(
    tracking: Tracking,
    which: str,
    model: FaceModel,
    footage: Footage,
    crop_size: Callable[[float], int],
    *,
    references: int,
    colours: bool = True,
    smooth_poses: bool = False,
    progress: Callable[[int], None] | None = None,
) -> FacePlan:
    """Choose a face, fit the model to it through the whole clip, and place its crops.

    Args:
        tracking: of the footage.
        which: "largest", "longest" or "index:K"; see `common.faces.tracks.choose`.
        model: the face model.
        footage: read once more where colours count.
        crop_size: side of the crops for a part of the frame that is so many px wide.
        references: how many.
        colours: fit the pictures' colours too, not only the landmarks.
        smooth_poses: smooth the fitted poses in time once more.
        progress: called with the number of frames that were fitted since the last call.

    Raises:
        UserError: no face, or not the one that was asked for, or none that can be dubbed.
    """
    track = choose(tracking, which)
    rows = slice(track.start, track.start + len(track))
    landmarks = np.full((tracking.frames, 68, 2), np.nan, np.float32)
    landmarks[rows] = smooth(track, tracking.shots, fps=tracking.fps)
    fit = fit_sequence(
        model,
        landmarks,
        size=tracking.size,
        images=_pictures(footage, tracking.frames) if colours else None,
        shots=tracking.shots,
        progress=progress,
    )
    parts = segments(np.isfinite(landmarks[:, 0, 0]), tracking.shots)
    if smooth_poses:
        fit = smoothed(fit, parts, tracking.fps)
    unit = render_matrices(landmarks, 1, shots=tracking.shots, fps=tracking.fps)
    usable = _usable(unit, tracking.size) & (fit.confidence.numpy() >= _SURE)
    usable &= np.abs(fit.angles[:, 1].numpy()) <= _MOST_YAW
    if not usable.any():
        raise UserError(
            f"the face is never seen well enough to be dubbed: in {tracking.frames} frames it is turned away, smaller "
            f"than {_SMALLEST} px, outside, or unlike the face model"
        )
    size = crop_size(float(np.median(1 / unit[usable, 0, 0])))
    matrices = unit * size
    matrices[~usable] = np.nan
    opening = np.where(usable, lip_opening(np.nan_to_num(landmarks)), np.inf)
    best = usable & (fit.confidence.numpy() >= np.median(fit.confidence.numpy()[usable]))
    chosen = choose_references(best, fit.angles.numpy(), np.where(best, opening, 0), references)
    still = np.argsort(opening)[: max(1, round(_CLOSED * int(usable.sum())))]
    closed = fit.expression[torch.from_numpy(still)].median(dim=0).values
    share = blend_shares(usable, tracking.shots, tracking.fps)
    return FacePlan(fit, landmarks, matrices, size, share, chosen, closed)


def blend_shares(present: np.ndarray, shots: tuple[int, ...], fps: float) -> np.ndarray:
    """(n,) in [0,1]: 1 within a run of frames (n,) with a face, falling towards where it appears or is lost.

    Cuts, and the ends of the video, need no transition.
    """
    share, hard = present.astype(np.float64), {0, len(present), *shots}
    for part in segments(present, shots):
        index = np.arange(part.start, part.stop)
        for edge, distance in ((part.start, index - part.start + 1), (part.stop, part.stop - index)):
            if edge not in hard:
                share[part] = np.minimum(share[part], distance / (_RAMP * fps + 1))
    return share


def smoothed(fit: Fit, parts: list[slice], fps: float, seconds: float = 0.24) -> Fit:
    """A fit with angles and translation smoothed by a centred Gaussian (twice its deviation is `seconds`) in parts."""
    angles, translation = fit.angles.numpy().copy(), fit.translation.numpy().copy()
    for part in parts:
        for values in (angles, translation):
            values[part] = gaussian_filter1d(values[part], seconds * fps / 2, axis=0, mode="nearest")
    return replace(fit, angles=torch.from_numpy(angles), translation=torch.from_numpy(translation))


def _usable(unit: np.ndarray, frame: tuple[int, int]) -> np.ndarray:
    """(n,) bool: crops, by their maps to the unit square, of a sensible part of the frame whose middle lies in it."""
    scale = unit[:, (0, 1), (0, 1)]
    with np.errstate(invalid="ignore"):
        middle = (0.5 - unit[:, :, 2]) / scale
        large = (1 / scale >= _SMALLEST).all(axis=1)
        inside = ((middle > 0) & (middle < frame)).all(axis=1)
    usable: np.ndarray = large & inside
    return usable


def _pictures(footage: Footage, count: int) -> Iterator[np.ndarray]:
    """The first pictures of a footage, the last one again where a damaged file breaks off earlier this time."""
    image: np.ndarray | None = None
    done = 0
    for _, image in islice(footage.read(), count):
        yield image
        done += 1
    for _ in range(count - done):
        assert image is not None
        yield image
