"""Long independent jobs, such as trainings, in processes of their own."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import torch

from common.hardware import cores

Result = TypeVar("Result")


def in_processes(
    calls: Sequence[Callable[[], Result]], logs: Sequence[Path], *, jobs: int
) -> Iterator[tuple[int, Result]]:
    """Run `calls`, `jobs` at a time, each in a fresh process; yield (index, result) as they end.

    A process computes on its share of the machine's threads and writes what it prints to its log. Calls and results
    must be picklable. What a call raises is raised here; the calls that wait are then given up, and those that run
    are waited for.
    """
    threads = max(1, cores() // jobs)
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        futures = {
            pool.submit(_run, call, log, threads): index
            for index, (call, log) in enumerate(zip(calls, logs, strict=True))
        }
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _run(call: Callable[[], Result], log: Path, threads: int) -> Result:
    torch.set_num_threads(threads)
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "a", encoding="utf-8") as file:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(file.fileno(), stream.fileno())
        return call()
