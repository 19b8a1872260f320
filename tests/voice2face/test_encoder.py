import pytest
import torch
from torch import nn

from common.attention import EfficientMultiScaleAttention, SqueezeExcitation
from voice2face.networks.encoder import VoiceEncoder


def parameters(**arguments: object) -> int:
    with torch.device("meta"):
        encoder = VoiceEncoder(in_channels=1, **arguments)
    return sum(p.numel() for p in encoder.parameters())


@pytest.mark.parametrize(
    ("attention", "activation", "count"),
    [("none", "relu", 11_432_896), ("none", "mish", 11_432_896), ("se", "mish", 11_519_936)],
)
def test_parameter_counts_of_the_published_variants(attention: str, activation: str, count: int) -> None:
    assert parameters(attention=attention, activation=activation) == count


@pytest.mark.parametrize(("factor", "every", "last"), [(32, 11_439_936, 11_436_416), (8, 11_542_656, 11_487_776)])
def test_parameter_counts_of_multi_scale_attention(factor: int, every: int, last: int) -> None:
    """The published counts are those of a block with attention in every residual block."""
    assert parameters(attention="ema", factor=factor, attention_blocks="every") == every
    assert parameters(attention="ema", factor=factor) == last


@pytest.mark.parametrize(("attention", "kind"), [("ema", EfficientMultiScaleAttention), ("se", SqueezeExcitation)])
def test_attention_sits_in_the_chosen_stages(attention: str, kind: type[nn.Module]) -> None:
    def places(**arguments: object) -> list[int]:
        with torch.device("meta"):
            encoder = VoiceEncoder(attention=attention, **arguments)
        return [i for i, block in enumerate(encoder.blocks) if isinstance(block.attention, kind)]

    assert places() == ([1, 3, 5, 7] if attention == "ema" else list(range(8)))
    assert places(attention_blocks="last", attention_stages=[3, 4]) == [5, 7]
    assert places(attention_blocks="every", attention_stages=[1]) == [0, 1]
    assert places(attention_stages=[]) == []


def test_attention_weighs_the_residual_before_the_addition() -> None:
    torch.manual_seed(0)
    block = VoiceEncoder(width=16, attention="ema", activation="relu").eval().blocks[1]
    x = torch.randn(2, 16, 5, 7)
    inner = block.bn2(block.conv2(block.bn1(block.conv1(x)).relu()))
    torch.testing.assert_close(block(x), (block.attention(inner) + x).relu())


def test_state_keys_do_not_depend_on_the_new_switches() -> None:
    with torch.device("meta"):
        squeezed, plain = (VoiceEncoder(attention=name).state_dict() for name in ("se", "none"))
    added = {f"blocks.{i}.attention.{name}.weight" for i in range(8) for name in ("squeeze", "excite")}
    assert set(squeezed) - set(plain) == added
    assert "blocks.7.bn2.running_mean" in plain
    assert "blocks.2.shortcut.0.weight" in plain


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


@pytest.mark.parametrize("attention", ["se", "ema"])
def test_every_parameter_gets_a_gradient(attention: str) -> None:
    torch.manual_seed(0)
    encoder = VoiceEncoder(embedding_dim=8, width=16, attention=attention)
    encoder(torch.randn(3, 3, 20, 40)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in encoder.parameters())


def test_switches_change_the_layers() -> None:
    base = VoiceEncoder(width=16)
    plain = VoiceEncoder(width=16, attention="none", activation="relu")
    assert any(isinstance(m, nn.Mish) for m in base.modules())
    assert not any(isinstance(m, nn.Mish | SqueezeExcitation) for m in plain.modules())
    with pytest.raises(ValueError, match="unknown attention 'ema2'"):
        VoiceEncoder(attention="ema2")
    with pytest.raises(ValueError, match="unknown attention_blocks 'first': one of every, last"):
        VoiceEncoder(attention_blocks="first")
    with pytest.raises(ValueError, match=r"attention_stages are among 1, 2, 3 and 4, got \[0, 1\]"):
        VoiceEncoder(attention_stages=[0, 1])
    with pytest.raises(ValueError, match="20 channels into 8 groups"):
        VoiceEncoder(attention="ema", width=20)


def test_mish_is_the_papers_formula() -> None:
    x = torch.linspace(-20, 20, 101, dtype=torch.float64)
    torch.testing.assert_close(nn.Mish()(x), x * torch.tanh(torch.log1p(torch.exp(x))))
