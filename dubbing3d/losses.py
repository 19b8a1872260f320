"""Losses of both stages (paper 4, eqs. 11 to 13 and 23 to 32), in at least float32, scalars unless said.

Where the paper contradicts itself or leaves something open, the default is what works, and a switch gives its letter:
`literal` sums where a mean is meant (eqs. 11, 12, 23), `balance=False` weighs two fakes against one real image
(eq. 26), `form="literal"` compares the flow network's features of single images (eq. 27). Weights that it does not
name are in `Weights`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor, nn

from common.losses import gradient_penalty, gram, perceptual_distance, structural_similarity, wasserstein_critic
from dubbing3d.networks.renderer import RenderOutput, TextureOutput
from dubbing3d.networks.warp import warp

SHAPE_WEIGHT = 0.5
"""lambda_shape of eq. 13."""
Correspondence = Literal["warp", "literal"]
StyleForm = Literal["paper", "mean"]


class FeatureJudge(Protocol):
    """A frozen network that sees features in images (B, 3, S, S) in [-1, 1], fine to coarse."""

    name: str

    def __call__(self, images: Tensor) -> list[Tensor]: ...


class FlowJudge(Protocol):
    """A frozen network that finds where pixels went; images (B, 3, S, S) in [-1, 1]."""

    name: str

    def __call__(self, first: Tensor, second: Tensor) -> Tensor:
        """(B, 2, S, S) in pixels, with warp(second, flow) close to first."""
        ...

    def features(self, images: Tensor) -> Tensor:
        """Features (B, C, H, W) of single images, those that are matched inside."""
        ...


@dataclass(frozen=True)
class Weights:
    """Weights of eqs. 26, 30 and 31, which the paper does not print; terms of weight 0 are not computed.

    `attention` and `variation` are GANimation's regularisers of the masks, mean and total variation, which the paper
    does not have.
    """

    ssim: float = 1.0
    perceptual: float = 0.1
    style: float = 10.0
    wgan: float = 0.01
    correspondence: float = 0.1
    penalty: float = 10.0
    attention: float = 0.0
    variation: float = 0.0


@dataclass(frozen=True)
class Forms:
    """How the equations are read; the defaults are explained at the functions."""

    literal_reconstruction: bool = False
    masked_texture: bool = True
    """The Omega_c of eq. 23, which the paper does not define: the hidden part of the crop; False: the whole image."""
    ssim_signed: bool = True
    style: StyleForm = "paper"
    correspondence: Correspondence = "warp"


def expression_loss(predicted: Tensor, true: Tensor, weights: Tensor | None = None, *, literal: bool = False) -> Tensor:
    """L1 norm of the error of coefficients (B, T, m), mean over frames (eq. 11).

    `weights` (B, T) of frames, such as 0 where no face was found. `literal` sums over time, as printed, so that longer
    sequences weigh more.
    """
    return _over_frames(_exact(predicted) - _exact(true), weights, literal)


def shape_loss(
    predicted: Tensor, true: Tensor, side: float, weights: Tensor | None = None, *, literal: bool = False
) -> Tensor:
    """L1 norm of the error of landmarks (B, T, 68, 2) in pixels of images of `side`, mean over frames (eq. 12).

    Divided by `side`: in pixels this term would be some twenty times that of eq. 11.
    """
    return _over_frames((_exact(predicted) - _exact(true)).flatten(2) / side, weights, literal)


def expression_total(expression: Tensor, shape: Tensor | float, *, weight: float = SHAPE_WEIGHT) -> Tensor:
    """L_exp + lambda_shape L_shape (eq. 13)."""
    return expression + weight * shape


def reconstruction(drawn: Tensor, real: Tensor, mask: Tensor | None = None, *, literal: bool = False) -> Tensor:
    """Mean absolute error of images (B, 3, S, S), inside masks (B, 1, S, S) in [0, 1] if given (eq. 23).

    `literal` is the L1 norm per sample: the sum over the image, or over channels and the mean over the mask.
    """
    error = (_exact(drawn) - _exact(real)).abs()
    if mask is None:
        return error.flatten(1).sum(dim=1).mean() if literal else error.mean()
    inside = _exact(mask)
    mean = (error * inside).sum() / (inside.sum() * error.shape[1]).clamp(min=1)
    return mean * error.shape[1] if literal else mean


def ssim_loss(drawn: Tensor, real: Tensor, *, signed: bool = True) -> Tensor:
    """1 - SSIM (eq. 24) of images in [-1, 1], taken as they are with a data range of 2; else brought to [0, 1]."""
    if signed:
        return 1 - structural_similarity(drawn, real, data_range=2.0)
    return 1 - structural_similarity((drawn + 1) / 2, (real + 1) / 2, data_range=1.0)


def style_loss(drawn: Sequence[Tensor], real: Sequence[Tensor], *, form: StyleForm = "paper") -> Tensor:
    """Absolute difference of Gram matrices, summed over layers, mean over samples (eq. 29).

    "paper" sums a layer's entries and divides by (C H W)^2, so that deep layers decide: their maps are small. "mean"
    takes the mean over the entries of F F^T / (C H W), as PIRender does.
    """
    if form not in get_args(StyleForm):
        raise ValueError(f"style {form!r} is not one of {', '.join(get_args(StyleForm))}")
    terms = []
    for a, b in zip(drawn, real, strict=True):
        error = (gram(a) - gram(b)).abs().flatten(1)
        terms.append((error.sum(dim=1) / a[0].numel()).mean() if form == "paper" else error.mean())
    return torch.stack(terms).sum()


def correspondence_loss(
    warped: Tensor, real: Tensor, judge: FlowJudge, *, form: Correspondence = "warp", keep: float = 0.1
) -> Tensor:
    """How far the warped reference is from the real image but for small shifts (eq. 27).

    Eq. 27 takes a flow network's output for one image, which it does not have. "warp" is the loss that the paper cites
    (Geng et al., 2022): each image is brought to the other along 1 - `keep` of the flow between them, found without
    gradient, and the root mean square differences of both directions are added. "literal" is the root mean square
    difference of the network's features of single images.
    """
    if form not in get_args(Correspondence):
        raise ValueError(f"correspondence {form!r} is not one of {', '.join(get_args(Correspondence))}")
    warped, real = _exact(warped), _exact(real)
    if form == "literal":
        with torch.no_grad():
            wanted = judge.features(real)
        return _root_mean_square(judge.features(warped), wanted)
    with torch.no_grad():
        there, back = _exact(judge(real, warped)), _exact(judge(warped, real))
    there, back = (1 - keep) * there, (1 - keep) * back
    forward = _root_mean_square(warp(warped, there, border="reflection"), real)
    return forward + _root_mean_square(warp(real, back, border="reflection"), warped)


@torch.no_grad()
def position_error(warped: Tensor, real: Tensor, judge: FlowJudge) -> Tensor:
    """Mean length in pixels of the flow between the warped reference and the real image, which eq. 27 forgives."""
    return _exact(judge(real, warped)).norm(dim=1).mean()


def attention_regulariser(attention: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and total variation (mean of squared steps) of masks (B, 1, S, S) (Pumarola et al., 2018)."""
    mask = _exact(attention)
    steps = mask.diff(dim=2).square().mean() + mask.diff(dim=3).square().mean()
    return mask.mean(), steps


def critic_loss(
    critic: nn.Module,
    real: Tensor,
    fakes: Sequence[Tensor],
    *,
    penalty: float = Weights.penalty,
    balance: bool = True,
    generator: torch.Generator | None = None,
) -> Tensor:
    """What the critic minimises on real images and on each kind of drawn ones (B, 3, S, S) (minus eq. 26).

    The gradient penalty is the mean over the kinds. With `balance` the fakes together weigh as much as the real images;
    eq. 26 as printed has one real term against two fakes, which a constant added to all scores lowers without bound.
    """
    scores = [critic(fake.detach()) for fake in fakes]
    loss = wasserstein_critic(critic(real), scores, balance=balance)
    if penalty:
        slopes = [gradient_penalty(critic, real, fake, generator=generator) for fake in fakes]
        loss = loss + penalty * torch.stack(slopes).mean()
    return loss


def texture_terms(
    output: TextureOutput | RenderOutput,
    real: Tensor,
    mask: Tensor,
    *,
    weights: Weights,
    forms: Forms,
    features: FeatureJudge | None,
    flow: FlowJudge | None,
    critic: nn.Module | None = None,
) -> dict[str, Tensor]:
    """The terms of L^e (eq. 31), each without its weight; `total` adds them up. See `inpainting_terms`."""
    where = mask if forms.masked_texture else None
    terms = {"rec": reconstruction(output.image_e, real, where, literal=forms.literal_reconstruction)}
    terms |= _shared_terms(output.image_e, real, weights, forms, critic)
    if weights.perceptual and features is not None:
        with torch.no_grad():
            wanted = features(real)
        terms["perceptual"] = perceptual_distance(features(output.image_e), wanted)
    if weights.correspondence and flow is not None:
        terms["correspondence"] = correspondence_loss(output.warp, real, flow, form=forms.correspondence)
    return terms | _mask_terms(output.attention_e, weights)


def inpainting_terms(
    output: RenderOutput,
    real: Tensor,
    *,
    weights: Weights,
    forms: Forms,
    features: FeatureJudge | None,
    critic: nn.Module | None = None,
) -> dict[str, Tensor]:
    """The terms of L^i (eq. 30), each without its weight.

    A term is absent where its weight is 0 or its judge None. The critic's parameters get gradients too: freeze them
    around this, or clear them before its own step.

    Args:
        output: of the renderer.
        real: I_t (B, 3, S, S).
        weights, forms: see there.
        features: for perceptual and style loss.
        critic: scores images.
    """
    terms = {"rec": reconstruction(output.image_i, real, literal=forms.literal_reconstruction)}
    terms |= _shared_terms(output.image_i, real, weights, forms, critic)
    if (weights.perceptual or weights.style) and features is not None:
        with torch.no_grad():
            wanted = features(real)
        seen = features(output.image_i)
        if weights.perceptual:
            terms["perceptual"] = perceptual_distance(seen, wanted)
        if weights.style:
            terms["style"] = style_loss(seen, wanted, form=forms.style)
    return terms | _mask_terms(output.attention_i, weights)


def total(terms: dict[str, Tensor], weights: Weights) -> Tensor:
    """The weighted sum of terms (eqs. 30 and 31); the reconstruction's weight is 1."""
    parts = [value * (1.0 if name == "rec" else getattr(weights, name)) for name, value in terms.items()]
    return torch.stack(parts).sum()


def renderer_total(inpainting: Tensor | float, texture: Tensor, epsilon: float) -> Tensor:
    """epsilon L^i + (1 - epsilon) L^e (eq. 32); epsilon is 0, .1, .2 in the three phases of training."""
    return epsilon * inpainting + (1 - epsilon) * texture


def _shared_terms(
    drawn: Tensor, real: Tensor, weights: Weights, forms: Forms, critic: nn.Module | None
) -> dict[str, Tensor]:
    terms = {}
    if weights.ssim:
        terms["ssim"] = ssim_loss(drawn, real, signed=forms.ssim_signed)
    if weights.wgan and critic is not None:
        terms["wgan"] = -_exact(critic(drawn)).mean()
    return terms


def _mask_terms(attention: Tensor | None, weights: Weights) -> dict[str, Tensor]:
    if attention is None or not (weights.attention or weights.variation):
        return {}
    mean, steps = attention_regulariser(attention)
    return {"attention": mean, "variation": steps}


def _over_frames(error: Tensor, weights: Tensor | None, literal: bool) -> Tensor:
    """L1 norm of (B, T, D), mean over frames, by weights (B, T) if given; or the sum over T and the mean over B."""
    if weights is None:
        weights = torch.ones_like(error[..., 0])
    # Frames without a face may hold NaN, which no weight of 0 would silence.
    norms = torch.where(weights[..., None] > 0, error, 0.0).abs().sum(dim=-1) * weights
    return norms.sum(dim=1).mean() if literal else norms.sum() / weights.sum().clamp(min=1e-8)


def _root_mean_square(a: Tensor, b: Tensor) -> Tensor:
    """Mean over samples of the root of the mean squared difference."""
    return ((_exact(a) - _exact(b)).square().flatten(1).mean(dim=1) + 1e-12).sqrt().mean()


def _exact(x: Tensor) -> Tensor:
    """At least float32: half types are widened, float64 is kept."""
    return x if x.dtype == torch.float64 else x.float()
