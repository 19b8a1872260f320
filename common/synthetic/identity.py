"""One vector that decides both how a synthetic person looks and how they sound.

The vector z is standard normal. The voice takes its dimensions one by one (`speech.voice_from_vector`); the face takes
fixed linear mixtures of the same dimensions. Whatever a model learns about a face from a voice it can therefore only
learn through z, and because z is known, a model that learns can be told from one that does not.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from common.face3d.morphable import FaceModel

DIMENSIONS = 8
"""Length of the identity vector."""
_LIMIT = 2.2
"""Coefficients are clamped here, where the face models still look human."""
_MIX_SEED = 20250113
_STEP_BACK = -3.0
"""dm from the camera's usual distance, so that hair and neck stay inside the picture that is aligned and cut."""


def sample_identity(seed: int, index: int) -> np.ndarray:
    """The vector (DIMENSIONS,) float64 of person `index` of the corpus with this seed; independent of all others."""
    return np.random.default_rng([seed, index]).standard_normal(DIMENSIONS)


def face_coefficients(vector: np.ndarray, model: FaceModel) -> tuple[Tensor, Tensor]:
    """Identity (1,Ki) and albedo (1,Ka) coefficients of a vector (DIMENSIONS,), float32.

    Each coefficient is a mixture of all dimensions with weights of unit length, hence N(0,1) over people. The first
    `DIMENSIONS` identity and albedo modes, which carry most, each lean on a dimension of their own.
    """
    identity_modes, _, albedo_modes = model.sizes
    mixed = []
    for stream, modes in enumerate((identity_modes, albedo_modes)):
        weights = np.random.default_rng([_MIX_SEED, stream]).standard_normal((modes, DIMENSIONS))
        own = min(modes, DIMENSIONS)
        weights[:own] += 4.0 * np.eye(own, DIMENSIONS)
        weights /= np.linalg.norm(weights, axis=1, keepdims=True)
        coefficients = np.clip(weights @ vector, -_LIMIT, _LIMIT)
        mixed.append(torch.from_numpy(coefficients).float()[None])
    return mixed[0], mixed[1]


class Nuisance(NamedTuple):
    """What differs between two pictures of one person, as batches for `face3d.render`."""

    expression: Tensor
    """(B,Ke) weights."""
    angles: Tensor
    """(B,3) pitch, yaw, roll in rad."""
    translation: Tensor
    """(B,3) dm."""
    gamma: Tensor
    """(B,27) light."""
    background: Tensor
    """(B,3,size,size) in [0,1]."""


def sample_nuisance(
    model: FaceModel, rng: np.random.Generator, count: int, size: int, *, max_yaw: float = 25.0
) -> Nuisance:
    """Draw pose (|yaw| <= `max_yaw`, |pitch| <= 0.4 of it, |roll| <= 8 degrees), light, background, mild expression."""
    limits = np.radians([0.4 * max_yaw, max_yaw, 8.0])
    angles = rng.uniform(-limits, limits, (count, 3))
    translation = rng.uniform(-1, 1, (count, 3)) * [0.08, 0.08, 0.3] + [0, 0, _STEP_BACK]
    return Nuisance(
        expression=_expressions(model, rng, count),
        angles=_float(angles),
        translation=_float(translation),
        gamma=_lights(rng, count),
        background=_backgrounds(rng, count, size),
    )


def _expressions(model: FaceModel, rng: np.random.Generator, count: int) -> Tensor:
    """A mild smile, a slightly open mouth, raised or lowered brows, half-closed eyes, in random strengths."""
    ceilings = {"jawOpen": 0.25, "mouthSmile": 0.4, "browInnerUp": 0.4, "browDown": 0.3, "eyeBlink": 0.25}
    weights = np.zeros((count, len(model.expression_names)))
    for prefix, ceiling in ceilings.items():
        members = [i for i, name in enumerate(model.expression_names) if name.startswith(prefix)]
        weights[:, members] = ceiling * rng.uniform(size=(count, 1)) ** 2
    return _float(weights)


def _lights(rng: np.random.Generator, count: int) -> Tensor:
    """A key light from above the camera's side, a fill of changing strength, a slight colour cast."""
    gamma = np.zeros((count, 3, 9))
    gamma[:, :, 0] = rng.uniform(-0.2, 0.05, (count, 1))
    direction = np.stack(
        [rng.uniform(-0.9, 0.9, count), rng.uniform(-0.1, 0.7, count), rng.uniform(0.5, 1.0, count)], axis=1
    )
    direction *= rng.uniform(0.1, 0.3, (count, 1)) / np.linalg.norm(direction, axis=1, keepdims=True)
    # Bands 1, 2, 3 are -y, z and -x (see lighting.shade).
    gamma[:, :, 1] = -direction[:, 1:2]
    gamma[:, :, 2] = direction[:, 2:3]
    gamma[:, :, 3] = -direction[:, 0:1]
    gamma *= rng.uniform(0.93, 1.07, (count, 3, 1))
    return _float(gamma.reshape(count, 27))


def _backgrounds(rng: np.random.Generator, count: int, size: int) -> Tensor:
    """A wall: a muted colour with a smooth gradient of brightness, never the same."""
    brightness = rng.uniform(0.25, 0.85, (count, 1, 1, 1)) + rng.uniform(-0.12, 0.12, (count, 1, 2, 2))
    tint = rng.uniform(-0.08, 0.08, (count, 3, 1, 1))
    corners = _float(np.clip(brightness + tint, 0, 1))
    return torch.nn.functional.interpolate(corners, (size, size), mode="bilinear", align_corners=True)


def _float(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values).float()
