"""Features of speech for dubbing, streamed: those around any time, asked for in the order of time."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from common.audio.lipsync_features import HOP
from common.dubbing.speech import Speech, pieces, samples
from lipsync.infer import LipSync
from lipsync.networks.blocks import WINDOW
from lipsync.windows import FEATURE_RATE, cut_windows

_PIECE = 800 * HOP
"""Samples whose features are worked out together: 10 s."""


class SpeechWindows:
    """Feature windows of a recording, asked for in the order of time.

    Args:
        speech: the recording.
        model: whose features are worked out.
        quiet: replace what is not speech by silence, so that the mouth is closed there.
    """

    def __init__(self, speech: Speech, model: LipSync, *, quiet: bool) -> None:
        self._speech, self._model, self._quiet = speech, model, quiet
        self._blocks = feature_blocks(samples(speech.path, []), model)
        self._silence = model.silence.cpu()
        self._held = self._silence[:, None][:, :0]
        self._first = 0

    def take(self, starts: np.ndarray) -> Tensor:
        """Windows (B,1,rows,16) that begin at feature frames (B,), none before one that was asked for earlier.

        What lies before the recording or behind it is silence.
        """
        low, end = int(starts.min()), int(starts.max()) + WINDOW
        while self._first + self._held.shape[1] < end and (block := next(self._blocks, None)) is not None:
            self._append(block.cpu(), low)
        return cut_windows(self._held, starts - self._first, self._silence)

    def _append(self, block: Tensor, low: int) -> None:
        """Hold features that follow on those that are held; forget what lies before feature frame `low`."""
        if self._quiet:
            first = self._first + self._held.shape[1]
            activity = self._speech.activity((first + np.arange(block.shape[1])) / FEATURE_RATE)
            silence = self._silence[:, None].expand_as(block)
            block = torch.lerp(silence, block, torch.from_numpy(activity).to(block).expand_as(block))
        held = torch.cat([self._held, block], dim=1)
        gone = min(max(low - self._first, 0), held.shape[1] - 1)
        self._held, self._first = held[:, gone:], self._first + gone


def feature_blocks(chunks: Iterator[np.ndarray], model: LipSync) -> Iterator[Tensor]:
    """Features (rows,n) of a stream of samples, ten seconds at a time; joined they are those of the whole wave."""
    before, after = (frames * HOP for frames in model.features.context)
    parts = pieces(chunks, _PIECE)
    ahead = next(parts, None)
    past = np.zeros(0, np.float32)
    while ahead is not None:
        piece, last = ahead
        ahead = next(parts, None)
        future = past[:0] if ahead is None else ahead[0][:after]
        heard = model.hear(torch.from_numpy(np.concatenate([past, piece, future])))
        first = past.size // HOP
        yield heard[:, first:] if last else heard[:, first : first + piece.size // HOP]
        past = piece[-before:]
