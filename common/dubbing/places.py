"""What a look at names and folders tells, before minutes go into networks and passes over a video."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from common.checkpoint_file import LAST
from common.errors import UserError


def check_inputs(files: Mapping[str, Path | None]) -> None:
    """See that files are there and may be read.

    Args:
        files: by the option that names each; None is an option that was not given.

    Raises:
        UserError: the first that is missing, a folder, or may not be read, and its option.
    """
    for option, path in files.items():
        if path is None:
            continue
        if path.is_dir():
            hint = f"did you mean {path / LAST}?" if (path / LAST).is_file() else "give a file"
            raise UserError(f"{option} {path} is a folder; {hint}")
        if not path.is_file():
            hint = "; run the training that makes it first" if path.suffix == ".ckpt" else ""
            raise UserError(f"{option}: no such file: {path}{hint}")
        if not os.access(path, os.R_OK):
            raise UserError(f"{option}: no permission to read {path}")


def check_output(out: Path, suffix: str, inputs: Iterable[Path | None]) -> None:
    """See that a file can be written where nothing that is needed lies. Nothing is made.

    Args:
        out: the file; its folder may be one that is yet to be made.
        suffix: what its name must end in.
        inputs: files that are read; None is one that was not given.

    Raises:
        UserError: an input, another suffix, a folder, or a place where no file can be made.
    """
    for path in inputs:
        if path is not None and out.exists() and path.exists() and out.samefile(path):
            raise UserError(f"{out} is an input as well; give the output another name")
    if out.suffix.lower() != suffix:
        raise UserError(f"{out} does not end in {suffix}, the format that is written")
    if out.is_dir():
        raise UserError(f"cannot write {out}: it is a folder; name a file")
    place = out.absolute().parent
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir():
        raise UserError(f"cannot write {out}: {place} is a file, not a folder")
    if not os.access(place, os.W_OK | os.X_OK):
        raise UserError(f"cannot write {out}: no permission to write in {place}")
