"""The 257 coefficients of Deep3DFaceRecon (Deng et al. 2019) by name: never by position.

Names are the arguments of `face3d.render.render`, so that `render(model, **split(coefficients), size=224)` draws them.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from common.errors import UserError

SIZES: Mapping[str, int] = {
    "identity": 80,
    "expression": 64,
    "albedo": 80,
    "angles": 3,
    "gamma": 27,
    "translation": 3,
}
"""Name and number, in the order of the file layout and of the network's heads: identity, expression and albedo modes of
BFM09, N(0,1); angles (pitch, yaw, roll) in radians; light, three channels of nine bands; translation in decimetres."""

COUNT = sum(SIZES.values())


def split(coefficients: Tensor) -> dict[str, Tensor]:
    """Named parts (..., n) of coefficients (..., 257); views, no copies. `UserError` for another size."""
    if coefficients.dim() < 1 or coefficients.shape[-1] != COUNT:
        raise UserError(f"coefficients of shape {tuple(coefficients.shape)}: the last axis must hold {COUNT} numbers")
    return dict(zip(SIZES, coefficients.split(list(SIZES.values()), dim=-1), strict=True))


def join(parts: Mapping[str, Tensor]) -> Tensor:
    """Coefficients (..., 257) of exactly the six named parts.

    Leading axes broadcast: one identity (80,) beside the expressions (T,64) of T frames gives (T,257).
    Raises `UserError` for a missing or unknown name, a part of another size, or axes that do not fit.
    """
    missing, unknown = sorted(SIZES.keys() - parts.keys()), sorted(parts.keys() - SIZES.keys())
    if missing or unknown:
        raise UserError(f"coefficients lack {missing} and have unknown {unknown}: they are {', '.join(SIZES)}")
    for name, size in SIZES.items():
        if parts[name].dim() < 1 or parts[name].shape[-1] != size:
            raise UserError(f"{name} has shape {tuple(parts[name].shape)}: its last axis must hold {size} numbers")
    try:
        lead = torch.broadcast_shapes(*(parts[name].shape[:-1] for name in SIZES))
    except RuntimeError as error:
        shapes = ", ".join(f"{name} {tuple(parts[name].shape)}" for name in SIZES)
        raise UserError(f"the coefficients' leading axes do not fit: {shapes}") from error
    return torch.cat([parts[name].expand(*lead, size) for name, size in SIZES.items()], dim=-1)
