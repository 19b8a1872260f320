"""S3FD (Zhang et al. 2017) and FAN (Bulat and Tzimiropoulos 2017) from the package face_alignment, batched.

Only the package's networks and its box decoding are used. Its own entry point crops with whole-pixel corners and
truncates landmarks to whole pixels; here crops and landmarks are sub-pixel, and faces of all frames share a batch.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from common.errors import UserError
from common.faces.align import invert, to_tensor, warp
from common.faces.base import Face, largest_first
from common.faces.images import as_rgb
from common.faces.patch import Box, area
from common.weights import fetch_weights, find_weights, load_state

_CROP = 256
_HEATMAP = 64
_SMALLEST_SIDE = 64
"""S3FD halves five times; smaller pictures are padded with black."""
_NMS_OVERLAP = 0.3


class FaceAlignmentBackend:
    """Detects with S3FD, then regresses 68 heat maps per face with a four-stack FAN.

    Args:
        device: torch device of both networks.
        weights: folder with the two published files; None searches the weights folder, then downloads.
        batch_size: pictures per detector pass and faces per landmark pass.
        max_side: larger pictures are reduced to this for detection; landmarks come from the full resolution.
        threshold: smallest detector probability of a face.
        networks: detector and landmark network to use instead of the published ones.

    Raises:
        UserError: the package or the weights cannot be had; says which file goes where.
    """

    name = "face_alignment"

    def __init__(
        self,
        device: str = "cpu",
        weights: Path | None = None,
        *,
        batch_size: int = 16,
        max_side: int = 640,
        threshold: float = 0.5,
        networks: tuple[nn.Module, nn.Module] | None = None,
    ) -> None:
        self._library = _import_library()
        detector, landmarker = networks or _published_networks(self._library, weights)
        self._detector = detector.to(device).eval()
        self._landmarker = landmarker.to(device).eval()
        self.device, self.batch_size = device, batch_size
        self.max_side, self.threshold = max_side, threshold

    def detect(self, images: Sequence[np.ndarray]) -> list[list[Face]]:
        """See `FaceBackend.detect`. Pictures of one size share detector passes; all faces share landmark passes."""
        pictures = [as_rgb(image) for image in images]
        jobs: list[tuple[int, np.ndarray]] = []
        for chunk in _same_shape_chunks(pictures, self.batch_size):
            boxes = self._boxes([pictures[index] for index in chunk], self.max_side)
            jobs += [(index, box) for index, found in zip(chunk, boxes, strict=True) for box in found]
        faces: list[list[Face]] = [[] for _ in pictures]
        landmarks = self._landmarks_in_batches([(pictures[index], box) for index, box in jobs])
        for (index, box), points in zip(jobs, landmarks, strict=True):
            x0, y0, x1, y1, score = (float(value) for value in box)
            faces[index].append(Face((x0, y0, x1, y1), score, points))
        return [largest_first(found) for found in faces]

    def boxes(self, image: np.ndarray, max_side: int | None = None) -> list[tuple[Box, float]]:
        """See `FaceBackend.boxes`."""
        (found,) = self._boxes([as_rgb(image)], max_side or self.max_side)
        rows = (box.tolist() for box in found)
        boxes: list[tuple[Box, float]] = [((x0, y0, x1, y1), score) for x0, y0, x1, y1, score in rows]
        return sorted(boxes, key=lambda hit: (-area(hit[0]), -hit[1], hit[0]))

    def landmarks(self, image: np.ndarray, boxes: np.ndarray | Box) -> np.ndarray:
        """See `FaceBackend.landmarks`; all boxes of the picture share network passes."""
        flat = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
        points = self._landmarks_in_batches([(image, box) for box in flat])
        return np.array(points, dtype=np.float32).reshape(*np.shape(boxes)[:-1], 68, 2)

    def _landmarks_in_batches(self, faces: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[np.ndarray]:
        points: list[np.ndarray] = []
        for start in range(0, len(faces), self.batch_size):
            points += self._landmarks(faces[start : start + self.batch_size])
        return points

    @torch.inference_mode()
    def _boxes(self, pictures: Sequence[np.ndarray], max_side: int) -> list[list[np.ndarray]]:
        """Boxes x0, y0, x1, y1, score in pixels of each picture; all pictures have one shape."""
        height, width = pictures[0].shape[:2]
        scale = min(1.0, max_side / max(height, width))
        size = tuple(max(_SMALLEST_SIDE, round(side * scale)) for side in (height, width))
        matrices = np.repeat(np.array([[[scale, 0, 0], [0, scale, 0]]]), len(pictures), axis=0)
        batch = torch.cat([to_tensor(picture) for picture in pictures]).to(self.device)
        reduced = warp(batch, matrices, (size[0], size[1]), border="zeros")
        sfd = self._library.detection.sfd
        candidates = sfd.detect.batch_detect(self._detector, reduced, device=self.device)
        kept = []
        for boxes in candidates:
            best = boxes[sfd.bbox.nms(boxes, _NMS_OVERLAP)] if len(boxes) else boxes
            kept.append([box / [scale, scale, scale, scale, 1] for box in best if box[-1] > self.threshold])
        return kept

    @torch.inference_mode()
    def _landmarks(self, faces: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[np.ndarray]:
        """(68,2) float32 per picture and box, in pixels of the picture."""
        matrices = [_crop_matrix(box) for _, box in faces]
        crops = [
            warp(to_tensor(picture).to(self.device), matrix[None], (_CROP, _CROP), border="zeros")
            for (picture, _), matrix in zip(faces, matrices, strict=True)
        ]
        batch = torch.cat(crops) / 255
        flip = self._library.utils.flip
        # Averaging with the mirrored crop is how the package reports its accuracy.
        heatmaps = self._landmarker(batch)[-1] + flip(self._landmarker(flip(batch))[-1], is_label=True)
        points = decode_heatmaps(heatmaps).double().cpu().numpy() * (_CROP / _HEATMAP)
        back = [invert(matrix) for matrix in matrices]
        return [(p @ m[:, :2].T + m[:, 2]).astype(np.float32) for p, m in zip(points, back, strict=True)]


def decode_heatmaps(heatmaps: Tensor) -> Tensor:
    """Sub-pixel maxima: the vertex of the Gaussian through the highest cell and its neighbours on each axis.

    Args:
        heatmaps: (N,K,H,W); a Gaussian bump per map.

    Returns:
        (N,K,2) xy in continuous cells: the centre of cell (row i, column j) is (j + 0.5, i + 0.5).
    """
    height, width = heatmaps.shape[2:]
    flat = heatmaps.flatten(2).float()
    peak = flat.argmax(dim=2)
    row, column = peak // width, peak % width
    logarithm = flat.clamp(min=1e-8).log()

    def vertex(position: Tensor, last: int, stride: int) -> Tensor:
        inside = (position > 0) & (position < last)
        step = torch.where(inside, stride, 0)
        low, middle, high = (
            logarithm.gather(2, index[..., None])[..., 0] for index in (peak - step, peak, peak + step)
        )
        bend = low - 2 * middle + high
        shift = 0.5 * (low - high) / bend.clamp(max=-1e-6)
        return position + 0.5 + torch.where(inside, shift, 0.0).clamp(-0.5, 0.5)

    return torch.stack([vertex(column, width - 1, 1), vertex(row, height - 1, width)], dim=-1)


def _crop_matrix(box: np.ndarray) -> np.ndarray:
    """FAN's crop: 200/195 of the mean box side twice over, its centre raised by 12 % of the height."""
    x0, y0, x1, y1 = box[:4]
    side = 200 * (x1 - x0 + y1 - y0) / 195
    zoom = _CROP / side
    centre_x, centre_y = (x0 + x1) / 2, (y0 + y1) / 2 - 0.12 * (y1 - y0)
    return np.array([[zoom, 0, _CROP / 2 - zoom * centre_x], [0, zoom, _CROP / 2 - zoom * centre_y]])


