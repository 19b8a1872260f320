"""The picture of the face model that tells the renderer how the mouth shall look: I_3D of paper 4.

Every guide is drawn at its final place and size in the crop: the fit's frame is never resampled.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from common.errors import UserError
from common.face3d.camera import Camera, pose
from common.face3d.fit_start import compose_affine, invert_affine, transform
from common.face3d.lighting import shade, vertex_normals
from common.face3d.morphable import FaceModel
from common.face3d.raster import interpolate, rasterise

NO_FACE = ("hair", "long_hair", "ears", "head_neck")
"""Regions that a guide leaves out, so that it shows the same part of a head whatever the face model."""
_UNDER_CHIN = 0.25
"""How far, in dm, the underside of the jaw reaches behind the plane of ear lobes and chin; the neck lies behind it."""


class ClipFace(Protocol):
    """Coefficients of a clip of T frames: `common.face3d.fit.Fit`, or what a corpus stores of a clip."""

    @property
    def size(self) -> int:
        """Side in px of the frame in which the coefficients live."""
        ...

    @property
    def identity(self) -> Tensor:
        """(Ki,)."""
        ...

    @property
    def albedo(self) -> Tensor:
        """(Ka,)."""
        ...

    @property
    def expression(self) -> Tensor:
        """(T,Ke)."""
        ...

    @property
    def angles(self) -> Tensor:
        """(T,3) rad."""
        ...

    @property
    def translation(self) -> Tensor:
        """(T,3) dm."""
        ...

    @property
    def gamma(self) -> Tensor:
        """(T,27)."""
        ...

    @property
    def matrix(self) -> Tensor:
        """(T,2,3) or (2,3) maps from the clip's px to the coefficients' frame."""
        ...


@dataclass(frozen=True, eq=False)
class FaceFrames:
    """Coefficients of B frames, of one clip or of several."""

    identity: Tensor
    """(B,Ki) or (1,Ki)."""
    albedo: Tensor
    """(B,Ka) or (1,Ka)."""
    expression: Tensor
    """(B,Ke)."""
    angles: Tensor
    """(B,3) rad."""
    translation: Tensor
    """(B,3) dm."""
    gamma: Tensor
    """(B,27)."""
    matrix: Tensor
    """(B,2,3) maps from the clip's px to the frame of `size` px in which the coefficients live."""
    size: int
    """Side of that frame in px."""

    def __len__(self) -> int:
        return len(self.expression)

    @classmethod
    def of(cls, face: ClipFace, frames: Tensor) -> "FaceFrames":
        """Frames (B,) int64 of a clip."""
        matrix = torch.as_tensor(face.matrix)
        return cls(
            identity=face.identity[None],
            albedo=face.albedo[None],
            expression=face.expression[frames],
            angles=face.angles[frames],
            translation=face.translation[frames],
            gamma=face.gamma[frames],
            matrix=matrix.expand(len(frames), 2, 3) if matrix.dim() == 2 else matrix[frames],
            size=face.size,
        )

    def at(self, rows: slice) -> "FaceFrames":
        """Some of the frames; what all of them share stays."""
        framewise: dict[str, Any] = {
            name: value[rows]
            for name, value in vars(self).items()
            if isinstance(value, Tensor) and len(value) == len(self)
        }
        return replace(self, **framewise)

    def with_expression(self, expression: Tensor) -> "FaceFrames":
        """The same faces with another expression (B,Ke)."""
        return replace(self, expression=expression)


