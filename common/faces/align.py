"""Sub-pixel similarity alignment of faces.

Every coordinate is a continuous pixel: pixel (row i, column j) covers [j, j+1) x [i, i+1) and its centre is
(j + 0.5, i + 0.5). Scaling a picture therefore scales its coordinates, with no offset.
"""

import math
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from common.errors import UserError
from common.faces.images import as_rgb

Border = Literal["reflection", "replicate", "zeros"]

DEFAULT_MARGIN = 0.4
"""Room around the template's unit square, as a fraction of its side; hair and chin are inside the crop."""

STABLE_POINTS = (*range(27, 55), *range(60, 65))
"""Landmarks that fit a pose: nose, eyes, upper lip. Brows, jaw and lower lip move with expression and speech."""

# dlib's mean face (dlib/image_transforms/interpolation.h, get_face_chip_details), landmarks 17..67 in a unit square.
_MEAN_FACE = """
0.000213256 0.106454 0.0752622 0.038915 0.18113 0.0187482 0.29077 0.0344891 0.393397 0.0773906 0.586856 0.0773906
0.689483 0.0344891 0.799124 0.0187482 0.904991 0.038915 0.98004 0.106454 0.490127 0.203352 0.490127 0.307009
0.490127 0.409805 0.490127 0.515625 0.36688 0.587326 0.426036 0.609345 0.490127 0.628106 0.554217 0.609345
0.613373 0.587326 0.121737 0.216423 0.187122 0.178758 0.265825 0.179852 0.334606 0.231733 0.260918 0.245099
0.182743 0.244077 0.645647 0.231733 0.714428 0.179852 0.793132 0.178758 0.858516 0.216423 0.79751 0.244077
0.719335 0.245099 0.254149 0.780233 0.340985 0.745405 0.428858 0.727388 0.490127 0.742578 0.551395 0.727388
0.639268 0.745405 0.726104 0.780233 0.642159 0.864805 0.556721 0.902192 0.490127 0.909281 0.423532 0.902192
0.338094 0.864805 0.290379 0.784792 0.428096 0.778746 0.490127 0.785343 0.552157 0.778746 0.689874 0.784792
0.553364 0.824182 0.490127 0.831803 0.42689 0.824182
"""
MEAN_FACE = np.array(_MEAN_FACE.split(), dtype=np.float64).reshape(51, 2)
"""(51,2) canonical positions of landmarks 17..67: brow to mid-chin spans the unit square."""


def template(size: int, margin: float = DEFAULT_MARGIN) -> np.ndarray:
    """Where `STABLE_POINTS` lie in an aligned crop.

    Args:
        size: side of the square crop in pixels.
        margin: room on each side of the unit square, as a fraction of it; 0.25 is dlib's identity chip.

    Returns:
        (33,2) float64, xy in pixels of the crop.
    """
    if size < 1 or margin <= -0.5:
        raise UserError(f"an aligned crop needs size >= 1 and margin > -0.5, not size {size} and margin {margin}")
    points = MEAN_FACE[np.array(STABLE_POINTS) - 17]
    return (points + margin) / (1 + 2 * margin) * size


