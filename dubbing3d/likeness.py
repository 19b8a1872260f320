"""How near drawn faces are to the real ones: PSNR, SSIM, LPIPS, landmarks and identity, where the face is known.

Detection is left out: landmarks are regressed in the real face's box and identities embedded at the real face's place,
in both pictures alike, so that a figure never hangs on where a detector happened to look.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from common.errors import UserError
from common.faces.base import FaceBackend, load_backend
from common.faces.identity import DlibEmbedder
from common.metrics.image import box_masks, csim, image_quality, mouth_boxes, psnr, quantise, ssim
from common.metrics.landmark import landmark_distance
from common.metrics.path_length import lpips_distance

STATED = 192
"""Distances of landmarks are stated for pictures of this side in px, which is the paper's."""
_BOX_SIDE, _BOX_UP = 1.12, 0.11
"""Side of dlib's boxes as a share of the landmarks' width, and how far above the brows they begin (measured)."""


@dataclass(frozen=True, eq=False)
class Look:
    """What is known of B real frames."""

    images: Tensor
    """(B,3,H,W) uint8."""
    landmarks: Tensor
    """(B,68,2) px, as the corpus has them."""
    found: Tensor
    """(B,68,2) px, as the landmark network sees them."""
    identity: Tensor
    """(B,D)."""


class Likeness:
    """Compares drawn frames with real ones.

    Args:
        device: torch device of the networks.
    """

    def __init__(self, device: str = "cpu") -> None:
        self.backend: FaceBackend = load_backend("dlib")
        self.embedder = DlibEmbedder(device=device)
        self.lpips: Callable[[Tensor, Tensor], Tensor] | None = None
        self.lpips_name = "lpips_alex"
        try:
            network = lpips_distance("alex", fetch=False).to(device)
        except UserError as error:
            self.lpips_name = f"nobody ({str(error).partition(':')[0]})"
        else:
            self.lpips = lambda first, second: network(first.to(device), second.to(device)).cpu()

    @property
    def names(self) -> dict[str, str]:
        """What measures, for metrics.json."""
        return {
            "landmarks": f"{self.backend.name}, in the real face's box, px at {STATED}",
            "identity": f"{self.embedder.name}, aligned by the real face",
            "lpips": self.lpips_name,
        }

    def __call__(self, made: Tensor, real: Tensor, landmarks: Tensor) -> dict[str, Tensor]:
        """LPIPS, landmark distances and identity (B,) of frames (B,3,H,W) uint8; see `common.clip_scores.Likeness`."""
        seen = self.look(real, landmarks)
        values = self._faces(made, seen)[0]
        if self.lpips is not None:
            boxes = mouth_boxes(landmarks, *real.shape[-2:])
            both = image_quality(made, real, boxes, lpips=self.lpips)
            values |= {name: both[name] for name in ("lpips", "mouth_lpips")}
        return values

    def look(self, real: Tensor, landmarks: Tensor) -> Look:
        """Study real frames (B,3,H,W) uint8 with landmarks (B,68,2) px, once for all that are compared with them."""
        return Look(real, landmarks, self._landmarks(real, landmarks), self._identity(real, landmarks))

    def compare(self, made: Tensor, seen: Look, masks: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Figures (B,) of drawn frames (B,3,H,W) uint8 and their landmarks (B,68,2).

        `psnr`, `ssim`, `lpips` of the whole picture; `mouth_*` in the box of the real mouth; `hidden_psnr` and
        `hidden_ssim` inside masks (B,1,H,W), where they are 0.5 or more; `lmd`, `mouth_lmd`, `mouth_lmd_centred` in px
        at `STATED`; `csim`.
        """
        boxes = mouth_boxes(seen.landmarks, *made.shape[-2:])
        values = image_quality(made, seen.images, boxes, lpips=self.lpips)
        first, second, hidden = quantise(made), quantise(seen.images), masks >= 0.5
        values |= {"hidden_psnr": psnr(first, second, hidden), "hidden_ssim": ssim(first, second, hidden)}
        more, found = self._faces(made, seen)
        return values | more, found

    def mouths(self, seen: Look) -> Tensor:
        """(B,1,H,W) bool: the boxes of the real mouths."""
        size = seen.images.shape[-2:]
        return box_masks(mouth_boxes(seen.landmarks, *size), *size)

    def _faces(self, made: Tensor, seen: Look) -> tuple[dict[str, Tensor], Tensor]:
        found = self._landmarks(made, seen.landmarks)
        away = landmark_distance(found, seen.found, STATED / max(made.shape[-2:]))
        values = {name: away[name] for name in ("lmd", "mouth_lmd", "mouth_lmd_centred")}
        return values | {"csim": csim(self._identity(made, seen.landmarks), seen.identity)}, found

    def _landmarks(self, images: Tensor, landmarks: Tensor) -> Tensor:
        pictures, boxes = _pictures(images), face_boxes(landmarks.numpy())
        found = [self.backend.landmarks(picture, box) for picture, box in zip(pictures, boxes, strict=True)]
        return torch.from_numpy(np.stack(found))

    def _identity(self, images: Tensor, landmarks: Tensor) -> Tensor:
        return self.embedder.embed(list(_pictures(images)), list(landmarks.numpy()))


def face_boxes(landmarks: np.ndarray) -> np.ndarray:
    """Boxes (B,4) x0, y0, x1, y1 as dlib's detector frames faces with landmarks (B,68,2)."""
    low, high = landmarks.min(axis=1), landmarks.max(axis=1)
    width, middle = high[:, 0] - low[:, 0], (low[:, 0] + high[:, 0]) / 2
    side, top = _BOX_SIDE * width, low[:, 1] - _BOX_UP * width
    return np.stack([middle - side / 2, top, middle + side / 2, top + side], axis=1)


def _pictures(images: Tensor) -> np.ndarray:
    """(B,3,H,W) uint8 -> (B,H,W,3)."""
    return np.ascontiguousarray(images.permute(0, 2, 3, 1).numpy())
