"""Talking clips in a few lines: a bar in the place of the mouth opens with the loudness of a noise."""

from pathlib import Path

import numpy as np

from common.data.corpus import Corpus, Item, write_manifest
from common.faces.align import MEAN_FACE
from common.video import write_clip
from tests.common.toy_sync import toy_clip

SHORT = 9
"""Frames of the clip that is too short for anything."""


def toy_landmarks(frames: int) -> np.ndarray:
    """A face of 40 px in the middle of pictures of 64 px, (frames,68,2)."""
    points = np.zeros((68, 2))
    points[17:] = MEAN_FACE * 40 + (12.5, 14)
    angle = np.linspace(0, np.pi, 17)
    points[:17] = np.stack([32 - 22 * np.cos(angle), 32 + 25 * np.sin(angle)], axis=1)
    return np.repeat(points[None], frames, axis=0).astype(np.float32)


def toy_talk(
    root: Path, *, frames: int = 40, train: int = 3, hidden: tuple[int, int] = (0, 0), offset: float | None = 0.0
) -> Corpus:
    """`train` clips of a, b, ... to train on, three in val, one in test, and one that is too short.

    Args:
        root: folder of the corpus.
        frames: of each clip.
        train: number of training clips, each of its own person; three of y are in val, the last two a little shorter.
        hidden: frames of the first clip without a face.
        offset: measured sync offset of all.
    """
    people = [(chr(ord("a") + i), "train", frames) for i in range(train)]
    items = []
    held_out = [("y", "val", frames), ("y", "val", frames - 2), ("y", "val", frames - 4), ("z", "test", frames)]
    for number, (person, split, length) in enumerate([*people, *held_out, ("a", "train", SHORT)]):
        name = f"clips/{person}{number}"
        folder = root / name
        folder.mkdir(parents=True)
        images, wave = toy_clip(number, length)
        points = toy_landmarks(length)
        if number == 0:
            points[slice(*hidden)] = np.nan
        write_clip(folder, images, wave, landmarks=points)
        items.append(Item(name, person, split, "clip", name, length, 25.0, len(wave), sync_offset=offset))
    write_manifest(root, items)
    return Corpus.open(root)
