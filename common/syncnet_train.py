"""Own training of SyncNet on the clips of a corpus: lips and sounds of one moment close, all others apart.

The published network was trained with a margin loss on one shifted pair a clip (Chung and Zisserman 2016). Here every
window of every clip in the batch is contrasted with every other: neighbouring windows of the same clip, which differ
in nothing but time, are the hard negatives.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from common.audio.psf import psf_mfcc
from common.config import ExperimentConfig
from common.data.corpus import Corpus
from common.data.sampling import Draw
from common.errors import UserError
from common.memo import Memo
from common.metrics.lse import LSE, injected_offsets, score_streams
from common.run import fit
from common.syncnet import (
    CEPSTRA_STEP,
    CEPSTRA_WINDOW,
    FPS,
    KIND,
    MIN_SIZE,
    SAMPLES_PER_FRAME,
    WINDOW,
    Region,
    SyncNet,
    prepare_frames,
)
from common.training import TrainData, TrainModule, reduce_mean
from common.video import Clip

_CHUNK = 256  # frames that are decoded and reduced at once


@dataclass
class SyncModelConfig:
    """Which SyncNet."""

    width: float = 0.25
    """factor on the published network's channels; the default trains in minutes on a CPU, 1 is the published one"""
    size: int = 64
    """side of its input in px; the published one has 224"""
    region: tuple[float, float, float, float] = (0.15, 0.4, 0.85, 1.0)
    """left, top, right, bottom of what it looks at, as fractions of the frame; here mouth and chin of head and face
    crops alike, so that few pixels suffice; the published network sees everything"""

    def __post_init__(self) -> None:
        left, top, right, bottom = self.region
        if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
            raise ValueError(f"model.region: wants 0 <= left < right <= 1 and the same down, got {self.region}")
        if self.size < MIN_SIZE or self.width <= 0:
            raise ValueError(f"model: wants size >= {MIN_SIZE} and width > 0, got {self.size} and {self.width}")


@dataclass
class SyncDataConfig:
    """What is read, and how it is varied."""

    root: str = ""
    """corpus folder with talking clips"""
    clips: int = 16
    """clips of a step over all devices"""
    windows: int = 16
    """consecutive windows of 0.2 s from each of them, so that shifts up to one less are among the negatives"""
    workers: int = 0
    """loader processes a device"""
    cache: bool = True
    """keep reduced frames and cepstra in memory; for corpora that fit (16 KB a frame of 72 px)"""
    flip: bool = True
    """mirror half of the clips"""
    jitter: float = 0.06
    """most that a clip is moved either way, as a fraction of its side"""
    zoom: float = 0.12
    """most by which it is enlarged or reduced, as a fraction"""
    light: float = 0.2
    """most by which it gets flatter or harsher, and each colour brighter or darker, as a fraction"""
    gain: float = 6.0
    """most by which its sound gets louder or softer, in dB"""
    timbre: float = 2.0
    """deviation of what is added to each of its cepstra for the whole clip: other voices and microphones"""

    def __post_init__(self) -> None:
        if self.clips < 1 or self.windows < 2:
            raise ValueError(f"data: wants clips >= 1 and windows >= 2, got {self.clips} and {self.windows}")


@dataclass
class SyncLossConfig:
    """What is minimised."""

    name: Literal["infonce", "margin"] = "infonce"
    """`infonce`: classify the right window among the others; `margin`: Chung and Zisserman, eq. 1"""
    across: float = 0.3
    """weight of the contrast with all windows of the batch, beside that within each clip: other people are easy to
    tell apart by their voices alone, which teaches nothing about sync"""
    temperature: float = 10.0
    """of infonce, whose logits are minus squared distances over it; its root sets the scale of LSE-D"""
    margin: float = 6.0
    """distance from which on wrong pairs of `margin` are left alone"""
    hard: float = 0.2
    """share of the wrong pairs, the closest ones, that `margin` sees"""


@dataclass
class SyncOptimConfig:
    """AdamW with warm-up and cosine decay."""

    lr: float = 1e-3
    weight_decay: float = 1e-2
    warmup: int = 20
    """steps"""


@dataclass
class SyncConfig(ExperimentConfig):
    """A whole training of SyncNet."""

    model: SyncModelConfig = field(default_factory=SyncModelConfig)
    """width, size, region"""
    data: SyncDataConfig = field(default_factory=SyncDataConfig)
    """corpus, batch, augmentation"""
    loss: SyncLossConfig = field(default_factory=SyncLossConfig)
    """contrast"""
    optim: SyncOptimConfig = field(default_factory=SyncOptimConfig)
    """learning rate"""


