"""Speech features of the lip-sync networks against librosa's pipeline, scipy's DCT and plain loops."""

import warnings

import librosa
import numpy as np
import pytest
import scipy.fft
import scipy.signal
import torch
from torch import Tensor

from common.audio.lipsync_features import (
    BANDS,
    HOP,
    MelMFCC,
    SpeechFeatures,
    Wav2LipMel,
    slaney_filters,
    speech_features,
)

MODES = ("mel", "mfcc", "mel+mfcc")


def reference_mel(wave: np.ndarray) -> np.ndarray:
    """Wav2Lip's melspectrogram, step by step, (80, frames)."""
    emphasised = scipy.signal.lfilter([1, -0.97], [1], wave)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # librosa warns of waves shorter than its window
        spectrum = librosa.stft(y=emphasised, n_fft=800, hop_length=200, win_length=800)
    basis = librosa.filters.mel(sr=16000, n_fft=800, n_mels=80, fmin=55, fmax=7600)
    decibels = 20 * np.log10(np.maximum(1e-5, basis @ np.abs(spectrum))) - 20
    return np.clip(8 * ((decibels + 100) / 100) - 4, -4, 4)


def reference_cepstra(mel: np.ndarray) -> np.ndarray:
    """13 cepstra, their regression slopes over five frames, and the slopes of these, (39, frames)."""
    static = scipy.fft.dct(mel, type=2, axis=0, norm="ortho")[:13] / np.sqrt(80)

    def slopes(rows: np.ndarray) -> np.ndarray:
        out, last = np.zeros_like(rows), rows.shape[1] - 1
        for t in range(rows.shape[1]):
            for k in (1, 2):
                out[:, t] += k * (rows[:, min(t + k, last)] - rows[:, max(t - k, 0)]) / 10
        return out

    return np.concatenate([static, slopes(static), slopes(slopes(static))])


def wave_of(kind: str, samples: int) -> np.ndarray:
    rng = np.random.default_rng(7)
    time = np.arange(samples) / 16000
    waves = {
        "noise": 0.1 * rng.standard_normal(samples),
        "whisper": 1e-4 * rng.standard_normal(samples),
        "tone": 0.99 * np.sin(2 * np.pi * 440 * time),
        "silence": np.zeros(samples),
        "clipped": np.sign(rng.standard_normal(samples)),
        "offset": np.full(samples, 0.5),
    }
    return waves[kind].astype(np.float32)


@pytest.mark.parametrize("kind", ["noise", "whisper", "tone", "silence", "clipped", "offset"])
@pytest.mark.parametrize("samples", [1, 199, 200, 401, 16000 + 77])
def test_mel_equals_librosa_s_pipeline(kind: str, samples: int) -> None:
    wave = wave_of(kind, samples)
    mel = Wav2LipMel()(torch.from_numpy(wave)[None])
    expected = reference_mel(wave)
    assert mel.shape == (1, *expected.shape) == (1, 80, Wav2LipMel().frames(samples))
    assert mel.dtype == torch.float32
    assert np.abs(mel[0].numpy() - expected).max() < 1e-5


def test_filters_equal_librosa_s() -> None:
    expected = librosa.filters.mel(sr=22050, n_fft=512, n_mels=40, fmin=0, fmax=11025, dtype=np.float64)
    np.testing.assert_allclose(slaney_filters(40, 0, 11025, 512, 22050).T, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("samples", [1, 900, 8000 + 33])
def test_cepstra_equal_scipy_s_dct_and_plain_slopes(samples: int) -> None:
    wave = wave_of("noise", samples)
    expected = reference_cepstra(reference_mel(wave))
    np.testing.assert_allclose(MelMFCC(mel=False)(torch.from_numpy(wave)[None])[0], expected, rtol=0, atol=1e-5)
    both = MelMFCC()(torch.from_numpy(wave)[None])[0].numpy()
    np.testing.assert_allclose(both, np.concatenate([reference_mel(wave), expected]), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("mode", "rows"), list(zip(MODES, (80, 39, 119), strict=True)))
def test_modes_have_their_rows_and_their_silence(mode: str, rows: int) -> None:
    features = speech_features(mode)  # type: ignore[arg-type]
    assert features.rows == rows
    assert features(torch.zeros(2, 4000)).shape == (2, rows, 21)
    assert features.silence.shape == (rows,)
    torch.testing.assert_close(features(torch.zeros(1, 4000))[0, :, 10], features.silence, rtol=0, atol=1e-6)
    assert features.silence[0] == pytest.approx(-4)


@pytest.mark.parametrize("mode", MODES)
def test_batches_and_types_change_nothing(mode: str) -> None:
    features = speech_features(mode)  # type: ignore[arg-type]
    waves = torch.from_numpy(np.stack([wave_of(kind, 3001) for kind in ("noise", "tone", "silence")]))
    together = features(waves)
    for row, wave in zip(together, waves, strict=True):
        torch.testing.assert_close(row, features(wave[None])[0], rtol=0, atol=1e-6)
    assert features(waves.double()).dtype == torch.float64
    assert features(waves.half()).dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(features(waves), together)
    assert len(features.to(torch.device("cpu")).state_dict()) == (0 if mode == "mel" else 2)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("first", "last"), [(0, 9), (20, 37), (60, 80)])
