"""Drawing and dubbing at the official size: `python -m benchmarks lipsync`.

The generator alone, as it is trained and as `dub` runs it; then `dub` by stages on a synthetic head that speaks for a
few seconds, and on the first clip of $SPEECHFACE_MEDIA/real/clips where that is set. Weights are random, which takes as
long as trained ones.
"""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from benchmarks.timing import interleaved_medians, machine
from benchmarks.tracking import synthetic_head
from common.audio.io import write_wav
from common.audio.lipsync_features import speech_features
from common.cli import pick_device
from common.synthetic.speech import speak
from common.video import VideoWriter
from lipsync.dub import dub
from lipsync.infer import LOOKED_AT, LipSync
from lipsync.networks import Wav2Lip, prepare_for_inference

SENTENCE = "今天天气很好，我们一起去公园走走。你想先喝一杯茶吗？"


@torch.inference_mode()
def drawn(network: nn.Module, windows: Tensor, faces: Tensor) -> Tensor:
    """One batch of faces."""
    faces_drawn: Tensor = network(windows, faces)
    return faces_drawn


def compare_drawing(generator: Wav2Lip, device: str) -> None:
    """Print frames a second of the plain module and of the prepared ones, side by side."""
    first_row = int(LOOKED_AT * generator.size)
    networks = {
        "plain module, eager, eval": generator,
        "prepared (norms folded, channels last)": prepare_for_inference(generator),
        f"prepared, rows from {first_row} on, as in dub": prepare_for_inference(generator, first_row=first_row),
    }
    for batch, repeats in ((1, 15), (16, 5)) if device == "cpu" else ((1, 50), (16, 50), (128, 20)):
        windows = torch.randn(batch, 1, 80, 16, device=device)
        faces = torch.rand(batch, 6, 96, 96, device=device)
        calls: dict[str, Callable[[], object]] = {
            name: partial(drawn, network, windows, faces) for name, network in networks.items()
        }
        medians = interleaved_medians(calls, repeats, warmup=2)
        plain = medians["plain module, eager, eval"][0]
        print(f"\nbatch {batch}")
        for name, (median, _) in medians.items():
            print(f"{name:42}  {batch / median:8.1f} frames/s  {plain / median:5.2f} times (aim: 1.3)")


def report_dub(name: str, model: LipSync, video: Path, audio: Path, folder: Path) -> None:
    """Print the stages of one `dub`."""
    report = dub(model, video, audio, folder / "out.mp4", progress=False)
    share = 1 - report.stages["generate"] / report.elapsed
    print(f"\ndub, {name}\n{report.text()}\noutside of the generator: {share:.0%} of the time (aim: 40 %)")


def main() -> None:
    torch.manual_seed(0)
    device = pick_device("auto")
    generator = Wav2Lip().to(device).eval()
    print(machine())
    compare_drawing(generator, device)
    model = LipSync(generator, speech_features("mel"), device=device)
    with TemporaryDirectory() as name:
        folder = Path(name)
        write_wav(folder / "speech.wav", speak(SENTENCE, "zh").wave)
        with VideoWriter(folder / "head.mp4", (1280, 720), 25) as writer:
            for image in synthetic_head():
                writer.write(image)
        report_dub("synthetic head, 1280x720", model, folder / "head.mp4", folder / "speech.wav", folder)
        media = os.environ.get("SPEECHFACE_MEDIA")
        for path in sorted((Path(media) / "real" / "clips").iterdir())[:1] if media else []:
            report_dub(path.name, model, path, path, folder)


if __name__ == "__main__":
    main()
