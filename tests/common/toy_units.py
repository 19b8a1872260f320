"""Work for the engine's processes, in a module that they import quickly."""

import os
from pathlib import Path

import torch

from common.data.corpus import Item
from common.data.engine import Drop, InputError, Outcome, Product, Unit
from common.errors import UserError


def hostile(unit: Unit, tools: str) -> Outcome:
    if unit.payload == "die":
        os._exit(3)
    if unit.payload == "raise":
        raise RuntimeError("odd\nfile")
    return Outcome(drops=[Drop(unit.key, tools)])


def tools() -> str:
    return f"done with {torch.get_num_threads()} thread"


def key_of(unit: Unit) -> str:
    return unit.key


def clip(unit: Unit, tools: str) -> Outcome:
    if unit.payload == "die":
        os._exit(3)

    def fill(folder: Path) -> None:
        (folder / "landmarks.npy").write_bytes(b"half")
        if unit.payload == "full":
            raise UserError("the disk is full")
        if unit.payload == "torn":
            raise InputError("the video is cut off")
        (folder / "video.mp4").write_bytes(b"whole")

    item = Item(f"clips/{unit.key}", "ann", "train", "clip", f"clips/{unit.key}", frames=3, fps=25.0)
    return Outcome(products=[Product(item, fill)])
