"""Reads the tensors of TorchScript archives without running the code that is in them.

`torch.jit.load` compiles and may run what an archive brings along. The tensors need none of that: `data.pkl` says how
modules nest and which views of which stored bytes they hold. It is read here by an unpickler for which every name
stands for inert data; the code beside it is never opened.
"""

import io
import pickle
import pickletools
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from common.errors import UserError
from common.safe_pickle import Inert, Refused, checked_view

MAX_PICKLE = 4 << 20
"""Bytes of `data.pkl`; Wav2Lip's is 60 KB."""
MAX_MODULES = 20_000
MAX_DEPTH = 64
_DTYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_MEMO = {"BINPUT", "LONG_BINPUT"}
_OPCODES = _MEMO | {
    "PROTO", "STOP", "MARK", "BINGET", "LONG_BINGET", "GLOBAL", "NEWOBJ", "REDUCE", "BUILD", "BINPERSID", "NONE",
    "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "EMPTY_TUPLE", "TUPLE",
    "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_LIST", "APPEND", "APPENDS", "EMPTY_DICT", "SETITEM", "SETITEMS",
}  # fmt: skip


class _Stored(NamedTuple):
    """Bytes of the archive as a flat tensor: their name there, and the type and count of the elements."""

    key: str
    dtype: torch.dtype
    numel: int


class _View(NamedTuple):
    stored: Any
    offset: Any
    size: Any
    stride: Any


class _Opaque:
    """What no weight needs."""

    __slots__ = ()


def is_torchscript(path: Path) -> bool:
    """Whether the file is an archive that `torch.jit.save` wrote: those have constants beside the data."""
    if not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.count("/") == 1 and name.endswith("/constants.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError, NotImplementedError, ValueError):
        return False


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """Tensors of a TorchScript archive, named as its module's `state_dict` names them, on the CPU.

    Plain tensor attributes count as buffers. Memory is that of the archive: compressed or overlapping entries, which
    `torch.jit.save` does not write, are refused.

    Raises:
        UserError: a torn file, one whose data asks for anything that weights do not need, one without named tensors.
    """
    try:
        check_archive(path)
        with zipfile.ZipFile(path) as archive:
            tensors = _Archive(archive).tensors()
    except Refused as error:
        raise UserError(f"refused to read {path}: {error}") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except (
        pickle.UnpicklingError,
        zipfile.BadZipFile,
        ArithmeticError,
        AttributeError,
        EOFError,
        ImportError,
        LookupError,
        MemoryError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        raise UserError(f"{path} is no whole TorchScript archive ({type(error).__name__}); fetch it again") from error
    if not tensors:
        raise UserError(f"{path} holds no named tensors (a frozen TorchScript archive?); give one that was not frozen")
    return tensors


def check_archive(path: Path) -> None:
    """Raise UserError where unpacking a PyTorch zip would take more memory than the file: a compressed one, say."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [entry for entry in archive.infolist() if not _is_code(entry.filename)]
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise UserError(f"{path} is torn: its table of contents cannot be read ({error})") from error
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED:
            raise UserError(f"{path}: {entry.filename} is compressed, which PyTorch never does; refused to unpack it")
    if sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise UserError(f"{path}: its entries overlap, which PyTorch never writes; refused to unpack it")


def _is_code(name: str) -> bool:
    return "/code/" in name or name.endswith(".debug_pkl")


class _Archive:
    def __init__(self, archive: zipfile.ZipFile) -> None:
        self.archive = archive
        (found,) = {name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")}
        self.root = found.removesuffix("data.pkl")
        self.storages: dict[str, Tensor] = {}

    def tensors(self) -> dict[str, Tensor]:
        order = f"{self.root}byteorder"
        if order in self.archive.namelist() and self.archive.read(order) != b"little":
            raise Refused("its numbers are not little endian")
        if self.archive.getinfo(f"{self.root}data.pkl").file_size > MAX_PICKLE:
            raise Refused(f"its data.pkl has more than {MAX_PICKLE >> 20} MiB")
        data = self.archive.read(f"{self.root}data.pkl")
        _check_opcodes(data)
        reader = _Reader(data)
        return {name: self._tensor(view) for name, view in reader.views(reader.load()).items()}

    def _tensor(self, view: _View) -> Tensor:
        if not isinstance(view.stored, _Stored):
            raise Refused("a tensor without a storage")
        return checked_view(self._storage(view.stored), view.offset, view.size, view.stride)

    def _storage(self, stored: _Stored) -> Tensor:
        """The bytes of `stored` as a flat tensor; read once, checksum compared."""
        if stored.key not in self.storages:
            content = self.archive.read(f"{self.root}data/{stored.key}")
            if len(content) != stored.numel * stored.dtype.itemsize:
                raise Refused(f"storage {stored.key} is not as long as it is said to be")
            self.storages[stored.key] = (
                torch.frombuffer(bytearray(content), dtype=stored.dtype)
                if content
                else torch.zeros(0, dtype=stored.dtype)
            )
        flat = self.storages[stored.key]
        if flat.dtype != stored.dtype:
            raise Refused(f"storage {stored.key} is of two types")
        return flat


def _check_opcodes(data: bytes) -> None:
    """Only what `torch.jit.save` writes: the C unpickler allocates whatever size a memo index or length asks for."""
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name not in _OPCODES:
            raise Refused(f"its data.pkl uses {opcode.name}, which TorchScript does not write")
        if opcode.name in _MEMO and (not isinstance(argument, int) or argument > len(data)):
            raise Refused("its data.pkl remembers more than it holds")


class _Reader(pickle.Unpickler):
    """Modules become `module` objects that hold their attributes, views are described, all else is inert."""

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data))

        class Module:  # of this file alone, so that nothing set on it outlives the reading
            __slots__ = ("attributes",)

            def __setstate__(self, state: Any) -> None:
                self.attributes = state

        self.module = Module

    def find_class(self, module: str, name: str) -> Any:
        if module == "__torch__" or module.startswith("__torch__."):
            return self.module
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return Inert(_view)
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if (module, name) == ("collections", "OrderedDict"):
            return Inert(_opaque)
        if module == "torch.jit._pickle":
            return Inert(_opaque)
        raise Refused(f"it asks for {module}.{name}, which no weight needs")

    def persistent_load(self, pid: Any) -> _Stored:
        tag, dtype, key, _, count = pid
        if tag != "storage" or not isinstance(dtype, torch.dtype) or not isinstance(key, str) or type(count) is not int:
            raise Refused("a storage of no known form")
        return _Stored(key, dtype, count)

    def views(self, content: Any) -> dict[str, _View]:
        """Tensors below the outermost module by their dotted names."""
        if not isinstance(content, self.module):
            raise Refused("its data is no module")
        found: dict[str, _View] = {}
        waiting: list[tuple[str, Any, int]] = [("", content, 0)]
        for seen in range(MAX_MODULES + 1):
            if not waiting:
                return found
            prefix, module, depth = waiting.pop()
            if seen == MAX_MODULES or depth > MAX_DEPTH:
                break
            attributes = getattr(module, "attributes", None)
            if not isinstance(attributes, dict):
                raise Refused("a module without attributes")
            for name, value in attributes.items():
                if isinstance(value, _View):
                    found[f"{prefix}{name}"] = value
                elif isinstance(value, self.module):
                    waiting.append((f"{prefix}{name}.", value, depth + 1))
        raise Refused("its modules nest without end")


def _view(stored: Any, offset: Any, size: Any, stride: Any, *_: Any) -> _View:
    return _View(stored, offset, size, stride)


def _opaque(*_: Any) -> _Opaque:
    return _Opaque()
