"""Weights files of other software, made up in their exact formats, and pickles that call what they should not."""

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from tests.lipsync.upstream import expert_shapes, generator_shapes, quality_shapes, random_state

WIDTH = 1 / 16
STATES = {
    "generator": random_state(generator_shapes(WIDTH)),
    "expert": random_state(expert_shapes(WIDTH)),
    "discriminator": random_state(quality_shapes(WIDTH)),
}


def write_legacy(path: Path, state: Mapping[str, Tensor], *, prefix: str = "", zipped: bool = True) -> Path:
    """What Wav2Lip's save_checkpoint writes."""
    named = {f"{prefix}{name}": value for name, value in state.items()}
    optimizer = {"state": {0: {"step": 3, "exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 1e-4, "params": [0]}]}
    content = {"state_dict": named, "optimizer": optimizer, "global_step": 258000, "global_epoch": 88}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


class Tree(nn.Module):
    """A module of nothing but named tensors, as deep as their names."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        below: dict[str, dict[str, Tensor]] = {}
        for name, value in state.items():
            head, _, rest = name.partition(".")
            if rest:
                below.setdefault(head, {})[rest] = value
            elif value.is_floating_point() and not name.startswith("running"):
                self.register_parameter(head, nn.Parameter(value.clone()))
            else:
                self.register_buffer(head, value.clone())
        for head, part in below.items():
            self.add_module(head, Tree(part))

    def forward(self, x: Tensor) -> Tensor:
        return x


def write_torchscript(path: Path, state: Mapping[str, Tensor]) -> Path:
    torch.jit.save(torch.jit.script(Tree(state)), str(path))
    return path


def rewrite(path: Path, changes: Mapping[str, bytes], *, compress: bool = False) -> Path:
    """The archive with entries, named without their first folder, replaced or added."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    root = next(iter(entries)).split("/")[0]
    entries |= {f"{root}/{name}": content for name, content in changes.items()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return path


def read_entry(path: Path, name: str) -> bytes:
    with zipfile.ZipFile(path) as archive:
        return archive.read(f"{archive.namelist()[0].split('/')[0]}/{name}")


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function: object, *args: object) -> None:
        self.function, self.args = function, args

    def __reduce__(self) -> tuple[object, ...]:
        return self.function, self.args


def safetensors_header(path: Path) -> dict[str, dict[str, str]]:
    content = path.read_bytes()
    return json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
