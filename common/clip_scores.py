"""What clips of generated talking faces score, whoever made them: LSE, PSNR and SSIM, on the picture and on the mouth.

A `ClipScorer` takes one method's frames of one clip as they come, beside the real ones; `report` turns the clips of all
methods into means with intervals; `paired_difference` compares two methods on the clips that both have. The frames are
those of the corpus clip, which is a crop around a head, so that LSE is of the protocol `lrs`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.data.corpus import Corpus
from common.errors import UserError
from common.metrics.estimate import Estimate, cluster_bootstrap, plain
from common.metrics.image import image_quality, mouth_boxes
from common.metrics.lse import MIN_FRAMES, score_streams
from common.syncnet import FPS, WINDOW, LipStream, SyncNet
from common.video import Clip

PROTOCOL = "lrs"
SYNC = ("lse_d", "lse_c", "valid_lse_d", "valid_lse_c", "in_sync")
"""Figures from lips and sound."""
IMAGE = ("psnr", "ssim", "mouth_psnr", "mouth_ssim")
"""Figures that need the real frames."""
Likeness = Callable[[Tensor, Tensor, Tensor], Mapping[str, Tensor]]
"""(made, real, landmarks): frames (B,3,H,W) uint8 and (B,68,2) px of the real ones -> further figures (B,) by name."""
FEWEST_PEOPLE = 5
"""From so many people on intervals resample people, below that clips: a handful of people says nothing of others."""


@dataclass(frozen=True)
class HeldOut:
    """A clip of a corpus that methods are measured on."""

    id: str
    person: str
    clip: Clip
    landmarks: np.ndarray
    """(T,68,2) in pixels of its frames, NaN where there is no face"""
    offset: int
    """frames by which its sound must be moved to be in sync, 0 where nobody measured it"""

    @property
    def frames(self) -> int:
        """Frames that have a picture and sound."""
        return len(self.landmarks)


def held_out_clips(corpus: Corpus, split: str, *, shortest: int = MIN_FRAMES, limit: int = 0) -> list[HeldOut]:
    """Clips of a split with 25 fps, landmarks, and faces in `shortest` frames; `limit` of them, spread evenly, 0: all.

    Raises:
        UserError: no clip is left.
    """
    found = []
    for row in corpus.items(kind="clip", split=split).to_dict("records"):
        clip = Clip(corpus.file(str(row["path"])))
        points = clip.landmarks if row["fps"] == FPS else None
        if points is not None and np.isfinite(points).all(axis=(1, 2)).sum() >= shortest:
            offset = float(row["sync_offset"])
            moved = 0 if np.isnan(offset) else round(offset)
            found.append(HeldOut(str(row["id"]), str(row["identity"]), clip, points, moved))
    if not found:
        raise UserError(
            f"{corpus.root}: no clip of the {split} split has {FPS} fps, landmarks and {shortest} frames with a face; "
            f"{corpus.stock(split)}"
        )
    if limit and limit < len(found):
        return [found[place] for place in np.linspace(0, len(found) - 1, limit).round().astype(int)]
    return found


@dataclass(frozen=True)
class ClipScore:
    """One method on one clip."""

    clip: str
    person: str
    frames: int
    figures: Mapping[str, float]
    """of `SYNC` and `IMAGE`, those that could be measured, and what the caller adds"""
    note: str = ""
    """what makes them doubtful"""


class ClipScorer:
    """Scores a clip batch by batch; memory does not grow with it but for the embeddings of its lips.

    Args:
        net: SyncNet in eval mode.
        likeness: measures more of frames that have real ones.
    """

    def __init__(self, net: SyncNet, likeness: Likeness | None = None) -> None:
        self.net, self.likeness = net, likeness
        self._lips = LipStream(net)
        self._images: list[dict[str, Tensor]] = []

    def add(
        self,
        frames: Sequence[np.ndarray],
        real: Sequence[np.ndarray] | None = None,
        landmarks: np.ndarray | None = None,
    ) -> None:
        """Add the next frames, uint8 (H,W,3) RGB.

        `real` are those of the clip, of the same size, and `landmarks` (B,68,2) their landmarks; frames whose landmarks
        are NaN count for sync alone. Without them only sync is measured.
        """
        for image in frames:
            self._lips.push(image)
        if real is None or landmarks is None:
            return
        known = np.flatnonzero(np.isfinite(landmarks).all(axis=(1, 2))).tolist()
        if known:
            made, truth = (
                torch.from_numpy(np.stack([part[i] for i in known])).permute(0, 3, 1, 2) for part in (frames, real)
            )
            boxes = mouth_boxes(torch.from_numpy(landmarks[known]), *truth.shape[-2:])
            marks = torch.from_numpy(landmarks[known])
            more = {} if self.likeness is None else self.likeness(made, truth, marks)
            self._images.append(image_quality(made, truth, boxes) | dict(more))

    def finish(self, clip: HeldOut, wave: Tensor) -> ClipScore:
        """The scores with the sound (n,) at 16 kHz that the frames belong to.

        Raises:
            UserError: fewer than six frames of picture or sound.
        """
        return self.against(self._lips.finish(), clip, wave)

    def lips(self) -> Tensor:
        """Embeddings (T-4,D) of all frames, to be scored with other sound by `against`; ends the adding."""
        return self._lips.finish()

    def against(self, lips: Tensor, clip: HeldOut, wave: Tensor) -> ClipScore:
        """As `finish`, of lips that it is given."""
        sync = score_streams(self.net, lips, wave)
        figures = {
            "lse_d": sync.distance,
            "lse_c": sync.confidence,
            "valid_lse_d": sync.valid_distance,
            "valid_lse_c": sync.valid_confidence,
            "in_sync": float(abs(sync.valid_offset) <= 1),
        }
        for name in self._images[0] if self._images else ():
            values = torch.cat([part[name] for part in self._images]).double()
            if values.isfinite().any():
                figures[name] = float(values.nanmean())
        return ClipScore(clip.id, clip.person, len(lips) + WINDOW - 1, figures, sync.note)


def report(methods: Mapping[str, Sequence[ClipScore]], extractor: str) -> dict[str, Any]:
    """Plain values for metrics.json: for each method its means with 95 % intervals, and every clip's figures.

    All clips count alike, whatever their length.
    """
    by = resampled_by([score for scores in methods.values() for score in scores])
    return {
        "extractor": extractor,
        "protocol": PROTOCOL,
        "resampled": by,
        "methods": {name: _estimates(scores, by) for name, scores in methods.items()},
        "scores": {name: {score.clip: _plain(score) for score in scores} for name, scores in methods.items()},
        "notes": [
            f"{name}, {score.clip}: {score.note}" for name, scores in methods.items() for score in scores if score.note
        ],
    }


def resampled_by(scores: Sequence[ClipScore]) -> str:
    """What intervals of these clips resample: `people`, or `clips` of too few people."""
    return "people" if len({score.person for score in scores}) >= FEWEST_PEOPLE else "clips"


def groups_of(scores: Sequence[ClipScore], by: str = "") -> np.ndarray:
    """Names (n,) of what is resampled together, `by` people or clips; see `resampled_by` unless given."""
    people = (by or resampled_by(scores)) == "people"
    return np.array([score.person if people else score.clip for score in scores])


def _estimates(scores: Sequence[ClipScore], by: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in dict.fromkeys(name for score in scores for name in score.figures):
        known = [score for score in scores if name in score.figures]
        if known:
            values = np.array([score.figures[name] for score in known])
            found[name] = cluster_bootstrap(values, groups_of(known, by)).to_dict()
    return found


def _plain(score: ClipScore) -> dict[str, Any]:
    figures = {name: plain(value) for name, value in score.figures.items()}
    return {"person": score.person, "frames": score.frames, **figures}


def paired_difference(
    first: Mapping[str, Mapping[str, Any]], second: Mapping[str, Mapping[str, Any]], figure: str
) -> Estimate | None:
    """Mean difference of a figure on the clips that two methods have in common; None where there are none.

    Args:
        first, second: clip -> its figures, as `report` has them under `scores`.
        figure: its name.
    """
    both = [
        clip
        for clip in first
        if clip in second and first[clip].get(figure) is not None and second[clip].get(figure) is not None
    ]
    if not both:
        return None
    values = np.array([first[clip][figure] - second[clip][figure] for clip in both], dtype=np.float64)
    people = np.array([str(first[clip]["person"]) for clip in both])
    groups = people if len(set(people)) >= FEWEST_PEOPLE else np.array(both)
    return cluster_bootstrap(values, groups)
