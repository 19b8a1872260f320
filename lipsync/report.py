"""What an evaluation leaves in a folder, and what it says on the terminal."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.clip_scores import held_out_clips, report
from common.config import config_hash
from common.data.corpus import MANIFEST, SPLITS, Corpus
from common.errors import UserError
from common.files import sha256, write_json
from common.plots import picture_figure
from common.provenance import Provenance, ProvenanceConfig, write_png
from common.runfolder import METRICS
from common.score_videos import score_folder
from common.sync_scoring import load_extractor, run_lse
from common.syncnet import SyncNet
from common.weights import WEIGHTS, weights_folder
from lipsync.config import LipSyncConfig
from lipsync.data import open_corpus
from lipsync.evaluation import (
    COLUMNS,
    COPIED,
    DUB,
    MASKED,
    REAL,
    SHORTEST,
    Evaluation,
    evaluate,
)
from lipsync.infer import LipSync

SHEET, FRAMES = "sheet.png", "frames.png"
"""Pictures by real clip, masked input, copied reference and generator; the row of real ones over the generator's."""
TITLES = {REAL: "real clip", MASKED: "masked input", COPIED: "copied reference", DUB: "dubbed"}
_SHOWN = (
    ("lse_d", "LSE-D"),
    ("lse_c", "LSE-C"),
    ("other_lse_d", "LSE-D with other speech"),
    ("other_lse_c", "LSE-C with other speech"),
    ("ssim", "SSIM"),
    ("psnr", "PSNR"),
    ("mouth_ssim", "mouth SSIM"),
    ("mouth_psnr", "mouth PSNR"),
)


@dataclass(frozen=True)
class EvaluationSettings:
    """What is measured, and by which network."""

    weights: str = "auto"
    """SyncNet: official, own (trained on the corpus at need), a file, or auto: the official one where it is here"""
    split: str = "test"
    limit: int = 0
    """clips at most, spread evenly; 0: all"""

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise UserError(f"unknown split {self.split!r}: use {', '.join(SPLITS)}")


def load_judge(weights: str, corpus: Path, device: str) -> SyncNet:
    """SyncNet by name, see `EvaluationSettings.weights`; trained first where it is the corpus's own and not there."""
    if weights == "auto":
        weights = "official" if (weights_folder() / WEIGHTS["syncnet_v2"].file_name).is_file() else "own"
    return load_extractor(weights, corpus, device)


def evaluate_checkpoint(
    checkpoint: Path, corpus: str, out: Path | None, device: str, settings: EvaluationSettings, save: Path | None
) -> str:
    """The command `evaluate --checkpoint`: the words to print. `out` is the checkpoint's folder unless given.

    Raises:
        UserError: as `corpus_of` and `write_report`.
    """
    folder = out or checkpoint.parent
    metrics = write_report(checkpoint, corpus_of(checkpoint, corpus), folder, device, settings, save=save)
    written = ", ".join(str(folder / name) for name in (METRICS, SHEET, FRAMES))
    return f"{summary(metrics)}\nwritten: {written}" + ("" if save is None else f", videos in {save}")


def evaluate_videos(
    videos: Path, corpus: str, out: Path | None, device: str, settings: EvaluationSettings, protocol: str
) -> str:
    """The command `evaluate --videos`: the words to print.

    With a corpus the videos are compared with its clips, and the figures go to `out`, `scores.json` among the videos
    unless given. Without one sync alone is measured, each video with its own sound, by the official or a given SyncNet.

    Raises:
        UserError: as `common.score_videos.score_folder` or `common.sync_scoring.run_lse`.
    """
    out = out or videos / "scores.json"
    if not corpus:
        weights = "official" if settings.weights == "auto" else settings.weights
        text = run_lse(
            videos, protocol=protocol, weights=weights, splits=[settings.split], device=device, backend="dlib",
            inject=False, out=out,
        )  # fmt: skip
        return f"{text}\nsync alone, since there is no --truth\nwritten: {out}"
    metrics = score_videos(videos, Corpus.open(Path(corpus)), device, settings)
    write_json(out, metrics)
    return f"{summary(metrics)}\nwritten: {out}"


def write_report(
    checkpoint: Path,
    corpus: Corpus,
    folder: Path,
    device: str,
    settings: EvaluationSettings,
    *,
    save: Path | None = None,
) -> dict[str, Any]:
    """Evaluate a checkpoint into `metrics.json`, `sheet.png` and `frames.png` of `folder`; return the metrics.

    Args:
        checkpoint: a run's, or any file that `LipSync.load` reads.
        corpus: with talking clips.
        folder: of what is written.
        device: torch device.
        settings: what is measured.
        save: folder for the dubbed clips.

    Raises:
        UserError: an unreadable checkpoint, a split without usable clips, no SyncNet.
    """
    model, cfg = LipSync.load(checkpoint, device, whole=True)
    clips = held_out_clips(corpus, settings.split, shortest=SHORTEST, limit=settings.limit)
    net = load_judge(settings.weights, corpus.root, device)
    label = label_of(checkpoint, cfg)
    result = evaluate(model, clips, net, save=save, label=label)
    for name, picture in ((SHEET, sheet(result)), (FRAMES, frame_rows(result))):
        write_png(folder / name, picture, label)
    metrics = result.metrics | {
        "corpus": corpus.root.name,
        "split_by": corpus.split_by,
        "picture": list(clips[0].clip.size),
        **stamp(checkpoint, corpus, net, settings),
    }
    metrics["warnings"] = warnings_of(metrics)
    write_json(folder / METRICS, metrics)
    return metrics


