"""Perceptual path length: how much an image changes per unit step between two latents (Karras et al. 2019, 2020).

PPL = mean of d(G(t), G(t + eps)) / eps², with linear interpolation in w. `ppl_wend` (path ends, face crop) and
`ppl2_wend` (no crop) are StyleGAN2's; the distance belongs to the name, since figures of different distances do
not compare.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.functional.image.lpips import _NoTrainLpips

from common.errors import UserError
from common.metrics.estimate import Estimate, cluster_bootstrap
from common.weights import fetch_weights, find_weights, load_state

EPSILON = 1e-4
_EVALUATION_SIZE = 256  # px: larger images are averaged down, as the official metric does


class ImageDistance(Protocol):
    """A named distance of two batches of images (B,3,H,W) in [-1,1]: (B,), growing with the square of the change."""

    name: str

    def __call__(self, first: Tensor, second: Tensor) -> Tensor: ...


class PixelDistance:
    """Mean squared difference over channels and pixels: the distance that needs no weights."""

    name = "pixel_l2"

    def __call__(self, first: Tensor, second: Tensor) -> Tensor:
        return (first - second).square().flatten(1).mean(dim=1)


class FeatureDistance:
    """Squared Euclidean distance of features (B,D); `features` must not quantise images, or the step is lost."""

    def __init__(self, name: str, features: Callable[[Tensor], Tensor]) -> None:
        self.name = f"feature_l2[{name}]"
        self.features = features

    def __call__(self, first: Tensor, second: Tensor) -> Tensor:
        return (self.features(first) - self.features(second)).square().sum(dim=1)


class LPIPSDistance(nn.Module):
    """LPIPS (Zhang et al. 2018), torchmetrics' network; images below 32 px a side are enlarged to it first."""

    def __init__(self, network: nn.Module, name: str) -> None:
        super().__init__()
        self.name = name
        self.network = network

    @torch.no_grad()
    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Distances (B,) of images (B,3,H,W) in [-1,1]."""
        height, width = first.shape[-2:]
        if min(height, width) < 32:
            size = (max(height, 32), max(width, 32))
            first, second = (F.interpolate(image, size, mode="bilinear") for image in (first, second))
        return self.network(first, second).flatten()


def lpips_distance(
    net: Literal["vgg", "alex"] = "vgg", backbone: Path | None = None, *, fetch: bool = True
) -> LPIPSDistance:
    """LPIPS with torchmetrics' packaged head and the torchvision backbone from a file or, with `fetch`, the network.

    Raises:
        UserError: the backbone's weights are nowhere (says what to put where) or of another network.
    """
    entry = {"vgg": "vgg16", "alex": "alexnet"}[net]
    path = find_weights(entry, backbone) if backbone is not None or not fetch else fetch_weights(entry)
    state = load_state(path)
    network = _NoTrainLpips(net=net, pnet_rand=True)  # "rand": leave out the download, the file comes below
    for name, parameter in network.net.named_parameters():
        index, kind = name.split(".")[-2:]  # slice3.10.weight holds torchvision's features.10.weight
        weight = state.get(f"features.{index}.{kind}")
        if weight is None or weight.shape != parameter.shape:
            raise UserError(
                f"{path} is no {entry} of torchvision: features.{index}.{kind} is missing or has another shape"
            )
        parameter.data.copy_(weight)
    return LPIPSDistance(network.eval(), f"lpips_{net}")


@dataclass(frozen=True)
class PathLengthResult:
    """One path length with the settings that define it."""

    distance: str
    length: Estimate
    epsilon: float
    sampling: str
    crop: bool
    pairs: int

    @property
    def name(self) -> str:
        """The published name with the distance: `ppl_wend[lpips_vgg]`, `ppl2_wend[...]`, `ppl_wfull[...]`."""
        return f"ppl{'' if self.crop else '2'}_w{self.sampling}[{self.distance}]"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for metrics.json."""
        return {
            self.name: self.length.to_dict(),
            "epsilon": self.epsilon,
            "sampling": self.sampling,
            "crop": self.crop,
            "pairs": self.pairs,
        }


