"""A renderer without training: the face model before and after the new expression moves the picture itself.

The displacement of the model's surface, drawn where the new face is, says for each pixel of the lower face where the
old frame shows the same piece of skin. It is carried on smoothly beyond the jaw and fades out at the crop mask, so that
neither skin nor background tears. What opens between the lips is taken from the widest open mouth among the references,
anchored at both lips, or where there is none from the model's own teeth and cavity, in the clip's colours.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from common.face3d.lighting import shade, vertex_normals
from common.face3d.morphable import FaceModel
from common.face3d.raster import Fragments, interpolate, rasterise
from dubbing3d.crop_mask import MaskKind, feathered, wide_open
from dubbing3d.guide import FaceFrames, face_triangles, project
from dubbing3d.motion import surface_flow, visible
from dubbing3d.networks.warp import warp
from dubbing3d.render_parts import RenderParts

INSIDE = ("mouth_cavity", "teeth", "upper_teeth", "lower_teeth", "mouth_socket", "gums_tongue")
"""Regions that lie between open lips."""
_CHIN = (7, 8, 9)
_PULLING = (*range(31, 36), *range(48, 68), *_CHIN)
"""Landmarks by which the model is brought onto the picture: nose base, lips and chin."""
_REACH, _FAINT = 0.12, 0.05
"""Standard deviation in dm of a landmark's pull, and what it has to overcome, which ends it far away."""
_UPPER_EDGE, _LOWER_EDGE = (61, 62, 63), (65, 66, 67)
_EDGE_REACH = 0.05
_INSET = 0.012
"""dm by which lips are sampled away from the line of the lips, and the inside of a mouth away from the lips: by so much
landmarks are wrong."""
_PARTED = 0.25
"""dm by which the lips are apart while distances along the face are measured, so that they do not pull each other."""
_FARTHEST = 0.06
"""Longest way, as a share of the face, that the model is moved to meet the landmarks."""
_FADE = 0.03
"""Half the way, as a share of the crop, over which the flow fades out inside the mask."""
_OPEN = 0.05
"""dm between the lips from which on a mouth shows its inside."""
_GAINS = (0.4, 2.5)
_DARK = 0.12
"""Brightness, as a share of the skin's, of a mouth of which the model knows no inside."""


class Surface(NamedTuple):
    """The model in B crops: places (B,V,2) px, depths (B,V) dm, posed vertices (B,V,3) dm, px per dm (B,)."""

    xy: Tensor
    depth: Tensor
    posed: Tensor
    scale: Tensor


@dataclass(frozen=True, eq=False)
class _Open:
    """A reference with an open mouth; every tensor has a batch of 1."""

    crop: Tensor
    surface: Surface
    skin: Tensor
    """(1,3) mean colour of the lower face."""


