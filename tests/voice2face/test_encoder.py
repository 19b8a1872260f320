import pytest
import torch
from torch import nn

from common.attention import SqueezeExcitation
from voice2face.networks.encoder import VoiceEncoder


@pytest.mark.parametrize(
    ("attention", "activation", "count"),
    [("none", "relu", 11_432_896), ("none", "mish", 11_432_896), ("se", "mish", 11_519_936)],
)
def test_parameter_counts_of_the_published_variants(attention: str, activation: str, count: int) -> None:
    with torch.device("meta"):
        encoder = VoiceEncoder(in_channels=1, attention=attention, activation=activation)
    assert sum(p.numel() for p in encoder.parameters()) == count


def test_feature_maps_have_the_documented_sizes() -> None:
    with torch.device("meta"):
        encoder = VoiceEncoder(in_channels=1)
        stem = encoder.stem(torch.zeros(1, 1, 64, 300))
        assert stem.shape == (1, 64, 16, 75)
        assert encoder.blocks(stem).shape == (1, 512, 2, 10)


@pytest.mark.parametrize(("bands", "frames"), [(1, 1), (13, 7), (64, 301), (39, 2)])
def test_any_feature_size_gives_an_embedding(bands: int, frames: int) -> None:
    encoder = VoiceEncoder(in_channels=3, embedding_dim=5, width=16)
    assert encoder(torch.randn(2, 3, bands, frames)).shape == (2, 5)


def test_every_parameter_gets_a_gradient() -> None:
    encoder = VoiceEncoder(embedding_dim=8, width=16)
    encoder(torch.randn(3, 3, 20, 40)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in encoder.parameters())


def test_switches_change_the_layers() -> None:
    base = VoiceEncoder(width=16)
    plain = VoiceEncoder(width=16, attention="none", activation="relu")
    assert any(isinstance(m, nn.Mish) for m in base.modules())
    assert not any(isinstance(m, nn.Mish | SqueezeExcitation) for m in plain.modules())
    with pytest.raises(ValueError, match="unknown attention 'ema2'"):
        VoiceEncoder(attention="ema2")


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
            weight = 1 / (1 + 2.718281828459045 ** -sum(w * h for w, h in zip(row, hidden, strict=True)))
            torch.testing.assert_close(out[b, c], x[b, c] * weight)
    with pytest.raises(ValueError, match="channels >= reduction"):
        SqueezeExcitation(8)


def test_mish_is_the_papers_formula() -> None:
    x = torch.linspace(-20, 20, 101, dtype=torch.float64)
    torch.testing.assert_close(nn.Mish()(x), x * torch.tanh(torch.log1p(torch.exp(x))))
