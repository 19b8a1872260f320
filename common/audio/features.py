"""Spectral features as batched, differentiable modules: waveforms (B, n) in, maps (B, C, bands, frames) out.

All arithmetic is float32 (float64 for float64 waves), also under autocast: a logarithm of powers that span
twelve decades has no use for half precision. Waves are mono in [-1, 1]. A clip shorter than a window is repeated
cyclically to fill it; a clip of no samples is a `ValueError`.
"""

import math
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

MelScale = Literal["log10", "ln"]
INT16_SCALE = 32768.0
# Frames whose spectra are held at once. On a CPU the block stays in the cache, which is worth a factor of three.
_BLOCK_CPU, _BLOCK_DEVICE = 512, 1 << 16
_GROUPS = 4


def hz_to_mel(hz: np.ndarray | float, scale: MelScale = "log10") -> np.ndarray:
    """Mel of a frequency: 2595 log10(1 + f/700), so that 4 kHz is 2146.06 mel.

    Paper 2, eq. 6 prints `ln` in place of log10; `scale="ln"` is that form. The factor between the two leaves the
    centre frequencies of equally spaced filters where they are.
    """
    logarithm = np.log10 if scale == "log10" else np.log
    return np.asarray(2595.0 * logarithm(1.0 + np.asarray(hz, dtype=np.float64) / 700.0))


def mel_to_hz(mel: np.ndarray | float, scale: MelScale = "log10") -> np.ndarray:
    """Inverse of `hz_to_mel`."""
    base = 10.0 if scale == "log10" else math.e
    return np.asarray(700.0 * (np.power(base, np.asarray(mel, dtype=np.float64) / 2595.0) - 1.0))


def mel_edges(bands: int, low: float, high: float) -> np.ndarray:
    """Edges in Hz, (bands + 2,), of triangles spaced equally on the mel scale; filter i spans edges i to i + 2."""
    return mel_to_hz(np.linspace(hz_to_mel(low), hz_to_mel(high), bands + 2))


