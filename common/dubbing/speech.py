"""Speech for dubbing, streamed: how long it is, when somebody speaks, and its samples.

A recording is read twice, first for its length and its silences, then in step with the pictures. Neither pass holds
more than a minute of it.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common.audio.io import stream_audio
from common.audio.vad import speech_segments
from common.errors import UserError
from common.video import probe_video
from common.video.reader import has_pictures, open_media

LOG = logging.getLogger(__name__)

RATE = 16000
"""Samples a second."""
_BLOCK = 30 * RATE
_AROUND = RATE
"""Samples before and behind a block that the voice activity detector hears as well."""
_RAMP = 0.1
"""Seconds over which the mouth opens before speech and closes behind it."""
_SHORTEST_JUDGED = 0.5
"""Seconds; in less sound than this nobody can be said to be silent."""

Detector = Callable[[Tensor], list[tuple[int, int]]]


@dataclass(frozen=True)
class Speech:
    """A recording on the clock of its own pictures, if it has any.

    `spoken` holds the stretches of speech (n,2) in seconds, in order and apart.
    """

    path: Path
    seconds: float
    spoken: np.ndarray

    def activity(self, times: np.ndarray) -> np.ndarray:
        """How much of speech there is at times (n,): 1 within a stretch, falling to 0 over 0.1 s around it."""
        if len(self.spoken) == 0:
            return np.zeros(len(times))
        after = np.searchsorted(self.spoken[:, 0], times, side="right")
        edges = np.concatenate([[[-np.inf, -np.inf]], self.spoken, [[np.inf, np.inf]]])
        distance = np.minimum(np.maximum(times - edges[after, 1], 0), edges[after + 1, 0] - times)
        return np.asarray(np.clip(1 - distance / _RAMP, 0, 1))


def listen(path: Path, detect: Detector = speech_segments) -> Speech:
    """Go through a recording once.

    Args:
        path: an audio file, or a video whose first audio track is meant.
        detect: (start, end) of stretches of speech in samples of a 16 kHz wave (n,).

    Raises:
        UserError: the file is missing, unreadable, without an audio track, or nothing in it can be decoded.
    """
    damage: list[str] = []
    spoken: list[tuple[int, int]] = []
    held, start, total = np.zeros(0, np.float32), 0, 0
    for block, last in pieces(samples(path, damage), _BLOCK):
        # A block is judged when the next one's beginning is known; the last one with it.
        held = np.concatenate([held, block])
        total += block.size
        end = total if last else total - _AROUND
        if end > start:
            spoken += _judge(held, total - held.size, start, end, detect)
            start, held = end, held[max(0, end - _AROUND - (total - held.size)) :]
    if total == 0:
        raise UserError(f"no sound can be decoded from {path}: the audio track is empty or damaged")
    if damage:
        LOG.warning("%s is damaged (%s): what could be decoded was used", path, damage[0])
    seconds = total / RATE
    if seconds < _SHORTEST_JUDGED:
        spoken = [(0, total)]
    return Speech(path, seconds, _joined(spoken))


def _judge(held: np.ndarray, first: int, start: int, end: int, detect: Detector) -> list[tuple[int, int]]:
    """Speech between the samples `start` and `end`; `held` begins with sample `first` and may reach further."""
    found = [(first + a, first + b) for a, b in detect(torch.from_numpy(held))]
    return [(max(a, start), min(b, end)) for a, b in found if b > start and a < end]


def _joined(spoken: list[tuple[int, int]]) -> np.ndarray:
    """Stretches (n,2) in seconds; those that touch, at the border of two blocks, are one."""
    joined: list[list[int]] = []
    for a, b in spoken:
        if joined and a <= joined[-1][1]:
            joined[-1][1] = b
        else:
            joined.append([a, b])
    return np.array(joined, np.float64).reshape(-1, 2) / RATE


def samples(path: Path, damage: list[str]) -> Iterator[np.ndarray]:
    """Mono float32 chunks at 16 kHz; the first picture of a video is time 0, as it is for `VideoWriter`."""
    with open_media(path) as container:
        pictures = has_pictures(container)
    delay = round(probe_video(path).audio_start * RATE) if pictures else 0
    if delay > 0:
        yield np.zeros(delay, np.float32)
    skip = max(-delay, 0)
    for chunk in stream_audio(path, RATE, damage):
        yield chunk[skip:]
        skip = max(0, skip - chunk.size)


def pieces(chunks: Iterator[np.ndarray], size: int) -> Iterator[tuple[np.ndarray, bool]]:
    """The same samples in pieces of `size`, the last one shorter, each with whether it is the last."""
    held: list[np.ndarray] = []
    count = 0
    for chunk in chunks:
        held.append(chunk)
        count += chunk.size
        if count > size:
            whole = np.concatenate(held)
            cuts = range(size, count, size)
            *pieces, rest = np.split(whole, cuts)
            for piece in pieces:
                yield piece, False
            held, count = [rest], rest.size
    if count:
        yield np.concatenate(held), True
