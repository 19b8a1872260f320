"""Weights of Wav2Lip's networks from and to other people's files: `.pth`, TorchScript, safetensors, ONNX.

Reads the published dictionaries ({"state_dict", "optimizer", ...}) with and without `module.` before the names, plain
dictionaries of tensors, TorchScript archives, safetensors and the checkpoints of our own training. The format is told
by content, the kind of network by the names of its tensors; nothing in a file is executed.
"""

import json
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from common.checkpoint_file import SCHEMA, read_tensors
from common.errors import UserError
from common.files import atomic_path
from common.torchscript import check_archive, is_torchscript, read_torchscript
from common.weights import load_state
from lipsync.networks import QualityDiscriminator, SyncExpert, Wav2Lip
from lipsync.networks.blocks import WINDOW

Kind = Literal["generator", "expert", "discriminator"]
SAFETENSORS_KIND = "speechface-lipsync"
_NETWORKS: dict[str, type[nn.Module]] = {
    "generator": Wav2Lip,
    "expert": SyncExpert,
    "discriminator": QualityDiscriminator,
}
_CALLED = {"generator": "a lip-sync generator", "expert": "a sync expert", "discriminator": "a quality discriminator"}
_HOUSE: dict[str, dict[Kind, tuple[str, ...]]] = {
    "lipsync": {
        "generator": ("generator_ema", "generator"),
        "expert": ("judge.expert",),
        "discriminator": ("discriminator",),
    },
    "lipsync-expert": {"expert": ("expert",)},
}
_SPEECH = {"generator": "speech", "expert": "judge_speech"}
_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
_ROWS = {2: 39, 3: 80, 5: 119}  # of the speech features, by the height of the kernel that takes the last map whole
_OTHERS = {
    "netcnnaud.": "SyncNet (syncnet_v2.model), which scores videos; give it to `python -m common lse`",
    "conv1_1.": "the face detector S3FD, which is found among the weights and never given as a checkpoint",
    "vgg.0.": "the face detector S3FD, which is found among the weights and never given as a checkpoint",
}


@dataclass(frozen=True)
class Weights:
    """One network of a file: `state` fits the network of `kind` and `config` exactly, see `build`.

    `speech` is the state of the speech features that it was trained with; empty where the file has none. `cfg` is the
    configuration of the run, as plain types, in the checkpoints of our own training.
    """

    kind: Kind
    state: dict[str, Tensor]
    config: dict[str, Any]
    speech: dict[str, Tensor] = field(default_factory=dict)
    cfg: Mapping[str, Any] | None = None


def load_weights(path: Path, kind: Kind | None = None) -> Weights:
    """Read one network from a file of any known format, on the CPU.

    Args:
        path: the file.
        kind: what is needed. None takes what a file holds, and the generator of a stage B's checkpoint.

    Raises:
        UserError: no such file, a torn or unsafe one, another network or architecture than ours, no `kind` in it.
    """
    if not path.is_file():
        raise UserError(f"no such file: {path}; give a checkpoint, .pth, TorchScript or safetensors file")
    if is_torchscript(path):
        return _plain(path, read_torchscript(path), kind)
    if zipfile.is_zipfile(path):
        check_archive(path)
        content = read_tensors(path)
        if isinstance(content, Mapping) and {"kind", "hyper_parameters", "state_dict"} <= content.keys():
            return _house(path, content, kind)
        return _plain(path, _unwrapped(path, content), kind)
    if _is_safetensors(path):
        return _safetensors(path, kind)
    return _plain(path, load_state(path), kind)


def build(weights: Weights) -> nn.Module:
    """The network of these weights, in eval mode on the CPU: `Wav2Lip`, `SyncExpert` or `QualityDiscriminator`."""
    network = _NETWORKS[weights.kind](**weights.config)
    network.load_state_dict(weights.state)
    return network.eval()


def save_safetensors(path: Path, weights: Weights) -> None:
    """Write the network under the published names, atomically, with kind and configuration in the metadata."""
    tensors = weights.state | {f"speech.{name}": value for name, value in weights.speech.items()}
    metadata = {"format": SAFETENSORS_KIND, "kind": weights.kind, "config": json.dumps(weights.config)}
    with atomic_path(path) as temporary:
        save_file({name: value.clone().contiguous() for name, value in tensors.items()}, temporary, metadata=metadata)


def export_onnx(path: Path, weights: Weights) -> None:
    """Write a generator as ONNX (opset 17), atomically: `audio` (N,1,rows,16), `faces` (N,6,S,S) -> `drawn` (N,3,S,S).

    N is free. Batch norms are folded into the convolutions. Raises UserError for another network than a generator.
    """
    if weights.kind != "generator":
        raise UserError(f"only generators are exported to ONNX, and this is {_CALLED[weights.kind]}")
    network = build(weights)
    assert isinstance(network, Wav2Lip)
    example = (torch.rand(2, 1, network.rows, WINDOW), torch.rand(2, 6, network.size, network.size))
    names = ("audio", "faces", "drawn")
    with atomic_path(path) as temporary, warnings.catch_warnings():
        # tracing warns of the shape checks, which hold for any N; the exporter that replaces it needs onnxscript
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            example,
            temporary,
            dynamo=False,
            opset_version=17,
            input_names=list(names[:2]),
            output_names=list(names[2:]),
            dynamic_axes={name: {0: "frames"} for name in names},
        )


