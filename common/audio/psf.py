"""The cepstra of python_speech_features 0.6 with its defaults, which SyncNet was trained on, as a torch function.

All arithmetic is float64, as there. Differences from that package stay in the last digits (order of summation).
"""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from common.audio.features import INT16_SCALE, dct_matrix, hz_to_mel, mel_to_hz

RATE = 16000
WINDOW, HOP, FFT = 400, 160, 512
BANDS, CEPSTRA, LIFTER, ALPHA = 26, 13, 22, 0.97
_EPS = float(np.finfo(np.float64).eps)
_BLOCK = 4096  # frames whose spectra are held at once: 17 MB


def frame_count(samples: int) -> int:
    """Frames of a wave: one where it is no longer than a window, else 1 + ceil((samples - 400) / 160)."""
    return 1 + max(0, -(-(samples - WINDOW) // HOP))


@lru_cache(maxsize=1)
def psf_filters() -> np.ndarray:
    """The 26 triangles as float64 (257, 26): corners at floor(513 f / 16000), height 1 at the middle one."""
    edges = mel_to_hz(np.linspace(hz_to_mel(0.0), hz_to_mel(RATE / 2), BANDS + 2))
    corners = np.floor((FFT + 1) * edges / RATE)
    left, centre, right = corners[:-2], corners[1:-1], corners[2:]
    bins = np.arange(FFT // 2 + 1)[:, None]
    # No two corners fall on one bin with these constants, so that no slope divides by zero.
    rising = (bins - left) / (centre - left) * ((bins >= left) & (bins < centre))
    falling = (right - bins) / (right - centre) * ((bins >= centre) & (bins < right))
    return np.asarray(rising + falling)


def psf_mfcc(wave: Tensor) -> Tensor:
    """Thirteen cepstra of 16 kHz waves (B, n) in [-1, 1] -> (B, 1, 13, frames) float32, 100 frames a second.

    The definition is `mfcc(samples)` of python_speech_features 0.6: int16 samples (the wave is rounded to them, as a
    WAV file would), pre-emphasis 0.97 over the whole signal, frames of 400 samples every 160 without a window, the
    last one filled with zeros, |FFT|^2 / 512 over 512 points, 26 mel triangles from 0 to 8000 Hz, ln with exact zeros
    raised to 2.2e-16, orthonormal DCT-II, lifter 22, and c(0) replaced by the ln of the frame's energy.

    Raises:
        ValueError: no batch of waves, or waves of no samples.
    """
    if wave.dim() != 2 or wave.shape[-1] == 0 or not wave.is_floating_point():
        raise ValueError(f"expected a floating-point batch of waves (B, n) with n > 0, got {tuple(wave.shape)}")
    samples = (wave.double() * INT16_SCALE).round().clamp(-INT16_SCALE, INT16_SCALE - 1)
    emphasised = torch.cat([samples[:, :1], samples[:, 1:] - ALPHA * samples[:, :-1]], dim=1)
    count = frame_count(wave.shape[1])
    padded = torch.nn.functional.pad(emphasised, (0, (count - 1) * HOP + WINDOW - wave.shape[1]))
    frames = padded.unfold(1, WINDOW, HOP)
    filters = torch.from_numpy(psf_filters()).to(wave.device)
    order = np.arange(CEPSTRA)
    lifted = dct_matrix(BANDS, CEPSTRA) * (1 + LIFTER / 2 * np.sin(np.pi * order / LIFTER))
    transform = torch.from_numpy(lifted).to(wave.device)
    cepstra = [_cepstra(block, filters, transform) for block in frames.split(_BLOCK, dim=1)]
    return torch.cat(cepstra, dim=1).transpose(1, 2).unsqueeze(1).float()


def _cepstra(frames: Tensor, filters: Tensor, transform: Tensor) -> Tensor:
    """Frames (B, T, 400) -> (B, T, 13)."""
    power = torch.fft.rfft(frames, n=FFT).abs().square() / FFT
    energy = _log(power.sum(dim=-1, keepdim=True))
    return torch.cat([energy, (_log(power @ filters) @ transform)[..., 1:]], dim=-1)


def _log(values: Tensor) -> Tensor:
    return torch.where(values == 0, _EPS, values).log()
