"""From phonemes to mouths: every phoneme that is spoken has a shape, lips meet where they must, vowels look apart."""

from collections.abc import Sequence
from functools import cache
from itertools import groupby

import numpy as np
import pytest
import torch

from common.errors import UserError
from common.face3d.morphable import FaceModel, find_ict, load_face_model
from common.synthetic.identity import face_coefficients, sample_identity
from common.synthetic.performance import fit_style, lip_gaps
from common.synthetic.sentences import all_parts, sample_sentence
from common.synthetic.speech import PhonemeEvent, speak
from common.synthetic.visemes import (
    _CORE,
    _JAW_REACH,
    ARTICULATORS,
    PHONEMES,
    SILENCE,
    VISEMES,
    Style,
    VisemeEvent,
    _blend,
    expression_track,
    frame_visemes,
    sample_style,
    viseme_events,
)

RATE = 16000
TOUCH = 0.02
"""dm: a third of a pixel in a face of 75 px."""


@cache
def model(name: str) -> FaceModel:
    if name == "ict":
        try:
            find_ict()
        except UserError:
            pytest.skip("no ICT-FaceKit model here")
    return load_face_model(name)


MODELS = pytest.mark.parametrize("name", ["builtin", pytest.param("ict", marks=pytest.mark.media)])


def said(symbols: str, milliseconds: int = 120) -> list[PhonemeEvent]:
    """Phonemes of equal length."""
    step = milliseconds * RATE // 1000
    return [PhonemeEvent(symbol, i * step, (i + 1) * step) for i, symbol in enumerate(symbols.split())]


def mouth(
    name: str, events: Sequence[PhonemeEvent], times: Sequence[float], language: str = "zh", person: int = 0
) -> torch.Tensor:
    """Landmarks (T,68,3) of a person's face at `times`."""
    face = model(name)
    identity, _ = face_coefficients(sample_identity(0, person), face)
    style = fit_style(face, identity, Style())
    track = expression_track(events, face.expression_names, np.array(times), language, style=style)
    return face.landmarks(face.shape(identity.expand(len(track), -1), torch.from_numpy(track)))


def opening(marks: torch.Tensor) -> np.ndarray:
    return lip_gaps(marks).mean(1).numpy()


def width(marks: torch.Tensor) -> np.ndarray:
    return (marks[:, 54, 0] - marks[:, 48, 0]).numpy()


@pytest.mark.parametrize("language", ["zh", "en"])
def test_every_phoneme_of_every_sentence_has_a_viseme(language: str) -> None:
    seen = set()
    for text in all_parts(language):
        events = viseme_events(speak(text, language).phonemes, language)
        seen |= {event.viseme for event in events}
    assert seen <= set(VISEMES)
    wanted = set(VISEMES) - ({"TH"} if language == "zh" else {"JJ", "Y"})
    assert seen == wanted


def test_tables_name_known_visemes_and_targets_are_weights() -> None:
    for table in PHONEMES.values():
        assert {shape for shapes in table.values() for shape in shapes.split()} <= set(VISEMES)
    for viseme in VISEMES.values():
        assert len(viseme.targets) == len(ARTICULATORS)
        assert all(0 <= target <= 1 for target in viseme.targets)
        assert min(viseme.jaw, viseme.lips) > 0


def test_an_unknown_phoneme_is_named_and_marks_of_language_are_not_shapes() -> None:
    with pytest.raises(UserError, match="'q9'"):
        viseme_events([PhonemeEvent("q9", 0, 10)], "zh")
    with pytest.raises(UserError, match="'fr'"):
        viseme_events([], "fr")
    events = [PhonemeEvent("(en)", 0, 100), PhonemeEvent("S", 100, 200), PhonemeEvent("(cmn)", 200, 300)]
    assert viseme_events(events, "zh") == [VisemeEvent("CH", "S", 100, 200)]


def test_diphthongs_share_their_time_and_frames_know_their_viseme() -> None:
    events = viseme_events([PhonemeEvent("_", 0, 640), PhonemeEvent("uai", 640, 3040)], "zh")
    assert [(e.viseme, e.start, e.end) for e in events] == [
        (SILENCE, 0, 640),
        ("U", 640, 1440),
        ("aa", 1440, 2240),
        ("ih", 2240, 3040),
    ]
    found = frame_visemes(events, np.array([-1.0, 0.02, 0.05, 0.1, 0.18, 0.5]))
    assert found == [SILENCE, SILENCE, "U", "aa", "ih", SILENCE]


