"""A talking corpus in a few lines: a bright bar opens with the loudness of a noise."""

from pathlib import Path

import numpy as np
import torch

from common.data.corpus import Corpus, Item, write_manifest
from common.video import write_clip

SIZE, FRAMES = 64, 40


def toy_clip(seed: int, frames: int = FRAMES) -> tuple[list[np.ndarray], torch.Tensor]:
    """Frames uint8 (64,64,3) and wave (640 frames,) whose loudness is the height of the bar."""
    rng = np.random.default_rng(seed)
    knots = rng.uniform(0, 1, frames // 3 + 3)
    time = np.arange(frames * 640) / 640
    loud = np.interp(time, np.arange(len(knots)) * 3, knots)
    wave = 0.3 * loud**2 * rng.normal(size=len(time))
    images = []
    for frame in range(frames):
        image = np.full((SIZE, SIZE, 3), 60, dtype=np.uint8)
        image[40 : 41 + int(20 * loud[int((frame + 0.5) * 640)]), 16:48] = (220, 120, 100)
        images.append(image)
    return images, torch.from_numpy(wave.clip(-1, 1).astype(np.float32))


def toy_corpus(root: Path, *, frames: int = FRAMES) -> Corpus:
    """Three people: two clips of a and one of b to train on, one of c in val; one clip of a is too short."""
    items = []
    clips = [*[(person, frames) for person in "aabc"], ("a", 9)]
    for number, (person, length) in enumerate(clips):
        split = "val" if person == "c" else "train"
        name = f"clips/{person}{number}"
        folder = root / name
        folder.mkdir(parents=True)
        images, wave = toy_clip(number, length)
        write_clip(folder, images, wave)
        items.append(Item(name, person, split, "clip", name, length, 25.0, len(wave)))
    write_manifest(root, items)
    return Corpus.open(root)