def different_pairs(identities: Sequence[Any], count: int, seed: int = 0) -> Tensor:
    """Index pairs (count,2) of items with different identities, drawn with replacement: voices to go between.

    Raises:
        UserError: fewer than two identities.
    """
    _, labels = np.unique(np.asarray(identities), return_inverse=True)
    if len(set(labels.tolist())) < 2:
        raise UserError("path length goes between two voices: the set has fewer than two identities")
    generator = np.random.default_rng(seed)
    first = generator.integers(len(labels), size=count)
    # the n-th of the items of other identities, found without rejection so that the draw stays reproducible
    order = np.argsort(labels, kind="stable")
    counts = np.bincount(labels)
    starts = np.concatenate([[0], np.cumsum(counts)])[labels[first]]
    own = counts[labels[first]]
    drawn = (generator.random(count) * (len(labels) - own)).astype(np.int64)
    second = order[np.where(drawn >= starts, drawn + own, drawn)]
    return torch.from_numpy(np.stack([first, second], axis=1))


@torch.no_grad()
def path_length(
    synthesize: Callable[[Tensor], Tensor],
    starts: Tensor,
    ends: Tensor,
    distance: ImageDistance,
    *,
    epsilon: float = EPSILON,
    sampling: Literal["end", "full"] = "end",
    crop: bool = True,
    batch_size: int = 8,
    seed: int = 0,
) -> PathLengthResult:
    """Path length between latents `starts` and `ends` (N, ...) (W or W+) with a 95 % bootstrap interval.

    `synthesize` maps latents to images (B,3,H,W) in [-1,1] and must be deterministic: fixed noise. For a
    conditional generator the latents are those of two different voices (see `different_pairs`). `sampling`:
    "end" takes t = 0, "full" draws t in [0,1). `crop` keeps rows 3/8 to 7/8 and columns 2/8 to 6/8 (the face of an
    FFHQ frame). Values below the 1st and above the 99th percentile are dropped.

    Raises:
        ValueError: shapes differ, or `synthesize` gives two images for one latent.
    """
    if starts.shape != ends.shape or len(starts) == 0:
        raise ValueError(f"latents {tuple(starts.shape)} and {tuple(ends.shape)} must be equal and not empty")
    times = torch.zeros(len(starts), dtype=torch.float64)
    if sampling == "full":
        times = torch.rand(len(starts), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    probe = starts[:1]
    if not torch.equal(synthesize(probe), synthesize(probe)):
        raise ValueError("synthesize() is not deterministic: fix its noise, or the path length measures the noise")
    values: list[Tensor] = []
    for begin in range(0, len(starts), batch_size):
        piece = slice(begin, begin + batch_size)
        time = times[piece].to(starts.device)
        images = [_prepare(synthesize(_lerp(starts[piece], ends[piece], at)), crop) for at in (time, time + epsilon)]
        values.append((distance(images[0], images[1]).double() / epsilon**2).cpu())
    length = _path_length_compute(torch.cat(values).numpy(), seed)
    return PathLengthResult(distance.name, length, epsilon, sampling, crop, len(starts))


def _lerp(start: Tensor, end: Tensor, time: Tensor) -> Tensor:
    """start + time (end - start), in float64: in float32 a step of 1e-4 would lose half of its digits."""
    weight = time.view(-1, *[1] * (start.dim() - 1))
    return torch.lerp(start.double(), end.double(), weight).to(start.dtype)


def _prepare(images: Tensor, crop: bool) -> Tensor:
    height, width = images.shape[-2:]
    factor = min(height, width) // _EVALUATION_SIZE  # of the whole image, as in the official metric
    if crop:
        images = images[..., height // 8 * 3 : height // 8 * 7, width // 8 * 2 : width // 8 * 6]
    return F.avg_pool2d(images, factor) if factor > 1 else images


def _path_length_compute(values: np.ndarray[Any, np.dtype[np.float64]], seed: int) -> Estimate:
    """Mean without the tails beyond the 1st and 99th percentile; None where values are broken or all zero."""
    if not np.isfinite(values).all():
        return Estimate(None, reason=f"{int((~np.isfinite(values)).sum())} of {len(values)} distances are not finite")
    if not values.any():
        return Estimate(None, reason="no change at this epsilon: the distance quantises, or all latents are equal")
    low = np.percentile(values, 1, method="lower")
    high = np.percentile(values, 99, method="higher")
    kept = values[(values >= low) & (values <= high)]
    return cluster_bootstrap(kept, np.arange(len(kept)), seed=seed)
