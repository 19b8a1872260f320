"""The adversarial games by name, their discriminator's side in two parts, as the papers plot them."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from common.losses import generator_hinge, generator_logistic

Loss = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Game:
    """Scalar losses of logits of any shape; the discriminator minimises `real` + `fake`, the generator `drawn`."""

    real: Loss
    """of D on real faces"""
    fake: Loss
    """of D on portraits"""
    drawn: Loss
    """of G on portraits"""


def _logistic_fake(logits: Tensor) -> Tensor:
    """mean softplus(D(G(z))), paper 2, eq. 14."""
    return generator_logistic(-logits)


def _hinge_real(logits: Tensor) -> Tensor:
    """mean max(0, 1 - D(x)) (Lim and Ye, 2017)."""
    return F.relu(1 - logits.float()).mean()


def _hinge_fake(logits: Tensor) -> Tensor:
    """mean max(0, 1 + D(G(z)))."""
    return F.relu(1 + logits.float()).mean()


GAMES = {
    # softplus(-D) is G's loss on portraits and D's on real faces.
    "logistic": Game(real=generator_logistic, fake=_logistic_fake, drawn=generator_logistic),
    "hinge": Game(real=_hinge_real, fake=_hinge_fake, drawn=generator_hinge),
}
