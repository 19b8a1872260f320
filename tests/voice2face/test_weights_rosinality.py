"""rosinality's files: exact names and shapes, round trips, and files that only look like them."""

import argparse
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from common.errors import UserError
from tests.voice2face.toy_stylegan2_files import FIR, Call, assert_same, networks, write_nvidia
from voice2face.weights_io import load_stylegan2, save_rosinality, to_rosinality


def rosinality_generator_shapes(channels: dict[int, int]) -> dict[str, tuple[int, ...]]:
    """Keys and shapes of rosinality's Generator(32, style_dim 8, n_mlp 3), written from its modules."""
    shapes = {"input.input": (1, channels[4], 4, 4), "style.1.weight": (8, 12), "style.1.bias": (8,)}
    shapes |= {f"style.{i}.weight": (8, 8) for i in (2, 3)} | {f"style.{i}.bias": (8,) for i in (2, 3)}

    def modulated(prefix: str, inner: int, outer: int, kernel: int) -> None:
        shapes[f"{prefix}.conv.weight"] = (1, outer, inner, kernel, kernel)
        shapes[f"{prefix}.conv.modulation.weight"] = (inner, 8)
        shapes[f"{prefix}.conv.modulation.bias"] = (inner,)

    def styled(prefix: str, inner: int, outer: int) -> None:
        modulated(prefix, inner, outer, 3)
        shapes[f"{prefix}.noise.weight"] = (1,)
        shapes[f"{prefix}.activate.bias"] = (outer,)

    styled("conv1", channels[4], channels[4])
    modulated("to_rgb1", channels[4], 3, 1)
    shapes["to_rgb1.bias"] = (1, 3, 1, 1)
    for j, size in enumerate((8, 16, 32)):
        styled(f"convs.{2 * j}", channels[size // 2], channels[size])
        shapes[f"convs.{2 * j}.conv.blur.kernel"] = (4, 4)
        styled(f"convs.{2 * j + 1}", channels[size], channels[size])
        modulated(f"to_rgbs.{j}", channels[size], 3, 1)
        shapes[f"to_rgbs.{j}.bias"] = (1, 3, 1, 1)
        shapes[f"to_rgbs.{j}.upsample.kernel"] = (4, 4)
    for k, size in enumerate((4, 8, 8, 16, 16, 32, 32)):
        shapes[f"noises.noise_{k}"] = (1, 1, size, size)
    return shapes


def rosinality_discriminator_shapes(channels: dict[int, int]) -> dict[str, tuple[int, ...]]:
    """Keys and shapes of rosinality's Discriminator(32)."""
    shapes = {"convs.0.0.weight": (channels[32], 3, 1, 1), "convs.0.1.bias": (channels[32],)}
    for i, size in enumerate((32, 16, 8), start=1):
        inner, outer = channels[size], channels[size // 2]
        shapes |= {f"convs.{i}.conv1.0.weight": (inner, inner, 3, 3), f"convs.{i}.conv1.1.bias": (inner,)}
        shapes |= {f"convs.{i}.conv2.1.weight": (outer, inner, 3, 3), f"convs.{i}.conv2.2.bias": (outer,)}
        shapes |= {f"convs.{i}.skip.1.weight": (outer, inner, 1, 1)}
        shapes |= {f"convs.{i}.conv2.0.kernel": (4, 4), f"convs.{i}.skip.0.kernel": (4, 4)}
    last = channels[4]
    shapes |= {"final_conv.0.weight": (last, last + 1, 3, 3), "final_conv.1.bias": (last,)}
    shapes |= {"final_linear.0.weight": (last, last * 16), "final_linear.0.bias": (last,)}
    return shapes | {"final_linear.1.weight": (1, last), "final_linear.1.bias": (1,)}


CHANNELS = {4: 16, 8: 16, 16: 16, 32: 8}


def test_export_has_rosinality_s_keys_shapes_and_kernels() -> None:
    generator, discriminator = networks()
    content = to_rosinality(generator, discriminator)
    assert {k: tuple(v.shape) for k, v in content["g_ema"].items()} == rosinality_generator_shapes(CHANNELS)
    assert {k: tuple(v.shape) for k, v in content["d"].items()} == rosinality_discriminator_shapes(CHANNELS)
    torch.testing.assert_close(content["g_ema"]["convs.0.conv.blur.kernel"], FIR * 4)
    torch.testing.assert_close(content["d"]["convs.1.skip.0.kernel"], FIR)
    conv = generator.synthesis.blocks[2].conv0
    assert torch.equal(content["g_ema"]["convs.2.conv.weight"][0], conv.conv.weight)
    assert torch.equal(content["g_ema"]["noises.noise_3"][0, 0], conv.noise_const)
    with pytest.raises(UserError, match="no conditional"):
        to_rosinality(*networks(c_dim=3))


def rosinality_checkpoint() -> dict[str, object]:
    """A training checkpoint of random tensors, as rosinality's train.py saves it."""
    torch.manual_seed(3)
    filters = {"kernel": FIR}

    def state(shapes: dict[str, tuple[int, ...]], gain: float) -> dict[str, Tensor]:
        return {k: filters["kernel"] * gain if k.endswith("kernel") else torch.randn(s) for k, s in shapes.items()}

    optimizer = torch.optim.Adam([nn.Parameter(torch.zeros(2))])
    return {
        "g": state(rosinality_generator_shapes(CHANNELS), 4),
        "g_ema": state(rosinality_generator_shapes(CHANNELS), 4),
        "d": state(rosinality_discriminator_shapes(CHANNELS), 1),
        "g_optim": optimizer.state_dict(),
        "d_optim": optimizer.state_dict(),
        "args": argparse.Namespace(size=32, channel_multiplier=2, path="somewhere"),
        "ada_aug_p": 0.0,
    }


@pytest.mark.parametrize("zipped", [True, False])
def test_rosinality_checkpoint_loads_and_round_trips_exactly(tmp_path: Path, zipped: bool) -> None:
    content = rosinality_checkpoint()
    path = tmp_path / "550000.pt"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    loaded = load_stylegan2(path)
    assert loaded.format == "rosinality"
    back = to_rosinality(loaded.generator, loaded.discriminator)
    for name in ("g_ema", "d"):
        assert back[name].keys() == content[name].keys()
        assert all(torch.equal(back[name][key], content[name][key]) for key in back[name])
    raw = load_stylegan2(path, averaged=False).generator
    assert torch.equal(raw.synthesis.blocks[0].const, content["g"]["input.input"][0])
    # Without latent_avg, the centre of truncation is the mean of mapped latents.
    mean = loaded.generator.mapping(torch.randn(20_000, 12))[:, 0].mean(dim=0)
    torch.testing.assert_close(loaded.generator.mapping.w_avg, mean, rtol=0, atol=0.1 * mean.abs().max().item())


def test_converted_file_without_discriminator(tmp_path: Path) -> None:
    generator, _ = networks()
    save_rosinality(tmp_path / "converted.pt", generator)
    loaded = load_stylegan2(tmp_path / "converted.pt")
    assert loaded.discriminator is None
    assert torch.equal(loaded.generator.mapping.w_avg, generator.mapping.w_avg)


def test_nvidia_to_ours_to_rosinality_to_ours_is_exact(tmp_path: Path, nvidia_modules: None) -> None:
    pair = networks()
    write_nvidia(tmp_path / "n.pkl", *pair)
    first = load_stylegan2(tmp_path / "n.pkl")
    save_rosinality(tmp_path / "r.pt", first.generator, first.discriminator)
    assert_same(load_stylegan2(tmp_path / "r.pt"), *pair)


@pytest.mark.parametrize(
    ("key", "shape"), [("conv1.conv.weight", (3,)), ("noises.noise_0", (1, 1, 5, 5)), ("style.1.weight", ())]
)
def test_wrong_shapes_are_user_errors(tmp_path: Path, key: str, shape: tuple[int, ...]) -> None:
    content = rosinality_checkpoint()
    content["g_ema"][key] = torch.zeros(shape)
    torch.save(content, tmp_path / "c.pt")
    with pytest.raises(UserError, match=r"c\.pt"):
        load_stylegan2(tmp_path / "c.pt")


def test_torch_files_of_other_content_are_user_errors(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    torch.save({"state_dict": {}}, path)
    with pytest.raises(UserError, match="no entry 'g_ema'"):
        load_stylegan2(path)
    torch.save({"g_ema": {"a": torch.zeros(1)}}, path)
    with pytest.raises(UserError, match="keys begin with a"):
        load_stylegan2(path)
    torch.save({"g_ema": Call(os.mkdir, str(tmp_path / "victim"))}, path)
    with pytest.raises(UserError, match="refused to load"):
        load_stylegan2(path)
    assert not (tmp_path / "victim").exists()
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match="torn"):
        load_stylegan2(path)