def score_videos(folder: Path, corpus: Corpus, device: str, settings: EvaluationSettings) -> dict[str, Any]:
    """Figures of another method's videos of the held-out clips, in the layout of `write_report`, under `dub`.

    Raises:
        UserError: as `common.score_videos.score_folder`.
    """
    clips = held_out_clips(corpus, settings.split, shortest=SHORTEST, limit=settings.limit)
    net = load_judge(settings.weights, corpus.root, device)
    found = score_folder(net, folder, clips)
    metrics = report({DUB: found.scores}, net.name) | {
        "videos": folder.name,
        "clips": len(found.scores),
        "people": len({score.person for score in found.scores}),
        "frames": sum(score.frames for score in found.scores),
        "resized": found.resized,
        "failed": [{"clip": clip, "reason": reason} for clip, reason in found.failed],
        "unknown": found.unknown,
        "corpus": corpus.root.name,
        "corpus_manifest": sha256(corpus.root / MANIFEST),
        "picture": list(clips[0].clip.size),
        "split": settings.split,
        "limit": settings.limit,
    }
    missing = f"{len(found.failed)} of {len(clips)} clips have no score"
    return metrics | {"warnings": [missing] if found.failed else []}


def stamp(checkpoint: Path, corpus: Corpus, net: SyncNet, settings: EvaluationSettings) -> dict[str, Any]:
    """What tells one evaluation from another."""
    return {
        "checkpoint_sha256": sha256(checkpoint),
        "corpus_manifest": sha256(corpus.root / MANIFEST),
        "extractor": net.name,
        "split": settings.split,
        "limit": settings.limit,
    }


def label_of(checkpoint: Path, cfg: LipSyncConfig | None) -> Provenance:
    """The label of what this checkpoint draws."""
    told = ProvenanceConfig() if cfg is None else cfg.provenance
    return Provenance.create(told, config_hash=config_hash(cfg or told), checkpoint_sha256=sha256(checkpoint))


def corpus_of(checkpoint: Path, root: str) -> Corpus:
    """The corpus at `root`, or the one that a run's checkpoint was trained on.

    Raises:
        UserError: neither a folder nor a run's checkpoint.
    """
    if root:
        return Corpus.open(Path(root))
    _, cfg = LipSync.load(checkpoint)
    if cfg is None:
        raise UserError(f"{checkpoint} does not say what it was trained on; give --corpus FOLDER")
    return open_corpus(cfg.data)


def sheet(result: Evaluation) -> np.ndarray:
    """A picture uint8 (H,W,3): rows of frames by method."""
    rows = [(TITLES[name], _row(result.pictures[name])) for name in (REAL, MASKED, COPIED, DUB)]
    return picture_figure(rows, columns=1, width=COLUMNS)


def frame_rows(result: Evaluation) -> np.ndarray:
    """Real frames over the dubbed ones, uint8 (2H, n W, 3)."""
    return np.concatenate([_row(result.pictures[name]) for name in (REAL, DUB)])


def _row(images: Sequence[np.ndarray]) -> np.ndarray:
    """Frames side by side; those of another size than the first are left out."""
    return np.concatenate([image for image in images if image.shape == images[0].shape], axis=1)


def warnings_of(metrics: Mapping[str, Any]) -> list[str]:
    """What a reader has to know before the figures."""
    real, found = metrics["methods"][REAL], []
    if "other_lse_c" in real and real["lse_c"]["value"] <= real["other_lse_c"]["value"]:
        found.append(
            f"{metrics['extractor']} finds real clips no more in sync with their own speech than with another's: "
            "its LSE says nothing here"
        )
    if metrics["people"] == 1:
        found.append("one person only: the intervals say nothing about other people")
    return found


def summary(metrics: Mapping[str, Any]) -> str:
    """A line a method, the differences to the baselines, and the warnings."""
    lines = [
        f"{metrics['clips']} clips of {metrics['people']} people, {metrics['frames']} frames ({metrics['split']}); "
        f"LSE by {metrics['extractor']}, protocol {metrics['protocol']}; intervals over {metrics['resampled']}"
    ]
    for name, figures in metrics["methods"].items():
        shown = ", ".join(f"{title} {_interval(figures[key])}" for key, title in _SHOWN if key in figures)
        lines.append(f"{TITLES.get(name, name)}: {shown}")
    for name, figures in metrics.get("against", {}).items():
        shown = ", ".join(f"{title} {_interval(figures[key], '+')}" for key, title in _SHOWN if key in figures)
        lines.append(f"dubbed minus {TITLES[name]}: {shown}")
    return "\n".join(lines + [f"warning: {text}" for text in metrics["warnings"]])


def _interval(figure: Mapping[str, Any], sign: str = "") -> str:
    if figure["value"] is None:
        return f"none ({figure.get('reason', 'not measured')})"
    bounds = f" [{figure['low']:{sign}.3f}, {figure['high']:{sign}.3f}]" if figure["low"] is not None else ""
    return f"{figure['value']:{sign}.3f}{bounds}"
