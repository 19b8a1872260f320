"""python -m dubbing3d prepare | train | evaluate | table | dub"""

from pathlib import Path
from typing import Annotated, Literal

import typer

from common.cli import (
    OWN_SYNCNET,
    ConfigFile,
    Device,
    EngineName,
    Fresh,
    Out,
    Overrides,
    Overwrite,
    Resume,
    SyncJudge,
    Workers,
    make_app,
    pick_device,
    run_cli,
)
from common.config import load
from common.dubbing.held_out import given_or_held_out
from common.dubbing.places import check_inputs, check_output
from common.errors import UserError
from dubbing3d.config import DubbingConfig

app = make_app("A face video and speech go in, the video dubbed through a 3D face model comes out.")


@app.command()
def prepare(
    out: Out,
    source: Annotated[
        str, typer.Option(help="folder (your own videos), cmlr, lrs2, lrw, voxceleb-video, or none: OUT is a corpus")
    ] = "folder",
    input: Annotated[Path | None, typer.Option(help="the raw data; only read")] = None,
    face_model: Annotated[str, typer.Option(help="builtin, ict, ict:PATH, bfm09 or bfm09:PATH")] = "builtin",
    photometric: Annotated[bool, typer.Option(help="refine the fits by colours: slower; albedo and light")] = True,
    refit: Annotated[bool, typer.Option("--refit", help="fit clips again that have coefficients")] = False,
    filter: Annotated[str | None, typer.Option(help="none, plain, clr or latentsync")] = None,
    sync: Annotated[str, typer.Option(help="SyncNet weights: auto (where they are here), none or a file")] = "auto",
    limit: Annotated[int | None, typer.Option(help="at most so many people")] = None,
    workers: Workers = None,
    engine: EngineName = "local",
    fresh: Fresh = False,
    device: Device = "cpu",
) -> None:
    """Cut videos into clips of a talking face and fit the face model to each; the same command goes on after a stop."""
    from common.data.corpus import Corpus
    from common.data.talking_prepare import prepare_talking, settings_of
    from dubbing3d.prepare import fit_corpus

    if source != "none":
        if input is None:
            raise UserError(f"--source {source} wants --input, the folder of the raw data")
        settings = settings_of(source, filter, [])
        report = prepare_talking(
            source,
            input,
            out,
            settings,
            sync=sync,
            limit=limit,
            workers=workers,
            engine=engine,
            fresh=fresh,
            device=pick_device(device),
        )
        print(report.text())
    found = fit_corpus(
        Corpus.open(out),
        face_model,
        photometric=photometric,
        workers=workers,
        fresh=refit,
        device=pick_device(device),
    )
    print(found.text())


