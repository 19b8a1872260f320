"""Random numbers of a training step as a pure function of (seed, stream, step), shared out over ranks."""

import zlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


class StepRandom:
    """Noise for the global batch of a step; rank r of R keeps items r::R, as the batch sampler does with the data.

    Two processes see together exactly the noise of one process with the doubled batch, and a resumed run needs no
    saved generator. Numbers depend on the kind of device (CPU and CUDA generators differ), not on its index.

    Args:
        seed: of the run.
        rank, world_size: this process among all.
        device: where the numbers are drawn.
    """

    def __init__(self, seed: int, *, rank: int = 0, world_size: int = 1, device: torch.device | str = "cpu") -> None:
        self.seed, self.rank, self.world_size, self.device = seed, rank, world_size, torch.device(device)

    def generator(self, step: int, stream: str) -> torch.Generator:
        """The generator of `stream` at `step`, the same on every rank (for choices that all ranks share)."""
        words = np.random.SeedSequence([self.seed, zlib.crc32(stream.encode()), step]).generate_state(2, np.uint32)
        return torch.Generator(self.device).manual_seed(int(words[0]) << 31 | int(words[1]) >> 1)

    def normal(self, step: int, stream: str, shape: Sequence[int]) -> Tensor:
        """Standard normal noise; `shape[0]` counts this rank's items."""
        whole = torch.randn(self._global(shape), generator=self.generator(step, stream), device=self.device)
        return whole[self.rank :: self.world_size]

    def uniform(self, step: int, stream: str, shape: Sequence[int]) -> Tensor:
        """Uniform noise in [0, 1); `shape[0]` counts this rank's items."""
        whole = torch.rand(self._global(shape), generator=self.generator(step, stream), device=self.device)
        return whole[self.rank :: self.world_size]

    def integers(self, step: int, stream: str, high: int, shape: Sequence[int]) -> Tensor:
        """Integers in [0, high), int64; `shape[0]` counts this rank's items."""
        generator = self.generator(step, stream)
        whole = torch.randint(high, self._global(shape), generator=generator, device=self.device)
        return whole[self.rank :: self.world_size]

    def _global(self, shape: Sequence[int]) -> tuple[int, ...]:
        return (shape[0] * self.world_size, *shape[1:])
