"""Convolutions whose second derivatives cost as little as their first.

PyTorch's own double backward of a convolution computes the weight gradient with a convolution whose kernel is as
large as the image, and loops over groups. The scalar <g, conv(x, w)> is linear in each of g, x and w, so convolution
(its derivative by g) and the two gradients (by x and by w) are each other's derivatives: any order of differentiation
needs these operators only, on every device.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

_skip_weight_gradients = False


@contextmanager
def input_gradients_only() -> Iterator[None]:
    """Inside, backward passes leave out weight gradients of `convolve`.

    A Python autograd function cannot see that `torch.autograd.grad(y, x)` asks for x alone, and would compute the
    weight gradients as well. The flag is global because CUDA's backward runs on a thread of its own.
    """
    global _skip_weight_gradients
    before, _skip_weight_gradients = _skip_weight_gradients, True
    try:
        yield
    finally:
        _skip_weight_gradients = before


@dataclass(frozen=True)
class Geometry:
    """Stride, zero padding and groups of a convolution, equal on both axes; `transposed` reverses its direction."""

    stride: int = 1
    padding: int = 0
    groups: int = 1
    transposed: bool = False

    def arguments(self) -> tuple[Any, ...]:
        """The geometry as PyTorch's own convolution operators take it."""
        return [self.stride] * 2, [self.padding] * 2, [1, 1], self.transposed, [0, 0], self.groups


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, geometry: Geometry) -> Tensor:
    """As `F.conv2d`, or `F.conv_transpose2d` with a transposed geometry: same layouts, values and gradients.

    (B, in, H, W), weight (out, in / groups, k, k) (transposed: (in, out / groups, k, k)) -> (B, out, H', W').
    """
    return _Convolve.apply(x, weight, bias, geometry)


class _Convolve(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.geometry = geometry
        return torch.ops.aten.convolution(x, weight, bias, *geometry.arguments())

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        wanted = list(ctx.needs_input_grad[:3])
        if _skip_weight_gradients:
            wanted[1:] = False, False
        return *_Gradients.apply(cotangents[0], x, weight, wanted, ctx.geometry), None


class _Gradients(Function):
    """(g, x, w) -> gradients of <g, conv(x, w) + b> by x, w and b; those not in `wanted` are None."""

    @staticmethod
    def forward(
        ctx: Any, g: Tensor, x: Tensor, weight: Tensor, wanted: list[bool], geometry: Geometry
    ) -> tuple[Tensor | None, ...]:
        ctx.save_for_backward(g, x, weight)
        ctx.geometry = geometry
        ctx.set_materialize_grads(False)
        sizes = [weight.shape[1] * geometry.groups if geometry.transposed else weight.shape[0]]
        return torch.ops.aten.convolution_backward(g, x, weight, sizes, *geometry.arguments(), wanted)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        by_x, by_weight, by_bias = cotangents
        g, x, weight = ctx.saved_tensors
        geometry, needed = ctx.geometry, ctx.needs_input_grad
        dg: Tensor | None = None
        dx: Tensor | None = None
        dweight: Tensor | None = None
        if needed[0]:
            terms = [] if by_bias is None else [by_bias[:, None, None].expand_as(g)]
            terms += [] if by_x is None else [_Convolve.apply(by_x, weight, None, geometry)]
            terms += [] if by_weight is None else [_Convolve.apply(x, by_weight, None, geometry)]
            dg = sum(terms[1:], terms[0]) if terms else None
        if needed[1] and by_weight is not None:
            dx = _Gradients.apply(g, x, by_weight, [True, False, False], geometry)[0]
        if needed[2] and by_x is not None:
            dweight = _Gradients.apply(g, by_x, weight, [False, True, False], geometry)[1]
        return dg, dx, dweight, None, None
