"""The clips of a split whose frames have coefficients of the face model in use, and their crops for the renderer."""

import math

import numpy as np
import torch
from torch import Tensor

from common.data.corpus import Corpus
from common.errors import UserError
from common.face3d.morphable import FaceModel, load_face_model
from common.progress import counted
from common.video import Clip
from dubbing3d.coefficients import ClipCoefficients, FaceModelMark
from dubbing3d.config import DataConfig
from dubbing3d.crops import FPS, cut_crops, moved, render_matrices

_CHUNK = 64  # frames that are decoded and cut at once


class DubClips:
    """Clips at 25 fps with landmarks and coefficients that know a face for `shortest` frames on end.

    Coefficients of all clips are checked at once, so that a long training does not stop at the last of them.

    Args:
        corpus: with talking clips.
        split: of the corpus.
        mark: the face model that is needed.
        cfg: how sure coefficients must be; whether they are kept in memory.
        size: side of the crops in px.
        shortest: frames in one run that a clip needs.

    Raises:
        UserError: no clip is left; a clip without coefficients, or with those of another face model.
    """

    def __init__(
        self, corpus: Corpus, split: str, mark: FaceModelMark, cfg: DataConfig, size: int, shortest: int
    ) -> None:
        self.mark, self.size, self.cached = mark, size, cfg.cache
        self.clips: list[Clip] = []
        self.ids: list[str] = []
        self.offsets: list[int] = []
        self.left_out: list[str] = []
        self.matrices: list[np.ndarray] = []
        """(T,2,3) for each clip, where its crops lie; NaN where the face or its coefficients are not known"""
        self._coefficients: dict[int, ClipCoefficients] = {}
        self._pictures: list[Tensor] = []
        rows = corpus.items(kind="clip", split=split).to_dict("records")
        for row in counted(rows, f"checking {split} clips", transient=True):
            clip = Clip(corpus.file(str(row["path"])))
            points = clip.landmarks if row["fps"] == FPS and int(row["frames"]) >= shortest else None
            matrices = None if points is None else self._known(clip, points, cfg.min_confidence)
            if matrices is None or not len(runs(matrices, shortest)):
                self.left_out.append(str(row["id"]))
                continue
            offset = float(row["sync_offset"])
            self.clips.append(clip)
            self.ids.append(str(row["id"]))
            self.offsets.append(0 if math.isnan(offset) else round(offset))
            self.matrices.append(matrices)
        if not self.clips:
            raise UserError(
                f"{corpus.root}: no clip of the {split} split has {FPS} fps, landmarks, and coefficients of a face in "
                f"{shortest} frames on end; {corpus.stock(split)}"
            )
        if self.left_out:
            print(
                f"clips of the {split} split left out (not {FPS} fps, or no face known in {shortest} frames on end): "
                f"{len(self.left_out)}, the first is {self.left_out[0]}",
                flush=True,
            )

    def __len__(self) -> int:
        return len(self.clips)

    def _known(self, clip: Clip, points: np.ndarray, confidence: float) -> np.ndarray:
        found = ClipCoefficients.load(clip.coefficients, clip.folder)
        self.mark.check_coefficients(found, clip.folder)
        if len(found) != len(points):
            raise UserError(
                f"{clip.folder} has {len(points)} frames but coefficients of {len(found)}; prepare the clip again"
            )
        matrices = render_matrices(points, self.size)
        matrices[found.confidence.numpy() < confidence] = np.nan
        return matrices

    def coefficients(self, index: int) -> ClipCoefficients:
        """Of a whole clip."""
        if index in self._coefficients:
            return self._coefficients[index]
        found = ClipCoefficients.load(self.clips[index].coefficients, self.clips[index].folder)
        if self.cached:
            self._coefficients[index] = found
        return found

    def starts(self, index: int, count: int) -> np.ndarray:
        """Frames from which on everything is known for `count` frames."""
        return runs(self.matrices[index], count)

    def read_pictures(self) -> None:
        """Cut all crops now and keep them, where the configuration asks for it."""
        if not self.cached or self._pictures:
            return
        shown = counted(range(len(self)), "reading clips", transient=True)
        self._pictures = [self._cut(index, 0, len(self.matrices[index])) for index in shown]

    def crops(self, index: int, frames: np.ndarray) -> Tensor:
        """Crops (n,3,S,S) uint8 RGB of frames (n,) in any order."""
        if self._pictures:
            return self._pictures[index][torch.from_numpy(np.asarray(frames, np.int64))]
        return torch.cat([self._cut(index, int(frame), 1) for frame in frames])

    def landmarks(self, index: int, frames: np.ndarray) -> Tensor:
        """Landmarks (n,68,2) of frames (n,) in pixels of their crops."""
        points = self.clips[index].landmarks
        assert points is not None
        return torch.from_numpy(moved(points[frames], self.matrices[index][frames]))

    def _cut(self, index: int, start: int, count: int) -> Tensor:
        matrices = np.where(np.isfinite(self.matrices[index]), self.matrices[index], np.eye(2, 3))
        parts = []
        for begin in range(start, start + count, _CHUNK):
            length = min(_CHUNK, start + count - begin)
            frames = self.clips[index].frames(begin, length)
            parts.append(cut_crops(frames, matrices[begin : begin + length], self.size))
        return torch.cat(parts)


def runs(matrices: np.ndarray, count: int) -> np.ndarray:
    """Frames from which on `count` of matrices (T,2,3) are known."""
    known = np.isfinite(matrices).all(axis=(1, 2))
    if len(known) < count:
        return np.zeros(0, np.int64)
    return np.flatnonzero(np.convolve(known, np.ones(count), "valid") > count - 0.5)


def corpus_model(corpus: Corpus, cfg: DataConfig) -> tuple[FaceModel, FaceModelMark]:
    """The face model of a corpus's coefficients, or the one that `data.face_model` names."""
    spec = cfg.face_model
    if not spec:
        rows = corpus.items(kind="clip")
        paths = list(rows["path"])
        if not paths:
            raise UserError(f"{corpus.root} holds no talking clips; make some with python -m dubbing3d prepare")
        clip = Clip(corpus.file(str(paths[0])))
        spec = ClipCoefficients.load(clip.coefficients, clip.folder).model_spec
    model = load_face_model(spec)
    return model, FaceModelMark.of(model, spec)
