"""What stage 1 hears: 28 frames of 12 cepstra around each video frame, the same in training and dubbing."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from common.audio.psf import CEPSTRA, HOP, WINDOW, psf_mfcc
from dubbing3d.networks.expression import MFCC_FRAMES, MFCC_ROWS

PER_FRAME = 4
"""Cepstral frames a video frame at 25 fps."""
BEFORE = 3
"""Video frames by which a window begins before its own; it ends as many after it (Chen et al. 2019, ATVGnet)."""

Read = Callable[[int, int], Tensor]
"""(start, count) -> samples (count,) at 16 kHz, zeros outside of the recording: `Clip.wave`, or `reader` of a wave."""


class SpeechWindows(nn.Module):
    """Cepstra of `python_speech_features` without c0, mfcc[4 (f - 3) : 4 (f + 4)] for frame f, standardised.

    Mean and deviation over a corpus (`fit`) are part of the state, so that they travel in a checkpoint. Sound outside
    of a recording is silence, so that the first and the last frames have windows too.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(MFCC_ROWS))
        self.register_buffer("deviation", torch.ones(MFCC_ROWS))

    def forward(self, read: Read, start: int, count: int) -> Tensor:
        """Windows (count,28,12) of video frames `start` to `start + count`, which may lie outside of the recording."""
        cepstra = raw_cepstra(read, PER_FRAME * (start - BEFORE), PER_FRAME * (count - 1) + MFCC_FRAMES)
        heard = (cepstra.to(self.mean) - self.mean) / self.deviation
        return heard.unfold(0, MFCC_FRAMES, PER_FRAME).transpose(1, 2)

    @torch.no_grad()
    def fit(self, waves: Iterable[Tensor]) -> None:
        """Standardise by all frames of waves (n,), which are gone through once; constant rows keep 1."""
        count, total, squares = 0, torch.zeros(MFCC_ROWS).double(), torch.zeros(MFCC_ROWS).double()
        for wave in waves:
            cepstra = raw_cepstra(reader(wave), 0, max(1, (len(wave) - WINDOW) // HOP)).double()
            count, total, squares = count + len(cepstra), total + cepstra.sum(0), squares + cepstra.square().sum(0)
        mean = total / max(1, count)
        deviation = (squares / max(1, count) - mean.square()).clamp_min(0).sqrt()
        self.mean.copy_(mean)
        self.deviation.copy_(torch.where(deviation > 1e-6, deviation, 1.0))


def raw_cepstra(read: Read, first: int, count: int) -> Tensor:
    """Cepstra c1..c12 (count,12), 100 a second, from frame `first` on of a recording in endless silence."""
    # Pre-emphasis looks one sample back, so one frame more is read and dropped.
    wave = read(HOP * (first - 1), HOP * count + WINDOW)
    return psf_mfcc(wave[None])[0, 0, CEPSTRA - MFCC_ROWS :, 1:].transpose(0, 1)


def reader(wave: Tensor) -> Read:
    """Reads a wave (n,) in memory, with zeros before and after."""

    def read(start: int, count: int) -> Tensor:
        first, last = min(max(start, 0), len(wave)), min(max(start + count, 0), len(wave))
        if first == last:
            return wave.new_zeros(count)
        sound = wave.new_zeros(count)
        sound[first - start : first - start + last - first] = wave[first:last]
        return sound

    return read
