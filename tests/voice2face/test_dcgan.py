"""The networks of Wen et al. and the vanilla DCGAN: sizes, contracts, and files with the published keys and shapes."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from common.errors import UserError
from common.losses import path_length_penalty, r1_penalty
from tests.voice2face.toy_wen import published, save
from voice2face.networks import DISCRIMINATORS, ENCODERS, GENERATORS
from voice2face.networks.dcgan import DCGANDiscriminator, DCGANGenerator
from voice2face.networks.wen_voice import WenVoiceEncoder
from voice2face.wen_weights import load_wen_generator, load_wen_voice, wen_kind

TINY_G = {"resolution": 32, "z_dim": 8, "channel_base": 128, "channel_max": 8}
TINY_D = {"resolution": 32, "channel_base": 128, "channel_max": 8, "num_features": 6}
VARIANTS = ["wen", "vanilla"]


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_parameter_counts_are_those_of_wen_et_al() -> None:
    with torch.device("meta"):
        assert count(WenVoiceEncoder(embedding_dim=64)) == 2_670_720
        assert count(DCGANGenerator(z_dim=64)) == 12_191_875
        discriminator = DCGANDiscriminator()
        # The published figure is the trunk's: the heads, 64 and 64 x 924 weights, are networks of their own there.
        assert count(discriminator.model) == 3_310_720
        assert count(discriminator.out) == 64
        assert count(discriminator.identity_head(924)) == 59_136


def test_networks_have_exactly_the_published_keys_and_shapes() -> None:
    with torch.device("meta"):
        voice, generator = (
            WenVoiceEncoder(embedding_dim=64).state_dict(),
            DCGANGenerator(z_dim=64).synthesis.state_dict(),
        )
    for ours, kind in ((voice, "voice"), (generator, "generator")):
        shapes = {key: value.shape for key, value in ours.items() if not key.endswith("num_batches_tracked")}
        assert shapes == {key: value.shape for key, value in published(kind).items()}


def test_published_voice_network_loads_and_computes_its_layers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = published("voice", scale=16)
    encoder = load_wen_voice(save(state, tmp_path / "voice_embedding.pth"))
    x = torch.randn(2, 64, 37)
    y = x
    for layer in range(0, 12, 3):
        y = F.conv1d(y, state[f"model.{layer}.weight"], stride=2, padding=1)
        norm = [
            state[f"model.{layer + 1}.{name}"][:, None] for name in ("running_mean", "running_var", "weight", "bias")
        ]
        y = ((y - norm[0]) / (norm[1] + 1e-5).sqrt() * norm[2] + norm[3]).relu()
    y = F.conv1d(y, state["model.12.weight"], state["model.12.bias"], stride=2, padding=1).mean(dim=2)
    torch.testing.assert_close(encoder(x[:, None]), y)
    assert not encoder.training


def test_published_generator_loads_and_computes_its_layers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = published("generator", scale=16)
    generator = load_wen_generator(save(state, tmp_path / "generator.pth"))
    z = F.normalize(torch.randn(2, 64), dim=1)
    y = z[:, :, None, None]
    for layer, (stride, padding) in zip(range(0, 10, 2), [(1, 0)] + [(2, 1)] * 4, strict=True):
        weight, bias = state[f"model.{layer}.weight"], state[f"model.{layer}.bias"]
        y = F.conv_transpose2d(y, weight, bias, stride, padding).relu()
    y = F.conv_transpose2d(y, state["model.10.weight"], state["model.10.bias"])
    image = generator(z)
    assert image.shape == (2, 3, 64, 64)
    torch.testing.assert_close(image, y)
    assert generator.config["channel_max"] == 64
    assert generator.config["resolution"] == 64


def test_other_files_are_refused_in_one_line(tmp_path: Path) -> None:
    torch.manual_seed(0)
    voice, generator = (save(published(kind, 16), tmp_path / kind) for kind in ("voice", "generator"))
    with pytest.raises(UserError, match=r"does not hold the generator of Wen et al.: it is Wen's voice network"):
        load_wen_generator(voice)
    with pytest.raises(UserError, match=r"does not hold the voice network of Wen et al.: it is Wen's generator"):
        load_wen_voice(generator)
    assert wen_kind({"other": torch.zeros(1)}) is None
    assert wen_kind({"model.0.weight": torch.zeros(32, 3, 1, 1)}) is None
    with pytest.raises(UserError, match=r"its tensors are synthesis.const"):
        load_wen_generator(save({"synthesis.const": torch.zeros(1)}, tmp_path / "strange"))
    with pytest.raises(UserError, match="cannot read weights"):
        load_wen_voice(tmp_path / "absent.pth")
    torn = tmp_path / "torn"
    torn.write_bytes(generator.read_bytes()[:-100])
    with pytest.raises(UserError, match="torn"):
        load_wen_generator(torn)
    with pytest.raises(UserError, match="refused"):
        load_wen_generator(save({"model.0.weight": Path("x")}, tmp_path / "objects"))


@pytest.mark.parametrize("damage", ["missing", "width", "short"])
def test_files_with_other_layers_are_refused(tmp_path: Path, damage: str) -> None:
    state = published("generator", 16)
    if damage == "missing":
        del state["model.4.bias"]
    elif damage == "width":
        state["model.4.weight"] = torch.zeros(32, 24, 4, 4)
    else:
        state = {key: value for key, value in state.items() if key.startswith("model.0.")}
    with pytest.raises(UserError) as caught:
        load_wen_generator(save(state, tmp_path / "generator.pth"))
    assert "\n" not in str(caught.value)
    assert "generator.pth has" in str(caught.value)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("resolution", [32, 128])
def test_generator_keeps_the_contract(variant: str, resolution: int) -> None:
    torch.manual_seed(0)
    generator = DCGANGenerator(**TINY_G | {"resolution": resolution}, variant=variant).eval()
    z = F.normalize(torch.randn(3, 8), dim=1)
    ws = generator.mapping(z)
    assert ws.shape == (3, generator.mapping.num_ws, 8)
    assert torch.equal(ws[:, 0], z)
    image = generator.synthesis(ws, noise=[], noise_mode="const", force_fp32=True)
    assert image.shape == (3, 3, resolution, resolution)
    assert torch.equal(image, generator(z))
    assert generator.synthesis.noise_shapes() == []
    assert generator.synthesis.resolution == resolution
    again = DCGANGenerator(**generator.config).eval()
    again.load_state_dict(generator.state_dict())
    assert torch.equal(image, again(z))


def test_vanilla_is_bounded_and_normalised_where_wens_is_not() -> None:
    torch.manual_seed(0)
    z = torch.randn(4, 8) * 1e4
    wen, vanilla = (DCGANGenerator(**TINY_G, variant=variant) for variant in VARIANTS)
    assert wen(z).abs().max() > 1 >= vanilla(z).abs().max()
    assert not any(isinstance(m, nn.BatchNorm2d | nn.Tanh) for m in wen.modules())
    norms = [
        sum(isinstance(m, nn.BatchNorm2d) for m in DCGANDiscriminator(**TINY_D, variant=v).modules()) for v in VARIANTS
    ]
    assert norms == [0, 3]
    assert 0.015 < DCGANGenerator(z_dim=64, variant="vanilla").synthesis.model[0].weight.std().item() < 0.025


def test_truncation_goes_to_the_running_mean() -> None:
    torch.manual_seed(0)
    mapping = DCGANGenerator(**TINY_G).mapping
    z = torch.randn(5, 8)
    mapping(z)
    assert not mapping.w_avg.any()
    mapping(z, update_average=True)
    torch.testing.assert_close(mapping.w_avg, z.mean(dim=0) * 0.005)
    torch.testing.assert_close(mapping(z, truncation=0.0), mapping.w_avg.expand(5, 1, 8))
    torch.testing.assert_close(mapping(z, truncation=0.5)[:, 0], (mapping.w_avg + z) / 2)
    assert torch.equal(mapping(z, truncation=0.0, truncation_cutoff=0)[:, 0], z)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_parameter_gets_a_gradient_of_the_game_and_the_penalties(variant: str) -> None:
    torch.manual_seed(0)
    generator, discriminator = DCGANGenerator(**TINY_G, variant=variant), DCGANDiscriminator(**TINY_D, variant=variant)
    head = discriminator.identity_head(5)
    z = torch.randn(4, 8)
    features = discriminator.features(generator(z))
    assert features.shape == (4, discriminator.num_features)
    assert discriminator.logits(features).shape == (4, 1)
    (discriminator.logits(features).sum() + head(features).square().sum()).backward()
    for module in (generator, discriminator, head):
        assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())
    assert generator.synthesis.model[0].weight.grad.abs().sum() > 0
    r1 = r1_penalty(lambda x: discriminator(x, force_fp32=True), torch.randn(3, 3, 32, 32))
    penalty, lengths = path_length_penalty(
        lambda ws: generator.synthesis(ws, force_fp32=True),
        generator.mapping(z),
        torch.zeros(()),
        noise=torch.randn(4, 3, 32, 32),
    )
    discriminator.zero_grad()
    generator.zero_grad()
    (r1 + penalty).backward()
    assert lengths.shape == (4,)
    assert discriminator.out.weight.grad.abs().sum() > 0
    assert generator.synthesis.model[0].weight.grad.abs().sum() > 0


@pytest.mark.parametrize("batch", [1, 3])
def test_wens_networks_take_any_batch_and_autocast(batch: int) -> None:
    torch.manual_seed(0)
    generator, discriminator = DCGANGenerator(**TINY_G), DCGANDiscriminator(**TINY_D)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        image = generator(torch.randn(batch, 8))
        features = discriminator.features(image)
        assert image.dtype == features.dtype == torch.float32
        exact = discriminator.features(image, force_fp32=True)
    torch.testing.assert_close(exact, discriminator.features(image))
    assert not torch.equal(exact, features)


@pytest.mark.parametrize("frames", [1, 2, 31, 300])
def test_voice_network_takes_any_length(frames: int) -> None:
    torch.manual_seed(0)
    encoder = WenVoiceEncoder(embedding_dim=5, width=16).eval()
    assert encoder(torch.randn(2, 1, 64, frames)).shape == (2, 5)


def test_voice_network_learns_from_channels_and_refuses_other_bands() -> None:
    torch.manual_seed(0)
    encoder = WenVoiceEncoder(in_channels=3, bands=13, embedding_dim=5, width=16)
    encoder(torch.randn(3, 3, 13, 50)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in encoder.parameters())
    with pytest.raises(UserError, match=r"features \(batch, 3, 13, frames\), got \(3, 1, 64, 50\)"):
        encoder(torch.randn(3, 1, 64, 50))
    with pytest.raises(ValueError, match="width divisible by 8"):
        WenVoiceEncoder(width=20)


def test_wrong_use_is_told_in_one_line() -> None:
    generator, discriminator = DCGANGenerator(**TINY_G), DCGANDiscriminator(**TINY_D)
    with pytest.raises(UserError, match=r"latent of shape \(batch, 8\), got \(2, 9\)"):
        generator(torch.zeros(2, 9))
    with pytest.raises(UserError, match=r"w\+ of shape \(batch, 1, 8\), got \(2, 2, 8\)"):
        generator.synthesis(torch.zeros(2, 2, 8))
    with pytest.raises(UserError, match="1 noise planes"):
        generator.synthesis(torch.zeros(2, 1, 8), noise=[torch.zeros(1)])
    with pytest.raises(UserError, match=r"images \(3, 32, 32\), got \(3, 64, 64\)"):
        discriminator(torch.zeros(1, 3, 64, 64))
    with pytest.raises(UserError, match="unknown DCGAN variant 'relu'"):
        DCGANGenerator(**TINY_G, variant="relu")
    with pytest.raises(UserError, match="not a power of two"):
        DCGANGenerator(48)


def test_networks_are_registered() -> None:
    assert ENCODERS["wen"] is WenVoiceEncoder
    assert GENERATORS["dcgan"] is DCGANGenerator
    assert DISCRIMINATORS["dcgan"] is DCGANDiscriminator
