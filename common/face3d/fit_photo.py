"""The photometric part of a fit: colours of visible vertices against the picture, and the light and albedo behind them.

The face is compared at a sample of its vertices, not at pixels: a vertex is seen where one of its triangles wins a
pixel of the rasteriser, and its colour is albedo times spherical-harmonics light (`lighting.shade`). The term's
derivatives are the picture's own gradients, as in Lucas and Kanade (1981); light and albedo are linear least squares.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from scipy.spatial import Delaunay
from torch import Tensor
from torch.nn import functional as F

from common.face3d.camera import REFERENCE_SIZE, Camera, pose, rotation
from common.face3d.fit_terms import JAW, POSE, Basis, Equations, State, linearise, rotation_derivatives, turned_modes
from common.face3d.lighting import AMBIENT, BANDS, harmonics, shade, vertex_normals
from common.face3d.morphable import FaceModel
from common.face3d.raster import interpolate, rasterise

_BLOCK = 8
"""Frames whose whole meshes are held at once."""
_EYES = 1.5
"""Factor on the eyes' openings inside which no vertex is taken: gaze, lashes and glints are not of the model."""
_LEAST_FACING = 0.25
"""Cosine to the camera below which a vertex is left out: there the background bleeds in."""
_EVEN = 0.01
"""Weight of evenly lit directions all around, as a share of that of the vertices that show."""
STENCIL = torch.tensor([[0.5, 0.0], [-0.5, 0.0], [0.0, 0.5], [0.0, -0.5]])
"""Where around a point the picture is read: right, left, below, above, in px."""


class Appearance(NamedTuple):
    """Sampled vertices (N,) of a model: their geometry, their normals' derivatives, and their colours.

    `normals` holds rows as a `Basis` does, linearised at the mean face; colours are mean (N,3) and modes (Ka,N,3).
    """

    vertices: Tensor
    basis: Basis
    normals: Basis
    mean: Tensor
    modes: Tensor

    @classmethod
    def of(cls, model: FaceModel, count: int) -> "Appearance":
        """At most `count` vertices of the model's face, always the same ones."""
        candidates = torch.nonzero(_facing(model) & _inside(model)).squeeze(1)
        order = torch.randperm(len(candidates), generator=torch.Generator().manual_seed(0))
        vertices = candidates[order[:count].sort().values.to(candidates.device)]
        return cls(
            vertices,
            Basis.of(model, vertices),
            _normal_rows(model, vertices),
            model.mean_albedo[vertices],
            model.albedo_basis[:, vertices],
        )

    def albedo(self, coefficients: Tensor) -> Tensor:
        """Colours (N,3) in [0,1] of coefficients (Ka,)."""
        return (self.mean + torch.tensordot(coefficients, self.modes, 1)).clamp(0, 1)


def _inside(model: FaceModel) -> Tensor:
    """Which vertices (V,) of the mean face lie inside the 68 landmarks' hull, brows lifted, and outside both eyes."""
    frontal = model.mean_shape[:, :2].cpu().double().numpy()
    marks = frontal[model.landmark_vertices.cpu().numpy()]
    brows = marks[JAW:27].copy()
    brows[:, 1] += 0.25 * (brows[:, 1].mean() - marks[30, 1])
    hull = Delaunay(np.concatenate([marks[:JAW], brows]))
    mask = hull.find_simplex(frontal) >= 0
    for first in (36, 42):
        eye = marks[first : first + 6]
        mask &= Delaunay(eye.mean(0) + _EYES * (eye - eye.mean(0))).find_simplex(frontal) < 0
    return torch.from_numpy(mask).to(model.mean_shape.device)


@torch.no_grad()
def _facing(model: FaceModel) -> Tensor:
    """Which vertices (V,) of the mean face show from the front."""
    xy, depth = Camera(2 * REFERENCE_SIZE).project(model.mean_shape[None])
    return _shown(_faces(model, xy, depth, 2 * REFERENCE_SIZE), model)[0]


