"""What an evaluation leaves in a folder, and what it says on the terminal."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from common.checkpoint_file import load_checkpoint, read_tensors
from common.config import config_hash, from_dict
from common.data.corpus import Corpus
from common.face3d.morphable import FaceModel
from common.files import sha256, write_json, write_text
from common.plots import picture_figure
from common.provenance import Provenance, write_png
from common.runfolder import METRICS
from common.score_report import METHOD, EvaluationSettings, Titles, load_judge, stamp, summarise
from common.syncnet import SyncNet
from dubbing3d.build import EXPRESSION_KIND, KIND, load_expression, load_renderer
from dubbing3d.clips import DubClips, corpus_model
from dubbing3d.config import DubbingConfig
from dubbing3d.data import open_corpus
from dubbing3d.evaluation import COPY, REFERENCE, RENDERED, SHORTEST, WARP, evaluate_renderer
from dubbing3d.expression_evaluation import (
    COLUMNS,
    MEAN,
    PREDICTED,
    REAL,
    SHARE,
    TRUE,
    NetworkPredictor,
    People,
    evaluate_expression,
)
from dubbing3d.infer import LearnedRenderer
from dubbing3d.likeness import Likeness
from dubbing3d.pose_plot import NAME, frame_table, write_pose_plot

SHEET, STRIP, FRAMES = "sheet.png", "frames.png", "frames.csv"
"""Pictures by method; the row of real ones over the network's; stage 2's figures of every frame."""
EXPRESSION_SHOWN: Titles = (
    *(("aed", "AED"), (f"aed{SHARE}", "share of the mean expression's"), ("aed_mouth", "mouth AED")),
    *((f"aed_mouth{SHARE}", "share"), ("lmd", "LMD"), (f"lmd{SHARE}", "share"), ("mouth_lmd", "mouth LMD")),
    *(("lse_c", "Sync (LSE-C)"), ("lse_d", "LSE-D")),
)
RENDERER_SHOWN: Titles = (
    *(("psnr", "PSNR"), ("ssim", "SSIM"), ("lpips", "LPIPS"), ("lmd", "LMD"), ("csim", "CSIM")),
    *(("hidden_psnr", "PSNR in the mask"), ("hidden_ssim", "SSIM in the mask")),
    *(("mouth_psnr", "mouth PSNR"), ("mouth_ssim", "mouth SSIM"), ("mouth_lpips", "mouth LPIPS")),
    *(("mouth_lmd", "mouth LMD"), ("flicker_ratio", "flicker by the real"), ("jerk_ratio", "jerk by the real")),
)
VIDEOS_SHOWN: Titles = (*RENDERER_SHOWN, ("lse_c", "Sync (LSE-C)"), ("lse_d", "LSE-D"))
_EXPRESSION_TITLES = {REAL: "real clip", TRUE: "true expression", PREDICTED: "from speech", MEAN: "mean expression"}
_RENDERER_TITLES = {
    REAL: "real frame",
    REFERENCE: "reference",
    COPY: "copy the reference",
    WARP: "warp, no training",
    RENDERED: "rendered",
}


@dataclass(frozen=True)
class DubbingSettings(EvaluationSettings):
    """What is measured, and by which network."""

    frames: int = 0
    """consecutive frames of each clip at most; 0: all, or what the run's `evaluation.frames` says"""


def evaluate_checkpoint(checkpoint: Path, corpus: str, out: Path | None, device: str, settings: DubbingSettings) -> str:
    """The command `evaluate --checkpoint` of either stage: the words to print.

    Args:
        checkpoint: a run's.
        corpus: folder; the one that it was trained on unless given.
        out: folder of what is written; the checkpoint's unless given.
        device: torch device.
        settings: what is measured.

    Raises:
        UserError: as `write_report`.
    """
    folder = out or checkpoint.parent
    cfg = config_of(checkpoint)
    opened = Corpus.open(Path(corpus)) if corpus else open_corpus(cfg.data)
    metrics = write_report(checkpoint, opened, folder, device, settings)
    names = [METRICS, SHEET, STRIP, *([FRAMES, f"{NAME}.png", f"{NAME}.csv"] if metrics["stage"] == KIND else [])]
    return f"{summary(metrics)}\nwritten: {', '.join(str(folder / name) for name in names)}"


def write_report(
    checkpoint: Path, corpus: Corpus, folder: Path, device: str, settings: DubbingSettings
) -> dict[str, Any]:
    """Evaluate a checkpoint of either stage into `folder`; return the metrics.

    Stage 1 leaves `metrics.json`, `sheet.png` and `frames.png`; stage 2 `frames.csv`, `pose.png` and `pose.csv` as
    well.

    Raises:
        UserError: an unreadable checkpoint or one of another kind, a split without usable clips, no SyncNet.
    """
    cfg = config_of(checkpoint)
    settings = replace(settings, frames=settings.frames or cfg.evaluation.frames)
    folder.mkdir(parents=True, exist_ok=True)
    write = _write_expression if kind_of(checkpoint) == EXPRESSION_KIND else _write_renderer
    metrics, net = write(checkpoint, corpus, folder, device, settings)
    metrics |= {
        "corpus": corpus.root.name,
        "split_by": corpus.split_by,
        **stamp(checkpoint, corpus, net, settings),
        "frames_a_clip": settings.frames,
    }
    metrics["warnings"] = warnings_of(metrics)
    write_json(folder / METRICS, metrics)
    return metrics


