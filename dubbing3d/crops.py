"""The square in which the renderer draws, for training and dubbing alike: steady, and wide enough for an open jaw."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from common.faces.align import warp
from common.faces.tracks import crop_matrices

FPS = 25
_HEAD_SIDE = 2.3
"""Side of `crop_matrices`' "head" in units of brow to mid-chin; its middle lies at 0.42 of them below the brows."""
_SIDE, _DOWN = 2.15, 0.16
"""Side of this crop, and how far its middle lies below the head's: from the hairline (-0.50) to 1.66, so that the crop
mask, which ends below the chin of a wide open jaw (1.5), lies inside for turned and raised heads too."""


def render_matrices(
    landmarks: np.ndarray, size: int, *, shots: Sequence[int] = (0,), start: int = 0, fps: float = FPS
) -> np.ndarray:
    """Maps (n,2,3) float64 from frames to crops of `size` px from landmarks (n,68,2); NaN where there is no face.

    Position and scale come from eyes and nose only, smoothed in time within shots, so that speech moves nothing and
    nothing is rounded. Arguments as of `common.faces.tracks.crop_matrices`.
    """
    matrices = crop_matrices(landmarks, shots, size, framing="head", start=start, fps=fps)
    zoom = _HEAD_SIDE / _SIDE
    shift = np.array([size / 2, size / 2 + _DOWN * size / _HEAD_SIDE])
    matrices[..., 2] -= shift
    matrices *= zoom
    matrices[..., 2] += size / 2
    return matrices


def cut_crops(frames: np.ndarray, matrices: np.ndarray, size: int) -> Tensor:
    """Crops (T,3,size,size) uint8 RGB of frames (T,H,W,3) uint8; what lies outside a frame repeats its edge."""
    images = torch.from_numpy(frames).permute(0, 3, 1, 2).float()
    return warp(images, matrices, (size, size), border="replicate").round().clamp(0, 255).to(torch.uint8)


def moved(landmarks: np.ndarray, matrices: np.ndarray) -> np.ndarray:
    """Landmarks (T,68,2) in pixels of the frames -> (T,68,2) float32 in pixels of the crops of maps (T,2,3)."""
    points = np.einsum("tij,tkj->tki", matrices[..., :2], landmarks) + matrices[:, None, :, 2]
    return points.astype(np.float32)
