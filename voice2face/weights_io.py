"""StyleGAN2 weights from and to other people's files: NVIDIA's `.pkl`, rosinality's `.pt`, safetensors of our own.

The format is told by content, never by suffix; nothing in a file is executed; a network's configuration is inferred
from the shapes; keys that are missing or left over are an error that names them.
"""

import argparse
import json
import pickle
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from common.errors import UserError
from common.files import atomic_path
from common.safe_pickle import PersistentObject, read_network_pickle
from voice2face.networks.stylegan2 import StyleGAN2Discriminator, StyleGAN2Generator
from voice2face.weights_names import (
    Row,
    discriminator_filters,
    discriminator_rows,
    generator_filters,
    generator_rows,
)

Format = Literal["nvidia", "rosinality", "safetensors"]
LEGACY_TORCH = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # the magic number that torch.save wrote before its zips
SAFETENSORS_KIND = "speechface-stylegan2"
AVERAGE_SAMPLES = 4096
Net = TypeVar("Net", StyleGAN2Generator, StyleGAN2Discriminator)


@dataclass(frozen=True)
class StyleGAN2Weights:
    """Networks of one file, in eval mode on the CPU; the discriminator is None where the file has none."""

    format: Format
    generator: StyleGAN2Generator
    discriminator: StyleGAN2Discriminator | None


def load_stylegan2(path: Path, *, averaged: bool = True) -> StyleGAN2Weights:
    """Read a StyleGAN2 file of any of the three formats.

    `averaged` takes the moving average of the generator (for sampling), False the one in training (to go on with
    it); safetensors hold one. Networks come in float32 (pass `num_fp16_res` to a new network to change that).
    Where rosinality's file lacks `latent_avg`, it is the mean of 4096 mapped latents of a fixed seed.
    Raises UserError for a file that is torn, unsafe, of another kind, or whose keys or shapes do not fit.
    """
    kind = detect_format(path)
    if kind == "safetensors":
        return _load_safetensors(path)
    try:
        return _load_nvidia(path, averaged) if kind == "nvidia" else _load_rosinality(path, averaged)
    except (IndexError, ValueError) as error:
        raise UserError(f"{path}: its tensors do not have the dimensions of StyleGAN2's: {error}") from error


def detect_format(path: Path) -> Format:
    """Format of a file by its first bytes; UserError when it is none of the three."""
    try:
        with open(path, "rb") as file:
            head = file.read(64)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    if head[8:9] == b"{":  # eight bytes of header length, then JSON
        return "safetensors"
    if head.startswith((b"PK\x03\x04", LEGACY_TORCH)):
        return "rosinality"
    if head.startswith(b"\x80"):
        return "nvidia"
    raise UserError(f"{path} is neither a PyTorch file, nor a network pickle, nor safetensors; give one of these")


def _load_nvidia(path: Path, averaged: bool) -> StyleGAN2Weights:
    content = read_network_pickle(path)
    name = "G_ema" if averaged else "G"
    if not isinstance(content, dict) or not isinstance(content.get(name), PersistentObject):
        raise UserError(f"{path} holds no network {name}; give a pickle of stylegan2-ada-pytorch")
    source = content[name]
    clamp = _option(source.init_kwargs(), "synthesis_kwargs", "conv_clamp")
    generator = _generator(_Source(path, "nvidia", source.tensors()), conv_clamp=clamp)
    judge = content.get("D")
    if not isinstance(judge, PersistentObject):
        return StyleGAN2Weights("nvidia", generator, None)
    group = _option(judge.init_kwargs(), "epilogue_kwargs", "mbstd_group_size")
    discriminator = _discriminator(
        _Source(path, "nvidia", judge.tensors()),
        conv_clamp=_option(judge.init_kwargs(), "conv_clamp"),
        stddev_group=4 if group is None else int(group),
    )
    return StyleGAN2Weights("nvidia", generator, discriminator)


