"""Paper 4's renderer beside its floor, and dubbing by stages: `python -m benchmarks dubbing3d`.

The floor is the time that the networks' multiply-accumulates (table 7) take at the rate of plain 3x3 convolutions,
measured in the same run on the same machine. Fewer are done (`dubbing3d.networks.convolutions`); the same ratio is
printed for those too. Then what draws without training, `dub` by stages on a synthetic head that speaks and on the
first clip of $SPEECHFACE_MEDIA/real/clips where that is set, and the peak of a process's memory by the length of the
video. Weights are random, which takes as long as trained ones.
"""

import os
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.stylegan2 import multiply_accumulates
from benchmarks.timing import interleaved_medians, machine
from benchmarks.tracking import synthetic_head
from common.audio.io import write_wav
from common.cli import pick_device
from common.face3d.morphable import load_face_model
from common.synthetic.speech import speak
from common.video import VideoWriter
from dubbing3d.build import LoadedExpression, LoadedRenderer, build_expression, build_renderer
from dubbing3d.coefficients import FaceModelMark
from dubbing3d.complexity import complexity
from dubbing3d.config import DubbingConfig
from dubbing3d.crop_mask import crop_mask
from dubbing3d.dub import dub
from dubbing3d.dubber import DubSettings, Performer
from dubbing3d.guide import FaceFrames, draw_guide
from dubbing3d.infer import FaceRenderer, LearnedRenderer
from dubbing3d.speech import SpeechWindows
from dubbing3d.warp_renderer import WarpRenderer

SENTENCE = "The sky above the harbour was grey, and nobody spoke for a while."
PROBES = ((256, 48), (128, 96), (64, 192))
"""Channels and size of the convolutions whose median rate makes the floor: the renderer's own."""
SIZE = (640, 360)
LENGTHS = (5, 25)
"""Seconds of the videos whose dubbing's memory is compared."""


def compare_renderer(device: str, batch: int, dtype: torch.dtype) -> None:
    """Print the networks of the renderer at the paper's size beside their floors."""
    size = 192
    network = build_renderer(DubbingConfig()).to(device, dtype).eval()

    def random(*shape: int) -> Tensor:
        return torch.rand(*shape, device=device, dtype=dtype) * 2 - 1

    guide, crop = random(batch, 3, size, size), random(batch, 3, size, size)
    references = network.encode_references(random(1, 1, 3, size, size))
    functions: dict[str, Callable[[], None]] = {
        "flow and texture (SFM, TMN)": lambda: _run(network.texture, guide, references),
        "whole renderer": lambda: _run(network, guide, references, crop),
    }
    table, parts = complexity(), (("SFM", "TMN"), ("SFM", "TMN", "RBFIN"))
    stated = [1e9 * batch * sum(table[part]["gmacs"] for part in each) for each in parts]
    done = [multiply_accumulates(function) for function in functions.values()]
    work: dict[str, float] = {}
    probes: dict[str, Callable[[], object]] = {}
    for channels, side in PROBES:
        x = random(batch, channels, side, side).contiguous(memory_format=torch.channels_last)
        weight = random(channels, channels, 3, 3)
        name = f"convolution {channels} at {side} px"
        probes[name] = lambda x=x, weight=weight: _run(F.conv2d, x, weight, None, 1, 1)  # type: ignore[misc]
        work[name] = float(batch * channels**2 * 9 * side**2)
    times = interleaved_medians({**functions, **probes}, repeats=5 if device == "cpu" else 30, warmup=1)
    rate = statistics.median(work[name] / times[name][0] for name in work)
    print(f"\n{size} px, batch {batch}, {dtype}, {device}; 3x3 convolutions run at {rate / 1e9:.0f} GMAC/s")
    for name, count, work_done in zip(functions, stated, done, strict=True):
        seconds = times[name][0]
        print(
            f"{name:30}{batch / seconds:9.2f} frames/s{count / batch / 1e9:9.1f} GMAC a frame"
            f"{seconds * rate / count:7.2f} times its floor (aim: 1.3);{work_done / batch / 1e9:7.1f} GMAC are done,"
            f"{seconds * rate / work_done:5.2f} times theirs"
        )


@torch.no_grad()
def _run(function: Callable[..., object], *arguments: object) -> None:
    function(*arguments)


