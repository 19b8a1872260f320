"""Levenberg-Marquardt over a clip: shared identity, per-frame pose and expression, box bounds, smoothness in time.

Two linear solvers behind one loop. While the identity is free, frames couple only through it: an arrow-shaped system,
reduced to the identity by Schur complements. Once it is fixed, neighbours couple through smoothness: conjugate
gradients on the block-banded system, preconditioned by the frames' own blocks. Both work on all frames at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from common.face3d.camera import Camera
from common.face3d.fit_terms import POSE, State, Term

_MOST_NUMBERS = 1 << 22
"""Of a Jacobian held at once; bounds the memory."""
_MOST_STEPS, _SOLVED = 300, 1e-6
"""Of the conjugate gradients: steps at most, and the share of the energy norm (squared) that may be left. The norm of
the plain residual would not do: it hardly knows the weights that landmarks hardly see."""
_LEAST_GAIN = 1e-5
"""Relative gain of a step below which the loop ends."""


@dataclass(frozen=True)
class Prior:
    """What is known before looking. A precision is 1 / sigma^2.

    The identity lies around `identity_mean` (Ki,) with `identity_precision` (Ki,); the expression around
    `expression_mean` (T,Ke) with `expression_precision` (Ke,Ke), falls off exponentially with `rate` (Ke,), and stays
    within `bounds`. Pose accelerations have `pose_precision` (6,), expression changes `expression_smooth` (Ke,), per
    frame; `linked` (T-1,) says which neighbouring frames follow each other in time.
    """

    identity_mean: Tensor
    identity_precision: Tensor
    expression_mean: Tensor
    expression_precision: Tensor
    rate: Tensor
    bounds: tuple[float, float]
    pose_precision: Tensor
    expression_smooth: Tensor
    linked: Tensor

    def of(self, frames: Tensor | slice) -> "Prior":
        """The prior of some of the frames; `linked` is right for a slice only."""
        links = self.linked[frames.start : frames.stop - 1] if isinstance(frames, slice) else self.linked
        return replace(self, expression_mean=self.expression_mean[frames], linked=links)

    def motion(self, pose: Tensor, expression: Tensor) -> tuple[Tensor, Tensor]:
        """Weighted accelerations (T-2,6) and changes (T-1,Ke): the square roots of the smoothness costs, doubled."""
        bends = (self.linked[1:] & self.linked[:-1])[:, None]
        second = (pose[2:] - 2 * pose[1:-1] + pose[:-2]) * bends * self.pose_precision.sqrt()
        first = (expression[1:] - expression[:-1]) * self.linked[:, None] * self.expression_smooth.sqrt()
        return second, first

    def stiffness(self, pose: Tensor, expression: Tensor) -> Tensor:
        """The smoothness costs' Hessian times a vector, given and returned as pose (T,6) and expression (T,Ke)."""
        second, first = self.motion(pose, expression)
        second, first = second * self.pose_precision.sqrt(), first * self.expression_smooth.sqrt()
        out = torch.zeros(len(pose), POSE + expression.shape[1], dtype=pose.dtype, device=pose.device)
        for shift, factor in ((0, 1.0), (1, -2.0), (2, 1.0)):
            out[shift : shift + len(second), :POSE] += factor * second
        out[1:, POSE:] += first
        out[:-1, POSE:] -= first
        return out

    def stiffness_diagonal(self) -> Tensor:
        """Diagonal (T, 6+Ke) of that Hessian."""
        linked = self.linked.to(self.rate)
        bends = linked[1:] * linked[:-1]
        ones, twos = (torch.zeros(len(linked) + 1).to(linked) for _ in range(2))
        ones[1:] += linked
        ones[:-1] += linked
        for shift, factor in ((0, 1.0), (1, 4.0), (2, 1.0)):
            twos[shift : shift + len(bends)] += factor * bends
        return torch.cat([twos[:, None] * self.pose_precision, ones[:, None] * self.expression_smooth], dim=1)


class _System(NamedTuple):
    """The whole cost, and its gradient and matrix in the blocks of `Equations`."""

    cost: float
    gradient: Tensor
    frames: Tensor
    shared_gradient: Tensor
    across: Tensor
    shared: Tensor


def minimise(
    terms: Sequence[Term], camera: Camera, state: State, prior: Prior, *, free_identity: bool, iterations: int
) -> State:
    """Lower the cost from `state` by at most `iterations` Levenberg-Marquardt steps; never raises it.

    With `free_identity` the smoothness in `prior` is left out, so that the frames may be any of the clip.
    """
    step = _arrow_step if free_identity else _chain_step
    system, damping = _assemble(terms, camera, state, prior, free_identity), 1e-3
    for _ in range(iterations):
        move = step(system, state, prior, damping)
        candidate = _moved(state, move, prior)
        trial = _assemble(terms, camera, candidate, prior, free_identity)
        if not trial.cost < system.cost:  # NaN included
            damping *= 10
            continue
        gain = (system.cost - trial.cost) / max(system.cost, 1e-12)
        state, system, damping = candidate, trial, max(damping / 5, 1e-7)
        if gain < _LEAST_GAIN:
            break
    return state


