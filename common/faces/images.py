"""Photographs at the edge: whatever a user hands over becomes an RGB array, or one clear line."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from common.errors import UserError


def as_rgb(image: np.ndarray) -> np.ndarray:
    """Turn a uint8 picture of any channel count into contiguous RGB.

    Args:
        image: uint8, (H,W) or (H,W,1) grey, (H,W,3) RGB, or (H,W,4) RGBA, whose alpha is dropped.

    Returns:
        uint8 (H,W,3).

    Raises:
        UserError: another type, shape, or an empty picture.
    """
    if image.dtype != np.uint8:
        raise UserError(f"an image must be uint8 in 0..255, not {image.dtype}; convert it first")
    if image.ndim == 2:
        image = image[:, :, None]
    if image.ndim != 3 or image.shape[2] not in (1, 3, 4):
        raise UserError(f"an image must have the shape (H,W), (H,W,1), (H,W,3) or (H,W,4), not {image.shape}")
    if image.size == 0:
        raise UserError(f"the image is empty: {image.shape[0]} rows, {image.shape[1]} columns")
    rgb = np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image[:, :, :3]
    return np.ascontiguousarray(rgb)


def read_image(path: Path) -> np.ndarray:
    """Decode a picture file, upright (its EXIF orientation is applied).

    Returns:
        uint8 (H,W,3) RGB.

    Raises:
        UserError: the file is missing, no picture, truncated, or larger than Pillow's decompression-bomb limit.
    """
    try:
        with Image.open(path) as file:
            return np.ascontiguousarray(ImageOps.exif_transpose(file).convert("RGB"))
    except FileNotFoundError as error:
        raise UserError(f"no such image: {path}") from error
    except UnidentifiedImageError as error:
        raise UserError(f"{path} is not an image that can be read; give a PNG or JPEG") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"cannot read the image {path}: {error}") from error