@MODELS
@pytest.mark.parametrize("sound", ["p", "ph", "m", "b"])
def test_lips_touch_on_bilabials_whoever_speaks(name: str, sound: str) -> None:
    events = said(f"A {sound} A", 200)
    moment = 0.18 if sound in {"p", "ph"} else 0.3
    for person in range(4):
        marks = mouth(name, events, [0.1, moment, 0.5], person=person)
        assert lip_gaps(marks)[1].abs().max() < TOUCH
        assert min(opening(marks)[[0, 2]]) > 0.06


@MODELS
@pytest.mark.parametrize("vowels", ["u i", "i o", "y A"])
def test_lips_touch_between_any_vowels(name: str, vowels: str) -> None:
    before, after = vowels.split()
    for sound in ("m", "p"):
        marks = mouth(name, said(f"{before} {sound} {after}"), [0.17 if sound == "m" else 0.11])
        assert lip_gaps(marks).abs().max() < TOUCH


@MODELS
def test_vowels_look_apart(name: str) -> None:
    wide = {
        vowel: (float(opening(marks)[0]), float(width(marks)[0]))
        for vowel in ("A", "i", "u", "o", "y", "@")
        for marks in [mouth(name, said(f"{vowel} {vowel} {vowel}"), [0.18])]
    }
    gap = {vowel: values[0] for vowel, values in wide.items()}
    across = {vowel: values[1] for vowel, values in wide.items()}
    assert gap["A"] > 1.3 * gap["o"] > 1.3 * gap["u"]
    assert gap["A"] > 1.8 * gap["i"]
    assert min(gap.values()) > 0.01
    for rounded in ("u", "o", "y"):
        assert across[rounded] < 0.95 * across["@"]
    assert across["u"] < 0.85 * across["@"]
    assert across["i"] > 1.1 * across["@"]


@MODELS
def test_lips_round_forward_and_ahead_of_the_vowel(name: str) -> None:
    flat, rounded = (mouth(name, said(f"s {vowel}", 160), [0.08, 0.24]) for vowel in ("i", "u"))
    assert rounded[1, 51, 2] > flat[1, 51, 2] + 0.03, "forward"
    assert width(rounded)[0] < 0.97 * width(flat)[0], "the s before it is rounded already"
    late, early = (mouth(name, said(f"{vowel} s", 160), [0.08, 0.24]) for vowel in ("u", "i"))
    assert width(late)[1] < 0.97 * width(early)[1], "and the s after it still"


@MODELS
@pytest.mark.parametrize(("sound", "language"), [("f", "zh"), ("f", "en"), ("v", "en")])
def test_lower_lip_meets_the_upper_teeth(name: str, sound: str, language: str) -> None:
    face = model(name)
    vowel = "A:" if language == "en" else "A"
    identity, _ = face_coefficients(sample_identity(0, 0), face)
    track = expression_track(
        said(f"{vowel} {sound} {vowel}"),
        face.expression_names,
        np.array([0.17, 0.31]),
        language,
        style=fit_style(face, identity, Style()),
    )
    vertices = face.shape(identity.expand(2, -1), torch.from_numpy(track))
    upper = face.regions["teeth"] & (face.expression_basis[face.expression_index("jawOpen")].norm(dim=1) < 0.02)
    lip = face.landmarks(vertices)[:, 66]
    away = (vertices[:, upper] - lip[:, None]).norm(dim=2).amin(1)
    edge = vertices[0, upper & (vertices[0, :, 0].abs() < 0.1), 1].min()
    assert away[0] < 0.05 < away[1]
    assert lip[0, 1] > edge - 0.03, "no gap below the teeth"
    assert lip_gaps(face.landmarks(vertices))[0].min() > 0.015, "the teeth show"


@MODELS
def test_teeth_are_together_and_shown_on_s(name: str) -> None:
    events = said("A s A")
    face = model(name)
    track = expression_track(events, face.expression_names, np.array([0.18]), "zh")[0]
    assert track[face.expression_index("jawOpen")] < 0.25
    assert opening(mouth(name, events, [0.18]))[0] > 0.03


