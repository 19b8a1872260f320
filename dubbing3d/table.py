"""Tables 3 to 7 of paper 4, as `common.table` trains and measures them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from common.checkpoint_file import LAST
from common.cli import pick_device
from common.clip_scores import paired_difference
from common.data.corpus import Corpus
from common.metrics.estimate import Estimate
from common.score_report import load_judge, stamp
from common.table import Table, configure, read_metrics
from common.table import make_table as make_any_table
from common.table_figures import CurveFigure, write_curves, write_strips
from common.table_rows import Budget, Metric, Row
from dubbing3d.complexity import complexity
from dubbing3d.config import DubbingConfig
from dubbing3d.data import open_corpus
from dubbing3d.expression_evaluation import COLUMNS
from dubbing3d.pose_plot import NAME as POSE
from dubbing3d.report import STRIP, DubbingSettings, config_of, write_report
from dubbing3d.table_rows import BUDGETS, CLAIMS, METRICS, ROWS, TABLE3, TABLE4
from dubbing3d.table_text import WORDS
from dubbing3d.teacher import teacher
from dubbing3d.train import EXPRESSION_SUFFIX, prepare_judges, train

EXPERIMENTS = Path(__file__).parents[1] / "experiments" / "dubbing3d"
CURVES = (
    CurveFigure("AED", TABLE3, "val/aed", "validation's AED"),
    CurveFigure("mouth SSIM", TABLE4, "val/mouth_ssim", "validation's SSIM of the mouth"),
)
JUDGED = "table4_full"
"""The experiment whose judges all renderers share."""


def make_table(
    budget: Budget,
    *,
    weights: str = "auto",
    semantic: str = "",
    experiments: Path = EXPERIMENTS,
    rows: Sequence[Row] = ROWS,
    given: Mapping[str, Mapping[str, Any]] | None = None,
    train_run: Callable[[DubbingConfig], Path] | None = None,
    train_teacher: Callable[[DubbingConfig], Path] | None = None,
    measure_run: Callable[[DubbingConfig, Path], dict[str, Any]] | None = None,
    **options: Any,
) -> Path:
    """Write `out/dubbing3d.md`, `.csv` and figures; return the Markdown's path.

    What rows share is trained once and first: SyncNet, the renderers' judges, and the lip-sync network that draws
    semantic images.

    Args:
        budget: see `BUDGETS`.
        weights: SyncNet that measures, see `common.score_report.EvaluationSettings`.
        semantic: a lipsync checkpoint that draws the semantic images; one is trained on the corpus unless given.
        experiments: folder of the YAML files.
        rows: of the table.
        given: figures of other methods, by the names of their rows.
        train_run, train_teacher, measure_run: for tests; the trainings, and `measure`.
        options: as of `common.table.make_table`.

    Raises:
        UserError: no such experiment or corpus, a run folder of another configuration, no SyncNet.
    """
    if semantic:
        budget = replace(budget, words=(*budget.words, f"semantic.checkpoint={semantic}"))
    counted = {row.name for row in rows}
    found = {name: values for name, values in complexity().items() if name in counted} | dict(given or {})
    stage = teacher(budget.name if budget.name in BUDGETS else "tiny")
    stage = stage if train_teacher is None else replace(stage, train=train_teacher)
    table = replace(TABLE, experiments=experiments, rows=rows, stage=stage, train=train_run or TABLE.train)
    if measure_run is not None:
        return make_any_table(replace(table, measure=measure_run), budget, given=found, **options)
    runs = options.get("runs") or Path("runs") / "dubbing3d" / f"table-{budget.name}"
    begin = partial(_begin, weights, experiments, budget, runs, any(row.experiment == JUDGED for row in rows))
    judged = replace(table, measure=partial(measure, weights=weights), begin=begin)
    return make_any_table(judged, budget, given=found, **options)


def measure(cfg: DubbingConfig, folder: Path, *, weights: str = "auto") -> dict[str, Any]:
    """Evaluate a run's last checkpoint into its folder (see `write_report`) and return the metrics.

    An evaluation of the same checkpoint on the same corpus by the same network is read instead.
    """
    checkpoint = folder / LAST
    trained = config_of(checkpoint)
    corpus = open_corpus(trained.data)
    settings = DubbingSettings(weights, trained.evaluation.split, frames=trained.evaluation.frames)
    device = pick_device("cpu" if cfg.trainer.accelerator == "cpu" else "auto")
    net = None if cfg.renderer.train else load_judge(weights, corpus.root, device)
    known = stamp(checkpoint, corpus, net, settings) | {"frames_a_clip": settings.frames}
    if not known.items() <= read_metrics(folder).items() or not (folder / STRIP).is_file():
        write_report(checkpoint, corpus, folder, device, settings)
    return read_metrics(folder)


def _begin(weights: str, experiments: Path, budget: Budget, runs: Path, renderers: bool, corpus: Corpus) -> None:
    """Train the judges that rows share before several rows want them at a time."""
    load_judge(weights, corpus.root, pick_device("auto"))
    if renderers:
        words = [f"run.out={runs}", f"data.root={corpus.root}"]
        cfg = configure(DubbingConfig, budget, experiments / f"{JUDGED}.yaml", words)
        prepare_judges(cfg, corpus)


def _train(cfg: DubbingConfig) -> Path:
    return train(cfg, resume=True)


def _open(cfg: DubbingConfig) -> Corpus:
    return open_corpus(cfg.data)


def _difference(
    first: Mapping[str, Any], better: Row, second: Mapping[str, Any], worse: Row, metric: Metric
) -> Estimate | None:
    """Of two rows, clip by clip."""
    ours, theirs = first.get("scores", {}), second.get("scores", {})
    if not (better.part and worse.part):
        return None
    return paired_difference(ours.get(better.part[-1], {}), theirs.get(worse.part[-1], {}), metric.path[-1])


def _figures(folder: Path, runs: Mapping[str, Path], rows: Sequence[Row]) -> list[str]:
    """Curves of the rows, figure 6: real crops, and what each row draws in their place, and figure 7."""
    first = {row.experiment for row in rows if row.table == TABLE3}
    places = {
        name: path.with_name(path.name + EXPRESSION_SUFFIX) if name in first else path for name, path in runs.items()
    }
    drawn = [row for row in rows if row.table not in (TABLE3,)]
    title = "what each renderer draws in their place"
    return [
        *write_curves(folder, CURVES, places, rows),
        write_strips(folder, "figure 6", title, STRIP, "real crops", places, drawn, width=COLUMNS),
        *_pose(folder, places),
    ]


def _pose(folder: Path, runs: Mapping[str, Path]) -> list[str]:
    """Copy the full model's figure 7."""
    source = runs.get(JUDGED, Path()) / f"{POSE}.png"
    title = "figure 7 (LMD and SSIM over a clip whose head moves)"
    if JUDGED not in runs or not source.is_file():
        return [f"{title}: the full model was not evaluated"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "figure_07.png").write_bytes(source.read_bytes())
    (folder / "figure_07.csv").write_bytes(source.with_suffix(".csv").read_bytes())
    found = read_metrics(runs[JUDGED]).get("pose", {})
    said = found.get("pearson_lmd_ssim")
    pearson = "none" if said is None else f"{said:.3f}"
    return [
        f"{title}: [figure_07.png]({folder.name}/figure_07.png), Pearson {pearson} (the paper's "
        f"{found.get('paper_pearson')})"
    ]


TABLE = Table(
    package="dubbing3d",
    config=DubbingConfig,
    experiments=EXPERIMENTS,
    rows=ROWS,
    metrics=METRICS,
    claims=CLAIMS,
    budgets=BUDGETS,
    words=WORDS,
    train=_train,
    measure=measure,
    open_corpus=_open,
    figures=_figures,
    difference=_difference,
)
