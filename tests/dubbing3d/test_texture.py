"""TMN: shapes, gradients, composition, and the influence of the render."""

import pytest
import torch

from dubbing3d.networks import TMN
from dubbing3d.networks.blocks import Halves
from tests.dubbing3d.toy_networks import images, randomise, without_gradient


@pytest.mark.parametrize(("size", "width"), [(64, 0.04), (96, 0.07)])
def test_colours_masks_and_features_by_scale(size: int, width: float) -> None:
    torch.manual_seed(0)
    net = TMN(width=width, image_size=size)
    (colour, attention), features = net(images(2, 3, size, size), images(2, 3, size, size, seed=1))
    assert colour.shape == (2, 3, size, size)
    assert attention.shape == (2, 1, size, size)
    assert colour.abs().max() < 1
    assert 0 < attention.min() <= attention.max() < 1
    assert {name: x.shape[2] for name, x in features.items()} == {"low": size // 4, "mid": size // 2, "high": size}


def test_every_parameter_learns() -> None:
    torch.manual_seed(0)
    net = TMN(width=0.06, image_size=64, guide_channels=4)
    randomise(net)
    warped = images(1, 3, 64, 64)
    halves, _ = net(warped, images(1, 4, 64, 64))
    halves.over(warped).square().sum().backward()
    assert without_gradient(net) == []


def test_attention_chooses_between_colour_and_picture() -> None:
    picture, colour = images(1, 3, 4, 4), images(1, 3, 4, 4, seed=1)
    for value, expected in ((0.0, picture), (1.0, colour), (0.25, 0.25 * colour + 0.75 * picture)):
        result = Halves(colour, torch.full((1, 1, 4, 4), value)).over(picture)
        assert torch.allclose(result, expected, atol=1e-6)


def test_the_render_modulates_every_scale() -> None:
    torch.manual_seed(0)
    net = TMN(width=0.06, image_size=64).eval()
    warped = images(1, 3, 64, 64)
    with torch.no_grad():
        first, second = (net(warped, images(1, 3, 64, 64, seed=seed)).features for seed in (1, 2))
    assert all(not torch.allclose(first[name], second[name]) for name in first)
