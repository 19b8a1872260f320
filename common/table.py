"""Train or reuse every row of a paper's tables on one corpus, with one budget, and measure them alike.

A package describes its tables as a `Table` and gets the rest from here: what has to be trained, what is there already,
first stages that rows share, several runs at a time, and a table on disk that is whole after each of them.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

from common.checkpoint_file import LAST, load_checkpoint
from common.config import ExperimentConfig, load, read, to_dict
from common.data.corpus import Corpus
from common.data.engine import WORK
from common.errors import DivergenceError, UserError
from common.files import write_text
from common.metrics.estimate import Estimate
from common.parallel import in_processes
from common.run import git_version
from common.runfolder import METRICS, flatten, read_run
from common.table_rows import Budget, Claim, Metric, Row
from common.table_text import Head, Outcome, Words, csv_text, markdown

C = TypeVar("C", bound=ExperimentConfig)

_IRRELEVANT = ("run.out", "wandb.", "provenance.", "trainer.progress", "data.workers")
"""Keys that do not change what a run gives."""


@dataclass(frozen=True)
class FirstStage(Generic[C]):
    """A training that precedes a row's own; rows in which it is the same share it."""

    name: str
    """for messages: `voice encoder`"""
    section: str
    """the configuration's section of it, which has `steps` and `checkpoint`"""
    kind: str
    """of its checkpoints"""
    suffix: str
    """its run folder stands beside the row's, under the row's name and this"""
    key: Callable[[C], str]
    """equal for rows in which the training is the same"""
    train: Callable[[C], Path] | None = None
    """trains it alone, before all rows; None: the first row that needs it does, on its way"""

    def steps(self, cfg: C) -> int:
        """Its length in a row's configuration."""
        return int(getattr(getattr(cfg, self.section), "steps"))  # noqa: B009  # a field by name

    def folder(self, cfg: C) -> Path:
        """Its run folder for a row that trains it."""
        return cfg.run.folder.with_name(cfg.run.name + self.suffix)

    def given(self, cfg: C, checkpoint: Path) -> C:
        """The row's configuration with the stage's checkpoint in the place of the training."""
        return replace(cfg, **{self.section: replace(getattr(cfg, self.section), checkpoint=str(checkpoint))})

    def check_finished(self, checkpoint: Path, cfg: C) -> None:
        """Raise UserError where the training that should have written this checkpoint did not end."""
        steps = self.steps(cfg)
        step = load_checkpoint(checkpoint, self.kind)["step"] if checkpoint.is_file() else 0
        if step < steps:
            raise UserError(f"its {self.name}, {checkpoint.parent}, ended at step {step} of {steps}")


@dataclass(frozen=True)
class Table(Generic[C]):
    """The tables of a package. Its functions must be picklable where several runs go at a time."""

    package: str
    config: type[C]
    experiments: Path
    """folder of the YAML files"""
    rows: Sequence[Row]
    metrics: Sequence[Metric]
    claims: Sequence[Claim]
    budgets: Mapping[str, Budget]
    words: Words
    train: Callable[[C], Path]
    """trains or finishes a run; its folder"""
    measure: Callable[[C, Path], dict[str, Any]]
    """the figures of a run, from its folder where they are those of its checkpoint"""
    open_corpus: Callable[[C], Corpus]
    figures: Callable[[Path, Mapping[str, Path], Sequence[Row]], list[str]]
    """writes pictures into a folder, from run folders by experiment; a sentence for each"""
    stage: FirstStage[C] | None = None
    difference: Callable[[Mapping[str, Any], Row, Mapping[str, Any], Row, Metric], Estimate | None] | None = None
    """of two rows' figures, from what both measured on the same items; decides claims better than two intervals"""
    begin: Callable[[Corpus], None] | None = None
    """what has to be there before several runs are measured at a time"""

    def budget(self, name: str) -> Budget:
        """A budget by name; raises UserError for an unknown one."""
        if name not in self.budgets:
            raise UserError(f"unknown budget {name!r}, one of {', '.join(self.budgets)}")
        return self.budgets[name]


@dataclass(frozen=True)
class Job(Generic[C]):
    """One run of the table."""

    experiment: str
    seed: int
    cfg: C
    shared: Path | None
    """the first stage's checkpoint, where another run writes it"""


@dataclass(frozen=True)
class Run(Generic[C]):
    """How jobs are done; small enough to be sent to other processes."""

    train: Callable[[C], Path]
    measure: Callable[[C, Path], dict[str, Any]]
    stage: FirstStage[C] | None = field(default=None)

    def __call__(self, job: Job[C]) -> Outcome:
        """Train and measure one run; a `UserError` becomes the outcome's failure."""
        cfg = job.cfg
        try:
            if job.shared is not None and self.stage is not None:
                self.stage.check_finished(job.shared, cfg)
                cfg = self.stage.given(cfg, job.shared)
            return Outcome(cfg, self.measure(cfg, self.train(cfg)))
        except UserError as error:
            return Outcome(cfg, failure=str(error), diverged=isinstance(error, DivergenceError))


