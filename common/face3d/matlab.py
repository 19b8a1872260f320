"""Numeric arrays out of MATLAB files that a stranger may have made: shapes are checked before anything is decoded."""

import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.io import loadmat, whosmat
from scipy.io.matlab import MatReadError

from common.errors import UserError

MAX_BYTES = 1 << 30
"""A larger file is refused; the largest of the face models here, 01_MorphableModel.mat, has 240 MB."""

_NUMERIC = ("double", "single", "logical", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)))
_HDF5 = b"\x89HDF\r\n\x1a\n"

# what scipy's readers raise on torn and hostile bytes
_DAMAGE = (
    MatReadError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    EOFError,
    OverflowError,
    zlib.error,
)


def read_mat(path: Path, wanted: Mapping[str, tuple[int, ...]]) -> dict[str, NDArray[Any]]:
    """The arrays that `wanted` names, each of exactly its shape (axes of length 1 aside), real and numeric.

    Other variables are skipped. Structs, cells, objects and sparse matrices are refused: nothing is executed.

    Raises:
        UserError: absent, oversized, torn or foreign file (HDF5 said so by name), absent variable, other shape or kind.
    """
    try:
        _check_head(path)
        found = {name: (shape, kind) for name, shape, kind in whosmat(path)}
        for name, shape in wanted.items():
            _check_variable(path, name, shape, found)
        content = loadmat(path, variable_names=list(wanted))
        arrays = {name: np.asarray(content[name]).reshape(shape) for name, shape in wanted.items()}
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except (NotImplementedError, MemoryError, *_DAMAGE) as error:
        raise UserError(f"{path} is not a readable MATLAB file, or it is torn: {str(error)[:120]}") from error
    for name, array in arrays.items():
        if array.dtype.kind not in "buif" or (array.dtype.kind == "f" and not np.isfinite(array).all()):
            raise UserError(f"{path}: {name} holds numbers that are not real and finite: the file is damaged")
    return arrays


def _check_head(path: Path) -> None:
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise UserError(f"{path} has {size >> 20} MB, more than any face model's {MAX_BYTES >> 20} MB: another file")
    with open(path, "rb") as file:
        head = file.read(128)
    if head.startswith(_HDF5):
        raise UserError(
            f"{path} is an HDF5 file, as BFM 2017 and 2019 are (.h5): another model than BFM09, whose file is a .mat"
        )
    if head.startswith(b"MATLAB 7.3"):
        raise UserError(f"{path} is a MATLAB 7.3 (HDF5) file: save it again in MATLAB with save(..., '-v7')")


def _check_variable(
    path: Path, name: str, shape: tuple[int, ...], found: Mapping[str, tuple[tuple[int, ...], str]]
) -> None:
    if name not in found:
        raise UserError(f"{path} has no variable {name}; it holds {', '.join(list(found)[:12]) or 'nothing'}")
    held, kind = found[name]
    if kind not in _NUMERIC:
        raise UserError(f"{path}: {name} is a MATLAB {kind}, not a plain numeric array; it is not read")
    if [side for side in held if side != 1] != [side for side in shape if side != 1]:
        axes = " x ".join(map(str, held))
        raise UserError(f"{path}: {name} is {axes} ({math.prod(held)} numbers), wanted {' x '.join(map(str, shape))}")


def indices(path: Path, name: str, array: NDArray[Any], count: int) -> NDArray[np.int64]:
    """MATLAB's indices 1..count, stored as any kind of number, as 0..count-1; `UserError` where they are not."""
    low, high = array.min(), array.max()
    if low == 0:
        raise UserError(f"{path}: {name} counts from 0; MATLAB's indices count from 1: a wrong conversion")
    if low < 1 or high > count:
        raise UserError(f"{path}: {name} holds indices {low:g} to {high:g}, outside 1 to {count}: the file is damaged")
    whole: NDArray[np.int64] = array.astype(np.int64)
    if (whole != array).any():
        raise UserError(f"{path}: {name} holds fractions where it should hold indices: the file is damaged")
    return whole - 1
