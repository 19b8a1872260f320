"""Training windows of stage 1 and what its validation reads, as pure functions of (seed, step)."""

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from common.data.corpus import Corpus
from common.data.sampling import Draw
from common.synthetic.talking import open_talking_corpus
from common.training import TrainData
from dubbing3d.clips import DubClips
from dubbing3d.coefficients import FaceModelMark
from dubbing3d.config import DataConfig, DubbingConfig
from dubbing3d.semantic import SemanticImages, semantic_images
from dubbing3d.speech import SpeechWindows


def open_corpus(cfg: DataConfig) -> Corpus:
    """The corpus that the configuration names."""
    return open_talking_corpus(cfg.root, cfg.embedded)


class ClipSpeech:
    """Cepstra of clips in windows that belong to their frames, kept in memory where the clips are.

    A clip's measured sync offset moves its sound: that of frame f lies at frame f - offset.
    """

    def __init__(self, clips: DubClips, speech: SpeechWindows) -> None:
        self.clips, self.speech = clips, speech
        self._kept: dict[int, Tensor] = {}

    def windows(self, index: int, start: int, count: int) -> Tensor:
        """(count,28,12) of frames `start` to `start + count`."""
        clip, first = self.clips.clips[index], start - self.clips.offsets[index]
        if not self.clips.cached:
            return self.speech(clip.wave, first, count)
        if index not in self._kept:
            self._kept[index] = self.speech(clip.wave, -self.clips.offsets[index], len(clip))
        return self._kept[index][start : start + count]


class ExpressionWindows(Dataset[dict[str, Tensor]]):
    """T frames of a clip's speech and coefficients.

    Item of a `Draw`: `mfcc` (T,28,12), `expression` (T,Ke), `angles`, `translation` (T,3), `identity` (Ki,), `clip`,
    its number, and `images` (T,3,S,S) uint8 where there are semantic images. A pure function of the draw.

    Args:
        clips: whose frames.
        speech: what stage 1 hears.
        count: T; 0 gives the longest stretch of each clip, the same at each call, for validation.
        images: semantic images; None without.
    """

    def __init__(
        self, clips: DubClips, speech: SpeechWindows, count: int, images: SemanticImages | None = None
    ) -> None:
        self.clips, self.count, self.images = clips, count, images
        self.speech = ClipSpeech(clips, speech)

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, draw: Draw) -> dict[str, Tensor]:
        index = draw.index
        if self.count:
            start, count = int(draw.generator().choice(self.clips.starts(index, self.count))), self.count
        else:
            start, count = longest_run(self.clips.matrices[index])
        found, part = self.clips.coefficients(index), slice(start, start + count)
        item = {
            "mfcc": self.speech.windows(index, start, count),
            "expression": found.expression[part],
            "angles": found.angles[part],
            "translation": found.translation[part],
            "identity": found.identity,
            "clip": torch.tensor(index),
        }
        return item | ({"images": self.images(index, start, count)} if self.images is not None else {})


class ExpressionData(TrainData):
    """Stage 1: windows of the train split; the longest stretch of each clip of the val split."""

    def __init__(self, corpus: Corpus, cfg: DubbingConfig, mark: FaceModelMark, speech: SpeechWindows) -> None:
        stage = cfg.expression
        super().__init__(batch_size=stage.batch_size, seed=cfg.run.seed, workers=cfg.data.workers, val_batch_size=1)
        self.clips, held_out = (
            DubClips(corpus, split, mark, cfg.data, cfg.renderer.size, stage.frames) for split in ("train", "val")
        )
        seen = [semantic_images(part, cfg.semantic) if stage.semantic else None for part in (self.clips, held_out)]
        self.train_set = ExpressionWindows(self.clips, speech, stage.frames, seen[0])
        self.val_set = ExpressionWindows(held_out, speech, 0, seen[1])

    def mean_expression(self, most: int = 500) -> Tensor:
        """Mean coefficients (Ke,) over the known frames of up to `most` training clips, spread evenly."""
        total, count = torch.zeros(1).double(), 0
        for index in range(0, len(self.clips), max(1, len(self.clips) // most)):
            known = np.isfinite(self.clips.matrices[index]).all(axis=(1, 2))
            rows = self.clips.coefficients(index).expression[torch.from_numpy(known)].double()
            total, count = total + rows.sum(0), count + len(rows)
        return (total / count).float()


def longest_run(matrices: np.ndarray) -> tuple[int, int]:
    """First frame and length of the longest run of known matrices (T,2,3); the earliest of equals."""
    known = np.isfinite(matrices).all(axis=(1, 2))
    edges = np.flatnonzero(np.diff(np.concatenate([[0], known.astype(np.int8), [0]])))
    if not len(edges):
        return 0, 0
    begins, ends = edges[::2], edges[1::2]
    longest = int(np.argmax(ends - begins))
    return int(begins[longest]), int(ends[longest] - begins[longest])
