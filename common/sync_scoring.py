"""LSE over a corpus, a folder of videos or one video: what to score, by which network, and the report."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from common.checkpoints import LAST, find_resumable
from common.config import RunConfig, TrainerConfig, WandbConfig
from common.data.corpus import MANIFEST, SPLITS, Corpus
from common.errors import UserError
from common.faces.base import FaceBackend, load_backend
from common.files import sha256, write_json
from common.metrics.lse import LseResult, SyncScore, describe, injected_offsets, score_streams, summarize
from common.progress import counted
from common.sync_protocols import PROTOCOLS, lip_stream, score_video, sound_of
from common.syncnet import KIND, SyncNet, load_syncnet
from common.syncnet_train import SyncConfig, SyncDataConfig, train_syncnet
from common.video.clip import AUDIO, VIDEO
from common.weights import WEIGHTS, weights_folder

OWN = "own_syncnet"
"""Folder in the weights folder that holds the networks trained by `--weights own`, one for each corpus."""
OWN_STEPS = 200
VIDEO_SUFFIXES = {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".flv", ".3gp"}


@dataclass(frozen=True)
class Source:
    """One video to score."""

    id: str
    group: str
    """Identity; intervals resample these."""
    video: Path
    audio: Path | None = None
    """Sound in a file of its own; None where the video has it."""


@dataclass(frozen=True)
class Scored:
    """What became of a source."""

    source: Source
    scores: list[SyncScore] = field(default_factory=list)
    """One, or one for each track."""
    failure: str = ""
    """Why it has no score; empty where it has."""
    injected: list[tuple[int, int]] = field(default_factory=list)
    """Offsets put in and found, where asked for."""


@dataclass(frozen=True)
class SyncReport:
    """The result over all sources, and each of them."""

    result: LseResult
    items: list[Scored]

    @property
    def failures(self) -> list[Scored]:
        """Sources without a score."""
        return [item for item in self.items if item.failure]

    @property
    def injected(self) -> tuple[int, int] | None:
        """How many injected offsets were found within one frame, of how many; None where none were put in."""
        pairs = [pair for item in self.items for pair in item.injected]
        return (sum(abs(a - b) <= 1 for a, b in pairs), len(pairs)) if pairs else None

    def to_dict(self) -> dict[str, Any]:
        """Plain values: the result, every score, every failure."""
        rows = [
            {"id": item.source.id, "identity": item.source.group, "track": track} | describe(score)
            for item in self.items
            for track, score in enumerate(item.scores)
        ]
        failed = [{"id": item.source.id, "reason": item.failure} for item in self.failures]
        values = {"result": self.result.to_dict(), "scores": rows, "failed": failed}
        if self.injected:
            found, count = self.injected
            values["injected_offsets"] = {"within_1": found / count, "n": count}
        return values

    def __str__(self) -> str:
        lines = [str(self.result)]
        if self.injected:
            found, count = self.injected
            lines.append(f"injected offsets of -5 to 5 frames found within 1: {found} of {count} ({found / count:.1%})")
        notes = [(item.source.id, score.note) for item in self.items for score in item.scores if score.note]
        lines += _listed(f"{len(notes)} doubtful scores", notes)
        lines += _listed(
            f"{len(self.failures)} without a score", [(item.source.id, item.failure) for item in self.failures]
        )
        return "\n".join(lines)


def find_sources(target: Path, splits: Sequence[str]) -> list[Source]:
    """Clips of a corpus in `splits`, the videos below a folder, or one video.

    Raises:
        UserError: nothing there, or no clip in these splits.
    """
    if unknown := sorted(set(splits) - set(SPLITS)):
        raise UserError(f"unknown split {unknown[0]!r}: use {', '.join(SPLITS)}")
    if (target / MANIFEST).is_file():
        corpus = Corpus.open(target)
        rows = [row for split in splits for row in corpus.items(kind="clip", split=split).itertuples()]
        if not rows:
            raise UserError(f"{target} has no clips in the splits {', '.join(splits)}; name others with --split")
        folders = [(row, corpus.file(str(row.path))) for row in rows]
        return [Source(str(row.id), str(row.identity), path / VIDEO, path / AUDIO) for row, path in folders]
    if target.is_dir():
        files = sorted(path for path in target.rglob("*") if path.suffix.lower() in VIDEO_SUFFIXES)
        if not files:
            raise UserError(f"{target} holds neither a corpus nor videos ({', '.join(sorted(VIDEO_SUFFIXES))})")
        return [Source(path.relative_to(target).as_posix(), path.as_posix(), path) for path in files]
    if target.is_file():
        return [Source(target.name, target.name, target)]
    raise UserError(f"there is nothing at {target}; give a corpus, a folder of videos or a video")


def load_extractor(weights: str, target: Path, device: str = "cpu") -> SyncNet:
    """The network that `weights` names: `official`, `own` (trained on the corpus `target` at need) or a file."""
    if weights == "official":
        try:
            return load_syncnet(None, device)
        except UserError as error:
            if has_official():
                raise
            raise UserError(f"{error}; {_instead(target)}") from error
    if weights == "own":
        return load_syncnet(own_weights(target, device), device)
    if not Path(weights).is_file():
        raise UserError(f"no SyncNet weights at {weights}: give official, own or a file (a run folder's {LAST})")
    return load_syncnet(Path(weights), device)


def has_official() -> bool:
    """Whether the published weights lie in the weights folder."""
    return (weights_folder() / WEIGHTS["syncnet_v2"].file_name).is_file()


def _instead(target: Path) -> str:
    """What works without the published weights."""
    if (target / MANIFEST).is_file():
        return "or give --weights own, which trains a SyncNet on this corpus"
    return "or give a corpus (evaluate: --truth CORPUS) with --weights own, which trains a SyncNet on it"


def own_config(corpus: Path, device: str = "cpu") -> SyncConfig:
    """The training that `--weights own` runs: the narrow network, some minutes on two cores."""
    run = RunConfig(package=OWN, name=sha256(corpus / MANIFEST)[:8], out=weights_folder())
    accelerator = "gpu" if device.startswith("cuda") else "cpu"
    trainer = TrainerConfig(
        steps=OWN_STEPS, accelerator=accelerator, devices=1, log_every=20, val_every=0, save_every=50,
        kwargs={"gradient_clip_val": 1.0},
    )  # fmt: skip
    return SyncConfig(
        run=run, trainer=trainer, wandb=WandbConfig(mode="disabled"), data=SyncDataConfig(root=str(corpus))
    )


def own_weights(corpus: Path, device: str = "cpu") -> Path:
    """The checkpoint trained on this corpus (as its manifest is now); trained, or trained on, where it is not done.

    Raises:
        UserError: no corpus, no training clips, or a weights folder that cannot be written.
    """
    if not (corpus / MANIFEST).is_file():
        raise UserError(
            f"{corpus} is no corpus that an own SyncNet could be trained on; give one (evaluate --truth CORPUS), or "
            "--weights FILE or official"
        )
    cfg = own_config(corpus, device)
    folder = cfg.run.folder
    found = find_resumable(folder, KIND)
    if found is not None and found[1]["step"] >= cfg.trainer.steps:
        print(f"SyncNet of its own for {corpus}, trained earlier: {folder}", flush=True)
    else:
        print(
            f"training a SyncNet of its own for {corpus}: {cfg.trainer.steps} steps, some minutes on two cores, "
            f"kept for the next time in {folder}",
            flush=True,
        )
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write {folder}: {error.strerror}; set SPEECHFACE_WEIGHTS to a folder") from error
        train_syncnet(cfg, resume=True)
    return folder / LAST


def score_sources(
    net: SyncNet,
    sources: Sequence[Source],
    protocol: str,
    *,
    backend: str = "dlib",
    inject: bool = False,
    kept: Path | None = None,
) -> SyncReport:
    """Score every source; one that cannot be scored is reported with its reason.

    Args:
        net: the network, in eval mode.
        sources: what to score.
        protocol: one of `common.sync_protocols.PROTOCOLS`.
        backend: face backend of the protocols that crop.
        inject: also look for offsets of -5..5 frames put into each clip (`lrs` only).
        kept: where finished sources are noted line by line, so that an interrupted run goes on; removed by the caller.

    Raises:
        UserError: unknown protocol or backend, or not one source could be scored (gives the first reason).
    """
    if protocol not in PROTOCOLS:
        raise UserError(f"unknown protocol {protocol!r}: use {', '.join(PROTOCOLS)}")
    if inject and protocol != "lrs":
        raise UserError(f"offsets are put into clips of the protocol lrs only, not {protocol}")
    finder = None if protocol == "lrs" else load_backend(backend, device=str(next(net.parameters()).device))
    label = protocol if finder is None else f"{protocol}[{finder.name}]"
    journal = _Journal(kept, {"extractor": net.name, "protocol": label, "inject": inject})
    items = []
    for source in counted(sources, f"lse {label}"):
        item = journal.find(source)
        if item is None:
            item = _score(net, source, protocol, finder, inject)
            journal.add(item)
        items.append(item)
    if all(item.failure for item in items):
        raise UserError(f"none of {len(items)} videos has a score, {items[0].source.id} since: {items[0].failure}")
    scores = [(score, item.source.group) for item in items for score in _counted(item, protocol)]
    result = summarize(
        [score for score, _ in scores], [group for _, group in scores], extractor=net.name, protocol=label
    )
    return SyncReport(result, items)


def run_lse(
    target: Path,
    *,
    protocol: str,
    weights: str,
    splits: Sequence[str],
    device: str,
    backend: str,
    inject: bool,
    out: Path | None,
) -> str:
    """The command `python -m common lse`: score, write JSON to `out` where given, return the words to print."""
    sources = find_sources(target, splits)
    net = load_extractor(weights, target, device)
    kept = None if out is None else out.with_name(f"{out.name}.partial")
    report = score_sources(net, sources, protocol, backend=backend, inject=inject, kept=kept)
    if out is not None and kept is not None:
        write_json(out, report.to_dict())
        kept.unlink(missing_ok=True)
    return str(report)


def _score(net: SyncNet, source: Source, protocol: str, finder: FaceBackend | None, inject: bool) -> Scored:
    try:
        if not inject:
            return Scored(source, score_video(net, source.video, protocol, audio=source.audio, backend=finder))
        wave, lips = sound_of(source.video, source.audio), lip_stream(net, source.video)
        return Scored(source, [score_streams(net, lips, wave)], injected=injected_offsets(net, lips, wave))
    except UserError as error:
        return Scored(source, failure=str(error))


def _counted(item: Scored, protocol: str) -> list[SyncScore]:
    """What enters the mean: `latentsync` averages the tracks of a video first."""
    if protocol != "latentsync" or len(item.scores) < 2:
        return item.scores
    rows = item.scores

    def mean(values: Iterable[float]) -> float:
        return sum(values) / len(rows)

    return [
        replace(
            rows[0],
            offset=int(mean(score.offset for score in rows)),
            distance=mean(score.distance for score in rows),
            confidence=mean(score.confidence for score in rows),
            valid_offset=int(mean(score.valid_offset for score in rows)),
            valid_distance=mean(score.valid_distance for score in rows),
            valid_confidence=mean(score.valid_confidence for score in rows),
        )
    ]


def _listed(title: str, rows: Sequence[tuple[str, str]], most: int = 5) -> Iterable[str]:
    if rows:
        yield f"{title}:"
        yield from (f"  {name}: {text}" for name, text in rows[:most])
        if len(rows) > most:
            yield f"  and {len(rows) - most} more"


class _Journal:
    """Finished sources of an interrupted run, one JSON line each behind a line that says how they were scored."""

    def __init__(self, path: Path | None, head: dict[str, Any]) -> None:
        self.path = path
        self._known: dict[str, dict[str, Any]] = {}
        if path is None:
            return
        lines = _read_lines(path)
        if lines[:1] == [head]:
            self._known = {line["id"]: line for line in lines[1:]}
        else:
            self._write("w", head)

    def find(self, source: Source) -> Scored | None:
        """What is known of a source whose files have not changed since."""
        line = self._known.get(source.id)
        if line is None or line["stamp"] != _stamp(source):
            return None
        scores = [SyncScore(**score | {"curve": tuple(score["curve"])}) for score in line["scores"]]
        return Scored(source, scores, line["failure"], [(a, b) for a, b in line["injected"]])

    def add(self, item: Scored) -> None:
        """Note a source; a line reaches the disk before the next source begins."""
        line = {"id": item.source.id, "stamp": _stamp(item.source), "scores": [describe(s) for s in item.scores]}
        self._write("a", line | {"failure": item.failure, "injected": item.injected})

    def _write(self, mode: str, value: dict[str, Any]) -> None:
        if self.path is None:
            return
        try:
            with open(self.path, mode, encoding="utf-8") as file:
                file.write(json.dumps(value) + "\n")
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {error.strerror or error}") from error


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """Whole lines; a torn last one is what the run was killed at."""
    lines: list[dict[str, Any]] = []
    if path.is_file():
        for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                lines.append(json.loads(text))
            except ValueError:
                break
    return lines


def _stamp(source: Source) -> list[int]:
    try:
        states = [path.stat() for path in (source.video, source.audio) if path is not None]
    except OSError:
        return []
    return [number for state in states for number in (state.st_size, state.st_mtime_ns)]
