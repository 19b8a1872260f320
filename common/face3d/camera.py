"""Perspective camera and head pose, with the conventions of Deep3DFaceRecon (Deng et al. 2019).

The camera sits on +z, `distance` decimetres from the origin, and looks along -z. A pose is `vertices @ R + t` with
R = (Rz Ry Rx)^T for row vectors, angles in radians.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

REFERENCE_FOCAL = 1015.0
"""Focal length in pixels of a 224 px image (field of view 12.594 degrees)."""

REFERENCE_SIZE = 224


@dataclass(frozen=True)
class Camera:
    """A square pinhole camera.

    `size` is the side of the image in pixels; `focal` is in pixels and scales with the size unless given; `distance`
    is in decimetres. Pixel (row i, column j) has its centre at (j + 0.5, i + 0.5); the optical axis meets the image
    at (size / 2, size / 2).
    """

    size: int
    focal: float = math.nan
    distance: float = 10.0

    def __post_init__(self) -> None:
        if self.size < 1 or self.distance <= 0:
            raise ValueError(f"a camera needs size >= 1 and distance > 0, got {self.size} and {self.distance}")
        if math.isnan(self.focal):
            object.__setattr__(self, "focal", REFERENCE_FOCAL / REFERENCE_SIZE * self.size)

    def project(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Project posed points (..., 3) in decimetres to pixels.

        Returns xy (..., 2) with y counted from the top of the image downwards, and depth (...) along the optical axis
        in decimetres (`distance - z`; not positive behind the camera, where xy has no meaning).
        """
        depth = self.distance - points[..., 2]
        scale = self.focal / depth
        centre = self.size / 2
        xy = torch.stack([centre + points[..., 0] * scale, centre - points[..., 1] * scale], dim=-1)
        return xy, depth


def rotation(angles: Tensor) -> Tensor:
    """Rotation matrices (B,3,3) for row vectors from angles (B,3) in radians: pitch (x), yaw (y), roll (z).

    R = (Rz Ry Rx)^T, to be used as `points @ R`. Positive pitch turns the nose (+z) down, positive yaw turns it to
    the image's right, positive roll turns the head counter-clockwise as seen by the camera.
    """
    cos, sin = torch.cos(angles), torch.sin(angles)
    one, zero = torch.ones_like(cos[:, 0]), torch.zeros_like(cos[:, 0])
    about_x = [one, zero, zero, zero, cos[:, 0], -sin[:, 0], zero, sin[:, 0], cos[:, 0]]
    about_y = [cos[:, 1], zero, sin[:, 1], zero, one, zero, -sin[:, 1], zero, cos[:, 1]]
    about_z = [cos[:, 2], -sin[:, 2], zero, sin[:, 2], cos[:, 2], zero, zero, zero, one]
    x, y, z = (torch.stack(rows, dim=1).view(-1, 3, 3) for rows in (about_x, about_y, about_z))
    return (z @ y @ x).transpose(1, 2)


def pose(vertices: Tensor, angles: Tensor, translation: Tensor) -> Tensor:
    """Turn and move vertices (B,V,3) by angles (B,3) rad and translation (B,3) dm: `vertices @ R + translation`."""
    return vertices @ rotation(angles) + translation[:, None]
