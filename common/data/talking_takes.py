"""From the faces of a video to takes: stretches that show one face without a break, with their crops.

A take lies in one shot. Takes are cut to length in the pauses of the speech; tubes are cut as the VoxCeleb set of the
First Order Motion Model is (Siarohin et al. 2019, video-preprocessing).
"""

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from common.data.talking_measures import FPS, lip_movement
from common.faces.patch import Box, overlap
from common.faces.tracks import Track, Tracking, crop_matrices, segments, smooth

Speaker = Literal["talking", "largest"]
_RIVAL = 0.25
_GLIMPSE = 5
_SLACK = 1.25  # room for cuts to move into pauses without making more pieces than are wanted


@dataclass(frozen=True, eq=False)
class Take:
    """One face over consecutive frames at 25 fps."""

    start: int
    """Frame of the video."""
    boxes: np.ndarray
    """(n,4) x0 y0 x1 y1, NaN where the face was bridged, not found."""
    landmarks: np.ndarray
    """(n,68,2) smoothed pixels of the video, without gaps."""
    found: np.ndarray
    """(n,) bool: the face was found in this frame."""
    shots: tuple[int, ...]
    """First frames of the video's shots."""
    person: int = 0
    """Number of the face in the video, the same through cuts where faces are recognised."""
    faces: int = 1
    """Most faces in a frame."""
    box: Box | None = None
    """The fixed crop of a tube; None lets the crop follow the head."""

    def __len__(self) -> int:
        return len(self.landmarks)

    def part(self, start: int, end: int) -> "Take":
        """Frames `start` to `end`, counted in the take."""
        boxes, landmarks, found = (array[start:end] for array in (self.boxes, self.landmarks, self.found))
        return replace(self, start=self.start + start, boxes=boxes, landmarks=landmarks, found=found)

    def matrices(self, size: int, framing: Literal["head", "face"]) -> np.ndarray:
        """(n,2,3) maps from the video's pixels to the crop's."""
        if self.box is None:
            return crop_matrices(self.landmarks, self.shots, size, framing=framing, start=self.start, fps=FPS)
        left, top, right, bottom = self.box
        x, y = size / (right - left), size / (bottom - top)
        matrix = np.array([[x, 0, -x * left], [0, y, -y * top]])
        return np.repeat(matrix[None], len(self), axis=0)


def takes_of(tracking: Tracking, speaker: Speaker = "talking") -> list[Take]:
    """The takes of one face a shot.

    Args:
        tracking: of a video at 25 fps.
        speaker: which face of a shot: the largest (by screen area), or the one whose lips move most among those of at
            least a quarter of its area.

    Returns:
        Takes in the order of time; gaps of up to 0.4 s inside a shot are bridged.
    """
    ends = [*tracking.shots[1:], tracking.frames]
    smoothed: dict[int, np.ndarray] = {}
    takes = []
    for first, end in zip(tracking.shots, ends, strict=True):
        seen = [(track, rows) for track in tracking.tracks if (rows := _rows(track, first, end))]
        if not seen:
            continue
        track, rows = _speaking(seen, speaker)
        if track.id not in smoothed:
            smoothed[track.id] = smooth(track, tracking.shots, fps=FPS)
        points = smoothed[track.id]
        here = np.zeros(len(track), bool)
        here[rows] = np.isfinite(points[rows]).all(axis=(1, 2))
        for part in segments(here, tracking.shots, track.start):
            start = track.start + part.start
            faces = _most_faces([other for other, _ in seen], start, part.stop - part.start)
            boxes, found = track.boxes[part], track.present[part]
            takes.append(Take(start, boxes, points[part], found, tracking.shots, track.id, faces))
    return takes


def main_person(takes: Sequence[Take]) -> int:
    """The face that most frames show."""
    frames: Counter[int] = Counter()
    for take in takes:
        frames[take.person] += len(take)
    return max(frames, key=lambda person: (frames[person], -person), default=0)


def _rows(track: Track, first: int, end: int) -> slice | None:
    """The rows of a track in the frames [first, end), None where it is not present there."""
    rows = slice(max(0, first - track.start), max(0, end - track.start))
    return rows if track.present[rows].any() else None


def _speaking(seen: Sequence[tuple[Track, slice]], speaker: Speaker) -> tuple[Track, slice]:
    if len(seen) == 1:
        return seen[0]
    areas = []
    for track, rows in seen:
        sides = track.boxes[rows, 2:] - track.boxes[rows, :2]
        areas.append(float(np.nansum(sides.prod(axis=1))))
    if speaker == "largest":
        return seen[int(np.argmax(areas))]
    moves = [lip_movement(track.landmarks[rows]) for track, rows in seen]
    rival = np.array(areas) >= _RIVAL * max(areas)
    return seen[int(np.argmax(np.where(rival, moves, -1.0)))]


