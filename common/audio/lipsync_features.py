"""Speech features of the lip-sync networks: waves (B, n) at 16 kHz -> maps (B, rows, frames), 80 frames a second.

Frame f is centred at sample 200 f and sees samples 200 f - 400 to 200 f + 399; outside of the wave is digital zero.
The slopes of cepstra reach four frames further to both sides, and the edges of the map are replicated for them. A
stream is therefore cut as follows: for frames a to b - 1 feed samples 200 (a - before) to 200 (b + after) - 1, where
(before, after) is the module's `context`, and drop the `before` frames ahead and all behind; at the ends of the
recording feed what there is. The result is that of the whole wave.

All arithmetic up to the logarithm is float64 where the device has it: a quiet band beside a loud one drowns in
float32's rounding. The modules are differentiable; autocast does not touch them.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.audio.features import PreEmphasis, dct_matrix, delta

RATE = 16000
HOP = 200
"""Samples from one feature frame to the next: 80 frames a second."""
WINDOW = 800
BANDS, LOW, HIGH = 80, 55.0, 7600.0
CEPSTRA = 13
MAX_ABS = 4.0
"""Mels lie in [-4, 4]; -4 is silence."""
_ALPHA = 0.97
_REFERENCE_DB, _RANGE_DB = 20.0, 100.0
_BLOCK = 4096  # frames whose spectra are held at once: 26 MB

SpeechMode = Literal["mel", "mfcc", "mel+mfcc"]


class SpeechFeatures(nn.Module, ABC):
    """What the modules here share.

    `rows` is the number of features a frame, `context` the frames before and after that a stream needs (see above).
    Pad windows that reach over the ends of a recording with `silence`.
    """

    rows: int
    context: tuple[int, int]

    @property
    @abstractmethod
    def silence(self) -> Tensor:
        """Features of digital silence, (rows,)."""

    def frames(self, samples: int) -> int:
        """Frames of a wave: samples // 200 + 1."""
        return samples // HOP + 1


