"""Who is in the picture: identity embeddings of aligned crops."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from common.errors import UserError
from common.faces.align import DEFAULT_MARGIN, align_matrix, to_tensor, to_uint8, warp
from common.faces.dlib_backend import dlib_weights, import_dlib
from common.faces.images import as_rgb

_WEIGHTS = "dlib_face_recognition_resnet_model_v1.dat"
_CHIP = 150
_CHIP_MARGIN = 0.25
_BATCH = 64


class IdentityEmbedder(Protocol):
    """Maps aligned crops to unit vectors whose dot product says how alike two persons are."""

    name: str
    dim: int

    def embed(self, images: Sequence[np.ndarray]) -> Tensor:
        """Embed aligned crops.

        Args:
            images: square uint8 crops made by `common.faces.align_face`, of any sizes.

        Returns:
            (N,dim) float32 on the CPU, rows of length 1.
        """
        ...


class DlibEmbedder:
    """dlib's 29-layer ResNet, 128-d (King 2017, dlib_face_recognition_resnet_model_v1), 99.38 % on LFW.

    The network reads 150 px chips in which the face lies on dlib's template with a margin of 0.25. Aligned crops
    lie on the same template with another margin, so the chip is a fixed, sub-pixel cut out of them: no detection
    and no landmarks are needed, and a generated face that no detector finds is embedded like any other.

    Args:
        margin: the margin that the crops were aligned with.
    """

    name = "dlib_resnet_v1"
    dim = 128

    def __init__(self, margin: float = DEFAULT_MARGIN) -> None:
        self._network = import_dlib().face_recognition_model_v1(str(dlib_weights(_WEIGHTS)))
        self.margin = margin

    def embed(self, images: Sequence[np.ndarray], landmarks: Sequence[np.ndarray] | None = None) -> Tensor:
        """See `IdentityEmbedder.embed`.

        Args:
            images: aligned square crops; with `landmarks`, pictures of any shape.
            landmarks: (68,2) continuous pixels per picture, to align each anew.

        Raises:
            UserError: a crop that is not square, an unusable image or degenerate landmarks.
        """
        if landmarks is None:
            chips = [self._chip_of_crop(as_rgb(image)) for image in images]
        else:
            pairs = zip(images, landmarks, strict=True)
            chips = [_cut(as_rgb(image), align_matrix(points, _CHIP, _CHIP_MARGIN)) for image, points in pairs]
        vectors = np.zeros((len(chips), self.dim), dtype=np.float32)
        for start in range(0, len(chips), _BATCH):
            part = chips[start : start + _BATCH]
            vectors[start : start + len(part)] = np.array(self._network.compute_face_descriptor(part))
        return torch.nn.functional.normalize(torch.from_numpy(vectors), dim=1)

    def _chip_of_crop(self, crop: np.ndarray) -> np.ndarray:
        """The chip inside an aligned crop: both are the template's unit square with a margin on each side."""
        side = crop.shape[0]
        if crop.shape[1] != side:
            raise UserError(f"an identity embedding needs a square aligned crop, not {crop.shape[0]}x{crop.shape[1]}")
        zoom = _CHIP / (1 + 2 * _CHIP_MARGIN) * (1 + 2 * self.margin) / side
        shift = _CHIP * (_CHIP_MARGIN - self.margin) / (1 + 2 * _CHIP_MARGIN)
        return _cut(crop, np.array([[zoom, 0, shift], [0, zoom, shift]]))


def load_embedder(name: str = "dlib", margin: float = DEFAULT_MARGIN) -> IdentityEmbedder:
    """Build an identity embedder; `margin` is the one that the crops were aligned with.

    Raises:
        UserError: an unknown name, or weights that cannot be had.
    """
    if name == "dlib":
        return DlibEmbedder(margin)
    raise UserError(f"unknown identity embedder {name!r}; choose dlib")


def _cut(image: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    return to_uint8(warp(to_tensor(image), matrix[None], (_CHIP, _CHIP)))
