"""The convolution's values against PyTorch's own, and its first and second derivatives by finite differences."""

import pytest
import torch
from torch.nn import functional as F

from common.convolution import Geometry, convolve, input_gradients_only

GEOMETRIES = [
    Geometry(1, 1),
    Geometry(2, 0),
    Geometry(1, 1, groups=4),
    Geometry(2, 0, transposed=True),
    Geometry(1, 2, groups=2, transposed=True),
]


def inputs(geometry: Geometry) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    shapes = (2, 4, 5, 4), (4, 4 // geometry.groups, 3, 3), (4,)
    return tuple(torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_equals_pytorch_and_differentiates_twice(geometry: Geometry) -> None:
    x, weight, bias = inputs(geometry)
    own = F.conv_transpose2d if geometry.transposed else F.conv2d
    expected = own(x, weight, bias, stride=geometry.stride, padding=geometry.padding, groups=geometry.groups)
    torch.testing.assert_close(convolve(x, weight, bias, geometry=geometry), expected)

    def function(*args: torch.Tensor) -> torch.Tensor:
        return convolve(*args, geometry=geometry)

    assert torch.autograd.gradcheck(function, (x, weight, bias), fast_mode=True)
    assert torch.autograd.gradgradcheck(function, (x, weight, bias), fast_mode=True)


def test_a_penalty_on_the_input_gradient_has_the_full_weight_gradient() -> None:
    x, weight, bias = inputs(GEOMETRIES[0])

    def penalty_gradient(function: object) -> torch.Tensor:
        y = function(x, weight, bias).pow(3).sum()
        with input_gradients_only():
            (by_x,) = torch.autograd.grad(y, x, create_graph=True)
        return torch.autograd.grad(by_x.square().sum(), weight)[0]

    ours = penalty_gradient(lambda *args: convolve(*args, geometry=GEOMETRIES[0]))
    torch.testing.assert_close(ours, penalty_gradient(lambda *args: F.conv2d(*args, padding=1)))


def test_input_gradients_only_ends_with_its_block_even_after_an_error() -> None:
    x, weight, _ = inputs(GEOMETRIES[0])

    def backward_then_fail() -> None:
        with input_gradients_only():
            convolve(x, weight, geometry=GEOMETRIES[0]).sum().backward()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        backward_then_fail()
    assert x.grad is not None
    assert weight.grad is None
    convolve(x, weight, geometry=GEOMETRIES[0]).sum().backward()
    assert weight.grad is not None