class WarpRenderer:
    """See above; behind the same protocol as the trained renderer (`dubbing3d.infer`).

    Args:
        model: the face model of the coefficients that come, on its device.
    """

    name = "warp"
    mask: MaskKind = "model"

    def __init__(self, model: FaceModel) -> None:
        self.model, self.device = model, model.mean_shape.device
        self.batch = 4 if self.device.type == "cpu" else 16
        self._triangles = face_triangles(model)
        inside = torch.zeros(len(model.mean_shape), dtype=torch.bool, device=self.device)
        for name in INSIDE:
            if name in model.regions:
                inside |= model.regions[name]
        self._inside = inside[self._triangles].all(dim=1)
        self._pull = _kernel(model, _PULLING, _REACH, _FAINT).to(self.device)
        self._edge = _kernel(model, (*_UPPER_EDGE, *_LOWER_EDGE), _EDGE_REACH, 0.2).to(self.device)
        self._open: _Open | None = None
        self._gain = torch.ones(1, 3, device=self.device)

    def crop_size(self, side: float) -> int:
        """Side in px of crops of a part of the frame that is so many px wide: as they are, within reason."""
        return max(96, min(640, 32 * round(1.1 * side / 32)))

    @torch.no_grad()
    def begin(self, crops: Tensor, faces: FaceFrames, matrices: Tensor, masks: Tensor, landmarks: Tensor) -> None:
        """Learn from references of the clip: the inside of the mouth and the colours.

        Args:
            crops: (N,3,S,S) in [-1,1].
            faces: their coefficients.
            matrices: (N,2,3) maps from the clip's px to the crops.
            masks: (N,1,S,S) crop masks.
            landmarks: (N,68,2) in px of the crops.
        """
        surface = self._surface(faces, matrices, landmarks)
        gap = (landmarks[:, 66] - landmarks[:, 62]).norm(dim=1).to(surface.scale) / surface.scale
        fragments = self._draw(surface, crops.shape[-1])
        skin = self._skin(fragments) * masks
        drawn = interpolate(fragments, self._colours(faces, surface), self._triangles)
        ratio = _mean((crops + 1) / 2, skin) / _mean(drawn, skin).clamp_min(1e-3)
        self._gain = ratio.median(dim=0, keepdim=True).values.clamp(*_GAINS)
        best = int(torch.where(torch.isfinite(gap), gap, -1.0).argmax())
        self._open = None
        if float(gap[best]) > _OPEN:
            one = slice(best, best + 1)
            chosen = Surface(*(part[one] for part in surface))
            inner = chosen._replace(xy=self._shrunk(chosen, -1.0))
            self._open = _Open(crops[one], inner, _mean((crops[one] + 1) / 2, skin[one]))

    @torch.no_grad()
    def render(
        self, crops: Tensor, old: FaceFrames, expression: Tensor, matrices: Tensor, masks: Tensor, landmarks: Tensor
    ) -> RenderParts:
        """Faces with another expression.

        Args:
            crops: (B,3,S,S) in [-1,1].
            old: coefficients of the frames as they are.
            expression: (B,Ke) that is wanted.
            matrices: (B,2,3) maps from the clip's px to the crops.
            masks: (B,1,S,S) crop masks; nothing outside of them changes.
            landmarks: (B,68,2) in px of the crops; NaN where they are not known.
        """
        size = crops.shape[-1]
        before = self._surface(old, matrices, landmarks)
        shift = before.xy - project(self.model, old, matrices)[0]
        xy, depth, posed = project(self.model, old.with_expression(expression), matrices)
        after = Surface(xy + shift, depth, posed, before.scale)
        fragments = self._draw(after, size)
        was = self._draw(before, size)
        skin = self._skin(fragments)
        change = self._change(before, after)
        displacement = torch.lerp(before.xy, self._shrunk(before, 1.0), change[:, None, None]) - after.xy
        seen = visible(before.xy, before.depth, was.depth)
        flow = surface_flow(fragments, self._triangles, displacement, seen, skin)
        flow = flow * feathered(masks, max(1, round(_FADE * size)))
        moved = warp(crops, flow).clamp(-1, 1)
        gap = self._gap(after, fragments, skin)
        colours = self._inner(after, fragments, old.with_expression(expression), crops, was, masks)
        share = _soft(gap) * (masks > 0.5).to(masks) * change[:, None, None, None]
        image = torch.lerp(moved, colours, share)
        taken = torch.where(share > 0, colours, -1.0)
        return RenderParts(image=image, flow=flow, warp=moved, colour=taken, attention=share)

    def _surface(self, faces: FaceFrames, matrices: Tensor, landmarks: Tensor) -> Surface:
        """The model, pulled onto the landmarks of nose base, lips and chin."""
        xy, depth, posed = project(self.model, faces, matrices)
        ours = self.model.landmarks(xy)
        scale = _spread(ours) / _spread(self.model.landmarks(posed)[..., :2])
        away = landmarks.to(xy)[:, list(_PULLING)] - ours[:, list(_PULLING)]
        away[:, -len(_CHIN) :, 0] = 0  # along the chin's line landmarks slide
        limit = _FARTHEST * float((ours.amax(1) - ours.amin(1)).amax())
        away = torch.nan_to_num(away)
        away = away * (limit / away.norm(dim=2, keepdim=True).clamp_min(1e-6)).clamp(max=1)
        return Surface(xy + torch.einsum("vk,bkc->bvc", self._pull, away), depth, posed, scale)

    def _shrunk(self, surface: Surface, sign: float) -> Tensor:
        """Places (B,V,2) with the lips' edges moved apart (1) or towards each other (-1)."""
        marks = self.model.landmarks(surface.xy)
        up = marks[:, 27] - marks[:, 8]
        up = up / up.norm(dim=1, keepdim=True).clamp_min(1e-6) * (_INSET * surface.scale)[:, None]
        apart = self._edge[:, : len(_UPPER_EDGE)].sum(1) - self._edge[:, len(_UPPER_EDGE) :].sum(1)
        return surface.xy + sign * apart[None, :, None] * up[:, None]

    def _change(self, before: Surface, after: Surface) -> Tensor:
        """(B,) in [0,1]: 0 where the lips stay as they are, so that the picture does, 1 from a visible movement on."""
        moved = self.model.landmarks(after.xy - before.xy)[:, 48:].norm(dim=2).amax(1)
        return (moved / (2 * _INSET * before.scale)).clamp(0, 1)

    def _draw(self, surface: Surface, size: int) -> Fragments:
        return rasterise(surface.xy, surface.depth, self._triangles, (size, size))

    def _skin(self, fragments: Fragments) -> Tensor:
        """(B,1,S,S): 1 where the nearest surface is outside of the mouth."""
        outside = fragments.mask & ~self._inside[fragments.face_id.clamp_min(0)]
        return outside[:, None].to(self.model.mean_shape.dtype)

    def _gap(self, surface: Surface, fragments: Fragments, skin: Tensor) -> Tensor:
        """(B,1,S,S): 1 where the inside of the mouth shows, also that of a model which has none."""
        inner = (fragments.mask & self._inside[fragments.face_id.clamp_min(0)])[:, None].to(skin)
        if bool(self._inside.any()):
            return inner
        lips = self.model.landmarks(surface.xy)[:, 60:68]
        return torch.maximum(inner, _within(lips, skin.shape[-1]) * (1 - skin))

    def _colours(self, faces: FaceFrames, surface: Surface) -> Tensor:
        """(B,V,3) in [0,1]."""
        albedo = self.model.albedo(faces.albedo.to(surface.posed)).expand(len(faces), -1, -1)
        normals = vertex_normals(surface.posed, self.model.triangles)
        return shade(albedo, normals, faces.gamma.to(surface.posed)).clamp(0, 1)

    def _inner(
        self, after: Surface, fragments: Fragments, faces: FaceFrames, crops: Tensor, was: Fragments, masks: Tensor
    ) -> Tensor:
        """(B,3,S,S) in [-1,1]: the inside of the mouth, of sense where the lips are open."""
        skin = self._skin(was) * masks
        tone = _mean((crops + 1) / 2, skin)
        drawn = interpolate(fragments, self._colours(faces, after), self._triangles) * self._gain[..., None, None]
        own = torch.where(fragments.mask[:, None], drawn, _DARK * tone[..., None, None]).clamp(0, 1) * 2 - 1
        if self._open is None:
            return own
        there = self._open
        lips, known = (self.model.landmarks(xy)[:, 60:68] for xy in (after.xy, there.surface.xy))
        known = known.expand(len(crops), -1, -1)
        flow, wide = _between(lips, known, there.surface.scale / after.scale, crops.shape[-1])
        texture = warp(there.crop.expand(len(crops), -1, -1, -1), flow)
        gain = (tone / there.skin.clamp_min(1e-3)).clamp(0.7, 1.4)[..., None, None]
        texture = ((texture + 1) / 2 * gain).clamp(0, 1) * 2 - 1
        return torch.lerp(own, texture, wide[:, None, None, None])


