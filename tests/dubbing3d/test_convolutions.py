"""The cheaper forms of convolutions give what plain ones give, with the same gradients, for whole networks as well."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dubbing3d.networks import Renderer
from dubbing3d.networks.convolutions import GrowingConv2d, SlimConv2d, StackedConv2d
from tests.dubbing3d.toy_networks import images, randomise


def plain_stacked(conv: nn.Conv2d, *maps: Tensor) -> Tensor:
    return F.conv2d(torch.cat(maps, 1), conv.weight, conv.bias, conv.stride, conv.padding)


def plain_growing(conv: nn.Conv2d, small: Tensor, beside: Tensor) -> Tensor:
    return plain_stacked(conv, F.interpolate(small, scale_factor=2, mode="nearest"), beside)


CASES: dict[str, tuple[Callable[[], nn.Conv2d], Callable[..., Tensor], list[tuple[int, ...]]]] = {
    "stacked": (lambda: StackedConv2d(6, 2, 1), plain_stacked, [(2, 1, 5, 4), (2, 3, 5, 4), (2, 2, 5, 4)]),
    "stacked, strided": (lambda: StackedConv2d(4, 3, 3, 2, 1), plain_stacked, [(1, 1, 5, 7), (1, 3, 5, 7)]),
    "growing": (lambda: GrowingConv2d(5, 4), plain_growing, [(2, 3, 3, 5), (2, 2, 6, 10)]),
    "growing, biased": (lambda: GrowingConv2d(3, 2, bias=True), plain_growing, [(1, 1, 1, 2), (1, 2, 2, 4)]),
    "slim 7": (lambda: SlimConv2d(3, 2, 7), plain_stacked, [(2, 3, 9, 5)]),
    "slim, smaller than its kernel": (lambda: SlimConv2d(2, 1, 5), plain_stacked, [(1, 2, 2, 3)]),
}


@pytest.mark.parametrize("name", CASES)
def test_cheap_forms_are_plain_convolutions(name: str) -> None:
    build, plain, shapes = CASES[name]
    torch.manual_seed(0)
    conv = build().double()
    maps = [images(*shape, seed=seed).double().requires_grad_() for seed, shape in enumerate(shapes)]
    ours, expected = conv(*maps), plain(conv, *maps)
    torch.testing.assert_close(ours, expected)
    weight = images(*expected.shape, seed=9).double()
    wanted = [conv.weight, *maps] + ([] if conv.bias is None else [conv.bias])
    gradients = [torch.autograd.grad((result * weight).sum(), wanted) for result in (ours, expected)]
    for our, their in zip(*gradients, strict=True):
        torch.testing.assert_close(our, their)


@pytest.mark.parametrize("size", [64, 96])
def test_the_whole_renderer_equals_one_of_plain_convolutions(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net = Renderer(width=0.06, image_size=size).eval()
    randomise(net)
    inputs = [images(2, 3, size, size, seed=seed) for seed in range(3)]
    with torch.no_grad():
        ours = net(*inputs)
        for kind, plain in (
            (StackedConv2d, plain_stacked),
            (GrowingConv2d, plain_growing),
            (SlimConv2d, plain_stacked),
        ):
            monkeypatch.setattr(kind, "forward", plain)
        expected = net(*inputs)
    for name, our, their in zip(expected._fields, ours, expected, strict=True):
        assert (our - their).abs().max() < 1e-4, name
        assert not torch.equal(our, their) or name in ("flow", "weights", "warp"), name
