"""A GAN of a few hundred weights with everything that makes GANs hard to resume and to share over processes.

Two optimisers, lazy R1 (double backward), a path-length mean, an EMA of the weights, dropout-like noise from the global
random state, random augmentation in the dataset, validation and samples.
"""

import csv
import os
import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from common.callbacks import ema_update
from common.config import ExperimentConfig, RunConfig, TrainerConfig, WandbConfig
from common.data.sampling import Draw
from common.run import fit
from common.training import TrainData, TrainModule, reduce_mean


@dataclass
class ToyConfig(ExperimentConfig):
    """Twelve steps on one CPU thread."""

    run: RunConfig = field(default_factory=lambda: RunConfig(package="toy", name="gan", seed=3))
    trainer: TrainerConfig = field(
        default_factory=lambda: TrainerConfig(
            steps=12, accelerator="cpu", devices=1, threads=1, log_every=1, val_every=4, save_every=3, keep_every=6
        )
    )
    wandb: WandbConfig = field(default_factory=lambda: WandbConfig(mode="disabled"))
    batch_size: int = 4
    workers: int = 0
    width: int = 6
    global_noise: bool = True
    """Draw some noise from the global random state: exact after a resume, but not over processes."""
    kill_at: int = -1
    """The step in which the process kills itself."""
    bad_at: int = -1
    """The step whose discriminator loss is not a number."""


def toy_config(out: Path, *, trainer: dict[str, Any] | None = None, **changes: Any) -> ToyConfig:
    """A `ToyConfig` that writes below `out`."""
    cfg = ToyConfig(**changes)
    cfg.run.out = out
    for name, value in (trainer or {}).items():
        setattr(cfg.trainer, name, value)
    return cfg


class Squares(Dataset[Tensor]):
    """Ten 3x8x8 images, each shifted and noised as its draw says."""

    def __init__(self) -> None:
        self.images = torch.linspace(-1, 1, 10 * 3 * 64).view(10, 3, 8, 8).sin()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, draw: Draw) -> Tensor:
        random = draw.generator()
        image = self.images[draw.index].roll(int(random.integers(8)), -1)
        return image + 0.1 * torch.from_numpy(random.standard_normal((3, 8, 8))).float()


class ToyData(TrainData):
    """`Squares` for training and validation."""

    def __init__(self, cfg: ToyConfig) -> None:
        super().__init__(batch_size=cfg.batch_size, seed=cfg.run.seed, workers=cfg.workers)
        self.train_set = Squares()
        self.val_set = Squares()


def generator(width: int) -> nn.Module:
    """z (B, 5) -> image (B, 3, 8, 8)."""
    return nn.Sequential(nn.Linear(5, width), nn.Tanh(), nn.Linear(width, 192), nn.Unflatten(1, (3, 8, 8)))


def discriminator(width: int) -> nn.Module:
    """Image (B, 3, 8, 8) -> logit (B, 1)."""
    return nn.Sequential(nn.Conv2d(3, width, 4, 2), nn.Softplus(), nn.Flatten(), nn.Linear(9 * width, 1))


class ToyGAN(TrainModule):
    """Non-saturating loss, R1 every third step, path length every second."""

    def __init__(self, cfg: ToyConfig) -> None:
        super().__init__(cfg)
        self.automatic_optimization = False
        self.G, self.D, self.G_ema = generator(cfg.width), discriminator(cfg.width), generator(cfg.width)
        self.G_ema.load_state_dict(self.G.state_dict())
        self.G_ema.requires_grad_(False).eval()
        self.register_buffer("path_mean", torch.zeros(()))
        self.toy = cfg

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [torch.optim.Adam(self.G.parameters(), 2e-3), torch.optim.Adam(self.D.parameters(), 2e-3)]

    def noise(self, count: int, stream: str) -> Tensor:
        z = self.random.normal(self.step, stream, (count, 5))
        return z + 0.01 * torch.randn_like(z) if self.toy.global_noise else z

    def training_step(self, real: Tensor) -> dict[str, Tensor]:
        if self.step == self.toy.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        g_opt, d_opt = self.optimizers()
        losses = {}
        with self.updating(d_opt):
            fake = self.G(self.noise(len(real), "d")).detach()
            losses["d_loss"] = F.softplus(self.D(fake)).mean() + F.softplus(-self.D(real)).mean()
            if self.step == self.toy.bad_at:
                losses["d_loss"] = losses["d_loss"] * float("nan")
            self.manual_backward(losses["d_loss"])
            if self.step % 3 == 0:
                losses["loss_r1"] = self.r1(real)
                self.manual_backward(losses["loss_r1"])
        with self.updating(g_opt):
            losses["g_loss"] = F.softplus(-self.D(self.G(self.noise(len(real), "g")))).mean()
            self.manual_backward(losses["g_loss"])
        if self.step % 2 == 0:
            with self.updating(g_opt):
                losses["loss_path"] = self.path_length(len(real))
                self.manual_backward(losses["loss_path"])
        ema_update(self.G_ema, self.G, 0.9)
        return losses

    def r1(self, real: Tensor) -> Tensor:
        real = real.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(self.D(real).sum(), real, create_graph=True)
        return 5 * gradient.square().sum((1, 2, 3)).mean()

    def path_length(self, count: int) -> Tensor:
        z = self.noise(count, "path").requires_grad_()
        images = self.G(z)
        direction = self.random.normal(self.step, "direction", images.shape)
        (gradient,) = torch.autograd.grad((images * direction).sum(), z, create_graph=True)
        lengths = gradient.square().sum(1).sqrt()
        self.path_mean = self.path_mean.lerp(reduce_mean(lengths.mean()), 0.1)
        return (lengths - self.path_mean).square().mean()

    def validation_step(self, real: Tensor) -> None:
        self.log("val/real", self.D(real).mean(), on_epoch=True, batch_size=len(real), sync_dist=True)

    def sample_images(self, count: int) -> Tensor:
        return self.G_ema(torch.randn(count, 5)).tanh()


def train_toy(cfg: ToyConfig, **options: Any) -> tuple[Path, ToyGAN]:
    """Run `fit`; returns the run folder and the module."""
    module = ToyGAN(cfg)
    return fit(module, ToyData(cfg), cfg, **options), module


def rows(folder: Path) -> list[dict[str, str]]:
    """metrics.csv without the times."""
    with open(folder / "metrics.csv", newline="", encoding="utf-8") as file:
        return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in csv.DictReader(file)]