def convert(source: Path, out: Path, kind: str = "") -> Weights:
    """Read `source` and write `out` as its suffix says, .safetensors or .onnx; returns what was written.

    `kind` as in `load_weights`, empty for None. Raises UserError for unknown suffixes and kinds before it reads.
    """
    writers = {".safetensors": save_safetensors, ".onnx": export_onnx}
    if out.suffix not in writers:
        raise UserError(f"cannot export to {out}: the name must end in {' or '.join(writers)}")
    if kind and kind not in get_args(Kind):
        raise UserError(f"unknown network {kind!r}; known: {', '.join(get_args(Kind))}")
    weights = load_weights(source, cast(Kind, kind) if kind else None)
    writers[out.suffix](out, weights)
    return weights


def describe(weights: Weights) -> str:
    """The network in a few words."""
    config = weights.config
    rows = f", {config['rows']} feature rows" if "rows" in config else ""
    count = sum(value.numel() for name, value in weights.state.items() if not name.endswith(_BUFFERS))
    return f"{_CALLED[weights.kind]} of {config['size']} px{rows}, {count:,} parameters"


def kind_of(path: Path, names: Mapping[str, Any]) -> Kind:
    """The kind of network by its tensors' names; UserError that says what the file seems to hold instead."""
    for prefix, found in _OTHERS.items():
        if any(name.startswith(prefix) for name in names):
            raise UserError(f"{path} holds the weights of {found}")
    parts = {name.split(".")[0] for name in names}
    if "face_decoder_blocks" in parts:
        return "generator"
    if "binary_pred" in parts:
        return "discriminator"
    if {"audio_encoder", "face_encoder"} <= parts and any(name.startswith("audio_encoder.13.") for name in names):
        return "expert"
    raise UserError(f"{path} holds none of Wav2Lip's networks; its names begin with {_some(sorted(names))}")


def _unwrapped(path: Path, content: Any) -> dict[str, Tensor]:
    """The named tensors of a legacy dictionary."""
    state = content.get("state_dict", content) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path} is no dictionary of tensors, nor holds one as 'state_dict'; give a weights file")
    return dict(state)


def _plain(path: Path, state: Mapping[str, Tensor], kind: Kind | None, known: Mapping[str, Any] = {}) -> Weights:
    """Weights from names and shapes alone; a leading `module.`, which DataParallel leaves, is taken off."""
    if not all(isinstance(name, str) for name in state):
        raise UserError(f"{path} names its tensors by something else than text; it holds none of Wav2Lip's networks")
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    found = kind_of(path, state)
    if kind is not None and found != kind:
        raise UserError(f"{path} holds {_CALLED[found]}, but {_CALLED[kind]} is needed here")
    return _fitted(path, found, state, known)


def _fitted(path: Path, kind: Kind, state: Mapping[str, Tensor], known: Mapping[str, Any]) -> Weights:
    """Weights whose names and shapes are those of the network that `known` and the shapes describe, in float32."""
    if sum(value.numel() * value.itemsize for value in state.values()) > 2 * path.stat().st_size:
        raise UserError(f"{path} describes tensors that would take far more memory than the file; refused to unpack it")
    other = f"{path} holds {_CALLED[kind]} of another architecture than ours"
    try:
        config = _inferred(path, kind, state) | dict(known)
        with torch.device("meta"):  # costs no memory, should the configuration ask for more than the file holds
            expected = {name: tuple(value.shape) for name, value in _NETWORKS[kind](**config).state_dict().items()}
    except KeyError as error:
        raise UserError(f"{other}: it lacks {error}") from error
    except (TypeError, ValueError, IndexError, RuntimeError, ArithmeticError) as error:
        raise UserError(f"{other}: {str(error).splitlines()[0]}") from error
    given = dict(state)
    for name, shape in expected.items():
        if name.endswith("num_batches_tracked") and shape == ():
            given.setdefault(name, torch.tensor(0))  # which files before PyTorch 0.4.1 lack
    missing, unexpected = sorted(expected.keys() - given.keys()), sorted(given.keys() - expected.keys())
    if missing or unexpected:
        raise UserError(f"{other}: missing {_some(missing)}; unexpected {_some(unexpected)}")
    for name, shape in expected.items():
        if tuple(given[name].shape) != shape:
            raise UserError(f"{other}: {name} is {tuple(given[name].shape)}, wanted {shape}")
    floats = {name: value.float() if value.is_floating_point() else value for name, value in given.items()}
    return Weights(kind, floats, config)


