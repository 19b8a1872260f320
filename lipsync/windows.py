"""Which 0.2 s of speech features belong to which video frame; training and dubbing share this.

Features come at 80 frames a second, video at 25, and each network hears 16 feature frames at once. Frame f is drawn
from the window that starts 0.04 s before it (`drawing_window`), which puts the frame in the first half of what it
hears; the expert compares five frames from s on with the window that starts with them (`sync_window_start`).
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from common.audio.lipsync_features import HOP, SpeechFeatures
from common.errors import UserError
from lipsync.networks.blocks import WINDOW

FPS = 25
FEATURE_RATE = 80
"""Feature frames a second."""
ALIGN = {"train": 1, "upstream": 0}
"""How many video frames before frame f its window starts: as in training, or as the published inference cuts them,
37.5 to 50 ms later than its own training."""


def window_start(frames: np.ndarray) -> np.ndarray:
    """First feature frame of the window at video frames (N,): int(80 f / 25), cut towards 0; negative before 0."""
    return np.trunc(FEATURE_RATE * np.asarray(frames, np.float64) / FPS).astype(np.int64)


def drawing_window(frames: np.ndarray, align: str = "train") -> np.ndarray:
    """First feature frame of the windows from which video frames (N,) are drawn.

    Raises:
        UserError: `align` is neither `train` nor `upstream`.
    """
    if align not in ALIGN:
        raise UserError(f"align is {align!r}: use train, or upstream for the published inference's shift")
    return window_start(np.asarray(frames) - ALIGN[align])


def cut_windows(features: Tensor, starts: np.ndarray, silence: Tensor) -> Tensor:
    """Windows (N,1,rows,16) of features (rows,F) from feature frames `starts` (N,) on; `silence` (rows,) outside."""
    place = torch.as_tensor(starts, dtype=torch.int64)[:, None] + torch.arange(WINDOW)
    outside = (place < 0) | (place >= features.shape[1])
    windows = features[:, place.clamp(0, max(0, features.shape[1] - 1))].transpose(0, 1)
    return torch.where(outside[:, None], silence[None, :, None].to(features), windows)[:, None]


def features_between(
    speech: SpeechFeatures, read: Callable[[int, int], Tensor], samples: int, start: int, stop: int
) -> Tensor:
    """Feature frames `start` to `stop` (rows,n) of a recording, from as little of it as gives the whole one's values.

    Args:
        speech: the features.
        read: gives the samples from a place on, so many, of the recording at 16 kHz.
        samples: length of the recording.
        start, stop: feature frames; what lies outside of the recording is left out.
    """
    before, after = speech.context
    start, stop = max(0, start), min(stop, speech.frames(samples))
    first = max(0, start - before)
    end = min(samples, HOP * (stop + after))
    return speech(read(HOP * first, end - HOP * first)[None])[0][:, start - first : stop - first]
