"""What a fit compares: points of a face model as a camera sees them, and the terms that say how far off they are.

A term answers with its cost and the normal equations of its linearisation, so that one solver (`fit_solve`) serves
landmarks and photometry, with the identity free or fixed.
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from common.face3d.camera import Camera, rotation
from common.face3d.morphable import FaceModel

JAW = 17
"""Landmarks 0..16 are the outline of the face, which slides over the surface as the head turns."""
POSE = 6
"""Pitch, yaw, roll in rad and x, y, z in dm."""


class Basis(NamedTuple):
    """Rows of a face model at N of its vertices: mean (N,3), identity (Ki,N,3), expression (Ke,N,3)."""

    mean: Tensor
    identity: Tensor
    expression: Tensor

    @classmethod
    def of(cls, model: FaceModel, vertices: Tensor) -> "Basis":
        """The rows at `vertices` (N,) of a model, in its type."""
        return cls(model.mean_shape[vertices], model.identity_basis[:, vertices], model.expression_basis[:, vertices])

    def double(self) -> "Basis":
        """The same in float64."""
        return Basis(*(rows.double() for rows in self))

    def points(self, identity: Tensor, expression: Tensor) -> Tensor:
        """Points (B,N,3) in dm from identity (Ki,), shared, and expression (B,Ke)."""
        own = self.mean + torch.tensordot(identity, self.identity, 1)
        return own + (expression @ self.expression.flatten(1)).view(len(expression), *own.shape)


class State(NamedTuple):
    """The unknowns: identity (Ki,), pose (T,6), expression (T,Ke)."""

    identity: Tensor
    pose: Tensor
    expression: Tensor

    def at(self, frames: slice | Tensor, dtype: torch.dtype) -> "State":
        """Some of the frames, in another type."""
        return State(self.identity.to(dtype), self.pose[frames].to(dtype), self.expression[frames].to(dtype))


class Equations(NamedTuple):
    """Cost (B,) of B frames, its gradient, and its Gauss-Newton matrix in blocks.

    The P = 6 + Ke unknowns of a frame are pose and expression; the S shared ones are the identity where it is free,
    else none.
    """

    cost: Tensor
    gradient: Tensor
    """(B,P)."""
    frames: Tensor
    """(B,P,P)."""
    shared_gradient: Tensor
    """(S,), summed over the frames."""
    across: Tensor
    """(B,P,S)."""
    shared: Tensor
    """(S,S), summed over the frames."""

    @classmethod
    def of(cls, cost: Tensor, rows: Tensor, bent: Tensor, pull: Tensor, own: int) -> "Equations":
        """From cost (B,), Jacobian rows (B,R,P+S), the same times the residuals' weights, and the weighted residuals
        (B,R), with P = `own`; in float64."""
        gradient = (rows.transpose(1, 2) @ pull[..., None]).squeeze(2)
        mine, ours = rows[..., :own].transpose(1, 2), bent[..., own:]
        shared = rows[..., own:].flatten(0, 1).T @ ours.flatten(0, 1)
        blocks = (cost, gradient[:, :own], mine @ bent[..., :own], gradient[:, own:].sum(0), mine @ ours, shared)
        return cls(*(block.double() for block in blocks))


class Term(Protocol):
    """One part of the cost."""

    @property
    def basis(self) -> Basis:
        """The points that it compares."""
        ...

    def equations(self, camera: Camera, state: State, frames: slice, *, free_identity: bool) -> Equations:
        """Linearise the cost of some frames around a state of all frames; the result is float64."""
        ...


def project(basis: Basis, camera: Camera, state: State) -> Tensor:
    """Pixels (B,N,2) of the basis's points in every frame of a state."""
    placed = basis.points(state.identity, state.expression) @ rotation(state.pose[:, :3]) + state.pose[:, None, 3:]
    return camera.project(placed)[0]


def linearise(basis: Basis, camera: Camera, state: State, *, free_identity: bool) -> tuple[Tensor, Tensor]:
    """`project` with its derivatives (B,N,2,P+S), analytically; the columns as in `Equations`."""
    turn, turn_by_angle = rotation_derivatives(state.pose[:, :3])
    points = basis.points(state.identity, state.expression)
    placed = points @ turn + state.pose[:, None, 3:]
    xy, depth = camera.project(placed)
    moved = turned_modes(points, basis, turn, turn_by_angle, free_identity=free_identity)
    moved[..., 3:POSE] = torch.eye(3, dtype=moved.dtype, device=moved.device)
    # xy = centre +- focal (X, Y) / depth, and depth falls as z grows
    scale = (camera.focal / depth)[..., None, None]
    slope = (placed[..., :2] / depth[..., None])[..., None]
    flip = moved.new_tensor([1.0, -1.0]).view(2, 1)
    return xy, flip * scale * (moved[:, :, :2] + slope * moved[:, :, 2:])


