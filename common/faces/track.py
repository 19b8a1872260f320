"""Faces through a video in one streaming pass: detect now and then, follow between, remember who was there.

A detector reads whole pictures and is slow; a landmark regressor reads one face and is quick. So the detector runs on
reduced pictures every few frames, and between its runs each face's box is carried along by the landmarks of the frame
before. A followed face is compared with its look at the last detection; where it no longer looks alike, the detector
is asked about that place, and the face is lost if the detector finds none. Only landmarks and a few recent frames are
kept.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from common.errors import UserError
from common.faces.align import align_face
from common.faces.base import FaceBackend
from common.faces.followed import FollowedFace, Sight, as_track, likeness, look_at
from common.faces.identity import IdentityEmbedder, load_embedder
from common.faces.images import as_rgb
from common.faces.patch import Box, area, overlap, visible_share
from common.faces.shots import ShotDetector
from common.faces.tracks import Track, Tracking
from common.progress import counted
from common.video import probe_video, read_frames

_CHIP, _CHIP_MARGIN, _CHIPS = 150, 0.25, 3
"""Pictures by which a face is recognised: their side, their margin (dlib's own), and how many a face keeps."""
_SAME_PLACE = 0.4
"""Overlap (intersection over union) above which two boxes are one face."""
_TWINS = 0.5
"""Overlap above which two followed faces have become one."""
_DRIFTED = 0.8
"""Overlap of the box that landmarks were regressed in with the box that they imply; below, they are regressed anew."""
_VISIBLE = 0.5
"""A face with less of its box in the picture has left it."""
_NEARBY_BONUS = 0.04
"""How much less alike a face may be that comes back soon and where it was."""
_NEARBY_SIDE = 200
"""Longer side of the part of a picture in which one face is looked for again; the face takes half of it."""
_SHORTEST = 3
"""Frames of a track; shorter ones are clutter unless their shot is no longer."""


@dataclass(frozen=True)
class TrackSettings:
    """How much work is spent on a video."""

    every: int = 12
    """Frames from one run of the detector to the next; 1 detects in every frame."""
    side: int = 480
    """Longer side in pixels to which pictures are reduced for the detector; dlib needs faces of 80 px in them."""
    thorough: int = 5
    """Every so many runs, and at the first frame of a shot, the backend's own limit is used in place of `side`."""
    alike: float = 0.7
    """Correlation in [-1,1] with the look at the last detection below which a followed face is checked."""
    patience: float = 1.0
    """Seconds for which a face is followed without the detector's confirmation."""
    recognise: bool = True
    """Whether faces keep their number through cuts and long gaps, by an identity network."""
    same_person: float = 0.92
    """Cosine of two identity embeddings above which they are one person's."""

    def __post_init__(self) -> None:
        if min(self.every, self.thorough) < 1 or self.side < 80 or self.patience < 0:
            raise UserError(
                f"tracking needs every and thorough >= 1, side >= 80 and patience >= 0, not {self.every}, "
                f"{self.thorough}, {self.side} and {self.patience}"
            )


def track_video(
    path: Path,
    backend: FaceBackend,
    settings: TrackSettings | None = None,
    *,
    fps: float | None = None,
    progress: bool = True,
) -> Tracking:
    """Track all faces of a video file in one pass, in constant memory but for the landmarks.

    Args:
        path: any video.
        backend: finds faces and landmarks.
        settings: None is the default.
        fps: resample to this rate first (`read_frames`); None takes the frames as stored.
        progress: draw a bar, on a terminal only.

    Raises:
        UserError: the video cannot be read.
    """
    info = probe_video(path)
    rate = float(info.fps if fps is None else fps)
    frames: Iterable[tuple[float, np.ndarray]] = ((frame.time, frame.image) for frame in read_frames(path, fps=fps))
    if progress:
        frames = counted(frames, f"faces in {path.name}", info.frames if fps is None else round(info.seconds * fps))
    return track_frames(frames, backend, settings, fps=rate)


def track_frames(
    frames: Iterable[tuple[float, np.ndarray]],
    backend: FaceBackend,
    settings: TrackSettings | None = None,
    *,
    fps: float = 25.0,
) -> Tracking:
    """Track all faces of a stream of frames; see `track_video`.

    Args:
        frames: presentation time in seconds and uint8 (H,W,3) RGB, all of one size.
        backend, settings: see `track_video`.
        fps: nominal rate, for durations in seconds.

    Raises:
        UserError: unusable or differing frames.
    """
    tracker = _Tracker(backend, settings or TrackSettings(), fps)
    times: list[float] = []
    size: tuple[int, int] | None = None
    for time, image in frames:
        rgb = as_rgb(image)
        shape = (rgb.shape[1], rgb.shape[0])
        if size not in (None, shape):
            raise UserError(
                f"frame {len(times)} has {shape[0]}x{shape[1]} px, the first {size}; give frames of one size"
            )
        size = shape
        tracker.update(rgb)
        times.append(time)
    tracks = tracker.tracks()
    return Tracking(len(times), fps, np.array(times, np.float64), size or (0, 0), tracker.shots.starts, tracks)


class _Tracker:
    def __init__(self, backend: FaceBackend, settings: TrackSettings, fps: float) -> None:
        self.shots = ShotDetector()
        self._backend, self._settings, self._fps = backend, settings, fps
        self._faces: list[FollowedFace] = []
        self._live: list[FollowedFace] = []
        self._recent: deque[np.ndarray] = deque(maxlen=settings.every)
        self._frame = -1
        self._searches = self._last_search = 0
        self._embedder: IdentityEmbedder | None = None

    def update(self, image: np.ndarray) -> None:
        """Take the next frame, uint8 (H,W,3)."""
        self._frame += 1
        anew = self.shots.update(image)
        if anew:
            self._live, self._searches = [], 0
            self._recent.clear()
        self._live = [face for face in self._live if self._follow(face, image)]
        self._part_twins(image)
        if anew or self._frame - self._last_search >= self._settings.every:
            self._search(image)
        self._recent.append(image)

    def tracks(self) -> list[Track]:
        """All faces, without what was clutter, numbered by their first frame and size."""
        kept = [face for face in self._faces if self._is_real(face)]
        kept.sort(key=lambda face: (min(face.sights), -area(face.sights[min(face.sights)].box)))
        return [as_track(number, face) for number, face in enumerate(kept)]

    def _is_real(self, face: FollowedFace) -> bool:
        """A face seen by one of several runs of the detector, or in a frame or two of a longer shot, was none."""
        if not face.sights or (face.detections < 2 and face.searches > 1):
            return False
        edges = [*self.shots.starts, self._frame + 1]
        shot = np.searchsorted(edges, min(face.sights), side="right")
        return len(face.sights) >= min(_SHORTEST, edges[shot] - edges[shot - 1])

    def _follow(self, face: FollowedFace, image: np.ndarray) -> bool:
        """Carry a face into this frame; whether it is still there."""
        found = self._locate(face, face.points, image)
        if found is None:
            return False
        points, box = found
        if likeness(face.look, image, box) >= self._settings.alike:
            self._record(face, box, points, detected=False)
            return True
        hit = self._look_nearby(face, image, box)
        if hit is not None:
            self._confirm(face, image, points, *hit)
        return hit is not None

    def _locate(self, face: FollowedFace, points: np.ndarray, image: np.ndarray) -> tuple[np.ndarray, Box] | None:
        """Landmarks and box in a picture from the landmarks in a neighbouring one; None where the face has left."""
        box = face.box_at(points)
        if visible_share(box, image.shape) < _VISIBLE:
            return None
        points = self._backend.landmarks(image, box)
        settled = face.box_at(points)
        if overlap(box, settled) < _DRIFTED:
            points = self._backend.landmarks(image, settled)
            settled = face.box_at(points)
        return (points, settled) if visible_share(settled, image.shape) >= _VISIBLE else None

    def _look_nearby(self, face: FollowedFace, image: np.ndarray, box: Box) -> tuple[Box, float] | None:
        """Ask the detector about a face's box and its surroundings: the box and score that are this face's."""
        side = max(box[2] - box[0], box[3] - box[1])
        left, top = (int(max((low + high) / 2 - side, 0)) for low, high in ((box[0], box[2]), (box[1], box[3])))
        part = image[top : int(top + 2 * side) + 1, left : int(left + 2 * side) + 1]
        if min(part.shape[:2]) < 2:
            return None
        hits = [
            ((x0 + left, y0 + top, x1 + left, y1 + top), score)
            for (x0, y0, x1, y1), score in self._backend.boxes(part, _NEARBY_SIDE)
        ]
        others = [other.box_at(other.points) for other in self._live if other is not face]
        shares = [overlap(hit, box) for hit, _ in hits]
        best = int(np.argmax(shares)) if shares else -1
        if best < 0 or shares[best] < max([_SAME_PLACE, *(overlap(hits[best][0], other) for other in others)]):
            return None
        return hits[best]

    def _part_twins(self, image: np.ndarray) -> None:
        """Where two faces cross, both may end on the one in front; the one that looks like it keeps it."""
        for index, first in enumerate(list(self._live)):
            for second in self._live[index + 1 :]:
                boxes = [face.sights[self._frame].box for face in (first, second)]
                if first in self._live and overlap(*boxes) >= _TWINS:
                    alike = [likeness(f.look, image, b) for f, b in zip((first, second), boxes, strict=True)]
                    stray = second if alike[0] >= alike[1] else first
                    del stray.sights[self._frame]
                    self._live = [face for face in self._live if face is not stray]

    def _search(self, image: np.ndarray) -> None:
        """Run the detector on the whole picture: confirm the faces that are followed, welcome the others."""
        limit = None if self._searches % self._settings.thorough == 0 else self._settings.side
        self._searches += 1
        self._last_search = self._frame
        hits = self._backend.boxes(image, limit)
        assigned = _assign([face.sights[self._frame].box for face in self._live], [box for box, _ in hits])
        for face, number in zip(list(self._live), assigned, strict=True):
            face.searches += 1
            hit = self._look_nearby(face, image, face.sights[self._frame].box) if number is None else hits[number]
            if hit is not None:
                self._confirm(face, image, face.points, *hit)
            elif self._frame - face.confirmed > self._settings.patience * self._fps:
                self._lose(face)
        for number, (box, score) in enumerate(hits):
            taken = [face.sights[self._frame].box for face in self._live]
            if number not in assigned and all(overlap(box, other) < _SAME_PLACE for other in taken):
                self._welcome(image, box, score)

    def _lose(self, face: FollowedFace) -> None:
        """Stop following what was not confirmed for long, and forget what was followed since."""
        self._live = [other for other in self._live if other is not face]
        face.sights = {frame: sight for frame, sight in face.sights.items() if frame <= face.confirmed}

    def _welcome(self, image: np.ndarray, box: Box, score: float) -> None:
        """Start to follow a detected face, and look for it in the frames since the last run of the detector."""
        points = self._backend.landmarks(image, box)
        face = self._known(image, box, points)
        if face is None:
            face = FollowedFace()
            self._faces.append(face)
        face.searches += 1
        self._confirm(face, image, points, box, score, moved=True)
        self._live.append(face)
        for frame in range(self._frame - 1, self._frame - 1 - len(self._recent), -1):
            earlier = self._recent[frame - self._frame]
            found = None if frame in face.sights else self._locate(face, points, earlier)
            if found is None or likeness(face.look, earlier, found[1]) < self._settings.alike:
                break
            others = (other.sights[frame].box for other in self._faces if other is not face and frame in other.sights)
            if any(overlap(found[1], other) >= _SAME_PLACE for other in others):
                break
            points = found[0]
            face.sights[frame] = Sight(found[1], points, score, detected=False)

    def _confirm(
        self, face: FollowedFace, image: np.ndarray, points: np.ndarray, box: Box, score: float, *, moved: bool = False
    ) -> None:
        """Take a detection for a face's. Landmarks are regressed anew only where the detector puts it elsewhere."""
        if not moved and overlap(box, face.box_at(points)) < 1.5 * _SAME_PLACE:
            points, moved = self._backend.landmarks(image, box), True
        face.learn_box(box, points)
        face.detections += 1
        face.confirmed, face.score = self._frame, score
        settled = face.box_at(points)
        face.look = look_at(image, settled)
        if self._settings.recognise and face.identity is None and len(face.chips) < _CHIPS:
            face.chips.append(align_face(image, points, _CHIP, _CHIP_MARGIN))
        self._record(face, settled, points, detected=True)

    def _record(self, face: FollowedFace, box: Box, points: np.ndarray, *, detected: bool) -> None:
        face.points = points
        face.sights[self._frame] = Sight(box, points, face.score, detected)

    def _known(self, image: np.ndarray, box: Box, points: np.ndarray) -> FollowedFace | None:
        """The face of before that this one is, if any."""
        absent = [face for face in self._faces if face.sights and not any(face is other for other in self._live)]
        if not absent:
            return None
        nearby = [self._is_nearby(face, box) for face in absent]
        if not self._settings.recognise:
            return next((face for face, near in zip(absent, nearby, strict=True) if near), None)
        vector = self._embed([align_face(image, points, _CHIP, _CHIP_MARGIN)])
        alike = []
        for face, near in zip(absent, nearby, strict=True):
            if face.identity is None:
                face.identity, face.chips = self._embed(face.chips), []
            alike.append(float((vector * face.identity).sum()) + _NEARBY_BONUS * near)
        best = int(np.argmax(alike))
        return absent[best] if alike[best] >= self._settings.same_person else None

    def _is_nearby(self, face: FollowedFace, box: Box) -> bool:
        """Whether a face was last seen in this shot, at most a second or so ago, where the box is."""
        last = max(face.sights)
        recent = self._frame - last <= max(self._settings.patience * self._fps, self._settings.every)
        return recent and last >= self.shots.starts[-1] and overlap(face.sights[last].box, box) > 0

    def _embed(self, chips: list[np.ndarray]) -> torch.Tensor:
        """Mean unit vector (1,D) of chips."""
        if self._embedder is None:
            self._embedder = load_embedder("dlib", margin=_CHIP_MARGIN)
        return F.normalize(self._embedder.embed(chips).mean(dim=0, keepdim=True), dim=1)


def _assign(boxes: list[Box], hits: list[Box]) -> list[int | None]:
    """For each followed box the detection that is its own: pairs that overlap most first, each used once."""
    shares = {(i, j): overlap(box, hit) for i, box in enumerate(boxes) for j, hit in enumerate(hits)}
    assigned: list[int | None] = [None] * len(boxes)
    for (i, j), share in sorted(shares.items(), key=lambda item: -item[1]):
        if share >= _SAME_PLACE and assigned[i] is None and j not in assigned:
            assigned[i] = j
    return assigned
