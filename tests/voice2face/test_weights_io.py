"""StyleGAN2 files in NVIDIA's format and in safetensors; files of no known format."""

import struct
from pathlib import Path

import pytest
import torch

from common.errors import UserError
from tests.voice2face.toy_stylegan2_files import assert_same, networks, nvidia_object, write_nvidia
from voice2face.networks.stylegan2 import StyleGAN2Generator
from voice2face.weights_io import detect_format, load_stylegan2, save_safetensors


@pytest.mark.parametrize("c_dim", [0, 5])
def test_nvidia_pickle_gives_both_networks(tmp_path: Path, nvidia_modules: None, c_dim: int) -> None:
    pair = networks(c_dim=c_dim)
    path = tmp_path / "network.bin"
    write_nvidia(path, *pair)
    for averaged in (True, False):
        loaded = load_stylegan2(path, averaged=averaged)
        assert loaded.format == "nvidia"
        assert_same(loaded, *pair)
    assert loaded.generator.config["conv_clamp"] == loaded.discriminator.config["conv_clamp"] == 256
    assert loaded.discriminator.config["stddev_group"] == 8
    z, c = torch.randn(2, 12), torch.randn(2, 5) if c_dim else None
    given = StyleGAN2Generator(**(pair[0].config | {"conv_clamp": 256.0}))
    given.load_state_dict(pair[0].state_dict())
    torch.testing.assert_close(loaded.generator(z, c, noise_mode="const"), given(z, c, noise_mode="const"))


def test_missing_left_over_and_odd_tensors_are_named(tmp_path: Path, nvidia_modules: None) -> None:
    generator, discriminator = networks()
    path = tmp_path / "network.pkl"
    source = nvidia_object(generator, {})
    source.state["_modules"]["synthesis"].state["_parameters"]["surplus"] = torch.zeros(1)
    del source.state["_modules"]["mapping"].state["_buffers"]["w_avg"]
    write_nvidia(path, generator, discriminator, G_ema=source)
    with pytest.raises(UserError, match=r"missing mapping.w_avg; unexpected synthesis.surplus"):
        load_stylegan2(path)
    assert load_stylegan2(path, averaged=False).format == "nvidia"


def test_another_filter_is_refused(tmp_path: Path, nvidia_modules: None) -> None:
    generator, discriminator = networks()
    source = nvidia_object(generator, {})
    source.state["_modules"]["synthesis"].state["_buffers"]["resample_filter"] = torch.ones(2, 2)
    write_nvidia(tmp_path / "n.pkl", generator, discriminator, G_ema=source)
    with pytest.raises(UserError, match="resample_filter is not the"):
        load_stylegan2(tmp_path / "n.pkl")


@pytest.mark.parametrize("c_dim", [0, 4])
def test_safetensors_round_trip(tmp_path: Path, c_dim: int) -> None:
    pair = networks(c_dim=c_dim, low_res_kernel=4, num_fp16_res=1)
    path = tmp_path / "weights"
    save_safetensors(path, *pair)
    loaded = load_stylegan2(path)
    assert loaded.format == detect_format(path) == "safetensors"
    assert_same(loaded, *pair)
    assert loaded.generator.config == pair[0].config
    assert loaded.discriminator.config == pair[1].config
    save_safetensors(path, pair[0])
    assert load_stylegan2(path).discriminator is None


def test_hostile_safetensors_are_user_errors(tmp_path: Path) -> None:
    generator, _ = networks()
    path = tmp_path / "w.safetensors"
    save_safetensors(path, generator)
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    with pytest.raises(UserError, match="torn"):
        load_stylegan2(path)
    size = struct.unpack("<Q", whole[:8])[0]
    for old, new in ((b'\\"channel_base\\": 256', b'\\"channel_base\\": 999'), (b'\\"z_dim\\"', b'\\"y_dim\\"')):
        assert old in whole[:size]
        path.write_bytes(whole.replace(old, new))
        with pytest.raises(UserError, match="does not fit its configuration"):
            load_stylegan2(path)
    path.write_bytes(whole.replace(b"speechface-stylegan2", b"speechface-stylegan9"))
    with pytest.raises(UserError, match="metadata lacks the kind"):
        load_stylegan2(path)


@pytest.mark.parametrize("content", [b"", b"GIF89a" + b"x" * 100, b"<html>"])
def test_other_files_are_user_errors(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file.pkl"
    path.write_bytes(content)
    with pytest.raises(UserError, match="neither a PyTorch file"):
        load_stylegan2(path)
    with pytest.raises(UserError, match="cannot read"):
        load_stylegan2(tmp_path / "absent.pkl")
