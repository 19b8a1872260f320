"""Stage A: the sync expert learns which lips and which sounds belong together (paper 3, section 3.2.1)."""

import math
from copy import deepcopy

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.nn import functional as F

from common.audio.lipsync_features import SpeechFeatures
from common.batch_norm import share_batch_norm
from common.schedule import rate
from common.training import TrainModule, reduce_mean
from lipsync.build import EXPERT_KIND, build_expert, start_from
from lipsync.config import LipSyncConfig
from lipsync.losses import sync_probability
from lipsync.networks.blocks import channels_last
from lipsync.networks.expert import FRAMES, unit
from lipsync.vary import CURVES, vary_light, vary_place, vary_voice

FOUND_WITHIN = 1
"""Frames by which an offset may be off to count as found."""


class ExpertTraining(TrainModule):
    """Binary cross-entropy on the cosines of all pairs of a clip's windows and sounds, right and wrong balanced.

    With several processes the batch norms share their statistics.

    Args:
        cfg: the run; `expert` holds this stage.
        speech: what the expert hears; its mean and deviation become part of the checkpoint.
    """

    cfg: LipSyncConfig

    def __init__(self, cfg: LipSyncConfig, speech: SpeechFeatures) -> None:
        super().__init__(cfg, EXPERT_KIND)
        self.expert = build_expert(cfg)
        start_from(self.expert, cfg.expert.weights, "expert")
        self.speech = deepcopy(speech)
        self.measured: list[dict[str, Tensor]] = []

    def setup(self, stage: str) -> None:
        if self.trainer.world_size > 1:
            share_batch_norm(self.expert, self.trainer.strategy.root_device)
        if self.trainer.strategy.root_device.type == "cpu":
            channels_last(self.expert)

    def forward(self, audio: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Windows (N,1,rows,16) and lower halves (N,15,S/2,S) in [0,1] -> unit embeddings (N,D), (N,D)."""
        return self.expert(audio, frames)

    def probabilities(self, batch: dict[str, Tensor]) -> Tensor:
        """P (B,W,W) that window i of a clip (rows) and its sound j (columns) belong together."""
        return self._judge(*self._signed(batch))

    def losses(self, batch: dict[str, Tensor], min_offset: int) -> dict[str, Tensor]:
        """Terms of a batch with `frames` (B,3,T,S,S) in [0,1], `starts` (B,W) and `audio` (B,W,1,rows,16)."""
        lips, sounds = self._signed(batch)
        apart = (batch["starts"][:, :, None] - batch["starts"][:, None]).abs()
        cosines = F.normalize(lips.float(), dim=-1) @ F.normalize(sounds.float(), dim=-1).mT
        return judged(self._judge(lips, sounds), apart, min_offset) | {
            "contrast": contrast(cosines, apart, min_offset, self.cfg.expert.temperature)
        }

    def _signed(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Lips and sounds (B,W,D) before the last ReLUs."""
        count, windows = batch["starts"].shape
        lips = self.expert.look_signed(lip_windows(batch["frames"], batch["starts"]).flatten(0, 1))
        sounds = self.expert.hear_signed(batch["audio"].flatten(0, 1))
        return lips.view(count, windows, -1), sounds.view(count, windows, -1)

    def _judge(self, lips: Tensor, sounds: Tensor) -> Tensor:
        count, windows, _ = lips.shape
        rows = unit(lips.flatten(0, 1)).view(count, windows, 1, -1).expand(-1, -1, windows, -1)
        columns = unit(sounds.flatten(0, 1)).view(count, 1, windows, -1).expand(-1, windows, -1, -1)
        pairs = sync_probability(columns.flatten(0, 2), rows.flatten(0, 2), self.cfg.expert.sync_prob)
        return pairs.view(count, windows, windows)

    def training_step(self, batch: dict[str, Tensor], _: int) -> dict[str, Tensor]:
        cfg = self.cfg.expert
        smallest = min_offset(cfg.min_offset, self.step / max(1.0, cfg.curriculum * self.cfg.trainer.steps))
        terms = self.losses(self.varied(batch), smallest)
        return {
            "loss": self.weighted(terms),
            "loss_bce": terms["bce"].detach(),
            "loss_contrast": terms["contrast"].detach(),
            "balanced_accuracy": terms["balanced_accuracy"],
            "min_offset": torch.tensor(float(smallest)),
        }

    def weighted(self, terms: dict[str, Tensor]) -> Tensor:
        """What is minimised."""
        return terms["bce"] + self.cfg.expert.contrast * terms["contrast"]

    def varied(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The batch with faces as float in [0,1], and clips varied as `data.vary` says."""
        cfg, count = self.cfg.data.vary, len(batch["frames"])
        uniform = self.random.uniform(self.step, "vary", (count, 8))
        curve = self.random.normal(self.step, "timbre", (count, CURVES))
        frames = vary_light(as_float(batch["frames"]), uniform[:, 3:7], cfg)
        return batch | {
            "frames": vary_place(frames, uniform[:, :3], cfg),
            "audio": vary_voice(batch["audio"], uniform[:, 7], curve, cfg, self.speech),
        }

    def validation_step(self, batch: list[dict[str, Tensor]], _: int) -> None:
        for item in batch:
            whole = {name: value[None] for name, value in item.items()}
            probability = self.probabilities(whole | {"frames": as_float(whole["frames"])})
            apart = (item["starts"][:, None] - item["starts"]).abs()[None]
            found = offsets_found(probability[0], self.cfg.evaluation.max_shift)
            self.measured.append(judged(probability, apart, 1) | found)

    def on_validation_epoch_end(self) -> None:
        names = {
            "bce": "loss",
            "balanced_accuracy": "balanced_accuracy",
            "clip": "offset_accuracy",
            "window": "window_accuracy",
        }
        for name, shown in names.items():
            values = torch.stack([item[name].float() for item in self.measured])
            known = ~values.isnan()
            total, count = reduce_mean(values[known].sum()), reduce_mean(known.sum().float())
            self.log(f"val/{shown}", total / count)
        self.measured = []

    def configure_optimizers(self) -> OptimizerLRScheduler:
        cfg, steps = self.cfg.expert, self.cfg.trainer.steps
        optimizer = torch.optim.Adam(self.expert.parameters(), lr=cfg.lr)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, steps, cfg.warmup, cfg.decay))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def as_float(frames: Tensor) -> Tensor:
    """uint8 0..255 -> float32 in [0,1]."""
    return frames.float() / 255


def lip_windows(frames: Tensor, starts: Tensor) -> Tensor:
    """Lower halves of five frames from each start on: frames (B,3,T,S,S), starts (B,W) -> (B,W,15,S/2,S).

    As `networks.sync_window`, but for many windows of a stretch.
    """
    half = frames[..., frames.shape[-2] // 2 :, :].transpose(1, 2)
    place = starts[:, :, None] + torch.arange(FRAMES, device=starts.device)
    batch = torch.arange(len(frames), device=starts.device)[:, None, None]
    return half[batch, place].flatten(2, 3)


def judged(probability: Tensor, apart: Tensor, min_offset: int) -> dict[str, Tensor]:
    """Balanced binary cross-entropy and balanced accuracy of pairs.

    Args:
        probability: (B,W,W) in (0,1).
        apart: (B,W,W) frames between window and sound; right pairs are those with 0.
        min_offset: wrong pairs are those at least so far apart; the others do not count.

    Returns:
        `bce`, the mean of that over right and that over wrong pairs, both taken clip by clip, so that a clip counts
        the same on every process; `balanced_accuracy` at P = 1/2.
    """
    right, wrong = apart == 0, apart >= min_offset
    losses = -torch.where(right, probability, 1 - probability).log()
    hits = torch.where(right, probability > 0.5, probability <= 0.5)
    return {
        "bce": (clip_mean(losses, right) + clip_mean(losses, wrong)) / 2,
        "balanced_accuracy": (clip_mean(hits.float(), right) + clip_mean(hits.float(), wrong)) / 2,
    }


def contrast(cosines: Tensor, apart: Tensor, min_offset: int, temperature: float) -> Tensor:
    """Cross-entropy of the right sound among the clip's, those nearer than `min_offset` left out, both ways.

    Takes the cosines (B,W,W) of embeddings before their last ReLU: those have a mean near 0 from the first step on,
    while behind the ReLU all pairs begin close to 0.7, and the networks take several times as long to part them.
    """
    ignored = (apart > 0) & (apart < min_offset)
    logits = (cosines / temperature).masked_fill(ignored, -math.inf)
    target = torch.arange(logits.shape[1], device=logits.device).expand(logits.shape[:2])
    return (F.cross_entropy(logits.mT, target) + F.cross_entropy(logits, target)) / 2


def offsets_found(probability: Tensor, max_shift: int) -> dict[str, Tensor]:
    """Whether the most probable shift of the sound is the true one, 0, within a frame.

    Args:
        probability: (V,V) of all windows (rows) and sounds (columns) of a stretch, one frame apart.
        max_shift: frames by which the sound is moved either way.

    Returns:
        `clip`, 1 or 0: by the mean over the stretch, over shifts that at least half of its windows have;
        `window`: share of single windows of 0.2 s that find it, among those that have all shifts; NaN where none has.
    """
    count = len(probability)
    shifts = torch.arange(-max_shift, max_shift + 1, device=probability.device)
    place = torch.arange(count, device=probability.device)[:, None] + shifts
    inside = (place >= 0) & (place < count)
    table = probability.gather(1, place.clamp(0, count - 1))
    sums, seen = (table * inside).sum(0), inside.sum(0)
    curve = torch.where(2 * seen >= count, sums / seen.clamp(min=1), -1.0)
    single = table[inside.all(1)].argmax(1)
    return {
        "clip": (shifts[curve.argmax()].abs() <= FOUND_WITHIN).float(),
        "window": (shifts[single].abs() <= FOUND_WITHIN).float().mean(),
    }


def min_offset(ends: tuple[int, int], done: float) -> int:
    """Smallest offset of wrong pairs: from the first to the last of `ends` while `done` goes from 0 to 1."""
    first, last = ends
    return round(first + (last - first) * min(1.0, done))


def clip_mean(values: Tensor, chosen: Tensor) -> Tensor:
    """Mean over clips of the mean of the chosen (B,W,W) of each; a clip without any counts 0."""
    inside = chosen.to(values.dtype)
    return ((values * inside).sum((1, 2)) / inside.sum((1, 2)).clamp(min=1)).mean()