def similarity(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Least-squares rotation, scale and shift that carries `source` onto `target`, never a reflection.

    The closed form of Umeyama (1991) in the plane: with points as complex numbers w = a z + b, the best a is
    sum(conj(z) w) / sum(|z|^2) over centred points.

    Args:
        source, target: (N,2) with N >= 2.

    Returns:
        (2,3) float64 matrix that maps source to target: M[:, :2] @ p + M[:, 2].

    Raises:
        UserError: fewer than two points, coinciding points, or NaN.
    """
    if source.shape != target.shape or source.ndim != 2 or source.shape[1] != 2 or len(source) < 2:
        raise UserError(f"a similarity needs two equal lists of at least 2 points, not {source.shape}, {target.shape}")
    z = source[:, 0].astype(np.float64) + 1j * source[:, 1]
    w = target[:, 0].astype(np.float64) + 1j * target[:, 1]
    if not (np.isfinite(z).all() and np.isfinite(w).all()):
        raise UserError("the landmarks hold NaN or infinity; the face cannot be aligned")
    centred = z - z.mean()
    spread = float((np.abs(centred) ** 2).sum())
    if spread <= 1e-12 * max(1.0, float((np.abs(z) ** 2).max())):
        raise UserError("the landmarks all lie in one point; the face cannot be aligned")
    a = (centred.conj() * (w - w.mean())).sum() / spread
    if abs(a) < 1e-12:
        raise UserError("the landmarks have no common orientation with the template; the face cannot be aligned")
    b = w.mean() - a * z.mean()
    return np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]])


def invert(matrix: np.ndarray) -> np.ndarray:
    """Invert a (2,3) affine map: with it `warp` pastes an aligned crop back into its picture."""
    linear = np.linalg.inv(matrix[:, :2])
    return np.concatenate([linear, -linear @ matrix[:, 2:]], axis=1)


def align_matrix(landmarks: np.ndarray, size: int, margin: float = DEFAULT_MARGIN) -> np.ndarray:
    """The (2,3) similarity that carries a face onto the template, from (68,2) landmarks; see `template`."""
    if landmarks.shape != (68, 2):
        raise UserError(f"a face has 68 landmarks of 2 coordinates, not an array of shape {landmarks.shape}")
    return similarity(landmarks[list(STABLE_POINTS)], template(size, margin))


def warp(
    image: Tensor,
    matrix: np.ndarray | Tensor,
    size: tuple[int, int],
    *,
    border: Border = "reflection",
) -> Tensor:
    """Resample a batch of pictures through affine maps, anti-aliased where a map shrinks.

    Enlarging is bilinear. Shrinking averages a sub-pixel grid of samples per output pixel, at least one per source
    pixel, after exact 2x2 halvings that bring large pictures near the wanted scale. Nothing is rounded to whole
    pixels, and a picture's result does not depend on the others in the batch.

    Args:
        image: (B,C,H,W) float; the range is kept.
        matrix: (B,2,3) source to output, in continuous pixels, of any invertible affine kind.
        size: rows and columns of the output.
        border: what lies outside the picture: its mirror image, its edge, or 0.

    Returns:
        (B,C,rows,columns) of the image's type.
    """
    forward = torch.as_tensor(matrix, dtype=torch.float64, device="cpu")
    if forward.shape != (len(image), 2, 3):
        raise ValueError(f"one (2,3) matrix per picture: {len(image)} pictures, matrices {tuple(forward.shape)}")
    result = image.new_zeros(len(image), image.shape[1], *size)
    for (halvings, samples), chosen in _by_scale(forward, (image.shape[2], image.shape[3])).items():
        part = image if len(chosen) == len(image) else image[chosen]
        result[chosen] = _warp_alike(part, forward[chosen], size, border, halvings, samples)
    return result


def align_face(
    image: np.ndarray,
    landmarks: np.ndarray,
    size: int,
    margin: float = DEFAULT_MARGIN,
    *,
    border: Border = "reflection",
) -> np.ndarray:
    """Cut an upright, centred face out of a picture.

    Args:
        image: uint8 (H,W,3) or any shape that `as_rgb` takes.
        landmarks: (68,2) continuous pixels, as `Face.landmarks`.
        size: side of the crop.
        margin: see `template`.
        border: what lies outside the picture; see `warp`.

    Returns:
        uint8 (size,size,3) RGB.

    Raises:
        UserError: degenerate landmarks or an unusable image.
    """
    rgb = as_rgb(image)
    matrix = align_matrix(landmarks, size, margin)
    rows, columns = needed_part(matrix, size, (rgb.shape[0], rgb.shape[1]))
    matrix[:, 2] += matrix[:, :2] @ (columns.start, rows.start)
    return to_uint8(warp(to_tensor(rgb[rows, columns]), matrix[None], (size, size), border=border))


def to_tensor(image: np.ndarray) -> Tensor:
    """uint8 (H,W,3) to float32 (1,3,H,W) in 0..255."""
    return torch.tensor(image).permute(2, 0, 1)[None].float()


def to_uint8(image: Tensor) -> np.ndarray:
    """Float (1,3,H,W) in 0..255 to uint8 (H,W,3), rounded."""
    array: np.ndarray = image[0].permute(1, 2, 0).round().clamp(0, 255).to(torch.uint8).cpu().numpy()
    return np.ascontiguousarray(array)


def needed_part(
    matrix: np.ndarray, size: int, shape: tuple[int, int], border: Border = "reflection"
) -> tuple[slice, slice]:
    """Rows and columns that a crop reads, so that a small face in a large photograph costs little.

    A crop that leaves the picture reads up to the picture's edge, and all of it where the border is its mirror image.
    """
    back = invert(matrix)
    corners = np.array([[0, 0], [size, 0], [0, size], [size, size]]) @ back[:, :2].T + back[:, 2]
    room = (
        2 + 2 * np.hypot(back[0, :2], back[1, :2]).max()
    )  # bilinear neighbours and the last half of a halving's 2x2 blocks
    x0, y0 = np.floor(corners.min(axis=0) - room).astype(int)
    x1, y1 = np.ceil(corners.max(axis=0) + room).astype(int)
    if border == "reflection" and (x0 < 0 or y0 < 0 or x1 > shape[1] or y1 > shape[0]):
        return slice(0, shape[0]), slice(0, shape[1])
    top, left = min(max(y0, 0), shape[0] - 1), min(max(x0, 0), shape[1] - 1)
    return slice(top, min(max(y1, top + 1), shape[0])), slice(left, min(max(x1, left + 1), shape[1]))


_GRID_PADDING = {"reflection": "reflection", "replicate": "border", "zeros": "zeros"}
_SAMPLES_BEFORE_HALVING = 4


def _by_scale(forward: Tensor, shape: tuple[int, int]) -> dict[tuple[int, int], list[int]]:
    """Group maps (B,2,3) by how often the picture is halved first and the side of the grid of samples per pixel."""
    groups: dict[tuple[int, int], list[int]] = {}
    # The longest step that one output pixel makes in the source is the inverse of the smallest stretch.
    stretches = torch.linalg.matrix_norm(forward[:, :, :2], ord=-2).tolist()
    for index, stretch in enumerate(stretches):
        if stretch < 1e-9:
            raise ValueError(f"matrix {index} flattens the picture: it has no inverse")
        step, halvings, shortest = 1 / stretch, 0, min(shape)
        while step > _SAMPLES_BEFORE_HALVING and shortest > 1:
            step, halvings, shortest = step / 2, halvings + 1, (shortest + 1) // 2
        samples = min(max(1, math.ceil(step - 1e-6)), _SAMPLES_BEFORE_HALVING)
        groups.setdefault((halvings, samples), []).append(index)
    return groups


def _warp_alike(
    image: Tensor, forward: Tensor, size: tuple[int, int], border: Border, halvings: int, samples: int
) -> Tensor:
    """`warp` of pictures that are halved and sampled alike."""
    backward = torch.eye(3, dtype=torch.float64).repeat(len(forward), 1, 1)
    backward[:, :2] = forward
    backward = torch.linalg.inv(backward)[:, :2] / 2**halvings
    for _ in range(halvings):
        odd = (0, image.shape[3] % 2, 0, image.shape[2] % 2)
        image = F.avg_pool2d(F.pad(image, odd, mode="replicate"), 2)
    theta = _normalised(backward, size, (image.shape[2], image.shape[3]))
    shape = [len(image), image.shape[1], size[0] * samples, size[1] * samples]
    grid = F.affine_grid(theta, shape, align_corners=False).to(image)
    sampled = F.grid_sample(image, grid, mode="bilinear", padding_mode=_GRID_PADDING[border], align_corners=False)
    return F.avg_pool2d(sampled, samples) if samples > 1 else sampled


def _normalised(backward: Tensor, size: tuple[int, int], source: tuple[int, int]) -> Tensor:
    """Maps (B,2,3) from output to source pixels, in the -1..1 coordinates of both pictures."""
    rows, columns = size
    height, width = source
    from_unit = torch.tensor([[columns / 2, 0, columns / 2], [0, rows / 2, rows / 2], [0, 0, 1]], dtype=torch.float64)
    to_unit = torch.tensor([[2 / width, 0, -1], [0, 2 / height, -1]], dtype=torch.float64)
    full = torch.cat([backward @ from_unit, torch.tensor([0.0, 0, 1]).double().expand(len(backward), 1, 3)], dim=1)
    return to_unit @ full
