"""Light and albedo of a posed face, and the photometric term that they give."""

from typing import NamedTuple

import torch
from torch import Tensor

from common.face3d.camera import Camera
from common.face3d.fit_photo import (
    STENCIL,
    Appearance,
    PhotometricTerm,
    View,
    blurred,
    look,
    robust_weight,
    sample,
    shading,
    softening,
    solve_albedo,
    solve_light,
)
from common.face3d.fit_terms import State
from common.face3d.morphable import FaceModel

_SCALE = 0.15
"""Deviation of a colour at which its pull fades: hair, glasses and hands are not of the model."""
_LEAST_SIGMA = 0.01
"""Smallest noise of a colour that is believed."""
_LIGHT_SIGMA = 0.3
"""Of gamma around its mean over the clip."""
_ALTERNATIONS = 2
"""Light and albedo, in turn; and how often the render is softened as the picture is."""


class Colours(NamedTuple):
    """albedo (Ka,), light gamma (T,27), and the term that compares both with the pictures."""

    albedo: Tensor
    gamma: Tensor
    term: PhotometricTerm


class Photometry:
    """What the photometric term needs of a model, computed once: `count` sampled vertices, and the term's `strength`:
    the share of a colour's information that counts, since neighbours err alike."""

    def __init__(self, model: FaceModel, camera: Camera, count: int, strength: float) -> None:
        self.model, self.camera, self.strength = model, camera, strength
        self.appearance = Appearance.of(model, count)

    @torch.no_grad()
    def colours(
        self, state: State, images: Tensor, albedo: Tensor, mean_light: Tensor, *, free_albedo: bool
    ) -> Colours:
        """Solve light, and albedo where it is free, for a state and pictures (T,3,S,S) in [0,1]."""
        own, soft = self.appearance, blurred(images)
        view = look(self.model, own, self.camera, state)
        read = sum((sample(soft, view.xy + shift) for shift in STENCIL.to(soft)), torch.zeros(3).to(soft)) / 4
        correction = torch.zeros_like(read)
        sigma, trust = _SCALE, view.visible
        for _ in range(_ALTERNATIONS):
            for _ in range(_ALTERNATIONS):
                weight = self.strength * trust / sigma**2
                gamma = solve_light(read - correction, own.albedo(albedo), view, weight, mean_light, _LIGHT_SIGMA**-2)
                light = shading(view.normals, gamma)
                if free_albedo:
                    albedo = solve_albedo(read - correction, own, light, weight)
                away = read - correction - light * own.albedo(albedo)
                sigma = _noise(away, view)
                trust = view.visible * robust_weight(away, _SCALE)
            correction = softening(self.model, own, self.camera, state, images, albedo, gamma)
        sigma = _noise(read - correction - light * own.albedo(albedo), view)
        here = state.at(slice(None), images.dtype)
        term = PhotometricTerm(
            basis=own.basis,
            normals=own.normals,
            images=soft,
            albedo=own.albedo(albedo),
            gamma=gamma,
            base=view.local - own.normals.points(here.identity, here.expression) + own.normals.mean,
            softening=correction,
            weight=self.strength * view.visible / sigma**2,
            scale=_SCALE,
        )
        return Colours(albedo, gamma, term)


def _noise(away: Tensor, view: View) -> float:
    """Robust standard deviation of the visible vertices' colour deviations (T,N,3)."""
    visible = away[view.visible > 0]
    return max(1.48 * float(visible.abs().median()), _LEAST_SIGMA) if visible.numel() else _SCALE