def _faces(model: FaceModel, xy: Tensor, depth: Tensor, size: int) -> Tensor:
    """Triangle (B,size*size) behind every pixel, -1 where there is none."""
    return rasterise(xy, depth, model.triangles, (size, size)).face_id.flatten(1)


def _shown(faces: Tensor, model: FaceModel) -> Tensor:
    """Vertices (B,V) of which a triangle shows, from triangles per pixel (B,P)."""
    seen = torch.zeros(len(faces), len(model.triangles) + 1, device=faces.device)
    seen.scatter_(1, faces + 1, 1.0)
    shown = torch.zeros(len(faces), len(model.mean_shape), device=faces.device)
    for corner in range(3):
        shown.index_add_(1, model.triangles[:, corner], seen[:, 1:])
    return shown > 0


def _normal_rows(model: FaceModel, vertices: Tensor) -> Basis:
    """Normals (N,3) of the mean face and their change by each mode, by differences over small steps."""
    step = 0.05

    def change(modes: Tensor) -> Tensor:
        found = []
        for start in range(0, len(modes), _BLOCK):
            moved = step * modes[start : start + _BLOCK]
            ahead, behind = (vertex_normals(model.mean_shape + s * moved, model.triangles) for s in (1, -1))
            found.append((ahead - behind)[:, vertices] / (2 * step))
        return torch.cat(found)

    mean = vertex_normals(model.mean_shape[None], model.triangles)[0, vertices]
    return Basis(mean, change(model.identity_basis), change(model.expression_basis))


class View(NamedTuple):
    """How the sampled vertices stand in T frames: unit normals (T,N,3) in the camera's frame, the same turned back
    into the head's (T,N,3); xy (T,N,2) px; visible (T,N), 0 or 1."""

    normals: Tensor
    local: Tensor
    xy: Tensor
    visible: Tensor


@torch.no_grad()
def look(model: FaceModel, appearance: Appearance, camera: Camera, state: State) -> View:
    """Pose the whole mesh in every frame of a state and see which sampled vertices show."""
    views = []
    for start in range(0, len(state.pose), _BLOCK):
        identity, placement, expression = state.at(slice(start, start + _BLOCK), model.mean_shape.dtype)
        shape = model.shape(identity.expand(len(expression), -1), expression)
        placed = pose(shape, placement[:, :3], placement[:, 3:])
        xy, depth = camera.project(placed)
        shown = _shown(_faces(model, xy, depth, camera.size), model)
        normals = vertex_normals(placed, model.triangles)[:, appearance.vertices]
        sight = F.normalize(placed.new_tensor([0.0, 0.0, camera.distance]) - placed[:, appearance.vertices], dim=2)
        visible = shown[:, appearance.vertices] & ((normals * sight).sum(2) > _LEAST_FACING)
        local = normals @ rotation(placement[:, :3]).transpose(1, 2)
        views.append(View(normals, local, xy[:, appearance.vertices], visible.to(normals)))
    return View(*(torch.cat(parts) for parts in zip(*views, strict=True)))


def sample(images: Tensor, xy: Tensor) -> Tensor:
    """Colours (B,N,C) of images (B,C,H,W) at pixels xy (B,N,2), bilinear, the edge repeated outside."""
    size = xy.new_tensor([images.shape[3], images.shape[2]])
    grid = (2 * xy / size - 1)[:, None]
    found = F.grid_sample(images, grid.to(images), mode="bilinear", padding_mode="border", align_corners=False)
    return found[:, :, 0].transpose(1, 2)


def blurred(images: Tensor) -> Tensor:
    """Images (B,3,H,W) under the kernel 1 2 1 in both directions, so that their gradients reach two pixels."""
    kernel = images.new_tensor([0.25, 0.5, 0.25])
    square = (kernel[:, None] * kernel).expand(images.shape[1], 1, 3, 3)
    return F.conv2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), square, groups=images.shape[1])


