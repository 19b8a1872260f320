"""Training windows of both stages and their fixed validation windows, as pure functions of (seed, step)."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from common.audio.lipsync_features import SpeechFeatures
from common.data.corpus import Corpus
from common.data.sampling import Draw
from common.synthetic.talking import open_talking_corpus
from common.training import TrainData
from lipsync.clips import ClipSpeech, SpeakingClips
from lipsync.config import DataConfig, ExpertConfig, LipSyncConfig
from lipsync.networks.expert import FRAMES

SHORTEST = 2 * FRAMES
"""Frames of a clip that a target and a reference without a common frame need."""


def open_corpus(cfg: DataConfig) -> Corpus:
    """The corpus that the configuration names."""
    return open_talking_corpus(cfg.root, cfg.embedded)


class ExpertWindows(Dataset[dict[str, Tensor]]):
    """Windows of a stretch of each clip, for the expert.

    Item of a `Draw`: `frames` uint8 (3,span,S,S) BGR, `starts` (windows,) in ascending order, and `audio`
    (windows,1,rows,16) that sounds with the five frames from each start on. A pure function of the draw.
    """

    def __init__(self, clips: SpeakingClips, speech: SpeechFeatures, cfg: ExpertConfig, *, flip: bool) -> None:
        self.clips, self.cfg, self.flip = clips, cfg, flip
        self.speech = ClipSpeech(clips, speech)

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, draw: Draw) -> dict[str, Tensor]:
        rng, cfg = draw.generator(), self.cfg
        begin = int(rng.choice(self.clips.starts(draw.index, cfg.span)))
        starts = np.sort(rng.choice(cfg.span - FRAMES + 1, cfg.windows, replace=False))
        frames = self.clips.crops(draw.index, begin, cfg.span)
        if self.flip and rng.random() < 0.5:
            frames = frames.flip(-1)
        return {
            "frames": frames,
            "starts": torch.from_numpy(starts),
            "audio": self.speech.sync(draw.index, begin + starts),
        }


class ExpertStretches(Dataset[dict[str, Tensor]]):
    """The middle of each clip's longest run of faces, with every window in it; the same at each call.

    Item: as of `ExpertWindows`, with all starts of at most `longest` frames.
    """

    def __init__(self, clips: SpeakingClips, speech: SpeechFeatures, longest: int) -> None:
        self.clips, self.longest = clips, longest
        self.speech = ClipSpeech(clips, speech)

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, draw: Draw) -> dict[str, Tensor]:
        count = self.longest
        while not len(candidates := self.clips.starts(draw.index, count)):
            count -= 1
        begin = int(candidates[len(candidates) // 2])
        starts = np.arange(count - FRAMES + 1)
        return {
            "frames": self.clips.crops(draw.index, begin, count),
            "starts": torch.from_numpy(starts),
            "audio": self.speech.sync(draw.index, begin + starts),
            "whole": torch.tensor(True),
        }


class DrawnWindows(Dataset[dict[str, Tensor]]):
    """Five frames to be drawn, five others of the same clip as the reference, and the speech.

    Item of a `Draw`: `target` and `reference` uint8 (3,5,S,S) BGR, which have no frame in common, `audio`
    (5,1,rows,16) for the generator, `sync_audio` (1,rows,16) for the expert, `clip`, its number, and, where they are
    wanted, `landmarks` (5,68,2) of the target. A pure function of the draw.

    Args:
        clips: of `SHORTEST` frames or more.
        speech, judge_speech: what generator and expert hear.
        flip: mirror half of the items.
        repeats: items a clip.
        landmarks: give them as well.
    """

    def __init__(
        self,
        clips: SpeakingClips,
        speech: SpeechFeatures,
        judge_speech: SpeechFeatures,
        *,
        flip: bool = False,
        repeats: int = 1,
        landmarks: bool = False,
    ) -> None:
        self.clips, self.flip, self.repeats, self.landmarks = clips, flip, repeats, landmarks
        self.speech = ClipSpeech(clips, speech)
        self.judge_speech = self.speech if judge_speech is speech else ClipSpeech(clips, judge_speech)

    def __len__(self) -> int:
        return len(self.clips) * self.repeats

    def __getitem__(self, draw: Draw) -> dict[str, Tensor]:
        rng, index = draw.generator(), draw.index // self.repeats
        start, other = self._choose(index, rng)
        target, reference = (self.clips.crops(index, first, FRAMES) for first in (start, other))
        if self.flip and rng.random() < 0.5:
            target, reference = target.flip(-1), reference.flip(-1)
        item = {
            "target": target,
            "reference": reference,
            "audio": self.speech.drawing(index, start + np.arange(FRAMES)),
            "sync_audio": self.judge_speech.sync(index, np.array([start]))[0],
            "clip": torch.tensor(index),
        }
        return item | ({"landmarks": self.clips.landmarks(index, start, FRAMES)} if self.landmarks else {})

    def _choose(self, index: int, rng: np.random.Generator) -> tuple[int, int]:
        """Starts of target and reference. The target has all of its sound, as far as any window of the clip has."""
        starts = self.clips.starts(index, FRAMES)
        apart = np.abs(starts[:, None] - starts) >= FRAMES
        free = apart.any(axis=1)
        heard = free & self.speech.whole_windows(index, starts)
        row = int(rng.choice(np.flatnonzero(heard if heard.any() else free)))
        return int(starts[row]), int(rng.choice(starts[apart[row]]))


def training_clips(corpus: Corpus, cfg: DataConfig, split: str, shortest: int) -> SpeakingClips:
    """The clips of a split, with a line about those that cannot be used."""
    clips = SpeakingClips(corpus, split, cfg.size, shortest, cache=cfg.cache)
    if clips.left_out:
        print(
            f"clips of the {split} split left out (not 25 fps, or no face in {shortest} frames on end): "
            f"{len(clips.left_out)}, the first is {clips.left_out[0]}",
            flush=True,
        )
    return clips


def collate(items: list[dict[str, Tensor]]) -> Any:
    """Training windows are stacked; stretches, whose lengths differ, stay a list."""
    return items if "whole" in items[0] else default_collate(items)


class ExpertData(TrainData):
    """Stage A: windows of the train split; every window of the val split, clip by clip."""

    def __init__(self, corpus: Corpus, cfg: LipSyncConfig, speech: SpeechFeatures) -> None:
        expert = cfg.expert
        super().__init__(
            batch_size=expert.clips, seed=cfg.run.seed, workers=cfg.data.workers, val_batch_size=1, collate=collate
        )
        self.clips = training_clips(corpus, cfg.data, "train", expert.span)
        self.train_set = self.windows = ExpertWindows(self.clips, speech, expert, flip=cfg.data.vary.flip)
        held_out = training_clips(corpus, cfg.data, "val", expert.span)
        self.val_set = ExpertStretches(held_out, speech, max(expert.span, cfg.evaluation.stretch))


class LipSyncData(TrainData):
    """Stage B: windows of the train split; fixed ones of the val split."""

    def __init__(
        self, corpus: Corpus, cfg: LipSyncConfig, speech: SpeechFeatures, judge_speech: SpeechFeatures
    ) -> None:
        data, evaluation = cfg.data, cfg.evaluation
        super().__init__(
            batch_size=data.batch_size, seed=cfg.run.seed, workers=data.workers, val_batch_size=evaluation.batch_size
        )
        self.train_set = DrawnWindows(
            training_clips(corpus, data, "train", SHORTEST), speech, judge_speech, flip=data.vary.flip
        )
        self.val_set = self.shown = DrawnWindows(
            training_clips(corpus, data, "val", SHORTEST),
            speech,
            judge_speech,
            repeats=evaluation.validation_windows,
            landmarks=True,
        )
