"""One clip of a talking head, from a sentence to pictures: what is heard, how the face moves, how it is drawn."""

import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from common.errors import UserError
from common.face3d.camera import REFERENCE_FOCAL, REFERENCE_SIZE, Camera, rotation
from common.face3d.morphable import FaceModel
from common.face3d.render import render
from common.synthetic.identity import face_coefficients, sample_identity, sample_nuisance
from common.synthetic.motion import head_motion, loudness, upper_face
from common.synthetic.sentences import sample_sentence
from common.synthetic.speech import SAMPLE_RATE, PhonemeEvent, Speech, speak, voice_from_vector
from common.synthetic.visemes import VISEMES, Style, expression_track, sample_style

FPS = 25
FRAME_SAMPLES = SAMPLE_RATE // FPS
MAX_SECONDS, MIN_SECONDS = 3.0, 1.2
MAX_CHARACTERS = {"zh": 20, "en": 60}
"""Paper 3's CLR set holds clips up to 3 s, of at most 29 characters (CMLR) or 20 (its own)."""
_LEAD, _TAIL = (0.12, 0.28), 0.20
"""Seconds of closed lips before the speech (drawn) and after it (at least)."""
_FASTEST = 1.6
"""Factor on espeak's speed up to which a sentence is hurried to fit."""
_FILL, _BELOW = (0.53, 0.60), 0.05
"""Height of the 68 landmarks' box over the picture's, and how far its middle lies below the picture's: about what
`faces.tracks.crop_matrices` cuts as "head"."""
_FINE = 320
"""Pictures up to half this size are drawn with 2 x 2 samples a pixel; larger ones with as many as keep the pace."""
_BATCH = 8
_NOISE_DB = -66.0
"""Level of the room's noise in dB of full scale; no room is digitally silent."""
_PARTED, _OVERLAP = 0.2, 0.005
"""dm between the lips at full jaw, as `visemes.ARTICULATORS` counts; dm by which closed lips (and lids)
overlap, so that no light falls between them."""


