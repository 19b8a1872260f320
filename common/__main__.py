"""python -m common synthesize | prepare | doctor | fit | lse | syncnet | compare | label | weights | ict"""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from common.cli import (
    OWN_SYNCNET,
    ConfigFile,
    Device,
    EngineName,
    Faces,
    Fresh,
    Out,
    Overrides,
    Overwrite,
    Resume,
    Seed,
    Workers,
    make_app,
    pick_device,
    run_cli,
)

app = make_app("Corpora, labels and weights that the packages share.")
synthesize = make_app("Build an embedded corpus.")
app.add_typer(synthesize, name="synthesize")
prepare = make_app("Turn raw data into a corpus.")
app.add_typer(prepare, name="prepare")

Filter = Annotated[str | None, typer.Option("--filter", help="none, plain, clr or latentsync")]
Bounds = Annotated[list[str] | None, typer.Option("--bound", help="changes the filter: max_seconds=5; repeats")]
SyncWeights = Annotated[str, typer.Option("--sync", help="SyncNet weights: auto (where they are here), none or a file")]


@synthesize.command()
def identity(
    out: Out,
    identities: Annotated[int, typer.Option(help="people")] = 24,
    voices: Annotated[int, typer.Option(help="recordings a person")] = 8,
    faces: Annotated[int, typer.Option(help="pictures a person")] = 12,
    size: Annotated[int, typer.Option(help="side of the face crops in px")] = 64,
    max_yaw: Annotated[float, typer.Option(help="largest turn of a head in degrees")] = 25.0,
    seed: Seed = 0,
    face_model: Annotated[str, typer.Option(help="builtin, ict or ict:PATH")] = "builtin",
    split_by: Annotated[str, typer.Option(help="recording or identity")] = "recording",
    workers: Annotated[int, typer.Option(help="processes")] = 2,
) -> None:
    """People whose voice and face come from one vector (for voice2face)."""
    from common.synthetic.build import IdentityCorpusOptions, build_identity_corpus

    options = IdentityCorpusOptions(
        identities, voices, faces, size, max_yaw=max_yaw, seed=seed, face_model=face_model, split_by=split_by
    )
    print(build_identity_corpus(out, options, workers=workers).summary())


@synthesize.command("talking")
def synthesize_talking(
    out: Out,
    identities: Annotated[int, typer.Option(help="people")] = 6,
    seconds: Annotated[float, typer.Option(help="of video in all, about")] = 120.0,
    size: Annotated[int, typer.Option(help="side of the pictures in px")] = 128,
    seed: Seed = 0,
    face_model: Annotated[str, typer.Option(help="builtin, ict or ict:PATH")] = "builtin",
    language: Annotated[list[str] | None, typer.Option(help="zh or en; give it twice for both (the default)")] = None,
    split_by: Annotated[str, typer.Option(help="identity or recording")] = "identity",
    max_yaw: Annotated[float, typer.Option(help="largest turn of a clip's pose in degrees")] = 12.0,
    workers: Annotated[int, typer.Option(help="processes")] = 2,
) -> None:
    """People who say sentences, with the truth about face, lips and sync (for lipsync and dubbing3d)."""
    from common.synthetic.talking import TalkingCorpusOptions, build_talking_corpus

    options = TalkingCorpusOptions(
        identities, seconds, size, seed, face_model, language or ["zh", "en"], split_by=split_by, max_yaw=max_yaw
    )
    print(build_talking_corpus(out, options, workers=workers).summary())


@prepare.command()
def talking(
    source: Annotated[str, typer.Option(help="folder, cmlr, lrs2, lrw or voxceleb-video")],
    input: Annotated[Path, typer.Option(help="the raw data; only read")],
    out: Out,
    size: Annotated[int | None, typer.Option(help="side of the crops in px; 224, voxceleb-video 256")] = None,
    framing: Annotated[str | None, typer.Option(help="head, face or tube (fixed for the clip)")] = None,
    speaker: Annotated[
        Literal["talking", "largest"], typer.Option(help="of several faces: whose lips move, or the largest")
    ] = "talking",
    shortest: Annotated[float | None, typer.Option(help="seconds of a clip at least")] = None,
    longest: Annotated[float | None, typer.Option(help="seconds; longer stretches are cut")] = None,
    filter: Filter = None,
    bound: Bounds = None,
    shift: Annotated[bool, typer.Option(help="move the sound by the measured offset")] = True,
    sync: SyncWeights = "auto",
    lists: Annotated[Path | None, typer.Option(help="lrs2: the folder of the official lists")] = None,
    metadata: Annotated[Path | None, typer.Option(help="voxceleb-video: vox-metadata.csv")] = None,
    split: Annotated[
        Literal["auto", "identity", "recording"],
        typer.Option(help="auto keeps official splits; or identity, recording"),
    ] = "auto",
    limit: Annotated[int | None, typer.Option(help="at most so many people")] = None,
    backend: Faces = "dlib",
    workers: Workers = None,
    engine: EngineName = "local",
    fresh: Fresh = False,
    device: Device = "cpu",
) -> None:
    """Cut videos into clips of a talking face, with sound in step and landmarks."""
    from common.data.talking_prepare import prepare_talking, settings_of

    chosen = settings_of(
        source, filter, bound or [],
        size=size, framing=framing, speaker=speaker, shortest=shortest, longest=longest, shift=shift, backend=backend,
    )  # fmt: skip
    extra: dict[str, Any] = {
        name: path for name, path in (("lists", lists), ("metadata", metadata)) if path is not None
    }
    report = prepare_talking(
        source, input, out, chosen, sync=sync, split=split, limit=limit, workers=workers, engine=engine, fresh=fresh,
        device=pick_device(device), **extra,
    )  # fmt: skip
    print(report.text())


