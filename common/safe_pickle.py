"""Reads the tensors of NVIDIA's network pickles without running anything that is in them.

Those pickles carry the source code of their classes, and NVIDIA's loader executes it. Here each of the few names that
an honest file needs stands for an inert function of ours; any other name ends the reading. A file can then at worst be
wrong, not harmful: tensors must lie inside their storage, and nothing that a file can reach is shared or callable
beyond these functions.
"""

import io
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.errors import UserError


class PersistentObject:
    """What NVIDIA's persistence pickled: the name of a class and the instance's attributes."""

    __slots__ = ("class_name", "state")

    def __init__(self, class_name: str, state: dict[str, Any]) -> None:
        self.class_name, self.state = class_name, state

    def init_kwargs(self) -> dict[str, Any]:
        """Keyword arguments that the instance was built with; empty where they are not recorded."""
        kwargs = self.state.get("_init_kwargs")
        return dict(kwargs) if isinstance(kwargs, dict) else {}

    def tensors(self, prefix: str = "") -> dict[str, Tensor]:
        """Parameters and buffers, named as `state_dict` names them. Raises UserError where this is no module."""
        found = {}
        for kind in ("_parameters", "_buffers"):
            for name, value in self._members(kind).items():
                if isinstance(value, Tensor):
                    found[f"{prefix}{name}"] = value
        for name, child in self._members("_modules").items():
            if isinstance(child, PersistentObject):
                found |= child.tensors(f"{prefix}{name}.")
        return found

    def _members(self, kind: str) -> dict[str, Any]:
        members = self.state.get(kind)
        if not isinstance(members, dict):
            raise UserError(f"the pickled {self.class_name} is not a network: it has no {kind}")
        return members


class Refused(pickle.UnpicklingError):
    """The pickle asks for something that an honest network pickle does not hold."""


class Inert:
    """A fresh stand-in per name: without attributes that the pickle's BUILD could leave behind for a later file."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)


class _Ignored:
    """Takes the place of numpy scalars and their types, which no weight needs."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        """Nothing is kept of the state."""


def _persistent(meta: Any) -> PersistentObject:
    if not isinstance(meta, dict) or not isinstance(meta.get("state"), dict):
        raise Refused("a persistent object without a state")
    return PersistentObject(str(meta.get("class_name")), meta["state"])


def _storage(data: Any) -> torch.TypedStorage:
    if not isinstance(data, bytes):
        raise Refused("a storage that is not bytes")
    storage = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    if not isinstance(storage, torch.TypedStorage):
        raise Refused("bytes that hold no storage")
    return storage


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
    if not isinstance(storage, torch.TypedStorage):
        raise Refused("a tensor without a storage")
    return checked_view(torch.empty(0, dtype=storage.dtype).set_(storage), offset, size, stride).clone()


def checked_view(flat: Tensor, offset: Any, size: Any, stride: Any) -> Tensor:
    """The described view of `flat` (n,); `Refused` unless it lies inside without overlap by stride 0."""
    numbers = [offset, *size, *stride]
    if len(size) != len(stride) or any(type(n) is not int or n < 0 for n in numbers):
        raise Refused("a tensor with an impossible shape")
    count = 1
    for n in size:
        count *= n
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if count > flat.numel() or (count > 0 and last >= flat.numel()):
        raise Refused("a tensor that reaches beyond its storage")
    return flat.as_strided(size, stride, offset)


def _parameter(data: Any, *_: Any) -> Tensor:
    if not isinstance(data, Tensor):
        raise Refused("a parameter without a tensor")
    return data


def _ignored(*_: Any) -> _Ignored:
    return _Ignored()


_FUNCTIONS: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): _persistent,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch.storage", "_load_from_bytes"): _storage,
    ("numpy.core.multiarray", "scalar"): _ignored,
    ("numpy._core.multiarray", "scalar"): _ignored,
    ("numpy", "dtype"): _ignored,
}
_TYPES: dict[tuple[str, str], type] = {
    ("dnnlib.util", "EasyDict"): dict,
    ("collections", "OrderedDict"): OrderedDict,
    ("builtins", "set"): set,
    ("__builtin__", "set"): set,
}


class _InertUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _TYPES:
            return _TYPES[module, name]
        if (module, name) in _FUNCTIONS:
            return Inert(_FUNCTIONS[module, name])
        if module.startswith("dnnlib.tflib"):
            raise Refused(
                "it is a TensorFlow-era network; convert it with NVIDIA's legacy.py to a PyTorch pickle first"
            )
        raise Refused(f"it asks for {module}.{name}, which no network needs")


def read_network_pickle(path: Path) -> Any:
    """The content of an NVIDIA PyTorch `.pkl`: containers, tensors and `PersistentObject`s; nothing is executed.

    Raises UserError when the file is torn, from the TensorFlow era, or asks for any name outside the allowed ones.
    """
    try:
        with open(path, "rb") as file:
            return _InertUnpickler(file).load()
    except Refused as error:
        raise UserError(f"refused to read {path}: {error}") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except (
        pickle.UnpicklingError,
        EOFError,
        ArithmeticError,
        AssertionError,
        AttributeError,
        ImportError,
        LookupError,
        MemoryError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        raise UserError(f"{path} is not a whole network pickle ({type(error).__name__}); fetch it again") from error
