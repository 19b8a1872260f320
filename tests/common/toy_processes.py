"""Trains the toy GAN in real processes that die by SIGKILL or share the work; called by test_run and test_ddp.

    python -m tests.common.toy_processes kill OUT     each run of KILLED, up to the step that kills it
    python -m tests.common.toy_processes ddp OUT      two ranks over gloo: a whole run, and one killed and resumed

Children are forked after the imports, which take longer than the training.
"""

import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from common.checkpoints import AtomicCheckpointIO
from tests.common.toy_gan import ToyConfig, toy_config, train_toy

KILLED = [("1", 0), ("5", 0), ("5,8", 0), ("11", 0), ("write", 0), ("2", 2), ("7", 2)]
"""(steps at which the run dies one after the other, or "write" for a death inside the second save; loader workers)."""
DDP_CHANGES = {"global_noise": False}
"""What the two-process runs and their reference have in common."""


def run_folder(out: Path, deaths: str, workers: int) -> Path:
    """Where the run of one row of KILLED writes."""
    return out / f"{deaths}_{workers}"


def _fork(work: Callable[[], object]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        work()
        code = 0
    finally:
        os._exit(code)


def _signal_of(pid: int) -> int:
    """The signal that ended a child; 0 where it ended by itself without error."""
    return os.WTERMSIG(status) if os.WIFSIGNALED(status := os.waitpid(pid, 0)[1]) else -os.WEXITSTATUS(status)


def _train_and_die_in_a_save(cfg: ToyConfig) -> None:
    whole, saves = AtomicCheckpointIO.write, []

    def half(self: AtomicCheckpointIO, checkpoint: dict, path: Path) -> None:
        whole(self, checkpoint, path)
        saves.append(path)
        if len(saves) == 2:
            os.truncate(path, path.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    AtomicCheckpointIO.write = half
    train_toy(cfg)


def kill(out: Path) -> None:
    """Run every row of KILLED to its death."""
    for deaths, workers in KILLED:
        folder = run_folder(out, deaths, workers)
        for number, death in enumerate(deaths.split(",")):
            cfg = toy_config(folder, workers=workers, kill_at=-1 if death == "write" else int(death))
            if death == "write":
                pid = _fork(lambda cfg=cfg: _train_and_die_in_a_save(cfg))
            else:
                pid = _fork(lambda cfg=cfg, again=number > 0: train_toy(cfg, resume=again))
            if _signal_of(pid) != signal.SIGKILL:
                sys.exit(f"the run {deaths} with {workers} workers did not die by SIGKILL")


def _ranks(work: Callable[[int], object]) -> list[int]:
    """Run `work(rank)` in two processes as torchrun would start them; returns how each ended."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def rank(number: int) -> None:
        os.environ |= {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "WORLD_SIZE": "2",
            "RANK": str(number),
            "LOCAL_RANK": str(number),
            "GROUP_RANK": "0",
            "LOCAL_WORLD_SIZE": "2",
            "TORCHELASTIC_RUN_ID": "toy",
        }
        work(number)

    return [_signal_of(pid) for pid in [_fork(lambda n=n: rank(n)) for n in range(2)]]


def ddp(out: Path) -> None:
    """A whole run whose ranks store their final states, and one that both ranks leave by SIGKILL and resume."""
    two = {"devices": 2, "strategy": "ddp"}

    def whole(rank: int) -> None:
        cfg = toy_config(out / "whole", trainer=two, **DDP_CHANGES)
        _, module = train_toy(cfg)
        torch.save(module.state_dict(), out / f"rank{rank}.pt")

    def killed(_: int) -> None:
        train_toy(toy_config(out / "killed", trainer=two, kill_at=8, **DDP_CHANGES))

    def resumed(_: int) -> None:
        train_toy(toy_config(out / "killed", trainer=two, **DDP_CHANGES), resume=True)

    for name, work, ending in (("whole", whole, 0), ("killed", killed, int(signal.SIGKILL)), ("resumed", resumed, 0)):
        if (endings := _ranks(work)) != [ending, ending]:
            sys.exit(f"the two ranks of the {name} run ended with {endings}")


if __name__ == "__main__":
    {"kill": kill, "ddp": ddp}[sys.argv[1]](Path(sys.argv[2]))
