"""Speech from espeak-ng with the time of every phoneme, in voices that a vector describes.

espeak-ng (library and data from the `espeakng-loader` wheel; no program is started) keeps its state in globals, and
what it says depends on what it said before. So the library is loaded, used once and unloaded for every sentence,
which costs about a millisecond, needs no clean-up in forked workers and makes `speak` a pure function of its
arguments.
"""

import _ctypes
import ctypes
import threading
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import espeakng_loader
import numpy as np
import scipy.ndimage
import scipy.signal
import torch
from torch import Tensor

from common.audio.io import StreamResampler
from common.errors import UserError

SAMPLE_RATE = 16000
"""Hz of everything that `speak` returns."""
LEVEL_DBFS = -23.0
"""Root mean square of `speak`'s waves; lower where a peak would pass 0.97."""

_ESPEAK_RATE = 22050
_PEAK = 0.97
_WORDS_PER_MINUTE = 175
_RESAMPLE_STEP = 50  # Hz; formant scales are met to 0.12 %, and the resampling filters stay short
_PITCH_SPREAD = 0.37  # log of the ratio of espeak's highest to lowest pitch in a plain voice
_TAPS = 255
_SYNCHRONOUS, _PHONEME_EVENTS, _DO_NOT_EXIT, _UTF8 = 2, 0x1, 0x8000, 1
_END_OF_LIST, _WORD, _PHONEME = 0, 1, 7
_STRESS = "',%="
_LOCK = threading.Lock()


@dataclass(frozen=True)
class _Language:
    definition: str
    """Lines of an espeak voice file."""
    centre: float
    """Where the median pitch lies between the lowest and the highest (measured)."""


_MANDARIN = _Language("language cmn\nphonemes cmn\ndictionary cmn\nwords 1\ndict_min 100000\n", 0.36)
_LANGUAGES = {
    "cmn": _MANDARIN,
    "zh": _MANDARIN,
    "en": _Language("language en\ntunes s1 c1 q1 e1\n", 0.55),
}


@dataclass(frozen=True)
class VoiceParameters:
    """How a voice sounds; the defaults are espeak's plain male voice, brought to 150 Hz."""

    pitch: float = 150.0
    """Median fundamental frequency in Hz, 60 to 400."""
    formant_scale: float = 1.0
    """Factor on all formant frequencies, 0.75 to 1.35; over 1 is a shorter vocal tract."""
    pitch_range: float = 1.0
    """Factor on the spread of the logarithm of the pitch, 0 to 3; 0 is monotone."""
    rate: float = 1.0
    """Factor on the speed, 0.5 to 2."""
    breath_db: float = -40.0
    """Level of noise that follows the voice's envelope, relative to it, in dB; at most 0."""
    tilt_db: float = 0.0
    """Spectral slope in dB per octave around 1 kHz, between 125 Hz and 8 kHz; -12 to 12."""
    presence_db: float = 0.0
    """Gain of a band around 2.5 kHz, -24 to 24 dB."""
    nasality_db: float = 0.0
    """Depth of a dip around 700 Hz, -24 to 24 dB; negative is a peak."""
    variant: str = ""
    """One of espeak's own voice variants, such as f2 or m3, for its timbre; pitch stays as given."""

    def __post_init__(self) -> None:
        ranges = {
            "pitch": (60.0, 400.0),
            "formant_scale": (0.75, 1.35),
            "pitch_range": (0.0, 3.0),
            "rate": (0.5, 2.0),
            "breath_db": (-200.0, 0.0),
            "tilt_db": (-12.0, 12.0),
            "presence_db": (-24.0, 24.0),
            "nasality_db": (-24.0, 24.0),
        }
        for name, (low, high) in ranges.items():
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} {getattr(self, name)} is outside {low} to {high}")


@dataclass(frozen=True)
class PhonemeEvent:
    """One phoneme: espeak's mnemonic without stress marks ("_" is a pause), from `start` to before `end`, samples."""

    symbol: str
    start: int
    end: int


@dataclass(frozen=True)
class WordEvent:
    """One word as espeak counts them (in Mandarin often one character), from `start` to before `end`, in samples."""

    text: str
    start: int
    end: int


@dataclass(frozen=True)
class Speech:
    """A spoken sentence. Phonemes are in order and touch each other; the last ends with the wave."""

    wave: Tensor
    """float32 (n,), 16 kHz."""
    phonemes: list[PhonemeEvent]
    words: list[WordEvent]


