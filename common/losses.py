"""Losses that packages share: adversarial, gradient regularisers, contrastive, margin and image similarity losses.

Every function is pure, computes in at least float32 whatever the autocast state, and returns a scalar unless said.
Logits may have any shape.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.convolution import input_gradients_only


def _exact(x: Tensor) -> Tensor:
    """At least float32: half types are widened, float64 is kept."""
    return x if x.dtype == torch.float64 else x.float()


def generator_logistic(fake: Tensor) -> Tensor:
    """mean softplus(-D(G(z))): the generator's non-saturating side of the logistic game (Goodfellow et al., 2014)."""
    return F.softplus(-_exact(fake)).mean()


def discriminator_logistic(real: Tensor, fake: Tensor) -> Tensor:
    """mean softplus(D(G(z))) + mean softplus(-D(x))."""
    return F.softplus(_exact(fake)).mean() + F.softplus(-_exact(real)).mean()


def generator_bce(fake: Tensor) -> Tensor:
    """Binary cross-entropy of fake logits against "real"; as a function equal to `generator_logistic`."""
    return F.binary_cross_entropy_with_logits(_exact(fake), torch.ones_like(_exact(fake)))


def discriminator_bce(real: Tensor, fake: Tensor, *, smoothing: float = 0.0) -> Tensor:
    """Binary cross-entropy of the discriminator; `smoothing` lowers the target of real logits to 1 - smoothing."""
    real, fake = _exact(real), _exact(fake)
    target = torch.full_like(real, 1 - smoothing)
    return F.binary_cross_entropy_with_logits(real, target) + F.binary_cross_entropy_with_logits(
        fake, torch.zeros_like(fake)
    )


def generator_hinge(fake: Tensor) -> Tensor:
    """-mean D(G(z)) (Lim and Ye, 2017)."""
    return -_exact(fake).mean()


def discriminator_hinge(real: Tensor, fake: Tensor) -> Tensor:
    """mean max(0, 1 - D(x)) + mean max(0, 1 + D(G(z)))."""
    return F.relu(1 - _exact(real)).mean() + F.relu(1 + _exact(fake)).mean()


def r1_penalty(discriminator: Callable[[Tensor], Tensor], images: Tensor, gamma: float = 10.0) -> Tensor:
    """gamma / 2 times the mean over samples of ||d logits / d images||^2 (Mescheder et al., 2018).

    `discriminator` maps real images (B, ...) to logits, in float32 (`force_fp32` of StyleGAN2's). Differentiable by
    its parameters.
    """
    images = images.detach().requires_grad_()
    with torch.autocast(images.device.type, enabled=False):
        logits = discriminator(images)
        with input_gradients_only():
            (gradient,) = torch.autograd.grad(_exact(logits).sum(), images, create_graph=True)
        return _exact(gradient).square().flatten(1).sum(dim=1).mean() * (gamma / 2)


def wasserstein_critic(real: Tensor, fakes: Sequence[Tensor], *, balance: bool = True) -> Tensor:
    """What a Wasserstein critic minimises: mean of its scores of fakes minus that of real images (Arjovsky et al.).

    Several kinds of fakes are averaged, so that a constant added to all scores changes nothing. `balance=False` sums
    them: with two kinds the loss then falls without bound as the scores drift down.
    """
    fake = torch.stack([_exact(scores).mean() for scores in fakes]).sum()
    return (fake / len(fakes) if balance else fake) - _exact(real).mean()


def gradient_penalty(
    critic: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, *, generator: torch.Generator | None = None
) -> Tensor:
    """Mean over samples of (||d score / d x||_2 - 1)^2 between real and fake images (Gulrajani et al., 2017).

    x is drawn uniformly on the line between each pair of (B, ...). A critic that scores patches is judged by each
    sample's mean score. In float32 whatever the autocast state; differentiable by the critic's parameters.
    """
    with torch.autocast(real.device.type, enabled=False):
        real, fake = _exact(real.detach()), _exact(fake.detach())
        share = torch.rand(
            len(real), *[1] * (real.dim() - 1), generator=generator, dtype=real.dtype, device=real.device
        )
        between = torch.lerp(fake, real, share).requires_grad_()
        scores = critic(between).reshape(len(between), -1).mean(dim=1)
        with input_gradients_only():
            (gradient,) = torch.autograd.grad(_exact(scores).sum(), between, create_graph=True)
        # The tiny number keeps the slope finite where a critic is flat.
        return ((gradient.square().flatten(1).sum(dim=1) + 1e-16).sqrt() - 1).square().mean()


def structural_similarity(a: Tensor, b: Tensor, *, data_range: float) -> Tensor:
    """Mean SSIM of images (B, C, H, W), differentiable (Wang et al., 2004; 11x11 Gaussian of sigma 1.5, K .01 and .03).

    Only windows inside the picture count. In at least float32.

    Raises:
        ValueError: a side under 11 px.
    """
    radius = 5
    if min(a.shape[2:]) <= 2 * radius:
        raise ValueError(f"SSIM needs at least 11 px a side, not {tuple(a.shape[2:])}")
    with torch.autocast(a.device.type, enabled=False):
        a, b = _exact(a), _exact(b)
        taps = torch.arange(-radius, radius + 1, device=a.device, dtype=a.dtype)
        taps = torch.exp(-taps.square() / (2 * 1.5**2))
        taps = taps / taps.sum()
        planes = torch.cat([a, b, a * a, b * b, a * b]).flatten(0, 1)[:, None]
        means = F.conv2d(F.conv2d(planes, taps[None, None, None]), taps[None, None, :, None])
        mean_a, mean_b, aa, bb, ab = means.chunk(5)
        c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
        luminance = (2 * mean_a * mean_b + c1) / (mean_a.square() + mean_b.square() + c1)
        spread = aa - mean_a.square() + bb - mean_b.square()
        return (luminance * (2 * (ab - mean_a * mean_b) + c2) / (spread + c2)).mean()