def compare_drawing(device: str) -> None:
    """Print what the parts without networks take, at 192 px."""
    model = load_face_model("builtin").to(device)
    batch, size = 4, 192

    def zeros(columns: int) -> Tensor:
        return torch.zeros(batch, columns)

    shift = torch.tensor([0.0, 0.0, -2.0])
    own = torch.eye(2, 3, dtype=torch.float64).expand(batch, 2, 3)
    face = FaceFrames(
        zeros(model.sizes[0]), zeros(model.sizes[2]), zeros(model.sizes[1]), zeros(3), zeros(3) + shift, zeros(27),
        own, size,
    )  # fmt: skip
    crops = draw_guide(model, face, own, size)[0]
    masks = crop_mask(model, face, own, size)
    landmarks = torch.full((batch, 68, 2), torch.nan, device=device)
    wanted = zeros(model.sizes[1])
    wanted[:, model.expression_index("jawOpen")] = 0.5
    renderer = WarpRenderer(model)
    renderer.begin(crops, face, own, masks, landmarks)
    times = interleaved_medians(
        {
            "guide": lambda: draw_guide(model, face, own, size),
            "crop mask": lambda: crop_mask(model, face, own, size),
            "renderer without training": lambda: renderer.render(crops, face, wanted, own, masks, landmarks),
        },
        repeats=5,
        warmup=1,
    )
    print(f"\nwithout networks, built-in face model, {size} px, batch {batch}, {device}")
    for name, (median, _) in times.items():
        print(f"{name:30}{1e3 * median / batch:9.1f} ms a frame")


def random_performer(renderer: str, device: str) -> Performer:
    """Both stages with random weights, at the paper's size."""
    cfg = DubbingConfig()
    cfg.expression.semantic = False
    model = load_face_model("builtin").to(device)
    mark = FaceModelMark.of(model, "builtin")
    network = build_expression(cfg, len(mark.lengths)).to(device).eval()
    speech = SpeechWindows().to(device)
    first = LoadedExpression(network, speech, mark, torch.zeros(len(mark.lengths)), cfg)
    drawing: FaceRenderer = WarpRenderer(model)
    if renderer != "warp":
        drawing = LearnedRenderer(LoadedRenderer(build_renderer(cfg).to(device).eval(), mark, cfg), model)
    return Performer(first, drawing, model)


def report_dub(name: str, renderer: str, device: str, video: Path, audio: Path, folder: Path) -> None:
    """Print the stages of one `dub`."""
    report = dub(random_performer(renderer, device), video, audio, folder / "out.mp4", progress=False)
    print(f"\ndub, {name}, renderer {renderer}\n{report.text()}")


def small_heads() -> list[np.ndarray]:
    """A rendered head that speaks forth and back, at half the size."""
    return [np.ascontiguousarray(image[::2, ::2]) for image in synthetic_head()]


def peak_of_length(seconds: int) -> float:
    """MiB at the highest of a process of its own that dubs a video of so many seconds by landmarks alone."""
    done = subprocess.run(
        [sys.executable, "-c", f"from benchmarks.dubbing3d import dub_length; dub_length({seconds})"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return float(done.stdout.split()[-1])


def dub_length(seconds: int) -> None:
    """Dub a small synthetic head for so long; print the peak of this process's memory in MiB."""
    torch.set_num_threads(1)
    heads = small_heads()
    with TemporaryDirectory() as name:
        folder = Path(name)
        with VideoWriter(folder / "head.mp4", SIZE, 25) as writer:
            for index in range(25 * seconds):
                writer.write(heads[index % len(heads)])
        write_wav(folder / "speech.wav", 0.1 * torch.randn(16000 * seconds).clamp(-3, 3))
        performer = random_performer("warp", "cpu")
        settings = DubSettings(colours=False)
        dub(performer, folder / "head.mp4", folder / "speech.wav", folder / "out.mp4", settings, progress=False)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def main() -> None:
    torch.manual_seed(0)
    device = pick_device("auto")
    print(machine())
    compare_renderer(device, 1 if device == "cpu" else 16, torch.float32)
    if device == "cuda":
        compare_renderer(device, 16, torch.bfloat16)
    compare_drawing(device)
    renderers = ("warp", "learned")
    with TemporaryDirectory() as name:
        folder = Path(name)
        write_wav(folder / "speech.wav", speak(SENTENCE, "en").wave)
        with VideoWriter(folder / "head.mp4", SIZE, 25) as writer:
            for image in small_heads():
                writer.write(image)
        for renderer in renderers:
            report_dub("synthetic head", renderer, device, folder / "head.mp4", folder / "speech.wav", folder)
        media = os.environ.get("SPEECHFACE_MEDIA")
        for path in sorted((Path(media) / "real" / "clips").iterdir())[:1] if media else []:
            report_dub(path.name, "warp", device, path, path, folder)
    peaks = {seconds: peak_of_length(seconds) for seconds in LENGTHS}
    print("\npeak memory of a dub by landmarks, by the video's length: "
          + ", ".join(f"{seconds} s {peak:.0f} MiB" for seconds, peak in peaks.items()))  # fmt: skip


if __name__ == "__main__":
    main()
