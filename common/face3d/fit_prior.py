"""What a fit believes before it looks: how far and how fast faces move when they speak.

A blend weight in [0,1] is taken for a first-order autoregressive process around rest. Its standard deviation says how
much of it to expect, its correlation how long it stays: what does not move from frame to frame is averaged over many
frames, and a prior on its level counts once for all of them, not once for each.

Landmarks that tremble do not determine all weights, whatever the prior: `benchmarks.fitting` states what a linear
estimator that knows the true covariances leaves open, and prints what is reached.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from common.face3d.fit_solve import Prior
from common.face3d.morphable import FaceModel

_SPOKEN: dict[str, tuple[float, float]] = {
    "jawOpen": (0.3, 0.88),
    "mouthClose": (0.08, 0.88),
    "mouthFunnel": (0.2, 0.88),
    "mouthPucker": (0.2, 0.88),
    "mouthLowerDown": (0.2, 0.88),
    "mouthUpperUp": (0.2, 0.88),
    "mouthStretch": (0.2, 0.88),
    "mouthRollLower": (0.2, 0.88),
    "mouthSmile": (0.06, 0.95),
    "eyeBlink": (0.25, 0.87),
    "eyeSquint": (0.1, 0.87),
    "brow": (0.1, 0.98),
    "eyeLook": (0.01, 0.9),
    "cheekPuff": (0.01, 0.9),
    "jawForward": (0.01, 0.9),
    "eye": (0.03, 0.9),
    "": (0.03, 0.95),
}
"""Root mean square of a weight while somebody speaks, and its correlation from one frame to the next, by the beginning
of its name; the first that fits counts. Lips and jaw may cross their range in three frames, as they do at a closure.
Gaze, puffed cheeks and a jaw that is thrust show in landmarks as a twitch of the lids or a wider outline at most, and
would take the landmarks' errors: they are held near rest."""
_MIRROR_SIGMA = 0.1
"""Difference of an expression's left and right weight: faces are mostly symmetric, speaking ones more so."""
_PAIR = 2.0
"""Factor on the variances of such a pair, which moves as one and should be charged as one."""
_BELIEF = 0.6
"""Share of the clip's own expressions in the sizes that are learned, against that of speech; between all of it, which
takes noise and ambiguity for what a person does, and nothing of it, which holds down who laughs."""
_LEAST_SIZE = 0.02
"""Added to a clip's sizes, so that what rests at first may wake."""
_LASTING = 0.1
"""Weight, lasting through a clip, at which the rate doubles."""
_UNBOUNDED = (-math.inf, math.inf)


class Priors(NamedTuple):
    """The same belief for frames that stand alone and for frames in a row, which share the charge for their level."""

    alone: Prior
    row: Prior


def holds_weights(model: FaceModel) -> bool:
    """Whether expression coefficients are blend weights in [0,1], as on ARKit-like models, or N(0,1)."""
    return "jawOpen" in model.expression_names


def first_priors(
    model: FaceModel,
    *,
    pose_acceleration: Sequence[float],
    expression_change: float,
    sparsity: float,
    seen: Tensor | None = None,
) -> Priors:
    """The priors of a model: no frames linked, the rest as in `FitSettings`.

    The expressions `seen` (T,Ke) in a clip adapt the usual sizes, as in automatic relevance determination (MacKay
    1992): what rests throughout is held down, what moves is given room.
    """
    identities, expressions, _ = model.sizes
    like = torch.zeros(0, dtype=torch.float64, device=model.mean_shape.device)
    if holds_weights(model):
        spread, correlation, rate = (values.to(like) for values in _habits(model, seen))
        rate = sparsity * rate
    else:
        spread, rate = like.new_ones(expressions), like.new_zeros(expressions)
        correlation = like.new_full((expressions,), 1 - expression_change**2 / 2)
    symmetry = _symmetry(model)
    alone = Prior(
        identity_mean=like.new_zeros(identities),
        identity_precision=like.new_ones(identities),
        expression_mean=like.new_zeros(1, expressions),
        expression_precision=torch.diag(1 / spread) + symmetry,
        rate=rate,
        bounds=(0.0, 1.0) if holds_weights(model) else _UNBOUNDED,
        pose_precision=like.new_tensor(pose_acceleration) ** -2,
        expression_smooth=correlation / (spread * (1 - correlation**2)),
        linked=like.new_zeros(0, dtype=torch.bool),
    )
    share = (1 - correlation) / (1 + correlation)  # of a row's frames that would say as much if each stood alone
    row = replace(alone, expression_precision=torch.diag(share / spread) + symmetry, rate=share.sqrt() * rate)
    return Priors(alone, row)


def _habits(model: FaceModel, seen: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Variance, correlation and exponential rate (Ke,) of a model's weights, from `_SPOKEN` and what was seen."""
    names = model.expression_names
    usual = [next(value for start, value in _SPOKEN.items() if name.startswith(start)) for name in names]
    size, correlation = torch.tensor(usual, dtype=torch.float64).T
    if seen is not None:
        shown = (seen**2).mean(0).sqrt().cpu() + _LEAST_SIZE
        size = size ** (1 - _BELIEF) * shown**_BELIEF
    pair = torch.tensor([_PAIR if name.endswith(("_L", "_R")) else 1.0 for name in names], dtype=torch.float64)
    return pair * size**2, correlation, 1 / (pair * size)


def lasting_factor(model: FaceModel, expression: Tensor) -> Tensor:
    """Factors (Ke,) on the rates of what is up in nine frames out of ten, but for jaw and lips: a scowl that never
    ends is no expression."""
    spoken = torch.tensor([name.startswith(("jaw", "mouth")) for name in model.expression_names])
    lasting = expression.quantile(0.1, dim=0)
    return torch.where(spoken.to(lasting.device), 1.0, 1.0 + lasting / _LASTING)


def _symmetry(model: FaceModel) -> Tensor:
    """Precision (Ke,Ke) of the differences between `_L` and `_R` of a name."""
    place = {name: index for index, name in enumerate(model.expression_names)}
    matrix = torch.zeros(len(place), len(place), dtype=torch.float64)
    for name, left in place.items():
        right = place.get(name.removesuffix("_L") + "_R", left)
        if name.endswith("_L") and right != left:
            pair = torch.tensor([left, right])
            matrix[pair[:, None], pair] += _MIRROR_SIGMA**-2 * torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).double()
    return matrix.to(model.mean_shape.device)
