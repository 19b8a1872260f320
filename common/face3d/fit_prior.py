"""What a fit believes before it looks: rest, symmetry and smoothness, for weights in [0,1] and for N(0,1) modes."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from common.face3d.fit_solve import Prior
from common.face3d.morphable import FaceModel

_MIRROR_SIGMA = 0.1
"""Difference of an expression's left and right weight: faces are mostly symmetric, speaking ones more so."""
_FIRST_RATE = 0.4
"""Exponential rate of a weight before anything is known about a clip: nearly flat."""
_LEAST_SPREAD = 0.02
"""Added to a weight's spread over the clip; bounds the rate."""
_LASTING = 0.1
"""Weight, lasting through a clip, at which the rate doubles."""
_HIDDEN, _BLIND = ("eyeLook", "cheekPuff", "jawForward"), 10.0
"""Expressions that show in landmarks as a twitch of the lids or a wider outline at most, and the factor on their
rates: a gaze that wanders or a puffed face would be the errors of landmarks."""
_FLAT = 1e-2
"""Precision that keeps a weight without any effect on the landmarks determined."""
_UNBOUNDED = (-math.inf, math.inf)


def holds_weights(model: FaceModel) -> bool:
    """Whether expression coefficients are blend weights in [0,1], as on ARKit-like models, or N(0,1)."""
    return "jawOpen" in model.expression_names


def first_prior(
    model: FaceModel,
    *,
    pose_acceleration: Sequence[float],
    expression_change: float,
    eye_change: float,
    sparsity: float,
) -> Prior:
    """The prior of a model before a clip is seen: no frames linked, standard deviations as in `FitSettings`."""
    identities, expressions, _ = model.sizes
    weights = holds_weights(model)
    like = torch.zeros(0, dtype=torch.float64, device=model.mean_shape.device)
    change = [eye_change if name.startswith("eye") else expression_change for name in model.expression_names]
    return Prior(
        identity_mean=like.new_zeros(identities),
        identity_precision=like.new_ones(identities),
        expression_mean=like.new_zeros(1, expressions),
        expression_precision=(_FLAT if weights else 1.0) * torch.eye(expressions).to(like) + _symmetry(model),
        rate=sparsity * _FIRST_RATE * _unseen(model).to(like) if weights else like.new_zeros(expressions),
        bounds=(0.0, 1.0) if weights else _UNBOUNDED,
        pose_precision=like.new_tensor(pose_acceleration) ** -2,
        expression_smooth=like.new_tensor(change) ** -2,
        linked=like.new_zeros(0, dtype=torch.bool),
    )


def learned_rate(model: FaceModel, expression: Tensor, sparsity: float) -> Tensor:
    """Rates (Ke,) from expressions (T,Ke) of the clip itself: what hardly moves is held down, what moves is free.

    The empirical Bayes estimate of an exponential prior, as in automatic relevance determination (MacKay 1992), but
    from the standard deviation in place of the mean, which are the same there: a weight that is up all the time is
    more likely a trait of the face.
    """
    return sparsity * _unseen(model).to(expression) / (expression.std(0, correction=0) + _LEAST_SPREAD)


def lasting_factor(model: FaceModel, expression: Tensor) -> Tensor:
    """Factors (Ke,) on the rates of what is up in nine frames out of ten, but for jaw and lips: a scowl that never
    ends is no expression."""
    spoken = torch.tensor([name.startswith(("jaw", "mouth")) for name in model.expression_names])
    lasting = expression.quantile(0.1, dim=0)
    return torch.where(spoken.to(lasting.device), 1.0, 1.0 + lasting / _LASTING)


def _unseen(model: FaceModel) -> Tensor:
    """Factors (Ke,) on the rates, large for what landmarks hardly see and other modes explain as well."""
    return torch.tensor([_BLIND if name.startswith(_HIDDEN) else 1.0 for name in model.expression_names])


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