def perceptual_distance(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """Sum over layers of the mean absolute difference of features (Johnson et al., 2016)."""
    return torch.stack([(_exact(x) - _exact(y)).abs().mean() for x, y in zip(a, b, strict=True)]).sum()


def gram(features: Tensor) -> Tensor:
    """F F^T of features (B, C, H, W), divided by C H W: (B, C, C), in at least float32."""
    with torch.autocast(features.device.type, enabled=False):
        flat = _exact(features).flatten(2) / math.sqrt(features[0].numel())
        return flat @ flat.mT


def path_lengths(synthesis: Callable[[Tensor], Tensor], ws: Tensor, noise: Tensor | None = None) -> Tensor:
    """Length of each sample's step in image space per step in W: (B,) (Karras et al., 2020, eq. 4).

    `synthesis` draws images (B, 3, H, W), in float32 and unfused, of ws (B, num_ws, w_dim), which may depend on the
    mapping network. y = `noise` / sqrt(H W) with unit Gaussian noise of the images' shape (drawn here when None);
    length = sqrt(mean over ws of ||J^T y||^2).
    """
    if not ws.requires_grad:
        ws = ws.detach().requires_grad_()
    with torch.autocast(ws.device.type, enabled=False):
        images = synthesis(ws)
        noise = torch.randn_like(images) if noise is None else noise
        projection = (_exact(images) * noise).sum() / math.sqrt(images.shape[-2] * images.shape[-1])
        with input_gradients_only():
            (gradient,) = torch.autograd.grad(projection, ws, create_graph=True)
        energy = _exact(gradient).square().sum(dim=2).mean(dim=1)
        return (energy + 1e-12).sqrt()  # finite slope where a generator ignores w


def path_length_penalty(
    synthesis: Callable[[Tensor], Tensor],
    ws: Tensor,
    mean: Tensor,
    *,
    noise: Tensor | None = None,
    decay: float = 0.01,
    reduce: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Mean squared deviation of path lengths from their running mean (unweighted), and the lengths (B,), detached.

    `mean` (scalar) first moves by `decay` towards this batch's mean length; the caller then keeps that value,
    `mean.lerp(reduce(lengths.mean()), decay)`. `reduce` averages over ranks, so that all of them have one mean. The
    mean is a constant of the loss: no gradient flows through it.
    """
    lengths = path_lengths(synthesis, ws, noise)
    batch_mean = lengths.detach().mean()
    if reduce is not None:
        batch_mean = reduce(batch_mean)
    target = mean.detach().to(lengths.dtype).lerp(batch_mean, decay)
    return (lengths - target).square().mean(), lengths.detach()


def info_nce(a: Tensor, b: Tensor, *, temperature: float = 0.07, identities: Tensor | None = None) -> Tensor:
    """Symmetric InfoNCE between matching rows of a and b (N, D) (van den Oord et al., 2018; Radford et al., 2021).

    Rows are normalised here; logits are cosines over `temperature`. With `identities` (N,), other rows of the same
    identity are left out of the negatives.
    """
    logits = F.normalize(_exact(a), dim=1) @ F.normalize(_exact(b), dim=1).t() / temperature
    if identities is not None:
        twins = identities[:, None] == identities[None]
        twins = twins & ~torch.eye(len(twins), dtype=torch.bool, device=twins.device)
        logits = logits.masked_fill(twins, -torch.inf)
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.t(), target)) / 2


class AMSoftmax(nn.Module):
    """Additive-margin softmax (Wang et al., 2018): cross-entropy of scale * (cosine - margin at the target)."""

    def __init__(self, dim: int, identities: int, *, margin: float = 0.35, scale: float = 30.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(F.normalize(torch.randn(identities, dim), dim=1))
        self.margin, self.scale = margin, scale

    def cosines(self, embedding: Tensor) -> Tensor:
        """(N, dim) -> (N, identities) in [-1, 1]."""
        return F.linear(F.normalize(_exact(embedding), dim=1), F.normalize(_exact(self.weight), dim=1))

    def forward(self, embedding: Tensor, target: Tensor) -> Tensor:
        """(N, dim) and int64 (N,) -> scalar."""
        cosines = self.cosines(embedding)
        shift = self.margin * F.one_hot(target, cosines.shape[1])
        return F.cross_entropy(self.scale * (cosines - shift), target)


def cosine_distance(a: Tensor, b: Tensor) -> Tensor:
    """mean (1 - cos(a, b)) over rows of (N, D): 0 for parallel rows, 2 for opposite ones."""
    return (1 - F.cosine_similarity(_exact(a), _exact(b), dim=1)).mean()
