"""How SyncNet's crops are made of a video file: the three published protocols, in memory.

`lrs`       the whole frame (Wav2Lip's calculate_scores_LRS.py): for clips that are face crops already.
`real`      syncnet_python's run_pipeline.py: tracks of more than 100 frames, cropped; one score a track.
`latentsync` LatentSync's evaluation: tracks of more than 50 frames; the mean over the tracks of a video is its score.

They are different scales: a number without its protocol means nothing. Pictures are resampled to 25 fps by timestamps
and the sound to 16 kHz; the scripts' round trips through files (JPEG for `lrs`; JPEG and XVID for `real`, JPEG and
MPEG-4 with AAC for `latentsync`) are left out. Tracks come from this software's own tracking, not from S3FD in every
frame, so that the detector belongs to the label of `real` and `latentsync` as well. A track's length counts the frames
from its first to its last, which the tracking follows between detections.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.signal import medfilt
from torch import Tensor

from common.audio.io import load_audio
from common.errors import UserError
from common.faces.base import FaceBackend
from common.faces.track import track_video
from common.faces.tracks import Tracking, segments
from common.metrics.lse import SyncScore, score_streams
from common.syncnet import FPS, SAMPLES_PER_FRAME, LipStream, SyncNet, embed_frames
from common.video import read_frames, read_wave

_MIN_TRACK = {"real": 100, "latentsync": 50}
PROTOCOLS = ("lrs", *_MIN_TRACK)
"""Names of the protocols."""
MIN_FACE = 100.0
"""px: mean width or height that a track's boxes must exceed."""
MAX_GAP = 25
"""Frames without a face that a track bridges."""
_CROP_SCALE, _MEDIAN, _GREY = 0.4, 13, 110


@dataclass(frozen=True)
class Shot:
    """One face over consecutive frames: the part of a video that is scored as one."""

    start: int
    """First frame."""
    places: np.ndarray
    """(n,3) float64: centre x, y and half of the longer side of the box in px, median-filtered."""

    def __len__(self) -> int:
        return len(self.places)


def face_shots(tracking: Tracking, protocol: str) -> list[Shot]:
    """The tracks of a video that `real` or `latentsync` score, in order of appearance.

    Gaps of up to 25 frames within a shot are filled linearly; longer ones and cuts divide a track.
    """
    shots = []
    for track in tracking.tracks:
        for part in _bridged(segments(track.present, tracking.shots, track.start), track.start, tracking.shots):
            boxes = track.boxes[part].astype(np.float64)
            boxes = np.stack([_filled(column) for column in boxes.T], axis=1)
            sides = boxes[:, 2:] - boxes[:, :2]
            if len(boxes) > _MIN_TRACK[protocol] and sides.mean(axis=0).max() > MIN_FACE:
                shots.append(Shot(track.start + part.start, face_places(boxes)))
    return sorted(shots, key=lambda shot: shot.start)


def face_places(boxes: np.ndarray) -> np.ndarray:
    """Boxes (n,4) x0, y0, x1, y1 -> centre x, y and half-size (n,3), each median-filtered over 13 frames.

    The filter sees zeros behind the ends, as in run_pipeline.py.
    """
    half = (boxes[:, 2:] - boxes[:, :2]).max(axis=1) / 2
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    return np.stack([medfilt(values, _MEDIAN) for values in (*centre.T, half)], axis=1)


def crop_face(image: np.ndarray, place: np.ndarray) -> np.ndarray:
    """The crop (h,w,3) of a frame around (x, y, s): 1.4 s to each side, s above and 1.8 s below the centre.

    Pixels outside the frame are grey (110). Its corners are rounded as run_pipeline.py rounds them.
    """
    x, y, half = place.tolist()
    border = int(half * (1 + 2 * _CROP_SCALE))
    top, bottom = int(y + border - half) - border, int(y + border + half * (1 + 2 * _CROP_SCALE)) - border
    left = int(x + border - half * (1 + _CROP_SCALE)) - border
    right = int(x + border + half * (1 + _CROP_SCALE)) - border
    crop = np.full((max(1, bottom - top), max(1, right - left), 3), _GREY, dtype=np.uint8)
    height, width = image.shape[:2]
    rows, columns = slice(max(top, 0), min(bottom, height)), slice(max(left, 0), min(right, width))
    part = image[rows, columns]
    if part.size:
        crop[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left] = part
    return crop


def lip_stream(net: SyncNet, video: Path) -> Tensor:
    """Lip embeddings (T-4,D) of whole frames at 25 fps, for `lrs`."""
    return embed_frames(net, (frame.image for frame in read_frames(video, fps=FPS)))


def sound_of(video: Path, audio: Path | None) -> Tensor:
    """16 kHz sound on the clock of the pictures: the video's own, or a file that begins with its first picture."""
    return read_wave(video) if audio is None else load_audio(audio)


def score_video(
    net: SyncNet, video: Path, protocol: str, *, audio: Path | None = None, backend: FaceBackend | None = None
) -> list[SyncScore]:
    """Scores of one video: a single one under `lrs`, else one for each track.

    Args:
        net: the network, in eval mode.
        video: any video file.
        protocol: one of `PROTOCOLS`.
        audio: sound in a file of its own.
        backend: finds the faces; `lrs` needs none.

    Raises:
        UserError: unreadable or too short, no sound, or no track that is long and large enough.
        ValueError: unknown protocol, or no backend for one that crops.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"unknown protocol {protocol!r}: use one of {', '.join(PROTOCOLS)}")
    wave = sound_of(video, audio)
    if protocol == "lrs":
        return [score_streams(net, lip_stream(net, video), wave)]
    if backend is None:
        raise ValueError(f"the protocol {protocol} crops faces and needs a backend that finds them")
    shots = face_shots(track_video(video, backend, fps=FPS, progress=False), protocol)
    if not shots:
        raise UserError(
            f"no face over more than {_MIN_TRACK[protocol]} frames and {MIN_FACE:g} px, so the protocol {protocol} "
            "gives it no score; use lrs for short clips that are face crops"
        )
    scores = []
    for shot, lips in zip(shots, _embed_shots(net, video, shots), strict=True):
        first, last = (frame * SAMPLES_PER_FRAME for frame in (shot.start, shot.start + len(shot)))
        scores.append(score_streams(net, lips, wave[first:last]))
    return scores


def _embed_shots(net: SyncNet, video: Path, shots: list[Shot]) -> Iterator[Tensor]:
    """Lips of all shots in one pass over the video."""
    streams = [LipStream(net) for _ in shots]
    for index, frame in enumerate(read_frames(video, fps=FPS)):
        for shot, stream in zip(shots, streams, strict=True):
            if shot.start <= index < shot.start + len(shot):
                stream.push(crop_face(frame.image, shot.places[index - shot.start]))
    return (stream.finish() for stream in streams)


def _bridged(parts: list[slice], start: int, cuts: tuple[int, ...]) -> list[slice]:
    """Join runs with at most `MAX_GAP` frames and no cut between them."""
    joined: list[slice] = []
    for part in parts:
        gap = range(joined[-1].stop, part.start) if joined else range(0)
        divided = any(start + gap.start <= cut <= start + part.start for cut in cuts)
        if joined and len(gap) <= MAX_GAP and not divided:
            joined[-1] = slice(joined[-1].start, part.stop)
        else:
            joined.append(part)
    return joined


def _filled(values: np.ndarray) -> np.ndarray:
    known = np.flatnonzero(np.isfinite(values))
    return np.interp(np.arange(len(values)), known, values[known])
