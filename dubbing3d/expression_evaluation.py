"""Stage 1 on held-out people: expression coefficients from speech beside the mean expression, which hears nothing.

The truth is the corpus's coefficients. Sync cannot be heard in numbers: SyncNet looks at the face model, drawn in the
clip's own picture with the true pose, identity and light and the expression in question, on black. What it says of the
true expression, drawn alike, is the best that can be reached.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from common.clip_scores import ClipScore, ClipScorer, HeldOut, groups_of, paired_difference, report
from common.data.corpus import Corpus
from common.face3d.camera import REFERENCE_SIZE
from common.face3d.morphable import FaceModel
from common.metrics.estimate import Estimate
from common.metrics.expression import expression_distance
from common.metrics.landmark import landmark_distance
from common.metrics.lse import MIN_FRAMES
from common.metrics.means import ratio_of_means
from common.progress import counted
from common.syncnet import SAMPLES_PER_FRAME, SyncNet
from dubbing3d.build import LoadedExpression
from dubbing3d.clips import DubClips
from dubbing3d.coefficients import spoken_columns
from dubbing3d.data import ClipSpeech, longest_run
from dubbing3d.guide import FaceFrames, draw_guide
from dubbing3d.landmarks import LandmarkProjector
from dubbing3d.semantic import SemanticImages, semantic_images

PREDICTED, MEAN, TRUE, REAL = "predicted", "mean", "true", "real"
"""By the network; the training clips' mean expression; the truth, of which sync alone says something; the clip."""
COLUMNS = 8
"""Pictures in a row of a sheet."""
FIGURES = ("aed", "aed_l2", "aed_mouth", "lmd", "mouth_lmd", "mouth_lmd_centred")
SHARE = "_share"
"""After the name of a figure: as a share of what the mean expression has."""
_PART, _AROUND = 100, 25
"""Frames whose expressions are kept of a pass through the network, and those before and behind that it sees as well."""
_DRAWN = 8  # guides that are drawn at once


class Predictor(Protocol):
    """Gives expressions for stretches of the clips of a split."""

    def __call__(self, index: int, start: int, count: int) -> Tensor:
        """(count,Ke) of frames `start` to `start + count` of clip `index`."""
        ...