def build_syncnet(cfg: SyncModelConfig) -> SyncNet:
    """The network of a configuration, with fresh weights."""
    return SyncNet(width=cfg.width, size=cfg.size, region=Region(*cfg.region))


def squared_distances(lips: Tensor, sounds: Tensor) -> Tensor:
    """(...,N,D) and (...,M,D) -> (...,N,M), in float32, without the differences themselves, D times as large."""
    lips, sounds = lips.float(), sounds.float()
    squares = lips.square().sum(dim=-1)[..., :, None] + sounds.square().sum(dim=-1)[..., None, :]
    with torch.autocast(lips.device.type, enabled=False):
        return (squares - 2 * lips @ sounds.mT).clamp(min=0)


def infonce_loss(distances: Tensor, temperature: float = 1.0) -> Tensor:
    """Symmetric cross-entropy of the diagonals of squared distances (B,N,N) among their rows and columns."""
    logits = -distances / temperature
    target = torch.arange(logits.shape[-1], device=logits.device).expand(logits.shape[:-1])
    return (F.cross_entropy(logits.mT, target) + F.cross_entropy(logits, target)) / 2


def margin_loss(distances: Tensor, margin: float = 6.0, hard: float = 1.0) -> Tensor:
    """Half of mean d^2 on the diagonals plus mean max(0, margin - d)^2 beside them (Chung and Zisserman 2016, eq. 1).

    Args:
        distances: squared distances (B,N,N), N > 1.
        margin: distance from which on a wrong pair is left alone.
        hard: share of the wrong pairs that counts, the closest ones; 1 is the published mean over all.
    """
    right = torch.eye(distances.shape[-1], dtype=torch.bool, device=distances.device)
    wrong = distances[:, ~right].flatten()
    kept = wrong.topk(max(1, round(hard * len(wrong))), largest=False).values
    # The root's slope is infinite at 0.
    violation = F.relu(margin - (kept + 1e-12).sqrt()).square().mean()
    return (distances[:, right].mean() + violation) / 2


class SyncWindows(Dataset[dict[str, Tensor]]):
    """Random runs of consecutive windows out of a split's clips.

    Item of a `Draw`: `video` uint8 (3,windows+4,S,S) BGR, `cepstra` float32 (1,13,4 windows+16), moved by the clip's
    known offset. A pure function of the draw. Clips that are too short for it, or not of 25 fps, are in `left_out`.
    """

    def __init__(self, corpus: Corpus, split: str, cfg: SyncDataConfig, net: SyncNet) -> None:
        self.cfg, self.size, self.region = cfg, net.size, net.region
        rows = corpus.items(kind="clip", split=split)
        offsets = rows["sync_offset"].fillna(0).round().astype(int)
        usable = (rows["fps"] == FPS) & (rows["frames"] - offsets.abs() >= cfg.windows + WINDOW)
        self.left_out = [str(name) for name in rows.loc[~usable, "id"]]
        self.clips = [Clip(corpus.file(path)) for path in rows.loc[usable, "path"]]
        self.people = [str(person) for person in rows.loc[usable, "identity"]]
        self.offsets = [int(offset) for offset in offsets[usable]]
        if not self.clips:
            raise UserError(
                f"{corpus.root}: no clip of the {split} split has {FPS} fps and {cfg.windows + WINDOW} frames; "
                f"{corpus.stock(split)}"
            )
        self.read: Callable[[int], tuple[Tensor, Tensor]] = self._read
        if cfg.cache:
            self.read = Memo(self._read)

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, draw: Draw) -> dict[str, Tensor]:
        rng, cfg = draw.generator(), self.cfg
        offset, (shown, heard) = self.offsets[draw.index], self._length(draw.index)
        # Sound of frame v lies at frame v - offset.
        first, last = max(0, offset), min(shown - WINDOW, heard - WINDOW + offset) - cfg.windows
        start = int(rng.integers(first, max(first, last) + 1))
        video, cepstra = self._window(draw.index, start, start - offset)
        if cfg.flip and rng.random() < 0.5:
            video = video.flip(-1)
        return {"video": video, "cepstra": cepstra}

    def whole(self, index: int) -> tuple[Tensor, Tensor]:
        """All frames (3,T,S,S) and the wave (n,) of a clip."""
        return self._frames(self.clips[index], 0, len(self.clips[index])), self.clips[index].wave()

    def _length(self, index: int) -> tuple[int, int]:
        clip = self.clips[index]
        return len(clip), clip.samples // SAMPLES_PER_FRAME

    def _read(self, index: int) -> tuple[Tensor, Tensor]:
        frames, wave = self.whole(index)
        return frames, psf_mfcc(wave[None])[0]

    def _window(self, index: int, frame: int, sound: int) -> tuple[Tensor, Tensor]:
        count = self.cfg.windows + WINDOW - 1
        length = (self.cfg.windows - 1) * CEPSTRA_STEP + CEPSTRA_WINDOW
        if self.cfg.cache:
            frames, cepstra = self.read(index)
            begin = sound * CEPSTRA_STEP
            return frames[:, frame : frame + count], cepstra[..., begin : begin + length]
        clip = self.clips[index]
        # One frame more of sound on the left: its last sample belongs to the first one's pre-emphasis.
        samples = (count + 2) * SAMPLES_PER_FRAME
        cepstra = psf_mfcc(clip.wave((sound - 1) * SAMPLES_PER_FRAME, samples)[None])[0]
        return self._frames(clip, frame, count), cepstra[..., CEPSTRA_STEP : CEPSTRA_STEP + length]

    def _frames(self, clip: Clip, start: int, count: int) -> Tensor:
        parts = []
        for begin in range(start, start + count, _CHUNK):
            images = torch.from_numpy(clip.frames(begin, min(_CHUNK, start + count - begin)))
            reduced = prepare_frames(images.permute(0, 3, 1, 2), self.size, self.region)
            parts.append(reduced.round().to(torch.uint8).transpose(0, 1))
        return torch.cat(parts, dim=1)


