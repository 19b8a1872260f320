"""Who is in the picture: identity embeddings of aligned crops."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from common.errors import UserError
from common.faces.align import DEFAULT_MARGIN, align_matrix, to_tensor, warp
from common.faces.dlib_backend import dlib_weights
from common.faces.dlib_resnet import load_dlib_resnet
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

    def embed_tensor(self, images: Tensor) -> Tensor:
        """Differentiable: aligned crops (B,3,S,S) in [-1,1] on the embedder's device -> rows (B,dim) of length 1."""
        ...


class DlibEmbedder:
    """dlib's 29-layer ResNet, 128-d (King 2017, dlib_face_recognition_resnet_model_v1), 99.38 % on LFW.

    The network reads 150 px chips in which the face lies on dlib's template with a margin of 0.25. Aligned crops
    lie on the same template with another margin, so the chip is a fixed, sub-pixel cut out of them: no detection
    and no landmarks are needed, and a generated face that no detector finds is embedded like any other.

    Args:
        margin: the margin that the crops were aligned with.
        device: torch device of the network.
    """

    name = "dlib_resnet_v1"
    dim = 128

    def __init__(self, margin: float = DEFAULT_MARGIN, device: str = "cpu") -> None:
        self._network = load_dlib_resnet(dlib_weights(_WEIGHTS)).to(device)
        self.margin, self.device = margin, device

    @torch.inference_mode()
    def embed(self, images: Sequence[np.ndarray], landmarks: Sequence[np.ndarray] | None = None) -> Tensor:
        """See `IdentityEmbedder.embed`.

        Args:
            images: aligned square crops; with `landmarks`, pictures of any shape.
            landmarks: (68,2) continuous pixels per picture, to align each anew.

        Raises:
            UserError: a crop that is not square, an unusable image or degenerate landmarks.
        """
        pictures = [as_rgb(image) for image in images]
        if landmarks is None:
            matrices = [self._crop_to_chip(picture.shape[:2]) for picture in pictures]
        else:
            matrices = [align_matrix(points, _CHIP, _CHIP_MARGIN) for points in landmarks]
        pairs = list(zip(pictures, matrices, strict=True))
        vectors = [torch.zeros(0, self.dim)]
        for start in range(0, len(pairs), _BATCH):
            part = pairs[start : start + _BATCH]
            chips = [warp(to_tensor(picture), matrix[None], (_CHIP, _CHIP)) for picture, matrix in part]
            vectors.append(self._network(torch.cat(chips).to(self.device) / 127.5 - 1).float().cpu())
        return F.normalize(torch.cat(vectors), dim=1)

    def embed_tensor(self, images: Tensor) -> Tensor:
        """Differentiable embedding of a batch, for identity losses and for metrics on the device.

        Args:
            images: (B,3,S,S) aligned crops in [-1,1] on the embedder's device.

        Returns:
            (B,128) rows of length 1, on that device.
        """
        size = (images.shape[2], images.shape[3])
        matrices = np.repeat(self._crop_to_chip(size)[None], len(images), axis=0)
        vectors: Tensor = self._network(warp(images, matrices, (_CHIP, _CHIP)))
        return F.normalize(vectors, dim=1)

    def _crop_to_chip(self, size: tuple[int, ...]) -> np.ndarray:
        return crop_to_chip(size, self.margin, _CHIP, _CHIP_MARGIN)


def crop_to_chip(size: tuple[int, ...], margin: float, chip: int, chip_margin: float) -> np.ndarray:
    """(2,3) pixels of an aligned crop to those of a network's input of `chip` px.

    Both are the template's unit square with a margin on each side. Raises UserError where `size` is not square.
    """
    rows, columns = size
    if rows != columns:
        raise UserError(f"an identity embedding needs a square aligned crop, not {rows}x{columns}")
    zoom = chip / (1 + 2 * chip_margin) * (1 + 2 * margin) / rows
    shift = chip * (chip_margin - margin) / (1 + 2 * chip_margin)
    return np.array([[zoom, 0, shift], [0, zoom, shift]])


def load_embedder(name: str = "dlib", margin: float = DEFAULT_MARGIN, device: str = "cpu") -> IdentityEmbedder:
    """Build an identity embedder, `dlib` (packaged) or `facenet_vggface2` (a weights file).

    `margin` is the one that the crops were aligned with.

    Raises:
        UserError: an unknown name, or weights that cannot be had.
    """
    if name == "dlib":
        return DlibEmbedder(margin, device)
    if name == "facenet_vggface2":
        from common.faces.facenet import FaceNetEmbedder

        return FaceNetEmbedder(margin, device)
    raise UserError(f"unknown identity embedder {name!r}; choose dlib or facenet_vggface2")