def _option(kwargs: Any, *keys: str) -> float | None:
    """A number deep in recorded keyword arguments; None where it is absent or something else."""
    for key in keys:
        kwargs = kwargs.get(key) if isinstance(kwargs, dict) else None
    return kwargs if type(kwargs) in (int, float) else None


def _load_rosinality(path: Path, averaged: bool) -> StyleGAN2Weights:
    content = _torch_load(path)
    name = "g_ema" if averaged else "g"
    if not isinstance(content, dict) or not isinstance(content.get(name), Mapping):
        raise UserError(f"{path} holds no entry {name!r}; give a checkpoint of rosinality's stylegan2-pytorch")
    average, judge = content.get("latent_avg"), content.get("d")
    generator = _generator(
        _Source(path, "rosinality", _tensors(content[name])), w_avg=average if isinstance(average, Tensor) else None
    )
    discriminator = _discriminator(_Source(path, "rosinality", _tensors(judge))) if isinstance(judge, Mapping) else None
    return StyleGAN2Weights("rosinality", generator, discriminator)


def _tensors(state: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def _torch_load(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is torn, or holds more than tensors and options: refused to load it") from error


@dataclass(frozen=True)
class _Source:
    """Named tensors of one network as a file has them."""

    path: Path
    format: Literal["nvidia", "rosinality"]
    tensors: dict[str, Tensor]

    def numbers(self, pattern: str) -> list[int]:
        """The integers that `pattern`'s group takes over all names."""
        found = (re.fullmatch(pattern, name) for name in self.tensors)
        return sorted(int(match[1]) for match in found if match)

    def translated(self, rows: list[Row]) -> dict[str, Tensor]:
        """Tensors under our names, FIR filters checked and dropped; UserError names what misses or is left over."""
        names = ((row.nvidia if self.format == "nvidia" else row.rosinality, row) for row in rows)
        theirs = {name: row for name, row in names if name is not None}
        filters = [name for name in self.tensors if name.endswith(("resample_filter", "kernel"))]
        for name in filters:
            _check_filter(self.path, name, self.tensors[name])
        missing = sorted(set(theirs) - set(self.tensors))
        unexpected = sorted(set(self.tensors) - set(theirs) - set(filters))
        if missing or unexpected:
            raise UserError(
                f"{self.path} does not fit a skip generator and residual discriminator: "
                f"missing {_some(missing)}; unexpected {_some(unexpected)}"
            )
        return {row.ours: self.tensors[name] for name, row in theirs.items()}


def _generator(source: _Source, *, conv_clamp: float | None = None, w_avg: Tensor | None = None) -> StyleGAN2Generator:
    nvidia = source.format == "nvidia"
    if nvidia:
        power = max(source.numbers(r"synthesis\.b(\d+)\.conv1\.weight"), default=0).bit_length() - 1
        layers = len(source.numbers(r"mapping\.fc(\d+)\.weight"))
    else:
        power = len(source.numbers(r"to_rgbs\.(\d+)\.bias")) + 2
        layers = len(source.numbers(r"style\.(\d+)\.weight"))
    _check_size(source, power, layers)
    rows = generator_rows(power, layers, conditional="mapping.embed.weight" in source.tensors)
    state = source.translated(rows)
    first, last = state["mapping.layers.0.weight"], state[f"mapping.layers.{layers - 1}.weight"]
    embed = state.get("mapping.embed.weight")
    blocks = [state[f"synthesis.blocks.{i}.conv1.conv.weight"] for i in range(power - 1)]
    config = {
        "resolution": 1 << power,
        "w_dim": last.shape[0],
        "z_dim": first.shape[1] - (0 if embed is None else embed.shape[0]),
        "c_dim": 0 if embed is None else embed.shape[1],
        "mapping_layers": layers,
        "image_channels": state["synthesis.blocks.0.to_rgb.bias"].numel(),
        "low_res_kernel": blocks[0].shape[-1],
        "conv_clamp": conv_clamp,
        **_channel_plan(source.path, {4 << i: block.shape[0 if nvidia else 1] for i, block in enumerate(blocks)}),
    }
    net = _filled(source, StyleGAN2Generator, config, state, rows, given={} if nvidia else {"mapping.w_avg": w_avg})
    if not nvidia and w_avg is None:
        with torch.no_grad():
            z = torch.randn(AVERAGE_SAMPLES, net.mapping.z_dim, generator=torch.Generator().manual_seed(0))
            net.mapping.w_avg.copy_(net.mapping(z)[:, 0].mean(dim=0))
    return net


def _discriminator(
    source: _Source, *, conv_clamp: float | None = None, stddev_group: int = 4
) -> StyleGAN2Discriminator:
    if source.format == "nvidia":
        power = max(source.numbers(r"b(\d+)\.conv0\.weight"), default=0).bit_length() - 1
    else:
        power = len(source.numbers(r"convs\.(\d+)\.skip\.1\.weight")) + 2
    layers = len(source.numbers(r"mapping\.fc(\d+)\.weight"))
    _check_size(source, power, 1)
    embed = source.tensors.get("mapping.embed.weight")
    rows = discriminator_rows(power, layers, conditional=embed is not None)
    state = source.translated(rows)
    widths = {1 << power: state["from_rgb.bias"].shape[0]}
    widths |= {(1 << power) >> (i + 1): state[f"blocks.{i}.conv1.bias"].shape[0] for i in range(power - 2)}
    config = {
        "resolution": 1 << power,
        "c_dim": 0 if embed is None else embed.shape[1],
        "image_channels": state["from_rgb.weight"].shape[1],
        "mapping_layers": layers,
        "low_res_kernel": state["conv.weight"].shape[-1],
        "conv_clamp": conv_clamp,
        "stddev_group": stddev_group,
        "stddev_channels": state["conv.weight"].shape[1] - widths[4],
        **_channel_plan(source.path, widths),
    }
    return _filled(source, StyleGAN2Discriminator, config, state, rows, given={})


def _filled(
    source: _Source,
    build: Callable[..., Net],
    config: dict[str, Any],
    state: dict[str, Tensor],
    rows: list[Row],
    given: dict[str, Tensor | None],
) -> Net:
    """A network of `config` holding `state` (and what of `given` is not None), each shape checked."""
    net = build(**config)
    layout = {row.ours: row for row in rows}
    own = net.state_dict()
    values = {name: tensor for name, tensor in (state | given).items() if tensor is not None}
    for name, tensor in values.items():
        expected = tuple(own[name].shape)
        if source.format == "rosinality" and name not in given:
            expected = layout[name].rosinality_shape(expected)
        if tuple(tensor.shape) != expected:
            raise UserError(f"{source.path}: {name} has shape {tuple(tensor.shape)}, wanted {expected}")
        own[name] = tensor.reshape(own[name].shape)
    net.load_state_dict(own)
    return net.eval()


def _check_size(source: _Source, power: int, layers: int) -> None:
    if not 5 <= power <= 10 or layers == 0:
        raise UserError(
            f"{source.path} has no StyleGAN2 network of 32 to 1024 pixels in {source.format}'s layout; its keys begin "
            f"with {_some(sorted(source.tensors))}"
        )


def _channel_plan(path: Path, widths: dict[int, int]) -> dict[str, int]:
    """channel_base and channel_max such that min(base / resolution, max) gives `widths`."""
    maximum = max(widths.values())
    narrow = [resolution * width for resolution, width in widths.items() if width < maximum]
    base = max(narrow) if narrow else maximum * max(widths)
    if any(min(base // resolution, maximum) != width for resolution, width in widths.items()):
        raise UserError(f"{path}: channels {widths} per resolution do not follow min(base / resolution, max)")
    return {"channel_base": base, "channel_max": maximum}


def _fir(gain: float) -> Tensor:
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
    return torch.outer(taps, taps) * gain


def _check_filter(path: Path, name: str, kernel: Tensor) -> None:
    if kernel.shape != (4, 4) or not torch.allclose(kernel / kernel.sum(), _fir(1), atol=1e-4):
        raise UserError(f"{path}: {name} is not the [1, 3, 3, 1] filter; other resampling filters are not supported")


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:4]) or "nothing"
    return f"{shown} and {len(names) - 4} more" if len(names) > 4 else shown


def to_rosinality(generator: StyleGAN2Generator, discriminator: StyleGAN2Discriminator | None = None) -> dict[str, Any]:
    """{g_ema, latent_avg} and, with a discriminator, {d}: tensors in rosinality's names and shapes.

    Raises UserError for conditional networks, which that code does not have.
    """
    power = generator.synthesis.resolution.bit_length() - 1
    rows = generator_rows(power, len(generator.mapping.layers), conditional=bool(generator.mapping.c_dim))
    content: dict[str, Any] = {
        "g_ema": _exported(generator, rows, generator_filters(power), gain=4),
        "latent_avg": generator.mapping.w_avg.clone(),
    }
    if discriminator is not None:
        power = discriminator.resolution.bit_length() - 1
        rows = discriminator_rows(power, 0, conditional=bool(discriminator.c_dim))
        content["d"] = _exported(discriminator, rows, discriminator_filters(power), gain=1)
    return content


def _exported(net: nn.Module, rows: list[Row], filters: list[str], gain: float) -> dict[str, Tensor]:
    if any(row.rosinality is None and row.ours != "mapping.w_avg" for row in rows):
        raise UserError("rosinality's layout has no conditional networks; export to safetensors instead")
    state = net.state_dict()
    named = {
        row.rosinality: state[row.ours].reshape(row.rosinality_shape(tuple(state[row.ours].shape))).clone()
        for row in rows
        if row.rosinality is not None
    }
    return named | {name: _fir(gain) for name in filters}


def save_rosinality(
    path: Path, generator: StyleGAN2Generator, discriminator: StyleGAN2Discriminator | None = None
) -> None:
    """Write `to_rosinality` as a `.pt` file, atomically."""
    with atomic_path(path) as temporary:
        torch.save(to_rosinality(generator, discriminator), temporary)


def save_safetensors(
    path: Path, generator: StyleGAN2Generator, discriminator: StyleGAN2Discriminator | None = None
) -> None:
    """Write the networks, atomically, with their configurations as JSON in the file's metadata."""
    nets: dict[str, StyleGAN2Generator | StyleGAN2Discriminator] = {"generator": generator}
    if discriminator is not None:
        nets["discriminator"] = discriminator
    tensors = {
        f"{name}.{key}": value.detach().cpu().contiguous()
        for name, net in nets.items()
        for key, value in net.state_dict().items()
    }
    metadata = {"kind": SAFETENSORS_KIND} | {name: json.dumps(net.config) for name, net in nets.items()}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata=metadata)


def _load_safetensors(path: Path) -> StyleGAN2Weights:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            names = file.keys()
            tensors = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is torn or no safetensors file: {error}") from error
    if metadata.get("kind") != SAFETENSORS_KIND:
        raise UserError(f"{path} was not exported from StyleGAN2 networks by this package: its metadata lacks the kind")
    generator = _rebuilt(path, StyleGAN2Generator, "generator", metadata, tensors)
    if generator is None:
        raise UserError(f"{path} holds no generator")
    discriminator = _rebuilt(path, StyleGAN2Discriminator, "discriminator", metadata, tensors)
    return StyleGAN2Weights("safetensors", generator, discriminator)


def _rebuilt(
    path: Path, build: Callable[..., Net], name: str, metadata: Mapping[str, str], tensors: Mapping[str, Tensor]
) -> Net | None:
    if name not in metadata:
        return None
    prefix = f"{name}."
    state = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    try:
        config = json.loads(metadata[name])
        with torch.device("meta"):  # costs no memory, should the configuration ask for more than the file holds
            expected = {key: value.shape for key, value in build(**config).state_dict().items()}
        if expected != {key: value.shape for key, value in state.items()}:
            raise ValueError("names or shapes of its tensors differ")
        net = build(**config)
        net.load_state_dict(state)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise UserError(f"{path}: the {name} does not fit its configuration: {error}") from error
    return net.eval()