def _moved(state: State, move: tuple[Tensor, Tensor], prior: Prior) -> State:
    frames, identity = move
    expression = (state.expression + frames[:, POSE:]).clamp(*prior.bounds)
    return State(state.identity + identity, state.pose + frames[:, :POSE], expression)


def _assemble(terms: Sequence[Term], camera: Camera, state: State, prior: Prior, free_identity: bool) -> _System:
    """Terms and priors at a state; the smoothness matrix, which belongs to no frame, is left to `_chain_step`."""
    count, own = len(state.pose), POSE + state.expression.shape[1]
    shape = len(state.identity) if free_identity else 0
    new = state.pose.new_zeros
    cost, gradient, frames = new(()), new(count, own), new(count, own, own)
    shared_gradient, across, shared = new(shape), new(count, own, shape), new(shape, shape)
    for term in terms:
        block = max(1, _MOST_NUMBERS // (3 * (own + shape) * len(term.basis.mean)))
        for start in range(0, count, block):
            part = slice(start, start + block)
            equations = term.equations(camera, state, part, free_identity=free_identity)
            cost += equations.cost.sum()
            gradient[part] += equations.gradient
            frames[part] += equations.frames
            shared_gradient += equations.shared_gradient
            across[part] += equations.across
            shared += equations.shared
    away = state.expression - prior.expression_mean
    pull = away @ prior.expression_precision
    cost += 0.5 * (pull * away).sum() + (prior.rate * state.expression).sum()
    gradient[:, POSE:] += pull + prior.rate
    frames[:, POSE:, POSE:] += prior.expression_precision
    if free_identity:
        away = state.identity - prior.identity_mean
        cost += 0.5 * (prior.identity_precision * away**2).sum()
        shared_gradient += prior.identity_precision * away
        shared += torch.diag(prior.identity_precision)
    else:
        second, first = prior.motion(state.pose, state.expression)
        cost += 0.5 * ((second**2).sum() + (first**2).sum())
        gradient += prior.stiffness(state.pose, state.expression)
    return _System(float(cost), gradient, frames, shared_gradient, across, shared)


def _held(system: _System, state: State, prior: Prior) -> Tensor:
    """Which of the frames' unknowns (T, 6+Ke) stay: those at a bound that the cost pushes against (active set)."""
    lower, upper = prior.bounds
    push = system.gradient[:, POSE:]
    held = ((state.expression <= lower) & (push > 0)) | ((state.expression >= upper) & (push < 0))
    return torch.cat([torch.zeros_like(state.pose, dtype=torch.bool), held], dim=1)


def _damped_blocks(system: _System, free: Tensor, damping: float, extra: Tensor | float = 0.0) -> Tensor:
    """The frames' own blocks (T,P,P), damped in proportion to their diagonal, unit rows where an unknown is held."""
    blocks = system.frames * (free[:, :, None] & free[:, None, :])
    diagonal = blocks.diagonal(dim1=1, dim2=2)
    ridge = damping * (diagonal + extra).clamp_min(1e-3) + torch.where(free, 0.0, 1.0)
    return blocks + torch.diag_embed(ridge)


def _arrow_step(system: _System, state: State, prior: Prior, damping: float) -> tuple[Tensor, Tensor]:
    """Schur complement: every frame's unknowns are expressed by the identity, which is solved first."""
    free = ~_held(system, state, prior)
    across = system.across * free[..., None]
    factor = torch.linalg.cholesky(_damped_blocks(system, free, damping))
    solved = torch.cholesky_solve(torch.cat([across, (system.gradient * free)[..., None]], dim=2), factor)
    by_identity, alone = solved[..., :-1], solved[..., -1]
    turned = across.flatten(0, 1).T
    matrix = system.shared + torch.diag(damping * system.shared.diagonal()) - turned @ by_identity.flatten(0, 1)
    identity = -torch.linalg.solve(matrix, system.shared_gradient - turned @ alone.flatten())
    return -(alone + by_identity @ identity), identity


def _chain_step(system: _System, state: State, prior: Prior, damping: float) -> tuple[Tensor, Tensor]:
    """Preconditioned conjugate gradients (Hestenes and Stiefel 1952) on blocks + smoothness."""
    free = ~_held(system, state, prior)
    smooth = prior.stiffness_diagonal()
    blocks = _damped_blocks(system, free, damping, smooth)
    factor = torch.linalg.cholesky(blocks + torch.diag_embed(smooth * free))

    def matrix(vector: Tensor) -> Tensor:
        own = (blocks @ vector[..., None]).squeeze(2)
        return own + prior.stiffness(vector[:, :POSE], vector[:, POSE:]) * free

    residual = -system.gradient * free
    solution = torch.zeros_like(residual)
    direction, energy, first = torch.zeros_like(residual), 1.0, 0.0
    for _ in range(_MOST_STEPS):
        eased = torch.cholesky_solve(residual[..., None], factor).squeeze(2)
        previous, energy = energy, float((residual * eased).sum())
        first = first or energy
        if energy <= _SOLVED * first:
            break
        direction = eased + (energy / previous) * direction
        image = matrix(direction)
        length = energy / max(float((direction * image).sum()), 1e-300)
        solution, residual = solution + length * direction, residual - length * image
    return solution, torch.zeros_like(state.identity)
