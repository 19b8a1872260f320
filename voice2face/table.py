"""Train or reuse every row of the papers' tables on one corpus, with one budget, and measure them alike."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from common.checkpoint_file import LAST, load_checkpoint
from common.cli import pick_device
from common.config import config_hash, from_dict, load, to_dict
from common.data.corpus import Corpus
from common.data.engine import WORK
from common.errors import DivergenceError, UserError
from common.parallel import in_processes
from common.run import git_version
from common.runfolder import flatten, read_run
from voice2face import encoder_module
from voice2face.config import Config
from voice2face.data import open_corpus
from voice2face.infer import KIND
from voice2face.report import METRICS, stamp, write_report
from voice2face.sheet import PORTRAITS
from voice2face.table_figures import write_figures
from voice2face.table_rows import BUDGETS, ROWS, Budget, Row
from voice2face.table_text import Head, Outcome, write_table
from voice2face.train import ENCODER_SUFFIX, train

EXPERIMENTS = Path(__file__).parents[1] / "experiments" / "voice2face"
DEFAULT_RUNS = Path("runs") / "voice2face"
_IRRELEVANT = ("run.out", "wandb.", "provenance.", "trainer.progress", "encoder.checkpoint", "data.workers")

Train = Callable[[Config], Path]
Measure = Callable[[Config, Path], dict[str, Any]]


@dataclass(frozen=True)
class Job:
    """One run of the table."""

    experiment: str
    seed: int
    cfg: Config
    encoder: Path | None
    """stage A's checkpoint of an earlier job with the same encoder"""


def make_table(
    budget: Budget,
    *,
    corpus: str = "",
    out: Path = Path("tables"),
    seeds: Sequence[int] = (0,),
    runs: Path | None = None,
    experiments: Path = EXPERIMENTS,
    rows: Sequence[Row] = ROWS,
    jobs: int | None = None,
    train_run: Train | None = None,
    measure_run: Measure | None = None,
    say: Callable[[str], None] = print,
) -> Path:
    """Write `out/voice2face.md`, `.csv` and the figures of the papers; return the Markdown's path.

    A finished run is reused, an interrupted one resumed, and the table is written anew after each run. A run that ends
    in a `UserError` (of which a loss that is not finite is one) is reported with its words, and the others go on.

    Args:
        budget: see `BUDGETS`.
        corpus: folder; empty for the embedded corpus.
        seeds: one run of each experiment for each.
        runs: parent of the run folders; `runs/voice2face/table-BUDGET` unless given.
        jobs: runs at a time, `budget.jobs` unless given. With more than one each runs in a process of its own, which
            writes what it prints to `NAME.log` beside the run folders.
        train_run, measure_run: for tests; training and `measure`.

    Raises:
        UserError: no such experiment or corpus, a run folder of another configuration.
    """
    runs = runs or DEFAULT_RUNS / f"table-{budget.name}"
    planned = plan(budget, rows, corpus=corpus, seeds=seeds, runs=runs, experiments=experiments)
    for job in planned:
        _check_same(job.cfg.run.folder, job.cfg)
        if job.encoder is None:
            _check_same(_encoder_folder(job.cfg), job.cfg, "run.name", "trainer.steps")
    opened = open_corpus(planned[0].cfg.data)
    outcomes: dict[tuple[str, int], Outcome] = {}
    path = out / "voice2face.md"
    run = partial(run_job, train_run=train_run or _train, measure_run=measure_run or measure)
    for number, (job, outcome) in enumerate(_run_all(planned, run, jobs or budget.jobs), start=1):
        say(f"[{number}/{len(planned)}] {outcome.failure or 'done'}: {job.cfg.run.folder}")
        outcomes[job.experiment, job.seed] = outcome
        write_table(path, _head(budget, opened, planned, seeds), rows, outcomes)
    folders = {job.experiment: job.cfg.run.folder for job in reversed(planned)}
    notes = write_figures(out / "voice2face", folders, rows)
    write_table(path, _head(budget, opened, planned, seeds), rows, outcomes, notes)
    return path


def plan(
    budget: Budget, rows: Sequence[Row], *, corpus: str, seeds: Sequence[int], runs: Path, experiments: Path
) -> list[Job]:
    """The runs of a table, every seed's table complete before the next; equal encoders are trained once a seed."""
    jobs, encoders = [], dict[str, Path]()
    for seed in seeds:
        for experiment in dict.fromkeys(row.experiment for row in rows):
            words = [f"run.name={experiment}-seed{seed}", f"run.seed={seed}", f"run.out={runs}"]
            cfg = configure(budget, experiments / f"{experiment}.yaml", [*words, f"data.root={json.dumps(corpus)}"])
            own = _encoder_folder(cfg) / LAST
            shared = encoders.setdefault(_encoder_key(cfg), own)
            reuse = shared != own and cfg.encoder.steps > 0
            jobs.append(Job(experiment, seed, cfg, shared if reuse else None))
    return jobs


def configure(budget: Budget, path: Path, words: Iterable[str] = ()) -> Config:
    """The experiment at `path` under a budget."""
    plain = load(Config, path)
    narrowed = (
        *budget.words,
        *budget.by_encoder.get(plain.encoder.name, ()),
        *budget.by_generator.get(plain.generator.name, ()),
        *budget.by_experiment.get(path.stem, ()),
    )
    return load(Config, path, [*narrowed, *words])