def make_table(
    table: Table[C],
    budget: Budget,
    *,
    corpus: str = "",
    out: Path = Path("tables"),
    seeds: Sequence[int] = (0,),
    runs: Path | None = None,
    jobs: int | None = None,
    given: Mapping[str, Mapping[str, Any]] | None = None,
    say: Callable[[str], None] = print,
) -> Path:
    """Write `out/PACKAGE.md`, `.csv` and the figures of the papers; return the Markdown's path.

    A finished run is reused, an interrupted one resumed, and the table is written anew after each run. A run that ends
    in a `UserError` (of which a loss that is not finite is one) is reported with its words, and the others go on.

    Args:
        table: what is in it.
        budget: one of `table.budgets`.
        corpus: folder; empty for the embedded corpus.
        out: folder of the table.
        seeds: one run of each experiment for each.
        runs: parent of the run folders; `runs/PACKAGE/table-BUDGET` unless given.
        jobs: runs at a time, `budget.jobs` unless given. With more than one each runs in a process of its own, which
            writes what it prints to `NAME.log` beside the run folders.
        given: figures of other methods, by the names of their rows.
        say: gets a line for each run that ends.

    Raises:
        UserError: no such experiment or corpus, a run folder of another configuration, figures for no row.
    """
    runs, given = runs or Path("runs") / table.package / f"table-{budget.name}", dict(given or {})
    _check_given(table, given)
    planned = plan(table, budget, corpus=corpus, seeds=seeds, runs=runs)
    for job in planned:
        _check_same(table, job.cfg.run.folder, job.cfg)
        if job.shared is None and table.stage is not None:
            _check_same(table, table.stage.folder(job.cfg), job.cfg, "run.name", "trainer.steps")
    opened = table.open_corpus(planned[0].cfg)
    if table.begin is not None:
        table.begin(opened)
    outcomes: dict[tuple[str, int], Outcome] = {}
    path = out / f"{table.package}.md"

    def write(notes: Sequence[str] = ()) -> None:
        head = _head(budget, opened, planned, seeds)
        parts = (table.words, head, table.rows, table.metrics)
        judged = (table.claims, table.difference)
        write_text(path, markdown(*parts, *judged, outcomes, given, notes))
        write_text(path.with_suffix(".csv"), csv_text(*parts[1:], outcomes, given))

    run = Run(table.train, table.measure, table.stage)
    for number, (job, outcome) in enumerate(_run_all(table, planned, run, jobs or budget.jobs, say), start=1):
        say(f"[{number}/{len(planned)}] {outcome.failure or 'done'}: {job.cfg.run.folder}")
        outcomes[job.experiment, job.seed] = outcome
        write()
    folders = {job.experiment: job.cfg.run.folder for job in reversed(planned)}
    write(table.figures(out / table.package, folders, table.rows))
    return path


def plan(table: Table[C], budget: Budget, *, corpus: str, seeds: Sequence[int], runs: Path) -> list[Job[C]]:
    """The runs of a table, every seed's table complete before the next; equal first stages are trained once a seed."""
    stage, jobs, stages = table.stage, list[Job[C]](), dict[str, Path]()
    for seed in seeds:
        for experiment in dict.fromkeys(row.experiment for row in table.rows if row.experiment):
            words = [f"run.name={experiment}-seed{seed}", f"run.seed={seed}", f"run.out={runs}"]
            path = table.experiments / f"{experiment}.yaml"
            cfg = configure(table.config, budget, path, [*words, f"data.root={json.dumps(corpus)}"])
            shared = None
            if stage is not None and stage.steps(cfg) > 0:
                own = stage.folder(cfg) / LAST
                first = stages.setdefault(stage.key(cfg), own)
                shared = first if first != own or stage.train is not None else None
            jobs.append(Job(experiment, seed, cfg, shared))
    return jobs


def configure(schema: type[C], budget: Budget, path: Path, words: Iterable[str] = ()) -> C:
    """The experiment at `path` under a budget."""
    plain = flatten(to_dict(load(schema, path)))
    narrowed = [*_recipe(budget, path), *budget.words]
    for key, cases in budget.by.items():
        narrowed += cases.get(str(plain.get(key)), ())
    return load(schema, path, [*narrowed, *budget.by_experiment.get(path.stem, ()), *words])


def _recipe(budget: Budget, path: Path) -> list[str]:
    """The lines of the budget's recipe, without those of its base and those that rows decide."""
    if not budget.recipe:
        return []
    lines = flatten(read(path.with_name(f"{budget.recipe}.yaml"))[-1][1])
    return [f"{key}={json.dumps(value)}" for key, value in lines.items() if not key.startswith(budget.kept)]