def turned_modes(vectors: Tensor, basis: Basis, turn: Tensor, turn_by_angle: Tensor, *, free_identity: bool) -> Tensor:
    """Derivatives (B,N,3,P+S) of turned vectors `vectors @ turn` (B,N,3), zero in the translation's columns."""
    modes = torch.cat([basis.expression, basis.identity]) if free_identity else basis.expression
    batch, count = vectors.shape[:2]
    moved = vectors.new_zeros(batch, count, 3, POSE + len(modes))
    moved[..., :3] = torch.einsum("bnd,bade->bnea", vectors, turn_by_angle)
    moved[..., POSE:] = (turn.transpose(1, 2)[:, None] @ modes.permute(1, 2, 0)).view(batch, count, 3, -1)
    return moved


def rotation_derivatives(angles: Tensor) -> tuple[Tensor, Tensor]:
    """R (B,3,3) for row vectors and its derivatives (B,3,3,3) by pitch, yaw and roll (second axis).

    R = Rx^T Ry^T Rz^T, and a turn about an axis differentiates to itself times that axis's generator.
    """
    single = torch.diag_embed(angles)
    x, y, z = (rotation(single[:, axis]) for axis in range(3))
    generators = angles.new_tensor(
        [
            [[0, 0, 0], [0, 0, 1], [0, -1, 0]],
            [[0, 0, -1], [0, 0, 0], [1, 0, 0]],
            [[0, 1, 0], [-1, 0, 0], [0, 0, 0]],
        ]
    )
    turn = x @ y @ z
    return turn, torch.stack([generators[0] @ turn, x @ generators[1] @ y @ z, turn @ generators[2]], dim=1)


@dataclass(frozen=True)
class LandmarkTerm:
    """68 landmarks under Geman and McClure's robust loss: c^2 d^2 / (c^2 + d^2) / (2 sigma^2).

    `target` (T,68,2) px; `metric` (T,68,2,2) is the weight of a deviation by direction, zero where there is no
    landmark; `scale` c and `sigma` are in px.
    """

    basis: Basis
    target: Tensor
    metric: Tensor
    scale: float
    sigma: float

    def equations(self, camera: Camera, state: State, frames: slice, *, free_identity: bool) -> Equations:
        """See `Term.equations`."""
        xy, jacobian = linearise(self.basis, camera, state.at(frames, self.target.dtype), free_identity=free_identity)
        away, metric = xy - self.target[frames], self.metric[frames]
        pull = (metric @ away[..., None]).squeeze(3)
        squared = (away * pull).sum(2)
        share = self.scale**2 / (self.scale**2 + squared)
        weight = (share / self.sigma) ** 2
        bent = (weight[..., None, None] * metric @ jacobian).flatten(1, 2)
        cost = (0.5 * squared * share).sum(1) / self.sigma**2
        own = POSE + len(self.basis.expression)
        return Equations.of(cost, jacobian.flatten(1, 2), bent, (weight[..., None] * pull).flatten(1), own)


def landmark_metric(
    landmarks: Tensor, yaw: Tensor, *, across: float, along: float, turned: tuple[float, float]
) -> Tensor:
    """Weights (T,68,2,2) of deviations at landmarks (T,68,2) px, which may be NaN, for heads at `yaw` (T,) rad.

    Inner landmarks count alike in every direction, by 1. The outline's count by `across` perpendicular to it and by
    `along` in its own direction, since where along the jaw an annotator or a detector puts them is arbitrary; and on
    the side that turns away, where the visible silhouette leaves the model's fixed vertices, their weight falls to a
    twentieth over the yaw angles `turned` in rad.
    """
    seen = torch.isfinite(landmarks).all(2)
    metric = torch.eye(2, dtype=landmarks.dtype, device=landmarks.device).repeat(*landmarks.shape[:2], 1, 1)
    jaw = torch.nan_to_num(landmarks[:, :JAW])
    line = torch.cat([jaw[:, 1:2] - jaw[:, :1], jaw[:, 2:] - jaw[:, :-2], jaw[:, -1:] - jaw[:, -2:-1]], dim=1)
    line = line / line.norm(dim=2, keepdim=True).clamp_min(1e-6)
    metric[:, :JAW] = across * metric[:, :JAW] + (along - across) * line[..., :, None] * line[..., None, :]
    side = torch.linspace(-1, 1, JAW, dtype=yaw.dtype, device=yaw.device)  # -1 at the image's left
    away = side.clamp(-0.5, 0.5) * 2 * yaw[:, None]
    hidden = ((away - turned[0]) / (turned[1] - turned[0])).clamp(0, 1)
    metric[:, :JAW] *= (1 - 0.95 * hidden)[..., None, None]
    return metric * seen[..., None, None]
