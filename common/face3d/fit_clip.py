"""The stages of a fit to one clip: identity from spread frames, then all frames window by window, then the colours."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from common.face3d.camera import Camera
from common.face3d.fit_prior import first_prior, holds_weights, lasting_factor, learned_rate
from common.face3d.fit_refine import Photometry
from common.face3d.fit_settings import FitSettings
from common.face3d.fit_solve import Prior, minimise
from common.face3d.fit_start import first_pose
from common.face3d.fit_terms import JAW, Basis, LandmarkTerm, State, Term, landmark_metric, project
from common.face3d.morphable import FaceModel

_ROUNDS = 6
"""How often identity, the landmarks' noise and the expressions' rates are estimated in turn."""
_WIDE = 4.0
"""Factor on the robust scale while the face is not yet found."""
_SIGMA_RANGE = (0.05, 4.0)
"""Bounds in px of the landmarks' estimated noise."""
_USUAL_SIGMA = 0.35
"""Noise in px from which on the sparsity of expressions counts in full."""
_LEAST_CONTOUR = 0.06
"""Weight of an outline that never agrees."""
_MOST_IDENTITY = 1.5
"""Mean square of a plausible face's identity coefficients."""
_PICTURES = 96
"""Frames of a window whose pictures are held."""
_IDENTITY_PICTURES = 12
"""Frames of the first such window from which identity and albedo are refined by colours."""
_COLOUR_ROUNDS, _COLOUR_STEPS = 2, 4
"""How often visibility, light and albedo are renewed, and solver steps after each."""


