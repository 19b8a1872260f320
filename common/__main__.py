"""python -m common synthesize | lse | syncnet | compare | label | weights | ict"""

from pathlib import Path
from typing import Annotated

import typer

from common.cli import ConfigFile, Device, Out, Overrides, Overwrite, Resume, Seed, make_app, pick_device, run_cli
from common.compare import compare as compare_runs
from common.face3d.ict import convert
from common.provenance import describe_label
from common.synthetic.build import IdentityCorpusOptions, build_identity_corpus
from common.synthetic.talking import TalkingCorpusOptions, build_talking_corpus
from common.weights import report, weights_folder

app = make_app("Corpora, labels and weights that the packages share.")
synthesize = make_app("Build an embedded corpus.")
app.add_typer(synthesize, name="synthesize")


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
    options = TalkingCorpusOptions(
        identities, seconds, size, seed, face_model, language or ["zh", "en"], split_by=split_by, max_yaw=max_yaw
    )
    print(build_talking_corpus(out, options, workers=workers).summary())


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="run folders of any package, or folders that hold some")],
    out: Out = Path("compare.html"),
    figures: Annotated[Path | None, typer.Option(help="folder for the same curves as PNG")] = None,
) -> None:
    """Write one HTML page with the curves, figures, samples and configuration differences of runs."""
    print("\n".join(compare_runs(runs, out, figures)))


@app.command()
def label(file: Annotated[Path, typer.Argument(help="a PNG or MP4")]) -> None:
    """Show the synthetic-content label of a picture or video."""
    print(describe_label(file))


@app.command()
def lse(
    target: Annotated[Path, typer.Argument(help="a corpus, a folder of videos or a video")],
    protocol: Annotated[str, typer.Option(help="lrs (face crops), real or latentsync; figures do not compare")] = "lrs",
    weights: Annotated[str, typer.Option(help="official, own (trained on the corpus at need) or a file")] = "official",
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
    print(report())


@app.command()
def ict(
    clone: Annotated[Path, typer.Argument(help="a clone of the ICT-FaceKit repository")],
    out: Annotated[Path | None, typer.Option(help="the npz; the weights folder unless given")] = None,
) -> None:
    """Convert the ICT-FaceKit face model to one file."""
    target = out or weights_folder() / "ict_facekit.npz"
    convert(clone, target)
    print(f"written: {target}")


if __name__ == "__main__":
    run_cli(app)