def run_job(job: Job, train_run: Train, measure_run: Measure) -> Outcome:
    """Train and measure one run; a `UserError` becomes the outcome's failure."""
    cfg = job.cfg
    try:
        if job.encoder is not None:
            _check_finished(job.encoder, cfg.encoder.steps)
            cfg = replace(cfg, encoder=replace(cfg.encoder, checkpoint=str(job.encoder)))
        return Outcome(cfg, measure_run(cfg, train_run(cfg)))
    except UserError as error:
        return Outcome(cfg, failure=str(error), diverged=isinstance(error, DivergenceError))


def _run_all(planned: Sequence[Job], run: Callable[[Job], Outcome], jobs: int) -> Iterator[tuple[Job, Outcome]]:
    """Every job with its outcome as it ends; those that wait for another's encoder begin after all others."""
    if jobs == 1:
        yield from ((job, run(job)) for job in planned)
        return
    for batch in ([job for job in planned if job.encoder is None], [job for job in planned if job.encoder is not None]):
        calls = [partial(run, job) for job in batch]
        logs = [job.cfg.run.folder.with_suffix(".log") for job in batch]
        for index, outcome in in_processes(calls, logs, jobs=jobs):
            yield batch[index], outcome


def measure(cfg: Config, folder: Path) -> dict[str, Any]:
    """Evaluate a run's last checkpoint into its folder (see `write_report`) and return the metrics.

    An evaluation of the same checkpoint under the same configuration is read instead.
    """
    checkpoint = folder / LAST
    trained = from_dict(Config, load_checkpoint(checkpoint, KIND)["cfg"])
    found = _read_metrics(folder)
    if not (folder / PORTRAITS).is_file() or not stamp(trained, checkpoint).items() <= found.items():
        write_report(checkpoint, trained, folder, pick_device("cpu" if cfg.trainer.accelerator == "cpu" else "auto"))
    return _read_metrics(folder)


def _train(cfg: Config) -> Path:
    return train(cfg, resume=True)


def _read_metrics(folder: Path) -> dict[str, Any]:
    """metrics.json as far as it is readable; an evaluation writes it anew."""
    try:
        values = json.loads((folder / METRICS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _encoder_key(cfg: Config) -> str:
    """Equal for runs whose stage A is the same training."""
    values = to_dict(cfg)
    parts = {name: values[name] for name in ("data", "feature", "encoder", "trainer")}
    parts["trainer"]["steps"] = None
    return config_hash(parts | {"seed": cfg.run.seed})


def _check_finished(encoder: Path, steps: int) -> None:
    """Raise UserError where the run that should have trained this row's encoder did not."""
    step = load_checkpoint(encoder, encoder_module.KIND)["step"] if encoder.is_file() else 0
    if step < steps:
        raise UserError(f"its voice encoder, {encoder.parent}, ended at step {step} of {steps}")


def _encoder_folder(cfg: Config) -> Path:
    return cfg.run.folder.with_name(cfg.run.name + ENCODER_SUFFIX)


def _check_same(folder: Path, cfg: Config, *also: str) -> None:
    """Raise UserError where `folder` holds a run configured otherwise, in more than `_IRRELEVANT` and `also`."""
    if not (folder / "config.yaml").is_file():
        return
    before, now = (flatten(to_dict(values)) for values in (load(Config, folder / "config.yaml"), cfg))
    changed = sorted(
        key
        for key in before.keys() | now.keys()
        if before.get(key) != now.get(key) and not key.startswith((*_IRRELEVANT, *also))
    )
    if changed:
        raise UserError(
            f"{folder} holds a run that differs in {', '.join(changed)}; remove it or give another --runs folder"
        )


def _head(budget: Budget, corpus: Corpus, jobs: Sequence[Job], seeds: Sequence[int]) -> Head:
    options = corpus.root / WORK / "options.json"
    embedded = not jobs[0].cfg.data.root or (options.is_file() and '"corpus"' in options.read_text(encoding="utf-8"))
    return Head(
        budget=budget.name,
        printed_budget=budget.printed,
        corpus=str(corpus.root),
        synthetic=embedded,
        seeds=tuple(seeds),
        hardware=_hardware(jobs),
        commit=git_version(),
        date=datetime.now(UTC).strftime("%Y-%m-%d"),
    )


def _hardware(jobs: Sequence[Job]) -> str:
    """What the runs so far were trained on, as their folders say."""
    trained = [job.cfg.run.folder for job in jobs if job.cfg.run.folder.is_dir()]
    return "; or ".join(dict.fromkeys(read_run(folder, folder.name).hardware for folder in trained)) or "no run yet"


def find_budget(name: str) -> Budget:
    """A budget by name; raises UserError for an unknown one."""
    if name not in BUDGETS:
        raise UserError(f"unknown budget {name!r}, one of {', '.join(BUDGETS)}")
    return BUDGETS[name]


def parse_seeds(words: str) -> tuple[int, ...]:
    """Seeds from `0 1 2` or `0,1,2`, each once; raises UserError for anything else."""
    parts = words.replace(",", " ").split()
    if not parts or not all(part.isdecimal() and int(part) < 2**32 for part in parts):
        raise UserError(f"seeds are whole numbers from 0, such as '0 1 2', not {words!r}")
    return tuple(dict.fromkeys(int(part) for part in parts))
