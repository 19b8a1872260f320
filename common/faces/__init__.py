"""Faces: detection, 68 landmarks, sub-pixel alignment and identity, behind one protocol with two backends."""

from common.faces.align import DEFAULT_MARGIN, align_face, align_matrix
from common.faces.base import Face, FaceBackend, load_backend
from common.faces.identity import IdentityEmbedder, load_embedder
from common.faces.images import as_rgb, read_image

__all__ = [
    "DEFAULT_MARGIN",
    "Face",
    "FaceBackend",
    "IdentityEmbedder",
    "align_face",
    "align_matrix",
    "as_rgb",
    "load_backend",
    "load_embedder",
    "read_image",
]
