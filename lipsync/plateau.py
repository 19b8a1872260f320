"""What keeps a sync expert at 0.69, the loss of one that says 1/2 to everything: watching for it, and saying why."""

import math
import sys
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass
from itertools import islice
from statistics import fmean
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from common.data.sampling import Draw
from common.training import TrainModule, reduce_mean
from lipsync.config import LipSyncConfig
from lipsync.data import ExpertWindows

CHANCE = math.log(2)
"""Binary cross-entropy at P = 1/2."""
NEAR = 0.02
"""Mean losses no further below it count as stuck, unless they fall."""
FALLING = 0.005
"""Newer losses that are so much lower than older ones fall."""
LARGE_RATE = 3e-4
SMALL_BATCH = 32
FEW_PEOPLE, FEW_SECONDS = 4, 60


@dataclass(frozen=True)
class Facts:
    """What a diagnosis goes by."""

    silent: float
    """share of sampled windows that are digital silence or constant"""
    still: float
    """share of sampled windows whose lower half does not change"""
    unmeasured: int
    """clips whose sync was never measured"""
    clips: int
    people: int
    seconds: float
    lr: float
    batch: int
    """windows a step"""
    min_offset: int
    """of wrong pairs, in frames, now"""


def diagnose(facts: Facts) -> str:
    """The likeliest cause in one line, and what to do; the first that applies of those that others met most."""
    if facts.silent > 0.3:
        return f"{facts.silent:.0%} of the sampled windows are silent: check the clips' sound with `common doctor`"
    if facts.still > 0.3:
        return f"in {facts.still:.0%} of the sampled windows the mouth stands still: check the pictures and landmarks"
    if facts.lr > LARGE_RATE and facts.batch < 4 * SMALL_BATCH:
        return f"expert.lr={facts.lr:g} is large for {facts.batch} windows a step: try {LARGE_RATE / 3:g} or warm up"
    if facts.batch < SMALL_BATCH:
        return f"{facts.batch} windows a step are few: raise expert.clips or expert.windows to {SMALL_BATCH} or more"
    if facts.people < FEW_PEOPLE or facts.seconds < FEW_SECONDS:
        return f"{facts.people} people and {facts.seconds:.0f} s of speech are too few to learn sync from: add clips"
    if facts.unmeasured > facts.clips / 2:
        return f"the sync of {facts.unmeasured} of {facts.clips} clips was never measured: run `common doctor --shift`"
    if facts.min_offset <= 2:
        return "wrong pairs are 1 or 2 frames apart, which is hard at first: raise expert.min_offset or the curriculum"
    return "the data look sound: train longer, and see whether `lipsync check` can learn one batch by heart"


def gather_facts(cfg: LipSyncConfig, data: ExpertWindows, min_offset: int, *, sampled: int = 32) -> Facts:
    """Look at the clips and at `sampled` fixed training items."""
    count = len(data)
    items = [data[Draw(index * count // min(count, sampled), index)] for index in range(min(count, sampled))]
    return Facts(
        silent=share([is_constant(item["audio"]) for item in items]),
        still=share([is_still(item["frames"])[None] for item in items]),
        unmeasured=data.clips.unmeasured,
        clips=count,
        people=len(set(data.clips.people)),
        seconds=sum(len(faces) for faces in data.clips.faces) / 25,
        lr=cfg.expert.lr,
        batch=cfg.expert.clips * cfg.expert.windows,
        min_offset=min_offset,
    )


def is_constant(windows: Tensor) -> Tensor:
    """Which windows (W,1,rows,16) hold one value a row: bool (W,)."""
    return (windows.amax(dim=-1) == windows.amin(dim=-1)).flatten(1).all(dim=1)


def is_still(frames: Tensor) -> Tensor:
    """Whether the lower halves of frames (3,T,S,S) uint8 differ by less than a grey level on average: bool ()."""
    lower = frames[..., frames.shape[-2] // 2 :, :].float()
    return (lower[:, 1:] - lower[:, :1]).abs().mean() < 1


def is_stuck(losses: Collection[float]) -> bool:
    """Whether losses, the oldest first, stay near that of guessing, or above it."""
    half = len(losses) // 2
    older, newer = fmean(islice(losses, half)), fmean(islice(losses, half, None))
    return fmean(losses) > CHANCE - NEAR and newer > older - FALLING


def share(flags: list[Tensor]) -> float:
    """Share of true ones."""
    return float(torch.cat(flags).float().mean())


class PlateauWatch(Callback):
    """Says once, in one line, that the expert's loss is stuck near 0.69, and the likeliest cause.

    It looks at the mean of the last `steps` losses, from the end of the warm-up on. What it has seen is part of the
    checkpoint. The training goes on.

    Args:
        cfg: the stage.
        data: the training windows.
        steps: losses that are averaged; a tenth of the run, 50 to 2000, unless given.
    """

    def __init__(self, cfg: LipSyncConfig, data: ExpertWindows, steps: int = 0) -> None:
        self.cfg, self.data = cfg, data
        self.steps = steps or min(2000, max(50, cfg.trainer.steps // 10))
        self.losses: deque[float] = deque(maxlen=self.steps)
        self.said = False
        self._pending: list[Tensor] = []

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, outputs: Any, *_: Any) -> None:
        """Keep the loss on its device; look at a whole window of them at a time."""
        assert isinstance(module, TrainModule)
        if self.said or module.step <= self.cfg.expert.warmup:
            return
        self._pending.append(outputs["loss_bce"].detach())
        if len(self._pending) * 10 >= self.steps:
            self._drain()
            if len(self.losses) == self.steps and is_stuck(self.losses):
                self.said = True
                if trainer.is_global_zero:
                    cause = diagnose(gather_facts(self.cfg, self.data, int(outputs["min_offset"])))
                    stuck = (
                        f"the expert's loss is stuck at {sum(self.losses) / self.steps:.3f}, that of guessing (0.693)"
                    )
                    print(f"step {module.step}: {stuck}; {cause}", file=sys.stderr, flush=True)

    def _drain(self) -> None:
        self.losses.extend(reduce_mean(torch.stack(self._pending)).tolist())
        self._pending = []

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        if self._pending:
            self._drain()
        return {"losses": list(self.losses), "said": self.said}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with what was seen."""
        self.losses = deque(state_dict["losses"], maxlen=self.steps)
        self.said = bool(state_dict["said"])
