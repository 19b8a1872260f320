"""python -m voice2face prepare | train | evaluate | generate | export | table"""

import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from common.audio.io import check_voice, load_audio
from common.checkpoint_file import load_checkpoint
from common.cli import (
    Checkpoint,
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
from common.config import from_dict, load
from common.data.corpus import SAMPLE_RATE
from common.data.prepare import SplitBy
from common.data.prepare import prepare as prepare_corpus
from common.errors import UserError
from common.metrics.fid import to_uint8
from common.provenance import write_png
from common.table import parse_seeds
from voice2face.build import build_discriminator, build_generator, take
from voice2face.config import Config
from voice2face.data import WholeRecordings, open_corpus
from voice2face.infer import KIND, VoiceToFace
from voice2face.report import METRICS, SHEET, label, summary, write_report
from voice2face.sheet import PORTRAITS
from voice2face.table import TABLE, make_table
from voice2face.train import train as train_run
from voice2face.weights_io import save_rosinality, save_safetensors

app = make_app("A voice goes in, a portrait comes out.")


@app.command()
def prepare(
    source: Annotated[str, typer.Option(help="folder (your own videos, or voices and photos) or voxceleb")],
    input: Annotated[Path, typer.Option(help="the raw data; only read")],
    out: Out,
    faces: Annotated[Path | None, typer.Option(help="voxceleb: the folder of VGGFace images")] = None,
    size: Annotated[int, typer.Option(help="side of the stored face crops in px")] = 256,
    backend: Faces = "dlib",
    split: Annotated[SplitBy, typer.Option(help="of people, or of everybody's recordings")] = "auto",
    limit: Annotated[int | None, typer.Option(help="at most so many people")] = None,
    workers: Workers = None,
    engine: EngineName = "local",
    fresh: Fresh = False,
) -> None:
    """Turn raw recordings and pictures into a corpus."""
    extra: dict[str, Any] = {} if faces is None else {"faces": faces}
    report = prepare_corpus(
        source,
        input,
        out,
        size=size,
        backend=backend,
        split=split,
        limit=limit,
        workers=workers,
        engine=engine,
        fresh=fresh,
        **extra,
    )
    print(report.text())


@app.command()
def train(
    experiment: ConfigFile,
    overrides: Overrides = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Train the voice encoder (stage A) and the generator (stage B)."""
    train_run(load(Config, experiment, overrides or []), resume=resume, overwrite=overwrite)


@app.command()
def evaluate(
    checkpoint: Checkpoint,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="folder of what is written; the run folder")] = None,
    device: Device = "auto",
) -> None:
    """Write metrics.json, a sample sheet and a row of portraits beside the checkpoint."""
    cfg = from_dict(Config, load_checkpoint(checkpoint, KIND)["cfg"], overrides=overrides or [])
    folder = out or checkpoint.parent
    print(summary(write_report(checkpoint, cfg, folder, pick_device(device))))
    print(f"written: {folder / METRICS}, {folder / SHEET}, {folder / PORTRAITS}")


@app.command()
def generate(
    checkpoint: Checkpoint,
    out: Out,
    audio: Annotated[list[Path] | None, typer.Option(help="recordings of one speaker; repeat the option")] = None,
    held_out: Annotated[bool, typer.Option(help="instead of --audio: a held-out voice of the training corpus")] = False,
    samples: Annotated[int, typer.Option(min=1, max=256, help="portraits, in a row")] = 1,
    seed: Seed = 0,
    truncation: Annotated[float, typer.Option(min=0, max=2, help="psi: 0 is the average face, 1 none")] = 1.0,
    refine_steps: Annotated[int, typer.Option(min=0, help="steps of latent optimisation (stage C)")] = 0,
    device: Device = "auto",
) -> None:
    """Draw the portrait of a voice."""
    begin = time.perf_counter()
    model = VoiceToFace.load(checkpoint, pick_device(device))
    loaded = time.perf_counter()
    if bool(audio) == held_out:
        raise UserError("generate needs either --audio FILE (repeatable) or --held-out")
    paths = audio or [_held_out_voice(model.cfg)]
    embedding = model.embed([_read_voice(path, model.cfg.data.max_seconds) for path in paths])
    portraits = model.generate(embedding, samples=samples, seed=seed, truncation=truncation, refine_steps=refine_steps)
    picture = torch.cat(list(to_uint8(portraits.cpu())), dim=2).permute(1, 2, 0).numpy()
    write_png(out, picture, label(model.cfg, checkpoint))
    drawn = time.perf_counter() - loaded
    voices = ", ".join(map(str, paths))
    print(f"{out}: {samples} portrait(s) of {voices} in {drawn:.2f} s (model read in {loaded - begin:.2f} s)")


@app.command()
def export(
    checkpoint: Checkpoint,
    out: Annotated[Path, typer.Option("--out", "-o", help="FILE.safetensors, or FILE.pt in rosinality's layout")],
) -> None:
    """Write the averaged generator and the discriminator for use elsewhere."""
    writers = {".safetensors": save_safetensors, ".pt": save_rosinality}
    if out.suffix not in writers:
        raise UserError(f"cannot export to {out}: the name must end in {' or '.join(writers)}")
    stored = load_checkpoint(checkpoint, KIND)
    cfg = from_dict(Config, stored["cfg"])
    if cfg.generator.name != "stylegan2" or cfg.generator.w_plus:
        raise UserError(f"{checkpoint} holds no plain StyleGAN2 (a W+ head has no place in these formats)")
    generator, discriminator = build_generator(cfg), build_discriminator(cfg)
    generator.load_state_dict(take(stored["state_dict"], "generator_ema"))
    discriminator.load_state_dict(take(stored["state_dict"], "discriminator"))
    writers[out.suffix](out, generator, discriminator)
    print(f"written: {out}")


@app.command()
def table(
    budget: Annotated[str, typer.Option(help="tiny (about 45 minutes on 2 cores) or full (the papers')")] = "tiny",
    corpus: Annotated[str, typer.Option(help="corpus folder; the embedded corpus unless given")] = "",
    out: Annotated[Path, typer.Option("--out", "-o", help="folder of the table and figures")] = Path("tables"),
    seeds: Annotated[str, typer.Option(help="seeds of the trainings, such as '0 1 2'")] = "0",
    runs: Annotated[Path | None, typer.Option(help="folder of the runs; runs/voice2face/table-BUDGET")] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="runs at a time; 2 for tiny, 1 for full")] = None,
) -> None:
    """Train or reuse every row of the papers' tables and write the table."""
    path = make_table(TABLE.budget(budget), corpus=corpus, out=out, seeds=parse_seeds(seeds), runs=runs, jobs=jobs)
    print(path.read_text(encoding="utf-8"))
    print(f"written: {path}, {path.with_suffix('.csv')}")


def _read_voice(path: Path, max_seconds: float) -> torch.Tensor:
    wave = load_audio(path, SAMPLE_RATE, max_seconds=max_seconds)
    if reason := check_voice(wave):
        raise UserError(f"{path}: {reason}; give a recording with speech in it")
    return wave


def _held_out_voice(cfg: Config) -> Path:
    corpus = open_corpus(cfg.data)
    recordings = WholeRecordings(corpus, cfg.evaluation.split, cfg.data)
    return corpus.file(recordings.rows[0][0])


if __name__ == "__main__":
    run_cli(app)
