"""StyleGAN2 files: synthetic ones in each exact format, torn ones, and pickles that would run code."""

import argparse
import os
import pickle
import re
import struct
import sys
import types
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from common.errors import UserError
from common.safe_pickle import read_network_pickle
from voice2face.networks.stylegan2 import StyleGAN2Discriminator, StyleGAN2Generator
from voice2face.weights_io import (
    StyleGAN2Weights,
    detect_format,
    load_stylegan2,
    save_rosinality,
    save_safetensors,
    to_rosinality,
)

TINY = {"resolution": 32, "channel_base": 256, "channel_max": 16}
FIR = torch.outer(torch.tensor([1.0, 3, 3, 1]), torch.tensor([1.0, 3, 3, 1])) / 64


def networks(**kwargs: object) -> tuple[StyleGAN2Generator, StyleGAN2Discriminator]:
    torch.manual_seed(0)
    pair = (
        StyleGAN2Generator(**TINY, z_dim=12, w_dim=8, mapping_layers=3, **kwargs),
        StyleGAN2Discriminator(**TINY, mapping_layers=3, **kwargs),
    )
    for net in pair:
        for tensor in net.state_dict().values():
            tensor.copy_(torch.randn_like(tensor))
    return pair


def assert_same(loaded: StyleGAN2Weights, generator: nn.Module, discriminator: nn.Module) -> None:
    for ours, given in ((loaded.generator, generator), (loaded.discriminator, discriminator)):
        state, expected = ours.state_dict(), given.state_dict()
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[name], expected[name]) for name in state)


# ---- NVIDIA: objects whose pickles have the reduce form of torch_utils.persistence -------------------------------


class EasyDict(dict):
    """Stands where dnnlib.util.EasyDict does."""

    __module__ = "dnnlib.util"


def reconstruct(meta: dict) -> None:
    raise AssertionError("the file's own class must never be rebuilt")


reconstruct.__module__, reconstruct.__qualname__ = "torch_utils.persistence", "_reconstruct_persistent_obj"


class Persistent:
    def __init__(self, class_name: str, state: dict) -> None:
        self.class_name, self.state = class_name, state

    def __reduce__(self) -> tuple:
        source = "raise SystemExit('the source in the pickle ran')"
        meta = EasyDict(type="class", version=6, module_src=source, class_name=self.class_name, state=self.state)
        return reconstruct, (meta,)


def persistent(
    class_name: str, tensors: dict[str, Tensor], parameters: set[str], kwargs: dict, prefix: str = ""
) -> Persistent:
    """A tree of module states with the leaves of `tensors`."""
    state = {"training": False, "_parameters": OrderedDict(), "_buffers": OrderedDict(), "_modules": OrderedDict()}
    state |= {"_non_persistent_buffers_set": set(), "_backward_hooks": OrderedDict(), "_init_args": ()}
    state["_init_kwargs"] = EasyDict(kwargs)
    state["_parameters"]["bias_that_is_not_there"] = None
    children: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        head, _, rest = name.partition(".")
        if rest:
            children.setdefault(head, {})[rest] = tensor
        elif prefix + name in parameters:
            state["_parameters"][name] = nn.Parameter(tensor)
        else:
            state["_buffers"][name] = tensor
    for head, leaves in children.items():
        state["_modules"][head] = persistent("Block", leaves, parameters, {}, f"{prefix}{head}.")
    return Persistent(class_name, state)


def nvidia_name(ours: str, discriminator_power: int | None = None) -> str:
    """Names of stylegan2-ada-pytorch, written from its module tree."""
    name = re.sub(r"^mapping\.layers\.", "mapping.fc", ours)
    if discriminator_power is not None:
        name = re.sub(r"^blocks\.(\d+)", lambda m: f"b{2 ** (discriminator_power - int(m[1]))}", name)
        name = re.sub(r"^from_rgb", f"b{2**discriminator_power}.fromrgb", name)
        return re.sub(r"^(conv|fc|out)\.", r"b4.\1.", name)
    name = re.sub(r"^synthesis\.blocks\.(\d+)", lambda m: f"synthesis.b{4 * 2 ** int(m[1])}", name)
    return name.replace("to_rgb", "torgb").replace(".conv.", ".")


def nvidia_object(net: nn.Module, kwargs: dict) -> Persistent:
    power = 5 if isinstance(net, StyleGAN2Discriminator) else None
    tensors = {nvidia_name(name, power): value.clone() for name, value in net.state_dict().items()}
    parameters = {nvidia_name(name, power) for name, _ in net.named_parameters()}
    filters = ["b32.resample_filter", "b8.conv1.resample_filter"]
    tensors |= {("" if power else "synthesis.") + name: FIR for name in filters}
    return persistent(type(net).__name__, tensors, parameters, kwargs)


@pytest.fixture
def nvidia_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the test pickle under NVIDIA's names; `reconstruct` fails should the reader ever call it."""
    for module, item, name in (
        ("torch_utils.persistence", reconstruct, "_reconstruct_persistent_obj"),
        ("dnnlib.util", EasyDict, "EasyDict"),
    ):
        monkeypatch.setitem(sys.modules, module.partition(".")[0], types.ModuleType(module.partition(".")[0]))
        fake = types.ModuleType(module)
        setattr(fake, name, item)
        monkeypatch.setitem(sys.modules, module, fake)


