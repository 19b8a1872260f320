"""SyncNet's cepstra against the published formulas of python_speech_features 0.6, written out as loops."""

import cmath
import itertools
import math

import numpy as np
import pytest
import torch

from common.audio.psf import frame_count, psf_filters, psf_mfcc


def loop_filters() -> list[list[float]]:
    """26 triangles over 257 bins: rising on [b(j), b(j+1)), falling on [b(j+1), b(j+2))."""
    top = 2595 * math.log10(1 + 8000 / 700)
    corners = [math.floor(513 * 700 * (10 ** (top * j / 27 / 2595) - 1) / 16000) for j in range(28)]
    assert len(set(corners)) == 28
    filters = [[0.0] * 257 for _ in range(26)]
    for j in range(26):
        for i in range(corners[j], corners[j + 1]):
            filters[j][i] = (i - corners[j]) / (corners[j + 1] - corners[j])
        for i in range(corners[j + 1], corners[j + 2]):
            filters[j][i] = (corners[j + 2] - i) / (corners[j + 2] - corners[j + 1])
    return filters


def loop_mfcc(samples: np.ndarray) -> np.ndarray:
    """(frames, 13) of int16 samples, one frame after the other."""
    eps = np.finfo(float).eps
    signal = [float(samples[0])] + [float(b) - 0.97 * float(a) for a, b in itertools.pairwise(samples)]
    count = 1 if len(signal) <= 400 else 1 + math.ceil((len(signal) - 400) / 160)
    signal += [0.0] * ((count - 1) * 160 + 400 - len(signal))
    filters, rows = loop_filters(), []
    fourier = np.array([[cmath.exp(-2j * math.pi * k * n / 512) for n in range(400)] for k in range(257)])
    for t in range(count):
        power = np.abs(fourier @ np.array(signal[160 * t : 160 * t + 400])) ** 2 / 512
        # A transform by this matrix leaves rounding where the FFT gives an exact zero (silence stays exact in both).
        bands = [sum(h * p for h, p in zip(row, power, strict=True)) for row in filters]
        logs = [math.log(band if band else eps) for band in bands]
        row = []
        for n in range(13):
            scale = math.sqrt((1 if n == 0 else 2) / 26)
            cepstrum = scale * sum(value * math.cos(math.pi * n * (i + 0.5) / 26) for i, value in enumerate(logs))
            row.append(cepstrum * (1 + 11 * math.sin(math.pi * n / 22)))
        energy = float(power.sum())
        row[0] = math.log(energy if energy else eps)
        rows.append(row)
    return np.array(rows)


def wave_of(samples: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(samples.astype(np.float32) / 32768)[None]


@pytest.mark.parametrize("length", [1, 399, 400, 401, 560, 561, 2000])
def test_equals_the_published_loop(length: int) -> None:
    samples = np.random.default_rng(length).integers(-20000, 20000, length).astype(np.int16)
    expected = loop_mfcc(samples)
    found = psf_mfcc(wave_of(samples))
    assert found.shape == (1, 1, 13, len(expected))
    assert found.dtype == torch.float32
    assert frame_count(length) == len(expected)
    np.testing.assert_allclose(found[0, 0].T.numpy(), expected, rtol=1e-6, atol=1e-5)


def test_three_seconds_are_299_frames() -> None:
    assert frame_count(48000) == 299
    assert psf_mfcc(torch.zeros(1, 48000)).shape[-1] == 299


def test_filters_equal_the_loop() -> None:
    np.testing.assert_allclose(psf_filters().T, loop_filters(), atol=1e-12)


def test_silence_is_the_logarithm_of_epsilon() -> None:
    np.testing.assert_allclose(psf_mfcc(torch.zeros(1, 600))[0, 0].T.numpy(), loop_mfcc(np.zeros(600)), atol=1e-4)


def test_a_batch_is_its_rows_and_blocks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    waves = torch.rand(3, 4321, generator=torch.Generator().manual_seed(0)) - 0.5
    whole = psf_mfcc(waves)
    monkeypatch.setattr("common.audio.psf._BLOCK", 5)
    rows = torch.cat([psf_mfcc(wave[None]) for wave in waves])
    torch.testing.assert_close(whole, rows, rtol=1e-6, atol=1e-5)


def test_samples_are_rounded_and_clipped_to_int16() -> None:
    wave = torch.tensor([[0.1000001, -1.5, 1.5, 0.25]]).repeat(1, 200)
    exact = wave_of(np.array([3277, -32768, 32767, 8192] * 200, dtype=np.int16))
    torch.testing.assert_close(psf_mfcc(wave), psf_mfcc(exact), rtol=0, atol=0)


def test_precision_does_not_depend_on_the_waves_type() -> None:
    wave = torch.rand(1, 1000, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) - 0.5
    torch.testing.assert_close(psf_mfcc(wave.float()), psf_mfcc(wave.float().double()), rtol=0, atol=0)


@pytest.mark.parametrize("wave", [torch.zeros(400), torch.zeros(1, 0), torch.zeros(1, 400, dtype=torch.int16)])
def test_refuses_what_is_no_batch_of_waves(wave: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="batch of waves"):
        psf_mfcc(wave)


@pytest.mark.gpu
def test_cuda_equals_the_cpu() -> None:
    wave = torch.rand(2, 9000, generator=torch.Generator().manual_seed(2)) - 0.5
    torch.testing.assert_close(psf_mfcc(wave.cuda()).cpu(), psf_mfcc(wave), rtol=1e-6, atol=1e-5)
