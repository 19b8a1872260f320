"""Equalised layers and FIR resampling against zero insertion and scipy, for odd sizes and batches."""

import math

import numpy as np
import pytest
import torch
from scipy.signal import convolve2d

from common.layers import SPADE, Blur, EqualConv2d, EqualLinear, MinibatchStdDev, PixelNorm, upsample

FILTER = np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / 64


def upfirdn(
    plane: np.ndarray, *, up: int = 1, down: int = 1, pad: tuple[int, int] = (0, 0), gain: float = 1
) -> np.ndarray:
    """Insert zeros, pad, convolve with the full filter, drop samples: the definition, on one plane."""
    spread = np.zeros((plane.shape[0] * up, plane.shape[1] * up))
    spread[::up, ::up] = plane
    padded = np.pad(spread, pad)
    return convolve2d(padded, FILTER * gain, mode="valid")[::down, ::down]


def per_plane(x: torch.Tensor, **kwargs: object) -> torch.Tensor:
    planes = [[upfirdn(plane, **kwargs) for plane in sample] for sample in x.double().numpy()]
    return torch.tensor(np.array(planes), dtype=torch.float32)


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (7, 4)])
def test_upsample_is_zero_insertion_and_filter(size: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(upsample(x), per_plane(x, up=2, pad=(2, 1), gain=4))


@pytest.mark.parametrize(
    ("pad", "stride", "gain"), [((1, 1), 1, 4.0), ((2, 2), 1, 1.0), ((1, 1), 2, 1.0), ((0, 1), 1, 1.0)]
)
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_blur_is_the_filter_over_zero_padding(
    pad: tuple[int, int], stride: int, gain: float, memory: torch.memory_format
) -> None:
    x = torch.randn(2, 3, 9, 6, generator=torch.Generator().manual_seed(0)).contiguous(memory_format=memory)
    torch.testing.assert_close(Blur(pad, stride=stride, gain=gain)(x), per_plane(x, pad=pad, down=stride, gain=gain))


def test_resampling_differentiates_twice() -> None:
    x = torch.randn(1, 2, 4, 3, dtype=torch.float64, requires_grad=True)
    blur = Blur((2, 2)).double()
    for function in (upsample, blur):
        assert torch.autograd.gradcheck(function, x, fast_mode=True)
        assert torch.autograd.gradgradcheck(function, x, fast_mode=True)


def test_equal_linear_scales_at_run_time() -> None:
    layer = EqualLinear(16, 8, lr_mul=0.01, activation="lrelu", bias_init=0.5)
    x = torch.randn(3, 16)
    affine = x @ (layer.weight * 0.01 / 4).T + layer.bias * 0.01
    expected = torch.where(affine > 0, affine, 0.2 * affine) * math.sqrt(2)
    torch.testing.assert_close(layer(x), expected)
    assert layer.weight.std() > 50  # stored as unit Gaussian over lr_mul
    torch.testing.assert_close(layer.bias * 0.01, torch.full((8,), 0.5))


def test_equal_layers_keep_unit_variance() -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 256)
    assert EqualLinear(256, 256)(x).std().item() == pytest.approx(1, abs=0.05)
    image = torch.randn(2, 64, 16, 16)
    out = EqualConv2d(64, 64, 3)(image)[:, :, 1:-1, 1:-1]
    assert out.std().item() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("kernel", [1, 3, 4, 5])
def test_equal_conv_keeps_or_halves_size(kernel: int) -> None:
    x = torch.randn(1, 4, 8, 6)
    assert EqualConv2d(4, 5, kernel)(x).shape == (1, 5, 8, 6)
    assert EqualConv2d(4, 5, kernel, down=True)(x).shape == (1, 5, 4, 3)