def test_a_stream_cut_by_the_documented_context_equals_the_whole(mode: str, first: int, last: int) -> None:
    features = speech_features(mode)  # type: ignore[arg-type]
    wave = torch.from_numpy(wave_of("noise", 79 * HOP + 50))[None]
    before, after = features.context
    start = max(0, first - before)
    piece = wave[:, HOP * start : HOP * (last + after)]
    cut = features(piece)[..., first - start : last - start]
    torch.testing.assert_close(cut, features(wave)[..., first:last], rtol=0, atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_the_documented_context_is_not_larger_than_needed(mode: str) -> None:
    features = speech_features(mode)  # type: ignore[arg-type]
    wave = torch.from_numpy(wave_of("noise", 40 * HOP))[None]
    before, after = features.context
    whole = features(wave)[..., 20]
    short_before = features(wave[:, HOP * (20 - before + 1) :])[..., before - 1]
    short_after = features(wave[:, : HOP * (20 + after)])[..., 20]
    assert (short_before - whole).abs().max() > 1e-6
    assert (short_after - whole).abs().max() > 1e-6


def test_features_of_a_long_wave_are_those_of_its_blocks() -> None:
    wave = torch.from_numpy(wave_of("noise", 4100 * HOP))[None]
    mel = Wav2LipMel()(wave)
    assert mel.shape[-1] == 4101
    torch.testing.assert_close(mel[..., 4090:], Wav2LipMel()(wave[:, 4000 * HOP :])[..., 90:], rtol=0, atol=1e-6)


def test_gradients_reach_the_wave_and_are_those_of_the_function() -> None:
    wave = torch.from_numpy(wave_of("noise", 500)).double()[None].requires_grad_()
    weights = torch.randn(119, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    features = MelMFCC()
    assert torch.autograd.gradcheck(lambda x: (features(x) * weights).sum(), (wave,), atol=1e-4)
    silent = torch.zeros(1, 500, requires_grad=True)
    features(silent).sum().backward()
    assert silent.grad is not None
    assert silent.grad.isfinite().all()


def test_fit_standardises_the_cepstra_and_travels_in_the_state() -> None:
    features = MelMFCC()
    plain = MelMFCC()
    waves = [torch.from_numpy(wave_of(kind, n)) for kind, n in (("noise", 5000), ("tone", 9001), ("whisper", 3000))]
    features.fit(wave if len(wave) != 3000 else wave[None] for wave in waves)
    maps = torch.cat([features(wave[None])[0] for wave in waves], dim=1)
    torch.testing.assert_close(maps[BANDS:].mean(dim=1), torch.zeros(39), rtol=0, atol=1e-3)
    torch.testing.assert_close(maps[BANDS:].std(dim=1, correction=0), torch.ones(39), rtol=0, atol=1e-3)
    before = torch.cat([plain(wave[None])[0] for wave in waves], dim=1)
    assert torch.equal(maps[:BANDS], before[:BANDS])
    torch.testing.assert_close(features(torch.zeros(1, 4000))[0, :, 10], features.silence, rtol=0, atol=1e-5)
    plain.load_state_dict(features.state_dict())
    assert torch.equal(plain(waves[0][None]), features(waves[0][None]))


def test_fit_leaves_constant_rows_alone_and_wants_waves() -> None:
    features = MelMFCC(mel=False)
    features.fit([torch.zeros(800)])
    assert features.deviation.tolist() == [1.0] * 39
    with pytest.raises(ValueError, match="no waves"):
        features.fit([])
    with pytest.raises(ValueError, match="the second positive"):
        features.standardise(torch.zeros(39), torch.zeros(39))
    with pytest.raises(ValueError, match="39 numbers"):
        features.standardise(torch.zeros(13), torch.ones(13))


@pytest.mark.parametrize("wave", [torch.zeros(0), torch.zeros(1, 0), torch.zeros(9), torch.zeros(1, 9).int()])
def test_what_is_no_batch_of_waves_is_refused(wave: Tensor) -> None:
    for features in (Wav2LipMel(), MelMFCC()):
        with pytest.raises(ValueError, match="batch of waves"):
            features(wave)


def test_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="'plp' are not one of mel, mfcc"):
        speech_features("plp")  # type: ignore[arg-type]


@pytest.mark.gpu
@pytest.mark.parametrize("mode", MODES)
def test_features_on_a_gpu_are_those_of_the_cpu(mode: str) -> None:
    features: SpeechFeatures = speech_features(mode)  # type: ignore[arg-type]
    wave = torch.from_numpy(wave_of("tone", 5003))[None]
    expected = features(wave)
    torch.testing.assert_close(features.cuda()(wave.cuda()).cpu(), expected, rtol=0, atol=1e-5)
    assert features.silence.is_cuda