def project(model: FaceModel, face: FaceFrames, matrices: Tensor, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Where the model's vertices lie in crops.

    Args:
        model: the model of the coefficients; the work is done in its type on its device.
        face: B frames.
        matrices: (B,2,3) or (2,3) maps from the clip's px to the crop.
        scale: multiplies the crop's pixels.

    Returns:
        xy (B,V,2) in px of the crop, depth (B,V) in dm, and the posed vertices (B,V,3) in dm.
    """
    like = model.mean_shape
    identity = face.identity.to(like).expand(len(face), -1)
    shape = model.shape(identity, face.expression.to(like))
    posed = pose(shape, face.angles.to(like), face.translation.to(like))
    xy, depth = Camera(face.size).project(posed)
    outer = matrices.detach().to("cpu", torch.float64).expand(len(face), 2, 3)
    into = compose_affine(outer, invert_affine(face.matrix.detach().to("cpu", torch.float64)))
    return transform(xy, (into * scale).to(like)), depth, posed


@torch.no_grad()
def draw_guide(
    model: FaceModel, face: FaceFrames, matrices: Tensor, size: int, *, supersample: int = 2
) -> tuple[Tensor, Tensor]:
    """Draw the face, without hair, ears and neck, on black.

    Args:
        model: the model of the coefficients.
        face: B frames, with the expression that is wanted.
        matrices: (B,2,3) or (2,3) maps from the clip's px to the crop.
        size: side of the crop in px.
        supersample: n x n samples per pixel.

    Returns:
        Pictures (B,3,size,size) in [-1,1], -1 where there is no face, and coverage (B,1,size,size) in [0,1].

    Raises:
        UserError: coefficients of another model.
    """
    if supersample < 1:
        raise UserError(f"supersample is {supersample}: it must be 1 (off) or more")
    xy, depth, posed = project(model, face, matrices, supersample)
    albedo = model.albedo(face.albedo.to(posed)).expand(len(face), -1, -1)
    colours = shade(albedo, vertex_normals(posed, model.triangles), face.gamma.to(posed)).clamp(0, 1)
    triangles = face_triangles(model)
    fragments = rasterise(xy, depth, triangles, (size * supersample, size * supersample))
    image, mask = interpolate(fragments, colours, triangles), fragments.mask[:, None].to(posed.dtype)
    if supersample > 1:
        image, mask = F.avg_pool2d(image, supersample), F.avg_pool2d(mask, supersample)
    return image * 2 - 1, mask


def guide_input(model: FaceModel, face: FaceFrames, matrices: Tensor, size: int, *, covered: bool) -> Tensor:
    """I_3D (B,3,size,size) as a renderer takes it, or (B,4,size,size) with its coverage; arguments of `draw_guide`."""
    image, coverage = draw_guide(model, face, matrices, size)
    return torch.cat([image, coverage], dim=1) if covered else image


def face_triangles(model: FaceModel) -> Tensor:
    """The triangles (F,3) of the face, the eyes and the inside of the mouth, on the model's device."""
    return _face_triangles(model).to(model.triangles.device)


@lru_cache(maxsize=4)
def _face_triangles(model: FaceModel) -> Tensor:
    regions = {name: mask.cpu() for name, mask in model.regions.items()}
    hidden = torch.zeros(len(model.mean_shape), dtype=torch.bool)
    for name in NO_FACE:
        if name in regions:
            hidden |= regions[name]
    if "narrow_face" in regions:  # ICT-FaceKit's face without ears and scalp
        hidden |= regions["face"] & ~regions["narrow_face"]
    behind = before_the_jaw(model) < -_UNDER_CHIN
    hidden |= behind & (model.mean_shape[:, 1] < model.landmarks(model.mean_shape[None])[0, 2, 1]).cpu()
    triangles = model.triangles.cpu()
    return triangles[~hidden[triangles].any(dim=1)]


def before_the_jaw(model: FaceModel) -> Tensor:
    """How far in dm each vertex (V,) of the mean face lies before the plane of ear lobes and chin; on the CPU."""
    rest, corners = model.mean_shape.cpu().double(), model.landmark_vertices.cpu()
    left, right, chin = (rest[corners[mark]] for mark in (2, 14, 8))
    normal = torch.linalg.cross(right - left, chin - left)
    return (rest - chin) @ (normal / normal.norm() * torch.sign(normal[2]))