@app.command()
def train(
    experiment: ConfigFile,
    overrides: Overrides = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Train expressions from speech (stage 1) and the renderer (stage 2)."""
    from dubbing3d.train import train as train_run  # brings Lightning along, which the other commands do not need

    train_run(load(DubbingConfig, experiment, overrides or []), resume=resume, overwrite=overwrite)


@app.command()
def evaluate(
    checkpoint: Annotated[
        Path | None, typer.Option("--checkpoint", "-c", help="a run's last.ckpt, of either stage")
    ] = None,
    videos: Annotated[
        Path | None,
        typer.Option(help="instead of --checkpoint: another method's videos, named after the clips"),
    ] = None,
    corpus: Annotated[str, typer.Option("--corpus", "--truth", help="the checkpoint's own unless given")] = "",
    split: Annotated[str, typer.Option(help="test, val or train")] = "test",
    limit: Annotated[int, typer.Option(min=0, help="clips at most, spread evenly; 0: all")] = 0,
    frames: Annotated[int, typer.Option(min=0, help="consecutive frames of each clip at most; 0: the run's own")] = 0,
    weights: Annotated[str, typer.Option(help=f"SyncNet: official, {OWN_SYNCNET}, a file, auto, or none")] = "auto",
    protocol: Annotated[str, typer.Option(help="of --videos without --truth: lrs, real or latentsync")] = "lrs",
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="folder, the run's; for --videos a file, their scores.json"),
    ] = None,
    device: Device = "auto",
) -> None:
    """Measure a stage on held-out clips, or the videos of any other method by the same figures."""
    from common.score_report import evaluate_videos
    from dubbing3d.likeness import Likeness
    from dubbing3d.report import VIDEOS_SHOWN, DubbingSettings, evaluate_checkpoint

    settings, place = DubbingSettings(weights, split, limit, frames), pick_device(device)
    if (checkpoint is None) == (videos is None):
        raise UserError("evaluate wants either --checkpoint FILE or --videos FOLDER")
    if checkpoint is not None:
        print(evaluate_checkpoint(checkpoint, corpus, out, place, settings))
    elif videos is not None:
        print(
            evaluate_videos(
                videos, corpus, out, place, settings, protocol, VIDEOS_SHOWN, likeness=lambda: Likeness(place)
            )
        )


@app.command()
def table(
    budget: Annotated[str, typer.Option(help="tiny (meant for an hour on 2 cores) or full (the paper's)")] = "tiny",
    corpus: Annotated[str, typer.Option(help="corpus folder; the embedded corpus unless given")] = "",
    out: Annotated[Path, typer.Option("--out", "-o", help="folder of the table and figures")] = Path("tables"),
    seeds: Annotated[str, typer.Option(help="seeds of the trainings, such as '0 1 2'")] = "0",
    runs: Annotated[Path | None, typer.Option(help="folder of the runs; runs/dubbing3d/table-BUDGET")] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="runs at a time; 2 for tiny, 1 for full")] = None,
    weights: SyncJudge = "auto",
    semantic: Annotated[
        str, typer.Option(help="a lipsync checkpoint for table 3's semantic images; one is trained unless given")
    ] = "",
    method: Annotated[
        list[str] | None, typer.Option(help="NAME=FILE: a row of table 1, from `evaluate --videos`; repeats")
    ] = None,
) -> None:
    """Train or reuse every row of the paper's tables and write them."""
    from common.table import parse_seeds, read_given
    from dubbing3d.table import TABLE, make_table

    path = make_table(
        TABLE.budget(budget), corpus=corpus, out=out, seeds=parse_seeds(seeds), runs=runs, jobs=jobs, weights=weights,
        semantic=semantic, given=read_given(method or [], "dubbing3d"),
    )  # fmt: skip
    print(path.read_text(encoding="utf-8"))
    print(f"written: {path}, {path.with_suffix('.csv')}")


@app.command()
def dub(
    expression: Annotated[Path, typer.Option("--expression", "-e", help="stage 1: a run's last.ckpt")],
    out: Out,
    video: Annotated[Path | None, typer.Option(help="the video, or a still image")] = None,
    audio: Annotated[Path | None, typer.Option(help="the speech: a sound file, or a video with sound")] = None,
    held_out: Annotated[
        bool, typer.Option("--held-out", help="instead of both: a person and speech that training never saw")
    ] = False,
    renderer: Annotated[
        str, typer.Option("--renderer", "-r", help="stage 2: a run's last.ckpt, or warp, which needs no training")
    ] = "warp",
    semantic: Annotated[
        Path | None, typer.Option(help="a lipsync checkpoint, for a stage 1 that looks at drawn mouths")
    ] = None,
    face_model: Annotated[
        str | None, typer.Option(help="builtin, ict, ict:PATH or bfm09:PATH; the expression checkpoint's unless given")
    ] = None,
    smooth: Annotated[bool, typer.Option("--smooth", help="smooth the fitted poses in time once more")] = False,
    debug: Annotated[Path | None, typer.Option(help="a PNG that shows every step of some frames")] = None,
    face: Annotated[str, typer.Option(help="whose lips: largest, longest or index:K")] = "largest",
    when_shorter: Annotated[
        Literal["stop", "keep"], typer.Option(help="speech shorter than the video: stop with it, or keep the rest")
    ] = "stop",
    silence: Annotated[
        Literal["close", "ignore"], typer.Option(help="close the mouth where nobody speaks, or let it follow any sound")
    ] = "close",
    rest: Annotated[
        Literal["clip", "model"], typer.Option(help="silence looks like the person's closed mouth, or the network's")
    ] = "clip",
    colours: Annotated[bool, typer.Option(help="fit the pictures' colours too, not only landmarks")] = True,
    references: Annotated[int, typer.Option(min=1, help="pictures that tell the renderer how the person looks")] = 6,
    adapt: Annotated[
        int | None,
        typer.Option(
            min=0, help="steps in which a trained renderer learns the clip's person first; its own unless given"
        ),
    ] = None,
    feather: Annotated[float, typer.Option(min=0, max=0.5, help="soft edge of the mask, share of the crop")] = 0.05,
    seam: Annotated[
        Literal["match", "plain"], typer.Option(help="let colours meet along the mask's edge, or leave them")
    ] = "match",
    crf: Annotated[int, typer.Option(min=0, max=51, help="x264's quality, 0 is lossless")] = 18,
    batch: Annotated[int, typer.Option(min=0, help="faces drawn together; 0: the renderer's best")] = 0,
    backend: Annotated[str, typer.Option(help="face detector: dlib or face_alignment")] = "dlib",
    visible_label: Annotated[bool, typer.Option(help="draw the label into the picture as well")] = False,
    device: Device = "auto",
) -> None:
    """Make the lips of a video follow other speech, through a 3D face model."""
    from dubbing3d.data import open_corpus
    from dubbing3d.dub import check_renderer, dub_files
    from dubbing3d.dubber import DubSettings
    from dubbing3d.report import config_of

    drawn_by = check_renderer(renderer)
    inputs = {
        "--expression": expression,
        "--renderer": drawn_by,
        "--semantic": semantic,
        "--video": video,
        "--audio": audio,
    }
    check_inputs(inputs)
    check_output(out, ".mp4", inputs.values())
    if debug is not None:
        check_output(debug, ".png", inputs.values())
    footage, speech = given_or_held_out(video, audio, held_out, lambda: open_corpus(config_of(expression).data))
    settings = DubSettings(
        face=face,
        when_shorter=when_shorter,
        silence=silence,
        rest=rest,
        smooth=smooth,
        colours=colours,
        references=references,
        adapt=adapt,
        feather=feather,
        seam=seam,
        crf=crf,
        batch=batch,
        backend=backend,
        visible_label=visible_label,
    )
    report = dub_files(
        expression,
        renderer,
        footage,
        speech,
        out,
        settings,
        semantic=semantic,
        face_model=face_model,
        sheet=debug,
        device=pick_device(device),
    )
    print(report.text())
    print(f"written: {out}" + (f", {debug}" if debug else ""))


if __name__ == "__main__":
    run_cli(app)
