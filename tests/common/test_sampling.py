"""The order of the data: pure in (seed, step), shared without overlap, nothing lost at the border of epochs."""

from collections import Counter

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from common.data.sampling import Draw, StepBatchSampler, ValidationBatchSampler, make_loader
from common.errors import UserError


class Echo(Dataset[tuple[int, float]]):
    """Gives back the index and a number drawn from the draw's seed."""

    def __getitem__(self, draw: Draw) -> tuple[int, float]:
        return draw.index, float(draw.generator().random())


@pytest.mark.parametrize(("size", "batch_size"), [(7, 3), (5, 5), (3, 8), (1, 4), (10, 1)])
def test_every_epoch_holds_every_item_once(size: int, batch_size: int) -> None:
    steps = 6 * size
    sampler = StepBatchSampler(size, batch_size, seed=3, steps=steps)
    order = [draw.index for batch in sampler for draw in batch]
    assert len(order) == steps * batch_size
    for epoch in range(len(order) // size):
        assert sorted(order[epoch * size : (epoch + 1) * size]) == list(range(size))


def test_order_and_seeds_differ_between_epochs_and_seeds() -> None:
    def order(seed: int) -> list[Draw]:
        return [draw for batch in StepBatchSampler(32, 8, seed=seed, steps=8) for draw in batch]

    first, second = order(0)[:32], order(0)[32:]
    assert [d.index for d in first] != [d.index for d in second]
    assert [d.index for d in first] != [d.index for d in order(1)[:32]]
    assert order(0) == order(0)
    assert len({d.seed for d in order(0)}) == 64
    assert all(0 <= d.seed < 2**63 for d in first)


def test_start_gives_the_tail_of_the_full_run() -> None:
    full = list(StepBatchSampler(11, 4, seed=5, steps=20))
    resumed = StepBatchSampler(11, 4, seed=5, steps=20, start=13)
    assert list(resumed) == full[13:]
    assert len(resumed) == 7
    assert len(StepBatchSampler(11, 4, seed=5, steps=20, start=25)) == 0


@pytest.mark.parametrize("world_size", [2, 3, 6])
def test_ranks_share_the_global_batch_interleaved(world_size: int) -> None:
    whole = StepBatchSampler(7, 6, seed=1, steps=9)
    ranks = [StepBatchSampler(7, 6, seed=1, steps=9, rank=r, world_size=world_size) for r in range(world_size)]
    for step in range(9):
        for r, sampler in enumerate(ranks):
            assert sampler.batch(step) == whole.global_batch(step)[r::world_size]


def test_uneven_batch_and_empty_data_are_user_errors() -> None:
    with pytest.raises(UserError, match="cannot be shared by 2 processes"):
        StepBatchSampler(7, 5, seed=0, steps=1, world_size=2)
    with pytest.raises(UserError, match="empty"):
        StepBatchSampler(0, 5, seed=0, steps=1)
    with pytest.raises(UserError, match="too few for 3 processes"):
        ValidationBatchSampler(2, 4, seed=0, world_size=3)


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("size", [3, 5, 8, 17])
@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_validation_covers_each_item_once_in_equal_batches(size: int, world_size: int, batch_size: int) -> None:
    ranks = [ValidationBatchSampler(size, batch_size, seed=2, rank=r, world_size=world_size) for r in range(world_size)]
    batches = [list(sampler) for sampler in ranks]
    assert Counter(d.index for b in batches for batch in b for d in batch) == Counter(range(size))
    assert len({len(b) for b in batches}) == 1
    assert all(0 < len(batch) <= max(batch_size // world_size, 1) + 1 for b in batches for batch in b)
    assert len(batches[0]) == len(ranks[0])
    single = {d for batch in ValidationBatchSampler(size, batch_size, seed=2) for d in batch}
    assert {d for b in batches for batch in b for d in batch} == single


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_delivers_draws_in_order_and_leaves_the_global_state_alone(workers: int) -> None:
    sampler = StepBatchSampler(9, 4, seed=8, steps=5, start=2)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    got = list(make_loader(Echo(), sampler, workers=workers))
    assert torch.equal(torch.get_rng_state(), before)
    expected = [sampler.batch(step) for step in range(2, 5)]
    assert [batch[0].tolist() for batch in got] == [[d.index for d in batch] for batch in expected]
    values = [[np.random.default_rng(d.seed).random() for d in batch] for batch in expected]
    assert [batch[1].tolist() for batch in got] == values
