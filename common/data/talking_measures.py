"""What can be measured about a talking clip, in plain numbers: length, sound, face. Shared by `prepare` and `doctor`.

Everything is a pure function; a value that was not measured is None, never a guess.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import torchaudio
from PIL import Image
from torch import Tensor

from common.data.corpus import SAMPLE_RATE
from common.data.ingest import sharpness_of
from common.faces.align import align_face

FPS = 25
SAMPLES_PER_FRAME = SAMPLE_RATE // FPS
_CLIPPED, _LOUD = 0.999, 0.1
_LEAST_LOUDNESS = -70.0  # the gate of BS.1770; what lies below is as good as silent
_FACE_SIDE = 128
_EYE_CORNERS = (36, 45)
_OPENINGS = ((61, 67), (62, 66), (63, 65))


@dataclass(frozen=True)
class Measures:
    """What is known about a clip; None for what was not measured."""

    seconds: float | None = None
    """Length of the pictures."""
    fps: float | None = None
    """Pictures per second of the file."""
    frames: int | None = None
    """Pictures."""
    audio_seconds: float | None = None
    """Length of the sound."""
    av_difference: float | None = None
    """Seconds by which the sound is longer than the pictures; negative where it is shorter."""
    silence: float | None = None
    """Share of the time in which nobody speaks, 0 to 1."""
    loudness: float | None = None
    """LUFS (ITU-R BS.1770); -70 for silence. Broadcast speech has about -23."""
    clipped: float | None = None
    """Share of the samples at the wave's own peak, where that is over 0.1; clean speech has under 0.001."""
    faces: int | None = None
    """Most faces seen at once."""
    face_pixels: float | None = None
    """Median side of the face box in pixels of the source (square root of its area)."""
    centre_offset: float | None = None
    """Median distance of the face box's centre from the picture's, over the picture's shorter side."""
    missing: float | None = None
    """Share of the pictures in which the face was not found."""
    sharpness: float | None = None
    """Median `sharpness_of` the aligned face; under 0.05 is blurred."""
    lips: float | None = None
    """Standard deviation of the lip opening over the distance of the eyes' outer corners."""
    n_chars: int | None = None
    """Letters and characters of the text, where it is known."""
    sync_offset: float | None = None
    """Video frames by which the audio must be moved to be in sync."""
    sync_confidence: float | None = None
    """SyncNet's confidence of it."""

    def columns(self) -> dict[str, Any]:
        """The values by name, numbers rounded to 6 digits so that they store the same everywhere."""
        return {
            name: float(f"{value:.6g}") if isinstance(value, float) else value for name, value in asdict(self).items()
        }


NAMES = tuple(field.name for field in fields(Measures))
"""The columns, in the order in which people read them."""


def sound_measures(wave: Tensor, speech: Sequence[tuple[int, int]]) -> dict[str, float]:
    """Silence, loudness and clipping of a 16 kHz wave (n,), n > 0, with (start, end) samples of its speech."""
    spoken = sum(end - start for start, end in speech)
    return {
        "audio_seconds": wave.shape[0] / SAMPLE_RATE,
        "silence": 1 - min(1.0, spoken / wave.shape[0]),
        "loudness": loudness_of(wave),
        "clipped": clipped_share(wave),
    }


def loudness_of(wave: Tensor) -> float:
    """Integrated loudness in LUFS (ITU-R BS.1770-4) of a 16 kHz wave (n,); -70 for silence.

    Waves shorter than its block of 0.4 s are repeated to one.
    """
    block = round(0.4 * SAMPLE_RATE)
    if wave.shape[0] < block:
        wave = wave.repeat(math.ceil(block / max(1, wave.shape[0])))
    value = float(torchaudio.functional.loudness(wave[None].float(), SAMPLE_RATE))
    return max(value, _LEAST_LOUDNESS) if math.isfinite(value) else _LEAST_LOUDNESS


def clipped_share(wave: Tensor) -> float:
    """Share of samples within 0.1 % of the wave's peak, 0 where the peak is under 0.1."""
    peak = float(wave.abs().max())
    return float((wave.abs() >= _CLIPPED * peak).float().mean()) if peak > _LOUD else 0.0


def speech_within(speech: Sequence[tuple[int, int]], start: int, end: int) -> list[tuple[int, int]]:
    """The parts of (start, end) stretches that lie in [start, end), counted from `start`."""
    inside = [(max(a, start) - start, min(b, end) - start) for a, b in speech]
    return [(a, b) for a, b in inside if b > a]


def face_measures(boxes: np.ndarray, landmarks: np.ndarray, size: tuple[int, int]) -> dict[str, float]:
    """Size, centring, presence and lip movement of one face.

    Args:
        boxes: (n,4) x0 y0 x1 y1 in pixels, NaN where it was not found.
        landmarks: (n,68,2), NaN where it was not found.
        size: (width, height) of the pictures.
    """
    found = np.isfinite(landmarks).all(axis=(1, 2))
    measured = {"missing": 1 - float(found.mean())}
    if found.any():
        box = boxes[found].astype(np.float64)
        sides = (box[:, 2:] - box[:, :2]).clip(0)
        away = (box[:, :2] + box[:, 2:]) / 2 - np.array(size) / 2
        measured["face_pixels"] = float(np.median(np.sqrt(sides.prod(axis=1))))
        measured["centre_offset"] = float(np.median(np.linalg.norm(away, axis=1))) / min(size)
        measured["lips"] = lip_movement(landmarks)
    return measured


def lip_movement(landmarks: np.ndarray) -> float:
    """Standard deviation over time of the inner lips' distance over that of the eyes' outer corners.

    `landmarks` is (n,68,2), NaN where lost. Speech has 0.03 and more, a still mouth under 0.01.
    """
    points = landmarks[np.isfinite(landmarks).all(axis=(1, 2))].astype(np.float64)
    if len(points) < 2:
        return 0.0
    right, left = (points[:, index] for index in _EYE_CORNERS)
    width = np.median(np.linalg.norm(left - right, axis=1))
    gaps = [np.linalg.norm(points[:, upper] - points[:, lower], axis=1) for upper, lower in _OPENINGS]
    return float(np.mean(gaps, axis=0).std() / max(float(width), 1e-9))


def sharpness_measure(images: Iterable[np.ndarray], landmarks: Iterable[np.ndarray]) -> float | None:
    """Median sharpness of the aligned faces of uint8 pictures (H,W,3) with landmarks (68,2); None without a face."""
    values = []
    for image, points in zip(images, landmarks, strict=True):
        if np.isfinite(points).all():
            face = Image.fromarray(align_face(image, points, _FACE_SIDE)).convert("L")
            values.append(sharpness_of(np.asarray(face)))
    return float(np.median(values)) if values else None


def count_chars(text: str) -> int:
    """Letters, digits and Chinese characters; spaces and punctuation do not count."""
    return sum(character.isalnum() for character in text)


def spread(count: int, most: int) -> list[int]:
    """At most `most` indices below `count`, evenly over it, each in the middle of its stretch."""
    number = min(count, most)
    return [(2 * index + 1) * count // (2 * number) for index in range(number)]


def batched(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Lists of `size` items, the last with what is left."""
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch
