"""Losses of the generator and of its judges (paper 3, eqs. 10 to 15; Wav2Lip). All in at least float32, all scalars."""

from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.losses import discriminator_logistic, generator_logistic

SYNC_WEIGHT, ADVERSARIAL_WEIGHT = 0.03, 0.07
"""w_s and w_g of paper 3 and of Wav2Lip with its discriminator."""
GATE = 0.75
"""Sync loss on validation data under which Wav2Lip begins to use it."""
MOUTH = ((0.55, 0.9), (0.25, 0.75))
"""Where the mouth is in a face crop, as shares of its height and width."""
_MARGIN = 1e-7

SyncForm = Literal["cosine", "sigmoid"]


def reconstruction(drawn: Tensor, real: Tensor, mouth: float = 0.0) -> Tensor:
    """Mean absolute difference of images (..., S, S) (eq. 10; the paper names no norm, Wav2Lip takes L1).

    `mouth` times the mean over `MOUTH` is added: the mouth has a twentieth of the face's pixels and all of what speech
    tells about it. 0 is the paper.
    """
    difference = (_exact(drawn) - _exact(real)).abs()
    if mouth == 0:
        return difference.mean()
    height, width = difference.shape[-2:]
    rows, columns = (slice(round(a * n), round(b * n)) for (a, b), n in zip(MOUTH, (height, width), strict=True))
    return difference.mean() + mouth * difference[..., rows, columns].mean()


def sync_probability(audio: Tensor, video: Tensor, form: SyncForm = "cosine") -> Tensor:
    """Probability (N,) that embeddings (N, D) belong together (eq. 11).

    "cosine" is the cosine itself, which the ReLUs at the expert's ends keep in [0, 1], clamped to [1e-7, 1 - 1e-7] so
    that no rounding makes a logarithm infinite. "sigmoid" takes the paper at its word, which calls the eps of eq. 11 a
    sigmoid: then P is in [.5, .731], the expert's loss cannot fall below .503, nor `sync_loss` below .313.
    """
    if form not in get_args(SyncForm):
        raise ValueError(f"sync_prob {form!r} is not one of {', '.join(get_args(SyncForm))}")
    with torch.autocast(audio.device.type, enabled=False):
        cosine = F.cosine_similarity(_exact(audio), _exact(video), dim=1)
        probability = cosine if form == "cosine" else cosine.sigmoid()
        return probability.clamp(_MARGIN, 1 - _MARGIN)


def sync_loss(probability: Tensor, matching: Tensor | None = None) -> Tensor:
    """Mean -log P of probabilities (N,) in (0, 1) (eq. 12), or the expert's binary cross-entropy.

    `matching` (N,), boolean or 0 and 1, says which pairs belong together; without it all should.
    """
    probability = _exact(probability)
    if matching is None:
        return -probability.log().mean()
    target = matching.to(probability)
    return -(target * probability.log() + (1 - target) * (1 - probability).log()).mean()


def generator_adversarial(fake: Tensor, *, saturating: bool = False) -> Tensor:
    """The generator's loss on logits of drawn faces.

    By default mean -log D, as in Wav2Lip. `saturating` is eq. 13, mean log(1 - D), whose slope vanishes where the
    discriminator is sure; both push the logits up.
    """
    return -F.softplus(_exact(fake)).mean() if saturating else generator_logistic(fake)


def discriminator_adversarial(real: Tensor, fake: Tensor) -> Tensor:
    """Minus eq. 14, to be minimised: mean -log D on logits of real faces plus mean -log(1 - D) on drawn ones."""
    return discriminator_logistic(real, fake)


def total(
    reconstructed: Tensor,
    sync: Tensor | float,
    adversarial: Tensor | float,
    *,
    sync_weight: Tensor | float = SYNC_WEIGHT,
    adversarial_weight: Tensor | float = ADVERSARIAL_WEIGHT,
) -> Tensor:
    """(1 - w_s - w_g) L_recon + w_s L_sync + w_g L_gen (eq. 15). Give `SyncGate()` as the weight of sync."""
    rest = 1 - sync_weight - adversarial_weight
    return rest * reconstructed + sync_weight * sync + adversarial_weight * adversarial


class SyncGate(nn.Module):
    """Weight of the sync loss: 0 until the generator syncs well enough on validation data, then `weight` for good.

    What it has seen is in its state, so that a resumed run goes on with the weight that it had. With
    `sync_prob="sigmoid"` the loss starts under the threshold, and the gate opens at the first validation.

    Args:
        weight: w_s once the gate is open.
        threshold: the gate opens where a validation's mean sync loss is below it.
        always_on: open from the start, as the paper, which mentions no gate, may be read.
    """

    opened: Tensor

    def __init__(self, weight: float = SYNC_WEIGHT, *, threshold: float = GATE, always_on: bool = False) -> None:
        super().__init__()
        self.weight, self.threshold, self.always_on = weight, threshold, always_on
        self.register_buffer("opened", torch.tensor(False))

    def forward(self) -> Tensor:
        """The weight as a float32 scalar on the gate's device."""
        return self.weight * (self.opened | self.always_on)

    @torch.no_grad()
    def update(self, loss: Tensor | float) -> None:
        """Note a validation's mean sync loss, the same number on all ranks; NaN opens nothing."""
        self.opened |= torch.as_tensor(loss, device=self.opened.device) < self.threshold


def _exact(x: Tensor) -> Tensor:
    """At least float32: half types are widened, float64 is kept."""
    return x if x.dtype == torch.float64 else x.float()
