"""Reading a run's checkpoints: torch only, so that using a trained model needs nothing of its training.

A run folder holds `last.ckpt`, the one before as `previous.ckpt`, and numbered ones (`step_00002000.ckpt`) where the
configuration asks for them. `common.checkpoints` writes them.
"""

import warnings
import zipfile
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from common.errors import UserError

SCHEMA = 1
"""Version of the checkpoint's own keys; raised when old files can no longer be read."""
LAST, PREVIOUS = "last.ckpt", "previous.ckpt"


def load_checkpoint(path: Path, kind: str) -> dict[str, Any]:
    """Read a checkpoint of `kind` onto the CPU, never running code that a file brings along.

    Returns Lightning's dictionary (`state_dict`, `optimizer_states` ...) with `cfg` (the configuration as plain types,
    for `common.config.from_dict`), `kind`, `step`, `schema` and `version`.

    Raises:
        UserError: no such file, a torn one, one that holds more than tensors and plain types, one of another kind.
    """
    checkpoint = read_tensors(path)
    if not isinstance(checkpoint, dict) or not {"kind", "schema", "step", "hyper_parameters"} <= checkpoint.keys():
        raise UserError(f"{path} was not written by this software's training; give a run folder's {LAST}")
    if checkpoint["kind"] != kind:
        raise UserError(f"{path} is a checkpoint of {checkpoint['kind']!r}, but {kind!r} is needed here")
    if checkpoint["schema"] > SCHEMA:
        raise UserError(f"{path} was written by the newer version {checkpoint['version']}; update this software")
    checkpoint["cfg"] = checkpoint["hyper_parameters"]["cfg"]
    return checkpoint


def find_resumable(folder: Path, kind: str) -> tuple[Path, dict[str, Any]] | None:
    """The newest whole checkpoint of a run folder; None where the run was stopped before its first save.

    A torn `last.ckpt` falls back to `previous.ckpt` with a warning. Raises UserError where all are torn.
    """
    torn: list[str] = []
    for path in (folder / LAST, folder / PREVIOUS):
        if not path.exists():
            continue
        try:
            checkpoint = load_checkpoint(path, kind)
        except UserError as error:
            torn.append(str(error))
            continue
        if torn:
            warnings.warn(f"{torn[0]}; going on from {path} (step {checkpoint['step']})", stacklevel=2)
        return path, checkpoint
    if torn:
        raise UserError(f"nothing to resume from: {'; '.join(torn)}")
    return None


def read_tensors(path: Path) -> Any:
    """What a whole checkpoint file holds, on the CPU: tensors and plain types only; UserError for anything else."""
    if not path.is_file():
        raise UserError(f"no such checkpoint: {path}")
    if not zipfile.is_zipfile(path):
        raise UserError(f"{path} is torn or not a checkpoint; nothing was read from it")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # torch.load compares no checksums
        if damaged:
            raise UserError(f"{path} is torn: the checksum of {damaged} is wrong")
        return torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise UserError(
            f"{path} holds more than tensors and plain values, so it could run code; it was not loaded"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"{path} is torn or not a checkpoint ({reason})") from error