class Take(NamedTuple):
    """A sentence as it is heard and seen, before anything is drawn."""

    text: str
    language: str
    wave: Tensor
    """float32 (640 T,), 16 kHz."""
    phonemes: list[PhonemeEvent]
    """From the first sample to the last, silence at both ends included."""

    @property
    def times(self) -> np.ndarray:
        """Middles (T,) of the frames in seconds."""
        return (np.arange(len(self.wave) // FRAME_SAMPLES) + 0.5) / FPS


def record(seed: int, person: int, index: int, language: str) -> Take:
    """The `index`-th sentence of a person: `MIN_SECONDS` to `MAX_SECONDS` with closed lips at both ends."""
    rng = np.random.default_rng([seed, person, index, 2])
    longest = MAX_SECONDS - _LEAD[1] - _TAIL
    for _ in range(100):
        text = sample_sentence(language, rng)
        if len(text) <= MAX_CHARACTERS[language]:
            speech = _hurried(text, language, sample_identity(seed, person), int(rng.integers(2**31)), longest)
            if speech is not None:
                return _framed(text, language, speech, rng)
    raise UserError(f"person {person} is too slow for clips of {MAX_SECONDS} s; choose another seed")


def _hurried(text: str, language: str, vector: np.ndarray, seed: int, longest: float) -> Speech | None:
    """The sentence in the person's voice, faster where it would last over `longest` s; None if that is too fast."""
    voice = voice_from_vector(vector)
    speech = speak(text, language, voice, seed=seed)
    over = len(speech.wave) / SAMPLE_RATE / longest
    if over <= 1:
        return speech
    rate = 1.06 * over * voice.rate  # espeak's pauses do not shorten as much as its sounds
    if rate > _FASTEST:
        return None
    speech = speak(text, language, replace(voice, rate=rate), seed=seed)
    return speech if len(speech.wave) <= longest * SAMPLE_RATE else None


def _framed(text: str, language: str, speech: Speech, rng: np.random.Generator) -> Take:
    """The speech between silences, as a whole number of frames, in a quiet room."""
    lead = round(rng.uniform(*_LEAD) * SAMPLE_RATE)
    spoken = lead + len(speech.wave)
    least = max(spoken + round(_TAIL * SAMPLE_RATE), round(MIN_SECONDS * SAMPLE_RATE))
    total = math.ceil(least / FRAME_SAMPLES) * FRAME_SAMPLES
    wave = torch.from_numpy(rng.standard_normal(total) * 10 ** (_NOISE_DB / 20)).float()
    wave[lead:spoken] += speech.wave
    moved = [PhonemeEvent(event.symbol, lead + event.start, lead + event.end) for event in speech.phonemes]
    ends = [PhonemeEvent("_", 0, moved[0].start), *moved, PhonemeEvent("_", spoken, total)]
    return Take(text, language, wave.clamp(-1, 1), ends)


class Performance(NamedTuple):
    """Coefficients of a clip, as `face3d.render` takes them: identity (1,Ki), albedo (1,Ka), and T rows each of
    expression, angles, translation and gamma; background (1,3,S,S) for any S."""

    identity: Tensor
    albedo: Tensor
    expression: Tensor
    angles: Tensor
    translation: Tensor
    gamma: Tensor
    background: Tensor


def perform(
    model: FaceModel, take: Take, seed: int, person: int, index: int, *, size: int, max_yaw: float = 12.0
) -> Performance:
    """How the person's face moves through the take, how it is lit, framed and backed.

    `size` is that of the pictures in px; the clip's own pose turns by up to `max_yaw` degrees.
    """
    rng = np.random.default_rng([seed, person, index, 3])
    identity, albedo = face_coefficients(sample_identity(seed, person), model)
    style = fit_style(model, identity, sample_style(np.random.default_rng([seed, person, 4])))
    loud = loudness(take.wave.numpy(), take.times)
    names = model.expression_names
    expression = expression_track(take.phonemes, names, take.times, take.language, rng=rng, style=style)
    expression += upper_face(rng, names, take.times, loud, squint=_squint(model, identity))
    nuisance = sample_nuisance(model, rng, 1, _fine_size(size), max_yaw=max_yaw)
    turned, shifted = head_motion(rng, take.times, loud)
    pose = nuisance.angles * torch.tensor([1.0, 1.0, 0.5])
    place = _placed(model, identity, pose, rng)
    return Performance(
        identity,
        albedo,
        torch.from_numpy(expression),
        pose + torch.from_numpy(turned).float(),
        place + torch.from_numpy(shifted).float(),
        nuisance.gamma.expand(len(take.times), -1).contiguous(),
        nuisance.background,
    )


def fit_style(model: FaceModel, identity: Tensor, style: Style) -> Style:
    """The style with the weights that this face needs for its jaw to part the lips by the same way as everybody's,
    and for its lips to touch when they close; identity (1,Ki)."""
    jaw, close = model.expression_index("jawOpen"), model.expression_index("mouthClose")
    expression = torch.zeros(3, model.sizes[1])
    expression[1, jaw] = expression[2, close] = 1.0
    rest, opened, shut = lip_gaps(model.landmarks(model.shape(identity.expand(3, -1), expression))).mean(1).tolist()
    gain = _PARTED / max(opened - rest, 0.05)
    ajar = gain * VISEMES["PP"].targets[0]
    gap = rest + ajar * (opened - rest + shut - rest)
    return replace(style, jaw=gain, seal=(gap + _OVERLAP) / max(rest - shut, 0.05))


def _squint(model: FaceModel, identity: Tensor) -> float:
    """Weight of `eyeSquint` beside `eyeBlink` with which the lids of this face (1,Ki) meet: modes of a model's mean
    face leave wide eyes ajar."""
    expression = torch.zeros(2, model.sizes[1])
    for side in "LR":
        expression[:, model.expression_index(f"eyeBlink_{side}")] = 1.0
        expression[1, model.expression_index(f"eyeSquint_{side}")] = 1.0
    marks = model.landmarks(model.shape(identity.expand(2, -1), expression))[..., 1]
    blink, both = (marks[:, [37, 38, 43, 44]] - marks[:, [41, 40, 47, 46]]).amax(1).tolist()
    return float(np.clip((blink + _OVERLAP) / max(blink - both, 0.01), 0.0, 1.0))


def lip_gaps(landmarks: Tensor) -> Tensor:
    """Height (B,3) of the mouth's opening at landmarks 61-67, 62-66 and 63-65 of (B,68,3), in their unit, y up."""
    return landmarks[:, [61, 62, 63], 1] - landmarks[:, [67, 66, 65], 1]


def _placed(model: FaceModel, identity: Tensor, angles: Tensor, rng: np.random.Generator) -> Tensor:
    """Translation (1,3) that puts the box of the neutral face's landmarks in the middle, at a height of `_FILL`."""
    marks = model.landmarks(model.shape(identity, torch.zeros(1, model.sizes[1])))[0] @ rotation(angles)[0]
    low, high = marks.amin(0), marks.amax(0)
    fill, aside = rng.uniform(*_FILL), rng.normal([0.0, -_BELOW], 0.012)
    depth = REFERENCE_FOCAL / REFERENCE_SIZE * float(high[1] - low[1]) / fill
    middle = (low + high) / 2
    shift = torch.tensor([*(aside * depth * REFERENCE_SIZE / REFERENCE_FOCAL), Camera(size=1).distance - depth])
    return (shift - middle)[None].float()


def _fine_size(size: int) -> int:
    return max(size, min(2 * size, _FINE))


class Drawn(NamedTuple):
    """images (T,S,S,3) uint8, masks (T,S,S) bool, landmarks (T,68,2) float32 in pixels."""

    images: np.ndarray
    masks: np.ndarray
    landmarks: np.ndarray


def draw(model: FaceModel, performance: Performance, size: int) -> Drawn:
    """Draw every frame on the model's device, in batches; drawn larger and reduced with a triangle filter."""
    fine = _fine_size(size)
    images, masks, landmarks = [], [], []
    with torch.inference_mode():
        for start in range(0, len(performance.angles), _BATCH):
            part = slice(start, start + _BATCH)
            count = len(performance.angles[part])
            drawn = render(
                model,
                performance.identity.expand(count, -1),
                performance.expression[part],
                performance.albedo.expand(count, -1),
                performance.angles[part],
                performance.translation[part],
                performance.gamma[part],
                fine,
                performance.background,
            )
            image, mask = (_reduced(picture, size) for picture in (drawn.image, drawn.mask))
            images.append((image * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy())
            masks.append((mask[:, 0] >= 0.5).cpu().numpy())
            landmarks.append((drawn.landmarks * (size / fine)).cpu().numpy())
    return Drawn(np.concatenate(images), np.concatenate(masks), np.concatenate(landmarks))


def _reduced(picture: Tensor, size: int) -> Tensor:
    if picture.shape[-1] == size:
        return picture
    return F.interpolate(picture, (size, size), mode="bilinear", antialias=True, align_corners=False)
