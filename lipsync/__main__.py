"""python -m lipsync prepare | train | check | dub | export"""

from pathlib import Path
from typing import Annotated, Literal

import typer

from common.cli import (
    Checkpoint,
    ConfigFile,
    Device,
    Out,
    Overrides,
    Overwrite,
    Resume,
    make_app,
    pick_device,
    run_cli,
)
from common.config import load
from common.errors import UserError
from lipsync.config import LipSyncConfig

app = make_app("A face video and speech go in, the same video with lips that follow the speech comes out.")


@app.command()
def prepare(
    source: Annotated[str, typer.Option(help="folder (your own videos), cmlr, lrs2, lrw or voxceleb-video")],
    input: Annotated[Path, typer.Option(help="the raw data; only read")],
    out: Out,
    filter: Annotated[str | None, typer.Option(help="none, plain, clr or latentsync")] = None,
    sync: Annotated[str, typer.Option(help="SyncNet weights: auto (where they are here), none or a file")] = "auto",
    limit: Annotated[int | None, typer.Option(help="at most so many people")] = None,
    workers: Annotated[int | None, typer.Option(help="processes; all cores unless given")] = None,
    fresh: Annotated[bool, typer.Option(help="start anew where earlier options differ")] = False,
    device: Device = "cpu",
) -> None:
    """Cut videos into clips of a talking face; `python -m common prepare talking` has all options."""
    from common.data.talking_prepare import prepare_talking, settings_of

    settings = settings_of(source, filter, [])
    report = prepare_talking(
        source, input, out, settings, sync=sync, limit=limit, workers=workers, fresh=fresh, device=pick_device(device)
    )
    print(report.text())


@app.command()
def train(
    experiment: ConfigFile,
    overrides: Overrides = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Train the sync expert (stage A) and the generator (stage B)."""
    from lipsync.train import train as train_run  # brings Lightning along, which the other commands do not need

    train_run(load(LipSyncConfig, experiment, overrides or []), resume=resume, overwrite=overwrite)


@app.command()
def check(
    experiment: ConfigFile,
    overrides: Overrides = None,
    steps: Annotated[int, typer.Option(min=1, help="updates at most")] = 200,
    device: Device = "auto",
) -> None:
    """See whether the sync expert can learn one batch by heart, and why not, before a long training."""
    from lipsync.data import open_corpus
    from lipsync.overfit import overfit_one_batch

    cfg = load(LipSyncConfig, experiment, overrides or [])
    found = overfit_one_batch(cfg, open_corpus(cfg.data), steps=steps, device=pick_device(device))
    if found.cause:
        raise UserError(f"one batch was not learnt by heart: {found.text()}")
    print(found.text())


@app.command()
def dub(
    checkpoint: Checkpoint,
    video: Annotated[Path, typer.Option(help="the video, or a still image")],
    audio: Annotated[Path, typer.Option(help="the speech: a sound file, or a video with sound")],
    out: Out,
    face: Annotated[str, typer.Option(help="whose lips: largest, longest or index:K")] = "largest",
    when_shorter: Annotated[
        Literal["stop", "keep"], typer.Option(help="speech shorter than the video: stop with it, or keep the rest")
    ] = "stop",
    align: Annotated[
        Literal["train", "upstream"], typer.Option(help="where a frame's speech lies; upstream is 40 ms off")
    ] = "train",
    reference: Annotated[
        Literal["silence", "same", "closed"],
        typer.Option(help="the network's reference: a closed mouth in silence, never or always"),
    ] = "silence",
    silence: Annotated[
        Literal["close", "ignore"], typer.Option(help="close the mouth where nobody speaks, or let it follow any sound")
    ] = "close",
    mask: Annotated[Literal["face", "box"], typer.Option(help="paste the lower face, or the whole crop")] = "face",
    feather: Annotated[float, typer.Option(min=0, max=0.5, help="soft edge of the mask, share of the face")] = 0.1,
    crf: Annotated[int, typer.Option(min=0, max=51, help="x264's quality, 0 is lossless")] = 18,
    batch: Annotated[int, typer.Option(min=0, help="faces drawn together; 0: the device's best")] = 0,
    precision: Annotated[Literal["32", "bf16"], typer.Option(help="of the network")] = "32",
    backend: Annotated[str, typer.Option(help="face detector: dlib or face_alignment")] = "dlib",
    visible_label: Annotated[bool, typer.Option(help="draw the label into the picture as well")] = False,
    device: Device = "auto",
) -> None:
    """Make the lips of a video follow other speech."""
    from lipsync.dub import DubSettings, dub_files

    settings = DubSettings(
        face=face,
        when_shorter=when_shorter,
        align=align,
        reference=reference,
        silence=silence,
        mask=mask,
        feather=feather,
        crf=crf,
        batch=batch,
        precision=precision,
        backend=backend,
        visible_label=visible_label,
    )
    print(dub_files(checkpoint, video, audio, out, settings, pick_device(device)).text())
    print(f"written: {out}")


@app.command()
def export(
    checkpoint: Annotated[
        Path, typer.Option("--checkpoint", "-c", help="a run's last.ckpt, or Wav2Lip's .pth, .pt or safetensors")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="FILE.safetensors, or FILE.onnx (generators)")],
    network: Annotated[str, typer.Option(help="generator, expert or discriminator, where the file has several")] = "",
) -> None:
    """Write a network for use elsewhere; reads other people's files too, and runs nothing that is in them."""
    from lipsync.weights_io import convert, describe

    print(f"{out}: {describe(convert(checkpoint, out, network))}")


if __name__ == "__main__":
    run_cli(app)
