"""Features against float64 loops that follow the definitions, and against librosa and scipy."""

import librosa
import numpy as np
import pytest
import scipy.fft
import torch

from common.audio.features import (
    FEATURES,
    MFCC,
    BandNormalize,
    LogMel,
    PreEmphasis,
    dct_matrix,
    delta,
    hz_to_mel,
    mel_edges,
    mel_to_hz,
    tile_to,
    triangle_filters,
)

RATE = 16000


def speechlike(samples: int, seed: int = 0) -> np.ndarray:
    """Int16-valued noise with formant-like colour and pauses, in [-1, 1]."""
    rng = np.random.default_rng(seed)
    time = np.arange(samples) / RATE
    voiced = sum(np.sin(2 * np.pi * f * time + 3 * np.sin(5 * time)) / f for f in (130, 260, 520, 1900, 3100))
    loudness = 0.5 + 0.5 * np.sin(2 * np.pi * 1.3 * time)
    wave = 30 * loudness * voiced + 0.02 * rng.standard_normal(samples)
    return np.round(np.clip(wave, -1, 1) * 32767) / 32768


def wen_reference(wave: np.ndarray) -> np.ndarray:
    """Float64 frames-by-frames Wen log-mel (frames, 64) from the written definition."""
    signal = wave * 32768.0
    edges_mel = [2595 * np.log10(1 + f / 700) for f in (20.0, 7200.0)]
    edges = [700 * (10 ** ((edges_mel[0] + (edges_mel[1] - edges_mel[0]) * i / 65) / 2595) - 1) for i in range(66)]
    filters = np.zeros((513, 64))
    for i in range(64):
        left, centre, right = (round(edges[i + j] / 15.625) for j in range(3))
        height = 2.0 / ((right - left) * 15.625)
        for k in range(left + 1, right):
            if k <= centre:
                filters[k, i] = height * (k - left) / (centre - left)
            else:
                filters[k, i] = height * (right - k) / (right - centre)
    window = 0.54 - 0.46 * np.cos(2 * np.pi * np.arange(400) / 399)
    prior, rows = 0.0, []
    for frame_index in range(len(signal) // 160 + 1):
        frame = signal[frame_index * 160 : frame_index * 160 + 400]
        frame = np.array([frame[j % len(frame)] for j in range(400)]) if len(frame) else np.zeros(400)
        emphasised = frame - 0.97 * np.concatenate([[prior], frame[:-1]])
        prior = frame[-1]
        power = np.abs(np.fft.rfft(emphasised * window, 1024)) ** 2
        rows.append(np.log(np.maximum(power @ filters, 1e-5)))
    return np.array(rows)


def mfcc_reference(wave: np.ndarray, orthonormal: bool) -> np.ndarray:
    """Float64 cepstra (frames, 40) by plain loops over paper 2, eqs. 4 to 8."""
    emphasised = np.array([wave[i] - 0.95 * (wave[i - 1] if i else 0.0) for i in range(len(wave))])
    edges = [700 * (10 ** (m / 2595) - 1) for m in np.linspace(2595 * np.log10(1 + 20 / 700), hz_to_mel(8000), 66)]
    window = np.array([0.54 - 0.46 * np.cos(2 * np.pi * n / 399) for n in range(400)])
    rows = []
    for start in range(0, len(wave) - 400 + 1, 200):
        power = np.abs(np.fft.rfft(emphasised[start : start + 400] * window, 512)) ** 2
        energies = []
        for i in range(64):
            gains = [np.interp(k * 31.25, edges[i : i + 3], [0, 1, 0]) for k in range(257)]
            energies.append(max(float(np.dot(power, gains)), 1e-10))
        logs = np.log(energies)
        row = [sum(logs[i] * np.cos(n * (i + 0.5) * np.pi / 64) for i in range(64)) for n in range(40)]
        if orthonormal:
            row = [c * np.sqrt((1 if n == 0 else 2) / 64) for n, c in enumerate(row)]
        rows.append(row)
    return np.array(rows)


@pytest.mark.parametrize("samples", [1, 7, 159, 160, 399, 400, 401, 560, 1601, 4797, 16000])
def test_wen_log_mel_equals_the_definition(samples):
    wave = speechlike(samples)
    expected = wen_reference(wave)
    single = LogMel.wen(normalize=False)(torch.tensor(wave, dtype=torch.float32)[None])
    fast = LogMel()(torch.tensor(wave, dtype=torch.float32)[None])
    assert single.dtype == fast.dtype == torch.float32
    assert single.shape == fast.shape == (1, 1, 64, samples // 160 + 1)
    assert np.abs(single[0, 0].T.numpy() - expected).max() < 1e-5
    assert np.abs(fast[0, 0].T.numpy() - expected).max() < 5e-4


def test_wen_normalisation_equals_the_definition_over_a_batch_of_noise_and_speech():
    waves = np.stack([speechlike(24001, seed) for seed in range(3)])
    waves[1] = np.random.default_rng(0).uniform(-1, 1, 24001)
    features = LogMel.wen()(torch.tensor(waves, dtype=torch.float32))[:, 0]
    for wave, ours in zip(waves, features, strict=True):
        expected = wen_reference(wave)
        expected = (expected - expected.mean(0)) / (expected.std(0) + np.finfo(np.float32).eps)
        assert np.abs(ours.T.numpy() - expected).max() < 1e-4


@pytest.mark.media
def test_wen_log_mel_on_real_recordings(media):
    soundfile = pytest.importorskip("soundfile")
    for path in sorted((media / "real" / "speech").glob("*.wav")):
        wave, _ = soundfile.read(path, dtype="float32")
        ours = LogMel.wen(normalize=False)(torch.tensor(wave)[None])[0, 0].T.numpy()
        assert np.abs(ours - wen_reference(wave.astype(np.float64))).max() < 1e-4, path.name


@pytest.mark.parametrize("orthonormal", [True, False])
def test_mfcc_equals_plain_loops(orthonormal):
    wave = speechlike(2399)
    ours = MFCC(orthonormal=orthonormal)(torch.tensor(wave, dtype=torch.float32)[None])[0]
    expected = mfcc_reference(wave, orthonormal)
    assert ours.shape == (3, 40, 10)
    assert np.abs(ours[0].T.numpy() - expected).max() < (1e-4 if orthonormal else 1e-3)


def test_mfcc_equals_librosa():
    wave = speechlike(16000)
    emphasised = librosa.effects.preemphasis(wave, coef=0.95, zi=[0.0])
    frames = librosa.util.frame(emphasised, frame_length=400, hop_length=200) * np.hamming(400)[:, None]
    power = np.abs(np.fft.rfft(frames, 512, axis=0)) ** 2
    filters = librosa.filters.mel(sr=RATE, n_fft=512, n_mels=64, fmin=20, fmax=8000, htk=True, norm=None)
    static = scipy.fft.dct(np.log(np.maximum(filters @ power, 1e-10)), axis=0, norm="ortho")[:40]
    ours = MFCC()(torch.tensor(wave, dtype=torch.float32)[None])[0].numpy()
    assert np.abs(ours[0] - static).max() < 1e-3
    # librosa's slope is the same regression; only its edges differ (nearest of the slope, not of the input)
    slope = librosa.feature.delta(static, width=5, mode="nearest")
    assert np.abs(ours[1] - slope).max() < 1e-3
    twice = librosa.feature.delta(slope, width=5, mode="nearest")
    assert np.abs(ours[2] - twice).max() < 1e-3


def test_mel_scale_is_log10_not_the_papers_ln():
    assert hz_to_mel(4000) == pytest.approx(2146.06, abs=0.01)
    assert hz_to_mel(4000, "ln") == pytest.approx(4941.5, abs=0.5)
    assert mel_to_hz(hz_to_mel(1234.5)) == pytest.approx(1234.5)
    printed = mel_to_hz(np.linspace(hz_to_mel(20, "ln"), hz_to_mel(7200, "ln"), 66), "ln")
    assert np.allclose(printed, mel_edges(64, 20, 7200)), "the factor must leave the filters where they are"


def test_filters_and_dct_equal_librosa_and_scipy():
    ours = triangle_filters(40, 0, 8000, 512, RATE)
    theirs = librosa.filters.mel(
        sr=RATE, n_fft=512, n_mels=40, fmin=0, fmax=8000, htk=True, norm=None, dtype=np.float64
    )
    assert np.allclose(ours, theirs.T, atol=1e-10)
    values = np.random.default_rng(1).standard_normal(23)
    assert np.allclose(values @ dct_matrix(23, 23), scipy.fft.dct(values, norm="ortho"))
    assert np.allclose(2 * values @ dct_matrix(23, 9, orthonormal=False), scipy.fft.dct(values)[:9])


def test_delta_of_a_ramp_is_constant_and_equals_a_loop():
    ramp = torch.arange(20, dtype=torch.float64)[None] * 0.3
    assert torch.allclose(delta(ramp)[:, 2:-2], torch.full((1, 16), 0.3, dtype=torch.float64))
    values = np.random.default_rng(2).standard_normal(9)

    def at(i: int) -> float:
        return values[min(max(i, 0), 8)]

    loop = [sum(k * (at(i + k) - at(i - k)) for k in (1, 2)) / 10 for i in range(9)]
    assert np.allclose(delta(torch.tensor(values)).numpy(), loop)
    assert torch.equal(delta(torch.ones(2, 1)), torch.zeros(2, 1))


def test_pre_emphasis_equals_a_filter():
    wave = speechlike(333)
    expected = scipy.signal.lfilter([1, -0.95], [1], wave)
    assert np.allclose(PreEmphasis()(torch.tensor(wave)).numpy(), expected)
    assert PreEmphasis(0.5)(torch.ones(2, 1)).tolist() == [[1.0], [1.0]]


@pytest.mark.parametrize("name", sorted(FEATURES))
@pytest.mark.parametrize("samples", [1, 399, 400, 401, 799, 5001, 16000 * 60])
def test_frame_count_finite_and_same_alone_or_in_a_batch(name, samples):
    feature = FEATURES[name](normalize=True)
    waves = torch.stack([torch.tensor(speechlike(samples, seed), dtype=torch.float32) for seed in range(3)])
    batch = feature(waves)
    assert batch.shape == (3, feature.channels, feature.bands, feature.frames(samples))
    assert batch.isfinite().all()
    alone = feature(waves[1:2])
    assert torch.allclose(alone[0], batch[1], atol=2e-3)


@pytest.mark.parametrize("name", sorted(FEATURES))
def test_samples_is_the_least_for_a_frame_count(name):
    feature = FEATURES[name]()
    for frames in (2, 5, 300):
        assert feature.frames(feature.samples(frames)) == frames
        assert feature.frames(feature.samples(frames) - 1) == frames - 1


@pytest.mark.parametrize("name", sorted(FEATURES))
def test_gradients(name):
    rng = torch.Generator().manual_seed(0)
    small = {"sample_rate": 1000, "bands": 4, "low": 20.0, "high": 400.0}
    extra = {"fft": 64} if name == "logmel" else {"coefficients": 3}
    feature = FEATURES[name](**small, **extra).double()
    wave = torch.randn(2, 53, generator=rng, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(feature, (wave * 0.1,), atol=1e-4)


def test_silence_is_flat_and_has_gradients():
    for feature in (LogMel.wen(), MFCC(normalize=True)):
        wave = torch.zeros(2, 4000, requires_grad=True)
        out = feature(wave)
        assert torch.equal(out, torch.zeros_like(out))
        out.square().sum().backward()
        assert torch.equal(wave.grad, torch.zeros_like(wave))


def test_band_normalisation():
    features = torch.randn(2, 5, 50, generator=torch.Generator().manual_seed(0)) * 3 + 7
    features[0, 2] = 4.25
    out = BandNormalize()(features)
    assert torch.equal(out[0, 2], torch.zeros(50))
    assert torch.allclose(out.mean(-1), torch.zeros(2, 5), atol=1e-5)
    assert torch.allclose(out[1].std(-1, correction=0), torch.ones(5), atol=1e-5)
    assert torch.equal(BandNormalize()(torch.randn(1, 5, 1)), torch.zeros(1, 5, 1))


def test_full_precision_under_autocast():
    wave = torch.tensor(speechlike(3200), dtype=torch.float32)[None]
    for feature in (LogMel(), MFCC()):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inside = feature(wave)
        assert inside.dtype == torch.float32
        assert torch.equal(inside, feature(wave))


def test_tile_to_repeats_cyclically():
    wave = torch.arange(6.0).reshape(2, 3)
    assert tile_to(wave, 7).tolist() == [[0, 1, 2, 0, 1, 2, 0], [3, 4, 5, 3, 4, 5, 3]]
    assert tile_to(wave, 2) is wave
    assert tile_to(wave[0], 4).tolist() == [0, 1, 2, 0]
    with pytest.raises(ValueError, match="no samples"):
        tile_to(torch.zeros(1, 0), 4)


@pytest.mark.parametrize("wave", [torch.zeros(3), torch.zeros(1, 0), torch.zeros(1, 9, dtype=torch.int16)])
def test_wrong_inputs_are_refused(wave):
    for feature in (LogMel(), MFCC()):
        with pytest.raises(ValueError, match="expected a floating-point batch"):
            feature(wave)


@pytest.mark.parametrize(
    ("feature", "arguments"),
    [
        (LogMel, {"high": 9000.0}),
        (LogMel, {"fft": 256}),
        (LogMel, {"hop_ms": 0.01}),
        (MFCC, {"frame_ms": 50}),
        (MFCC, {"coefficients": 65}),
        (MFCC, {"low": -1.0}),
    ],
)
def test_wrong_settings_are_refused(feature, arguments):
    with pytest.raises(ValueError):
        feature(**arguments)


@pytest.mark.gpu
def test_same_on_a_gpu():
    wave = torch.tensor(speechlike(16001), dtype=torch.float32)[None]
    for feature in (LogMel(), MFCC()):
        assert torch.allclose(feature(wave), feature.cuda()(wave.cuda()).cpu(), atol=1e-3)
