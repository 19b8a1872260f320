"""Train a module from its first step or from where it was stopped, and leave a run folder that explains itself."""

import logging
import os
import shutil
import signal
import subprocess
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import Callback, Trainer, seed_everything

from common.callbacks import LogSamples, ProgressBar, StepLogger
from common.checkpoints import (
    LAST,
    PREVIOUS,
    AtomicCheckpointIO,
    Checkpoints,
    check_fits,
    find_resumable,
    load_checkpoint,
    remove_leftovers,
)
from common.config import ExperimentConfig, TrainerConfig, to_dict, to_lines, to_yaml
from common.errors import UserError
from common.files import write_text
from common.hardware import describe_hardware
from common.loggers import CsvLogger, make_loggers
from common.training import StepClock, TrainData, TrainModule

__all__ = ["fit", "git_version", "load_checkpoint"]

_OURS = ("config.yaml", "git.txt", "hardware.txt", "metrics.csv", "samples", "wandb", "wandb_train.txt", LAST, PREVIOUS)
_RESERVED = {
    "accelerator", "callbacks", "default_root_dir", "devices", "enable_checkpointing", "enable_progress_bar", "logger",
    "max_epochs", "max_steps", "max_time", "min_epochs", "min_steps", "num_nodes", "plugins", "precision", "strategy",
    "use_distributed_sampler", "val_check_interval", "check_val_every_n_epoch",
}  # fmt: skip


def fit(
    module: TrainModule,
    datamodule: TrainData,
    cfg: ExperimentConfig,
    *,
    resume: bool = False,
    overwrite: bool = False,
    callbacks: Sequence[Callback] = (),
) -> Path:
    """Train for `cfg.trainer.steps` steps and return the run folder, `out/package/name`.

    The folder holds `config.yaml` (resolved), `git.txt` and `hardware.txt` from before the first step, `metrics.csv`,
    `last.ckpt`, `previous.ckpt`, `samples/` and the files of W&B. A folder that already holds a run is refused, unless
    `resume` (go on from the newest whole checkpoint; from the first step where there is none yet) or `overwrite`
    (remove what the earlier run wrote, nothing else). Sample grids need a module with `sample_images`.

    Raises:
        UserError: an occupied folder, nothing whole to resume from, a checkpoint of another model, an argument that
            Lightning refuses, a loss that is not finite (`DivergenceError`), a full disk.
        KeyboardInterrupt: the user stopped the run; the last checkpoint stands.
    """
    if not cfg.run.package or not cfg.run.name:
        raise UserError("a run needs a package and a name: set run.name, or give a YAML file")
    folder, steps = cfg.run.folder, cfg.trainer.steps
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    seed_everything(cfg.run.seed, verbose=False)
    if cfg.trainer.threads:
        torch.set_num_threads(cfg.trainer.threads)
    loggers = make_loggers(cfg, folder)
    trainer = _trainer(cfg, _callbacks(module, cfg, folder, callbacks), loggers, module)
    if trainer.is_global_zero:
        _claim(folder, resume, overwrite)
    found = find_resumable(folder, module.kind) if resume else None
    module.step = found[1]["step"] if found else 0
    if found:
        check_fits(module, found[1], found[0])
        _tell_changes(found[1]["cfg"], cfg)
    if module.step >= steps:
        _tell(f"{folder} has completed its {steps} steps; raise trainer.steps to go on")
        return folder
    if trainer.is_global_zero:
        _record(folder, cfg, module.step)
        for logger in loggers:
            if isinstance(logger, CsvLogger):
                logger.resume(module.step)
    datamodule.start_step, datamodule.total_steps = module.step, steps
    _run(trainer, module, datamodule, found[0] if found else None)
    return folder


