"""The order of training data as a pure function of (seed, step), so that a resumed or sharded run sees the same items.

A dataset for these samplers takes a `Draw` in `__getitem__`: which item, and the seed of everything random about it.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from common.errors import UserError
from common.hardware import cores

_TRAIN, _VALIDATION = 0, 1  # first word of the random streams of this file


class Draw(NamedTuple):
    """One item as the samplers hand it to `Dataset.__getitem__`."""

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody calls on a draw
    """Position in the dataset."""
    seed: int
    """Seed in [0, 2**63) of the item's own randomness (crop, augmentation); differs from draw to draw."""

    def generator(self) -> np.random.Generator:
        """A fresh generator for this draw."""
        return np.random.default_rng(self.seed)


class StepBatchSampler(Sampler[list[Draw]]):
    """Batches of one process: `batch(step)` needs no batch before it.

    Items follow endless epochs, each a permutation of the dataset derived from (seed, epoch); batches run across the
    border of epochs, so that every item is drawn once per epoch. Rank r of R takes `global_batch(step)[r::R]`.

    Args:
        size: items in the dataset.
        batch_size: items of one step over all processes; may exceed `size`.
        seed: of order and draws.
        steps: the run's last step (exclusive).
        start: the first step to yield; what a resumed run has completed.
        rank, world_size: this process among all.

    Raises:
        UserError: an empty dataset, or a batch that the processes cannot share evenly.
    """

    def __init__(
        self, size: int, batch_size: int, *, seed: int, steps: int, start: int = 0, rank: int = 0, world_size: int = 1
    ) -> None:
        if size < 1:
            raise UserError("the training data is empty: no item passed the filters, or the split has none")
        if batch_size < 1 or batch_size % world_size:
            raise UserError(
                f"batch size {batch_size} cannot be shared by {world_size} processes: "
                "it counts the items of all of them and must be a positive multiple of their number"
            )
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self.steps, self.start, self.rank, self.world_size = steps, start, rank, world_size
        self._permutation = lru_cache(maxsize=2)(self._draw_permutation)

    def _draw_permutation(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.seed, _TRAIN, 0, epoch]).permutation(self.size)

    def global_batch(self, step: int) -> list[Draw]:
        """The draws of all processes at `step`, in order."""
        positions = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        seeds = np.random.default_rng([self.seed, _TRAIN, 1, step]).integers(2**63, size=self.batch_size)
        epochs, offsets = positions // self.size, positions % self.size
        return [
            Draw(int(self._permutation(int(epoch))[offset]), int(seed))
            for epoch, offset, seed in zip(epochs, offsets, seeds, strict=True)
        ]

    def batch(self, step: int) -> list[Draw]:
        """This process's share of `global_batch(step)`."""
        return self.global_batch(step)[self.rank :: self.world_size]

    def __len__(self) -> int:
        return max(0, self.steps - self.start)

    def __iter__(self) -> Iterator[list[Draw]]:
        return (self.batch(step) for step in range(self.start, self.steps))


class ValidationBatchSampler(Sampler[list[Draw]]):
    """Every item exactly once in fixed order, sharded as r::R, with the same number of batches on every rank.

    The seed of a draw depends on (seed, index) only, so a validation crop is the same in every pass and on any
    number of processes. Batches hold at most `batch_size` items per process, one more where an equal number of
    batches is impossible otherwise. Equal numbers matter: a module may reduce over ranks in `validation_step`.

    Args:
        size: items in the dataset.
        batch_size: items of one batch over all processes.
        seed: of the draws.
        rank, world_size: this process among all.

    Raises:
        UserError: fewer items than processes.
    """

    def __init__(self, size: int, batch_size: int, *, seed: int, rank: int = 0, world_size: int = 1) -> None:
        if size < world_size:
            raise UserError(f"{size} validation items are too few for {world_size} processes; each needs one")
        self.rank, self.world_size = rank, world_size
        self.seeds = np.random.default_rng([seed, _VALIDATION]).integers(2**63, size=size)
        per_batch = max(batch_size, world_size)
        self.count = min(-(-size // per_batch), size // world_size)

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[list[Draw]]:
        for part in np.array_split(np.arange(len(self.seeds)), self.count):
            yield [Draw(int(i), int(self.seeds[i])) for i in part[self.rank :: self.world_size]]


def make_loader(
    dataset: Dataset[Any],
    sampler: StepBatchSampler | ValidationBatchSampler,
    *,
    workers: int = 0,
    pin_memory: bool = False,
    **kwargs: Any,
) -> DataLoader[Any]:
    """A DataLoader that leaves the global random state alone and keeps its workers between passes.

    PyTorch draws the workers' base seed from the global generator unless given another; a draw that only some runs
    make (a resumed one, one with validation) would shift every later number. No more workers are started than there
    are cores: a configuration is written for larger machines, and the data do not depend on their number.
    """
    workers = min(workers, cores())
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=workers,
        pin_memory=pin_memory,
        persistent_workers=workers > 0,
        generator=torch.Generator().manual_seed(0),
        **kwargs,
    )
