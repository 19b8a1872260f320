"""Faces over time: what a tracking holds, which face to take, smooth landmarks and steady sub-pixel crops.

Everything here works on landmarks that are already there; `common.faces.track` makes them. Frame numbers and shot
starts count from the first frame of the video; coordinates are continuous pixels as in `Face`.
"""

import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy.ndimage import gaussian_filter1d
from scipy.signal import savgol_filter

from common.errors import UserError
from common.faces.align import MEAN_FACE, Border, needed_part, to_tensor, to_uint8, warp
from common.faces.images import as_rgb
from common.files import atomic_path

Framing = Literal["head", "face"]

POSE_POINTS = np.array([*range(27, 36), 36, 39, 42, 45])
"""Bridge and base of the nose, corners of the eyes: they move with the head, hardly with speech and expression."""

_POSE = MEAN_FACE[POSE_POINTS - 17] @ np.array([1, 1j])
_POSE_MEAN = _POSE.mean()
_POSE_WEIGHTS = (_POSE - _POSE_MEAN).conj() / (np.abs(_POSE - _POSE_MEAN) ** 2).sum()
"""Reference points as complex numbers; their centred conjugates sum to 0, so the faces need no centring."""
_BETWEEN_EYES = 0.4885
"""x of the face's middle line in units of `MEAN_FACE`."""
_HEAD_SIDE, _HEAD_MIDDLE = 2.3, 0.42
"""Side and middle of the square "head" crop in units of `MEAN_FACE`: hair, chin with an open jaw, and both ears."""
_FACE_WIDTH, _FACE_TOP, _FACE_BELOW_CHIN = 1.2, -0.28, 0.06
"""The "face" crop in the same units: cheek to cheek, the forehead's middle to a little below the resting chin."""
_CHIN_RANGE = (0.95, 1.5)
_RESTING = 25
"""Percentile of the chin's distance that counts as the closed mouth's: at most times a speaker's jaw is nearly shut."""
_STEADY_SECONDS: dict[Framing, float] = {"head": 0.4, "face": 0.2}


@dataclass(frozen=True, eq=False)
class Track:
    """One person's face from its first frame to its last, gaps included."""

    id: int
    """Number of the track, in order of appearance, the larger first."""
    start: int
    """Frame of the video that row 0 of the arrays belongs to."""
    boxes: np.ndarray
    """(n,4) float32 x0, y0, x1, y1 as the backend's detector frames faces; NaN where the face is lost."""
    landmarks: np.ndarray
    """(n,68,2) float32, not smoothed; NaN where the face is lost."""
    scores: np.ndarray
    """(n,) float32, score of the last detection; comparable within one backend; NaN where the face is lost."""
    detected: np.ndarray
    """(n,) bool: confirmed by the detector in this very frame, not only followed."""

    def __len__(self) -> int:
        return len(self.boxes)

    @property
    def present(self) -> np.ndarray:
        """(n,) bool: the frames in which the face is there."""
        found: np.ndarray = np.isfinite(self.boxes[:, 0])
        return found

    @property
    def screen(self) -> float:
        """Area of the boxes summed over frames, in square pixels."""
        return float(np.nansum((self.boxes[:, 2] - self.boxes[:, 0]) * (self.boxes[:, 3] - self.boxes[:, 1])))


