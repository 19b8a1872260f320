"""Stage 2's frames with their references, as pure functions of (seed, step)."""

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from common.data.corpus import Corpus
from common.data.sampling import Draw
from common.face3d.camera import REFERENCE_SIZE
from common.training import TrainData
from dubbing3d.clips import DubClips
from dubbing3d.coefficients import FaceModelMark
from dubbing3d.config import DubbingConfig, RendererConfig
from dubbing3d.guide import FaceFrames
from dubbing3d.references import training_references

_SHARED, _FRAMEWISE = ("identity", "albedo"), ("expression", "angles", "translation", "gamma", "matrix")


class RenderedFrames(Dataset[dict[str, Tensor]]):
    """A frame to be drawn and references of the same clip.

    Item of a `Draw`: `target` (3,S,S) and `references` (N,3,S,S) uint8 RGB; `crops` (1+N,2,3) from the clip's pixels to
    the crops of target and references, with the coefficients of the same 1+N frames, see `faces_of`; `landmarks`
    (68,2) of the target in px; `clip`, its number. A pure function of the draw.

    Where the renderer is recurrent, the frame before the target comes last among `crops` and coefficients, and there
    are `before` (3,S,S), `landmarks_before` (68,2) and `follows`, whether there is such a frame: the target itself
    stands in for it otherwise.

    Args:
        clips: whose frames.
        cfg: number and distance of references, and whether there is a frame before.
        repeats: items a clip.
    """

    def __init__(self, clips: DubClips, cfg: RendererConfig, *, repeats: int = 1) -> None:
        self.clips, self.cfg, self.repeats = clips, cfg, repeats

    def __len__(self) -> int:
        return len(self.clips) * self.repeats

    def __getitem__(self, draw: Draw) -> dict[str, Tensor]:
        rng, index, cfg = draw.generator(), draw.index // self.repeats, self.cfg
        known = np.isfinite(self.clips.matrices[index]).all(axis=(1, 2))
        target = int(rng.choice(np.flatnonzero(known)))
        references = training_references(known, target, cfg.references, cfg.apart, rng)
        follows = target > 0 and bool(known[target - 1])
        before = [target - follows] if cfg.recurrent else []
        frames = np.array([target, *references, *before])
        pictures = self.clips.crops(index, frames)
        landmarks = self.clips.landmarks(index, frames)
        found, rows = self.clips.coefficients(index), torch.from_numpy(frames)
        item = {name: getattr(found, name) for name in _SHARED}
        item |= {name: getattr(found, name)[rows] for name in _FRAMEWISE}
        item |= {
            "target": pictures[0],
            "references": pictures[1 : 1 + cfg.references],
            "crops": torch.from_numpy(self.clips.matrices[index][frames]),
            "landmarks": landmarks[0],
            "clip": torch.tensor(index),
        }
        if cfg.recurrent:
            item |= {"before": pictures[-1], "landmarks_before": landmarks[-1], "follows": torch.tensor(follows)}
        return item


def faces_of(batch: dict[str, Tensor], rows: slice) -> tuple[FaceFrames, Tensor]:
    """Faces of B items at some of their frames (0 is the target), B * rows of them, and their crops (.,2,3)."""
    count = batch["expression"][:, rows].shape[1]
    shared = {name: batch[name].repeat_interleave(count, dim=0) for name in _SHARED}
    framewise = {name: batch[name][:, rows].flatten(0, 1) for name in _FRAMEWISE}
    return FaceFrames(**shared, **framewise, size=REFERENCE_SIZE), batch["crops"][:, rows].flatten(0, 1)


class RendererData(TrainData):
    """Stage 2: a frame of each clip of the train split in turn; fixed ones of the val split."""

    def __init__(self, corpus: Corpus, cfg: DubbingConfig, mark: FaceModelMark) -> None:
        stage, evaluation = cfg.renderer, cfg.evaluation
        super().__init__(
            batch_size=stage.batch_size,
            seed=cfg.run.seed,
            workers=cfg.data.workers,
            val_batch_size=evaluation.batch_size,
        )
        shortest = stage.apart + 1
        self.clips, held_out = (
            DubClips(corpus, split, mark, cfg.data, stage.size, shortest) for split in ("train", "val")
        )
        for clips in (self.clips, held_out):
            clips.read_pictures()
        self.train_set = RenderedFrames(self.clips, stage)
        self.val_set = self.shown = RenderedFrames(held_out, stage, repeats=evaluation.validation_frames)
