"""Stage B: the generator learns to draw lips that follow the speech (paper 3, eqs 10-15)."""

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from common.audio.lipsync_features import SpeechFeatures
from common.batch_norm import share_batch_norm
from common.callbacks import ema_update
from common.data.sampling import Draw
from common.metrics.image import ImageQuality
from common.schedule import rate
from common.training import TrainModule, reduce_mean
from lipsync import losses
from lipsync.build import KIND, MODES, build_discriminator, build_generator, start_from
from lipsync.config import LipSyncConfig
from lipsync.data import DrawnWindows
from lipsync.expert_module import as_float
from lipsync.networks import FrozenExpert, SyncExpert
from lipsync.networks.blocks import channels_last
from lipsync.networks.expert import FRAMES
from lipsync.vary import CURVES, vary_light, vary_place, vary_voice


class LipSyncTraining(TrainModule):
    """Wav2Lip's generator between a frozen sync expert and a visual quality discriminator.

    With several processes the generator's batch norms share their statistics.

    Args:
        cfg: the run.
        expert: the judge, which is not trained.
        speech, judge_speech: what generator and expert hear.
    """

    cfg: LipSyncConfig

    def __init__(
        self, cfg: LipSyncConfig, expert: SyncExpert, speech: SpeechFeatures, judge_speech: SpeechFeatures
    ) -> None:
        super().__init__(cfg, KIND)
        self.save_hyperparameters({"judge": judge_shape(expert, judge_speech)})
        self.automatic_optimization = False
        weights = cfg.weights
        self.generator = build_generator(cfg)
        start_from(self.generator, cfg.generator.weights, "generator")
        self.generator_ema = deepcopy(self.generator).eval().requires_grad_(False) if cfg.optim.ema_steps else None
        self.discriminator = build_discriminator(cfg) if weights.adversarial else None
        if self.discriminator is not None:
            start_from(self.discriminator, cfg.discriminator.weights, "discriminator")
        self.judge = FrozenExpert(deepcopy(expert))
        self.speech, self.judge_speech = deepcopy(speech), deepcopy(judge_speech)
        self.gate = losses.SyncGate(weights.sync, threshold=weights.gate, always_on=weights.gate_always_on)
        self.quality = ImageQuality()
        self.measured: list[dict[str, Tensor]] = []

    def setup(self, stage: str) -> None:
        if self.trainer.world_size > 1:
            share_batch_norm(self.generator, self.trainer.strategy.root_device)
        if self.trainer.strategy.root_device.type == "cpu":
            channels_last(self)

    def train(self, mode: bool = True) -> "LipSyncTraining":
        """The judge and the average stay in eval mode."""
        super().train(mode)
        if self.generator_ema is not None:
            self.generator_ema.eval()
        return self

    def forward(self, audio: Tensor, faces: Tensor) -> Tensor:
        """Windows (B,T,1,rows,16) and faces (B,6,T,S,S) -> faces (B,3,T,S,S), by the average where there is one."""
        return (self.generator if self.generator_ema is None else self.generator_ema)(audio, faces)

    def sync_loss(self, faces: Tensor, audio: Tensor) -> Tensor:
        """Eq. 12 on faces (B,3,5,S,S) and the windows (B,1,rows,16) that sound with them."""
        sound, lips = self.judge(audio, faces)
        return losses.sync_loss(losses.sync_probability(sound, lips, self.cfg.expert.sync_prob))

    def generator_losses(self, drawn: Tensor, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Eqs 10, 12 and 13, unweighted."""
        terms = {
            "reconstruction": losses.reconstruction(drawn, batch["target"], self.cfg.weights.mouth),
            "sync": self.sync_loss(self.judged(drawn), batch["sync_audio"]),
        }
        if self.discriminator is not None:
            logits = self.discriminator(drawn)
            terms["adversarial"] = losses.generator_adversarial(logits, saturating=self.cfg.weights.saturating)
        return terms

    def judged(self, drawn: Tensor) -> Tensor:
        """Drawn faces as the expert is shown them."""
        if not self.cfg.weights.vary_judged:
            return drawn
        uniform = self.random.uniform(self.step, "judged", (len(drawn), 7))
        placed = vary_place(drawn, uniform[:, :3], self.cfg.data.vary)
        return vary_light(placed, uniform[:, 3:], self.cfg.data.vary)

    def training_step(self, batch: dict[str, Tensor], _: int) -> dict[str, Tensor]:
        batch = self.varied(batch)
        self._set_rates()
        self.gate.opened |= self.step >= self.cfg.weights.gate_latest * self.cfg.trainer.steps
        optimizers = self.optimizers()
        g_optimizer, *d_optimizer = optimizers if isinstance(optimizers, list) else [optimizers]
        drawn = self.generator(batch["audio"], inputs(batch))
        with self.updating(g_optimizer):
            terms = self.generator_losses(drawn, batch)
            g_loss = self.weighted(terms)
            self.manual_backward(g_loss)
        logged = {"g_loss": g_loss, "sync_weight": self.gate()}
        logged |= {f"loss_{name}": value for name, value in terms.items()}
        if self.discriminator is not None:
            with self.updating(d_optimizer[0]):
                real, fake = self.discriminator(batch["target"]), self.discriminator(drawn.detach())
                logged["d_loss"] = losses.discriminator_adversarial(real, fake)
                self.manual_backward(logged["d_loss"])
        if self.generator_ema is not None:
            ema_update(self.generator_ema, self.generator, 0.5 ** (1 / self.cfg.optim.ema_steps))
        return logged

    def weighted(self, terms: dict[str, Tensor]) -> Tensor:
        """Eq. 15 with the gate's weight of sync."""
        return losses.total(
            terms["reconstruction"],
            terms["sync"],
            terms.get("adversarial", 0.0),
            sync_weight=self.gate(),
            adversarial_weight=self.cfg.weights.adversarial,
        )

    def varied(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The batch with faces as float in [0,1], and voices varied as `data.vary` says."""
        cfg, count = self.cfg.data.vary, len(batch["target"])
        uniform = self.random.uniform(self.step, "vary", (count,))
        curve = self.random.normal(self.step, "timbre", (count, CURVES))
        voice = (uniform, curve, cfg)
        return batch | {
            "target": as_float(batch["target"]),
            "reference": as_float(batch["reference"]),
            "audio": vary_voice(batch["audio"], *voice, self.speech),
            "sync_audio": vary_voice(batch["sync_audio"][:, None], *voice, self.judge_speech)[:, 0],
        }

    def _set_rates(self) -> None:
        """Learning rates as a function of the step, so that a resumed run needs no schedule's state."""
        cfg = self.cfg.optim
        factor = rate(self.step, self.cfg.trainer.steps, cfg.warmup, cfg.decay)
        for optimizer, base in zip(self.trainer.optimizers, (cfg.g_lr, cfg.d_lr), strict=False):
            for group in optimizer.param_groups:
                group["lr"] = base * factor

    @property
    def shown(self) -> DrawnWindows:
        """The validation windows."""
        return self.trainer.datamodule.shown  # type: ignore[attr-defined]  # Lightning sets it late

    @torch.no_grad()
    def sample_images(self, count: int) -> Tensor:
        """Rows of reference, masked, generated and real frame, RGB in [-1,1]: (4 * (count // 4), 3, S, S)."""
        chosen = torch.linspace(0, len(self.shown) - 1, max(1, count // 4)).round().int().tolist()
        pictures = []
        was_training = self.generator.training
        self.generator.eval()
        for index in chosen:
            item = {name: value[None].to(self.device) for name, value in self.shown[Draw(index, index)].items()}
            batch = item | {name: as_float(item[name]) for name in ("target", "reference")}
            faces = inputs(batch)
            rows = (batch["reference"], faces[:, :3], self(batch["audio"], faces).float(), batch["target"])
            pictures += [row[0, :, FRAMES // 2].flip(0) * 2 - 1 for row in rows]
        self.generator.train(was_training)
        return torch.stack(pictures)

    def validation_step(self, batch: dict[str, Tensor], _: int) -> None:
        batch = batch | {name: as_float(batch[name]) for name in ("target", "reference")}
        drawn = self(batch["audio"], inputs(batch))
        self.quality.update(to_metric(drawn), to_metric(batch["target"]), batch["landmarks"].flatten(0, 1))
        self.measured.append(
            {
                "count": torch.tensor(float(len(drawn)), device=self.device),
                "reconstruction": losses.reconstruction(drawn, batch["target"]) * len(drawn),
                "sync": self.sync_loss(drawn, batch["sync_audio"]) * len(drawn),
            }
        )

    def on_validation_epoch_end(self) -> None:
        """Log the means, the same on every rank, and let the gate see them."""
        sums = {name: torch.stack([item[name] for item in self.measured]).sum() for name in self.measured[0]}
        count = reduce_mean(sums.pop("count"))
        means = {name: reduce_mean(value) / count for name, value in sums.items()}
        self.gate.update(means["sync"])
        self.log_dict({f"val/loss_{name}": value for name, value in means.items()})
        self.log_dict({f"val/{name}": value.float() for name, value in self.quality.compute().items()})
        self.quality.reset()
        self.measured = []

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """G, then D where there is one."""
        cfg = self.cfg.optim
        found = [torch.optim.Adam(self.generator.parameters(), lr=cfg.g_lr, betas=cfg.betas)]
        if self.discriminator is not None:
            found.append(torch.optim.Adam(self.discriminator.parameters(), lr=cfg.d_lr, betas=cfg.betas))
        return list(found)


def inputs(batch: dict[str, Tensor]) -> Tensor:
    """What the generator sees: targets whose lower half is 0, and references, (B,6,T,S,S)."""
    masked = batch["target"].clone()
    masked[..., masked.shape[-2] // 2 :, :] = 0
    return torch.cat([masked, batch["reference"]], dim=1)


def to_metric(faces: Tensor) -> Tensor:
    """BGR faces (B,3,T,S,S) in [0,1] -> RGB frames (B*T,3,S,S) in [-1,1]."""
    return faces.transpose(1, 2).flatten(0, 1).flip(1).float() * 2 - 1


def judge_shape(expert: SyncExpert, speech: SpeechFeatures) -> dict[str, Any]:
    """What `load_expert` builds the judge of a stage B from."""
    return {
        "feature": MODES[speech.rows],
        "size": expert.size,
        "width": expert.width,
        "projection": expert.projection is not None,
    }
