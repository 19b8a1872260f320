"""Tracking beside detection in every frame, and its memory: `python -m benchmarks.tracking`.

A synthetic head, moving and talking in a frame of 1280x720, and the clips in $SPEECHFACE_MEDIA/real/clips where that
is set. Both sides get decoded frames and one backend. Processor time is shown, which other programs disturb less than
they do the clock.

Every frame's landmarks are regressed on both sides, so that the ratio cannot exceed that of detection and landmarks to
landmarks alone. In large frames the detector takes most of the time and the bound is far; in small ones, of 360x288,
the detector is quick and the bound is 3.6; a detection every twelve frames leaves 3.0 of it.
"""

import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from benchmarks.timing import machine
from common.face3d.morphable import load_face_model
from common.face3d.render import render
from common.faces import load_backend
from common.faces.base import FaceBackend
from common.faces.track import track_frames
from common.faces.tracks import Tracking, choose
from common.synthetic.identity import face_coefficients, sample_nuisance
from common.video import read_frames

FRAMES = 100
SHORT, LONG = 250, 3000
WIDTH, HEIGHT, SIDE = 1280, 720, 480
T = TypeVar("T")


def synthetic_head() -> list[np.ndarray]:
    """A second of a rendered head in a wide frame, forth and back to fill `FRAMES`."""
    model, count = load_face_model("builtin"), 25
    identity, albedo = face_coefficients(np.zeros(8), model)
    nuisance = sample_nuisance(model, np.random.default_rng(0), 1, SIDE)
    clock = torch.arange(count) / 25
    expression = torch.zeros(count, model.sizes[1])
    expression[:, model.expression_names.index("jawOpen")] = 0.25 + 0.25 * torch.sin(20 * clock)
    angles = torch.stack([0.1 * torch.sin(3 * clock), 0.2 * clock, 0.05 * clock], dim=1)
    canvas = np.random.default_rng(0).integers(90, 120, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    images = []
    for t in range(count):
        row = slice(t, t + 1)
        made = render(model, identity, expression[row], albedo, angles[row], nuisance.translation, nuisance.gamma, SIDE)
        head = (made.image[0].clamp(0, 1) * 255).byte().permute(1, 2, 0).numpy()
        picture = canvas.copy()
        part = picture[120 : 120 + SIDE, 300 + 6 * t : 300 + 6 * t + SIDE]
        inside = made.mask[0, 0].numpy() > 0.5
        part[inside] = head[inside]
        images.append(picture)
    return list(islice(cycle([*images, *images[::-1]]), FRAMES))


def timed(function: Callable[[], T]) -> tuple[float, T]:
    """Processor seconds of a call, and its result."""
    start = time.process_time()
    result = function()
    return time.process_time() - start, result


def track(images: list[np.ndarray], backend: FaceBackend, count: int | None = None) -> Tracking:
    """Track the images, over and over where `count` asks for more of them."""
    endless: Iterator[np.ndarray] = islice(cycle(images), count or len(images))
    return track_frames(((index / 25, image) for index, image in enumerate(endless)), backend)


def compare(name: str, images: list[np.ndarray], backend: FaceBackend) -> None:
    """Print one line: times, their ratio, and how far apart the landmarks are."""
    track(images[:2], backend)
    quick, tracking = timed(lambda: track(images, backend))
    once = next(box for box in tracking.tracks[0].boxes if np.isfinite(box).all())
    least, _ = timed(lambda: [backend.landmarks(image, once) for image in images])
    slow, found = timed(lambda: [backend.detect([image])[0] for image in images])
    chosen = choose(tracking)
    width = float(np.nanmedian(chosen.boxes[:, 2] - chosen.boxes[:, 0]))
    reference = np.stack([faces[0].landmarks if faces else np.full((68, 2), np.nan) for faces in found])
    followed = chosen.landmarks - reference[chosen.start : chosen.start + len(chosen)]
    distance = np.nanmedian(np.linalg.norm(followed, axis=2)) * 224 / width
    print(
        f"{name}, {images[0].shape[1]}x{images[0].shape[0]}, face of {width:.0f} px: tracking "
        f"{quick / len(images) * 1e3:.1f} ms a frame, detecting every frame {slow / len(images) * 1e3:.1f} ms, "
        f"{slow / quick:.1f} times (aim: 5; landmarks alone in every frame: {slow / least:.1f}); "
        f"median difference {distance:.2f} px at 224 (aim: 1); a face in "
        f"{int(chosen.present.sum())} and {sum(map(bool, found))} of {len(images)} frames"
    )


def peak_memory() -> float:
    """The most memory that this process has held, in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def main() -> None:
    torch.set_num_threads(1)
    print(machine())
    backend = load_backend("dlib")
    images = synthetic_head()
    track(images, backend, SHORT)
    before = peak_memory()
    track(images, backend, LONG)
    print(f"memory: {peak_memory() - before:.0f} MB more for {LONG} frames than for {SHORT}")
    compare("synthetic", images, backend)
    media = os.environ.get("SPEECHFACE_MEDIA")
    for path in sorted((Path(media) / "real" / "clips").iterdir()) if media else []:
        compare(path.name, [frame.image for frame in islice(read_frames(path), FRAMES)], backend)


if __name__ == "__main__":
    main()
