"""Where each piece of a face was in another frame: the face model's own motion, exact and without a network."""

import torch
from torch import Tensor
from torch.nn import functional as F

from common.face3d.morphable import FaceModel
from common.face3d.raster import Fragments, interpolate, rasterise
from dubbing3d.guide import FaceFrames, face_triangles, project
from dubbing3d.networks.warp import warp

_BEHIND = 0.03
"""dm by which a point must lie behind the nearest surface to count as hidden."""


@torch.no_grad()
def carried(
    model: FaceModel, image: Tensor, before: FaceFrames, before_matrices: Tensor, now: FaceFrames, matrices: Tensor
) -> Tensor:
    """Pictures of faces, moved to where the faces are in other frames; gradient-free.

    Each pixel of the face is taken from where the same piece of the model's surface was. What was hidden there follows
    what lies around it.

    Args:
        model: the model of the coefficients, on the device of the pictures.
        image: (B,3,S,S).
        before: the faces as the pictures show them, with the expressions that they show.
        before_matrices: (B,2,3) maps from the clip's px to the pictures.
        now: the faces as they are to be, B frames.
        matrices: (B,2,3) maps from the clip's px to the crops of those.

    Returns:
        (B,3,S,S) of the picture's type, within its range.
    """
    size, triangles = (image.shape[-2], image.shape[-1]), face_triangles(model)
    was, was_depth, _ = project(model, before, before_matrices)
    xy, depth, _ = project(model, now, matrices)
    seen = visible(was, was_depth, rasterise(was, was_depth, triangles, size).depth)
    # The flow goes on beyond the face's edge, since hair, ears and neck move with the head. Further out it moves the
    # background along, which in truth stands still; but that is in the crop, where the mask hides none of it.
    return warp(image, surface_flow(rasterise(xy, depth, triangles, size), triangles, was - xy, seen))


def surface_flow(
    fragments: Fragments, triangles: Tensor, displacement: Tensor, seen: Tensor, within: Tensor | None = None
) -> Tensor:
    """The displacement (B,2,S,S) of a drawn surface, carried on to where there is none or it was not seen.

    Args:
        fragments: the surface where it is.
        triangles: (F,3) of the drawing.
        displacement: (B,V,2) px from there to where the vertices are looked up.
        seen: (B,V), 1 for vertices that are seen there.
        within: (B,1,S,S), 0 where the surface is not to count.
    """
    spread = interpolate(fragments, torch.cat([displacement, seen[..., None]], dim=2), triangles)
    known = (spread[:, 2:] > 0.5).to(spread)
    return filled(spread[:, :2], known if within is None else known * within)


def visible(xy: Tensor, depth: Tensor, nearest: Tensor) -> Tensor:
    """(B,V): 1 for vertices at (B,V,2) px and depths (B,V) dm in a picture that lie at its nearest surface (B,S,S) or
    outside of every triangle."""
    size = nearest.shape[-1]
    far = F.max_pool2d(torch.where(nearest.isfinite(), nearest, 1e6)[:, None], 3, 1, 1).flatten(1)
    place = xy.floor().long()
    inside = ((place >= 0) & (place < size)).all(dim=2)
    index = place.clamp(0, size - 1)
    hit = far.gather(1, index[..., 1] * size + index[..., 0])
    return (inside & (depth <= hit + _BEHIND)).to(xy)


def filled(values: Tensor, known: Tensor) -> Tensor:
    """Values (B,C,S,S) carried on smoothly to where `known` (B,1,S,S) is 0, by ever coarser means; 0 if all is."""
    levels = [(values * known, known)]
    while levels[-1][1].shape[-1] > 1:
        total, weight = (F.avg_pool2d(part, 2, ceil_mode=True) for part in levels[-1])
        levels.append((total, weight))
    total, weight = levels.pop()
    found = total / weight.clamp_min(1e-6)
    for total, weight in reversed(levels):
        coarse = F.interpolate(found, size=total.shape[-2:], mode="bilinear", align_corners=False)
        here = total / weight.clamp_min(1e-6)
        found = torch.lerp(coarse, here, weight.clamp(0, 1))
    return found
