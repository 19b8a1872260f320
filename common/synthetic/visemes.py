"""From phonemes to the shapes of a mouth: espeak-ng's phonemes of Mandarin and English as visemes, and coarticulation.

Every phoneme names one viseme, or several in a row (a diphthong). The articulators (jaw, lips) follow the visemes'
targets weighted by dominance functions (Cohen and Massaro 1993, eqs. 1 to 4), so that lips round ahead of a rounded
vowel and a consonant that the tongue alone makes takes its neighbours' lips. A weighted mean of targets never quite
closes a mouth. What an eye would miss is therefore laid over the mean: the lips meet on b, p and m, the lower lip
meets the upper teeth on f and v, and the mouth rests in silence.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.errors import UserError
from common.synthetic.speech import SAMPLE_RATE, PhonemeEvent

Array = NDArray[np.float64]

ARTICULATORS = ("jaw", "upper", "lower", "pucker", "funnel", "spread", "roll")
"""Jaw opening (1 parts the lips by .2 dm), upper lip up, lower lip down, lips forward and narrow, lips forward and
apart, corners outwards, lower lip over the lower teeth."""
SILENCE = "sil"
_PAUSE = "_"


@dataclass(frozen=True)
class Viseme:
    """What a sound asks of the articulators, and how strongly against its neighbours."""

    targets: tuple[float, ...]
    """One value in [0,1] an articulator, in the order of `ARTICULATORS`."""
    jaw: float
    """Dominance of the jaw's target, above 0."""
    lips: float
    """Dominance of the other targets, above 0."""


def _viseme(dominance: tuple[float, float], **targets: float) -> Viseme:
    return Viseme(tuple(targets.get(name, 0.0) for name in ARTICULATORS), *dominance)


VISEMES: Mapping[str, Viseme] = {
    SILENCE: _viseme((0.05, 0.05)),
    "PP": _viseme((0.8, 0.5), jaw=0.12),
    "FF": _viseme((0.9, 0.7), jaw=0.15, roll=0.42, upper=0.50),
    "TH": _viseme((0.7, 0.5), jaw=0.20, upper=0.12, lower=0.25),
    "DD": _viseme((0.6, 0.25), jaw=0.14, lower=0.15),
    "nn": _viseme((0.5, 0.2), jaw=0.18, lower=0.12),
    "kk": _viseme((0.4, 0.15), jaw=0.22, lower=0.10),
    "SS": _viseme((1.1, 0.7), jaw=0.07, upper=0.25, lower=0.50, spread=0.30),
    "CH": _viseme((1.0, 0.9), jaw=0.08, upper=0.10, lower=0.30, funnel=0.50, pucker=0.15),
    "JJ": _viseme((1.0, 0.8), jaw=0.08, upper=0.20, lower=0.40, spread=0.45),
    "RR": _viseme((0.7, 0.7), jaw=0.18, lower=0.15, funnel=0.35, pucker=0.20),
    "aa": _viseme((1.2, 1.0), jaw=0.68, upper=0.15, lower=0.30),
    "E": _viseme((1.0, 0.9), jaw=0.46, upper=0.10, lower=0.30, spread=0.30),
    "I": _viseme((1.0, 1.2), jaw=0.16, upper=0.15, lower=0.30, spread=0.75),
    "ih": _viseme((0.8, 0.7), jaw=0.30, upper=0.10, lower=0.25, spread=0.35),
    "@": _viseme((0.7, 0.4), jaw=0.36, upper=0.05, lower=0.20),
    "O": _viseme((1.0, 1.3), jaw=0.44, pucker=0.45, funnel=0.40),
    "U": _viseme((1.0, 1.5), jaw=0.16, pucker=0.95, funnel=0.15),
    "Y": _viseme((1.0, 1.5), jaw=0.12, pucker=0.85, funnel=0.10),
}
"""The mouth shapes by name: PP b p m, FF f v, TH th, DD t d, nn n l, kk k g h ng, SS s z ts, CH sh zh ch, JJ Mandarin
j q x, RR r, then vowels from open to closed, spread and rounded (Y is ü)."""