def _inferred(path: Path, kind: Kind, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Keyword arguments of the network as far as shapes tell them; where they do not, those of the official files."""
    if kind == "expert":
        top, last = state["face_encoder.15.conv_block.0.weight"], state["audio_encoder.12.conv_block.0.weight"]
        return _sizes(top) | _rows(last, state)
    blocks = len({name.split(".")[1] for name in state if name.startswith("face_encoder_blocks.")})
    if blocks != 7:
        raise UserError(
            f"{path} holds {_CALLED[kind]} of another architecture than ours: it has {blocks} face blocks, as those "
            "for 256, 288 or 384 px, and ours 7; give one of the official architecture (96 px)"
        )
    top = state["face_encoder_blocks.6.0.conv_block.0.weight"]
    if kind == "discriminator":
        return _sizes(top) | {"norm": "none"}
    last = state["audio_encoder.11.conv_block.0.weight"]
    return _sizes(top) | _rows(last, state) | _attention(state)


def _sizes(top: Tensor) -> dict[str, Any]:
    """Image size and width by the convolution (512 width, 512 width, S/32, S/32)."""
    return {"size": 32 * top.shape[2], "width": top.shape[0] / 512}


def _rows(last: Tensor, state: Mapping[str, Tensor]) -> dict[str, Any]:
    if "projection.weight" in state:
        return {"rows": state["projection.weight"].shape[1], "projection": True}
    if last.shape[2] not in _ROWS:
        raise ValueError(f"its speech features have none of {', '.join(map(str, _ROWS.values()))} rows")
    return {"rows": _ROWS[last.shape[2]], "projection": False}


def _attention(state: Mapping[str, Tensor]) -> dict[str, Any]:
    names = [name for name in state if name.startswith("attention.audio_256.")]
    channel, spatial = ("squeeze.weight", "conv.weight")
    found = (any(name.endswith(channel) for name in names), any(name.endswith(spatial) for name in names))
    modes = {(False, False): "none", (True, False): "channel", (False, True): "spatial", (True, True): "both"}
    return {"attention": modes[found]}


def _house(path: Path, checkpoint: Mapping[str, Any], kind: Kind | None) -> Weights:
    """One network of a checkpoint of our training."""
    parts = _HOUSE.get(str(checkpoint["kind"]))
    if parts is None:
        raise UserError(f"{path} is a checkpoint of {checkpoint['kind']!r}, which holds no lip-sync network")
    schema = checkpoint.get("schema")
    if not isinstance(schema, int) or schema > SCHEMA:
        raise UserError(f"{path} was written by the newer version {checkpoint.get('version')}; update this software")
    wanted: Kind = next(iter(parts)) if kind is None else kind
    tensors = _unwrapped(path, checkpoint)
    states = (_below(tensors, name) for name in parts.get(wanted, ()))
    state = next(filter(None, states), None)
    if state is None:
        raise UserError(f"{path} holds {_CALLED[next(iter(parts))]}'s training, but no {wanted}")
    speech = _below(tensors, "speech" if checkpoint["kind"] == "lipsync-expert" else _SPEECH.get(wanted, ""))
    fitted = _fitted(path, wanted, state, _configured(path, checkpoint, wanted))
    return replace(fitted, speech=speech, cfg=checkpoint["hyper_parameters"]["cfg"])


def _configured(path: Path, checkpoint: Mapping[str, Any], kind: Kind) -> dict[str, Any]:
    """What shapes do not tell: the exact width, how gates act, the norm."""
    try:
        hyper = checkpoint["hyper_parameters"]
        cfg = hyper["cfg"]
        if kind == "expert":
            shape = hyper["judge"] if checkpoint["kind"] == "lipsync" else cfg["expert"]
            return {"width": shape["width"]}
        shape = cfg[kind]
        if kind == "discriminator":
            return {name: shape[name] for name in ("width", "norm")}
        return {name: shape[name] for name in ("width", "attention", "residual", "reduction")}
    except (LookupError, TypeError) as error:
        raise UserError(f"{path} does not say how its {kind} was configured ({error}); train it again") from error


def _below(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    start = f"{prefix}."
    return {name.removeprefix(start): value for name, value in state.items() if name.startswith(start)}


def _is_safetensors(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(9)[8:] == b"{"  # eight bytes of header length, then JSON


def _safetensors(path: Path, kind: Kind | None) -> Weights:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            names = file.keys()
            tensors = {name: file.get_tensor(name) for name in names}
        config = json.loads(metadata["config"]) if metadata.get("format") == SAFETENSORS_KIND else {}
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise UserError(f"{path} is torn or no safetensors file: {error}") from error
    if not isinstance(config, dict):
        raise UserError(f"{path}: the configuration in its metadata is none")
    speech = _below(tensors, "speech")
    state = {name: value for name, value in tensors.items() if not name.startswith("speech.")}
    return replace(_plain(path, state, kind, config), speech=speech)


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:4]) or "nothing"
    return f"{shown} and {len(names) - 4} more" if len(names) > 4 else shown
