"""AED: how far predicted expression coefficients lie from the true ones.

Paper 4 gives no formula; its values of 0.08 to 0.10 fit the mean absolute difference and no L2 norm, so `aed` is the
former and `aed_l2` stands beside it. (FOMM's papers call an identity distance AED.)
"""

from typing import Any

from torch import Tensor

from common.metrics.means import FrameMeans

COLUMNS = ("aed", "aed_l2")


def expression_distance(preds: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Figures (B,) of coefficients (B,K): `aed` = mean over K of |b - b*|, `aed_l2` = ‖b - b*‖₂; NaN stays NaN.

    Raises:
        ValueError: other shapes.
    """
    if preds.shape != target.shape or preds.dim() != 2 or preds.shape[1] == 0:
        raise ValueError(f"expected two batches (B,K), got {tuple(preds.shape)} and {tuple(target.shape)}")
    difference = preds.double() - target.double()
    return {"aed": difference.abs().mean(dim=1), "aed_l2": difference.norm(dim=1)}


class ExpressionDistance(FrameMeans):
    """`aed` and `aed_l2` over frames: `update(preds, target, clips)`.

    Args:
        basis: whose coefficients these are ("bfm09", "ict"), since figures of two bases do not compare.
    """

    higher_is_better = False

    def __init__(self, basis: str, **kwargs: Any) -> None:
        super().__init__(COLUMNS, **kwargs)
        self.basis = basis

    def update(self, preds: Tensor, target: Tensor, clips: Tensor | int | None = None) -> None:
        """Add coefficients (B,K) of frames."""
        self.add(expression_distance(preds, target), clips)
