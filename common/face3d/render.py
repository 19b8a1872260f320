"""From coefficients to a picture: shape, pose, projection, light, rasterisation and compositing."""

from typing import NamedTuple

from torch import Tensor
from torch.nn import functional as F

from common.errors import UserError
from common.face3d.camera import Camera, pose
from common.face3d.lighting import shade, vertex_normals
from common.face3d.morphable import FaceModel
from common.face3d.raster import interpolate, rasterise


class Rendered(NamedTuple):
    """image (B,3,H,W) display RGB in [0,1]; mask (B,1,H,W) coverage in [0,1]; landmarks (B,68,2) xy in pixels of the
    image, y downwards, pixel (i, j) centred at (j + 0.5, i + 0.5)."""

    image: Tensor
    mask: Tensor
    landmarks: Tensor


def render(
    model: FaceModel,
    identity: Tensor,
    expression: Tensor,
    albedo: Tensor,
    angles: Tensor,
    translation: Tensor,
    gamma: Tensor,
    size: int,
    background: Tensor | None = None,
    supersample: int = 1,
) -> Rendered:
    """Render a batch of faces with the camera of `Camera(size)`.

    identity (B,Ki), expression (B,Ke) and albedo (B,Ka) coefficients; angles (B,3) rad and translation (B,3) dm of
    the head; gamma (B,27) light (`lighting.shade`). background: None (black), a colour (3,) or (B,3), or images
    (3,H,W) or (B,3,H,W), in [0,1]. `supersample` n draws n x n samples per pixel and averages them.

    Colours are display values throughout (sRGB-encoded, as in Deep3DFaceRecon): light multiplies and samples average
    encoded values. Differentiable in everything but visibility. Raises `UserError` where a size does not fit.
    """
    if supersample < 1:
        raise UserError(f"supersample is {supersample}: it must be 1 (off) or more")
    vertices = pose(model.shape(identity, expression), angles, translation)
    colours = shade(model.albedo(albedo), vertex_normals(vertices, model.triangles), gamma)
    fine = size * supersample
    xy, depth = Camera(fine).project(vertices)
    fragments = rasterise(xy, depth, model.triangles, (fine, fine))
    image = interpolate(fragments, colours.clamp(0, 1), model.triangles)
    mask = fragments.mask.unsqueeze(1).to(image.dtype)
    if supersample > 1:
        image, mask = F.avg_pool2d(image, supersample), F.avg_pool2d(mask, supersample)
    if background is not None:
        image = image + (1 - mask) * _backdrop(background.to(image), len(image), size)
    return Rendered(image, mask, model.landmarks(xy) / supersample)


def _backdrop(background: Tensor, batch: int, size: int) -> Tensor:
    """The background as (B or 1, 3, size or 1, size or 1)."""
    if background.dim() in (1, 2):
        background = background.reshape(*background.shape, 1, 1)
    if background.dim() == 3:
        background = background.unsqueeze(0)
    shape = tuple(background.shape)
    if shape[1:] not in ((3, 1, 1), (3, size, size)) or shape[0] not in (1, batch):
        raise UserError(
            f"background of shape {shape} does not fit {batch} images of {size} px: give a colour or such images"
        )
    return background
