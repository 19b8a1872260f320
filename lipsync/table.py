"""Tables 1 and 2 of paper 3, as `common.table` trains and measures them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from common.checkpoint_file import LAST, load_checkpoint
from common.cli import pick_device
from common.clip_scores import paired_difference
from common.config import config_hash, from_dict, to_dict
from common.data.corpus import Corpus
from common.metrics.estimate import Estimate
from common.score_report import EvaluationSettings, load_judge, stamp
from common.table import FirstStage, Table, read_metrics
from common.table import make_table as make_any_table
from common.table_figures import CurveFigure, write_curves, write_strips
from common.table_rows import Budget, Metric, Row
from lipsync.build import EXPERT_KIND, KIND, expert_feature
from lipsync.config import LipSyncConfig
from lipsync.data import open_corpus
from lipsync.evaluation import COLUMNS, DUB
from lipsync.report import FRAMES, write_report
from lipsync.table_rows import BUDGETS, CLAIMS, METRICS, ROWS, TABLE2
from lipsync.table_text import WORDS
from lipsync.train import EXPERT_SUFFIX, train, train_expert

EXPERIMENTS = Path(__file__).parents[1] / "experiments" / "lipsync"
CURVES = (
    CurveFigure("sync loss", TABLE2, "val/loss_sync", "validation's sync loss by the shared expert"),
    CurveFigure("mouth SSIM", TABLE2, "val/mouth_ssim", "validation's SSIM of the mouth"),
)


def make_table(
    budget: Budget,
    *,
    weights: str = "auto",
    experiments: Path = EXPERIMENTS,
    rows: Sequence[Row] = ROWS,
    train_run: Callable[[LipSyncConfig], Path] | None = None,
    train_first: Callable[[LipSyncConfig], Path] | None = None,
    measure_run: Callable[[LipSyncConfig, Path], dict[str, Any]] | None = None,
    **options: Any,
) -> Path:
    """Write `out/lipsync.md`, `.csv` and figures; return the Markdown's path.

    Args:
        budget: see `BUDGETS`.
        weights: SyncNet that measures, see `EvaluationSettings.weights`; trained before the rows where it is needed.
        experiments: folder of the YAML files.
        rows: of the table.
        train_run, train_first, measure_run: for tests; both trainings, and `measure`.
        options: as of `common.table.make_table`.

    Raises:
        UserError: no such experiment or corpus, a run folder of another configuration, no SyncNet.
    """
    stage = replace(STAGE, train=train_first or STAGE.train)
    table = replace(TABLE, experiments=experiments, rows=rows, stage=stage, train=train_run or TABLE.train)
    if measure_run is not None:
        return make_any_table(replace(table, measure=measure_run), budget, **options)
    judged = replace(table, measure=partial(measure, weights=weights), begin=partial(_prepare_judge, weights))
    return make_any_table(judged, budget, **options)


def measure(cfg: LipSyncConfig, folder: Path, *, weights: str = "auto") -> dict[str, Any]:
    """Evaluate a run's last checkpoint into its folder (see `write_report`) and return the metrics.

    An evaluation of the same checkpoint on the same corpus by the same network is read instead.
    """
    checkpoint = folder / LAST
    trained = from_dict(LipSyncConfig, load_checkpoint(checkpoint, KIND)["cfg"])
    corpus, settings = open_corpus(trained.data), EvaluationSettings(weights, trained.evaluation.split)
    device = pick_device("cpu" if cfg.trainer.accelerator == "cpu" else "auto")
    net = load_judge(weights, corpus.root, device)
    known = stamp(checkpoint, corpus, net, settings).items() <= read_metrics(folder).items()
    if not known or not (folder / FRAMES).is_file():
        write_report(checkpoint, corpus, folder, device, settings)
    return read_metrics(folder)


def _prepare_judge(weights: str, corpus: Corpus) -> None:
    load_judge(weights, corpus.root, pick_device("auto"))


def _train(cfg: LipSyncConfig) -> Path:
    return train(cfg, resume=True)


def _train_expert(cfg: LipSyncConfig) -> Path:
    return train_expert(cfg, open_corpus(cfg.data), resume=True)


def _open(cfg: LipSyncConfig) -> Corpus:
    return open_corpus(cfg.data)


def _expert_key(cfg: LipSyncConfig) -> str:
    """Equal for runs whose expert is the same training."""
    values = to_dict(cfg)
    parts = {name: values[name] for name in ("data", "expert", "trainer")}
    parts["trainer"]["steps"] = None
    return config_hash(parts | {"feature": expert_feature(cfg), "seed": cfg.run.seed})


def _difference(
    first: Mapping[str, Any], better: Row, second: Mapping[str, Any], worse: Row, metric: Metric
) -> Estimate | None:
    """Of two rows, clip by clip."""
    ours, theirs = first.get("scores", {}), second.get("scores", {})
    return paired_difference(ours.get(better.part[-1], {}), theirs.get(worse.part[-1], {}), metric.key)


def _figures(folder: Path, runs: Mapping[str, Path], rows: Sequence[Row]) -> list[str]:
    """Curves of the rows, and figure 4: real frames, and what each row draws in their place."""
    title, drawn = "what each row draws in their place", [row for row in rows if row.part[-1] == DUB]
    return [
        *write_curves(folder, CURVES, runs, rows),
        write_strips(folder, "figure 4", title, FRAMES, "real frames", runs, drawn, width=COLUMNS),
    ]


STAGE = FirstStage("sync expert", "expert", EXPERT_KIND, EXPERT_SUFFIX, _expert_key, _train_expert)
TABLE = Table(
    package="lipsync",
    config=LipSyncConfig,
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
    stage=STAGE,
    difference=_difference,
)
