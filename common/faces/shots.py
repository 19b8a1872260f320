"""Where a video cuts from one shot to the next, decided frame by frame."""

from collections import deque

import numpy as np
from PIL import Image

_SIDE = 32
"""Side of the thumbnails that are compared: coarse enough to forgive motion and noise."""
_NOISE = 1e-3
"""Variance (of colours in [0,1]) below which a thumbnail counts as flat: two black frames are alike."""
_LEAST, _SURE = 0.15, 0.6
"""Differences that are never, and always, a cut."""
_JUMP = 3.0
"""Between those a cut differs so many times as much as any of the `_MEMORY` frames before it, which a pan does not."""
_MEMORY = 6


class ShotDetector:
    """Finds hard cuts in a stream of frames. Fades and dissolves are no cuts.

    Frames differ by 1 - (2 covariance + c) / (variance + variance + c) of their thumbnails, the contrast and structure
    term of SSIM (Wang et al. 2004): a change of brightness alone is none. A single odd frame, such as a photographer's
    flash, is taken back when the picture returns.
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
    """0 for equal thumbnails up to brightness, about 1 for unrelated ones, up to 2 for a negative.

    Both are flat and have mean 0 per colour, as `_thumbnail` makes them.
    """
    noise = _NOISE * a.size
    return float(1 - (2 * (a @ b) + noise) / (a @ a + b @ b + noise))


def _thumbnail(image: np.ndarray) -> np.ndarray:
    """Float32 (3072,) of 32 x 32 colours in [0,1] less their mean; large pictures are thinned out first, since every
    pixel would cost more than it tells."""
    step = max(1, min(image.shape[:2]) // (2 * _SIDE))
    thinned = np.ascontiguousarray(image[::step, ::step])
    small = Image.fromarray(thinned).resize((_SIDE, _SIDE), Image.Resampling.BOX)
    colours = np.asarray(small, dtype=np.float32).reshape(-1, 3) / 255
    flat: np.ndarray = (colours - colours.mean(axis=0)).ravel()
    return flat
