"""StyleGAN2 files of other software, made up in their exact formats, and pickles that call what they should not."""

import pickle
import re
from collections import OrderedDict
from pathlib import Path

import torch
from torch import Tensor, nn

from voice2face.networks.stylegan2 import StyleGAN2Discriminator, StyleGAN2Generator
from voice2face.weights_io import StyleGAN2Weights

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


class Call:
    def __init__(self, function: object, *args: object) -> None:
        self.function, self.args = function, args

    def __reduce__(self) -> tuple:
        return self.function, self.args


# NVIDIA: objects whose pickles have the reduce form of torch_utils.persistence.


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


def write_nvidia(path: Path, generator: nn.Module, discriminator: nn.Module, **content: object) -> None:
    g_kwargs = {"z_dim": 12, "synthesis_kwargs": EasyDict(channel_base=256, num_fp16_res=2, conv_clamp=256)}
    d_kwargs = {"conv_clamp": 256, "epilogue_kwargs": EasyDict(mbstd_group_size=8)}
    objects = {"G": nvidia_object(generator, g_kwargs), "D": nvidia_object(discriminator, d_kwargs)}
    objects |= {"G_ema": nvidia_object(generator, g_kwargs), "augment_pipe": None}
    path.write_bytes(pickle.dumps(objects | {"training_set_kwargs": EasyDict(max_size=10)} | content))