def _same_shape_chunks(pictures: Sequence[np.ndarray], size: int) -> Iterator[list[int]]:
    """Indices of pictures of one shape, at most `size` together."""
    shapes: dict[tuple[int, ...], list[int]] = {}
    for index, picture in enumerate(pictures):
        shapes.setdefault(picture.shape, []).append(index)
    for indices in shapes.values():
        for start in range(0, len(indices), size):
            yield indices[start : start + size]


def _import_library() -> Any:
    try:
        import face_alignment
        import face_alignment.detection.sfd.detect
        import face_alignment.detection.sfd.net_s3fd
    except ImportError as error:
        raise UserError(
            f"the backend face_alignment cannot be imported ({error}); pip install face-alignment"
        ) from error
    return face_alignment


def _published_networks(library: Any, weights: Path | None) -> tuple[nn.Module, nn.Module]:
    """S3FD and the four-stack 2D FAN with their published weights."""
    networks: dict[str, nn.Module] = {"s3fd": library.detection.sfd.net_s3fd.s3fd(), "fan": library.models.FAN(4)}
    for name, network in networks.items():
        path = find_weights(name, weights) if weights else fetch_weights(name)
        try:
            network.load_state_dict(load_state(path))
        except RuntimeError as error:
            raise UserError(f"{path} does not fit the network {name}; get the published file again") from error
    return networks["s3fd"], networks["fan"]
