"""What an evaluation leaves in a folder, and what it says on the terminal."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.clip_scores import held_out_clips
from common.config import config_hash
from common.data.corpus import Corpus
from common.errors import UserError
from common.files import sha256, write_json
from common.plots import picture_figure
from common.provenance import Provenance, ProvenanceConfig, write_png
from common.runfolder import METRICS
from common.score_report import EvaluationSettings, load_judge, stamp, summarise
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
SHOWN = (
    ("lse_d", "LSE-D"),
    ("lse_c", "LSE-C"),
    ("other_lse_d", "LSE-D with other speech"),
    ("other_lse_c", "LSE-C with other speech"),
    ("ssim", "SSIM"),
    ("psnr", "PSNR"),
    ("mouth_ssim", "mouth SSIM"),
    ("mouth_psnr", "mouth PSNR"),
)
"""Figures of the summary with their titles."""


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
    return summarise(metrics, SHOWN, TITLES)
