"""Runs one pure function over many files: in parallel, resumable, and never stopped by a bad file.

On one machine the work goes to processes of its own, past one machine to a Ray cluster (`engine_ray`).

Each unit of work leaves an atomic record in `<corpus>/.prepare/records/`, written after the unit's own files. A run
that was killed goes on with the units that have no record, so that it ends as an uninterrupted one would. What goes
wrong with a unit's input becomes a `Drop`; what goes wrong with the output (full disk) ends the run in one line.
"""

import json
import multiprocessing
import os
import re
import shutil
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from common.audio.io import write_wav
from common.data.corpus import MANIFEST, REPORT, SAMPLE_RATE, Item
from common.errors import UserError
from common.files import atomic_folder, atomic_path, safe_join, write_json
from common.progress import Bars
from common.provenance import Provenance, write_png

Engine = Literal["local", "ray"]
WORK = ".prepare"
"""Folder inside the corpus that holds the records and the options of the run."""
MOST_DEATHS = 3
"""So many deaths of processes before any of them did anything end the run."""


@dataclass(frozen=True)
class Unit:
    """One piece of work, handed to a worker process."""

    key: str
    """Unique, and safe as a file name."""
    stamp: str
    """Changes when the unit's input does; the unit is then done again."""
    payload: Any
    """What the function needs; must be picklable."""


@dataclass(frozen=True)
class Drop:
    """Something of the input that is not in the corpus."""

    source: str
    """The file below the input folder, or an identity; printable."""
    reason: str
    """Why, in one line that can be stored: what is not UTF-8 is escaped."""

    def __post_init__(self) -> None:
        line = " ".join(self.reason.split())
        object.__setattr__(self, "reason", line.encode("utf-8", "backslashreplace").decode())


class InputError(UserError):
    """Raised by a clip's `Product.data`: its input, not the disk, is at fault, so the clip is dropped."""


@dataclass(frozen=True)
class Product:
    """One item that a unit yields, still in memory."""

    item: Item
    """Its split is decided when all units are done."""
    data: torch.Tensor | np.ndarray | Callable[[Path], object]
    """A voice: float32 (n,) in [-1,1] at 16 kHz. A face: uint8 (H,W,3) RGB. A clip: a function that fills the empty
    folder that it is given; the folder gets its name when the function has returned. If it returns a
    `Product` of the same id and path, that one is recorded: with what only the written clip tells."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Further manifest columns (strings and finite numbers)."""
    provenance: Provenance | None = None
    """Label of a face that is synthetic."""


@dataclass
class Outcome:
    """What a function made of a unit."""

    products: list[Product] = field(default_factory=list)
    drops: list[Drop] = field(default_factory=list)


@dataclass(frozen=True)
class Record:
    """An `Outcome` whose data lie in the corpus."""

    key: str
    stamp: str
    source: str
    """The unit's first file, see `Job.describe`."""
    items: list[Item]
    extra: dict[str, dict[str, Any]]
    """Item id -> further manifest columns."""
    drops: list[Drop]


@dataclass(frozen=True)
class Job:
    """What to do with the units, and where the results go. Picklable: it travels to the worker processes."""

    root: Path
    """The corpus."""
    function: Callable[[Unit, Any], Outcome]
    """Pure; a module-level function. Whatever it raises becomes a drop of its unit."""
    tools: Callable[[], Any]
    """Builds the models that the function gets, once per process. What it raises ends the run."""
    describe: Callable[[Unit], str]
    """How a unit is named to the user."""


def run_units(units: Sequence[Unit], job: Job, *, workers: int, label: str, engine: Engine = "local") -> list[Record]:
    """Do every unit that has no record yet; return the records of all, in the order of `units`.

    Args:
        units: the work; keys must be unique.
        job: see `Job`.
        workers: processes; 0 works in this one.
        label: words of the progress bar.
        engine: local, or ray: the same function on the processes of a Ray cluster, which must see the input and the
            corpus under the same paths; `workers` then bounds what is in work at once on a cluster of this machine.

    Raises:
        UserError: the corpus cannot be written, tools cannot be built, every worker process dies, or Ray is asked
            for and not installed.
    """
    if len({unit.key for unit in units}) != len(units):
        raise ValueError("two units have one key")
    records = {unit.key: record for unit in units if (record := read_record(job.root, unit))}
    pending = [unit for unit in units if unit.key not in records]
    if pending:
        # A manifest means a finished corpus, so it goes before the first file changes.
        _remove(job.root / MANIFEST)
    with Bars() as progress:
        task = progress.add_task(label, total=len(units), completed=len(records))
        for record in _run(pending, job, workers, engine):
            records[record.key] = record
            progress.advance(task)
    return [records[unit.key] for unit in units]


