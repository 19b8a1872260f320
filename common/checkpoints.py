"""Checkpoints that survive a crash: written atomically, with everything that training depends on.

See `common.checkpoint_file` for what a run folder holds and for reading. A resumed run takes the newest whole one.
"""

import os
import random
import shutil
import warnings
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.io import TorchCheckpointIO

import common
from common.checkpoint_file import LAST, PREVIOUS, SCHEMA, find_resumable, load_checkpoint, read_tensors
from common.errors import UserError
from common.files import atomic_path
from common.training import TrainModule

__all__ = [
    "LAST", "PREVIOUS", "AtomicCheckpointIO", "Checkpoints", "check_fits", "find_resumable", "load_checkpoint",
    "remove_leftovers",
]  # fmt: skip


def check_fits(module: torch.nn.Module, checkpoint: dict[str, Any], path: Path) -> None:
    """Raise UserError where a checkpoint's tensors are not those of `module`, naming the first that differs."""
    own, stored = module.state_dict(), checkpoint["state_dict"]
    for name in [*own, *(n for n in stored if n not in own)]:
        here, there = own.get(name), stored.get(name)
        if here is None or there is None or here.shape != there.shape:
            shapes = ["absent" if t is None else str(tuple(t.shape)) for t in (there, here)]
            raise UserError(
                f"{path} does not fit this configuration: {name} is {shapes[0]} there and {shapes[1]} here; "
                "resume with the configuration in the run folder"
            )


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes to a temporary name, syncs, keeps the former `last.ckpt` as `previous.ckpt`, then renames."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Save, or leave the old checkpoint as it was and raise UserError (full disk, no permission)."""
        path = Path(path)
        with atomic_path(path) as temporary:
            self.write(checkpoint, temporary)
            if path.name == LAST and path.exists():
                os.replace(path, path.with_name(PREVIOUS))

    def write(self, checkpoint: dict[str, Any], path: Path) -> None:
        """Write and sync one file; through a Python file, since torch's own writer hides the system's error."""
        with open(path, "wb") as file:
            try:
                torch.save(checkpoint, file)
            except RuntimeError as error:
                if isinstance(error.__context__, OSError):
                    raise error.__context__ from error
                raise
            file.flush()
            os.fsync(file.fileno())

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read onto the CPU, tensors and plain types only."""
        return cast(dict[str, Any], read_tensors(Path(path)))


class Checkpoints(Callback):
    """Saves `last.ckpt` every `every` steps and at the end, numbered copies every `keep` steps (0 for none).

    A save belongs to the beginning of the next step, when validation, samples and log rows of the step are done, so
    that a resumed run repeats none of them. It flushes the logs first: no row that the checkpoint counts can be lost.
    """

    def __init__(self, folder: Path, every: int, keep: int = 0) -> None:
        self.folder, self.every, self.keep = folder, every, keep
        self.saved = -1
        self._random: dict[str, Any] | None = None

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """A resumed step is saved already."""
        self.saved = cast(TrainModule, module).step

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        """Restore the random state of a resumed run last of all, or save what the steps before reached."""
        if self._random is not None:
            _set_random_state(self._random)
            self._random = None
        step = cast(TrainModule, module).step
        if step % self.every == 0 and step != self.saved:
            self.save(trainer, step)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Save the final state."""
        step = cast(TrainModule, module).step
        if step != self.saved:
            self.save(trainer, step)

    def save(self, trainer: Trainer, step: int) -> None:
        """Flush the logs, then write; on every rank, since gathering the state may take all of them."""
        for logger in trainer.loggers:
            logger.save()
        trainer.save_checkpoint(self.folder / LAST)
        self.saved = step
        if self.keep and step % self.keep == 0 and trainer.is_global_zero:
            _link(self.folder / LAST, self.folder / f"step_{step:08d}.ckpt")

    def on_save_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add step, kind, versions and the random state of every rank; drop Lightning's loop state (see StepClock)."""
        assert isinstance(module, TrainModule)
        del checkpoint["loops"]
        states: list[Any] = [_random_state()] * trainer.world_size
        if trainer.world_size > 1:
            torch.distributed.all_gather_object(states, _random_state())
        checkpoint |= {
            "step": module.step,
            "kind": module.kind,
            "schema": SCHEMA,
            "version": common.__version__,
            "random": states,
        }

    def on_load_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Remember this rank's random state until the first step begins."""
        states = checkpoint["random"]
        if len(states) == trainer.world_size:
            self._random = states[trainer.global_rank]
        else:
            warnings.warn(
                f"the run was saved on {len(states)} processes and goes on with {trainer.world_size}: "
                "numbers drawn from the global random state will differ",
                stacklevel=2,
            )


def remove_leftovers(folder: Path) -> None:
    """Remove the temporaries of a save that was killed."""
    for path in folder.glob(".*.ckpt"):
        path.unlink()


def _link(source: Path, target: Path) -> None:
    """A second name for the same file, which costs nothing; a copy where the file system has no hard links."""
    with atomic_path(target) as temporary:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)


def _random_state() -> dict[str, Any]:
    name, keys, position, has_gauss, gauss = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (str(name), torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, gauss),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def _set_random_state(state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
