"""Face crops and speech of a split's clips, cut as for dubbing, by landmarks alone; in memory where they fit."""

import math

import numpy as np
import torch
from torch import Tensor

from common.audio.lipsync_features import SpeechFeatures
from common.data.corpus import Corpus
from common.errors import UserError
from common.faces.align import warp
from common.faces.tracks import crop_matrices
from common.progress import counted
from common.video import Clip
from lipsync.networks.blocks import WINDOW
from lipsync.networks.expert import FRAMES
from lipsync.windows import FPS, cut_windows, drawing_window, features_between, window_start

_CHUNK = 64  # frames that are decoded and cut at once


def face_matrices(landmarks: np.ndarray, size: int) -> np.ndarray:
    """Maps (T,2,3) from the frames of one shot to their face crops; NaN where there is no face."""
    return crop_matrices(landmarks, (0,), size, framing="face", fps=FPS)


def cut_faces(frames: np.ndarray, matrices: np.ndarray, size: int) -> Tensor:
    """Face crops (3,T,S,S) uint8 BGR of RGB frames (T,H,W,3) uint8."""
    images = torch.from_numpy(frames).permute(0, 3, 1, 2).float()
    crops = warp(images, matrices, (size, size), border="replicate")
    return crops.round().clamp(0, 255).to(torch.uint8).flip(1).transpose(0, 1).contiguous()


class SpeakingClips:
    """The clips of a split that show a face for `shortest` frames on end, at 25 fps with landmarks.

    Args:
        corpus: with talking clips.
        split: of the corpus.
        size: side of the face crops in px.
        shortest: frames with a face that a clip needs in one run.
        cache: read everything now and keep it.

    Raises:
        UserError: no clip is left; a clip cannot be read.
    """

    def __init__(self, corpus: Corpus, split: str, size: int, shortest: int, *, cache: bool = False) -> None:
        self.size, self.cached = size, cache
        rows = corpus.items(kind="clip", split=split)
        self.left_out: list[str] = []
        self.clips: list[Clip] = []
        self.ids: list[str] = []
        self.people: list[str] = []
        self.offsets: list[int] = []
        self.unmeasured = 0
        self.faces: list[np.ndarray] = []
        """(T,2,3) for each clip, where its faces lie; NaN where there is none"""
        for row in rows.to_dict("records"):
            clip = Clip(corpus.file(str(row["path"])))
            points = clip.landmarks if row["fps"] == FPS and int(row["frames"]) >= shortest else None
            matrices = None if points is None else face_matrices(points, size)
            if matrices is None or not len(runs(matrices, shortest)):
                self.left_out.append(str(row["id"]))
                continue
            offset = float(row["sync_offset"])
            self.clips.append(clip)
            self.ids.append(str(row["id"]))
            self.people.append(str(row["identity"]))
            self.unmeasured += math.isnan(offset)
            self.offsets.append(0 if math.isnan(offset) else round(offset))
            self.faces.append(matrices)
        if not self.clips:
            raise UserError(
                f"{corpus.root}: no clip of the {split} split has {FPS} fps, landmarks, and a face in {shortest} "
                f"frames on end; {corpus.stock(split)}"
            )
        if cache:
            shown = counted(range(len(self)), f"reading {split} clips", transient=True)
            self._kept = [self._cut(index, 0, len(self.faces[index])) for index in shown]

    def __len__(self) -> int:
        return len(self.clips)

    def crops(self, index: int, start: int, count: int) -> Tensor:
        """Faces (3,count,S,S) uint8 BGR from frame `start` on."""
        return self._kept[index][:, start : start + count] if self.cached else self._cut(index, start, count)

    def landmarks(self, index: int, start: int, count: int) -> Tensor:
        """Landmarks (count,68,2) in pixels of the crops."""
        points = self.clips[index].landmarks
        assert points is not None
        matrices = self.faces[index][start : start + count]
        moved = np.einsum("tij,tkj->tki", matrices[..., :2], points[start : start + count]) + matrices[:, None, :, 2]
        return torch.from_numpy(moved).float()

    def starts(self, index: int, count: int) -> np.ndarray:
        """Frames from which on a face is there for `count` frames."""
        return runs(self.faces[index], count)

    def _cut(self, index: int, start: int, count: int) -> Tensor:
        matrices = np.where(np.isfinite(self.faces[index]), self.faces[index], np.eye(2, 3))
        parts = []
        for begin in range(start, start + count, _CHUNK):
            length = min(_CHUNK, start + count - begin)
            frames = self.clips[index].frames(begin, length)
            parts.append(cut_faces(frames, matrices[begin : begin + length], self.size))
        return torch.cat(parts, dim=1)


class ClipSpeech:
    """Speech features of the same clips, in windows that belong to their frames.

    A clip's measured sync offset moves its sound: that of frame f lies at frame f - offset.

    Args:
        clips: whose sound.
        speech: the features, on the CPU; kept in memory where the clips are.
    """

    def __init__(self, clips: SpeakingClips, speech: SpeechFeatures) -> None:
        self.clips, self.speech = clips, speech
        self.silence = speech.silence
        self._kept: dict[int, Tensor] = {}

    def drawing(self, index: int, frames: np.ndarray) -> Tensor:
        """Windows (N,1,rows,16) from which frames (N,) are drawn."""
        return self._windows(index, drawing_window(frames - self.clips.offsets[index]))

    def sync(self, index: int, starts: np.ndarray) -> Tensor:
        """Windows (N,1,rows,16) that sound with the five frames from `starts` (N,) on."""
        return self._windows(index, window_start(starts - self.clips.offsets[index]))

    def whole_windows(self, index: int, frames: np.ndarray) -> np.ndarray:
        """Which of the starts (N,) of five frames have all of their sound: bool (N,)."""
        offset = self.clips.offsets[index]
        first = drawing_window(frames - offset)
        last = drawing_window(frames + FRAMES - 1 - offset) + WINDOW
        return (first >= 0) & (last <= self.speech.frames(self.clips.clips[index].samples))

    def _windows(self, index: int, starts: np.ndarray) -> Tensor:
        clip = self.clips.clips[index]
        if self.clips.cached:
            if index not in self._kept:
                self._kept[index] = self.speech(clip.wave()[None])[0]
            return cut_windows(self._kept[index], starts, self.silence)
        first = max(0, int(starts.min()))
        found = features_between(self.speech, clip.wave, clip.samples, first, int(starts.max()) + WINDOW)
        return cut_windows(found, starts - first, self.silence)


def runs(matrices: np.ndarray, count: int) -> np.ndarray:
    """Frames from which on `count` of matrices (T,2,3) are known."""
    known = np.isfinite(matrices).all(axis=(1, 2))
    if len(known) < count:
        return np.zeros(0, np.int64)
    return np.flatnonzero(np.convolve(known, np.ones(count), "valid") > count - 0.5)
