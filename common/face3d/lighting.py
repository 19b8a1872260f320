"""Vertex normals and second-order spherical-harmonics light with Deep3DFaceRecon's constants (Deng et al. 2019)."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

BANDS = 9
AMBIENT = 0.8
"""Added to band 0 of every colour channel, so that gamma = 0 is plain white light."""

_A = (math.pi, 2 * math.pi / math.sqrt(3), 2 * math.pi / math.sqrt(8))
_C = (1 / math.sqrt(4 * math.pi), math.sqrt(3) / math.sqrt(4 * math.pi), 3 * math.sqrt(5) / math.sqrt(12 * math.pi))
_Y0, _Y1, _Y2 = (a * c for a, c in zip(_A, _C, strict=True))


def vertex_normals(vertices: Tensor, triangles: Tensor) -> Tensor:
    """Unit normals (B,V,3) of vertices (B,V,3), as the mean of the adjacent triangles' unit normals.

    Triangles (F,3) wind counter-clockwise as seen from outside. Adjacent triangles count alike, whatever their area,
    as in Deep3DFaceRecon. A triangle without area adds nothing; a vertex without a proper triangle gets a zero
    normal.
    """
    batch, count, _ = vertices.shape
    axes = [vertices[..., axis].t().contiguous() for axis in range(3)]  # (V,B): a gather takes whole rows
    one, two = ([axis[triangles[:, k]] - axis[triangles[:, 0]] for axis in axes] for k in (1, 2))
    cross = [one[i - 2] * two[i - 1] - one[i - 1] * two[i - 2] for i in range(3)]
    squared = cross[0] ** 2 + cross[1] ** 2 + cross[2] ** 2
    proper = squared > 1e-30  # without area: no normal, and no gradient
    inverse = torch.where(proper, torch.rsqrt(torch.where(proper, squared, 1.0)), 0.0)
    faces = torch.cat([part * inverse for part in cross], dim=1)
    summed = vertices.new_zeros(count, 3 * batch)
    for corner in range(3):
        summed = summed.index_add(0, triangles[:, corner], faces)
    return F.normalize(summed.view(count, 3, batch).permute(2, 0, 1), dim=2, eps=1e-12)


def harmonics(normals: Tensor) -> Tensor:
    """The nine basis values (..., 9) at unit normals (..., 3), cosine-lobe weights a_l included."""
    x, y, z = normals.unbind(-1)
    return torch.stack(
        [
            torch.full_like(x, _Y0),
            -_Y1 * y,
            _Y1 * z,
            -_Y1 * x,
            _Y2 * x * y,
            -_Y2 * y * z,
            _Y2 / (2 * math.sqrt(3)) * (3 * z * z - 1),
            -_Y2 * x * z,
            _Y2 / 2 * (x * x - y * y),
        ],
        dim=-1,
    )


def shade(albedo: Tensor, normals: Tensor, gamma: Tensor) -> Tensor:
    """Light albedo (B,V,3) in [0,1] at posed unit normals (B,V,3) by coefficients gamma (B,27).

    gamma is three rows (red, green, blue) of nine bands; 0.8 is added to each band 0. Colours are display values
    (sRGB-encoded), as in Deep3DFaceRecon: no transfer curve is applied. The result (B,V,3) is not clamped.
    """
    bands = gamma.view(-1, 3, BANDS)
    offset = bands.new_zeros(BANDS)
    offset[0] = AMBIENT
    return albedo * (harmonics(normals) @ (bands + offset).transpose(1, 2))
