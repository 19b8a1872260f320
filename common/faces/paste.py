"""Square crops out of frames and back into them: batches, at sub-pixel places, under soft masks.

Maps go from frame to crop in continuous pixels, as `common.faces.tracks.crop_matrices` makes them. A pixel whose mask
is 0 keeps its value bit for bit.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from common.faces.align import invert, needed_part, warp

_DIRECTIONS = 32
"""Half planes by which a hull is bounded; its edges bulge by under 5 % of their length."""
_JAW = slice(2, 15)
"""Jaw landmarks below the ear lobes."""
_CHIN = slice(4, 13)
_BRIDGE, _TIP, _CHIN_TIP = 27, 30, 8


def cut_crops(images: Sequence[np.ndarray], matrices: np.ndarray, size: int, device: str | torch.device) -> Tensor:
    """Square crops of frames, anti-aliased; outside of a frame its edge is repeated.

    Args:
        images: B frames uint8 (H,W,3) of one size.
        matrices: (B,2,3) frame to crop.
        size: side of the crops.
        device: where they are made.

    Returns:
        (B,3,size,size) float32 in [0,1], channels as in the frames.
    """
    shape = (images[0].shape[0], images[0].shape[1])
    parts = [needed_part(matrix, size, shape, "replicate") for matrix in matrices]
    corners, (height, width) = _windows(np.array([[r.start, c.start, r.stop, c.stop] for r, c in parts]), shape)
    moved = matrices.copy()
    moved[:, :, 2] += np.einsum("bij,bj->bi", matrices[:, :, :2], corners[:, ::-1])
    pixels = _gather(images, corners, height, width, device)
    return warp(pixels, moved, (size, size), border="replicate") / 255


def paste_crops(images: Sequence[np.ndarray], crops: Tensor, masks: Tensor, matrices: np.ndarray) -> list[np.ndarray]:
    """Frames with crops blended in: frame + mask (crop - frame), rounded.

    Args:
        images: B frames uint8 (H,W,3) of one size; not changed.
        crops: (B,3,S,S) in [0,1], values beyond are clipped.
        masks: (B,1,S,S) in [0,1]: how much of the crop is seen. It counts as 0 outside of the crop.
        matrices: (B,2,3) frame to crop.

    Returns:
        B new frames; where the resampled mask is 0 they equal the old ones exactly.
    """
    shape, size = (images[0].shape[0], images[0].shape[1]), crops.shape[-1]
    back = np.stack([invert(matrix) for matrix in matrices])
    square = np.array([[0, 0], [size, 0], [0, size], [size, size]], np.float64)
    placed = np.einsum("bij,kj->bki", back[:, :, :2], square) + back[:, None, :, 2]
    low, high = np.floor(placed.min(axis=1)) - 1, np.ceil(placed.max(axis=1)) + 1
    corners, (height, width) = _windows(np.concatenate([low[:, ::-1], high[:, ::-1]], axis=1), shape)
    back[:, :, 2] -= corners[:, ::-1]
    colours = warp(crops, back, (height, width), border="replicate").clamp(0, 1) * 255
    shares = warp(masks, back, (height, width), border="zeros")
    old = _gather(images, corners, height, width, crops.device)
    blended = (old + shares * (colours - old)).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    pasted = []
    for image, (top, left), part in zip(images, corners, blended, strict=True):
        frame = image.copy()
        frame[top : top + height, left : left + width] = part
        pasted.append(frame)
    return pasted


def lower_face_mask(
    landmarks: Tensor, size: int, *, feather: float = 0.1, margin: float = 0.03, drop: float = 0.12, top: float = 0.4
) -> Tensor:
    """Soft mask of the lower face: below the tip of the nose, within the jaw, and what an opening jaw needs below it.

    The hull of the jaw's landmarks, the tip of the nose, and the chin's landmarks moved down. It is bounded by tangents
    in fixed directions, so that it moves as smoothly as the landmarks do, and by the crop's own edges.

    Args:
        landmarks: (B,68,2) in pixels of the crop; may lie outside of it.
        size: side of the crop.
        feather: width of the rise from 0 to 1, inwards, as a share of the side.
        margin: how far the hull is enlarged, as a share of the side.
        drop: how far the chin is moved down, as a share of the distance from its tip to the bridge of the nose.
        top: rows above this share of the side stay 0.

    Returns:
        (B,1,size,size) in [0,1], 0 along the crop's edges.
    """
    down = (landmarks[:, _CHIN_TIP] - landmarks[:, _BRIDGE])[:, None] * drop
    points = torch.cat(
        [landmarks[:, _JAW], landmarks[:, _TIP : _TIP + 1], landmarks[:, _CHIN], landmarks[:, _CHIN] + down], 1
    )
    angle = torch.arange(_DIRECTIONS, device=points.device) * (2 * math.pi / _DIRECTIONS)
    normals = torch.stack([angle.cos(), angle.sin()]).to(points)
    support = (points @ normals).amax(dim=1) + margin * size
    centres = torch.arange(size, device=points.device, dtype=points.dtype) + 0.5
    grid = torch.stack(torch.meshgrid(centres, centres, indexing="xy"), dim=-1).flatten(0, 1)
    inside = (support[:, None] - grid @ normals).amin(dim=2).reshape(-1, size, size)
    to_side = torch.minimum(centres, size - centres) - 0.5
    from_top = torch.minimum(to_side, centres - top * size - 0.5)
    depth = torch.minimum(inside, torch.minimum(from_top[:, None], to_side[None]))
    rise = (depth / max(feather * size, 1e-6)).clamp(0, 1)
    return (rise * rise * (3 - 2 * rise))[:, None]


def box_mask(count: int, size: int, device: str | torch.device, *, feather: float = 0.0) -> Tensor:
    """Mask (count,1,size,size) of the whole crop, as Wav2Lip pastes; with a feather it rises from the edges inwards."""
    centres = torch.arange(size, device=device, dtype=torch.float32) + 0.5
    to_side = torch.minimum(centres, size - centres)
    depth = torch.minimum(to_side[:, None], to_side[None])
    mask = torch.ones_like(depth) if feather == 0 else (depth / (feather * size)).clamp(0, 1)
    return mask.expand(count, 1, size, size)


def _windows(bounds: np.ndarray, shape: tuple[int, int]) -> tuple[np.ndarray, tuple[int, int]]:
    """Windows of one size inside the frame that hold what of each box (B,4: top, left, bottom, right) lies in it.

    Returns:
        Upper left corners (B,2) as row and column, and the size.
    """
    limits = np.array(shape)
    low = np.clip(bounds[:, :2], 0, limits - 1).astype(np.int64)
    high = np.clip(bounds[:, 2:], low + 1, limits).astype(np.int64)
    extent = (high - low).max(axis=0)
    corners = np.minimum(low, limits - extent)
    return corners, (int(extent[0]), int(extent[1]))


def _gather(
    images: Sequence[np.ndarray], corners: np.ndarray, height: int, width: int, device: str | torch.device
) -> Tensor:
    """Windows of frames as float32 (B,3,height,width) in 0..255."""
    parts = [image[y : y + height, x : x + width] for image, (y, x) in zip(images, corners, strict=True)]
    return torch.from_numpy(np.stack(parts)).to(device).permute(0, 3, 1, 2).float()
