"""python -m lipsync prepare | train | check | evaluate | table | survey | dub | export"""

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
    Seed,
    SyncJudge,
    make_app,
    pick_device,
    run_cli,
)
from common.config import load
from common.dubbing.held_out import given_or_held_out
from common.dubbing.places import check_inputs, check_output
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
def evaluate(
    checkpoint: Annotated[
        Path | None, typer.Option("--checkpoint", "-c", help="a run's last.ckpt, or any file with a generator")
    ] = None,
    videos: Annotated[
        Path | None,
        typer.Option(help="instead of --checkpoint: another method's videos, named after the clips"),
    ] = None,
    corpus: Annotated[str, typer.Option("--corpus", "--truth", help="the checkpoint's own unless given")] = "",
    split: Annotated[str, typer.Option(help="test, val or train")] = "test",
    limit: Annotated[int, typer.Option(min=0, help="clips at most, spread evenly; 0: all")] = 0,
    weights: SyncJudge = "auto",
    protocol: Annotated[str, typer.Option(help="of --videos without --truth: lrs, real or latentsync")] = "lrs",
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="folder, the run's; for --videos a file, their scores.json"),
    ] = None,
    save: Annotated[Path | None, typer.Option(help="folder for the dubbed clips, for --videos and survey")] = None,
    device: Device = "auto",
) -> None:
    """Measure sync and likeness on held-out clips: of a generator, or of the videos of any other method."""
    from common.score_report import EvaluationSettings, evaluate_videos
    from lipsync.evaluation import SHORTEST
    from lipsync.report import SHOWN, evaluate_checkpoint

    settings = EvaluationSettings(weights, split, limit)
    if (checkpoint is None) == (videos is None):
        raise UserError("evaluate wants either --checkpoint FILE or --videos FOLDER")
    if checkpoint is not None:
        print(evaluate_checkpoint(checkpoint, corpus, out, pick_device(device), settings, save))
    elif videos is not None:
        print(evaluate_videos(videos, corpus, out, pick_device(device), settings, protocol, SHOWN, shortest=SHORTEST))


@app.command()
def table(
    budget: Annotated[str, typer.Option(help="tiny (meant for 40 minutes on 2 cores) or full (the paper's)")] = "tiny",
    corpus: Annotated[str, typer.Option(help="corpus folder; the embedded corpus unless given")] = "",
    out: Annotated[Path, typer.Option("--out", "-o", help="folder of the table and figures")] = Path("tables"),
    seeds: Annotated[str, typer.Option(help="seeds of the trainings, such as '0 1 2'")] = "0",
    runs: Annotated[Path | None, typer.Option(help="folder of the runs; runs/lipsync/table-BUDGET")] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="runs at a time; 2 for tiny, 1 for full")] = None,
    weights: SyncJudge = "auto",
    method: Annotated[
        list[str] | None, typer.Option(help="NAME=FILE: another row of table 1, from `evaluate --videos`; repeats")
    ] = None,
) -> None:
    """Train or reuse every row of the paper's tables and write the table."""
    from common.table import parse_seeds, read_given
    from lipsync.table import TABLE, make_table

    path = make_table(
        TABLE.budget(budget), corpus=corpus, out=out, seeds=parse_seeds(seeds), runs=runs, jobs=jobs, weights=weights,
        given=read_given(method or [], "lipsync"),
    )  # fmt: skip
    print(path.read_text(encoding="utf-8"))
    print(f"written: {path}, {path.with_suffix('.csv')}")


@app.command()
def survey(
    method: Annotated[
        list[str] | None, typer.Option(help="NAME=FOLDER of videos with equal file names; repeats")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="the page; its key goes beside it")] = Path("survey.html"),
    ratings: Annotated[
        Path | None, typer.Option(help="instead: folder of returned ratings, which become means")
    ] = None,
    key: Annotated[Path | None, typer.Option(help="with --ratings: the key; beside --out unless given")] = None,
    clips: Annotated[int, typer.Option(min=1, help="videos of each method, spread evenly")] = 8,
    megabytes: Annotated[float, typer.Option(min=0.001, help="of videos in the page, at most")] = 80.0,
    seed: Seed = 0,
) -> None:
    """Make the page of the paper's user study (table 3), or turn returned ratings into means with intervals."""
    from lipsync.survey import make_survey, parse_methods
    from lipsync.survey_ratings import write_ratings

    if (ratings is None) == (not method):
        raise UserError("survey wants either --method NAME=FOLDER (repeatable) or --ratings FOLDER")
    if ratings is not None:
        print(write_ratings(ratings, key or out.with_suffix(".key.json"), out.with_suffix(".md")))
    else:
        print(make_survey(parse_methods(method or []), out, clips=clips, megabytes=megabytes, seed=seed))


@app.command()
def dub(
    checkpoint: Checkpoint,
    out: Out,
    video: Annotated[Path | None, typer.Option(help="the video, or a still image")] = None,
    audio: Annotated[Path | None, typer.Option(help="the speech: a sound file, or a video with sound")] = None,
    held_out: Annotated[
        bool, typer.Option("--held-out", help="instead of both: a person and speech that training never saw")
    ] = False,
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
    seam: Annotated[
        Literal["match", "plain"], typer.Option(help="let colours meet along the mask's edge, or leave them")
    ] = "match",
    crf: Annotated[int, typer.Option(min=0, max=51, help="x264's quality, 0 is lossless")] = 18,
    batch: Annotated[int, typer.Option(min=0, help="faces drawn together; 0: the device's best")] = 0,
    precision: Annotated[Literal["32", "bf16"], typer.Option(help="of the network")] = "32",
    backend: Annotated[str, typer.Option(help="face detector: dlib or face_alignment")] = "dlib",
    visible_label: Annotated[bool, typer.Option(help="draw the label into the picture as well")] = False,
    device: Device = "auto",
) -> None:
    """Make the lips of a video follow other speech."""
    from lipsync.dub import DubSettings, dub_files
    from lipsync.report import corpus_of

    inputs = {"--checkpoint": checkpoint, "--video": video, "--audio": audio}
    check_inputs(inputs)
    check_output(out, ".mp4", inputs.values())
    footage, speech = given_or_held_out(video, audio, held_out, lambda: corpus_of(checkpoint, ""))
    settings = DubSettings(
        face=face,
        when_shorter=when_shorter,
        align=align,
        reference=reference,
        silence=silence,
        mask=mask,
        feather=feather,
        seam=seam,
        crf=crf,
        batch=batch,
        precision=precision,
        backend=backend,
        visible_label=visible_label,
    )
    print(dub_files(checkpoint, footage, speech, out, settings, pick_device(device)).text())
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
