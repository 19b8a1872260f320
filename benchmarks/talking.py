"""How fast the embedded talking corpus is made, stage by stage; the aim is a minute of video a minute on two cores.

The built-in head always; ICT-FaceKit where its npz is found. One thread: clips are shared out over processes.
"""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.timing import interleaved_medians, print_table
from common.errors import UserError
from common.face3d.morphable import FaceModel, find_ict, load_face_model
from common.synthetic.performance import FPS, Take, draw, perform, record
from common.video import write_clip

SIZES = (96, 128, 224)
AIM, CORES = 60.0, 2


def measure(name: str, model: FaceModel) -> None:
    """Print seconds of work per second of video, and what that makes on two cores."""
    take = record(0, 0, 0, "zh")
    seconds = len(take.times) / FPS
    functions: dict[str, Callable[[], object]] = {
        "speak": partial(record, 0, 0, 0, "zh"),
        "move": partial(perform, model, take, 0, 0, 0, size=128),
    }
    for size in SIZES:
        made = perform(model, take, 0, 0, 0, size=size)
        functions[f"draw {size} px"] = partial(draw, model, made, size)
        drawn = draw(model, made, size).images
        functions[f"write {size} px"] = partial(_write, drawn, take)
    rows = {
        key: (median / seconds, least / seconds)
        for key, (median, least) in interleaved_medians(functions, repeats=3, warmup=1).items()
    }
    print_table(f"{name}: time per second of video, one core", rows)
    for size in SIZES:
        whole = sum(rows[key][0] for key in ("speak", "move", f"draw {size} px", f"write {size} px"))
        print(f"{size} px: {60 * CORES / whole:.0f} s of video a minute on {CORES} cores (aim: {AIM:.0f})")


def _write(images: np.ndarray, take: Take) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_clip(Path(folder), images, take.wave)


def main() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        measure("built-in head", load_face_model("builtin"))
        try:
            find_ict()
        except UserError as error:
            print(f"\nICT-FaceKit skipped: {error}")
        else:
            measure("ICT-FaceKit", load_face_model("ict"))
    finally:
        torch.set_num_threads(threads)


if __name__ == "__main__":
    main()