def triangle_filters(bands: int, low: float, high: float, fft: int, sample_rate: int) -> np.ndarray:
    """Triangles of height 1 in continuous frequency, float64 (fft // 2 + 1, bands)."""
    edges = mel_edges(bands, low, high)
    frequency = np.arange(fft // 2 + 1)[:, None] * sample_rate / fft
    rising = (frequency - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - frequency) / (edges[2:] - edges[1:-1])
    return np.maximum(0.0, np.minimum(rising, falling))


def sphinx_filters(bands: int, low: float, high: float, fft: int, sample_rate: int) -> np.ndarray:
    """Sphinx-III triangles, float64 (fft // 2 + 1, bands): edges rounded to DFT bins, height 2 / width in Hz.

    A filter whose centre falls on its left edge has no peak bin, as in Sphinx.
    """
    resolution = sample_rate / fft
    points = np.round(mel_edges(bands, low, high) / resolution).astype(int)
    left, centre, right = points[:-2], points[1:-1], points[2:]
    height = 2.0 / ((right - left) * resolution)
    bins = np.arange(fft // 2 + 1)[:, None]
    rising = height * (bins - left) / np.maximum(centre - left, 1) * (bins > left) * (bins <= centre)
    falling = height * (right - bins) / np.maximum(right - centre, 1) * (bins > centre) * (bins < right)
    return rising + falling


def tile_to(wave: Tensor, samples: int) -> Tensor:
    """Repeat (..., n) cyclically to `samples` samples; a longer wave is returned as it is."""
    length = wave.shape[-1]
    if length == 0:
        raise ValueError("a wave of no samples cannot be repeated")
    if length >= samples:
        return wave
    repeats = [1] * (wave.dim() - 1) + [-(-samples // length)]
    return wave.repeat(repeats)[..., :samples]


def delta(features: Tensor, width: int = 2) -> Tensor:
    """Regression slope over time of (..., frames), edges replicated (paper 2, eqs. 9 and 10, K = `width`)."""
    frames = features.shape[-1]
    first, last = features[..., :1], features[..., -1:]
    padded = torch.cat([first] * width + [features] + [last] * width, dim=-1)
    slope = torch.zeros_like(features)
    for k in range(1, width + 1):
        ahead = padded[..., width + k : width + k + frames]
        behind = padded[..., width - k : width - k + frames]
        slope = slope + k * (ahead - behind)
    return slope / (2 * sum(k * k for k in range(1, width + 1)))


def dct_matrix(bands: int, coefficients: int, orthonormal: bool = True) -> np.ndarray:
    """DCT-II as (bands, coefficients), float64: cos(n (i - 1/2) pi / bands), n from 0 (paper 2, eq. 8).

    `orthonormal` scales column 0 by sqrt(1 / bands) and the others by sqrt(2 / bands), as librosa and scipy do with
    norm="ortho"; without it the columns are as the paper prints them.
    """
    angle = np.pi / bands * (np.arange(bands)[:, None] + 0.5) * np.arange(coefficients)
    matrix = np.cos(angle)
    if orthonormal:
        matrix *= np.sqrt(2.0 / bands)
        matrix[:, 0] /= np.sqrt(2.0)
    return matrix


class PreEmphasis(nn.Module):
    """s'(n) = s(n) - alpha s(n - 1), with s(-1) = 0, on (..., n) (paper 2, eq. 4)."""

    def __init__(self, alpha: float = 0.95) -> None:
        super().__init__()
        self.alpha = alpha

    def forward(self, wave: Tensor) -> Tensor:
        emphasised = wave.clone()
        emphasised[..., 1:].sub_(wave[..., :-1], alpha=self.alpha)
        return emphasised


class BandNormalize(nn.Module):
    """Zero mean and unit variance over time, per band and clip, of (..., bands, frames).

    The deviation is that of the population and at least `minimum`, so that a constant band or a single frame
    gives zeros and finite gradients.
    """

    def __init__(self, minimum: float = 1e-3) -> None:
        super().__init__()
        self.minimum = minimum

    def forward(self, features: Tensor) -> Tensor:
        shifted = features - features[..., :1]  # so that a constant band is exactly 0
        centred = shifted - shifted.mean(dim=-1, keepdim=True)
        variance = centred.square().mean(dim=-1, keepdim=True)
        return centred * variance.clamp(min=self.minimum**2).rsqrt()


class LogFilterBank(nn.Module):
    """Frames (B, T, N) to log energies (B, T, bands): ln max(sum_k |X(k)|^2 H(k), floor) (paper 2, eq. 7).

    `filters` is (fft // 2 + 1, bands), `window` (N,); windowed frames are zero-padded to `fft` points.
    """

    window: Tensor

    def __init__(self, filters: np.ndarray, window: Tensor, fft: int, floor: float) -> None:
        super().__init__()
        if len(window) > fft:
            raise ValueError(f"a window of {len(window)} samples does not fit an FFT of {fft} points")
        self.fft, self.floor, self.bands = fft, floor, filters.shape[1]
        self.register_buffer("window", window, persistent=False)
        # Most of the matrix is zero: neighbouring filters share a narrow range of bins, multiplied group by group.
        self.ranges: list[tuple[int, int]] = []
        for group in np.array_split(filters, min(_GROUPS, self.bands), axis=1):
            used = np.flatnonzero(group.any(axis=1))
            first, last = (int(used[0]), int(used[-1]) + 1) if used.size else (0, 1)
            # Real and imaginary parts lie side by side: each bin's row twice lets the product add their squares.
            rows = torch.tensor(np.repeat(group[first:last], 2, axis=0), dtype=torch.float32)
            self.register_buffer(f"filters{len(self.ranges)}", rows, persistent=False)
            self.ranges.append((2 * first, 2 * last))

    def forward(self, frames: Tensor, output: torch.dtype, first: Tensor | None = None) -> Tensor:
        """Spectra in the frames' precision, energies in `output`; `first` (B, T) is added to each frame's sample 0."""
        size = _BLOCK_CPU if frames.device.type == "cpu" else _BLOCK_DEVICE
        step = max(1, size // max(1, frames.shape[0]))
        window = self.window.to(frames.dtype)
        filters = [self.get_buffer(f"filters{i}").to(output) for i in range(len(self.ranges))]
        blocks = [frames.new_zeros(frames.shape[0], 0, self.bands, dtype=output)]
        for start in range(0, frames.shape[1], step):
            block = frames[:, start : start + step] * window
            if first is not None:
                block[..., 0] += first[:, start : start + step] * window[0]
            squares = torch.view_as_real(torch.fft.rfft(block, n=self.fft)).square_().flatten(-2).to(output)
            groups = zip(self.ranges, filters, strict=True)
            energy = torch.cat([squares[..., begin:end] @ rows for (begin, end), rows in groups], dim=-1)
            blocks.append(energy.clamp(min=self.floor).log())
        return torch.cat(blocks, dim=1)


def hamming(samples: int) -> np.ndarray:
    """Symmetric Hamming window, 0.54 - 0.46 cos(2 pi n / (N - 1)), float64 (paper 2, eq. 5)."""
    return np.hamming(samples)


def _as_batch(wave: Tensor) -> Tensor:
    if wave.dim() != 2 or wave.shape[-1] == 0 or not wave.is_floating_point():
        shape = tuple(wave.shape)
        raise ValueError(f"expected a floating-point batch of waves (B, n) with n > 0, got {shape} {wave.dtype}")
    return wave if wave.dtype == torch.float64 else wave.float()


class LogMel(nn.Module):
    """Log-mel energies (B, n) -> (B, 1, bands, frames), by default those of Wen et al. (64 bands, 25 / 10 ms).

    The definition is Sphinx's front end as Wen et al. use it: samples in the int16 scale, pre-emphasis whose
    previous sample is carried over from the frame before (its last sample, not the neighbour in the signal; 0 for
    the first frame), symmetric Hamming window, |FFT|^2, triangles on rounded bins, ln with a floor. Frames start at
    every hop up to and including sample n; the last ones, which run over the end, repeat their samples cyclically,
    and a frame that starts at n is zeros.

    Args:
        sample_rate: Hz of the waves.
        bands, low, high: number of filters and their range in Hz.
        fft: points of the transform.
        window_ms, hop_ms: milliseconds; both must be whole numbers of samples.
        alpha: pre-emphasis.
        floor: smallest energy, in squared int16 units.
        normalize: mean and variance of each band and clip to 0 and 1 over time.
        precise: spectra in float64. In float32 a band that lies 75 dB under the loudest of its frame is off by up to
            5e-4; in float64 by under 1e-5, at about 1.5 times the time and on devices that have the type.
    """

    channels = 1

    def __init__(
        self,
        *,
        sample_rate: int = 16000,
        bands: int = 64,
        low: float = 20.0,
        high: float = 7200.0,
        fft: int = 1024,
        window_ms: float = 25.0,
        hop_ms: float = 10.0,
        alpha: float = 0.97,
        floor: float = 1e-5,
        normalize: bool = False,
        precise: bool = False,
    ) -> None:
        super().__init__()
        _check_range(low, high, sample_rate)
        self.sample_rate, self.bands, self.precise = sample_rate, bands, precise
        self.emphasis = PreEmphasis(alpha)
        self.window = _samples(window_ms, sample_rate)
        self.hop = _samples(hop_ms, sample_rate)
        filters = sphinx_filters(bands, low, high, fft, sample_rate)
        window = torch.tensor(INT16_SCALE * hamming(self.window))
        self.bank = LogFilterBank(filters, window if precise else window.float(), fft, floor)
        self.normalize = BandNormalize() if normalize else nn.Identity()

    @classmethod
    def wen(cls, normalize: bool = True) -> "LogMel":
        """The preset of Wen et al. (and of paper 2, section 2.1): 64 bands, per-band mean and variance, precise."""
        return cls(normalize=normalize, precise=True)

    def frames(self, samples: int) -> int:
        """Frames of a clip of `samples` samples: samples // hop + 1."""
        return samples // self.hop + 1

    def samples(self, frames: int) -> int:
        """Shortest clip that gives `frames` frames."""
        return max(1, (frames - 1) * self.hop)

    def forward(self, wave: Tensor) -> Tensor:
        wave = _as_batch(wave)
        output = wave.dtype
        wave = wave.double() if self.precise else wave
        with torch.autocast(wave.device.type, enabled=False):
            whole, tail = self._split(wave)
            last = torch.cat([whole[..., -1], tail[..., -1]], dim=1)
            carried = self.emphasis.alpha * nn.functional.pad(last[:, :-1], (1, 0))
            count = whole.shape[1]
            neighbour = self.emphasis.alpha * nn.functional.pad(wave[:, self.hop - 1 :: self.hop], (1, 0))
            parts = [
                self.bank(self._split(self.emphasis(wave))[0], output, neighbour[:, :count] - carried[:, :count]),
                self.bank(self.emphasis(tail), output, -carried[:, count:]),
            ]
            return self.normalize(torch.cat(parts, dim=1).transpose(1, 2).contiguous()).unsqueeze(1)

    def _split(self, wave: Tensor) -> tuple[Tensor, Tensor]:
        """Frames that lie inside the wave (B, T, window), a view, and those that run over its end (B, R, window)."""
        batch, length = wave.shape
        count = max(0, (length - self.window) // self.hop + 1)
        whole = wave.unfold(1, self.window, self.hop) if count else wave.new_zeros(batch, 0, self.window)
        starts = torch.arange(count, self.frames(length), device=wave.device)[:, None] * self.hop
        left = length - starts
        within = torch.arange(self.window, device=wave.device) % left.clamp(min=1)
        index = (starts + within).clamp(max=length - 1)
        return whole, wave[:, index] * (left > 0)


class MFCC(nn.Module):
    """Cepstra with slopes (B, n) -> (B, 3, coefficients, frames): static, delta, delta-delta (paper 2, eqs. 4 to 10).

    Pre-emphasis, frames with half overlap (only whole ones: samples behind the last are left out), symmetric Hamming
    window, |FFT|^2 over the next power of two, mel triangles of height 1, ln with a floor, DCT-II, K = 2 slopes with
    replicated edges.

    Args:
        sample_rate: Hz of the waves.
        coefficients: cepstra kept, from c(0) on; at most `bands`.
        bands, low, high: number of filters and their range in Hz (`high` 0 means half the sample rate).
        frame_ms: 20 to 40; the paper names the range, 25 is our default.
        alpha: pre-emphasis.
        floor: smallest energy; the wave is in [-1, 1], where the quietest int16 noise is near 1e-8.
        orthonormal: scale of the DCT, see `dct_matrix`; False is the paper's eq. 8.
        normalize: mean and variance of each channel, coefficient and clip to 0 and 1 over time.
    """

    channels = 3

    def __init__(
        self,
        *,
        sample_rate: int = 16000,
        coefficients: int = 40,
        bands: int = 64,
        low: float = 20.0,
        high: float = 0.0,
        frame_ms: float = 25.0,
        alpha: float = 0.95,
        floor: float = 1e-10,
        orthonormal: bool = True,
        normalize: bool = False,
    ) -> None:
        super().__init__()
        high = high or sample_rate / 2
        _check_range(low, high, sample_rate)
        if not 20 <= frame_ms <= 40:
            raise ValueError(f"frame_ms {frame_ms} is outside the paper's 20 to 40")
        if not 1 <= coefficients <= bands:
            raise ValueError(f"coefficients {coefficients} must be 1 to bands ({bands})")
        self.sample_rate, self.bands = sample_rate, coefficients
        self.window = _samples(frame_ms, sample_rate)
        self.hop = self.window // 2
        fft = 1 << (self.window - 1).bit_length()
        self.emphasis = PreEmphasis(alpha)
        filters = triangle_filters(bands, low, high, fft, sample_rate)
        self.bank = LogFilterBank(filters, torch.tensor(hamming(self.window)).float(), fft, floor)
        matrix = torch.tensor(dct_matrix(bands, coefficients, orthonormal), dtype=torch.float32)
        self.register_buffer("dct", matrix, persistent=False)
        self.normalize = BandNormalize() if normalize else nn.Identity()

    dct: Tensor

    def frames(self, samples: int) -> int:
        """Frames of a clip: (samples - window) // hop + 1, at least 1."""
        return max(0, samples - self.window) // self.hop + 1

    def samples(self, frames: int) -> int:
        """Shortest clip that gives `frames` frames without being repeated."""
        return self.window + (frames - 1) * self.hop

    def forward(self, wave: Tensor) -> Tensor:
        wave = _as_batch(wave)
        with torch.autocast(wave.device.type, enabled=False):
            emphasised = self.emphasis(tile_to(wave, self.window))
            energies = self.bank(emphasised.unfold(1, self.window, self.hop), wave.dtype)
            static = (energies @ self.dct.to(wave.dtype)).transpose(1, 2).contiguous()
            slope = delta(static)
            return self.normalize(torch.stack([static, slope, delta(slope)], dim=1))


def _samples(milliseconds: float, sample_rate: int) -> int:
    count = milliseconds * sample_rate / 1000
    if count < 1 or abs(count - round(count)) > 1e-9:
        raise ValueError(f"{milliseconds} ms at {sample_rate} Hz is {count} samples: give a whole number of them")
    return round(count)


def _check_range(low: float, high: float, sample_rate: int) -> None:
    if not 0 <= low < high <= sample_rate / 2:
        raise ValueError(f"filters from {low} to {high} Hz do not fit under {sample_rate / 2} Hz")


FEATURES: dict[str, type[LogMel] | type[MFCC]] = {"logmel": LogMel, "mfcc": MFCC}
