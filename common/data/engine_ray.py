"""The engine's units on a Ray cluster. Ray is an optional extra and is imported only when it is asked for.

A cluster is found through `RAY_ADDRESS` (`ray start` on each machine); without it Ray starts on this machine. All
machines must see the input and the corpus under the same paths, since each writes its own items and records.
"""

import os
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from common.data.engine import MOST_DEATHS, Job, Record, Unit, do_unit, store_death
from common.errors import UserError

_IN_WORK = 2
"""Units handed out per core: one in work, one waiting."""
_tools: tuple[str, Any] | None = None
"""The tools of the run that this worker process last served, and the run's name."""


def run_on_ray(units: Sequence[Unit], job: Job, workers: int) -> Iterator[Record]:
    """Do the units on the cluster; yield their records as they come.

    Args:
        units: the work.
        job: see `Job`; sent to the cluster once.
        workers: cores to use where Ray is started here, 0 for all; a running cluster uses all that it has.

    Raises:
        UserError: Ray is not installed or no cluster answers, tools cannot be built, the corpus cannot be written, or
            every process dies.
    """
    ray = _connected(workers)
    task = ray.remote(num_cpus=1, max_retries=1)(_do_on_ray)
    run, shared = os.urandom(8).hex(), ray.put(job)
    queue = deque(units)
    pending: dict[Any, Unit] = {}
    deaths = survivors = 0
    try:
        while queue or pending:
            while queue and len(pending) < _IN_WORK * _cores(ray):
                unit = queue.popleft()
                pending[task.remote(unit, shared, run)] = unit
            for done in ray.wait(list(pending), num_returns=1)[0]:
                unit = pending.pop(done)
                record = _result(ray, done)
                survivors, deaths = survivors + (record is not None), deaths + (record is None)
                if deaths == MOST_DEATHS and not survivors:
                    raise UserError(f"every Ray process dies, the last on {job.describe(unit)}; try --engine local")
                yield record or store_death(unit, job)
    finally:
        for reference in pending:
            ray.cancel(reference)


def _connected(workers: int) -> Any:
    """The `ray` module, connected to a cluster."""
    try:
        import ray
    except ImportError as error:
        raise UserError("the ray engine needs Ray, which is not installed: pip install 'speechface[ray]'") from error
    if not ray.is_initialized():
        here = {} if os.environ.get("RAY_ADDRESS") else {"num_cpus": workers or None, "include_dashboard": False}
        try:
            ray.init(log_to_driver=False, **here)
        except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
            raise UserError(f"no Ray cluster: {error}; check RAY_ADDRESS and `ray status`") from error
    return ray


def _cores(ray: Any) -> int:
    """At least one: a cluster may start empty and grow when tasks wait."""
    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def _result(ray: Any, reference: Any) -> Record | None:
    """The record, or None where the process died on the unit twice."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:  # what ends a run: a full disk, tools that cannot be built
        raise (error.cause if isinstance(error.cause, UserError) else error) from None
    except ray.exceptions.RayError:
        return None


def _do_on_ray(unit: Unit, job: Job, run: str) -> Record:
    """In a worker process of the cluster: tools are built at a run's first unit and kept."""
    global _tools
    torch.set_num_threads(1)
    if _tools is None or _tools[0] != run:
        _tools = (run, job.tools())
    return do_unit(unit, job, _tools[1])