class SyncClips(SyncWindows):
    """The same clips in full, as they are. Item: `video` uint8 (3,T,S,S), `wave` (n,), `identity`, a number."""

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        video, wave = self.whole(draw.index)
        people = sorted(set(self.people))
        return {"video": video, "wave": wave, "identity": people.index(self.people[draw.index])}


class SyncData(TrainData):
    """Windows of the train split; whole clips of the val split one by one, where it has some."""

    left_out: list[str]
    """Ids of the training clips that cannot be used."""

    def __init__(self, corpus: Corpus, cfg: SyncConfig) -> None:
        super().__init__(batch_size=cfg.data.clips, seed=cfg.run.seed, workers=cfg.data.workers, val_batch_size=1)
        net = build_syncnet(cfg.model)
        self.train_set = windows = SyncWindows(corpus, "train", cfg.data, net)
        self.left_out = windows.left_out
        if len(corpus.items(kind="clip", split="val")):
            self.val_set = SyncClips(corpus, "val", cfg.data, net)


class SyncTraining(TrainModule):
    """Contrast of lips and sounds over the windows of a batch; with several devices, of each device's share.

    Args:
        cfg: the run.
    """

    cfg: SyncConfig

    def __init__(self, cfg: SyncConfig) -> None:
        super().__init__(cfg, KIND)
        self.net = build_syncnet(cfg.model)
        self.metric = LSE("training", "lrs")
        self.found: list[float] = []

    def forward(self, video: Tensor, cepstra: Tensor) -> tuple[Tensor, Tensor]:
        """Frames (N,3,T,S,S) in BGR 0..255 and cepstra (N,1,13,F) -> embeddings (N,V,D) of either."""
        return self.net.lips(video), self.net.sounds(cepstra)

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The contrasts within clips and across the batch, and how often the nearest sound of the clip is the right."""
        lips, sounds = self(batch["video"], batch["cepstra"])
        within = squared_distances(lips, sounds)
        across = squared_distances(lips.flatten(0, 1), sounds.flatten(0, 1))[None]
        cfg = self.cfg.loss
        if cfg.name == "infonce":
            terms = {"within": infonce_loss(within, cfg.temperature), "across": infonce_loss(across, cfg.temperature)}
        else:
            terms = {name: margin_loss(d, cfg.margin, cfg.hard) for name, d in (("within", within), ("across", across))}
        right = within.detach().argmin(dim=2) == torch.arange(within.shape[1], device=within.device)
        return terms | {"top1": right.float().mean()}

    def training_step(self, batch: dict[str, Tensor], _: int) -> dict[str, Tensor]:
        losses = self.losses(self.varied(batch))
        total = losses["within"] + self.cfg.loss.across * losses["across"]
        return {
            "loss": total,
            "loss_within": losses["within"].detach(),
            "loss_across": losses["across"].detach(),
            "top1": losses["top1"],
        }

    def varied(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Place, size, light and sound of each clip changed at random, all its frames alike."""
        cfg, video = self.cfg.data, batch["video"].float()
        count = len(video)
        draws = self.random.uniform(self.step, "vary", (count, 8)).mul(2).sub(1)
        theta = torch.zeros(count, 2, 3, device=video.device)
        theta[:, 0, 0] = theta[:, 1, 1] = 1 + cfg.zoom * draws[:, 0]
        theta[:, :, 2] = 2 * cfg.jitter * draws[:, 1:3]  # the side is 2 long in these coordinates
        grid = F.affine_grid(theta, [count, 3, *video.shape[-2:]], align_corners=False)
        video = F.grid_sample(video.flatten(1, 2), grid, padding_mode="border", align_corners=False).view_as(video)
        contrast, light = 1 + cfg.light * draws[:, 3], 128 * cfg.light * draws[:, 4:7]
        video = ((video - 128) * contrast.view(-1, 1, 1, 1, 1) + 128 + light.view(-1, 3, 1, 1, 1)).clamp(0, 255)
        voice = cfg.timbre * self.random.normal(self.step, "timbre", (count, 1, 13, 1))
        # The energy's logarithm: x dB are x ln(10) / 10. The other cepstra hold no level.
        voice[:, 0, 0, 0] = cfg.gain * draws[:, 7] * math.log(10) / 10
        return {"video": video, "cepstra": batch["cepstra"] + voice}

    def validation_step(self, batch: dict[str, Tensor], _: int) -> None:
        lips = embed_video(self.net, batch["video"][0])
        self.metric.update([score_streams(self.net, lips, batch["wave"][0].cpu())], batch["identity"].tolist())
        self.found += [abs(found - k) <= 1 for k, found in injected_offsets(self.net, lips, batch["wave"][0].cpu())]

    def on_validation_epoch_end(self) -> None:
        values = {f"val/{name}": value for name, value in self.metric.compute().items()}
        accuracy = reduce_mean(torch.tensor(self.found, dtype=torch.float32, device=self.device).mean())
        self.log_dict(values | {"val/offset_accuracy": accuracy})
        self.metric.reset()
        self.found = []

    def configure_optimizers(self) -> OptimizerLRScheduler:
        cfg, steps = self.cfg.optim, self.cfg.trainer.steps
        optimizer = torch.optim.AdamW(self.parameters(), lr=cfg.lr, weight_decay=cfg.weight_decay)

        def factor(step: int) -> float:
            done = min(1.0, step / steps)
            return min(1.0, (step + 1) / cfg.warmup) * (0.02 + 0.49 * (1 + math.cos(math.pi * done)))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


