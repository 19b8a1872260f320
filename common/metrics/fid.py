"""FID and KID over a named, injectable feature extractor; every result carries the name and both counts.

A figure is comparable only with figures of the same extractor and, since FID is biased in N, of the same N
(Heusel et al. 2017, TTUR; Binkowski et al. 2018, Demystifying MMD GANs).
"""

import contextlib
import io
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from common.errors import UserError
from common.metrics.estimate import Estimate, plain
from common.metrics.gather import fill_empty, joined, no_rows
from common.weights import fetch_weights, find_weights, load_state

if TYPE_CHECKING:
    from common.faces import IdentityEmbedder

_NORMAL_95 = 1.959964  # two-sided 95 % quantile of the normal distribution


class FeatureExtractor(nn.Module):
    """A frozen network with a name: images (B,3,H,W) in [-1,1] to features (B,num_features).

    The network is no registered submodule: a metric inside a LightningModule then adds nothing to checkpoints,
    optimisers and parameter counts. It follows to devices but stays in float32 and out of autocast, so that the
    figure does not depend on the training's precision. Rows of images that are not finite become NaN.
    """

    device_anchor: Tensor

    def __init__(self, name: str, num_features: int, network: nn.Module) -> None:
        super().__init__()
        self.name = name
        self.num_features = num_features
        self.register_buffer("device_anchor", torch.zeros(0), persistent=False)
        self._frozen = [network.eval().requires_grad_(False)]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "FeatureExtractor":
        super()._apply(fn, recurse)
        self._frozen[0].to(self.device_anchor.device)
        return self

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Features (B,num_features) float32 of images (B,3,H,W) in [-1,1]."""
        finite = images.isfinite().flatten(1).all(dim=1)
        with torch.autocast(images.device.type, enabled=False):
            features: Tensor = self._frozen[0](images.float().nan_to_num()).float()
        return features.masked_fill(~finite.to(features.device)[:, None], torch.nan)


def to_uint8(images: Tensor) -> Tensor:
    """Images in [-1,1] to bytes, rounded to the nearest; values outside are clipped."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


