"""Where a video cuts from one shot to the next, decided frame by frame."""

from collections import deque

import numpy as np
from PIL import Image

_SIDE = 32
"""Side of the thumbnails that are compared: coarse enough to forgive motion and noise."""
_NOISE = 1e-3
"""Variance (of colours in [0,1]) below which a thumbnail counts as flat: two black frames are alike."""
_LEAST, _SURE = 0.1, 0.6
"""Differences that are never, and always, a cut."""
_JUMP = 3.0
"""Between those a cut differs so many times as much as any of the `_MEMORY` frames before it, which motion does not."""
_MEMORY = 6
_REACH = 2
"""Cells of the thumbnail by which a picture may have moved as a whole: 6 % of its width in a frame."""


class ShotDetector:
    """Finds hard cuts in a stream of frames. Fades and dissolves are no cuts.

    Frames differ by 1 - (2 covariance + c) / (variance + variance + c) of their thumbnails, the contrast and structure
    term of SSIM (Wang et al. 2004), at the best of a few shifts: neither a change of brightness nor a pan is a cut. A
    single odd frame, such as a photographer's flash, is taken back when the picture returns.

    A cut between two takes of one scene, with the head where it was, may pass for motion.
    """

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._count = 0
        self._recent: deque[float] = deque(maxlen=_MEMORY)
        self._last: list[np.ndarray] = []

    @property
    def starts(self) -> tuple[int, ...]:
        """First frame of every shot so far."""
        return tuple(self._starts)

    def update(self, image: np.ndarray) -> bool:
        """Take the next frame.

        Args:
            image: uint8 (H,W,3) RGB, of any size.

        Returns:
            Whether the picture is not the previous one's continuation: a shot begins, or a flash has passed.
        """
        index, thumbnail = self._count, _thumbnail(image)
        broken = index == 0 or self._breaks(difference(self._last[-1], thumbnail))
        flash_passed = index > 1 and self._starts[-1] == index - 1 and self._continues(thumbnail)
        if flash_passed:
            self._starts.pop()
        elif broken:
            self._starts.append(index)
        if broken or flash_passed:
            self._recent.clear()
        self._last = [*self._last[-1:], thumbnail]
        self._count += 1
        return broken or flash_passed

    def _breaks(self, change: float) -> bool:
        limit = min(max(_LEAST, _JUMP * max(self._recent, default=0.0)), _SURE)
        self._recent.append(change)
        return change >= limit

    def _continues(self, thumbnail: np.ndarray) -> bool:
        """Whether a frame looks like the one before last, although a cut was seen between."""
        return len(self._last) == 2 and difference(self._last[0], thumbnail) < _LEAST


def difference(a: np.ndarray, b: np.ndarray) -> float:
    """How much two thumbnails (32,32,3) differ, whatever their brightness and up to a small shift.

    Returns:
        0 for equal ones, about 1 for unrelated ones, up to 2 for a negative.
    """
    change = _unlikeness(a, b)
    if change < _LEAST:
        return change
    inner = a[_REACH:-_REACH, _REACH:-_REACH]
    shifts = range(2 * _REACH + 1)
    side = _SIDE - 2 * _REACH
    return min(change, *(_unlikeness(inner, b[y : y + side, x : x + side]) for y in shifts for x in shifts))


def _unlikeness(a: np.ndarray, b: np.ndarray) -> float:
    a, b = ((colours - colours.mean(axis=(0, 1))).ravel() for colours in (a, b))
    noise = _NOISE * a.size
    return float(1 - (2 * (a @ b) + noise) / (a @ a + b @ b + noise))


def _thumbnail(image: np.ndarray) -> np.ndarray:
    """Float32 (32,32,3) in [0,1]; large pictures are thinned out first, since every pixel would cost more than it
    tells."""
    step = max(1, min(image.shape[:2]) // (2 * _SIDE))
    thinned = np.ascontiguousarray(image[::step, ::step])
    small = Image.fromarray(thinned).resize((_SIDE, _SIDE), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float32) / 255