def _most_faces(tracks: Sequence[Track], start: int, count: int) -> int:
    """Most faces at once in `count` frames from `start` on; what is seen for less than 0.2 s in all does not count."""
    total = np.zeros(count, int)
    for track in tracks:
        present = np.zeros(count, bool)
        rows = np.arange(len(track)) + track.start - start
        inside = (rows >= 0) & (rows < count)
        present[rows[inside]] = track.present[inside]
        total += present if present.sum() >= min(_GLIMPSE, count) else 0
    return max(1, int(total.max()))


def cut_lengths(
    frames: int, longest: int, pauses: Sequence[int], *, shortest: int = 1, pieces: int = 1
) -> list[tuple[int, int]]:
    """Cut a stretch into pieces of at most `longest` frames.

    Each cut lies in the last pause of the second half of its piece; without one the rest is cut evenly. All pieces
    have at least `shortest` frames where `longest` is twice as long or more.

    Args:
        frames: length of the stretch.
        longest: at least `shortest`.
        pauses: frames in the middle of pauses, growing.
        shortest: at least 1.
        pieces: to be cut at least, as far as `shortest` allows it.

    Returns:
        (start, end) frames, end excluded, in order and without holes.
    """
    count = min(pieces, frames // shortest)
    wanted = min(longest, math.ceil(_SLACK * frames / count)) if count > 1 else longest
    result, start = [], 0
    while (rest := frames - start) > wanted:
        if rest < 2 * shortest and rest <= longest:
            break
        low, high = start + max(shortest, wanted // 2), min(start + wanted, frames - shortest)
        within = [pause for pause in pauses if low <= pause <= high]
        even = start + max(shortest, -(-rest // -(-rest // wanted)))
        end = start + longest if rest < 2 * shortest else within[-1] if within else even
        result.append((start, end))
        start = end
    return [*result, (start, frames)]


def pauses_between(speech: Sequence[tuple[int, int]], samples_per_frame: int) -> list[int]:
    """Frames in the middle of the pauses between stretches of speech, given in samples."""
    return [(before[1] + after[0]) // (2 * samples_per_frame) for before, after in itertools.pairwise(speech)]


@dataclass(frozen=True)
class TubeRules:
    """How VoxCeleb videos become clips with a fixed crop, by default as published."""

    least_overlap: float = 0.25
    """Intersection over union with the first box; below it a new tube begins."""
    most_frames: int = 1024
    least_frames: int = 64
    least_side: float = 256.0
    """Pixels of the longer side of the union of the boxes; files that were reduced before have less."""
    increase: float = 0.1
    """Room on each side of the union, as a fraction of it."""


def tubes(take: Take, rules: TubeRules, size: tuple[int, int]) -> Iterator[tuple[Take, str | None]]:
    """Cut a take into tubes; each with why it is dropped, or None.

    The crop is the square around the union of the boxes, enlarged by `increase`; a tube whose crop leaves the picture
    is dropped. Frames in which the face was bridged belong to the tube around them.

    Args:
        take: a face; boxes as the face backend gives them (published: S3FD's).
        rules: see there.
        size: (width, height) of the video.
    """
    start, edges = 0, []
    first: Box | None = None
    for frame in range(len(take)):
        left, top, right, bottom = take.boxes[frame].tolist()
        box = (left, top, right, bottom) if take.found[frame] else None
        full = frame - start >= rules.most_frames
        if full or (first is not None and box is not None and overlap(first, box) < rules.least_overlap):
            edges.append((start, frame))
            start, first = frame, None
        first = first or box
    for begin, end in [*edges, (start, len(take))]:
        yield _tube(take.part(begin, end), rules, size)


def _tube(part: Take, rules: TubeRules, size: tuple[int, int]) -> tuple[Take, str | None]:
    if len(part) < rules.least_frames:
        return part, f"the tube has {len(part)} frames, at least {rules.least_frames} are needed"
    boxes = part.boxes[part.found].astype(np.float64)
    if not len(boxes):
        return part, "the tube holds no detected face"
    (left, top), (right, bottom) = boxes[:, :2].min(axis=0).tolist(), boxes[:, 2:].max(axis=0).tolist()
    side = max(right - left, bottom - top)
    if side < rules.least_side:
        return part, f"the face moves within {side:.0f} px, at least {rules.least_side:g} px are needed"
    half = side * (0.5 + rules.increase)
    x, y = (left + right) / 2, (top + bottom) / 2
    box = (x - half, y - half, x + half, y + half)
    if min(box[:2]) < 0 or box[2] > size[0] or box[3] > size[1]:
        return part, "the crop around the face leaves the picture"
    return replace(part, box=box), None