@app.command()
def doctor(
    target: Annotated[Path, typer.Argument(help="a corpus, or a folder of videos; only read")],
    html: Annotated[Path, typer.Option(help="the page; a table .parquet goes beside it")] = Path("doctor.html"),
    filter: Filter = None,
    bound: Bounds = None,
    sync: SyncWeights = "auto",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="a treated copy of the corpus")] = None,
    shift: Annotated[bool, typer.Option(help="--out: move sound by the measured offset")] = True,
    backend: Faces = "dlib",
    workers: Workers = None,
    engine: EngineName = "local",
    fresh: Fresh = False,
    device: Device = "cpu",
) -> None:
    """Measure every clip (sync, sound, face), show what is wrong, and on request write a corpus without it."""
    from common.data.talking_filter import parse_filter
    from common.doctor import examine
    from common.doctor_treat import treat

    examination = examine(
        target, html, bounds=parse_filter(filter or "plain", bound or []), sync=sync, backend=backend,
        workers=workers, engine=engine, device=pick_device(device),
    )  # fmt: skip
    print(examination.summary())
    print(f"written: {html}, {html.with_suffix('.parquet')}")
    if out is not None:
        print(treat(examination, out, shift=shift, workers=workers, engine=engine, fresh=fresh).text())


@app.command()
def fit(
    video: Annotated[Path, typer.Argument(help="any video that shows a face; only read")],
    model: Annotated[str, typer.Option(help="builtin, ict, ict:PATH, bfm09 or bfm09:PATH")] = "builtin",
    out: Out = Path("fit.mp4"),
    photometric: Annotated[bool, typer.Option(help="refine the landmarks' fit by the colours")] = True,
    face: Annotated[str, typer.Option(help="of several: largest, longest or index:K")] = "largest",
    backend: Faces = "dlib",
    device: Device = "cpu",
) -> None:
    """Fit a 3-D face model to a video: frame, overlay and render side by side, the coefficients beside it as .npz."""
    from common.face3d.fit_video import fit_video

    found = fit_video(
        video, model, out, photometric=photometric, face=face, backend=backend, device=pick_device(device)
    )
    print(found.summary())
    print(f"written: {out}, {out.with_suffix('.npz')}")


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="run folders of any package, or folders that hold some")],
    out: Out = Path("compare.html"),
    figures: Annotated[Path | None, typer.Option(help="folder for the same curves as PNG")] = None,
) -> None:
    """Write one HTML page with the curves, figures, samples and configuration differences of runs."""
    from common.compare import compare as compare_runs

    print("\n".join(compare_runs(runs, out, figures)))


@app.command()
def label(file: Annotated[Path, typer.Argument(help="a PNG or MP4")]) -> None:
    """Show the synthetic-content label of a picture or video."""
    from common.provenance import describe_label

    print(describe_label(file))


@app.command()
def lse(
    target: Annotated[Path, typer.Argument(help="a corpus, a folder of videos or a video")],
    protocol: Annotated[str, typer.Option(help="lrs (face crops), real or latentsync; figures do not compare")] = "lrs",
    weights: Annotated[str, typer.Option(help=f"official, {OWN_SYNCNET}, or a file")] = "official",
    split: Annotated[list[str] | None, typer.Option(help="of a corpus; repeats; val and test unless given")] = None,
    device: Device = "auto",
    faces: Annotated[str, typer.Option(help="dlib or face_alignment, for real and latentsync")] = "dlib",
    offsets: Annotated[bool, typer.Option(help="also look for offsets of -5..5 frames put into the clips")] = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="JSON with every score")] = None,
) -> None:
    """Sync of lips and sound by SyncNet: LSE-D, LSE-C and offset, with extractor, protocol and count."""
    from common.sync_scoring import run_lse  # brings Lightning along, which the other commands do not need

    splits = split or ["val", "test"]
    print(
        run_lse(
            target, protocol=protocol, weights=weights, splits=splits, device=pick_device(device),
            backend=faces, inject=offsets, out=out,
        )
    )  # fmt: skip


@app.command()
def syncnet(
    config: ConfigFile, overrides: Overrides = None, resume: Resume = False, overwrite: Overwrite = False
) -> None:
    """Train SyncNet on the clips of a corpus: python -m common syncnet experiments/common/syncnet.yaml data.root=..."""
    from common.config import load
    from common.syncnet_train import SyncConfig, train_syncnet

    train_syncnet(load(SyncConfig, config, overrides or []), resume=resume, overwrite=overwrite)


@app.command()
def weights() -> None:
    """List the external weights: which are here, where the others come from, under which licence."""
    from common.weights import report

    print(report())


@app.command()
def ict(
    clone: Annotated[Path, typer.Argument(help="a clone of the ICT-FaceKit repository")],
    out: Annotated[Path | None, typer.Option(help="the npz; the weights folder unless given")] = None,
) -> None:
    """Convert the ICT-FaceKit face model to one file."""
    from common.face3d.ict import convert
    from common.weights import weights_folder

    target = out or weights_folder() / "ict_facekit.npz"
    convert(clone, target)
    print(f"written: {target}")


if __name__ == "__main__":
    run_cli(app)