class ClipFit:
    """The frames of one clip that show a face: landmarks (T,68,2) px of the fit's frame, `linked` (T-1,) neighbours in
    time, and a start to stay near to, or None."""

    def __init__(
        self,
        model: FaceModel,
        camera: Camera,
        basis: Basis,
        landmarks: Tensor,
        linked: Tensor,
        settings: FitSettings,
        start: State | None,
    ) -> None:
        self.model, self.camera, self.basis, self.settings = model, camera, basis, settings
        self.landmarks, self.linked = landmarks, linked
        self.start = None if start is None else State(*(part.to(landmarks) for part in start))
        self.prior, self.held_down = self._first_prior(), torch.ones(model.sizes[1]).to(landmarks)
        self.sigma, self.contour = 2.0, settings.contour_weight

    def _first_prior(self) -> Prior:
        settings = self.settings
        prior = first_prior(
            self.model,
            pose_acceleration=settings.pose_acceleration,
            expression_change=settings.expression_change,
            eye_change=settings.eye_change,
            sparsity=settings.sparsity,
        )
        prior = replace(prior, linked=self.linked)
        if self.start is None:
            return replace(prior, expression_mean=prior.expression_mean.expand(len(self.landmarks), -1))
        precision = self.settings.start_sigma**-2
        return replace(
            prior,
            identity_mean=self.start.identity,
            identity_precision=torch.full_like(prior.identity_precision, precision),
            expression_mean=self.start.expression,
            expression_precision=precision * torch.eye(len(prior.rate)).to(prior.rate),
            rate=torch.zeros_like(prior.rate),
        )

    def solve(self) -> State:
        """Identity, poses and expressions by landmarks alone."""
        state = self.start
        if state is None:
            pose = first_pose(self.landmarks, self.basis, self.camera)
            state = State(self.prior.identity_mean, pose, torch.zeros_like(self.prior.expression_mean))
        spread = _spread(len(self.landmarks), self.settings.subset)
        few = self._identify(state.at(spread, torch.float64), spread)
        state = State(few.identity, state.pose.clone(), state.expression.clone())
        for begin, first, last, end in _windows(len(self.landmarks), self.settings.window, self.settings.overlap):
            frames = slice(begin, end)
            part = state.at(frames, torch.float64)
            prior = self.prior.of(frames)
            for scale in (_WIDE, 1.0):
                term = self._landmark_term(frames, part, scale)
                part = minimise(
                    [term], self.camera, part, prior, free_identity=False, iterations=self.settings.iterations
                )
            _put(state, part, first, last, begin)
        return state

    def _identify(self, state: State, frames: Tensor) -> State:
        """Fit some frames with the identity free; learn the landmarks' noise and the priors' strengths on the way."""
        prior = replace(self.prior.of(frames), linked=torch.zeros_like(frames[1:], dtype=torch.bool))
        for turn in range(_ROUNDS):
            term = self._landmark_term(frames, state, _WIDE if turn == 0 else 1.0)
            state = minimise([term], self.camera, state, prior, free_identity=True, iterations=self.settings.iterations)
            away = (project(self.basis, self.camera, state) - self.landmarks[frames]).abs()
            outline, inner = (1.48 * float(part.nanmedian()) for part in (away[:, :JAW], away[:, JAW:]))
            self.sigma = min(max(inner, _SIGMA_RANGE[0]), _SIGMA_RANGE[1])
            if turn > 0:
                self.contour = min(max((self.sigma / max(outline, 1e-6)) ** 2, _LEAST_CONTOUR), 1.0)
            if turn > 0 and self.start is None:
                prior = self._learned(prior, state)
        self.prior = replace(self.prior, rate=prior.rate, identity_precision=prior.identity_precision)
        return state

    def _learned(self, prior: Prior, state: State) -> Prior:
        """The prior with what the clip's own coefficients say about it.

        Identity coefficients are N(0,1). Where they come out larger, landmarks err alike in all frames (a detector's
        idea of a brow or a jaw is not the model's), and the prior gains weight until they do not. Expressions that last
        are held down then as well, for they take the same errors.
        """
        excess = max(1.0, float((state.identity**2).mean()) / _MOST_IDENTITY)
        prior = replace(prior, identity_precision=prior.identity_precision * excess**1.5)
        if not holds_weights(self.model):
            return prior
        if float(prior.identity_precision[0]) > 1:
            self.held_down = self.held_down * lasting_factor(self.model, state.expression)
        # Landmarks that are exact need little prior, and their noise has a floor that would give them too much.
        sparsity = self.settings.sparsity * min(max(self.sigma / _USUAL_SIGMA, 0.2), 1.0)
        return replace(prior, rate=self.held_down * learned_rate(self.model, state.expression, sparsity))

    def _landmark_term(self, frames: Tensor | slice, state: State, wide: float = 1.0) -> LandmarkTerm:
        settings = self.settings
        turned = (math.radians(settings.contour_turn[0]), math.radians(settings.contour_turn[1]))
        points = self.landmarks[frames]
        metric = landmark_metric(
            points, state.pose[:, 1], across=self.contour, along=self.contour * settings.contour_slide, turned=turned
        )
        return LandmarkTerm(self.basis, torch.nan_to_num(points), metric, wide * settings.robust_scale, self.sigma)

    def refine(
        self,
        state: State,
        photometry: Photometry,
        pictures: Iterator[Tensor],
        albedo: Tensor,
        report: Callable[[int], None],
    ) -> tuple[State, Tensor, Tensor]:
        """Refine a solved state by pictures (3,S,S), which stream; returns it with albedo (Ka,) and gamma (T,27).

        `report` is told of frames as they are done, a part of a window's after each round over it.
        """
        held: list[Tensor] = []
        gammas, oldest, mean = [], 0, torch.zeros(27).to(self.model.mean_shape)
        state = State(state.identity, state.pose.clone(), state.expression.clone())
        albedo = albedo.to(self.model.mean_shape)
        for begin, first, last, end in _windows(len(self.landmarks), _PICTURES, self.settings.overlap):
            held += [next(pictures) for _ in range(oldest + len(held), end)]
            held, oldest = held[begin - oldest :], begin
            images = torch.stack(held).to(self.model.mean_shape)
            if begin == 0:
                few, albedo, mean = self._identify_by_colour(state, photometry, images, albedo)
                state = State(few.identity, state.pose, state.expression)
            frames = slice(begin, end)
            part = state.at(frames, torch.float64)
            for turn in range(_COLOUR_ROUNDS):
                colours = photometry.colours(part, images, albedo, mean, free_albedo=False)
                terms: list[Term] = [self._landmark_term(frames, part), colours.term]
                part = minimise(
                    terms, self.camera, part, self.prior.of(frames), free_identity=False, iterations=_COLOUR_STEPS
                )
                done, before = ((last - first) * turns // _COLOUR_ROUNDS for turns in (turn + 1, turn))
                report(done - before)
            _put(state, part, first, last, begin)
            gammas.append(colours.gamma[first - begin : last - begin])
        return state, albedo, torch.cat(gammas)

    def _identify_by_colour(
        self, state: State, photometry: Photometry, images: Tensor, albedo: Tensor
    ) -> tuple[State, Tensor, Tensor]:
        """Identity, albedo (Ka,) and mean light (27,) from spread frames of the first window."""
        spread = _spread(len(images), _IDENTITY_PICTURES)
        few = state.at(spread, torch.float64)
        prior = replace(self.prior.of(spread), linked=torch.zeros_like(spread[1:], dtype=torch.bool))
        mean = torch.zeros(27).to(albedo)
        for _ in range(_COLOUR_ROUNDS + 1):
            colours = photometry.colours(few, images[spread], albedo, mean, free_albedo=True)
            albedo, mean = colours.albedo, colours.gamma.mean(0)
            terms: list[Term] = [self._landmark_term(spread, few), colours.term]
            few = minimise(terms, self.camera, few, prior, free_identity=True, iterations=_COLOUR_STEPS)
        return few, albedo, mean

    def quality(self, state: State) -> tuple[Tensor, Tensor]:
        """Mean distance (T,) in px of the landmarks that are there, and confidence (T,): their mean robust weight."""
        away = (project(self.basis, self.camera, state) - self.landmarks).norm(dim=2)
        scale = self.settings.robust_scale
        weight = (scale**2 / (scale**2 + away**2)) ** 2
        return away.nanmean(1), torch.nan_to_num(weight).mean(1)


def _spread(count: int, most: int) -> Tensor:
    """At most `most` frames, evenly over `count`."""
    return torch.linspace(0, count - 1, min(count, most)).round().long()


def _windows(count: int, window: int, overlap: int) -> Iterator[tuple[int, int, int, int]]:
    """Windows as (begin, first, last, end): frames begin..end are solved, of which first..last are kept."""
    for first in range(0, count, window):
        last = min(first + window, count)
        yield max(0, first - overlap), first, last, min(last + overlap, count)


def _put(state: State, part: State, first: int, last: int, begin: int) -> None:
    """Write the frames first..last of a window that begins at `begin` into the clip's state."""
    state.pose[first:last] = part.pose[first - begin : last - begin]
    state.expression[first:last] = part.expression[first - begin : last - begin]