def begin(root: Path, options: dict[str, Any], *, fresh: bool = False) -> None:
    """Make `root` ready for a run with these options (what a unit's result depends on, as plain JSON).

    Raises:
        UserError: `root` is a corpus from elsewhere, or was begun with other options; `fresh` starts anew then,
            removing the files that the earlier run recorded and nothing else.
    """
    if root.exists() and not root.is_dir():
        raise UserError(f"{root} is a file; choose another output folder")
    work = root / WORK
    kept = work / "options.json"
    if (root / MANIFEST).exists() and not work.exists():
        raise UserError(f"{root} holds a corpus that prepare did not write; choose another output folder")
    if kept.exists() and fresh:
        _forget(root)
    if kept.exists():
        before = _read_json(kept)
        changed = sorted(key for key in {*before, *options} if before.get(key) != options.get(key))
        if changed:
            values = ", ".join(f"{key} {before.get(key)!r} -> {options.get(key)!r}" for key in changed)
            raise UserError(f"{root} was begun with other options ({values}); use the same ones, or start afresh")
    else:
        write_json(kept, options)


def read_record(root: Path, unit: Unit) -> Record | None:
    """The unit's record, or None when it has none or its input has changed (then its old files are removed)."""
    path = _record_path(root, unit.key)
    if not path.exists():
        return None
    value = _read_json(path)
    try:
        items = [Item(**item) for item in value["items"]]
        drops = [Drop(**drop) for drop in value["drops"]]
        record = Record(value["key"], value["stamp"], value["source"], items, value["extra"], drops)
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} is not a record of this version; start afresh") from error
    if record.stamp == unit.stamp:
        return record
    _remove(root / MANIFEST)
    for item in items:
        _remove(safe_join(root, item.path))
    _remove(path)
    return None


def clean(root: Path) -> None:
    """Remove what a killed run left among voices, faces and clips (`.name.1234abcd.wav`, `.name.1234abcd/`)."""
    for folder in ("voices", "faces", "clips"):
        for path in sorted((root / folder).rglob(".*"), reverse=True):  # a folder's own leftovers go before it
            if re.fullmatch(r"\..+\.[0-9a-f]{8}(\.(wav|png))?", path.name):
                _remove(path)


def _run(units: Sequence[Unit], job: Job, workers: int, engine: Engine) -> Iterator[Record]:
    if engine == "ray":
        from common.data.engine_ray import run_on_ray

        return run_on_ray(units, job, workers)
    return _run_pool(units, job, workers) if workers else _run_here(units, job)


def _run_here(units: Sequence[Unit], job: Job) -> Iterator[Record]:
    tools = job.tools()
    for unit in units:
        yield do_unit(unit, job, tools)


def _run_pool(units: Sequence[Unit], job: Job, workers: int) -> Iterator[Record]:
    """A decoder's crash or a memory kill takes a process with it: those units that were in work are then tried
    one by one, and the one that kills its process again is dropped."""
    queue = deque(units)
    deaths, survivors = 0, 0
    while queue:
        done, suspects = 0, []
        for unit, record in _drain(queue, job, workers):
            if record is None:
                suspects.append(unit)
            else:
                done += 1
                yield record
        survivors += done
        for suspect in suspects:
            ((_, record),) = _drain(deque([suspect]), job, 1)
            deaths, survivors = deaths + (record is None), survivors + (record is not None)
            if deaths == MOST_DEATHS and not survivors:
                raise UserError(f"every worker process dies, the last on {job.describe(suspect)}; try without workers")
            yield record or store_death(suspect, job)