class _Inception(nn.Module):
    """The Inception network of 2015 with its own TensorFlow-1 resize to 299 px; pool3, 2048 features."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        load_state(path)  # torch-fidelity unpickles without restriction: refuse a file with code before it does
        with contextlib.redirect_stdout(io.StringIO()):
            try:
                self.network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], str(path))
            except RuntimeError as error:
                raise UserError(f"{path} does not fit the 2015 Inception network: {str(error)[:200]}") from error

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.network(to_uint8(images))[0]
        return features


class _Embedder(nn.Module):
    """An identity embedder, which takes byte images on the CPU, as a feature network."""

    def __init__(self, embedder: "IdentityEmbedder") -> None:
        super().__init__()
        self.embedder = embedder

    def forward(self, images: Tensor) -> Tensor:
        crops = to_uint8(images).permute(0, 2, 3, 1).cpu().numpy()
        return self.embedder.embed(list(crops)).to(images.device)


def inception_extractor(path: Path | None = None, *, fetch: bool = True) -> FeatureExtractor:
    """`inception2015`: the published weights from `path`, the weights folder or, with `fetch`, the network.

    Raises:
        UserError: the weights are nowhere (says what to put where), damaged, or of another network.
    """
    found = find_weights("inception2015", path) if path is not None or not fetch else fetch_weights("inception2015")
    return FeatureExtractor("inception2015", 2048, _Inception(found))


def embedder_extractor(embedder: "IdentityEmbedder") -> FeatureExtractor:
    """Identity embeddings as features: needs no download, but measures faces only, so its name must be shown."""
    return FeatureExtractor(embedder.name, embedder.dim, _Embedder(embedder))


def load_extractor(name: str) -> FeatureExtractor:
    """`inception2015`, `dlib` (packaged identity network), or `auto`: Inception where its file is present, else dlib.

    Raises:
        UserError: unknown name, or weights that cannot be had.
    """
    if name == "auto":
        try:
            return inception_extractor(fetch=False)
        except UserError:
            name = "dlib"
    if name == "inception2015":
        return inception_extractor()
    if name == "dlib":
        from common.faces import load_embedder

        return embedder_extractor(load_embedder("dlib"))
    raise UserError(f"unknown feature extractor {name!r}; known: inception2015, dlib, auto")


def extract(extractor: FeatureExtractor, batches: Iterable[Tensor]) -> Tensor:
    """Features (N,D) float32 on the CPU of batches of images (B,3,H,W) in [-1,1]; (0,D) for none."""
    rows = [extractor(batch).cpu() for batch in batches]
    return torch.cat(rows) if rows else torch.zeros(0, extractor.num_features)


def frechet_distance(mean1: Tensor, cov1: Tensor, mean2: Tensor, cov2: Tensor) -> Tensor:
    """|m1-m2|² + Tr(S1 + S2 - 2 (S1 S2)^½) in float64; means (D,), covariances (D,D), which may be singular.

    With S = F Fᵀ the last trace is the sum of the singular values of F1ᵀ F2, which stays exact where the square
    root of the product (scipy's sqrtm) turns complex or diverges: fewer images than features.
    """
    mean1, cov1, mean2, cov2 = (tensor.double() for tensor in (mean1, cov1, mean2, cov2))
    cross = torch.linalg.svdvals(_factor(cov1).T @ _factor(cov2)).sum()
    distance = (mean1 - mean2).square().sum() + cov1.trace() + cov2.trace() - 2 * cross
    return distance.clamp(min=0)


def _factor(covariance: Tensor) -> Tensor:
    """F (D,r) with F Fᵀ = covariance; directions below the rounding noise of the largest are left out."""
    values, vectors = torch.linalg.eigh(covariance)
    keep = values > values[-1] * len(values) * torch.finfo(values.dtype).eps
    return vectors[:, keep] * values[keep].sqrt()


def _fid_update(features: Tensor) -> tuple[Tensor, Tensor, int]:
    """Sum (D,), sum of outer products (D,D) and count of features (N,D), in float64."""
    wide = features.double()
    return wide.sum(dim=0), wide.T @ wide, len(wide)


def _fid_compute(real: tuple[Tensor, Tensor, int], fake: tuple[Tensor, Tensor, int]) -> Tensor:
    """Fréchet distance of two sets' sums (see `_fid_update`); NaN where a set has fewer than 2 or broken rows."""
    moments: list[Tensor] = []
    for total, outer, count in (real, fake):
        if count < 2 or not outer.isfinite().all():
            return torch.full((), torch.nan, dtype=torch.float64, device=total.device)
        mean = total / count
        moments += [mean, (outer - count * torch.outer(mean, mean)) / (count - 1)]
    return frechet_distance(*moments)


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _kernel_sums(x: Tensor, y: Tensor, *, same: bool, rows: int = 1024) -> tuple[Tensor, Tensor]:
    """Row sums (N,) and column sums (M,) of the kernel matrix, without the diagonal where the sets are the same."""
    row_sums, column_sums = [], torch.zeros(len(y), dtype=y.dtype, device=y.device)
    for start in range(0, len(x), rows):
        block = _kernel(x[start : start + rows], y)
        if same:
            block.diagonal(offset=start).zero_()
        row_sums.append(block.sum(dim=1))
        column_sums += block.sum(dim=0)
    return torch.cat(row_sums), column_sums


def _kid_compute(real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
    """Unbiased squared MMD with the cubic kernel (x·y/D + 1)³ over all of both sets, and its standard error.

    The whole sets are used instead of random subsets, which has the same expectation and less variance. The error
    is the two-sample jackknife's, in closed form from the kernel's row sums; NaN below 3 samples.
    """
    real, fake = real.double(), fake.double()
    m, n = len(real), len(fake)
    if min(m, n) < 2:
        missing = torch.full((), torch.nan, dtype=torch.float64, device=real.device)
        return missing, missing
    xx, _ = _kernel_sums(real, real, same=True)
    yy, _ = _kernel_sums(fake, fake, same=True)
    xy, yx = _kernel_sums(real, fake, same=False)
    within_x, within_y = xx.sum() / (m * (m - 1)), yy.sum() / (n * (n - 1))
    value = within_x + within_y - 2 * xy.sum() / (m * n)
    if min(m, n) < 3:
        return value, value.new_tensor(torch.nan)
    without_x = (xx.sum() - 2 * xx) / ((m - 1) * (m - 2)) + within_y - 2 * (xy.sum() - xy) / ((m - 1) * n)
    without_y = (yy.sum() - 2 * yy) / ((n - 1) * (n - 2)) + within_x - 2 * (yx.sum() - yx) / (m * (n - 1))
    variance = sum((len(w) - 1) / len(w) * (w - w.mean()).square().sum() for w in (without_x, without_y))
    return value, torch.as_tensor(variance).sqrt()


class FrechetDistance(FrechetInceptionDistance):
    """FID as a metric that is reduced over ranks; `update(images in [-1,1], real=...)`, `compute()` in float64.

    `compute` gives NaN below 2 images per set. `reset_real_features=False` keeps the real side over epochs.
    """

    def __init__(self, extractor: FeatureExtractor, *, reset_real_features: bool = True, **kwargs: Any) -> None:
        super().__init__(feature=extractor, reset_real_features=reset_real_features, normalize=True, **kwargs)
        self.name = f"fid[{extractor.name}]"

    def compute(self) -> Tensor:
        """The distance, by the decomposition that stays exact for singular covariances."""
        real = (self.real_features_sum, self.real_features_cov_sum, int(self.real_features_num_samples))
        fake = (self.fake_features_sum, self.fake_features_cov_sum, int(self.fake_features_num_samples))
        return _fid_compute(real, fake)


class KernelDistance(KernelInceptionDistance):
    """KID as a metric that is gathered over ranks; `compute()` gives (value, standard error) over the whole sets."""

    def __init__(self, extractor: FeatureExtractor, *, reset_real_features: bool = True, **kwargs: Any) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*will save all extracted features.*")
            super().__init__(feature=extractor, reset_real_features=reset_real_features, normalize=True, **kwargs)
        self.name = f"kid[{extractor.name}]"
        self.width = extractor.num_features
        for side in ("real_features", "fake_features"):  # torchmetrics' own states need equal batch counts per rank
            self.add_state(side, default=[], dist_reduce_fx="cat")

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Gather over ranks, some of which may have seen nothing."""
        fill_empty(self, {"real_features": no_rows(self.width), "fake_features": no_rows(self.width)})
        super().sync(*args, **kwargs)

    def compute(self) -> tuple[Tensor, Tensor]:
        """Unbiased squared MMD and its jackknife standard error."""
        real, fake = joined(self.real_features), joined(self.fake_features)
        if real is None or fake is None:
            missing = torch.full((), torch.nan, dtype=torch.float64)
            return missing, missing
        return _kid_compute(real, fake)


@dataclass(frozen=True)
class QualityResult:
    """FID and KID of one pair of image sets under one extractor."""

    extractor: str
    features: int
    n_real: int
    n_fake: int
    fid: float | None
    kid: Estimate
    warnings: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for metrics.json; the metric's name carries the extractor, as in `fid[inception2015]`."""
        return {
            "extractor": self.extractor,
            "features": self.features,
            "n_real": self.n_real,
            "n_fake": self.n_fake,
            f"fid[{self.extractor}]": plain(self.fid),
            f"kid[{self.extractor}]": self.kid.to_dict(),
            "warnings": list(self.warnings),
        }


def image_quality(real: Tensor, fake: Tensor, extractor: str) -> QualityResult:
    """FID and KID (95 % jackknife interval) of features (N,D) and (M,D) that `extractor` (its name) made.

    Sets that are too small or not finite give None with the reason; a singular covariance is warned of.
    """
    counts = {"real": len(real), "fake": len(fake)}
    width = real.shape[1]
    broken = {side: int((~rows.isfinite()).any(dim=1).sum()) for side, rows in (("real", real), ("fake", fake))}
    notes = [f"{bad} of {counts[side]} {side} images are not finite" for side, bad in broken.items() if bad]
    notes += [f"{count} {side} image(s): at least 2 are needed" for side, count in counts.items() if count < 2]
    if notes:
        return QualityResult(extractor, width, len(real), len(fake), None, Estimate(None, reason=notes[0]), notes)
    notes = [
        f"{count} {side} images for {width} features: the covariance is singular and FID is biased upwards; "
        "compare only figures of the same counts, and prefer KID"
        for side, count in counts.items()
        if count <= width
    ]
    distance = float(_fid_compute(_fid_update(real), _fid_update(fake)))
    value, error = (float(number) for number in _kid_compute(real, fake))
    if min(counts.values()) < 3:
        kid = Estimate(value, n=min(counts.values()), reason="no interval below 3 images")
    else:
        kid = Estimate(value, value - _NORMAL_95 * error, value + _NORMAL_95 * error, min(counts.values()))
    return QualityResult(extractor, width, len(real), len(fake), distance, kid, notes)