def _between(lips: Tensor, known: Tensor, zoom: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """From the opening between some lips to that between others.

    Along the mouth places correspond by their share of its width. Across it what lies at the upper lip stays at the
    upper lip, in its own size, and what lies at the lower lip there: teeth are not squeezed where the mouth is less
    open, the middle is left out. Where it is more open, the whole is stretched.

    Args:
        lips, known: (B,8,2) px, landmarks 60..67 of the mouth that is drawn and of the one that is looked into.
        zoom: (B,) px of the latter's picture per px of the former's.
        size: side of the crops.

    Returns:
        The flow (B,2,size,size), and by how much (B,) in [0,1] the known opening is wide enough.
    """
    origin, right, down, width = _mouth_axes(lips)
    from_origin, from_right, from_down, from_width = _mouth_axes(known)
    centres = torch.arange(size, device=lips.device, dtype=lips.dtype) + 0.5
    grid = torch.stack(torch.meshgrid(centres, centres, indexing="xy"), dim=-1).flatten(0, 1)
    away = grid[None] - origin[:, None]
    share = ((away @ right[..., None])[..., 0] / width[:, None]).clamp(-0.2, 1.2)
    upper, lower = _lip_lines(lips, origin, right, down, width, share)
    from_upper, from_lower = _lip_lines(known, from_origin, from_right, from_down, from_width, share)
    place = (away @ down[..., None])[..., 0] - upper
    least = 0.01 * width[:, None]
    height = (lower - upper).clamp_min(least)
    there = ((from_lower - from_upper) / zoom[:, None]).clamp_min(least)
    inner = (place / height).clamp(0, 1)
    step = ((inner - 0.3) / 0.4).clamp(0, 1)
    cut = place + (there - height) * step * step * (3 - 2 * step)
    across = torch.where(there >= height, cut, place * there / height) * zoom[:, None] + from_upper
    target = from_origin[:, None] + (share * from_width[:, None])[..., None] * from_right[:, None]
    flow = target + across[..., None] * from_down[:, None] - grid
    wide = ((there.amax(1) / height.amax(1) - 0.3) / 0.3).clamp(0, 1)
    return flow.transpose(1, 2).unflatten(2, (size, size)), wide


def _mouth_axes(lips: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Left corner (B,2), unit vectors (B,2) along and down across the mouth, width (B,) of lips (B,8,2)."""
    along = lips[:, 4] - lips[:, 0]
    width = along.norm(dim=1).clamp_min(1e-3)
    right = along / width[:, None]
    return lips[:, 0], right, torch.stack([-right[:, 1], right[:, 0]], dim=1), width


def _lip_lines(
    lips: Tensor, origin: Tensor, right: Tensor, down: Tensor, width: Tensor, share: Tensor
) -> tuple[Tensor, Tensor]:
    """How far down (B,P) in px the upper and the lower lip's edges lie at shares (B,P) of the mouth's width."""
    away = lips - origin[:, None]
    x = (away @ right[..., None])[..., 0] / width[:, None]
    y = (away @ down[..., None])[..., 0]
    lines = []
    for marks in ([0, 1, 2, 3, 4], [0, 7, 6, 5, 4]):
        knots, heights = x[:, marks], y[:, marks]
        line = heights[:, :1].expand_as(share)
        for first in range(4):
            run = (knots[:, first + 1] - knots[:, first]).clamp_min(1e-3)[:, None]
            part = ((share - knots[:, first : first + 1]) / run).clamp(0, 1)
            line = line + part * (heights[:, first + 1] - heights[:, first])[:, None]
        lines.append(line)
    return lines[0], torch.maximum(*lines)


def _kernel(model: FaceModel, marks: tuple[int, ...], reach: float, faint: float) -> Tensor:
    """(V,K) shares by which landmarks pull the vertices, on the mean face with parted lips."""
    rest = _parted(model)
    centres = rest[model.landmark_vertices[list(marks)].cpu()]
    weight = torch.exp(-0.5 * (torch.cdist(rest, centres) / reach) ** 2)
    return weight / (weight.sum(1, keepdim=True) + faint)


@lru_cache(maxsize=4)
def _parted(model: FaceModel) -> Tensor:
    """(V,3) the mean face with open lips, on the CPU."""
    return model.mean_shape.cpu() + torch.tensordot(wide_open(model, _PARTED), model.expression_basis.cpu(), 1)


def _spread(points: Tensor) -> Tensor:
    """(B,) root mean square distance of points (B,N,2) from their middle."""
    return (points - points.mean(1, keepdim=True)).square().sum(2).mean(1).sqrt().clamp_min(1e-6)


def _soft(mask: Tensor) -> Tensor:
    """A mask (B,1,S,S) with soft edges, by a binomial filter of 5 x 5 pixels."""
    row = mask.new_tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
    padded = F.pad(mask, (2, 2, 2, 2), mode="replicate")
    return F.conv2d(F.conv2d(padded, row.view(1, 1, 1, 5)), row.view(1, 1, 5, 1))


def _mean(images: Tensor, shares: Tensor) -> Tensor:
    """(B,3) mean colours under shares (B,1,S,S)."""
    return (images * shares).sum(dim=(2, 3)) / shares.sum(dim=(2, 3)).clamp_min(1e-3)


def _within(polygon: Tensor, size: int) -> Tensor:
    """(B,1,S,S): 1 inside the convex hull's part that polygons (B,N,2), clockwise on the screen, bound."""
    centres = torch.arange(size, device=polygon.device, dtype=polygon.dtype) + 0.5
    grid = torch.stack(torch.meshgrid(centres, centres, indexing="xy"), dim=-1).flatten(0, 1)
    side = polygon.roll(-1, 1) - polygon
    away = grid[None, None] - polygon[:, :, None]
    cross = side[:, :, None, 0] * away[..., 1] - side[:, :, None, 1] * away[..., 0]
    return (cross > 0).all(dim=1).view(-1, 1, size, size).to(polygon)