def _drain(queue: deque[Unit], job: Job, workers: int) -> Iterator[tuple[Unit, Record | None]]:
    """Work the queue off. When a process dies, the units that were in work come without a record, and the rest
    stays queued."""
    pending: dict[Future[Record], Unit] = {}
    broken = False
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start_worker, (job,))
    try:
        while (queue and not broken) or pending:
            while queue and not broken and len(pending) < 2 * workers:
                try:
                    pending[pool.submit(_do_in_worker, queue[0])] = queue[0]
                    queue.popleft()
                except BrokenProcessPool:
                    broken = True
            for future in wait(pending, return_when=FIRST_COMPLETED).done:
                unit = pending.pop(future)
                try:
                    record = future.result()
                except BrokenProcessPool:
                    broken = True
                    yield unit, None
                else:
                    yield unit, record
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_worker: tuple[Job, Any] | None = None
"""The job and its tools in a worker process, which serves one job only."""


def _start_worker(job: Job) -> None:
    """One thread per process; Ctrl-C is the parent's; and no orphans: a worker ends with its parent."""
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()
    if parent is not None:

        def follow() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=follow, daemon=True).start()
    _worker = (job, None)


def _do_in_worker(unit: Unit) -> Record:
    """Tools are built at the first unit, not in the initialiser, whose exceptions would be lost."""
    global _worker
    assert _worker is not None
    job, tools = _worker
    if tools is None:
        tools = job.tools()
        _worker = (job, tools)
    return do_unit(unit, job, tools)


def do_unit(unit: Unit, job: Job, tools: Any) -> Record:
    """Run the job's function on a unit, store what it made, and return the record."""
    try:
        outcome = job.function(unit, tools)
    except Exception as error:  # whatever a hostile file provokes is that file's drop, named in the report
        reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        outcome = Outcome(drops=[Drop(job.describe(unit), reason)])
    return store_outcome(unit, job, outcome)


def store_death(unit: Unit, job: Job) -> Record:
    """The record of a unit whose process died twice."""
    reason = "the process that read it died (out of memory, or a decoder's crash)"
    return store_outcome(unit, job, Outcome(drops=[Drop(job.describe(unit), reason)]))


def store_outcome(unit: Unit, job: Job, outcome: Outcome) -> Record:
    """Write the files of an outcome and then its record, so that a record stands for files that are there."""
    stored = []
    for product in outcome.products:
        try:
            stored.append(_write(safe_join(job.root, product.item.path), product))
        except InputError as error:
            outcome.drops.append(Drop(job.describe(unit), str(error)))
    extra = {product.item.id: product.extra for product in stored if product.extra}
    items = [product.item for product in stored]
    record = Record(unit.key, unit.stamp, job.describe(unit), items, extra, outcome.drops)
    write_json(_record_path(job.root, unit.key), asdict(record))
    return record


def _write(path: Path, product: Product) -> Product:
    """Store the data of a product; return the product as it is recorded."""
    if callable(product.data):
        with atomic_folder(path) as temporary:
            measured = product.data(temporary)
        return measured if isinstance(measured, Product) else product
    if product.item.kind == "voice":
        write_wav(path, torch.as_tensor(product.data), SAMPLE_RATE)
    else:
        _write_face(path, np.asarray(product.data), product.provenance)
    return product


def _write_face(path: Path, image: np.ndarray, provenance: Provenance | None) -> None:
    if provenance is not None:
        write_png(path, image, provenance)
        return
    with atomic_path(path) as temporary:
        Image.fromarray(image).save(temporary)


def _record_path(root: Path, key: str) -> Path:
    return safe_join(root, f"{WORK}/records/{key}.json")


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}; start afresh") from error


def _forget(root: Path) -> None:
    _remove(root / MANIFEST)
    _remove(root / REPORT)
    for path in sorted((root / WORK / "records").glob("*.json")):
        for item in _read_json(path)["items"]:
            _remove(safe_join(root, item["path"]))
    try:
        shutil.rmtree(root / WORK)
    except OSError as error:
        raise UserError(f"cannot empty {root / WORK}: {error.strerror or error}") from error


def _remove(path: Path) -> None:
    try:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot remove {path}: {error.strerror or error}; check its permissions") from error
