"""Work for the engine's processes, in a module that they import quickly."""

import os

import torch

from common.data.engine import Drop, Outcome, Unit


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
