"""Talking clips with coefficients in a few lines: the jaw of the built-in face opens with the loudness of a noise."""

from pathlib import Path

import numpy as np
import torch

from common.data.corpus import Corpus, Item, write_manifest
from common.face3d.camera import Camera, pose
from common.face3d.morphable import load_face_model
from common.video import write_clip
from tests.common.toy_sync import toy_clip

SIZE = 64
SHORT = 7
"""Frames of the clip that is too short for anything."""


def toy_coefficients(seed: int, frames: int) -> dict[str, np.ndarray]:
    """A face in the middle of 64 px that turns a little and opens its jaw."""
    rng = np.random.default_rng(seed)
    model = load_face_model("builtin")
    people, expressions, colours = model.sizes
    expression = np.zeros((frames, expressions), np.float32)
    expression[:, model.expression_index("jawOpen")] = rng.uniform(0, 0.6, frames)
    expression[:, model.expression_index("eyeBlink_L")] = rng.uniform(0, 0.3, frames)
    return {
        "identity": rng.normal(size=people).astype(np.float32) * 0.5,
        "albedo": rng.normal(size=colours).astype(np.float32) * 0.5,
        "expression": expression,
        "angles": rng.normal(size=(frames, 3)).astype(np.float32) * 0.02,
        "translation": np.tile(np.array([0, -0.1, -1.0], np.float32), (frames, 1)),
        "gamma": np.zeros((frames, 27), np.float32),
        "size": np.array(SIZE),
        "face_model": np.array("builtin"),
        "expression_names": np.array(model.expression_names),
    }


def toy_landmarks(coefficients: dict[str, np.ndarray]) -> np.ndarray:
    """Where the coefficients' landmarks lie, (frames,68,2) px."""
    model = load_face_model("builtin")
    parts = {name: torch.from_numpy(coefficients[name]) for name in ("identity", "expression", "angles", "translation")}
    shape = model.shape(parts["identity"].expand(len(parts["expression"]), -1), parts["expression"])
    xy, _ = Camera(SIZE).project(pose(shape, parts["angles"], parts["translation"]))
    return model.landmarks(xy).numpy()


def toy_dub(root: Path, *, frames: int = 24, train: int = 3, **change: np.ndarray) -> Corpus:
    """`train` clips to train on, two of y in val, one of z in test, and one that is too short.

    Args:
        root: folder of the corpus.
        frames: of each clip; the second of val is shorter by two.
        train: number of training clips, each of its own person.
        change: coefficients of the first clip that differ.
    """
    people = [(chr(ord("a") + i), "train", frames) for i in range(train)]
    held_out = [("y", "val", frames), ("y", "val", frames - 2), ("z", "test", frames)]
    items = []
    for number, (person, split, length) in enumerate([*people, *held_out, ("a", "train", SHORT)]):
        name = f"clips/{person}{number}"
        folder = root / name
        folder.mkdir(parents=True)
        images, wave = toy_clip(number, length)
        found = toy_coefficients(number, length)
        points = toy_landmarks(found)
        write_clip(folder, images, wave, landmarks=points, coefficients=found | (change if number == 0 else {}))
        items.append(Item(name, person, split, "clip", name, length, 25.0, len(wave), sync_offset=0.0))
    write_manifest(root, items)
    return Corpus.open(root)
