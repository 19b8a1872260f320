"""A person who performs before a camera, for the tests of fitting."""

import numpy as np
import torch
from torch import Tensor

from common.face3d.camera import Camera
from common.face3d.fit import Fit
from common.face3d.fit_settings import FitSettings
from common.face3d.fit_start import transform
from common.face3d.fit_terms import Basis, State, project
from common.face3d.morphable import FaceModel
from common.face3d.render import render

WHOLE = np.eye(2, 3)
"""The clip's own 224 px pictures are the fit's frame."""
QUICK = FitSettings(subset=16, vertices=200, iterations=10)


def performed(model: FaceModel, frames: int, seed: int = 0) -> State:
    """A person who speaks, smiles, blinks and sways; float64."""
    rng = np.random.default_rng(seed)
    time = np.arange(frames) / 25

    def wave(low: float, high: float) -> np.ndarray:
        return np.sin(2 * np.pi * (rng.uniform(low, high) * time + rng.uniform()))

    expression = np.zeros((frames, len(model.expression_names)))
    weights = {
        "jawOpen": 0.5 * np.maximum(wave(2, 4), 0),
        "mouthPucker": 0.6 * np.maximum(wave(1, 2), 0),
        "mouthSmile": 0.5 * np.maximum(wave(0.3, 0.6), 0),
        "browInnerUp": 0.5 * np.maximum(wave(0.3, 0.6), 0),
        "eyeBlink": np.maximum(0, 1 - np.abs(np.arange(frames) % 40 - 12) / 3),
    }
    for column, name in enumerate(model.expression_names):
        expression[:, column] = weights.get(name.removesuffix("_L").removesuffix("_R"), 0.0)
    swings = np.stack([wave(0.2, 0.6) for _ in range(6)], axis=1) * [0.06, 0.2, 0.06, 0.08, 0.08, 0.2]
    placed = torch.from_numpy(np.add(swings, [0.05, 0.1, 0, 0, 0, -3]))
    identity = torch.from_numpy(rng.standard_normal(model.sizes[0])).clamp(-2, 2)
    return State(identity, placed, torch.from_numpy(expression))


def drawn(model: FaceModel, state: State, albedo: Tensor) -> np.ndarray:
    """uint8 (T,224,224,3) pictures of a state, before a grey wall."""
    count, small = len(state.pose), state.at(slice(None), torch.float32)
    with torch.no_grad():
        picture = render(
            model,
            small.identity.expand(count, -1),
            small.expression,
            albedo.expand(count, -1),
            small.pose[:, :3],
            small.pose[:, 3:],
            torch.zeros(count, 27),
            224,
            torch.tensor([0.5, 0.5, 0.5]),
        ).image
    return (picture.permute(0, 2, 3, 1) * 255).round().byte().numpy()


def errors(model: FaceModel, fit: Fit, truth: State, points: Tensor) -> tuple[float, float]:
    """Mean landmark error in px of the fit's frame, and AED over that of a face at rest."""
    found = project(Basis.of(model, model.landmark_vertices).double(), Camera(224), fit.state())
    landmark = (found - transform(points, fit.matrix)).norm(dim=2).mean()
    share = (fit.expression - truth.expression).abs().mean() / truth.expression.abs().mean()
    return float(landmark), float(share)