@dataclass(frozen=True, eq=False)
class Tracking:
    """All faces of one video."""

    frames: int
    fps: float
    times: np.ndarray
    """(frames,) float64, presentation times in seconds."""
    size: tuple[int, int]
    """Width and height of the frames in pixels."""
    shots: tuple[int, ...]
    """First frame of every shot; begins with 0 where there are frames."""
    tracks: list[Track]

    def save(self, path: Path) -> None:
        """Write an npz, atomically."""
        stacked: dict[str, Any] = {
            name: np.concatenate([getattr(track, name) for track in self.tracks]) if self.tracks else empty
            for name, empty in _EMPTY.items()
        }
        head = np.array([(track.id, track.start, len(track)) for track in self.tracks], np.int64).reshape(-1, 3)
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            np.savez_compressed(
                file,
                frames=self.frames,
                fps=self.fps,
                times=self.times,
                size=np.array(self.size),
                shots=np.array(self.shots, np.int64),
                heads=head,
                **stacked,
            )

    @classmethod
    def load(cls, path: Path) -> "Tracking":
        """Read what `save` wrote; `UserError` in one line for anything else."""
        try:
            file = np.load(path, allow_pickle=False)
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise UserError(f"{path} is no tracking but a single array; track the video again")
            with file:
                return cls._from_arrays(file)
        except FileNotFoundError as error:
            raise UserError(f"no such tracking: {path}") from error
        except (OSError, KeyError, ValueError, IndexError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(f"{path} is no tracking that can be read ({error}); track the video again") from error

    @classmethod
    def _from_arrays(cls, file: Mapping[str, np.ndarray]) -> "Tracking":
        ends = np.cumsum(file["heads"][:, 2])[:-1]
        columns = [np.split(file[name], ends) for name in _EMPTY]
        tracks = [
            Track(int(number), int(start), *(column[index] for column in columns))
            for index, (number, start, _) in enumerate(file["heads"])
        ]
        width, height = file["size"].tolist()
        shots = tuple(file["shots"].tolist())
        return cls(int(file["frames"]), float(file["fps"]), file["times"], (width, height), shots, tracks)


_EMPTY = {
    "boxes": np.zeros((0, 4), np.float32),
    "landmarks": np.zeros((0, 68, 2), np.float32),
    "scores": np.zeros(0, np.float32),
    "detected": np.zeros(0, bool),
}


def choose(tracking: Tracking, which: str = "largest") -> Track:
    """Pick one face.

    Args:
        tracking: of one video.
        which: "largest" (most screen area summed over frames), "longest" (most frames, then area) or "index:K" (the
            track whose id is K).

    Raises:
        UserError: no face, an unknown word or an index that is not there; lists the faces that are.
    """
    if not tracking.tracks:
        raise UserError(
            f"no face was found in {tracking.frames} frames; give a video that shows a face of 80 px or "
            "more, upright and not in profile"
        )
    if which == "largest":
        return max(tracking.tracks, key=lambda track: (track.screen, -track.id))
    if which == "longest":
        return max(tracking.tracks, key=lambda track: (int(track.present.sum()), track.screen, -track.id))
    word, _, number = which.partition(":")
    if word != "index" or not number.isascii() or not number.isdigit():
        raise UserError(f"unknown choice of a face {which!r}; choose largest, longest or index:K. {_listing(tracking)}")
    for track in tracking.tracks:
        if track.id == int(number):
            return track
    raise UserError(f"there is no face {number}. {_listing(tracking)}")


def _listing(tracking: Tracking) -> str:
    lines = []
    for track in tracking.tracks:
        x0, y0, x1, y1 = np.nanmedian(track.boxes, axis=0)
        first, last = tracking.times[track.start], tracking.times[track.start + len(track) - 1]
        lines.append(
            f"{track.id}: {int(track.present.sum())} frames from {first:.1f} to {last:.1f} s, {x1 - x0:.0f} px wide "
            f"around ({(x0 + x1) / 2:.0f}, {(y0 + y1) / 2:.0f})"
        )
    return f"Faces found: {'; '.join(lines)}"


def segments(present: np.ndarray, shots: Sequence[int], start: int = 0) -> list[slice]:
    """Longest runs of frames that have a face and lie in one shot.

    Args:
        present: (n,) bool.
        shots: first frames of the shots.
        start: frame that `present[0]` belongs to.

    Returns:
        Slices into `present`, in order.
    """
    bounds = np.flatnonzero(np.diff(np.concatenate([[0], present.astype(np.int8), [0]])))
    cuts = np.array(sorted(shots), np.int64) - start
    parts = []
    for first, end in bounds.reshape(-1, 2).tolist():
        inside = cuts[(cuts > first) & (cuts < end)].tolist()
        edges = [first, *inside, end]
        parts += [slice(a, b) for a, b in pairwise(edges)]
    return parts


def smooth(
    track: Track, shots: Sequence[int], *, fps: float = 25.0, seconds: float = 0.2, max_gap: float = 0.4
) -> np.ndarray:
    """Landmarks without jitter and without lag.

    A centred Savitzky-Golay filter: a parabola through each window, so that the short closures of the lips keep their
    depth. It runs inside each run of frames with a face in one shot, never across a cut or a gap. Gaps within a shot
    are then bridged by a straight line between the smoothed ends.

    Args:
        track: a face.
        shots: first frames of the shots (`Tracking.shots`).
        fps: frames per second of the track.
        seconds: length of the window; 0 leaves the landmarks as they are.
        max_gap: longest gap that is bridged, in seconds; longer ones stay NaN.

    Returns:
        (n,68,2) float32.
    """
    points = track.landmarks.astype(np.float64)
    window = 2 * round(seconds * fps / 2) + 1
    parts = segments(track.present, shots, track.start)
    for part in parts:
        length = min(window, (part.stop - part.start - 1) // 2 * 2 + 1)
        if length >= 3:
            points[part] = savgol_filter(points[part], length, min(2, length - 2), axis=0)
    cuts = set(shots)
    for before, after in pairwise(parts):
        gap = range(before.stop, after.start)
        if 0 < len(gap) <= max_gap * fps and not any(track.start + row in cuts for row in (*gap, after.start)):
            weight = (np.arange(1, len(gap) + 1) / (len(gap) + 1))[:, None, None]
            points[gap.start : gap.stop] = (1 - weight) * points[gap.start - 1] + weight * points[gap.stop]
    return points.astype(np.float32)


def face_pose(landmarks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where a face is, from `POSE_POINTS` alone.

    The least-squares similarity as in `align.similarity`, for many faces at once.

    Args:
        landmarks: (...,68,2); NaN gives NaN.

    Returns:
        Complex turn (...) and shift (...): a point z = x + iy of `MEAN_FACE` lies at turn * z + shift. The modulus of
        `turn` is the face's size (brow to mid-chin) in pixels, its argument the roll.
    """
    chosen = landmarks[..., POSE_POINTS, :].astype(np.float64)
    w = chosen[..., 0] + 1j * chosen[..., 1]
    turn = w @ _POSE_WEIGHTS
    return turn, w.mean(axis=-1) - turn * _POSE_MEAN


def crop_matrices(
    landmarks: np.ndarray,
    shots: Sequence[int],
    size: int,
    *,
    framing: Framing = "head",
    start: int = 0,
    fps: float = 25.0,
    seconds: float | None = None,
) -> np.ndarray:
    """Steady upright crops that follow the head and nothing else.

    Position and scale come from `POSE_POINTS`, smoothed by a centred Gaussian inside each run of frames with a face in
    one shot. "face" is the tight box of detectors such as S3FD, taller than wide and stretched to the square as
    Wav2Lip does; its lower edge is the resting chin's, one number for the whole array. "head" is a wider square.

    Args:
        landmarks: (n,68,2); NaN where there is no face.
        shots: first frames of the shots, counted like `start`.
        size: side of the square crop in pixels.
        framing: see above.
        start: frame that `landmarks[0]` belongs to (`Track.start`).
        fps: frames per second.
        seconds: twice the Gaussian's standard deviation; None is 0.4 for "head" and 0.2 for "face".

    Returns:
        (n,2,3) float64, maps from frame to crop as `align.warp` takes them; NaN where there is no face.
    """
    if landmarks.ndim != 3 or landmarks.shape[1:] != (68, 2):
        raise UserError(f"crops need landmarks of the shape (frames,68,2), not {landmarks.shape}")
    if framing not in _STEADY_SECONDS or size < 1:
        raise UserError(f"a crop is framed head or face and has 1 px or more, not {framing!r} and {size}")
    turn, shift = face_pose(landmarks)
    present = np.isfinite(turn)
    width, height, middle = _frame(landmarks[present], turn[present], shift[present], framing)
    path = np.stack([np.log(np.abs(turn)), *_parts(turn * complex(_BETWEEN_EYES, middle) + shift)], axis=1)
    sigma = (_STEADY_SECONDS[framing] if seconds is None else seconds) * fps / 2
    for part in segments(present, shots, start):
        path[part] = _gaussian(path[part], sigma)
    scale_x, scale_y = (size / (side * np.exp(path[:, 0])) for side in (width, height))
    matrices = np.zeros((len(landmarks), 2, 3))
    matrices[:, 0, 0], matrices[:, 1, 1] = scale_x, scale_y
    matrices[:, 0, 2] = size / 2 - scale_x * path[:, 1]
    matrices[:, 1, 2] = size / 2 - scale_y * path[:, 2]
    matrices[~present] = np.nan
    return matrices


def _frame(landmarks: np.ndarray, turn: np.ndarray, shift: np.ndarray, framing: Framing) -> tuple[float, float, float]:
    """Width, height and vertical middle of the crop in units of `MEAN_FACE`."""
    if framing == "head" or len(landmarks) == 0:
        return _HEAD_SIDE, _HEAD_SIDE, _HEAD_MIDDLE
    chins = ((landmarks[:, 8, 0] + 1j * landmarks[:, 8, 1] - shift) / turn).imag
    bottom = float(np.clip(np.percentile(chins, _RESTING), *_CHIN_RANGE)) + _FACE_BELOW_CHIN
    return _FACE_WIDTH, bottom - _FACE_TOP, (bottom + _FACE_TOP) / 2


def _parts(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return values.real, values.imag


def _gaussian(path: np.ndarray, sigma: float) -> np.ndarray:
    """Smooth (n,k) along n. The ends are mirrored through their end point, so that a steady pan is left alone."""
    if sigma <= 0 or len(path) < 2:
        return path
    reach = int(np.ceil(4 * sigma))
    padded = np.pad(path, ((reach, reach), (0, 0)), mode="reflect", reflect_type="odd")
    smoothed: np.ndarray = gaussian_filter1d(padded, sigma, axis=0, mode="nearest")[reach:-reach]
    return smoothed


def crop_frames(
    images: Iterable[np.ndarray], matrices: np.ndarray, size: int, *, border: Border = "replicate"
) -> Iterator[np.ndarray]:
    """Cut crops out of frames, one at a time.

    Args:
        images: n uint8 frames (H,W,3); may stream.
        matrices: (n,2,3) of `crop_matrices`.
        size: side of the square crop in pixels.
        border: what lies outside the frame; see `align.warp`.

    Yields:
        uint8 (size,size,3).

    Raises:
        UserError: a frame without a face, whose matrix is NaN; cut `segments` out first.
        ValueError: not one matrix per frame.
    """
    for index, (image, matrix) in enumerate(zip(images, matrices, strict=True)):
        if not np.isfinite(matrix).all():
            raise UserError(f"frame {index} of the crops has no face; take runs of frames that have one")
        rgb = as_rgb(image)
        rows, columns = needed_part(matrix, size, (rgb.shape[0], rgb.shape[1]), border)
        moved = matrix.copy()
        moved[:, 2] += matrix[:, :2] @ (columns.start, rows.start)
        yield to_uint8(warp(to_tensor(rgb[rows, columns]), moved[None], (size, size), border=border))