def _write_expression(
    checkpoint: Path, corpus: Corpus, folder: Path, device: str, settings: DubbingSettings
) -> tuple[dict[str, Any], SyncNet | None]:
    loaded = load_expression(checkpoint, device)
    model, mark = corpus_model(corpus, loaded.cfg.data)
    loaded.mark.check_model(model, checkpoint)
    data = replace(loaded.cfg.data, cache=False)
    clips = DubClips(corpus, settings.split, mark, data, loaded.cfg.renderer.size, loaded.cfg.expression.frames)
    people = People.of(corpus, settings.split, clips, settings.limit)
    net = None if settings.weights == "none" else load_judge(settings.weights, corpus.root, device)
    predict = NetworkPredictor(loaded, clips)
    result = evaluate_expression(predict, loaded.mean, model, people, net, frames=settings.frames)
    label = label_of(checkpoint, loaded.cfg)
    _write_pictures(folder, result.pictures, _EXPRESSION_TITLES, PREDICTED, label)
    metrics = result.metrics | {"stage": EXPRESSION_KIND, "picture": list(clips.clips[0].size)}
    return metrics, net


def _write_renderer(
    checkpoint: Path, corpus: Corpus, folder: Path, device: str, settings: DubbingSettings
) -> tuple[dict[str, Any], SyncNet | None]:
    loaded = load_renderer(checkpoint, device)
    model, mark = corpus_model(corpus, loaded.cfg.data)
    loaded.mark.check_model(model, checkpoint)
    data, shape = replace(loaded.cfg.data, cache=False), loaded.cfg.renderer
    clips = DubClips(corpus, settings.split, mark, data, shape.size, SHORTEST)
    people = People.of(corpus, settings.split, clips, settings.limit)
    moved: FaceModel = model.to(device)
    renderer = LearnedRenderer(loaded, moved)
    result = evaluate_renderer(
        renderer, moved, people, Likeness(device), references=shape.references, frames=settings.frames
    )
    label = label_of(checkpoint, loaded.cfg)
    _write_pictures(folder, result.pictures, _RENDERER_TITLES, RENDERED, label)
    write_text(folder / FRAMES, frame_table(result.frames))
    pose = write_pose_plot(folder, result.frames)
    return result.metrics | {"stage": KIND, "pose": pose}, None


def _write_pictures(
    folder: Path,
    pictures: Mapping[str, Sequence[np.ndarray]],
    titles: Mapping[str, str],
    drawn: str,
    label: Provenance,
) -> None:
    """The sheet, a row a method, and the strip of real pictures over drawn ones."""
    rows = {name: _row(pictures[name]) for name in titles if name in pictures}
    sheet = picture_figure([(titles[name], row) for name, row in rows.items()], columns=1, width=COLUMNS)
    write_png(folder / SHEET, sheet, label)
    write_png(folder / STRIP, np.concatenate([rows[REAL], rows[drawn]]), label)


def _row(images: Sequence[np.ndarray]) -> np.ndarray:
    """Pictures side by side; those of another size than the first are left out."""
    return np.concatenate([image for image in images if image.shape == images[0].shape], axis=1)


def kind_of(checkpoint: Path) -> str:
    """Stage 1's kind of checkpoint or stage 2's; `UserError` for anything else."""
    values = read_tensors(checkpoint)
    kind = values.get("kind") if isinstance(values, dict) else None
    if kind not in (KIND, EXPRESSION_KIND):
        load_checkpoint(checkpoint, KIND)  # says what is wrong
    return str(kind)


def config_of(checkpoint: Path) -> DubbingConfig:
    """The configuration of a run of either stage."""
    return from_dict(DubbingConfig, load_checkpoint(checkpoint, kind_of(checkpoint))["cfg"])


def label_of(checkpoint: Path, cfg: DubbingConfig) -> Provenance:
    """The label of what this checkpoint draws."""
    return Provenance.create(cfg.provenance, config_hash=config_hash(cfg), checkpoint_sha256=sha256(checkpoint))


def warnings_of(metrics: Mapping[str, Any]) -> list[str]:
    """What a reader has to know before the figures."""
    methods, found = metrics["methods"], []
    if metrics["stage"] == EXPRESSION_KIND and "lse_c" in methods[TRUE] and "lse_c" in methods[MEAN]:
        best, none = (methods[name]["lse_c"]["value"] for name in (TRUE, MEAN))
        if best <= none:
            found.append(
                f"{metrics['extractor']} finds drawings of the true expression no more in sync than of one that never "
                "moves: its Sync says nothing here"
            )
    if metrics["people"] == 1:
        found.append("one person only: the intervals say nothing about other people")
    return found


def summary(metrics: Mapping[str, Any]) -> str:
    """A line a method, the differences to the baselines, what measured, and the warnings."""
    first = metrics["stage"] == EXPRESSION_KIND
    titles = _EXPRESSION_TITLES | {METHOD: "from speech"} if first else _RENDERER_TITLES | {METHOD: "rendered"}
    text = summarise(metrics, EXPRESSION_SHOWN if first else RENDERER_SHOWN, titles)
    if first:
        return f"{text}\nLMD: {metrics['lmd']}; Sync: {metrics['sync']}"
    named = "; ".join(f"{name}: {words}" for name, words in metrics["measured_by"].items())
    pose = metrics["pose"]
    pearson = pose["pearson_lmd_ssim"]
    said = "none" if pearson is None else f"{pearson:.3f}"
    return f"{text}\nby {named}\nLMD and SSIM over {pose['clip']}: Pearson {said} (the paper's {pose['paper_pearson']})"
