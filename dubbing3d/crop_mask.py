"""Which part of a crop is hidden from the renderer and drawn by it: the lower face.

Paper 4 cuts a polygon out of the landmarks. A polygon through the true jaw tells how far the mouth is open, and a
renderer learns to read it (the paper's own failure case, fig. 8). The mask by the face model knows the pose and the
identity but not the expression: it holds the lower face with a closed and with a wide open mouth.
"""

import math
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from common.errors import UserError
from common.face3d.morphable import FaceModel
from dubbing3d.guide import FaceFrames, before_the_jaw, project

MaskKind = Literal["model", "landmark"]

MARGIN = 0.04
"""How far the lower face is widened, as a share of its own width."""
_DIRECTIONS = 32
"""Half planes by which the lower face is bounded."""
_JAW = tuple(range(2, 15))
_NOSE_BASE = tuple(range(31, 36))
_UNDER_NOSE = 0.012
"""How far below the nostrils the mask begins, as a share of the lower face's width."""
_OPENING = 0.25
"""Distance in dm of the lips of a mouth that is wide open in speech."""


@torch.no_grad()
def crop_mask(
    model: FaceModel | None,
    face: FaceFrames | None,
    matrices: Tensor | None,
    size: int,
    *,
    kind: MaskKind = "model",
    landmarks: Tensor | None = None,
) -> Tensor:
    """The mask of B crops; I_crop = I_t * (1 - mask).

    Args:
        model, face, matrices: for "model"; see `guide.project`. The face's expression has no effect.
        size: side of the crop in px.
        kind: "model", see above; "landmark": the polygon of jaw 2..14 and nose base 31..35, the literal reading.
        landmarks: for "landmark", (B,68,2) in px of the crop.

    Returns:
        (B,1,size,size) in [0,1]: 1 is hidden and to be drawn; edges are one pixel soft.

    Raises:
        UserError: an unknown kind, or one whose input is missing.
    """
    if kind == "landmark" and landmarks is not None:
        return _landmark_mask(landmarks, size)
    if kind == "model" and model is not None and face is not None and matrices is not None:
        return _model_mask(model, face, matrices, size)
    raise UserError(f"a crop mask of kind {kind!r} cannot be made: use model with a face, or landmark with landmarks")


def _model_mask(model: FaceModel, face: FaceFrames, matrices: Tensor, size: int) -> Tensor:
    like = model.mean_shape
    outline, fixed = _lower_face(model), _fixed_expressions(model).to(like)
    points, corners = [], torch.empty(0)
    for expression in fixed:
        xy, _, _ = project(model, face.with_expression(expression.expand(len(face), -1)), matrices)
        points.append(xy[:, outline.to(xy.device)])
        if len(points) == 1:
            corners = model.landmarks(xy)
    hull = torch.cat(points, dim=1)
    across = corners[:, 45] - corners[:, 36]
    right = across / across.norm(dim=1, keepdim=True).clamp_min(1e-6)
    # In profile the eyes lie behind each other; an upright head is then the better guess.
    sure = (across.norm(dim=1) / (hull.amax(1) - hull.amin(1)).norm(dim=1).clamp_min(1e-6) / 0.15).clamp(0, 1)[:, None]
    right = right * sure + (1 - sure) * right.new_tensor([1.0, 0.0])
    right = right / right.norm(dim=1, keepdim=True).clamp_min(1e-6)
    down = torch.stack([-right[:, 1], right[:, 0]], dim=1)
    grid = _grid(size, hull)
    angle = torch.arange(_DIRECTIONS, device=hull.device) * (2 * math.pi / _DIRECTIONS)
    normals = torch.stack([angle.cos(), angle.sin()]).to(hull)
    reach = hull @ normals
    width = (reach.amax(1) - reach.amin(1)).amin(dim=1)
    inside = (reach.amax(1) + MARGIN * width[:, None])[:, None] - grid @ normals
    below = _below_the_nose(grid, corners, right, down, width)
    depth = torch.minimum(inside.amin(dim=2), below)
    return (depth + 0.5).clamp(0, 1).view(-1, 1, size, size)


