"""Synthetic speech: heard by measuring pitch, spectra and durations, and by who says which phonemes."""

import hashlib
import subprocess
import sys
import threading
from itertools import pairwise

import librosa
import numpy as np
import pytest
import torch

from common.errors import UserError
from common.synthetic.sentences import ENGLISH, MANDARIN
from common.synthetic.speech import VoiceParameters, speak, voice_from_vector

RATE = 16000


def pitches(wave: torch.Tensor) -> np.ndarray:
    """Voiced fundamental frequencies (Hz): the first high peak of each frame's normalised autocorrelation."""
    found = []
    for frame in librosa.util.frame(wave.numpy().astype(np.float64), frame_length=1024, hop_length=512).T:
        if np.sqrt(np.mean(frame**2)) < 0.02:
            continue
        full = np.correlate(frame, frame, "full")[1023:]
        energy = np.cumsum(frame**2)
        lags = np.arange(RATE // 500, RATE // 50)
        overlap = np.sqrt(energy[1023 - lags] * (energy[-1] - energy[lags - 1]))
        likeness = full[lags] / overlap
        peaks = np.flatnonzero((likeness[1:-1] >= likeness[:-2]) & (likeness[1:-1] > likeness[2:])) + 1
        high = peaks[likeness[peaks] > max(0.6, 0.9 * likeness.max())]
        if len(high):
            found.append(RATE / lags[high[0]])
    return np.array(found)


def band_db(wave: torch.Tensor, low: float, high: float) -> float:
    """Energy between two frequencies relative to all, in dB."""
    energy = np.abs(np.fft.rfft(wave.numpy().astype(np.float64))) ** 2
    frequency = np.fft.rfftfreq(len(wave), 1 / RATE)
    return float(10 * np.log10(energy[(frequency >= low) & (frequency < high)].sum() / energy.sum()))


def autocorrelation_peak(wave: torch.Tensor) -> float:
    """Mean height of the pitch peak of the high-passed frames: falls as noise is mixed in."""
    frames = librosa.util.frame(librosa.effects.preemphasis(wave.numpy(), coef=0.97), frame_length=800, hop_length=400)
    heights = [np.correlate(f, f, "full")[800 + 40 : 800 + 320].max() / (f @ f + 1e-9) for f in frames.T]
    return float(np.mean(heights))


def envelope(wave: torch.Tensor) -> np.ndarray:
    """Smooth long-term log spectrum over 300 frequencies from 400 to 4500 Hz, spaced by a constant factor."""
    spectrum = librosa.feature.melspectrogram(y=wave.numpy(), sr=RATE, n_mels=200, n_fft=2048, fmax=6000)
    levels = np.log(spectrum.mean(1) + 1e-12)
    grid = np.interp(np.geomspace(400, 4500, 300), librosa.mel_frequencies(n_mels=200, fmax=6000), levels)
    return np.convolve(grid, np.ones(15) / 15, "same")[15:-15]


def formant_factor(plain: torch.Tensor, moved: torch.Tensor) -> float:
    """The factor on frequency under which the second voice's envelope is most like the first's."""
    reference, other = envelope(plain), envelope(moved)
    size = len(reference)
    steps = range(-45, 46)
    likeness = [
        np.corrcoef(reference[max(0, -s) : size - max(0, s)], other[max(0, s) : size + min(0, s)])[0, 1] for s in steps
    ]
    return float(np.exp(np.log(4500 / 400) / 299 * steps[int(np.argmax(likeness))]))


MEASURES = {
    0: lambda wave: float(np.median(pitches(wave))),
    2: lambda wave: float(np.subtract(*np.log(np.percentile(pitches(wave), [90, 10])))),
    3: lambda wave: -len(wave) / RATE,
    4: lambda wave: -autocorrelation_peak(wave),
    5: lambda wave: band_db(wave, 3000, 7000) - band_db(wave, 200, 800),
    6: lambda wave: band_db(wave, 2000, 3100) - band_db(wave, 300, 1500),
    7: lambda wave: band_db(wave, 200, 450) - band_db(wave, 560, 880),
}


@pytest.mark.parametrize("language", ["cmn", "en"])
@pytest.mark.parametrize("dimension", sorted(MEASURES))
def test_each_dimension_moves_its_own_measure(dimension, language):
    text = (MANDARIN if language == "cmn" else ENGLISH)[3]
    measured = []
    for value in (-2.0, 0.0, 2.0):
        identity = np.zeros(8)
        identity[dimension] = value
        measured.append(MEASURES[dimension](speak(text, language, voice_from_vector(identity)).wave))
    assert measured[0] < measured[1] < measured[2]


def test_pitch_and_duration_follow_the_parameters_in_their_units():
    for language, text in (("cmn", MANDARIN[1]), ("en", ENGLISH[1])):
        for pitch in (100.0, 220.0):
            for formant_scale in (0.85, 1.2):
                voice = VoiceParameters(pitch=pitch, formant_scale=formant_scale)
                assert np.median(pitches(speak(text, language, voice).wave)) == pytest.approx(pitch, rel=0.1)
        slow, fast = (len(speak(text, language, VoiceParameters(rate=rate)).wave) for rate in (0.7, 1.4))
        assert 1.6 < slow / fast < 2.6
        shapes = [len(speak(text, language, VoiceParameters(formant_scale=scale)).wave) for scale in (0.8, 1.25)]
        assert shapes[0] == pytest.approx(shapes[1], rel=0.08), "formants must not change the speed"


@pytest.mark.parametrize(("language", "text"), [("cmn", MANDARIN[6]), ("en", ENGLISH[6])])
def test_formant_scale_moves_the_spectrum_by_its_factor(language, text):
    plain = speak(text, language).wave
    for value in (-2.0, 2.0):
        voice = voice_from_vector(np.array([0.0, value]))
        moved = speak(text, language, VoiceParameters(formant_scale=voice.formant_scale)).wave
        assert formant_factor(plain, moved) == pytest.approx(voice.formant_scale, abs=0.05)


def test_all_sentences_are_audible_and_sane():
    assert len(MANDARIN) >= 40
    assert len(ENGLISH) >= 40
    assert len(set(MANDARIN)) == len(MANDARIN)
    assert all(len(text) <= 20 for text in MANDARIN)
    for language, sentences in (("cmn", MANDARIN), ("en", ENGLISH)):
        for index, text in enumerate(sentences):
            speech = speak(text, language, seed=index)
            wave, phonemes = speech.wave, speech.phonemes
            assert wave.dtype == torch.float32
            assert 0.8 < len(wave) / RATE < 6, text
            assert 20 * wave.square().mean().sqrt().log10() == pytest.approx(-23, abs=0.1)
            assert wave.abs().max() < 1
            assert wave[: RATE // 8].square().mean().sqrt() > 0.004, "it must not begin with a pause"
            assert phonemes[0].start < RATE // 10
            assert phonemes[-1].end == len(wave)
            assert all(event.start < event.end for event in phonemes)
            assert all(a.end == b.start for a, b in pairwise(phonemes))
            assert all(0 <= word.start < word.end <= len(wave) for word in speech.words)
            assert all(a.end <= b.start for a, b in pairwise(speech.words))
            assert len([event for event in phonemes if event.symbol != "_"]) > len(speech.words)


def test_mandarin_text_gives_mandarin_phonemes_and_english_english():
    mandarin = {event.symbol for text in MANDARIN for event in speak(text, "zh").phonemes}
    english = {event.symbol for text in ENGLISH for event in speak(text, "en").phonemes}
    assert {"S;", "ts.h", "s.", "z.", "X", "y", "ts", "ph", "th", "kh", "A", "N", "_"} <= mandarin
    assert {"D", "T", "w", "r", "v", "I", "3:", "dZ", "tS"} <= english
    assert not {"D", "T", "v", "dZ"} & mandarin
    assert not any("'" in symbol or len(symbol) > 5 for symbol in mandarin | english)
    assert [word.text for word in speak("茶。", "cmn").words] == ["茶"]
    assert [word.text for word in speak("Two birds.", "en").words] == ["Two", "birds"]


@pytest.mark.parametrize("formant_scale", [0.8, 1.0, 1.25])
def test_phoneme_times_are_those_of_the_sound(formant_scale):
    speech = speak("Sassy sushi.", "en", VoiceParameters(formant_scale=formant_scale, breath_db=-60.0))
    wave = speech.wave.double().numpy()
    hiss, voiced = [], []
    for event in speech.phonemes:
        middle = wave[event.start + (event.end - event.start) // 4 : event.end - (event.end - event.start) // 4]
        high = np.abs(np.diff(middle)).mean() / (np.abs(middle).mean() + 1e-9)
        if event.symbol in ("s", "S"):
            hiss.append(high)
        elif event.symbol != "_":
            voiced.append(high)
    assert len(hiss) == 4
    assert len(voiced) >= 4
    assert min(hiss) > 1.5 * max(voiced)


def test_same_arguments_same_bytes_whatever_was_said_before_and_in_another_process():
    program = (
        "import hashlib; from common.synthetic.speech import *\n"
        "voice = VoiceParameters(pitch=180, formant_scale=1.1)\n"
        "print(hashlib.sha256(speak('请把窗户打开一点。', 'cmn', voice, seed=3).wave.numpy().tobytes()).hexdigest())"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    speak(ENGLISH[0], "en")
    speech = speak("请把窗户打开一点。", "cmn", VoiceParameters(pitch=180, formant_scale=1.1), seed=3)
    assert hashlib.sha256(speech.wave.numpy().tobytes()).hexdigest() == run.stdout.strip()
    other = speak("请把窗户打开一点。", "cmn", VoiceParameters(pitch=180, formant_scale=1.1), seed=4)
    assert not np.array_equal(other.wave.numpy(), speech.wave.numpy())


def test_threads_take_turns():
    expected = [speak(text, "en").wave for text in ENGLISH[:4]]
    results: dict[int, torch.Tensor] = {}
    threads = [
        threading.Thread(target=lambda i=i: results.__setitem__(i, speak(ENGLISH[i], "en").wave)) for i in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(results[i], expected[i]) for i in range(4))


def test_variants_change_the_timbre_not_the_pitch():
    plain, variant = (speak(ENGLISH[2], "en", VoiceParameters(pitch=200, variant=name)).wave for name in ("", "f2"))
    assert np.median(pitches(variant)) == pytest.approx(np.median(pitches(plain)), rel=0.08)
    assert not torch.equal(plain, variant[: len(plain)])


def test_voice_from_vector_is_smooth_monotone_and_bounded():
    names = ["pitch", "formant_scale", "pitch_range", "rate", "breath_db", "tilt_db", "presence_db", "nasality_db"]
    for dimension, name in enumerate(names):
        grid = np.linspace(-4, 4, 41)
        values = []
        for value in grid:
            voice = voice_from_vector(np.eye(8)[dimension] * value)
            values.append(getattr(voice, name))
            others = [n for n in names if n != name]
            assert all(getattr(voice, n) == getattr(voice_from_vector(np.zeros(8)), n) for n in others)
        assert (np.diff(values) > 0).all()
    for seed in range(50):
        voice_from_vector(np.random.default_rng(seed).standard_normal(12) * 5)
    assert voice_from_vector(np.ones(2)) == voice_from_vector(np.array([1.0, 1.0, 0, 0, 0, 0, 0, 0, 9.0]))
    with pytest.raises(ValueError, match="finite"):
        voice_from_vector(np.array([np.nan]))


def test_what_cannot_be_said():
    with pytest.raises(UserError, match="'fr'"):
        speak("bonjour", "fr")
    for text in ("", " ", "。"):
        with pytest.raises(UserError, match="nothing to say"):
            speak(text, "cmn")
    for variant in ("nobody", "../f2", "f2/../f3"):
        with pytest.raises(UserError, match="no voice variant"):
            speak("hello", "en", VoiceParameters(variant=variant))
    with pytest.raises(ValueError, match="pitch"):
        VoiceParameters(pitch=20.0)
