"""python -m common synthesize | compare | label | weights | ict"""

from pathlib import Path
from typing import Annotated

import typer

from common.cli import Out, Seed, make_app, run_cli
from common.compare import compare as compare_runs
from common.face3d.ict import convert
from common.provenance import describe_label
from common.synthetic.build import IdentityCorpusOptions, build_identity_corpus
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
