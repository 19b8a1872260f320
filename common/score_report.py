"""What the `evaluate` commands share: settings, the SyncNet that judges, other methods' videos, the summary."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.clip_scores import Likeness, held_out_clips, report
from common.data.corpus import MANIFEST, SPLITS, Corpus
from common.errors import UserError
from common.files import sha256, write_json
from common.metrics.lse import MIN_FRAMES
from common.score_videos import score_folder
from common.sync_scoring import has_official, load_extractor, run_lse
from common.syncnet import SyncNet

METHOD = "dub"
"""Under this name `score_videos` keeps the figures of another method."""
Titles = Sequence[tuple[str, str]]
"""Names of figures and what a person calls them, in order."""


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
        weights = "official" if has_official() else "own"
    return load_extractor(weights, corpus, device)


def stamp(checkpoint: Path, corpus: Corpus, net: SyncNet | None, settings: EvaluationSettings) -> dict[str, Any]:
    """What tells one evaluation from another."""
    return {
        "checkpoint_sha256": sha256(checkpoint),
        "corpus_manifest": sha256(corpus.root / MANIFEST),
        "extractor": None if net is None else net.name,
        "split": settings.split,
        "limit": settings.limit,
    }


def evaluate_videos(
    videos: Path,
    corpus: str,
    out: Path | None,
    device: str,
    settings: EvaluationSettings,
    protocol: str,
    shown: Titles,
    *,
    shortest: int = MIN_FRAMES,
    likeness: Callable[[], Likeness] | None = None,
) -> str:
    """The command `evaluate --videos`: the words to print.

    With a corpus the videos are compared with its clips, and the figures go to `out`, `scores.json` among the videos
    unless given. Without one sync alone is measured, each video with its own sound, by the official or a given SyncNet.

    Args:
        videos: folder.
        corpus: its folder, or empty.
        out: JSON file.
        device: torch device.
        settings: what is measured.
        protocol: of sync alone, see `common.sync_protocols`.
        shown: figures of the words.
        shortest: frames with a face that a clip needs.
        likeness: makes what measures more of each frame.

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
    more = None if likeness is None else likeness()
    metrics = score_videos(videos, Corpus.open(Path(corpus)), device, settings, shortest=shortest, likeness=more)
    write_json(out, metrics)
    return f"{summarise(metrics, shown, {METHOD: 'dubbed'})}\nwritten: {out}"


def score_videos(
    folder: Path,
    corpus: Corpus,
    device: str,
    settings: EvaluationSettings,
    *,
    shortest: int = MIN_FRAMES,
    likeness: Likeness | None = None,
) -> dict[str, Any]:
    """Figures of another method's videos of the held-out clips, in the layout of the packages' reports, as `METHOD`.

    Raises:
        UserError: as `common.score_videos.score_folder`.
    """
    clips = held_out_clips(corpus, settings.split, shortest=shortest, limit=settings.limit)
    if not folder.is_dir():  # before minutes go into a SyncNet
        raise UserError(f"no folder of videos at {folder}")
    net = load_judge(settings.weights, corpus.root, device)
    found = score_folder(net, folder, clips, likeness)
    metrics = report({METHOD: found.scores}, net.name) | {
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


def summarise(metrics: Mapping[str, Any], shown: Titles, titles: Mapping[str, str]) -> str:
    """A line a method, the differences to the baselines, and the warnings.

    Args:
        metrics: of `common.clip_scores.report`, with what the caller measured and `warnings`.
        shown: figures that are told.
        titles: of the methods.
    """
    judge = f"LSE by {metrics['extractor']}, protocol {metrics['protocol']}; " if metrics.get("extractor") else ""
    lines = [
        f"{metrics['clips']} clips of {metrics['people']} people, {metrics['frames']} frames ({metrics['split']}); "
        f"{judge}intervals over {metrics['resampled']}"
    ]
    for name, figures in metrics["methods"].items():
        words = ", ".join(f"{title} {shown_interval(figures[key])}" for key, title in shown if key in figures)
        lines += [f"{titles.get(name, name)}: {words}"] if words else []
    ours = titles[METHOD]
    for name, figures in metrics.get("against", {}).items():
        words = ", ".join(f"{title} {shown_interval(figures[key], '+')}" for key, title in shown if key in figures)
        lines += [f"{ours} minus {titles.get(name, name)}: {words}"] if words else []
    return "\n".join(lines + [f"warning: {text}" for text in metrics["warnings"]])


def shown_interval(figure: Mapping[str, Any], sign: str = "") -> str:
    """`1.234 [1.111, 1.357]` of an estimate's plain values, or why there is no figure."""
    if figure["value"] is None:
        return f"none ({figure.get('reason', 'not measured')})"
    bounds = f" [{figure['low']:{sign}.3f}, {figure['high']:{sign}.3f}]" if figure["low"] is not None else ""
    return f"{figure['value']:{sign}.3f}{bounds}"
