"""Attention blocks against loops and formulas written from their equations."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from common.attention import (
    ChannelAttention,
    ChannelSpatialAttention,
    EfficientMultiScaleAttention,
    LocalCrossModalAttention,
    Residual,
    SelfAttention2d,
    SpatialAttention,
    SqueezeExcitation,
)
from common.losses import path_lengths, r1_penalty


def randomise(module: nn.Module, scale: float = 0.5) -> None:
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=scale)


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def softmax(values: list[float]) -> list[float]:
    weights = [math.exp(v) for v in values]
    return [w / sum(weights) for w in weights]


def test_squeeze_excitation_equals_a_plain_loop() -> None:
    torch.manual_seed(0)
    block = SqueezeExcitation(6, reduction=3)
    x = torch.randn(2, 6, 3, 5)
    out = block(x)
    for b in range(2):
        pooled = [float(x[b, c].mean()) for c in range(6)]
        hidden = [
            max(0.0, sum(w * p for w, p in zip(row, pooled, strict=True))) for row in block.squeeze.weight.tolist()
        ]
        for c, row in enumerate(block.excite.weight.tolist()):
            weight = sigmoid(sum(w * h for w, h in zip(row, hidden, strict=True)))
            torch.testing.assert_close(out[b, c], x[b, c] * weight)
    with pytest.raises(ValueError, match="channels >= reduction"):
        SqueezeExcitation(8)


def loop_group(x: list[list[list[float]]], block: EfficientMultiScaleAttention) -> list[list[float]]:
    """Weights (H, W) of one group x (C, H, W) in double precision, straight from the equations."""
    channels, height, width = len(x), len(x[0]), len(x[0][0])
    mix, mix_bias = block.strips.weight.flatten(1).tolist(), block.strips.bias.tolist()
    kernel, kernel_bias = block.neighbourhood.weight.tolist(), block.neighbourhood.bias.tolist()
    over_w = [[sum(x[c][i]) / width for i in range(height)] for c in range(channels)]
    over_h = [[sum(x[c][i][j] for i in range(height)) / height for j in range(width)] for c in range(channels)]
    x_h = [
        [mix_bias[o] + sum(mix[o][c] * over_w[c][i] for c in range(channels)) for i in range(height)]
        for o in range(channels)
    ]
    x_w = [
        [mix_bias[o] + sum(mix[o][c] * over_h[c][j] for c in range(channels)) for j in range(width)]
        for o in range(channels)
    ]
    first, second = [], []
    for o in range(channels):
        gated = [[x[o][i][j] * sigmoid(x_h[o][i]) * sigmoid(x_w[o][j]) for j in range(width)] for i in range(height)]
        mean = sum(map(sum, gated)) / (height * width)
        variance = sum((v - mean) ** 2 for row in gated for v in row) / (height * width)
        scale, shift = block.norm.weight[o].item(), block.norm.bias[o].item()
        first.append([[(v - mean) / math.sqrt(variance + 1e-5) * scale + shift for v in row] for row in gated])
        plane = [[kernel_bias[o]] * width for _ in range(height)]
        for i in range(height):
            for j in range(width):
                for c in range(channels):
                    for di in (-1, 0, 1):
                        for dj in (-1, 0, 1):
                            if 0 <= i + di < height and 0 <= j + dj < width:
                                plane[i][j] += kernel[o][c][di + 1][dj + 1] * x[c][i + di][j + dj]
        second.append(plane)
    p_first, p_second = (
        softmax([sum(map(sum, plane)) / (height * width) for plane in maps]) for maps in (first, second)
    )
    return [
        [
            sigmoid(sum(p_first[c] * second[c][i][j] + p_second[c] * first[c][i][j] for c in range(channels)))
            for j in range(width)
        ]
        for i in range(height)
    ]


@pytest.mark.parametrize(("channels", "factor", "height", "width"), [(6, 2, 3, 5), (4, 4, 4, 1), (8, 1, 1, 3)])
def test_efficient_multi_scale_attention_equals_its_equations(
    channels: int, factor: int, height: int, width: int
) -> None:
    torch.manual_seed(1)
    block = EfficientMultiScaleAttention(channels, factor)
    randomise(block)
    x = torch.rand(2, channels, height, width) * 2 - 1
    grouped = x.reshape(2 * factor, channels // factor, height, width)
    weights = torch.tensor([loop_group(group, block) for group in grouped.tolist()], dtype=torch.float64)
    expected = (grouped.double() * weights[:, None]).reshape(x.shape)
    torch.testing.assert_close(block(x).double(), expected, rtol=0, atol=2e-7)
    torch.testing.assert_close(block.double()(x.double()), expected, rtol=0, atol=1e-12)


def test_efficient_multi_scale_attention_has_the_published_size() -> None:
    assert sum(p.numel() for p in EfficientMultiScaleAttention(64, 32).parameters()) == 48
    assert sum(p.numel() for p in EfficientMultiScaleAttention(64).parameters()) == 672


@pytest.mark.parametrize(("channels", "factor"), [(12, 8), (4, 8), (0, 8), (8, 0)])
def test_channels_that_do_not_divide_are_refused(channels: int, factor: int) -> None:
    with pytest.raises(ValueError, match=f"{channels} channels into {factor} groups"):
        EfficientMultiScaleAttention(channels, factor)


def plain_attention(block: SelfAttention2d, x: Tensor) -> Tensor:
    """o_j = sum_i softmax_i(f(x_i) . g(x_j)) h(x_i), position by position."""
    f, g, h = ((conv.weight.flatten(1) @ x.flatten(2)) for conv in (block.key, block.query, block.value))
    out = torch.zeros_like(h)
    for j in range(h.shape[2]):
        scores = torch.einsum("bci,bc->bi", f, g[:, :, j])
        weights = scores.exp() / scores.exp().sum(dim=1, keepdim=True)
        out[:, :, j] = torch.einsum("bi,bci->bc", weights, h)
    return x + block.gamma * out.reshape(x.shape)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("spectral_norm", [True, False])
def test_self_attention_equals_the_plain_formula(spectral_norm: bool, fused: bool) -> None:
    torch.manual_seed(2)
    block = SelfAttention2d(16, reduction=4, spectral_norm=spectral_norm).eval()
    nn.init.constant_(block.gamma, 0.7)
    x = torch.randn(3, 16, 5, 7)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION if fused else SDPBackend.MATH):
        out = block(x)
    torch.testing.assert_close(out, plain_attention(block, x), rtol=1e-5, atol=1e-5)


def test_self_attention_starts_as_the_identity_and_learns() -> None:
    torch.manual_seed(3)
    block = SelfAttention2d(8, spectral_norm=True)
    x = torch.randn(2, 8, 4, 4)
    torch.testing.assert_close(block(x), x)
    block(x).square().sum().backward()
    assert float(block.gamma.grad.abs()) > 0
    nn.init.ones_(block.gamma)
    block(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in block.parameters())
    singular = torch.linalg.matrix_norm(block.eval().value.weight.flatten(1), ord=2)
    assert 0.8 < singular.item() < 1.3
    with pytest.raises(ValueError, match="channels >= reduction"):
        SelfAttention2d(4)


def test_self_attention_differentiates_twice_under_the_math_kernel() -> None:
    torch.manual_seed(4)
    block = SelfAttention2d(4, reduction=2).double()
    nn.init.ones_(block.gamma)
    x = torch.randn(1, 4, 2, 3, dtype=torch.float64, requires_grad=True)
    with sdpa_kernel(SDPBackend.MATH):
        assert torch.autograd.gradgradcheck(block, (x,))
        r1 = r1_penalty(lambda images: block(images).square().sum(dim=(1, 2, 3)), x.detach())
        ws = torch.randn(2, 1, 24, dtype=torch.float64)
        lengths = path_lengths(lambda w: block(w.reshape(2, 4, 2, 3)), ws)
    (r1 + lengths.sum()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in block.parameters())


def channel_weights(block: ChannelAttention, x: Tensor) -> list[float]:
    """Paper 3, eqs. 4 and 5, for one map (C, H, W)."""
    height, width = x.shape[1:]
    pooled = [sum(map(sum, plane)) / (height * width) for plane in x.tolist()]
    hidden = [
        max(0.0, sum(w * p for w, p in zip(row, pooled, strict=True)) + bias)
        for row, bias in zip(block.squeeze.weight.flatten(1).tolist(), block.squeeze.bias.tolist(), strict=True)
    ]
    return [
        sigmoid(sum(w * h for w, h in zip(row, hidden, strict=True)) + bias)
        for row, bias in zip(block.excite.weight.flatten(1).tolist(), block.excite.bias.tolist(), strict=True)
    ]


def spatial_weights(block: SpatialAttention, x: Tensor) -> list[list[float]]:
    """Paper 3, eqs. 6 to 9, for one map (C, H, W)."""
    channels, height, width = x.shape
    values, reach = x.tolist(), block.conv.padding[0]
    planes = [
        [[max(values[c][i][j] for c in range(channels)) for j in range(width)] for i in range(height)],
        [[sum(values[c][i][j] for c in range(channels)) / channels for j in range(width)] for i in range(height)],
    ]
    kernel, bias = block.conv.weight[0].tolist(), block.conv.bias.item()

    def at(i: int, j: int) -> float:
        return bias + sum(
            kernel[p][di + reach][dj + reach] * planes[p][i + di][j + dj]
            for p in range(2)
            for di in range(-reach, reach + 1)
            for dj in range(-reach, reach + 1)
            if 0 <= i + di < height and 0 <= j + dj < width
        )

    return [[sigmoid(at(i, j)) for j in range(width)] for i in range(height)]


FACTORS = {"none": lambda gate: gate, "add": lambda gate: 1 + gate, "identity_init": lambda gate: 2 * gate}


@pytest.mark.parametrize("residual", ["none", "add", "identity_init"])
@pytest.mark.parametrize(("channels", "height", "width"), [(6, 3, 5), (9, 1, 1), (1, 8, 2)])
def test_gates_of_paper_3_equal_their_equations(residual: Residual, channels: int, height: int, width: int) -> None:
    torch.manual_seed(5)
    channel = ChannelAttention(channels, reduction=2, residual=residual).double()
    spatial = SpatialAttention(kernel=3, residual=residual).double()
    both = ChannelSpatialAttention(channels, reduction=2, kernel=3, residual=residual).double()
    for block in (channel, spatial, both):
        randomise(block)
    factor, x = FACTORS[residual], torch.randn(2, channels, height, width, dtype=torch.float64)
    for b in range(2):
        m_c = torch.tensor(channel_weights(channel, x[b]), dtype=torch.float64)[:, None, None]
        torch.testing.assert_close(channel(x)[b], x[b] * factor(m_c))
        m_s = torch.tensor(spatial_weights(spatial, x[b]), dtype=torch.float64)
        torch.testing.assert_close(spatial(x)[b], x[b] * factor(m_s))
        inner = (lambda gate: gate) if residual == "add" else factor
        first = x[b] * inner(torch.tensor(channel_weights(both.channel, x[b]), dtype=torch.float64)[:, None, None])
        second = first * inner(torch.tensor(spatial_weights(both.spatial, first), dtype=torch.float64))
        torch.testing.assert_close(both(x)[b], x[b] + second if residual == "add" else second)


def test_gates_of_paper_3_have_the_published_size() -> None:
    def size(block: nn.Module) -> int:
        return sum(parameter.numel() for parameter in block.parameters())

    assert size(ChannelAttention(256)) == 2 * 256 * 16 + 16 + 256
    assert size(ChannelAttention(32)) == 2 * 32 * 4 + 4 + 32  # never fewer than 4 hidden channels
    assert size(SpatialAttention()) == 2 * 49 + 1
    assert 2 * size(ChannelSpatialAttention(256)) + size(ChannelSpatialAttention(32)) == 17_517


@pytest.mark.parametrize("block", [ChannelAttention(8), SpatialAttention(), ChannelSpatialAttention(8)])
def test_gates_of_paper_3_scale_down_unless_they_start_as_the_identity(block: nn.Module) -> None:
    torch.manual_seed(6)
    x = torch.rand(4, 8, 6, 6) + 0.1
    assert (block(x) < x).all()
    options = {"residual": "identity_init"} | ({} if isinstance(block, SpatialAttention) else {"channels": 8})
    start = type(block)(**options)
    assert torch.equal(start(x), x)
    optimiser = torch.optim.SGD(start.parameters(), lr=1.0)
    for _ in range(2):
        optimiser.zero_grad()
        (start(x) * torch.linspace(-1, 1, 8)[:, None, None]).sum().backward()
        optimiser.step()
    assert not torch.equal(start(x), x)
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in start.parameters())


def test_gates_of_paper_3_refuse_what_they_cannot_be() -> None:
    with pytest.raises(ValueError, match="residual 'gated' is not one of none, add, identity_init"):
        ChannelAttention(8, residual="gated")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="odd kernel"):
        SpatialAttention(kernel=4)


@pytest.mark.parametrize(("steps", "k"), [(1, 2), (3, 2), (8, 2), (5, 0), (4, 7)])
def test_local_attention_equals_a_plain_loop(steps: int, k: int) -> None:
    torch.manual_seed(0)
    block = LocalCrossModalAttention(5, 3, 4, k=k)
    queries, values = torch.randn(2, steps, 5), torch.randn(2, steps, 3)
    block.requires_grad_(False)
    out, weights = block(queries, values), block.weights(queries, values)
    for batch in range(2):
        for t in range(steps):
            q = block.query.weight @ queries[batch, t]
            window = [tau for tau in range(t - k, t + k + 1) if 0 <= tau < steps]
            scores = [float(q @ (block.key.weight @ values[batch, tau])) / math.sqrt(4) for tau in window]
            expected = sum(
                w * (block.value.weight @ values[batch, tau]) for w, tau in zip(softmax(scores), window, strict=True)
            )
            assert torch.allclose(out[batch, t], expected, atol=1e-6)
            kept = [weights[batch, t, tau - t + k].item() for tau in window]
            assert kept == pytest.approx(softmax(scores), abs=1e-6)
            assert weights[batch, t].sum().item() == pytest.approx(1, abs=1e-6)


def test_local_attention_passes_gradcheck() -> None:
    torch.manual_seed(0)
    block = LocalCrossModalAttention(2, 3, 2, k=1).double()
    queries = torch.randn(1, 4, 2, dtype=torch.float64, requires_grad=True)
    values = torch.randn(1, 4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(block, (queries, values))


def test_local_attention_refuses_a_negative_window() -> None:
    with pytest.raises(ValueError, match="k >= 0"):
        LocalCrossModalAttention(2, 2, 2, k=-1)