@torch.no_grad()
def softening(
    model: FaceModel,
    appearance: Appearance,
    camera: Camera,
    state: State,
    images: Tensor,
    albedo: Tensor,
    gamma: Tensor,
) -> Tensor:
    """What sampling and blur make of the vertices' colours: (T,N,3), to be added to them.

    A vertex has the colour of a point, a pixel that of its surroundings. Rendering the state and reading it as the
    picture is read makes both alike; without it brows, lashes and lips would pull the face about. Where the render
    is empty stands the picture (T,3,H,W). albedo (Ka,), gamma (T,27).
    """
    found = []
    for start in range(0, len(state.pose), _BLOCK):
        frames = slice(start, start + _BLOCK)
        identity, placement, expression = state.at(frames, model.mean_shape.dtype)
        shape = model.shape(identity.expand(len(expression), -1), expression)
        placed = pose(shape, placement[:, :3], placement[:, 3:])
        colours = shade(model.albedo(albedo[None]), vertex_normals(placed, model.triangles), gamma[frames]).clamp(0, 1)
        xy, depth = camera.project(placed)
        fragments = rasterise(xy, depth, model.triangles, (camera.size, camera.size))
        drawn = interpolate(fragments, colours, model.triangles)
        drawn = blurred(torch.where(fragments.mask[:, None], drawn, images[frames]))
        points = xy[:, appearance.vertices]
        read = sum(sample(drawn, points + shift) for shift in STENCIL.to(points)) / len(STENCIL)
        found.append(read - colours[:, appearance.vertices])
    return torch.cat(found)


def _rows(gamma: Tensor) -> Tensor:
    """gamma (T,27) as (T,3,9), the ambient light included."""
    rows = gamma.view(-1, 3, BANDS).clone()
    rows[:, :, 0] += AMBIENT
    return rows


def shading(normals: Tensor, gamma: Tensor) -> Tensor:
    """Light (T,N,3) at normals (T,N,3) from gamma (T,27)."""
    return harmonics(normals) @ _rows(gamma).transpose(1, 2)


def robust_weight(residual: Tensor, scale: float) -> Tensor:
    """Geman and McClure's weights (T,N) of colour deviations (T,N,3)."""
    return (scale**2 / (scale**2 + (residual**2).sum(2))) ** 2


def solve_light(colours: Tensor, albedo: Tensor, view: View, weight: Tensor, mean: Tensor, precision: float) -> Tensor:
    """Light gamma (T,27) by least squares: colours (T,N,3), albedo (N,3), weight (T,N) in 1 / variance; the prior is
    `mean` (27,) with `precision`.

    A face shows half of all directions at most, and over those the bands are nearly dependent: they fit a little better
    there at the price of black or dazzling light elsewhere. So the whole sphere is taken to be lit evenly, with the
    weight of a few of the vertices that show.
    """
    design = harmonics(view.normals)[:, :, None] * albedo[..., None]  # (T,N,3,9)
    offset = design.new_zeros(BANDS)
    offset[0] = AMBIENT
    target = colours - design @ offset
    weighted = design * weight[..., None, None]
    matrix = torch.einsum("tnci,tncj->tcij", weighted, design)
    even = _EVEN * (weight[..., None] * albedo**2).sum(1)  # (T,3)
    matrix += torch.diag_embed(even[..., None] * _power(design))
    matrix += precision * torch.eye(BANDS, dtype=matrix.dtype, device=matrix.device)
    slope = torch.einsum("tnci,tnc->tci", weighted, target) + precision * mean.view(3, BANDS)
    return torch.linalg.solve(matrix, slope).flatten(1)


def _power(like: Tensor) -> Tensor:
    """Mean squares (9,) of the bands over the sphere, where they are orthogonal, and 0 for the even light's own; in
    type and place as `like`."""
    axis = harmonics(like.new_tensor([1.0, 0.0, 0.0]))
    linear, quadratic = float(axis[3]) ** 2 / 3, 4 * float(axis[8]) ** 2 / 15  # of x and of (x x - y y) / 2
    return like.new_tensor([0.0] + 3 * [linear] + 5 * [quadratic])