@torch.no_grad()
def embed_video(net: SyncNet, video: Tensor) -> Tensor:
    """Lip embeddings (T-4,D) on the CPU of prepared frames (3,T,S,S), in pieces."""
    device = next(net.parameters()).device
    pieces = [
        net.lips(video[None, :, start : start + _CHUNK + WINDOW - 1].float().to(device))[0].float().cpu()
        for start in range(0, video.shape[1] - WINDOW + 1, _CHUNK)
    ]
    return torch.cat(pieces)


def train_syncnet(cfg: SyncConfig, *, resume: bool = False, overwrite: bool = False) -> Path:
    """Train on `cfg.data.root` and return the run folder, whose `last.ckpt` `load_syncnet` reads.

    Raises `UserError` as `common.run.fit` does, and for a corpus without clips in its train split.
    """
    if not cfg.data.root:
        raise UserError("data.root names no corpus: give a folder with talking clips")
    corpus = Corpus.open(Path(cfg.data.root))
    print(corpus.summary(), flush=True)
    data = SyncData(corpus, cfg)
    if left_out := data.left_out:
        print(f"{len(left_out)} clips are too short or not of {FPS} fps and are left out, the first is {left_out[0]}")
    return fit(SyncTraining(cfg), data, cfg, resume=resume, overwrite=overwrite)
