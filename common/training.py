"""Bases of every package's LightningModule and LightningDataModule: counted steps, seeded weights, indexed data."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer, seed_everything
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from common.config import ExperimentConfig, to_dict
from common.data.sampling import StepBatchSampler, ValidationBatchSampler, make_loader
from common.rng import StepRandom


def reduce_mean(value: Tensor) -> Tensor:
    """Mean of a detached tensor over all processes; the value itself where there is one.

    For statistics that steer training (path-length mean, mean latent, gate of a judge): each rank must hold the same.
    """
    value = value.detach()
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return value
    total = value.clone()
    torch.distributed.all_reduce(total)
    return total / torch.distributed.get_world_size()


class TrainModule(LightningModule):
    """A LightningModule that `common.run.fit` trains and resumes exactly.

    `training_step` returns the losses to be logged as a dict of scalar tensors (`g_loss` becomes `train/g_loss`);
    calling `self.log` there would synchronise and miss the resumed window. `self.log` in `validation_step` is fine.
    Manual optimisation (GANs): one `with self.updating(optimizer):` per update, `self.manual_backward` inside, as
    often as wanted. Under DDP each `manual_backward` averages the gradients over ranks; gradients that
    `torch.autograd.grad(..., create_graph=True)` takes inside a loss are local, as they should be. Everything that
    an update needs belongs into `training_step`: networks called through `self.network(...)`, EMA, running means
    (`reduce_mean` first), and lazy terms decided by `self.step`, so that all ranks agree.
    """

    step: int = 0
    """Steps completed: the index of the running step inside `training_step`."""

    def __init__(self, cfg: ExperimentConfig, kind: str = "") -> None:
        """Seed, so that the weights built next depend on `cfg.run.seed` only; keep the config as plain types.

        Args:
            cfg: the run's configuration.
            kind: what a checkpoint of this module is; the package unless given.
        """
        super().__init__()
        seed_everything(cfg.run.seed, verbose=False)
        self.cfg = cfg
        self.kind = kind or cfg.run.package
        self.save_hyperparameters({"cfg": to_dict(cfg)})

    @property
    def random(self) -> StepRandom:
        """Noise of this rank: `self.random.normal(self.step, "z", (batch, 512))`."""
        return StepRandom(
            self.cfg.run.seed, rank=self.trainer.global_rank, world_size=self.trainer.world_size, device=self.device
        )

    @contextmanager
    def updating(self, optimizer: LightningOptimizer) -> Iterator[None]:
        """Only this optimiser's parameters require gradients inside; zero before, step after."""
        with self.toggled_optimizer(optimizer):
            optimizer.zero_grad(set_to_none=True)
            yield
            optimizer.step()


class TrainData(LightningDataModule):
    """Loaders over datasets that take a `Draw`; a subclass assigns `train_set` (and `val_set`) in `setup`.

    Args:
        batch_size: items of one training step over all processes.
        seed: of order and draws.
        workers: loader processes per training process; 0 loads in the training process.
        val_batch_size: items of one validation batch over all processes; the training batch unless given.
        collate: how items become a batch; PyTorch's default unless given.
    """

    train_set: Dataset[Any]
    val_set: Dataset[Any] | None = None
    start_step: int = 0
    """Steps that the run has completed; set by `fit`."""
    total_steps: int = 0
    """The run's last step (exclusive); set by `fit`."""

    def __init__(
        self,
        *,
        batch_size: int,
        seed: int,
        workers: int = 0,
        val_batch_size: int | None = None,
        collate: Callable[[list[Any]], Any] | None = None,
    ) -> None:
        super().__init__()
        self.batch_size, self.seed, self.workers, self.collate = batch_size, seed, workers, collate
        self.val_batch_size = val_batch_size or batch_size

    def train_dataloader(self) -> DataLoader[Any]:
        """Batches of the steps that are left."""
        sampler = StepBatchSampler(
            len(self.train_set),  # type: ignore[arg-type]
            self.batch_size,
            seed=self.seed,
            steps=self.total_steps,
            start=self.start_step,
            **self._shard(),
        )
        return self._loader(self.train_set, sampler)

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        """Every validation item once; no loader where there is no validation set."""
        if self.val_set is None:
            return []
        size = len(self.val_set)  # type: ignore[arg-type]
        return self._loader(
            self.val_set, ValidationBatchSampler(size, self.val_batch_size, seed=self.seed, **self._shard())
        )

    def _shard(self) -> dict[str, int]:
        if self.trainer is None:
            return {}
        return {"rank": self.trainer.global_rank, "world_size": self.trainer.world_size}

    def _loader(self, dataset: Dataset[Any], sampler: StepBatchSampler | ValidationBatchSampler) -> DataLoader[Any]:
        return make_loader(
            dataset,
            sampler,
            workers=self.workers,
            pin_memory=torch.cuda.is_available(),
            collate_fn=self.collate,
        )


class StepClock(Callback):
    """Keeps `module.step` and makes Lightning's counters follow it.

    Lightning's `global_step` counts optimiser steps, which for a GAN is neither the batches nor the generator updates
    (two optimisers, lazy regularisers that step on their own), and its loop state resumes differently before, during
    and after a validation. So the run counts batches itself, checkpoints carry that one number and no loop state, and
    the training loader is as long as the steps that are left: the loop ends where the data end.
    """

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Let validation intervals count from the beginning of the run, not of this process."""
        assert isinstance(module, TrainModule)
        total = trainer.fit_loop.epoch_loop.batch_progress.total
        total.ready = total.completed = module.step

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        """Count the step; the x axis of everything logged until the next one."""
        assert isinstance(module, TrainModule)
        module.step += 1
        trainer.fit_loop.epoch_loop._batches_that_stepped = module.step
