"""How steady a video is: warping error, flicker, jerk of its landmarks, and LPIPS between frames, beside the real one.

A frozen or blurred video is the steadiest of all, so that warping error, flicker and jerk are read against the real
video's: a ratio of 1 is right, above it flickers, below it moves too little.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from common.metrics.estimate import Estimate
from common.metrics.gather import joined
from common.metrics.image import box_masks, masked_mean, mouth_boxes, quantise
from common.metrics.means import FrameMeans, ratio_of_means

Flow = Callable[[Tensor, Tensor], Tensor]
"""(first, second), each (B,3,H,W) in [0,1] -> displacement (B,2,H,W) in pixels, x before y: what lies at p in the first
lies at p + flow(p) in the second."""
_AT_ONCE = 16  # pairs of frames in work at a time, whatever the length of the clip


def warp_by_flow(images: Tensor, flow: Tensor) -> tuple[Tensor, Tensor]:
    """Fetch from images (B,C,H,W) what lies at p + flow(p), bilinearly; and where that is inside (B,1,H,W) bool."""
    height, width = images.shape[-2:]
    x = torch.arange(width, device=flow.device, dtype=flow.dtype) + flow[:, 0]
    y = torch.arange(height, device=flow.device, dtype=flow.dtype)[:, None] + flow[:, 1]
    grid = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], dim=-1)
    warped = F.grid_sample(images, grid.to(images.dtype), mode="bilinear", padding_mode="border", align_corners=False)
    return warped, ((x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1))[:, None]


def visible_in_both(forward: Tensor, backward: Tensor) -> Tensor:
    """Where a flow (B,2,H,W) can be trusted, (B,1,H,W) bool (Ruder et al. 2016, section 3.2; Sundaram et al. 2010).

    Left out are points that the backward flow does not bring back, |w + w'|² > 0.01 (|w|² + |w'|²) + 0.5, the edges of
    moving things, |∇u|² + |∇v|² > 0.01 |w|² + 0.002, and what leaves the picture.
    """
    returned, inside = warp_by_flow(backward, forward)
    gap = (forward + returned).square().sum(dim=1, keepdim=True)
    size = forward.square().sum(dim=1, keepdim=True)
    disoccluded = gap > 0.01 * (size + returned.square().sum(dim=1, keepdim=True)) + 0.5
    dx = F.pad(forward[..., :, 1:] - forward[..., :, :-1], (0, 1, 0, 0))
    dy = F.pad(forward[..., 1:, :] - forward[..., :-1, :], (0, 0, 0, 1))
    edge = (dx.square() + dy.square()).sum(dim=1, keepdim=True) > 0.01 * size + 0.002
    return inside & ~disoccluded & ~edge


def warping_error(video: Tensor, flow: Flow, real: Tensor | None = None, masks: Tensor | None = None) -> Tensor:
    """Mean squared difference (T-1,) of each frame and the next one warped back to it (Lai et al. 2018, E_warp).

    Args:
        video: frames (T,3,H,W), uint8 or float in [-1,1]; compared in [0,1], over channels and trusted pixels.
        flow: estimates the motion.
        real: the video whose motion is the truth; None takes the video's own.
        masks: (T,1,H,W) bool to look inside of, by the first frame of a pair.

    Returns:
        NaN where no pixel of a pair can be trusted.
    """
    frames = quantise(video)
    guide = frames if real is None else quantise(real)
    errors = []
    for start in range(0, len(frames) - 1, _AT_ONCE):
        end = min(start + _AT_ONCE, len(frames) - 1)
        here, there = slice(start, end), slice(start + 1, end + 1)
        forward, backward = flow(guide[here], guide[there]), flow(guide[there], guide[here])
        trusted = visible_in_both(forward, backward)
        trusted = trusted if masks is None else trusted & masks[here]
        warped, _ = warp_by_flow(frames[there], forward)
        errors.append(masked_mean((frames[here] - warped).square(), trusted))
    return torch.cat(errors) if errors else frames.new_zeros(0)


def flicker(video: Tensor, masks: Tensor | None = None) -> Tensor:
    """Mean |I[t-1] - 2 I[t] + I[t+1]| (T-2,) of frames (T,3,H,W), uint8 or in [-1,1], in units of full scale.

    Steady motion of brightness cancels, jumping to and fro does not. `masks` (T,1,H,W) are those of the middle frames.
    """
    values = []
    for start in range(0, len(video) - 2, _AT_ONCE):
        part = quantise(video[start : start + _AT_ONCE + 2])
        middle = None if masks is None else masks[start + 1 : start + len(part) - 1]
        values.append(masked_mean((part[:-2] - 2 * part[1:-1] + part[2:]).abs(), middle))
    return torch.cat(values) if values else torch.zeros(0, device=video.device)


def landmark_jerk(landmarks: Tensor, fps: float = 25.0) -> Tensor:
    """Mean over the points of the third difference's length (T-3,), times fps³: units per s³.

    `landmarks` (T,N,D) in pixels or, of a 3D model, decimetres; NaN in one of four frames gives NaN.
    """
    points = landmarks.double()
    third = points[3:] - 3 * points[2:-1] + 3 * points[1:-2] - points[:-3]
    return third.norm(dim=-1).mean(dim=-1) * fps**3


def temporal_lpips(video: Tensor, real: Tensor, distance: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """|d(g[t], g[t+1]) - d(r[t], r[t+1])| (T-1,) for frames in [-1,1] or uint8 (tLPIPS, Chu et al. 2020, TecoGAN)."""
    values = []
    for start in range(0, len(video) - 1, _AT_ONCE):
        steps = []
        for clip in (video, real):
            part = 2 * quantise(clip[start : start + _AT_ONCE + 1]) - 1
            steps.append(distance(part[:-1], part[1:]))
        values.append((steps[0] - steps[1]).abs())
    return torch.cat(values) if values else torch.zeros(0, device=video.device)


class TemporalConsistency(FrameMeans):
    """Warping error, flicker and jerk of generated and real clips, and their ratios: `update(video, real, ...)`.

    `compute` gives for each of `flicker`, `jerk` and, where there is a flow, `warp`: the generated clips' mean, the
    real ones' as `real_*`, and `*_ratio`. Images are judged on the whole crop, and in the mouth box as `mouth_*`.

    Args:
        flow: see `Flow`; estimated on the real clips. None leaves the warping error out.
        fps: frames per second of the clips.
    """

    def __init__(self, flow: Flow | None = None, fps: float = 25.0, **kwargs: Any) -> None:
        images = ["flicker", "mouth_flicker", *(["warp", "mouth_warp"] if flow is not None else [])]
        self.measured = [*images, "jerk"]
        super().__init__([name for base in self.measured for name in (base, f"real_{base}")], **kwargs)
        self._flow = [flow]
        self.fps = fps

    def update(self, video: Tensor, real: Tensor, points: Tensor, real_points: Tensor, clip: int) -> None:
        """Add a clip, or a stretch of one.

        Args:
            video: generated frames (T,3,H,W), uint8 or in [-1,1]; T of 4 at least.
            real: the real ones.
            points: landmarks (T,68,2) in pixels of the generated frames, NaN where there is no face.
            real_points: of the real ones; they place the mouth box of both.
            clip: its number, over all ranks.
        """
        if video.shape != real.shape or len(video) < 4:
            raise ValueError(f"expected two clips of 4 frames or more, got {tuple(video.shape)}, {tuple(real.shape)}")
        size = (video.shape[-2], video.shape[-1])
        masks = box_masks(mouth_boxes(real_points, *size).to(video.device), *size)
        values: dict[str, Tensor] = {}
        for prefix, frames, marks in (("", video, points), ("real_", real, real_points)):
            values[f"{prefix}flicker"] = flicker(frames)
            values[f"{prefix}mouth_flicker"] = flicker(frames, masks)
            values[f"{prefix}jerk"] = landmark_jerk(marks, self.fps)
            if (flow := self._flow[0]) is not None:
                values[f"{prefix}warp"] = warping_error(frames, flow, real)
                values[f"{prefix}mouth_warp"] = warping_error(frames, flow, real, masks)
        length = len(video)
        padded = {
            name: F.pad(row.to(video.device), (0, length - len(row)), value=torch.nan) for name, row in values.items()
        }
        self.add(padded, clip)

    def compute(self) -> dict[str, Tensor]:
        """Means and ratios as float64 scalars."""
        rows = joined(self.rows)
        means = super().compute()
        for name in self.measured:
            over, under = self._pair(rows, name) if rows is not None else (means[name], means[f"real_{name}"])
            both = ~(over.isnan() | under.isnan())
            means[f"{name}_ratio"] = over[both].double().sum() / under[both].double().sum()
        return means

    def estimates_of(self, rows: Tensor, clips: Tensor, *, samples: int, seed: int) -> dict[str, Estimate]:
        """Means and ratios with intervals over clips."""
        results = super().estimates_of(rows, clips, samples=samples, seed=seed)
        for name in self.measured:
            results[f"{name}_ratio"] = ratio_of_means(*self._pair(rows, name), clips, samples=samples, seed=seed)
        return results

    def _pair(self, rows: Tensor, name: str) -> tuple[Tensor, Tensor]:
        return rows[:, self.columns.index(name)], rows[:, self.columns.index(f"real_{name}")]


def _filled(row: Tensor, length: int) -> Tensor:
    """Differences are fewer than the frames; the rest is NaN."""
    return F.pad(row.double(), (0, length - len(row)), value=torch.nan)
