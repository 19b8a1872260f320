"""The sound of a video on the clock of its pictures, of any length, in constant memory."""

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
import torch
from torch import Tensor

from common.audio.io import stream_audio
from common.data.corpus import SAMPLE_RATE
from common.errors import UserError

Speech = Callable[[Tensor, int], Sequence[tuple[int, int]]]
"""(wave, sample rate) -> start and end sample of each stretch of speech."""
_BLOCK = 60 * SAMPLE_RATE
_PAUSE = SAMPLE_RATE // 10


class Sound:
    """16 kHz mono samples, counted from the first picture, in an unnamed temporary file that ends with the process."""

    def __init__(self, path: Path, *, delay: float = 0.0) -> None:
        """Decode the first audio track of a file.

        Args:
            path: video or audio file.
            delay: seconds from the first picture to the first sample, negative where the sound comes first
                (`VideoInfo.audio_start`).

        Raises:
            UserError: no audio track, or nothing of it can be decoded.
        """
        self.damage: list[str] = []
        self._delay = round(delay * SAMPLE_RATE)
        self._file = TemporaryFile()  # noqa: SIM115 (it lives as long as the sound)
        written = 0
        for chunk in stream_audio(path, SAMPLE_RATE, self.damage):
            self._file.write(chunk.astype("<f4").tobytes())
            written += chunk.size
        if not written:
            raise UserError(f"no sound can be decoded from {path}: the audio track is empty or damaged")
        self._count = written

    def __len__(self) -> int:
        """Samples from the first picture to the end of the sound."""
        return max(0, self._count + self._delay)

    def wave(self, start: int, count: int) -> Tensor:
        """Samples `start` to `start + count`, float32 (count,) in [-1,1]; silence where there is no sound."""
        first, end = (max(0, min(edge - self._delay, self._count)) for edge in (start, start + count))
        result = torch.zeros(count)
        place = first + self._delay - start
        self._file.seek(4 * first)
        stored = np.frombuffer(self._file.read(4 * max(0, end - first)), dtype="<f4")
        result[place : place + stored.size] = torch.from_numpy(stored.astype(np.float32))
        return result

    def speech(self, find: Speech) -> list[tuple[int, int]]:
        """(start, end) samples of speech from the first picture on, found a minute at a time.

        What the minutes' borders cut is joined: stretches less than 0.1 s apart are one.
        """
        joined: list[tuple[int, int]] = []
        for begin in range(0, len(self), _BLOCK):
            for start, end in find(self.wave(begin, min(_BLOCK, len(self) - begin)), SAMPLE_RATE):
                if joined and begin + start - joined[-1][1] < _PAUSE:
                    joined[-1] = (joined[-1][0], begin + end)
                else:
                    joined.append((begin + start, begin + end))
        return joined