def voice_from_vector(identity: np.ndarray) -> VoiceParameters:
    """The voice of an identity vector (K,), standard normal; entries past the eighth are not used, missing ones are 0.

    Each entry moves one parameter, monotonically: 0 pitch (up), 1 formant scale (up), 2 pitch range (up), 3 rate (up),
    4 breath (up), 5 tilt (brighter), 6 presence (louder), 7 nasality (deeper dip). A smooth limit at 2.5 keeps wild
    draws human. The last three are fixed filters: features that are normalised per band and clip do not see them.
    """
    entries = np.zeros(8)
    given = np.asarray(identity, dtype=np.float64).ravel()[:8]
    entries[: given.size] = given
    if not np.isfinite(entries).all():
        raise ValueError("an identity vector must be finite")
    u = [float(2.5 * np.tanh(entry / 2.5)) for entry in entries]
    return VoiceParameters(
        pitch=150.0 * 2.0 ** (0.32 * u[0]),
        formant_scale=float(np.exp(0.075 * u[1])),
        pitch_range=float(np.exp(0.35 * u[2])),
        rate=float(np.exp(0.1 * u[3])),
        breath_db=-30.0 + 6.0 * u[4],
        tilt_db=2.0 * u[5],
        presence_db=4.0 * u[6],
        nasality_db=4.0 * u[7],
    )


def speak(text: str, language: str, voice: VoiceParameters | None = None, seed: int = 0) -> Speech:
    """Say `text` in Mandarin ("cmn" or "zh") or English ("en"); the same arguments give the same bytes.

    `seed` decides what differs between two takes of one voice: pitch by 2 %, rate by 3 % (standard deviations) and
    the noise of the breath. Formants are scaled by playing espeak's wave faster or slower, with pitch and rate set
    the other way before; the filters are of zero phase. Event times are those of the returned wave.

    Raises:
        UserError: an unknown language or variant, a text with nothing to say, espeak-ng missing.
    """
    voice = voice or VoiceParameters()
    if language not in _LANGUAGES:
        raise UserError(f"no voice speaks {language!r}: choose from {', '.join(sorted(_LANGUAGES))}")
    rng = np.random.default_rng(seed)
    take_pitch, take_rate = np.exp(rng.normal(0, [0.02, 0.03]))
    source = _source_rate(voice.formant_scale)
    scale = source / _ESPEAK_RATE
    pitch, rate = voice.pitch * take_pitch / scale, voice.rate * take_rate / scale
    definition = _definition(_LANGUAGES[language], pitch, voice)
    samples, events = _synthesise(text, definition, round(_WORDS_PER_MINUTE * rate))
    if not samples.any():
        raise UserError(f"espeak-ng found nothing to say in {text!r}")
    resampler = StreamResampler(source, SAMPLE_RATE)
    sound = np.concatenate([resampler.push(samples.astype(np.float32) / 32768), resampler.finish()])
    wave = _level(_breathe(_colour(sound.astype(np.float64), voice), voice.breath_db, rng))
    times = [(kind, round(sample * SAMPLE_RATE / source), label) for kind, sample, label in events]
    phonemes = _phonemes([(start, label) for kind, start, label in times if kind == _PHONEME], wave.size)
    words = _words([(start, label) for kind, start, label in times if kind == _WORD], phonemes)
    return Speech(torch.from_numpy(wave.astype(np.float32)), phonemes, words)


def _source_rate(formant_scale: float) -> int:
    """The rate at which espeak's wave has its formants scaled, a multiple of a step that keeps ratios small."""
    return round(_ESPEAK_RATE * formant_scale / _RESAMPLE_STEP) * _RESAMPLE_STEP


def _definition(language: _Language, pitch: float, voice: VoiceParameters) -> str:
    """An espeak voice file: the language, the lines of the variant, and the pitch range around the median."""
    ratio = float(np.exp(_PITCH_SPREAD * voice.pitch_range))
    lowest = pitch / (1 + language.centre * (ratio - 1))
    lines = f"name speechface\n{language.definition}"
    if voice.variant:
        path = Path(espeakng_loader.get_data_path()) / "voices" / "!v" / voice.variant
        if not voice.variant.isidentifier() or not path.is_file():
            raise UserError(f"espeak-ng has no voice variant {voice.variant!r}: try f1 to f5 or m1 to m8")
        skipped = ("language", "name", "gender", "pitch")
        kept = [line for line in path.read_text("utf-8", "replace").splitlines() if not line.startswith(skipped)]
        lines += "\n".join(kept) + "\n"
    return f"{lines}pitch {round(lowest)} {round(lowest * ratio)}\n"


def _colour(sound: np.ndarray, voice: VoiceParameters) -> np.ndarray:
    """Tilt, presence and nasality as one linear-phase filter, centred so that it delays nothing."""
    frequency = np.linspace(0, SAMPLE_RATE / 2, 513)
    octaves = np.log2(np.clip(frequency, 125.0, None) / 1000.0)
    gain = voice.tilt_db * octaves
    gain += voice.presence_db * np.exp(-0.5 * ((octaves - np.log2(2.5)) / 0.3) ** 2)
    gain -= voice.nasality_db * np.exp(-0.5 * ((octaves - np.log2(0.7)) / 0.3) ** 2)
    taps = scipy.signal.firwin2(_TAPS, frequency, 10 ** (gain / 20), fs=SAMPLE_RATE)
    return np.asarray(scipy.signal.fftconvolve(sound, taps, mode="same"))


