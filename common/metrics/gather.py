"""List states of torchmetrics metrics, joined safely over ranks."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat


def fill_empty(metric: Metric, rows: Mapping[str, Tensor]) -> None:
    """Give each empty list state one tensor without rows, of the right width and type.

    torchmetrics gathers tensor by tensor: a rank that saw nothing would otherwise take no part in the gathering, or
    take part with another number of dimensions, and the others would wait for it.
    """
    for name, empty in rows.items():
        state = getattr(metric, name)
        if isinstance(state, list) and not state:
            setattr(metric, name, [empty.to(metric.device)])


def joined(state: Tensor | list[Tensor]) -> Tensor | None:
    """All rows of a list state, which is one tensor after gathering; None where nothing was added."""
    if isinstance(state, list) and not state:
        return None
    rows: Tensor = dim_zero_cat(state)
    return rows if len(rows) else None


def no_rows(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor (0, *shape)."""
    return torch.zeros(0, *shape, dtype=dtype)