def solve_albedo(colours: Tensor, appearance: Appearance, light: Tensor, weight: Tensor) -> Tensor:
    """Albedo coefficients (Ka,) by least squares over all frames, with the prior N(0, 1)."""
    strength = (weight[..., None] * light**2).sum(0)
    pull = (weight[..., None] * light * (colours - light * appearance.mean)).sum(0)
    modes = appearance.modes.flatten(1)
    matrix = (modes * strength.flatten()) @ modes.T + torch.eye(len(modes), dtype=modes.dtype, device=modes.device)
    return torch.linalg.solve(matrix, modes @ pull.flatten())


@dataclass(frozen=True)
class PhotometricTerm:
    """Colours of sampled vertices against pictures, under Geman and McClure's loss.

    The picture is read where a vertex lies, and the vertex is lit as its normal points: both move with the face.

    `images` (T,3,H,W) in [0,1], blurred; `albedo` (N,3); `gamma` (T,27); `base` (T,N,3) completes the linearised
    normals to those of the view; `softening` (T,N,3), see there; `weight` (T,N), in 1 / colour variance, 0 where a
    vertex is hidden; `scale` is the colour deviation at which a vertex loses its pull.
    """

    basis: Basis
    normals: Basis
    images: Tensor
    albedo: Tensor
    gamma: Tensor
    base: Tensor
    softening: Tensor
    weight: Tensor
    scale: float

    def equations(self, camera: Camera, state: State, frames: slice, *, free_identity: bool) -> Equations:
        """See `fit_terms.Term.equations`."""
        here = state.at(frames, self.images.dtype)
        xy, jacobian = linearise(self.basis, camera, here, free_identity=free_identity)
        found, slope = self._read(xy, frames)
        lit, lit_slope = self._light(here, frames, free_identity)
        rows = (slope @ jacobian - lit_slope).flatten(1, 2)
        residual = found - lit - self.softening[frames]
        squared = (residual**2).sum(2)
        share = self.scale**2 / (self.scale**2 + squared)
        weight = (self.weight[frames] * share**2).repeat_interleave(3, dim=1)[..., None]
        cost = (0.5 * self.weight[frames] * squared * share).sum(1)
        pull = weight[..., 0] * residual.flatten(1)
        return Equations.of(cost, rows, rows * weight, pull, POSE + len(self.basis.expression))

    def _read(self, xy: Tensor, frames: slice) -> tuple[Tensor, Tensor]:
        """The picture's colours (B,N,3) at xy (B,N,2) and their slopes (B,N,3,2), by differences over one pixel."""
        right, left, below, above = (sample(self.images[frames], xy + shift) for shift in STENCIL.to(xy))
        return (right + left + below + above) / 4, torch.stack([right - left, below - above], dim=3)

    def _light(self, state: State, frames: slice, free_identity: bool) -> tuple[Tensor, Tensor]:
        """The vertices' colours (B,N,3) and their derivatives (B,N,3,P+S) through the normals."""
        turn, turn_by_angle = rotation_derivatives(state.pose[:, :3])
        length = self.normals.points(state.identity, state.expression) - self.normals.mean + self.base[frames]
        normals = F.normalize(length @ turn, dim=2)
        moved = turned_modes(length, self.normals, turn, turn_by_angle, free_identity=free_identity)
        rows = _rows(self.gamma[frames])
        lit = self.albedo * (harmonics(normals) @ rows.transpose(1, 2))
        axes = torch.eye(3, dtype=normals.dtype, device=normals.device)
        # harmonics are quadratic, so that central differences are exact
        bent = torch.stack([(harmonics(normals + e) - harmonics(normals - e)) / 2 for e in axes], dim=3)  # (B,N,9,3)
        by_normal = self.albedo[..., None] * (rows[:, None] @ bent)
        return lit, by_normal @ moved