def _breathe(sound: np.ndarray, level_db: float, rng: np.random.Generator) -> np.ndarray:
    """Add noise over 1 kHz whose level follows the envelope (10 ms) of the sound."""
    envelope = np.sqrt(scipy.ndimage.uniform_filter1d(sound**2, SAMPLE_RATE // 100).clip(min=0))
    high_pass = scipy.signal.firwin(_TAPS, 1000, fs=SAMPLE_RATE, pass_zero=False)
    noise = scipy.signal.fftconvolve(rng.standard_normal(sound.size), high_pass, mode="same")
    return np.asarray(sound + 10 ** (level_db / 20) * envelope * noise)


def _level(sound: np.ndarray) -> np.ndarray:
    sound = sound - sound.mean()
    gain = 10 ** (LEVEL_DBFS / 20) / np.sqrt(np.mean(sound**2))
    return np.asarray(sound * min(gain, _PEAK / np.abs(sound).max()))


def _phonemes(starts: list[tuple[int, str]], length: int) -> list[PhonemeEvent]:
    """Each phoneme lasts until the next; those that last no sample, espeak's markers, are left out."""
    ends = [start for start, _ in starts[1:]] + [length]
    result: list[PhonemeEvent] = []
    for (start, label), end in zip(starts, ends, strict=True):
        symbol = "_" if label.startswith("_") else label.lstrip(_STRESS)
        if end > start and symbol:
            result.append(PhonemeEvent(symbol, start, end))
    return result


def _words(starts: list[tuple[int, str]], phonemes: list[PhonemeEvent]) -> list[WordEvent]:
    """Each word lasts until the next word or the last phoneme that is no pause."""
    last = max((event.end for event in phonemes if event.symbol != "_"), default=0)
    ends = [start for start, _ in starts[1:]] + [last]
    return [WordEvent(label, start, end) for (start, label), end in zip(starts, ends, strict=True) if end > start]


class _Identifier(ctypes.Union):
    _fields_ = [("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8)]


class _Event(ctypes.Structure):
    """`espeak_EVENT` of speak_lib.h."""

    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _Identifier),
    ]


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


def _synthesise(text: str, definition: str, words_per_minute: int) -> tuple[np.ndarray, list[tuple[int, int, str]]]:
    """int16 samples at espeak's rate, and (type, sample, label) of the word and phoneme events."""
    pieces: list[np.ndarray] = []
    events: list[tuple[int, int, str]] = []

    def collect(samples: Any, count: int, event: Any) -> int:
        if samples and count > 0:
            pieces.append(np.ctypeslib.as_array(samples, (count,)).copy())
        index = 0
        while event[index].type != _END_OF_LIST:
            item = event[index]
            if item.type == _WORD:
                first = item.text_position - 1
                events.append((_WORD, item.sample, text[first : first + item.length]))
            elif item.type == _PHONEME:
                events.append((_PHONEME, item.sample, bytes(item.id.string).decode("utf-8", "replace")))
            index += 1
        return 0

    with _LOCK, TemporaryDirectory() as folder:
        file = Path(folder) / "voice"
        file.write_text(definition, encoding="utf-8")
        _run(_Callback(collect), text, file, words_per_minute)
    return np.concatenate([np.zeros(0, dtype=np.int16), *pieces]), events


def _run(callback: Any, text: str, voice: Path, words_per_minute: int) -> None:
    """Load espeak-ng, say one text, unload it."""
    try:
        library = ctypes.CDLL(espeakng_loader.get_library_path())
        data = str(espeakng_loader.get_data_path()).encode()
    except (OSError, RuntimeError) as error:
        raise UserError(f"espeak-ng cannot be loaded: {error}; reinstall espeakng-loader") from error
    try:
        rate = library.espeak_Initialize(_SYNCHRONOUS, 0, data, _PHONEME_EVENTS | _DO_NOT_EXIT)
        if rate != _ESPEAK_RATE:
            raise UserError(f"espeak-ng cannot read its data in {data.decode()}; reinstall espeakng-loader")
        library.espeak_SetSynthCallback(callback)
        if library.espeak_ng_SetVoiceByFile(str(voice).encode()) != 0:
            raise UserError("espeak-ng refused the voice; reinstall espeakng-loader")
        library.espeak_SetParameter(1, words_per_minute, 0)
        encoded = text.encode()
        library.espeak_Synth(encoded, ctypes.c_size_t(len(encoded) + 1), 0, 1, 0, _UTF8, None, None)
        library.espeak_Synchronize()
        library.espeak_Terminate()
    finally:
        # ctypes never unloads by itself, and only that resets espeak's globals
        getattr(_ctypes, "dlclose" if hasattr(_ctypes, "dlclose") else "FreeLibrary")(library._handle)
