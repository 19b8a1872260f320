"""The critic: shape, independence of samples, gradients of both orders."""

import pytest
import torch
from torch.nn import functional as F

from dubbing3d.networks import PatchCritic
from tests.dubbing3d.toy_networks import images, randomise, without_gradient


@pytest.mark.parametrize("size", [64, 96, 192])
def test_one_score_per_patch(size: int) -> None:
    assert PatchCritic(width=0.05, image_size=size)(images(2, 3, size, size)).shape == (2, 1, size // 16, size // 16)


def test_samples_do_not_see_each_other() -> None:
    torch.manual_seed(0)
    critic = PatchCritic(width=0.05, image_size=64)
    batch = images(3, 3, 64, 64)
    assert torch.allclose(critic(batch)[1:2], critic(batch[1:2]), atol=1e-6)


def test_every_parameter_learns() -> None:
    critic = PatchCritic(width=0.05, image_size=64)
    randomise(critic)
    critic(images(1, 3, 64, 64)).square().sum().backward()
    assert without_gradient(critic) == []


def test_it_is_the_plain_stack_of_convolutions() -> None:
    torch.manual_seed(0)
    critic = PatchCritic(width=0.05, image_size=64)
    x = batch = images(1, 3, 64, 64)
    for layer in critic.layers:
        x = F.leaky_relu(layer(x), 0.2)
    assert torch.allclose(critic.score(x), critic(batch), atol=1e-6)