def test_silence_closes_the_mouth_and_short_pauses_do_not() -> None:
    quiet, short = 0.5 * RATE, 0.04 * RATE
    events = [
        PhonemeEvent("_", 0, int(quiet)),
        PhonemeEvent("A", int(quiet), int(quiet + 2400)),
        PhonemeEvent("_", int(quiet + 2400), int(quiet + 2400 + short)),
        PhonemeEvent("A", int(quiet + 2400 + short), int(quiet + 4800 + short)),
        PhonemeEvent("_", int(quiet + 4800 + short), int(2 * quiet + 4800)),
    ]
    marks = mouth("builtin", events, [0.0, 0.3, 0.57, 0.67, 0.75, 1.1, 5.0, -3.0])
    gaps = opening(marks)
    assert np.abs(gaps[[0, 1, 5, 6, 7]]).max() < TOUCH
    assert gaps[[2, 3, 4]].min() > 0.1
    alone = mouth("builtin", [], [0.0, 1.0])
    assert lip_gaps(alone).abs().max() < TOUCH


def test_a_closure_is_long_enough_for_a_frame_and_motion_is_smooth() -> None:
    events = said("A p A m A b A", 150)
    times = np.arange(0.08, 1.0, 0.001)
    gaps = opening(mouth("builtin", events, list(times)))
    runs = [len(list(run)) for shut, run in groupby(np.abs(gaps) < TOUCH) if shut]
    assert len(runs) == 3
    assert min(runs) >= 40, "milliseconds; a frame lasts 40"
    assert np.abs(np.diff(gaps)).max() < 0.006, "dm in a millisecond"


def test_dominance_is_that_of_a_plain_loop() -> None:
    visemes = viseme_events(said("A s u n A", 90), "zh")
    times = np.array([0.03, 0.2, 0.41])
    fast = _blend(visemes, times, Style(reach=1.2), None)[:, 0]
    for time, found in zip(times, fast, strict=True):
        total, weight = 0.0, 0.0
        for event in visemes:
            start, end = event.start / RATE, event.end / RATE
            away = max(abs(time - (start + end) / 2) - _CORE * (end - start) / 2, 0.0)
            strength = VISEMES[event.viseme].jaw * np.exp(-((away / (_JAW_REACH * 1.2)) ** 2))
            total += strength * VISEMES[event.viseme].targets[0]
            weight += strength
        assert found == pytest.approx(total / weight, rel=1e-9)


def test_styles_and_takes_differ_within_bounds() -> None:
    face = model("builtin")
    events, times = said("A s i u m A o"), np.arange(40) * 0.02
    plain = expression_track(events, face.expression_names, times, "zh")
    jaw = face.expression_index("jawOpen")
    big, small = (
        expression_track(events, face.expression_names, times, "zh", style=Style(amplitude=a)) for a in (1.2, 0.8)
    )
    assert big[:, jaw].max() > 1.3 * small[:, jaw].max()
    first, again, other = (
        expression_track(events, face.expression_names, times, "zh", rng=np.random.default_rng(seed))
        for seed in (1, 1, 2)
    )
    assert np.array_equal(first, again)
    assert 0.002 < np.abs(first - other).max() < 0.3
    lopsided = expression_track(events, face.expression_names, times, "zh", style=Style(lopsided=0.2))
    left, right = (lopsided[:, face.expression_index(f"mouthStretch_{side}")].max() for side in "LR")
    assert left > 1.3 * right > 0
    styles = [sample_style(np.random.default_rng(seed)) for seed in range(20)]
    assert len({style.amplitude for style in styles}) == 20
    for track in (plain, big, small, first, lopsided):
        assert track.dtype == np.float32
        assert track.shape == (40, len(face.expression_names))
        assert track.min() >= 0
        assert track.max() <= 1


def test_a_model_that_cannot_speak_is_refused() -> None:
    with pytest.raises(UserError, match="mouthClose"):
        expression_track([], ("jawOpen", "exp_2"), np.zeros(1), "zh")


def test_sentences_of_parts_are_many_and_short() -> None:
    for language, longest in (("zh", 20), ("en", 60)):
        rng = np.random.default_rng(0)
        texts = [sample_sentence(language, rng) for _ in range(400)]
        assert len(set(texts)) > 250
        assert max(map(len, texts)) <= longest
        assert max(map(len, all_parts(language))) <= longest