def write_nvidia(path: Path, generator: nn.Module, discriminator: nn.Module, **content: object) -> None:
    g_kwargs = {"z_dim": 12, "synthesis_kwargs": EasyDict(channel_base=256, num_fp16_res=2, conv_clamp=256)}
    d_kwargs = {"conv_clamp": 256, "epilogue_kwargs": EasyDict(mbstd_group_size=8)}
    objects = {"G": nvidia_object(generator, g_kwargs), "D": nvidia_object(discriminator, d_kwargs)}
    objects |= {"G_ema": nvidia_object(generator, g_kwargs), "augment_pipe": None}
    path.write_bytes(pickle.dumps(objects | {"training_set_kwargs": EasyDict(max_size=10)} | content))


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


# ---- pickles that would do harm ---------------------------------------------------------------------------------


class Call:
    def __init__(self, function: object, *args: object) -> None:
        self.function, self.args = function, args

    def __reduce__(self) -> tuple:
        return self.function, self.args


def refuse(tmp_path: Path, content: object, message: str) -> None:
    path = tmp_path / "bad.pkl"
    path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content))
    with pytest.raises(UserError, match=message) as caught:
        load_stylegan2(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["eval", "exec", "getattr", "__import__", "open"])
def test_no_other_name_is_resolved(tmp_path: Path, name: str) -> None:
    victim = tmp_path / "victim"
    function = __builtins__[name] if isinstance(__builtins__, dict) else getattr(__builtins__, name)
    refuse(tmp_path, {"G_ema": Call(function, f"open({str(victim)!r}, 'w')")}, f"asks for (builtins|io|_io).{name}")
    refuse(tmp_path, {"G_ema": Call(os.mkdir, str(victim))}, "asks for posix.mkdir")
    assert not victim.exists()


def test_a_storage_that_is_a_pickle_of_code_is_refused(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    evil = pickle.dumps(Call(os.mkdir, str(victim)), protocol=2)
    refuse(tmp_path, {"G_ema": Call(torch.storage._load_from_bytes, evil)}, "not a whole network pickle")
    with pytest.raises(FileNotFoundError):
        os.rmdir(victim)


@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [(0, (5,), (1,)), (3, (2,), (1,)), (0, (2, 2), (4, 1)), (0, (10**12,), (0,)), (-1, (2,), (1,)), (0, (2,), (1, 1))],
)
def test_tensors_stay_inside_their_storage(tmp_path: Path, offset: int, size: tuple, stride: tuple) -> None:
    storage = torch.storage.TypedStorage(
        _internal=True, wrap_storage=torch.arange(4.0).untyped_storage(), dtype=torch.float32
    )
    call = Call(torch._utils._rebuild_tensor_v2, storage, offset, size, stride, False, OrderedDict())
    refuse(tmp_path, {"G_ema": call}, "beyond its storage|impossible shape")


@pytest.mark.parametrize("state", [{"state": None}, {}, "text", 3])
def test_a_persistent_object_without_a_state_is_refused(tmp_path: Path, nvidia_modules: None, state: object) -> None:
    refuse(tmp_path, {"G_ema": Call(reconstruct, state)}, "persistent object without a state")


def test_state_set_on_an_allowed_name_does_not_outlive_the_file(tmp_path: Path) -> None:
    # GLOBAL torch._utils _rebuild_parameter, then BUILD with a slot state that replaces what it calls.
    name = b"ctorch._utils\n_rebuild_parameter\n"
    attack = b"\x80\x02" + name + b"(N}X\x09\x00\x00\x00_functionccollections\nOrderedDict\nstb."
    path = tmp_path / "attack.pkl"
    path.write_bytes(attack)
    read_network_pickle(path)
    path.write_bytes(pickle.dumps(nn.Parameter(torch.arange(3.0))))
    torch.testing.assert_close(read_network_pickle(path), torch.arange(3.0))


def test_honest_tensors_survive_the_reader(tmp_path: Path) -> None:
    path = tmp_path / "tensors.pkl"
    base = torch.arange(24, dtype=torch.float64).view(4, 6)
    content = [base, base.t(), base[1:3, ::2], torch.tensor(3), torch.zeros(0, 2), base.half(), {1, 2}]
    path.write_bytes(pickle.dumps(content))
    for ours, given in zip(read_network_pickle(path)[:-1], content[:-1], strict=True):
        assert ours.dtype == given.dtype
        torch.testing.assert_close(ours, given, rtol=0, atol=0)


def test_tensorflow_era_and_torn_pickles_are_told_apart(tmp_path: Path, nvidia_modules: None) -> None:
    refuse(tmp_path, b"\x80\x02cdnnlib.tflib.network\nNetwork\n)\x81.", "TensorFlow-era network")
    write_nvidia(tmp_path / "whole.pkl", *networks())
    whole = (tmp_path / "whole.pkl").read_bytes()
    for length in (3, 1000, len(whole) - 1):
        refuse(tmp_path, whole[:length], "not a whole network pickle")
    refuse(tmp_path, {"G_ema": 3}, "holds no network G_ema")
    refuse(tmp_path, [1], "holds no network G_ema")


# ---- rosinality --------------------------------------------------------------------------------------------------


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


# ---- safetensors -------------------------------------------------------------------------------------------------


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