_SHARED: Mapping[str, str] = {
    "p": "PP", "b": "PP", "m": "PP", "ph": "PP", "f": "FF", "v": "FF",
    "t": "DD", "th": "DD", "t#": "DD", "t2": "DD", "d": "DD", "d#": "DD", "n": "nn", "l": "nn", "N": "kk",
    "k": "kk", "kh": "kk", "g": "kk", "X": "kk", "h": "kk", "x": "kk", "?": "kk",
    "s": "SS", "z": "SS", "z#": "SS", "z/2": "SS", "ts": "SS", "tsh": "SS",
    "S": "CH", "Z": "CH", "tS": "CH", "dZ": "CH", "s.": "CH", "z.": "CH", "ts.": "CH", "ts.h": "CH",
    "S;": "JJ", "tS;": "JJ", "tS;h": "JJ", "r": "RR", "r-": "RR", "r/": "RR", "w": "U", "w#": "U", "j": "I", ";": "I",
    "D": "TH", "T": "TH", "@": "@", "@r": "@ RR", "@L": "@ nn", "@-": "@", "@2": "@", "@5": "@", "@#": "@",
    "A": "aa", "a": "aa", "i": "I", "o": "O", "u": "U", "E": "E",
}  # fmt: skip
"""Consonants of both languages, and the vowels that both write alike."""
_MANDARIN: Mapping[str, str] = {
    "ai": "aa ih", "ei": "E ih", "Au": "aa U", "ou": "O U", "i[": "SS", "i.": "CH",
    "iA": "I aa", "iAu": "I aa U", "iE": "I E", "io": "I O", "iou": "I O U",
    "o-": "@", "ong": "U kk", "u@": "U @", "uA": "U aa", "ua": "U aa", "uai": "U aa ih", "uei": "U E ih", "uo": "U O",
    "y": "Y", "yu": "Y U", "y&": "Y E", "yE": "Y E", "y@": "Y @", "yi": "Y I", "1": "ih", "N-": "kk",
}  # fmt: skip
_ENGLISH: Mapping[str, str] = {
    "3": "@", "3:": "RR @", "0": "O", "02": "O", "0#": "O", "O": "O", "O2": "O", "O:": "O", "O@": "O", "o@": "O",
    "o:": "O", "A:": "aa", "A@": "aa", "A#": "aa", "a#": "@", "a#2": "@", "a2": "aa", "aa": "aa", "V": "aa",
    "I": "ih", "I2": "ih", "I#": "ih", "I2#": "ih", "i:": "I", "E#": "E", "E2": "E", "e#": "E", "e:": "E", "e@": "E @",
    "i@": "I @", "i@3": "I @", "U": "U", "u:": "U", "U@": "U @", "aI": "aa ih", "aI@": "aa ih @", "aI3": "aa ih @",
    "aU": "aa U", "aU@": "aa U @", "eI": "E I", "oU": "O U", "oU#": "O U", "OI": "O ih", "IR": "RR", "VR": "RR",
    "A~": "aa", "O~": "O",
}  # fmt: skip
PHONEMES: Mapping[str, Mapping[str, str]] = {
    "zh": {**_ENGLISH, **_SHARED, **_MANDARIN},
    "en": {**_MANDARIN, **_SHARED, **_ENGLISH},
}
"""Language -> espeak-ng's phoneme -> its visemes in a row. Either language knows the other's phonemes as well, since
espeak changes the language inside a sentence where a word asks for it."""


@dataclass(frozen=True)
class VisemeEvent:
    """One mouth shape: a name of `VISEMES`, the phoneme that it belongs to, from `start` to before `end`, samples."""

    viseme: str
    phoneme: str
    start: int
    end: int


@dataclass(frozen=True)
class Style:
    """How a person articulates, and what their face needs for it; the defaults are the table."""

    amplitude: float = 1.0
    """Factor on how far lips and jaw move."""
    jaw: float = 1.0
    """Factor on `jawOpen` alone, for a face model whose jaw opens more or less than .2 dm at weight 1."""
    seal: float = 0.0
    """Weight of `mouthClose` beyond that of `jawOpen` with which a face's closed lips just touch."""
    rounding: float = 1.0
    """Factor on pucker and funnel."""
    spread: float = 1.0
    """Factor on the corners' way outwards."""
    reach: float = 1.0
    """Factor on the times over which sounds blend; above 1 slurs."""
    lopsided: float = 0.0
    """Share by which the lips' left side (the subject's) moves more than the right; -.3 to .3."""


def sample_style(rng: np.random.Generator) -> Style:
    """Draw a person's style; mouths stay plain to read."""
    return Style(
        amplitude=float(rng.uniform(0.85, 1.15)),
        rounding=float(rng.uniform(0.85, 1.1)),
        spread=float(rng.uniform(0.8, 1.2)),
        reach=float(rng.uniform(0.85, 1.15)),
        lopsided=float(rng.uniform(-0.15, 0.15)),
    )