class Wav2LipMel(SpeechFeatures):
    """Wav2Lip's mel spectrogram (B, n) -> (B, 80, frames) in [-4, 4].

    Pre-emphasis of 0.97, periodic Hann windows of 800 samples, magnitudes (not powers), Slaney's 80 mel bands from 55
    to 7600 Hz, dB over 1e-5, 20 dB off, and 100 dB stretched over [-4, 4].

    The wave is padded with zeros, as librosa does from 0.10 on. The 0.7 of Wav2Lip's requirements mirrored the wave
    instead, which differs in the first and the last two frames only.
    """

    rows = BANDS
    context = (2, 1)

    def __init__(self) -> None:
        super().__init__()
        self.emphasis = PreEmphasis(_ALPHA)
        filters = torch.tensor(slaney_filters(BANDS, LOW, HIGH, WINDOW, RATE), dtype=torch.float32)
        self.register_buffer("filters", filters, persistent=False)

    filters: Tensor

    @property
    def silence(self) -> Tensor:
        return torch.full((self.rows,), -MAX_ABS, device=self.filters.device)

    def forward(self, wave: Tensor) -> Tensor:
        """Raises ValueError for what is no floating-point batch (B, n) with n > 0. Half waves come out as float32."""
        if wave.dim() != 2 or wave.shape[-1] == 0 or not wave.is_floating_point():
            raise ValueError(f"expected a floating-point batch of waves (B, n) with n > 0, got {tuple(wave.shape)}")
        precise = torch.float32 if wave.device.type == "mps" else torch.float64
        with torch.autocast(wave.device.type, enabled=False):
            padded = F.pad(self.emphasis(wave.to(precise)), (WINDOW // 2, WINDOW // 2))
            blocks = padded.unfold(1, WINDOW, HOP).split(_BLOCK, dim=1)
            mel = torch.cat([self._mel(block) for block in blocks], dim=1).transpose(1, 2)
        return mel.to(torch.promote_types(wave.dtype, torch.float32)).contiguous()

    def _mel(self, frames: Tensor) -> Tensor:
        """Frames (B, T, 800) -> (B, T, 80)."""
        window = torch.hann_window(WINDOW, dtype=frames.dtype, device=frames.device)
        magnitude = torch.fft.rfft(frames * window).abs()
        decibels = 20 * (magnitude @ self.filters.to(frames)).clamp(min=1e-5).log10() - _REFERENCE_DB
        return (2 * MAX_ABS * (decibels + _RANGE_DB) / _RANGE_DB - MAX_ABS).clamp(-MAX_ABS, MAX_ABS)


class MelMFCC(SpeechFeatures):
    """Cepstra of the same mel frames, with slopes, alone or under the mel: (B, n) -> (B, 39 or 119, frames).

    The cepstra are the first 13 of the orthonormal DCT-II of the mel in [-4, 4] over sqrt(80), so that the first is
    the mean over bands, then their slopes over five frames, then the slopes of these (paper 3, eqs. 1 to 3 and
    section 4.2.3). Eq. 3 prints cos[pi/M (m-1)(k-1)], which is no DCT and not orthogonal; here it is
    cos[pi/M (m-1/2)(k-1)]. With the mel first and the cepstra behind it the rows are the paper's fusion.

    Cepstra and slopes differ in size by a factor of a hundred. `fit` or `standardise` brings each of the 39 rows to
    mean 0 and deviation 1 over a corpus; the figures are part of the state, so that they travel in a checkpoint.

    Args:
        mel: put the 80 rows of the mel before the 39.
    """

    context = (2 + 4, 1 + 4)

    def __init__(self, *, mel: bool = True) -> None:
        super().__init__()
        self.mel = Wav2LipMel()
        self.with_mel = mel
        self.rows = 3 * CEPSTRA + (BANDS if mel else 0)
        matrix = torch.tensor(dct_matrix(BANDS, CEPSTRA) / np.sqrt(BANDS), dtype=torch.float32)
        self.register_buffer("dct", matrix, persistent=False)
        self.register_buffer("mean", torch.zeros(3 * CEPSTRA))
        self.register_buffer("deviation", torch.ones(3 * CEPSTRA))

    dct: Tensor
    mean: Tensor
    deviation: Tensor

    @property
    def silence(self) -> Tensor:
        return self._from_mel(self.mel.silence[None, :, None])[0, :, 0]

    def forward(self, wave: Tensor) -> Tensor:
        """Raises ValueError for what is no floating-point batch (B, n) with n > 0. Half waves come out as float32."""
        return self._from_mel(self.mel(wave))

    def _from_mel(self, mel: Tensor) -> Tensor:
        cepstra = (self.cepstra(mel) - self.mean.to(mel)[:, None]) / self.deviation.to(mel)[:, None]
        return torch.cat([mel, cepstra], dim=1) if self.with_mel else cepstra

    def cepstra(self, mel: Tensor) -> Tensor:
        """Mels (B, 80, frames) -> cepstra, slopes and slopes of slopes (B, 39, frames), not standardised."""
        with torch.autocast(mel.device.type, enabled=False):
            static = self.dct.to(mel).t() @ mel
            slope = delta(static)
            return torch.cat([static, slope, delta(slope)], dim=1)

    def standardise(self, mean: Tensor, deviation: Tensor) -> None:
        """Set mean and deviation (39,) of the cepstral rows; deviations must be positive."""
        if mean.shape != self.mean.shape or deviation.shape != self.mean.shape or not bool((deviation > 0).all()):
            raise ValueError("mean and deviation of cepstra are two lists of 39 numbers, the second positive")
        self.mean.copy_(mean)
        self.deviation.copy_(deviation)

    @torch.no_grad()
    def fit(self, waves: Iterable[Tensor]) -> None:
        """Standardise by all frames of waves (n,) or (B, n), which are gone through once; constant rows keep 1."""
        count, total, squares = 0, torch.zeros_like(self.mean.double()), torch.zeros_like(self.mean.double())
        for rows in self._cepstra_of(waves):
            count += rows.shape[1]
            total += rows.sum(dim=1)
            squares += rows.square().sum(dim=1)
        if count == 0:
            raise ValueError("no waves to take the cepstra's mean and deviation from")
        mean = total / count
        deviation = (squares / count - mean.square()).clamp(min=0).sqrt()
        self.standardise(mean, deviation.where(deviation > 1e-6, 1.0))

    def _cepstra_of(self, waves: Iterable[Tensor]) -> Iterator[Tensor]:
        for wave in waves:
            batch = wave[None] if wave.dim() == 1 else wave
            yield self.cepstra(self.mel(batch.to(self.mean.device))).double().transpose(0, 1).flatten(1)


def speech_features(mode: SpeechMode) -> SpeechFeatures:
    """The module of a feature mode: "mel" (80 rows), "mfcc" (39) or "mel+mfcc" (119)."""
    if mode not in get_args(SpeechMode):
        raise ValueError(f"speech features {mode!r} are not one of {', '.join(get_args(SpeechMode))}")
    return Wav2LipMel() if mode == "mel" else MelMFCC(mel=mode == "mel+mfcc")


def slaney_filters(bands: int, low: float, high: float, fft: int, sample_rate: int) -> np.ndarray:
    """Triangles of height 2 / width in Hz on Slaney's mel scale, float64 (fft // 2 + 1, bands), as librosa's.

    The scale is linear up to 1000 Hz (15 mel, 3 mel per 200 Hz) and logarithmic above (27 mel per factor of 6.4).
    """
    ends = [_slaney_mel(low), _slaney_mel(high)]
    edges = _slaney_hz(np.linspace(ends[0], ends[1], bands + 2))
    frequency = np.arange(fft // 2 + 1)[:, None] * sample_rate / fft
    rising = (frequency - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - frequency) / (edges[2:] - edges[1:-1])
    return np.asarray(np.maximum(0.0, np.minimum(rising, falling)) * 2.0 / (edges[2:] - edges[:-2]))


def _slaney_mel(hz: float) -> float:
    return 15.0 + 27.0 * np.log(hz / 1000.0) / np.log(6.4) if hz >= 1000.0 else hz * 3.0 / 200.0


def _slaney_hz(mel: np.ndarray) -> np.ndarray:
    return np.where(mel >= 15.0, 1000.0 * np.power(6.4, (mel - 15.0) / 27.0), mel * 200.0 / 3.0)