def git_version() -> str:
    """Commit of the source tree, with " (modified)" where files differ from it; "unknown" outside a git clone."""
    source = Path(__file__).resolve().parent

    def git(*words: str) -> str:
        command = ["git", "-C", str(source), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        sha = git("rev-parse", "HEAD")
        return sha + (" (modified)" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _callbacks(module: TrainModule, cfg: ExperimentConfig, folder: Path, more: Sequence[Callback]) -> list[Callback]:
    """In the order in which they act: the clock first, the save last."""
    trainer = cfg.trainer
    losses = StepLogger(trainer.log_every)
    callbacks: list[Callback] = [StepClock(), losses]
    if trainer.progress:
        callbacks.append(ProgressBar(trainer.steps, losses))
    if trainer.val_every and hasattr(module, "sample_images"):
        callbacks.append(LogSamples(folder, trainer.val_every, cfg))
    return [*callbacks, *more, Checkpoints(folder, trainer.save_every, trainer.keep_every)]


def _trainer(cfg: ExperimentConfig, callbacks: list[Callback], loggers: list[Any], module: TrainModule) -> Trainer:
    settings = cfg.trainer
    if taken := sorted(_RESERVED & settings.kwargs.keys()):
        raise UserError(f"trainer.kwargs.{taken[0]} is set by other keys of this software; leave it out")
    arguments: dict[str, Any] = {
        "accelerator": settings.accelerator,
        "devices": settings.devices,
        "num_nodes": settings.num_nodes,
        "strategy": _strategy(settings, module),
        "precision": settings.precision,
        "max_epochs": 1,  # one pass over a loader that is as long as the steps that are left
        "max_steps": -1,
        "val_check_interval": settings.val_every or None,
        "check_val_every_n_epoch": None,
        "limit_val_batches": None if settings.val_every else 0,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": settings.log_every,
        "use_distributed_sampler": False,  # StepBatchSampler shards
        "enable_checkpointing": False,  # Checkpoints saves
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": cfg.run.folder,
        "plugins": [AtomicCheckpointIO()],
    }
    try:
        return Trainer(**(arguments | settings.kwargs), callbacks=callbacks, logger=loggers)
    except (MisconfigurationException, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"trainer: Lightning refuses this configuration: {error}") from error


def _strategy(settings: TrainerConfig, module: TrainModule) -> str:
    """Lightning's strategy, except that DDP allows unused parameters for manual optimisation.

    With two optimisers each backward pass leaves the other's parameters without gradients, which plain DDP refuses.
    `auto` means DDP as soon as there are several processes.
    """
    several = settings.num_nodes > 1 or int(os.environ.get("WORLD_SIZE", "1")) > 1
    if isinstance(settings.devices, int) or settings.devices.isdigit():
        several |= int(settings.devices) not in (0, 1)
    elif settings.accelerator in {"auto", "gpu", "cuda"}:
        several |= torch.cuda.device_count() > 1
    if not module.automatic_optimization and (settings.strategy == "ddp" or (settings.strategy == "auto" and several)):
        return "ddp_find_unused_parameters_true"
    return settings.strategy


def _claim(folder: Path, resume: bool, overwrite: bool) -> None:
    """Make sure that this run may write into `folder`."""
    if resume:
        remove_leftovers(folder)
    elif folder.exists() and any(folder.iterdir()):
        if not overwrite:
            raise UserError(f"{folder} already holds a run: give --resume, --overwrite or another run.name")
        for path in [folder / name for name in _OURS] + list(folder.glob("step_*.ckpt")):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def _record(folder: Path, cfg: ExperimentConfig, start: int) -> None:
    """Print and save what this run is, before its first step."""
    version, hardware = git_version(), describe_hardware()
    write_text(folder / "config.yaml", to_yaml(cfg))
    write_text(folder / "git.txt", version + "\n")
    write_text(folder / "hardware.txt", hardware + "\n")
    print(to_lines(cfg), end="")
    print(f"source: {version}\nhardware: {hardware}\nrun folder: {folder}")
    print(f"steps: {start} to {cfg.trainer.steps}", flush=True)


def _tell_changes(before: dict[str, Any], cfg: ExperimentConfig) -> None:
    """Warn of sections that differ from those of the checkpoint: the run is no longer the one that was begun."""
    now = to_dict(cfg)
    changed = sorted(key for key in now.keys() | before.keys() if now.get(key) != before.get(key))
    if changed:
        _tell(f"resumed with changes in: {', '.join(changed)}")


@rank_zero_only
def _tell(text: str) -> None:
    print(text, flush=True)


def _run(trainer: Trainer, module: TrainModule, datamodule: TrainData, checkpoint: Path | None) -> None:
    with warnings.catch_warnings():
        # Judges and averaged weights are in eval mode on purpose; small data sets load in the training process.
        warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*but have no `validation_step`.*")  # not every module validates
        warnings.filterwarnings("ignore", message="The number of training batches.*")  # the last row is logged anyway
        warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated.*")  # inside Lightning
        try:
            trainer.fit(module, datamodule=datamodule, ckpt_path=checkpoint, weights_only=True)
        except SystemExit as error:  # how Lightning ends after Ctrl-C, having switched the signal off
            if not trainer.interrupted:
                raise
            signal.signal(signal.SIGINT, signal.default_int_handler)
            raise KeyboardInterrupt from error