def _run_all(
    table: Table[C], planned: Sequence[Job[C]], run: Run[C], jobs: int, say: Callable[[str], None]
) -> Iterator[tuple[Job[C], Outcome]]:
    """Every job with its outcome as it ends; those that wait for another's first stage begin after all others."""
    _train_stages(table, planned, jobs, say)
    if jobs == 1:
        yield from ((job, run(job)) for job in planned)
        return
    for batch in ([job for job in planned if job.shared is None], [job for job in planned if job.shared is not None]):
        calls = [partial(run, job) for job in batch]
        logs = [job.cfg.run.folder.with_suffix(".log") for job in batch]
        for index, outcome in in_processes(calls, logs, jobs=jobs):
            yield batch[index], outcome


def _train_stages(table: Table[C], planned: Sequence[Job[C]], jobs: int, say: Callable[[str], None]) -> None:
    """First stages that are trained alone; one that fails is reported by the rows that need it."""
    stage = table.stage
    if stage is None or stage.train is None:
        return
    owners = [job.cfg for job in planned if job.shared == stage.folder(job.cfg) / LAST]
    calls = [partial(_train_stage, stage.train, cfg) for cfg in owners]
    logs = [stage.folder(cfg).with_suffix(".log") for cfg in owners]
    ended = enumerate(call() for call in calls) if jobs == 1 else in_processes(calls, logs, jobs=min(jobs, len(calls)))
    for index, failure in ended:
        say(f"{stage.name}: {failure or 'done'}: {stage.folder(owners[index])}")


def _train_stage(train: Callable[[C], Path], cfg: C) -> str:
    """Why the training failed; empty where it did not."""
    try:
        train(cfg)
    except UserError as error:
        return str(error)
    return ""


def read_metrics(folder: Path) -> dict[str, Any]:
    """A run folder's metrics.json as far as it is readable; an evaluation writes it anew."""
    try:
        return read_json(folder / METRICS)
    except UserError:
        return {}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object in a file; raises UserError where there is none."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} holds no JSON object")
    return values


def read_given(words: Sequence[str], package: str) -> dict[str, dict[str, Any]]:
    """Figures of other methods from words `NAME=FILE`, files as `evaluate --videos ... --out FILE` writes them.

    Raises:
        UserError: another form, a file that is missing or holds no such figures.
    """
    found = {}
    for word in words:
        name, equals, path = word.partition("=")
        if not equals or not name or not path:
            raise UserError(f"--method wants NAME=FILE, such as Diff2Lip=diff2lip.json, not {word!r}")
        values = read_json(Path(path))
        if not isinstance(values.get("methods"), dict):
            raise UserError(f"{path} holds no figures of `python -m {package} evaluate --videos`")
        found[name] = values
    return found


def _check_given(table: Table[C], given: Mapping[str, Any]) -> None:
    free = [row.name for row in table.rows if not row.experiment]
    if unknown := [name for name in given if name not in free]:
        raise UserError(f"there is no row for the method {unknown[0]!r}; rows for other methods: {', '.join(free)}")


def _check_same(table: Table[C], folder: Path, cfg: C, *also: str) -> None:
    """Raise UserError where `folder` holds a run configured otherwise, in more than `_IRRELEVANT` and `also`."""
    if not (folder / "config.yaml").is_file():
        return
    if table.stage is not None:
        also = (*also, f"{table.stage.section}.checkpoint")
    before, now = (flatten(to_dict(values)) for values in (load(table.config, folder / "config.yaml"), cfg))
    changed = sorted(
        key
        for key in before.keys() | now.keys()
        if before.get(key) != now.get(key) and not key.startswith((*_IRRELEVANT, *also))
    )
    if changed:
        raise UserError(
            f"{folder} holds a run that differs in {', '.join(changed)}; remove it or give another --runs folder"
        )


def _head(budget: Budget, corpus: Corpus, jobs: Sequence[Job[C]], seeds: Sequence[int]) -> Head:
    options = corpus.root / WORK / "options.json"
    return Head(
        budget=budget.name,
        printed_budget=budget.printed,
        corpus=str(corpus.root),
        synthetic=options.is_file() and '"corpus"' in options.read_text(encoding="utf-8"),
        seeds=tuple(seeds),
        hardware=_hardware(jobs),
        commit=git_version(),
        date=datetime.now(UTC).strftime("%Y-%m-%d"),
    )


def _hardware(jobs: Sequence[Job[C]]) -> str:
    """What the runs so far were trained on, as their folders say."""
    trained = [job.cfg.run.folder for job in jobs if job.cfg.run.folder.is_dir()]
    return "; or ".join(dict.fromkeys(read_run(folder, folder.name).hardware for folder in trained)) or "no run yet"


def parse_seeds(words: str) -> tuple[int, ...]:
    """Seeds from `0 1 2` or `0,1,2`, each once; raises UserError for anything else."""
    parts = words.replace(",", " ").split()
    if not parts or not all(part.isdecimal() and int(part) < 2**32 for part in parts):
        raise UserError(f"seeds are whole numbers from 0, such as '0 1 2', not {words!r}")
    return tuple(dict.fromkeys(int(part) for part in parts))