def test_halving_convolution_is_filter_then_strided_convolution() -> None:
    layer = EqualConv2d(2, 3, 3, down=True, activation="lrelu", gain=math.sqrt(0.5))
    torch.nn.init.normal_(layer.bias)
    x = torch.randn(1, 2, 6, 6)
    blurred = per_plane(x, pad=(2, 2))[0].numpy()
    weight = layer.weight.detach().numpy() / math.sqrt(2 * 9)
    expected = np.zeros((3, 3, 3))
    for o, i, j in np.ndindex(3, 3, 3):
        expected[o, i, j] = (weight[o] * blurred[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3]).sum() + layer.bias[o].item()
    expected = np.where(expected > 0, expected, 0.2 * expected)  # gains sqrt(2) and sqrt(.5) cancel
    np.testing.assert_allclose(layer(x)[0].detach().numpy(), expected, atol=1e-5)


def test_halving_skip_is_filter_and_drop_then_mix() -> None:
    layer = EqualConv2d(2, 3, 1, bias=False, down=True, gain=math.sqrt(0.5))
    x = torch.randn(2, 2, 6, 8)
    kept = per_plane(x, pad=(1, 1), down=2)
    torch.testing.assert_close(layer(x), torch.einsum("oi,bihw->bohw", layer.weight[:, :, 0, 0] / 2, kept))


def test_clamp_bounds_the_activation_before_the_gain() -> None:
    layer = EqualConv2d(1, 1, 1, activation="lrelu", gain=0.5, clamp=2.0)
    torch.nn.init.ones_(layer.weight)
    assert layer(torch.full((1, 1, 1, 1), 1e4)).item() == pytest.approx(1.0)


@pytest.mark.parametrize(("batch", "group"), [(1, 1), (2, 2), (3, 3), (4, 4), (5, 5), (6, 3), (7, 7), (8, 4), (25, 5)])
def test_minibatch_deviation_takes_any_batch(batch: int, group: int) -> None:
    x = torch.randn(batch, 6, 3, 2, generator=torch.Generator().manual_seed(batch))
    layer = MinibatchStdDev(4, channels=2)
    assert layer.group(batch) == group
    out = layer(x)
    assert out.shape == (batch, 8, 3, 2)
    torch.testing.assert_close(out[:, :6], x)
    step = batch // group
    for n in range(batch):
        members = x[n % step :: step]
        deviation = (members.var(dim=0, correction=0) + 1e-8).sqrt()
        for channel in range(2):
            expected = deviation[3 * channel : 3 * channel + 3].mean()
            torch.testing.assert_close(out[n, 6 + channel], expected.expand(3, 2))


def test_pixel_norm_gives_unit_mean_square() -> None:
    y = PixelNorm()(torch.randn(3, 10, 2) * 7)
    torch.testing.assert_close(y.square().mean(dim=1), torch.ones(3, 2), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [(4, 4), (8, 8), (6, 3)])
def test_spade_equals_its_formula(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    block = SPADE(2, 3, hidden=4)
    x, condition = torch.randn(2, 2, *size) * 3 + 1, torch.randn(2, 3, 8, 8)
    out = block(x, condition)
    pooled = torch.nn.functional.adaptive_avg_pool2d(condition, size)
    modulation = block.modulation(block.shared(pooled).relu())
    for sample in range(2):
        for channel in range(2):
            plane = x[sample, channel]
            deviation = (plane.var(correction=0) + 1e-5).sqrt()
            gamma, beta = modulation[sample, channel], modulation[sample, 2 + channel]
            expected = (plane - plane.mean()) / deviation * (1 + gamma) + beta
            assert torch.allclose(out[sample, channel], expected, atol=1e-5)


def test_spade_follows_its_condition_in_space() -> None:
    torch.manual_seed(0)
    block = SPADE(2, 1, hidden=3)
    x, condition = torch.randn(1, 2, 9, 9), torch.zeros(1, 1, 9, 9)
    changed = condition.clone()
    changed[0, 0, 0, 0] = 5
    difference = (block(x, changed) - block(x, condition)).abs().amax(dim=(0, 1))
    assert difference[:3, :3].any()
    assert not difference[3:].any()


def test_spade_passes_gradcheck() -> None:
    torch.manual_seed(0)
    block = SPADE(1, 1, hidden=2).double()
    x, condition = (torch.randn(1, 1, 3, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(block, (x, condition))
