"""Draws a fit into crops of the video: every render is made at its final place and size, none is resampled."""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from common.errors import UserError
from common.face3d.camera import Camera, pose
from common.face3d.fit import Fit
from common.face3d.fit_start import compose_affine, invert_affine, transform
from common.face3d.lighting import shade, vertex_normals
from common.face3d.morphable import FaceModel
from common.face3d.raster import interpolate, rasterise
from common.face3d.render import Rendered
from common.faces.align import warp

PANEL = 320
"""Side in px of each of the three panels of `draw_fit`."""
_PANEL_SPAN = 1.3
"""Side of the panels' part of the video in sides of the fit's frame."""
_CLAY = (0.72, 0.72, 0.74)
_OPACITY = 0.6
_SEEN, _MODEL = (64, 224, 96), (255, 64, 64)
"""Colours of the landmarks that were seen and of the model's."""


def render_fit(
    model: FaceModel,
    fit: Fit,
    frames: Tensor,
    crops: Tensor,
    size: int,
    *,
    expression: Tensor | None = None,
    supersample: int = 1,
    clay: bool = False,
) -> Rendered:
    """Render a fit's face at B of its frames into crops of the video, on black.

    Args:
        model: the model of the fit.
        fit: coefficients and where they live.
        frames: (B,) int64 indices.
        crops: (B,2,3) or (2,3) affine maps from the video's pixels to the crop, as `faces.tracks.crop_matrices` gives.
        size: side of the crop in px.
        expression: (B,Ke) in place of the fit's own, e.g. predicted from speech.
        supersample: n x n samples per pixel.
        clay: even grey under plain light in place of albedo and light.

    Returns:
        `Rendered` in [0,1], landmarks in pixels of the crop.

    Raises:
        UserError: another model than the fit's, or a frame that it does not have.
    """
    if fit.model_name != model.name:
        raise UserError(f"the fit was made with face model {fit.model_name}, not {model.name}")
    frames = frames.cpu()
    if frames.numel() == 0 or int(frames.min()) < 0 or int(frames.max()) >= len(fit):
        raise UserError(f"the fit has frames 0 to {len(fit) - 1}; {frames.tolist()} were asked for")
    like, count = model.mean_shape, len(frames)
    weights = (fit.expression[frames] if expression is None else expression).to(like)
    shape = model.shape(fit.identity.to(like).expand(count, -1), weights)
    placed = pose(shape, fit.angles[frames].to(like), fit.translation[frames].to(like))
    albedo = model.albedo(fit.albedo.to(like)[None])
    gamma = fit.gamma[frames].to(like)
    if clay:
        albedo, gamma = torch.tensor(_CLAY).to(like).expand_as(albedo), _plain_light(count).to(like)
    colours = shade(albedo, vertex_normals(placed, model.triangles), gamma).clamp(0, 1)
    xy, depth = Camera(fit.size).project(placed)
    into = compose_affine(crops.to(torch.float64).cpu().expand(count, 2, 3), invert_affine(fit.matrix[frames]))
    fine = transform(xy, into.to(like)) * supersample
    fragments = rasterise(fine, depth, model.triangles, (size * supersample, size * supersample))
    image, mask = interpolate(fragments, colours, model.triangles), fragments.mask[:, None].to(like.dtype)
    if supersample > 1:
        image, mask = F.avg_pool2d(image, supersample), F.avg_pool2d(mask, supersample)
    return Rendered(image, mask, model.landmarks(fine) / supersample)


def _plain_light(count: int) -> Tensor:
    """gamma (B,27) of a light from the camera's upper left, to show shape."""
    gamma = torch.zeros(count, 3, 9)
    gamma[:, :, 0], gamma[:, :, 1:4] = -0.35, torch.tensor([-0.25, 0.35, 0.15])
    return gamma.flatten(1)


def panel_crops(fit: Fit, size: int = PANEL) -> Tensor:
    """Maps (T,2,3) from the video's pixels to square panels with some room around the fit's frame."""
    scale = size / (_PANEL_SPAN * fit.size)
    shift = (size - scale * fit.size) / 2
    zoom = torch.tensor([[scale, 0.0, shift], [0.0, scale, shift]], dtype=fit.matrix.dtype)
    return compose_affine(zoom.expand_as(fit.matrix), fit.matrix)


@torch.no_grad()
def draw_fit(
    model: FaceModel,
    fit: Fit,
    images: Iterable[np.ndarray],
    landmarks: np.ndarray | None = None,
    *,
    size: int = PANEL,
) -> Iterator[np.ndarray]:
    """Pictures that show how well a fit fits, side by side: the frame; the mesh laid over it with the landmarks that
    were seen in green and the model's in red; the render with its own colours, or in clay where it has none.

    Args:
        model, fit: see `render_fit`.
        images: T uint8 frames (H,W,3) of the video; may stream.
        landmarks: (T,68,2) px of the video, drawn where they are finite.
        size: side of each panel.

    Yields:
        uint8 (size, 3 size, 3).

    Raises:
        UserError: fewer images than frames of the fit.
    """
    crops, coloured = panel_crops(fit, size), bool(fit.gamma.any())
    stream = iter(images)
    for index in range(len(fit)):
        image = next(stream, None)
        if image is None:
            raise UserError(f"the images end after {index} frames, the fit after {len(fit)}")
        frame, crop = torch.tensor([index]), crops[index]
        picture = torch.tensor(image).permute(2, 0, 1)[None].float() / 255
        plain = warp(picture, crop[None], (size, size), border="zeros")
        clay = render_fit(model, fit, frame, crop[None], size, supersample=2, clay=True)
        shown = render_fit(model, fit, frame, crop[None], size, supersample=2).image if coloured else clay.image
        cover = _OPACITY * clay.mask.cpu()
        laid = _as_image(plain * (1 - cover) + cover * clay.image.cpu())
        if landmarks is not None:
            seen = transform(torch.as_tensor(landmarks[index]).double()[None], crop[None])[0]
            _dots(laid, seen.numpy(), _SEEN)
        _dots(laid, clay.landmarks[0].cpu().numpy(), _MODEL)
        yield np.concatenate([_as_image(plain), laid, _as_image(shown.cpu())], axis=1)


def _as_image(picture: Tensor) -> np.ndarray:
    """(1,3,H,W) in [0,1] as uint8 (H,W,3)."""
    array: np.ndarray = (picture[0].permute(1, 2, 0) * 255).round().clamp(0, 255).byte().numpy()
    return np.ascontiguousarray(array)


def _dots(image: np.ndarray, points: np.ndarray, colour: tuple[int, int, int]) -> None:
    """Paint 2 x 2 px dots at those points (N,2) that lie in the picture."""
    inside = np.isfinite(points).all(1) & (points > 1).all(1) & (points < image.shape[0] - 1).all(1)
    x, y = np.round(points[inside]).astype(int).T
    for down in (-1, 0):
        for across in (-1, 0):
            image[y + down, x + across] = colour