def _below_the_nose(grid: Tensor, corners: Tensor, right: Tensor, down: Tensor, width: Tensor) -> Tensor:
    """How far (B,P) the pixels lie below a line that runs from ear to ear under the nose base.

    Args:
        grid: (P,2) pixels.
        corners: (B,68,2) landmarks of the resting face in px.
        right, down: (B,2) axes of the head.
        width: (B,) of the lower face in px.
    """
    base = corners[:, list(_NOSE_BASE)]
    along, depth = (torch.einsum("bij,bj->bi", base, axis) for axis in (right, down))
    left_edge, right_edge = along.amin(1), along.amax(1)
    height = depth.amax(1) + _UNDER_NOSE * width
    x, y = grid @ right.T, grid @ down.T
    line = height.expand_as(x)
    for ear, edge, sign in ((_JAW[0], left_edge, -1.0), (_JAW[-1], right_edge, 1.0)):
        run = (sign * ((corners[:, ear] * right).sum(1) - edge)).clamp_min(0.25 * width)
        slope = ((corners[:, ear] * down).sum(1) - height) / run
        line = line + slope * (sign * (x - edge)).clamp_min(0)
    return (y - line).T


def _grid(size: int, like: Tensor) -> Tensor:
    """Centres (P,2) of the pixels, row by row."""
    centres = torch.arange(size, device=like.device, dtype=like.dtype) + 0.5
    return torch.stack(torch.meshgrid(centres, centres, indexing="xy"), dim=-1).flatten(0, 1)


@lru_cache(maxsize=4)
def _lower_face(model: FaceModel) -> Tensor:
    """Vertices (N,) of the lower face: below the nose base and before the plane of ear lobes and chin."""
    height, corners = model.mean_shape[:, 1].cpu(), model.landmark_vertices.cpu()
    below = (height < height[corners[33]]) & (height > height[corners[8]] - 0.1)
    return torch.unique(torch.cat([torch.nonzero((before_the_jaw(model) > 0) & below).squeeze(1), corners[list(_JAW)]]))


def wide_open(model: FaceModel, opening: float = _OPENING) -> Tensor:
    """The expression (Ke,), on the CPU, that parts the lips by so many dm: jawOpen, or the likeliest where nameless."""
    corners = model.landmark_vertices[[57, 51]]
    height = model.expression_basis[:, corners, 1].cpu()
    way = height[:, 1] - height[:, 0]
    if "jawOpen" in model.expression_names:
        jaw = torch.zeros_like(way)
        jaw[model.expression_index("jawOpen")] = 1.0
        way = way * jaw
    return opening * way / (way @ way).clamp_min(1e-9)


@lru_cache(maxsize=4)
def _fixed_expressions(model: FaceModel) -> Tensor:
    """(2,Ke): the resting face and the mouth wide open."""
    wide = wide_open(model)
    return torch.stack([torch.zeros_like(wide), wide])


def _landmark_mask(landmarks: Tensor, size: int) -> Tensor:
    """The polygon of jaw and nose base by the even-odd rule, on 4 x 4 samples per pixel."""
    order = [*_JAW, *reversed(_NOSE_BASE)]
    fine = 4
    polygon = landmarks[:, order].float() * fine
    grid = _grid(size * fine, polygon)
    crossings = torch.zeros(len(polygon), len(grid), dtype=torch.bool, device=polygon.device)
    for start, end in zip(polygon.unbind(1), polygon.roll(-1, 1).unbind(1), strict=True):
        above = (start[:, None, 1] > grid[:, 1]) != (end[:, None, 1] > grid[:, 1])
        rise = end[:, 1] - start[:, 1]
        rise = torch.where(rise.abs() < 1e-9, torch.full_like(rise, 1e-9), rise)
        at = start[:, None, 0] + (grid[:, 1] - start[:, None, 1]) * ((end - start)[:, 0] / rise)[:, None]
        crossings ^= above & (grid[:, 0] < at)
    inside = crossings.view(-1, 1, size * fine, size * fine).float()
    return F.avg_pool2d(inside, fine)


def feathered(masks: Tensor, reach: int) -> Tensor:
    """(B,1,S,S): 0 outside of masks, rising to 1 within `2 * reach` px inside of them."""
    if reach < 1:
        return masks
    shrunk = -F.max_pool2d(-masks, 2 * reach + 1, 1, reach)
    return F.avg_pool2d(shrunk, 2 * reach + 1, 1, reach) * (masks > 0).to(masks)