@dataclass(frozen=True)
class People:
    """Who is who among the clips that are measured."""

    clips: DubClips
    names: Sequence[str]
    """person of each clip"""
    chosen: Sequence[int]
    """numbers of those that are measured"""

    @classmethod
    def of(cls, corpus: Corpus, split: str, clips: DubClips, limit: int = 0) -> "People":
        """`limit` clips of those that a split has, spread evenly; 0: all."""
        rows = corpus.items(kind="clip", split=split).to_dict("records")
        owners = {str(row["id"]): str(row["identity"]) for row in rows}
        count = min(limit, len(clips)) or len(clips)
        chosen = np.linspace(0, len(clips) - 1, count).round().astype(int).tolist()
        return cls(clips, [owners[name] for name in clips.ids], chosen)

    def held_out(self, index: int, start: int, count: int) -> HeldOut:
        """Frames of a clip as what SyncNet's scores are named after."""
        clip, points = self.clips.clips[index], self.clips.clips[index].landmarks
        assert points is not None
        offset = self.clips.offsets[index]
        return HeldOut(self.clips.ids[index], self.names[index], clip, points[start : start + count], offset)


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate_expression` found."""

    metrics: dict[str, Any]
    """plain values, ready for JSON"""
    pictures: dict[str, list[np.ndarray]]
    """`REAL` and the methods -> frames uint8 (H,W,3) of the same places"""


class NetworkPredictor:
    """A trained stage 1 on clips; goes through long ones in parts that overlap, as dubbing does.

    Raises `UserError` where its semantic images are missing.
    """

    def __init__(self, loaded: LoadedExpression, clips: DubClips) -> None:
        self.loaded = loaded
        self.speech = ClipSpeech(clips, loaded.speech.cpu())
        self.images: SemanticImages | None = None
        if loaded.cfg.expression.semantic:
            self.images = semantic_images(clips, loaded.cfg.semantic)

    @torch.inference_mode()
    def __call__(self, index: int, start: int, count: int) -> Tensor:
        """See `Predictor`; on the CPU."""
        device, found = self.loaded.mean.device, []
        for begin in range(start, start + count, _PART):
            first, last = max(start, begin - _AROUND), min(start + count, begin + _PART + _AROUND)
            mfcc = self.speech.windows(index, first, last - first)[None].to(device)
            seen = None
            if self.images is not None:
                seen = self.images(index, first, last - first)[None].to(device).float() / 127.5 - 1
            rows = self.loaded.network(mfcc, seen)[0]
            found.append(rows[begin - first : begin - first + min(_PART, start + count - begin)].cpu())
        return torch.cat(found)


def evaluate_expression(
    predict: Predictor,
    mean: Tensor,
    model: FaceModel,
    people: People,
    net: SyncNet | None,
    *,
    frames: int = 0,
) -> Evaluation:
    """AED, landmark distance and sync of predicted expressions.

    Memory grows with the length of a clip by its coefficients and SyncNet's embeddings only.

    Args:
        predict: what is measured.
        mean: (Ke,) the training clips' mean expression.
        model: the face model of the clips' coefficients, on the CPU.
        people: the clips.
        net: SyncNet; None leaves sync out.
        frames: of each clip's longest stretch with a face at most; 0: all.
    """
    projector, spoken = LandmarkProjector(model), spoken_columns(model.expression_names)
    scores: dict[str, list[ClipScore]] = {PREDICTED: [], MEAN: [], TRUE: []}
    columns, pictures = chosen_columns(people.chosen), dict[str, list[np.ndarray]]()
    for index in counted(people.chosen, "speech"):
        start, count = longest_run(people.clips.matrices[index])
        count = min(count, frames or count)
        found, part = people.clips.coefficients(index), slice(start, start + count)
        true = found.expression[part]
        guesses = {PREDICTED: predict(index, start, count), MEAN: mean.cpu().expand_as(true), TRUE: true}
        held_out = people.held_out(index, start, count)
        if index in columns:
            _collect(pictures, model, people.clips, index, start, guesses, columns[index])
        for name, expression in guesses.items():
            figures = {} if name == TRUE else _distances(expression, true, spoken)
            if name != TRUE:
                shown = (found.identity[None], found.angles[None, part], found.translation[None, part])
                ours, theirs = (projector(shown[0], e[None], *shown[1:])[0] for e in (expression, true))
                away = landmark_distance(ours, theirs)
                figures |= {key: float(away[key].mean()) for key in FIGURES if key in away}
            note = ""
            if net is not None and count >= MIN_FRAMES:
                sync = _sync(net, model, people, index, start, expression)
                figures, note = figures | dict(sync.figures), sync.note
            scores[name].append(ClipScore(held_out.id, held_out.person, count, figures, note))
    return Evaluation(_report(scores, net, len(spoken), len(mean)), pictures)


def chosen_columns(clips: Sequence[int]) -> dict[int, int]:
    """Clips of a sheet's columns, spread evenly over `clips`, and how many columns each fills."""
    places = np.linspace(0, len(clips) - 1, min(len(clips), COLUMNS // 2)).round().astype(int)
    return {clips[place]: COLUMNS // len(places) for place in places}


def _collect(
    pictures: dict[str, list[np.ndarray]],
    model: FaceModel,
    clips: DubClips,
    index: int,
    start: int,
    guesses: Mapping[str, Tensor],
    count: int,
) -> None:
    rows = np.linspace(0, len(guesses[TRUE]) - 1, count + 2).round().astype(int)[1:-1]
    pictures.setdefault(REAL, []).extend(clips.clips[index].frames(int(start + row), 1)[0] for row in rows)
    for name, expression in guesses.items():
        pictures.setdefault(name, []).extend(drawn_guides(model, clips, index, start + rows, expression[rows]))


def _distances(expression: Tensor, true: Tensor, spoken: Sequence[int]) -> dict[str, float]:
    """Means over frames (T,Ke) of AED, its L2 form, and AED of the columns that speech moves."""
    whole = expression_distance(expression, true)
    mouth = expression_distance(expression[:, spoken], true[:, spoken])
    return {
        "aed": float(whole["aed"].mean()),
        "aed_l2": float(whole["aed_l2"].mean()),
        "aed_mouth": float(mouth["aed"].mean()),
    }


def _sync(net: SyncNet, model: FaceModel, people: People, index: int, start: int, expression: Tensor) -> ClipScore:
    """SyncNet's figures of the face model with an expression (T,Ke), drawn in the clip's picture, on black."""
    clip, scorer = people.held_out(index, start, len(expression)), ClipScorer(net)
    for picture in drawn_guides(model, people.clips, index, start + np.arange(len(expression)), expression):
        scorer.add([picture])
    wave = clip.clip.wave(start * SAMPLES_PER_FRAME, len(expression) * SAMPLES_PER_FRAME)
    return scorer.finish(clip, wave)


def drawn_guides(
    model: FaceModel, clips: DubClips, index: int, numbers: np.ndarray, expression: Tensor
) -> Iterator[np.ndarray]:
    """Pictures uint8 (H,W,3), as large as the clip's, of its face in frames `numbers` (T,) with expressions (T,Ke)."""
    width, height = clips.clips[index].size
    face, still = clips.coefficients(index), torch.eye(2, 3, dtype=torch.float64)
    for first in range(0, len(expression), _DRAWN):
        part = expression[first : first + _DRAWN]
        frames = FaceFrames.of(face, torch.from_numpy(numbers[first : first + _DRAWN])).with_expression(part)
        drawn, _ = draw_guide(model, frames, still, max(width, height), supersample=1)
        pictures = ((drawn + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)
        yield from pictures[:, :height, :width].contiguous().numpy()


def _report(scores: dict[str, list[ClipScore]], net: SyncNet | None, spoken: int, expressions: int) -> dict[str, Any]:
    metrics = report(scores, "" if net is None else net.name)
    ours, mean = scores[PREDICTED], scores[MEAN]
    _, groups = np.unique(groups_of(ours), return_inverse=True)
    for name in FIGURES:
        over, under = (torch.tensor([score.figures[name] for score in part]) for part in (ours, mean))
        metrics["methods"][PREDICTED][name + SHARE] = ratio_of_means(over, under, groups).to_dict()
    against = {}
    for other in (MEAN, TRUE):
        pairs = {name: _difference(metrics, other, name) for name in (*FIGURES, "lse_d", "lse_c")}
        against[other] = {name: found.to_dict() for name, found in pairs.items() if found is not None}
    return metrics | {
        "clips": len(ours),
        "people": len({score.person for score in ours}),
        "frames": sum(score.frames for score in ours),
        "against": against,
        "expressions": expressions,
        "mouth_expressions": spoken,
        "lmd": f"px at {REFERENCE_SIZE}, projected landmarks of the face model",
        "sync": "not measured" if net is None else "of the face model drawn on black",
    }


def _difference(metrics: dict[str, Any], other: str, name: str) -> Estimate | None:
    return paired_difference(metrics["scores"][PREDICTED], metrics["scores"][other], name)
