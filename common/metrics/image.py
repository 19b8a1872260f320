"""How near generated frames are to the real ones: PSNR, SSIM, LPIPS and CSIM, on the whole crop and on the mouth.

Images are RGB and quantised to 8 bits first, as a file would hold them. "Whole crop" is the picture as it is given;
"mouth" is the box of the real frame's mouth landmarks (`mouth_boxes`). Figures of one size and crop compare with each
other only, so both belong beside them.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from common.metrics.means import FrameMeans

MOUTH = slice(48, 68)
"""The mouth among the 68 landmarks."""
MOUTH_MARGIN = 0.3
MAX_PSNR = 100.0
"""dB; what equal images count, since one infinite value would make the mean infinite."""
_SSIM_RADIUS = 5
_MOUTH_SIDE = 64


def quantise(images: Tensor) -> Tensor:
    """Images (B,3,H,W), uint8 or float in [-1,1], as float32 multiples of 1/255 in [0,1]."""
    if images.dtype == torch.uint8:
        return images.float() / 255
    return ((images.detach().float().clamp(-1, 1) + 1) * 127.5).round() / 255


def mouth_boxes(landmarks: Tensor, height: int, width: int, margin: float = MOUTH_MARGIN) -> Tensor:
    """Boxes (B,4) int64 x0, y0, x1, y1 (ends excluded) around the mouth of landmarks (B,68,2) in pixels.

    The box of points 48 to 67 is enlarged by `margin` of its width on every side, rounded outwards and cut at the
    picture's border. A frame whose mouth is unknown (NaN) or outside gets an empty box of zeros.
    """
    mouth = landmarks[:, MOUTH].double()
    low, high = mouth.amin(dim=1), mouth.amax(dim=1)
    pad = margin * (high[:, :1] - low[:, :1])
    limit = torch.tensor([width, height], dtype=torch.float64, device=landmarks.device)
    low = torch.minimum((low - pad).floor().clamp(min=0), limit)
    high = torch.minimum((high + pad).ceil().clamp(min=0), limit)
    boxes = torch.cat([low, high], dim=1)
    known = mouth.isfinite().flatten(1).all(dim=1) & (high > low).all(dim=1)
    return torch.where(known[:, None], boxes, 0.0).long()


def box_masks(boxes: Tensor, height: int, width: int) -> Tensor:
    """Masks (B,1,H,W) bool of boxes (B,4)."""
    x = torch.arange(width, device=boxes.device)
    y = torch.arange(height, device=boxes.device)
    x0, y0, x1, y1 = (boxes[:, i, None] for i in range(4))
    columns, rows = (x >= x0) & (x < x1), (y >= y0) & (y < y1)
    return (rows[:, :, None] & columns[:, None, :])[:, None]


def masked_mean(values: Tensor, masks: Tensor | None) -> Tensor:
    """Mean over channels and pixels of values (B,C,H,W), inside masks (B,1,H,W); NaN where a mask is empty."""
    if masks is None:
        return values.flatten(1).mean(dim=1)
    inside = masks.to(values.dtype)
    return (values * inside).flatten(1).sum(dim=1) / (inside.flatten(1).sum(dim=1) * values.shape[1])


def crop_boxes(images: Tensor, boxes: Tensor, side: int = _MOUTH_SIDE) -> Tensor:
    """The boxes (B,4) of images (B,C,H,W), resampled bilinearly to (B,C,side,side); zeros for empty boxes."""
    height, width = images.shape[-2:]
    centres = (torch.arange(side, device=images.device, dtype=images.dtype) + 0.5) / side
    x0, y0, x1, y1 = (boxes[:, i, None].to(images.dtype) for i in range(4))
    x = 2 * (x0 + centres * (x1 - x0)) / width - 1
    y = 2 * (y0 + centres * (y1 - y0)) / height - 1
    grid = torch.stack([x[:, None, :].expand(-1, side, -1), y[:, :, None].expand(-1, -1, side)], dim=-1)
    crops = F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
    empty = (boxes[:, 2] <= boxes[:, 0]) | (boxes[:, 3] <= boxes[:, 1])
    return crops.masked_fill(empty[:, None, None, None], 0.0)


def psnr(preds: Tensor, target: Tensor, masks: Tensor | None = None) -> Tensor:
    """Peak signal-to-noise ratio in dB (B,) of images in [0,1], over channels and pixels inside masks (B,1,H,W).

    Equal images count `MAX_PSNR`; an empty mask gives NaN.
    """
    error = masked_mean((preds - target).square(), masks)
    return (-10 * error.clamp(min=10 ** (-MAX_PSNR / 10)).log10()).masked_fill(error.isnan(), torch.nan)


def ssim(preds: Tensor, target: Tensor, masks: Tensor | None = None) -> Tensor:
    """Structural similarity (B,) of images in [0,1], mean over channels (Wang et al. 2004; 11x11 Gaussian, sigma 1.5).

    As in scikit-image, the outermost 5 pixels, whose windows leave the picture, do not count. With masks (B,1,H,W) the
    map is averaged inside them; windows at a mask's rim look beyond it. An empty mask gives NaN.

    Raises:
        ValueError: a side under 11 px.
    """
    if min(preds.shape[-2:]) <= 2 * _SSIM_RADIUS:
        raise ValueError(f"SSIM needs at least 11 px a side, not {tuple(preds.shape[-2:])}")
    _, full = structural_similarity_index_measure(preds, target, data_range=1.0, return_full_image=True)
    inner = (..., slice(_SSIM_RADIUS, -_SSIM_RADIUS), slice(_SSIM_RADIUS, -_SSIM_RADIUS))
    return masked_mean(full[inner], None if masks is None else masks[inner])


def csim(generated: Tensor, real: Tensor) -> Tensor:
    """Cosine (B,) of identity embeddings (B,D) of generated and real frames; NaN for rows that are zero or not finite.

    The embedder decides the figure: name it beside the value.
    """
    first, second = generated.double(), real.double()
    lengths = first.norm(dim=1) * second.norm(dim=1)
    cosine = (first * second).sum(dim=1) / lengths
    return cosine.masked_fill(~lengths.isfinite() | (lengths <= 1e-12), torch.nan)


def image_quality(
    preds: Tensor,
    target: Tensor,
    boxes: Tensor | None = None,
    *,
    lpips: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> dict[str, Tensor]:
    """Figures (B,) of generated against real frames (B,3,H,W), uint8 or float in [-1,1].

    Args:
        preds: generated frames.
        target: real frames of the same size.
        boxes: mouth boxes (B,4); adds `mouth_*`. PSNR and SSIM are taken inside the box at the picture's own
            resolution, LPIPS from the box resampled to 64 px.
        lpips: distance of images in [-1,1], `common.metrics.path_length.lpips_distance("alex")`; adds `lpips`.

    Raises:
        ValueError: sizes differ.
    """
    if preds.shape != target.shape or preds.dim() != 4 or preds.shape[1] != 3:
        raise ValueError(f"expected two batches (B,3,H,W), got {tuple(preds.shape)} and {tuple(target.shape)}")
    first, second = quantise(preds), quantise(target)
    values = {"psnr": psnr(first, second), "ssim": ssim(first, second)}
    if lpips is not None:
        values["lpips"] = lpips(2 * first - 1, 2 * second - 1)
    if boxes is None:
        return values
    masks = box_masks(boxes, *preds.shape[-2:])
    values |= {"mouth_psnr": psnr(first, second, masks), "mouth_ssim": ssim(first, second, masks)}
    if lpips is not None:
        crops = [crop_boxes(2 * images - 1, boxes) for images in (first, second)]
        known = masks.flatten(1).any(dim=1)
        values["mouth_lpips"] = lpips(*crops).masked_fill(~known, torch.nan)
    return values


class ImageQuality(FrameMeans):
    """`psnr`, `ssim`, `lpips` and `mouth_*` over frames: `update(preds, target, landmarks, clips)`.

    Args:
        lpips: see `image_quality`; without it there is no LPIPS. It adds nothing to checkpoints.
        mouth: whether landmarks will be given.
    """

    def __init__(
        self, *, lpips: Callable[[Tensor, Tensor], Tensor] | None = None, mouth: bool = True, **kwargs: Any
    ) -> None:
        names = ["psnr", "ssim", *(["lpips"] if lpips is not None else [])]
        super().__init__(names + [f"mouth_{name}" for name in names if mouth], **kwargs)
        self._lpips = [lpips]
        self.mouth = mouth

    def update(
        self, preds: Tensor, target: Tensor, landmarks: Tensor | None = None, clips: Tensor | int | None = None
    ) -> None:
        """Add frames (B,3,H,W), uint8 or in [-1,1], with the real frames' landmarks (B,68,2) in pixels."""
        boxes = None
        if self.mouth:
            if landmarks is None:
                raise ValueError("mouth figures need the real frames' landmarks")
            boxes = mouth_boxes(landmarks, *preds.shape[-2:]).to(preds.device)
        self.add(image_quality(preds, target, boxes, lpips=self._lpips[0]), clips)


class CosineSimilarity(FrameMeans):
    """`csim` over frames: `update(generated, real, clips)` takes embeddings (B,D) of one embedder."""

    def __init__(self, embedder: str, **kwargs: Any) -> None:
        super().__init__(["csim"], **kwargs)
        self.embedder = embedder

    def update(self, generated: Tensor, real: Tensor, clips: Tensor | int | None = None) -> None:
        """Add embeddings (B,D) of generated frames and of the real ones at the same times."""
        self.add({"csim": csim(generated, real)}, clips)
