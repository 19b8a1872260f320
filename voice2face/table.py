"""The tables of papers 1 and 2, as `common.table` trains and measures them."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from common.checkpoint_file import LAST, load_checkpoint
from common.cli import pick_device
from common.config import config_hash, from_dict, to_dict
from common.data.corpus import Corpus
from common.table import FirstStage, Table, read_metrics
from common.table import make_table as make_any_table
from common.table_rows import Budget, Row
from voice2face import encoder_module
from voice2face.config import Config
from voice2face.data import open_corpus
from voice2face.infer import KIND
from voice2face.report import stamp, write_report
from voice2face.sheet import PORTRAITS
from voice2face.table_figures import write_figures
from voice2face.table_rows import BUDGETS, CLAIMS, METRICS, ROWS
from voice2face.table_text import WORDS
from voice2face.train import ENCODER_SUFFIX, train

EXPERIMENTS = Path(__file__).parents[1] / "experiments" / "voice2face"


def make_table(
    budget: Budget,
    *,
    experiments: Path = EXPERIMENTS,
    rows: Sequence[Row] = ROWS,
    train_run: Callable[[Config], Path] | None = None,
    measure_run: Callable[[Config, Path], dict[str, Any]] | None = None,
    **options: Any,
) -> Path:
    """Write `out/voice2face.md`, `.csv` and the figures of the papers; return the Markdown's path.

    Args:
        budget: see `BUDGETS`.
        experiments: folder of the YAML files.
        rows: of the table.
        train_run, measure_run: for tests; training and `measure`.
        options: as of `common.table.make_table`.

    Raises:
        UserError: no such experiment or corpus, a run folder of another configuration.
    """
    table = replace(TABLE, experiments=experiments, rows=rows)
    table = replace(table, train=train_run or table.train, measure=measure_run or table.measure)
    return make_any_table(table, budget, **options)


def measure(cfg: Config, folder: Path) -> dict[str, Any]:
    """Evaluate a run's last checkpoint into its folder (see `write_report`) and return the metrics.

    An evaluation of the same checkpoint under the same configuration is read instead.
    """
    checkpoint = folder / LAST
    trained = from_dict(Config, load_checkpoint(checkpoint, KIND)["cfg"])
    found = read_metrics(folder)
    if not (folder / PORTRAITS).is_file() or not stamp(trained, checkpoint).items() <= found.items():
        write_report(checkpoint, trained, folder, pick_device("cpu" if cfg.trainer.accelerator == "cpu" else "auto"))
    return read_metrics(folder)


def _train(cfg: Config) -> Path:
    return train(cfg, resume=True)


def _open(cfg: Config) -> Corpus:
    return open_corpus(cfg.data)


def _encoder_key(cfg: Config) -> str:
    """Equal for runs whose stage A is the same training."""
    values = to_dict(cfg)
    parts = {name: values[name] for name in ("data", "feature", "encoder", "trainer")}
    parts["trainer"]["steps"] = None
    return config_hash(parts | {"seed": cfg.run.seed})


TABLE = Table(
    package="voice2face",
    config=Config,
    experiments=EXPERIMENTS,
    rows=ROWS,
    metrics=METRICS,
    claims=CLAIMS,
    budgets=BUDGETS,
    words=WORDS,
    train=_train,
    measure=measure,
    open_corpus=_open,
    figures=write_figures,
    stage=FirstStage("voice encoder", "encoder", encoder_module.KIND, ENCODER_SUFFIX, _encoder_key),
)
