"""Score the videos that any method made of the held-out clips of a corpus, by the figures of `common.clip_scores`.

The videos lie in a folder under the names of the clips: `clips/s9/0001.mp4`, `s9/0001.mp4`, `clips_s9_0001.mp4` and
`s9_0001.mp4` all stand for the clip `clips/s9/0001`. Frame t belongs to the clip's frame t at 25 fps, the sound is the
clip's own. A picture of another size is resized to the clip's.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from common.clip_scores import ClipScore, ClipScorer, HeldOut, Likeness
from common.data.corpus import SAMPLE_RATE
from common.errors import UserError
from common.progress import counted
from common.sync_scoring import VIDEO_SUFFIXES
from common.syncnet import FPS, SyncNet
from common.video import read_frames

_BATCH = 16  # frames that are held and compared at once
_PREFIX = "clips/"


@dataclass(frozen=True)
class FolderScores:
    """A folder of videos, measured."""

    scores: list[ClipScore]
    failed: list[tuple[str, str]]
    """clips without a score, with the reason"""
    unknown: list[str]
    """videos that belong to no clip"""
    resized: int
    """videos whose pictures had another size than the clip's"""


def score_folder(
    net: SyncNet, folder: Path, clips: Sequence[HeldOut], likeness: Likeness | None = None
) -> FolderScores:
    """Score the videos in `folder` against the clips that they are made of.

    Raises:
        UserError: no such folder, or no video in it that belongs to a clip or can be scored.
    """
    if not folder.is_dir():
        raise UserError(f"no folder of videos at {folder}")
    files = {path.relative_to(folder).with_suffix("").as_posix(): path for path in video_files(folder)}
    places = {clip.id: next((name for name in names_of(clip.id) if name in files), "") for clip in clips}
    if not any(places.values()):
        name = names_of(clips[0].id)[-1]
        raise UserError(f"{folder} holds no video of a held-out clip; name them after the clips, such as {name}.mp4")
    scores, failed, resized = [], [], 0
    for clip in counted(clips, "videos"):
        if not places[clip.id]:
            failed.append((clip.id, "there is no video of it"))
            continue
        try:
            score, other_size = _score(ClipScorer(net, likeness), files[places[clip.id]], clip)
        except UserError as error:
            failed.append((clip.id, str(error)))
            continue
        scores.append(score)
        resized += other_size
    if not scores:
        raise UserError(f"no video in {folder} could be scored; the first reason: {failed[0][1]}")
    unknown = sorted(files.keys() - set(places.values()))
    return FolderScores(scores, failed, unknown, resized)


def names_of(clip: str) -> list[str]:
    """Names under which a video of a clip may lie, without suffix; the last is the plainest."""
    short = clip.removeprefix(_PREFIX)
    return [clip, short, clip.replace("/", "_"), short.replace("/", "_")]


def video_files(folder: Path) -> list[Path]:
    """Videos below a folder, sorted; hidden ones are somebody's half-written files."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in VIDEO_SUFFIXES and not path.name.startswith(".") and path.is_file()
    )


def _score(scorer: ClipScorer, path: Path, clip: HeldOut) -> tuple[ClipScore, bool]:
    """The score, and whether the pictures had to be resized."""
    count, other_size = 0, False
    frames = (frame.image for frame in read_frames(path, fps=FPS))
    while count < clip.frames and (batch := list(islice(frames, min(_BATCH, clip.frames - count)))):
        real = list(clip.clip.frames(count, len(batch)))
        other_size |= batch[0].shape != real[0].shape
        scorer.add([_fitted(image, real[0].shape) for image in batch], real, clip.landmarks[count : count + len(batch)])
        count += len(batch)
    wave = clip.clip.wave()[: round(count * SAMPLE_RATE / FPS)]
    score = scorer.finish(clip, wave)
    longer = sum(1 for _ in frames)
    if count < clip.frames or longer:
        differs = f"{clip.frames - count} frames shorter" if count < clip.frames else f"{longer} frames longer"
        notes = [score.note, f"the video is {differs} than the clip; only what both have is measured"]
        score = replace(score, note="; ".join(filter(None, notes)))
    return score, other_size


def _fitted(image: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A picture uint8 (h,w,3) in the size of `shape` (H,W,3), anti-aliased."""
    if image.shape == shape:
        return image
    pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float()
    resized = F.interpolate(pixels, shape[:2], mode="bilinear", align_corners=False, antialias=True)
    return resized[0].permute(1, 2, 0).round().clamp(0, 255).to(torch.uint8).numpy()
