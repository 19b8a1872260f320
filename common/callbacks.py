"""What happens around training steps: logged losses and times, sample grids, a progress bar; and the EMA of weights."""

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image
from torch import Tensor, nn
from torchvision.utils import make_grid

from common.config import ExperimentConfig, config_hash
from common.errors import DivergenceError
from common.progress import Bars
from common.provenance import Provenance, write_png
from common.training import TrainModule, reduce_mean


@torch.no_grad()
def ema_update(average: nn.Module, module: nn.Module, beta: float) -> None:
    """Exponential moving average of weights, in place: average <- beta * average + (1 - beta) * module.

    Buffers are copied. `beta` in [0, 1]; for a half-life of h images at batch size B it is 0.5 ** (B / h).
    Both modules must have the same parameters and buffers in the same order.
    """
    torch._foreach_lerp_(list(average.parameters()), list(module.parameters()), 1 - beta)
    for target, source in zip(average.buffers(), module.buffers(), strict=True):
        target.copy_(source)


class StepLogger(Callback):
    """Logs what `training_step` returns: every `every` steps the mean of each loss since the last row, and times.

    Values stay on the device until then, so no step waits for another. Before each save and at each row they are
    averaged over ranks and checked: a value that is not finite ends the run with the step and the loss named, before
    a checkpoint could keep the damage. The window since the last row is part of the checkpoint.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self._pending: list[tuple[int, dict[str, Tensor]]] = []
        self._window: list[tuple[int, dict[str, float]]] = []
        self._mark = time.perf_counter()
        self._seconds = {"time/data": 0.0, "time/step": 0.0}
        self._timed = 0
        self.last: dict[str, float] = {}

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Start the clock."""
        self._mark = time.perf_counter()

    def on_train_batch_start(self, *_: Any) -> None:
        """What passed since the last step was spent waiting for data."""
        self._lap("time/data")

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, outputs: Any, *_: Any) -> None:
        """Keep this step's losses; log where a row is due."""
        step = cast(TrainModule, module).step
        if isinstance(outputs, Mapping):
            self._pending.append((step, {_key(name): _detach(value) for name, value in outputs.items()}))
        self._lap("time/step")
        self._timed += 1
        if step % self.every == 0:
            self.write_row(trainer, step)

    def on_validation_end(self, *_: Any) -> None:
        """Validation is neither waiting for data nor a step."""
        self._mark = time.perf_counter()

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Log what is left."""
        self.write_row(trainer, cast(TrainModule, module).step)

    def state_dict(self) -> dict[str, Any]:
        """The window as plain numbers."""
        self.drain()
        return {"window": self._window}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the window of the run that was saved."""
        self._window = [(step, dict(values)) for step, values in state_dict["window"]]

    def drain(self) -> None:
        """Fetch the pending values, averaged over ranks, and raise DivergenceError at the first that is not finite."""
        if not self._pending:
            return
        values = torch.stack([value.float() for _, losses in self._pending for value in losses.values()])
        numbers = iter(reduce_mean(values).tolist())
        fetched = [(step, {name: next(numbers) for name in losses}) for step, losses in self._pending]
        self._pending = []
        for step, losses in fetched:
            for name, number in losses.items():
                if not math.isfinite(number):
                    raise DivergenceError(
                        f"step {step}: {name} is {number}; training stopped and the last checkpoint is from before; "
                        "lower the learning rate, or train in 32-true precision"
                    )
        self._window += fetched

    def write_row(self, trainer: Trainer, step: int) -> None:
        """Write one row and begin the next window."""
        self.drain()
        columns: dict[str, list[float]] = {}
        for _, losses in self._window:
            for name, number in losses.items():
                columns.setdefault(name, []).append(number)
        self._window = []
        row = {name: math.fsum(numbers) / len(numbers) for name, numbers in columns.items()}
        self.last |= row
        if self._timed:
            row |= {name: seconds / self._timed for name, seconds in self._seconds.items()}
            for logger in trainer.loggers:
                logger.log_metrics(row, step=step)
        self._seconds, self._timed = dict.fromkeys(self._seconds, 0.0), 0
        self._mark = time.perf_counter()

    def _lap(self, name: str) -> None:
        now = time.perf_counter()
        self._seconds[name] += now - self._mark
        self._mark = now


class LogSamples(Callback):
    """Every `every` steps a grid of `module.sample_images(count)` -> (count, 3, H, W) in [-1, 1].

    Written, labelled as synthetic, to `samples/step_00001000.png` in the run folder, and to W&B where it is on. The
    module chooses what it shows (fixed latents, EMA weights, eval mode); its random numbers do not touch training's.
    """

    def __init__(self, folder: Path, every: int, cfg: ExperimentConfig, count: int = 16) -> None:
        self.folder, self.every, self.cfg, self.count = folder / "samples", every, cfg, count

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        """Draw and write where a grid is due."""
        step = cast(TrainModule, module).step
        if step % self.every:
            return
        cuda = [module.device.index or 0] if module.device.type == "cuda" else []
        with torch.no_grad(), torch.random.fork_rng(devices=cuda):
            images = cast(Any, module).sample_images(self.count)
        if not trainer.is_global_zero:
            return
        picture = to_grid(images)
        name, digest = f"step_{step:08d}.png", config_hash(self.cfg)
        # A resumed run writes the same bytes, so the label's identifier follows from the run and the step.
        label = Provenance.create(self.cfg.provenance, config_hash=digest, content=f"{digest} {name}")
        write_png(self.folder / name, np.asarray(picture), label)
        for logger in trainer.loggers:
            if log_image := getattr(logger, "log_image", None):
                log_image(key="samples", images=[picture], step=step)


def to_grid(images: Tensor) -> Image.Image:
    """Images (B, 3, H, W) in [-1, 1] as one RGB picture, as square as the number allows, 2 px apart."""
    grid = make_grid(images.detach().float().cpu(), nrow=math.ceil(math.sqrt(len(images))), pad_value=-1.0)
    levels = grid.add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)
    return Image.fromarray(levels.permute(1, 2, 0).numpy())


class ProgressBar(Callback):
    """Steps done, time left and the losses of the newest row on standard error."""

    def __init__(self, total: int, losses: StepLogger) -> None:
        self._losses = losses
        self._progress = Bars()
        self._task = self._progress.add_task("train", total=total)

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Show it on the first rank."""
        if trainer.is_global_zero:
            self._progress.reset(self._task, completed=cast(TrainModule, module).step)
            self._progress.start()

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        """Advance."""
        losses = " ".join(f"{name.rpartition('/')[2]} {value:.3g}" for name, value in self._losses.last.items())
        self._progress.update(
            self._task, completed=cast(TrainModule, module).step, description=f"train {losses}".rstrip()
        )

    def on_train_end(self, *_: Any) -> None:
        """Leave the terminal clean."""
        self._progress.stop()

    def on_exception(self, *_: Any) -> None:
        """Leave the terminal clean."""
        self._progress.stop()


def _key(name: str) -> str:
    return name if "/" in name else f"train/{name}"


def _detach(value: Any) -> Tensor:
    return value.detach() if isinstance(value, Tensor) else torch.tensor(float(value))
