"""RBFIN and MSAF: a plain loop, ablations, sizes, gradients."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from dubbing3d.networks import MSAF, RBFIN
from dubbing3d.networks.texture import texture_channels
from tests.dubbing3d.toy_networks import images, randomise, without_gradient

WIDTH = 0.06


def textures(size: int, width: float = WIDTH) -> dict[str, Tensor]:
    sides = {"low": size // 4, "mid": size // 2, "high": size}
    return {name: images(1, c, sides[name], sides[name], seed=c) for name, c in texture_channels(width).items()}


@pytest.mark.parametrize("scale", ["learnable", "sigmoid", 0.5])
def test_msaf_equals_a_plain_loop(scale: Any) -> None:
    torch.manual_seed(0)
    block = MSAF(2, scale=scale)
    randomise(block)
    features, texture = images(1, 2, 3, 4), images(1, 2, 3, 4, seed=1)
    with torch.no_grad():
        out = block(features, texture)
    logits = block.scale_logits.tolist()
    weights = [math.exp(x) / sum(map(math.exp, logits)) for x in logits]
    sigma = 1 / (1 + math.exp(-block.scale.item())) if scale == "sigmoid" else block.scale.item()

    def seen(kernel: int, conv: Any, channel: int, i: int, j: int) -> float:
        total, half = conv.bias[channel].item(), kernel // 2
        for di in range(kernel):
            for dj in range(kernel):
                y, x = i + di - half, j + dj - half
                if 0 <= y < 3 and 0 <= x < 4:
                    total += conv.weight[channel, 0, di, dj].item() * texture[0, channel, y, x].item()
        return total

    gate = block.gate.weight.flatten().tolist()
    for i in range(3):
        for j in range(4):
            stack = [features[0, c, i, j].item() for c in range(2)]
            branches = [
                [seen(s, conv, c, i, j) for c in range(2)] for s, conv in zip((3, 5, 7), block.convs, strict=True)
            ]
            stack += [value for branch in branches for value in branch]
            mask = block.gate.bias.item() + sum(w * x for w, x in zip(gate, stack, strict=True))
            mask = 1 / (1 + math.exp(-mask))
            for c in range(2):
                mixed = sum(w * branch[c] for w, branch in zip(weights, branches, strict=True))
                assert out[0, c, i, j].item() == pytest.approx(stack[c] + sigma * mask * mixed, abs=1e-5)


def test_texture_comes_in_from_the_start_but_for_zero() -> None:
    features, texture = images(1, 4, 5, 5), images(1, 4, 5, 5, seed=1)

    def added(scale: Any) -> torch.Tensor:
        torch.manual_seed(0)
        return MSAF(4, scale=scale)(features, texture) - features

    assert added(1).abs().max() > 0.05
    assert torch.equal(added("learnable"), added(1))
    torch.testing.assert_close(added("sigmoid"), added(1) / (1 + math.exp(-4)), rtol=0, atol=1e-6)
    assert not added(0).any()


def test_a_constant_scale_is_not_learned() -> None:
    assert "scale" not in dict(MSAF(4, scale=1).named_parameters())
    assert "scale" in dict(MSAF(4, scale="sigmoid").named_parameters())


def test_full_convolutions_mix_channels() -> None:
    assert MSAF(4, depthwise=False).convs[2].weight.shape == (4, 4, 7, 7)
    assert MSAF(4).convs[2].weight.shape == (4, 1, 7, 7)


@pytest.mark.parametrize(("size", "halvings"), [(64, 4), (96, 5), (128, 5), (160, 5), (192, 6), (224, 5), (256, 6)])
def test_depth_goes_by_size(size: int, halvings: int) -> None:
    net = RBFIN(width=WIDTH, image_size=size)
    assert len(net.down) == halvings
    assert len(net.up) == halvings


@pytest.mark.parametrize("size", [64, 96])
def test_every_parameter_learns(size: int) -> None:
    torch.manual_seed(0)
    net = RBFIN(width=WIDTH, image_size=size, recurrent=True)
    randomise(net)
    crop = images(1, 3, size, size)
    halves = net(crop, images(1, 3, size, size, seed=1), crop, textures(size), previous=crop)
    assert halves.colour.shape == (1, 3, size, size)
    halves.over(crop).square().sum().backward()
    assert without_gradient(net) == []


@pytest.mark.parametrize(
    ("options", "used"),
    [
        ({}, {"low", "mid", "high"}),
        ({"scales": ("low",)}, {"low"}),
        ({"scales": ("high",)}, {"high"}),
        ({"msaf": False}, {"low", "mid", "high"}),
        ({"scale": 0.0}, set()),
        ({"texture": False}, set()),
        ({"depthwise": False}, {"low", "mid", "high"}),
    ],
    ids=["full", "low", "high", "plain", "scale 0", "no texture", "full convolutions"],
)
def test_textures_act_where_they_should(options: dict[str, Any], used: set[str]) -> None:
    torch.manual_seed(0)
    net = RBFIN(width=WIDTH, image_size=64, **options)
    randomise(net)
    crop, guide = images(1, 3, 64, 64), images(1, 3, 64, 64, seed=1)
    given = {name: x.requires_grad_() for name, x in textures(64).items()}
    net(crop, guide, crop, given).colour.square().sum().backward()
    assert {name for name, x in given.items() if x.grad is not None and x.grad.any()} == used


def test_the_recurrent_input_starts_without_effect() -> None:
    torch.manual_seed(0)
    net = RBFIN(width=WIDTH, image_size=64, recurrent=True).eval()
    crop, guide = images(1, 3, 64, 64), images(1, 3, 64, 64, seed=1)
    with torch.no_grad():
        alone = net(crop, guide, crop, textures(64))
        followed = net(crop, guide, crop, textures(64), previous=guide)
        assert torch.equal(alone.colour, followed.colour)
        randomise(net)
        assert not torch.equal(net(crop, guide, crop, textures(64), previous=guide).colour, alone.colour)


def test_wrong_use_is_named() -> None:
    crop = images(1, 3, 64, 64)
    net = RBFIN(width=WIDTH, image_size=64)
    with pytest.raises(ValueError, match="fuses textures and got none"):
        net(crop, crop, crop)
    with pytest.raises(ValueError, match="without the recurrent input"):
        net(crop, crop, crop, textures(64), previous=crop)
    with pytest.raises(ValueError, match=r"scales \['huge'\]"):
        RBFIN(scales=("huge",))
    with pytest.raises(ValueError, match="neither learnable nor sigmoid"):
        MSAF(2, scale="big")  # type: ignore[arg-type]