def viseme_events(events: Sequence[PhonemeEvent], language: str) -> list[VisemeEvent]:
    """The visemes of phonemes in time, a diphthong's in equal shares; pauses are `SILENCE`.

    espeak's marks of a changed language, such as "(en)", have no shape of their own and are left out.

    Raises:
        UserError: an unknown language, or a phoneme that has no viseme, by name.
    """
    if language not in {"zh", "cmn", "en"}:
        raise UserError(f"no visemes for the language {language!r}: use zh or en")
    table = PHONEMES["en" if language == "en" else "zh"]
    result = []
    for event in events:
        if event.symbol.startswith("("):
            continue
        if event.symbol != _PAUSE and event.symbol not in table:
            raise UserError(
                f"the phoneme {event.symbol!r} of {language} has no viseme; add it to common/synthetic/visemes.py"
            )
        shapes = [SILENCE] if event.symbol == _PAUSE else table[event.symbol].split()
        cuts = [event.start + (event.end - event.start) * i // len(shapes) for i in range(len(shapes) + 1)]
        result += [
            VisemeEvent(shape, event.symbol, start, end)
            for shape, start, end in zip(shapes, cuts[:-1], cuts[1:], strict=True)
        ]
    return result


def frame_visemes(visemes: Sequence[VisemeEvent], times: Array) -> list[str]:
    """The viseme at each time (T,) in seconds; `SILENCE` outside all of them."""
    starts = np.array([event.start for event in visemes])
    places = np.searchsorted(starts, np.asarray(times) * SAMPLE_RATE, side="right") - 1
    return [
        visemes[place].viseme if place >= 0 and time * SAMPLE_RATE < visemes[place].end else SILENCE
        for place, time in zip(places, times, strict=True)
    ]


def expression_track(
    events: Sequence[PhonemeEvent],
    names: Sequence[str],
    times: Array,
    language: str,
    *,
    rng: np.random.Generator | None = None,
    style: Style | None = None,
) -> NDArray[np.float32]:
    """The mouth's expression coefficients (T,Ke) in [0,1] at `times` (T,) in seconds.

    Args:
        events: phonemes in order, in samples at 16 kHz, as `speak` returns them.
        names: the face model's expressions (`FaceModel.expression_names`), ARKit's names with `_L` and `_R`.
        times: when the mouth is seen; the middle of frame t at 25 fps is (t + 0.5) / 25.
        language: "zh" or "en".
        rng: varies each sound a little, as speakers do; none for the plain targets.
        style: how the person articulates.

    Raises:
        UserError: an unknown language or phoneme, or a model without a jaw that opens and lips that close.
    """
    missing = [name for name in ("jawOpen", "mouthClose") if name not in names]
    if missing:
        raise UserError(f"a face model without the expression {missing[0]} cannot speak; use builtin or ict")
    style = style or Style()
    times = np.asarray(times, dtype=np.float64)
    visemes = viseme_events(events, language)
    mouth, closed = _articulate(visemes, times, style, rng)
    moved = dict(zip(ARTICULATORS, mouth.T, strict=True))
    jaw = np.clip(style.jaw * moved["jaw"], 0.0, 1.0)
    weights = {"jawOpen": jaw, "mouthClose": (jaw + style.seal) * closed, "mouthPress": 0.05 * closed}
    weights |= {"mouthPucker": moved["pucker"], "mouthFunnel": moved["funnel"], "mouthRollLower": moved["roll"]}
    weights |= {"mouthUpperUp": moved["upper"], "mouthLowerDown": moved["lower"], "mouthStretch": moved["spread"]}
    track = np.zeros((len(times), len(names)), dtype=np.float32)
    for column, name in enumerate(names):
        stem, side = (name[:-2], name[-1]) if name.endswith(("_L", "_R")) else (name, "")
        if stem in weights:
            lean = {"L": style.lopsided, "R": -style.lopsided, "": 0.0}[side] * (stem != "mouthPress")
            track[:, column] = np.clip(weights[stem] * (1.0 + lean), 0.0, 1.0)
    return track


_CORE = 0.4
"""Share of a sound's time, around its middle, over which it is fully dominant."""
_JAW_REACH, _LIP_REACH = 0.060, 0.085
"""Seconds in which a dominance falls to 1/e, before and after the core; lips look further ahead than the jaw."""


def _articulate(
    visemes: Sequence[VisemeEvent], times: Array, style: Style, rng: np.random.Generator | None
) -> tuple[Array, Array]:
    """Articulators (T,A) and how far the lips are sealed (T,), all in [0,1]."""
    sounds = [event for event in visemes if event.viseme != SILENCE]
    mouth = np.zeros((len(times), len(ARTICULATORS)))
    if sounds:
        mouth = _blend(sounds, times, style, rng)
    mouth = mouth * _factors(style)
    teeth = _gate(times, [_contact(event, visemes) for event in sounds if event.viseme == "FF"], 0.05, 0.05)
    mouth += teeth[:, None] * (np.array(VISEMES["FF"].targets) - mouth)
    met = _gate(times, [_contact(event, visemes) for event in sounds if event.viseme == "PP"], 0.06, 0.05)
    rest = _gate(times, _silences(visemes), 0.12, 0.10)
    closed = np.maximum(met, rest)
    # sealed lips keep some of the rounding or spreading that surrounds them; at rest nothing is left of it
    kept = np.array([0.0, 0.0, 0.0, 0.7, 0.0, 0.5, 0.0])
    sealed = np.array(VISEMES["PP"].targets) + kept * mouth
    mouth += met[:, None] * (sealed - mouth)
    mouth += rest[:, None] * (np.array(VISEMES["PP"].targets) - mouth)
    return np.clip(mouth, 0.0, 1.0), closed


def _blend(sounds: Sequence[VisemeEvent], times: Array, style: Style, rng: np.random.Generator | None) -> Array:
    """The mean (T,A) of the sounds' targets under their dominance functions."""
    bounds = np.array([(event.start, event.end) for event in sounds]) / SAMPLE_RATE
    middle, half = bounds.mean(1), _CORE / 2 * (bounds[:, 1] - bounds[:, 0])
    away = np.maximum(np.abs(times[:, None] - middle) - half, 0.0)  # (T,S)
    targets = np.array([VISEMES[event.viseme].targets for event in sounds])
    if rng is not None:
        targets = targets * np.exp(rng.normal(0.0, 0.08, targets.shape))
    mouth = np.empty((len(times), len(ARTICULATORS)))
    for columns, reach, strength in (
        (slice(0, 1), _JAW_REACH, [VISEMES[event.viseme].jaw for event in sounds]),
        (slice(1, None), _LIP_REACH, [VISEMES[event.viseme].lips for event in sounds]),
    ):
        exponent = np.log(strength) - (away / (reach * style.reach)) ** 2
        # far from every sound all dominances vanish alike: only their ratios count
        dominance = np.exp(exponent - exponent.max(1, keepdims=True))
        mouth[:, columns] = dominance @ targets[:, columns] / dominance.sum(1, keepdims=True)
    return mouth


def _factors(style: Style) -> Array:
    """What a style multiplies each articulator with (A,)."""
    own = {"pucker": style.rounding, "funnel": style.rounding, "spread": style.spread}
    return np.array([style.amplitude * own.get(name, 1.0) for name in ARTICULATORS])


_BURST, _HELD = 0.045, 0.055
"""Seconds for which espeak is silent before it bursts a p (and many a b) open; seconds that lips touch at least."""


def _contact(event: VisemeEvent, visemes: Sequence[VisemeEvent]) -> tuple[float, float]:
    """From when to when (s) the lips touch, or the lip the teeth.

    espeak's p begins with its burst, after a silence that belongs to the sound before; its m, f and v hold while they
    sound, and so does its b, for the part before the vowel's first formant rises (measured on its waves).
    """
    start, end = event.start / SAMPLE_RATE, event.end / SAMPLE_RATE
    if event.phoneme in {"p", "ph"}:
        start, end = start - _BURST, start + 0.010
    elif event.phoneme == "b":
        start, end = start - 0.020, max(start + 0.010, end - 0.030)
    else:
        end -= 0.015
    short = max(0.0, _HELD - (end - start)) / 2
    return start - short, end + short


_LONG_PAUSE = 0.15
"""Seconds; a shorter pause is the silence inside a stop or between words, which lips do not close for."""
_OPENS, _CLOSES = 0.04, 0.06
"""Seconds by which lips part before the sound, and by which they stay apart after it."""


def _silences(visemes: Sequence[VisemeEvent]) -> list[tuple[float, float]]:
    """From when to when (s) the mouth rests: before the first sound, after the last, and in long pauses."""
    sounds = [(e.start / SAMPLE_RATE, e.end / SAMPLE_RATE) for e in visemes if e.viseme != SILENCE]
    ends = [-np.inf, *(end for _, end in sounds)]
    starts = [*(start for start, _ in sounds), np.inf]
    return [
        (end + _CLOSES, start - _OPENS) for end, start in zip(ends, starts, strict=True) if start - end >= _LONG_PAUSE
    ]


def _gate(times: Array, intervals: Sequence[tuple[float, float]], rise: float, fall: float) -> Array:
    """1 inside the intervals (s), 0 away from them, half a cosine of `rise` s before and of `fall` s after; (T,)."""
    level = np.zeros(len(times))
    for start, end in intervals:
        outside = np.maximum((start - times) / rise, (times - end) / fall)
        level = np.maximum(level, 0.5 + 0.5 * np.cos(np.pi * np.clip(outside, 0.0, 1.0)))
    return level
