"""Where a fit starts: the frame that it lives in, and each frame's pose in closed form."""

import torch
from torch import Tensor

from common.errors import UserError
from common.face3d.camera import Camera
from common.face3d.fit_terms import JAW, POSE, Basis
from common.faces.align import STABLE_POINTS, similarity

LEAST_LANDMARKS = 20
"""Frames with fewer landmarks count as frames without a face."""


HEAD_DEPTH = -3.0
"""Depth in dm at which the mean face stands in the fit's frame: hair and chin then stay inside, as in a head crop."""


def whole_frames(landmarks: Tensor) -> Tensor:
    """Which of the frames (T,) of landmarks (T,68,2) show enough of a face to be fitted."""
    return torch.isfinite(landmarks).all(2).sum(1) >= LEAST_LANDMARKS


def clip_matrix(landmarks: Tensor, basis: Basis, camera: Camera) -> Tensor:
    """The similarity (2,3) from the video's pixels to the fit's, fixed for a clip, from landmarks (T,68,2).

    It lays the clip's median face over the model's mean face, seen from the front at the origin. Nothing is rounded.
    """
    frontal, _ = camera.project(basis.mean + basis.mean.new_tensor([0.0, 0.0, HEAD_DEPTH]))
    stable = list(STABLE_POINTS)
    median = torch.nanmedian(landmarks, dim=0).values[stable]
    seen = torch.isfinite(median).all(1)
    if int(seen.sum()) < 2:
        raise UserError("the clip's landmarks never show eyes, nose and mouth; it cannot be fitted")
    return torch.from_numpy(similarity(median[seen].numpy(), frontal[stable][seen].numpy()))


def transform(points: Tensor, matrix: Tensor) -> Tensor:
    """Points (T,N,2) through affine maps (T,2,3) or (2,3)."""
    linear, shift = matrix[..., :2], matrix[..., None, :, 2]
    return points @ linear.transpose(-1, -2) + shift


def invert_affine(matrix: Tensor) -> Tensor:
    """Inverses (...,2,3) of affine maps (...,2,3)."""
    linear = torch.linalg.inv(matrix[..., :2])
    return torch.cat([linear, -linear @ matrix[..., 2:]], dim=-1)


def compose_affine(outer: Tensor, inner: Tensor) -> Tensor:
    """The affine map (...,2,3) that applies `inner` and then `outer`."""
    linear = outer[..., :2] @ inner[..., :2]
    return torch.cat([linear, outer[..., :2] @ inner[..., 2:] + outer[..., 2:]], dim=-1)


def first_pose(landmarks: Tensor, basis: Basis, camera: Camera) -> Tensor:
    """Poses (T,6) of the mean face under landmarks (T,68,2) in the fit's pixels: scaled orthography (DeMenthon and
    Davis 1995), each frame by least squares over its landmarks inside the outline."""
    inner = slice(JAW, None)
    seen = torch.isfinite(landmarks[:, inner]).all(2).to(landmarks.dtype)
    points = torch.cat([basis.mean[inner], torch.ones_like(basis.mean[inner, :1])], dim=1)
    design = points * seen[..., None]
    pixels = torch.nan_to_num(landmarks[:, inner]) * seen[..., None]
    ridge = 1e-3 * torch.eye(4, dtype=points.dtype, device=points.device)
    affine = torch.linalg.solve(design.transpose(1, 2) @ design + ridge, design.transpose(1, 2) @ pixels)
    rows = affine[:, :3].transpose(1, 2) * affine.new_tensor([1.0, -1.0]).view(2, 1)  # y upwards
    u, singular, vh = torch.linalg.svd(rows, full_matrices=False)
    scale = singular.mean(1).clamp(camera.focal / camera.distance / 8, camera.focal / camera.distance * 8)
    x, y = (u @ vh).unbind(1)
    z = torch.linalg.cross(x, y)
    pitch, roll = torch.atan2(z[:, 1], z[:, 2]), torch.atan2(y[:, 0], x[:, 0])
    yaw = torch.asin((-z[:, 0]).clamp(-1, 1))
    depth = camera.focal / scale
    centre = affine[:, 3] - camera.size / 2
    shift = torch.stack([centre[:, 0] / scale, -centre[:, 1] / scale, camera.distance - depth], dim=1)
    pose = torch.cat([torch.stack([pitch, yaw, roll], dim=1), shift], dim=1)
    assert pose.shape[1] == POSE
    return pose
