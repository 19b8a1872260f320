"""Where numbers go: always a CSV file that a resumed run continues exactly, and Weights & Biases if wanted."""

import csv
import netrc
import os
import uuid
import warnings
from pathlib import Path
from typing import Any, Literal, cast
from urllib.parse import urlparse

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import Logger

from common.config import ExperimentConfig, WandbConfig, to_dict
from common.errors import UserError
from common.files import atomic_path, write_text


class CsvLogger(Logger):
    """One row per step, one column per key, `step` first; empty where a step has no value.

    Rows reach the file when the next one begins and at `save`, which every checkpoint calls first.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self._columns = ["step"]
        self._row: dict[str, Any] = {}

    @property
    def name(self) -> str:
        """Of the file."""
        return self.path.stem

    @property
    def version(self) -> str:
        """One file per run."""
        return ""

    def resume(self, step: int) -> None:
        """Keep the rows up to `step` of an earlier run (torn last lines are dropped), in whatever state it died."""
        rows: list[dict[str, str]] = []
        if self.path.exists():
            with open(self.path, newline="", encoding="utf-8") as file:
                reader = csv.DictReader(file)
                self._columns = list(reader.fieldnames or ["step"])
                rows = [row for row in reader if (row["step"] or "").isdigit() and int(row["step"]) <= step]
        self._rewrite(rows)

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Add values to the row of `step`."""
        if step != self._row.get("step"):
            self._flush()
            self._row = {"step": step}
        self._row |= {key: value for key, value in metrics.items() if key != "epoch"}

    @rank_zero_only
    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """The run folder's config.yaml holds them."""

    @rank_zero_only
    def save(self) -> None:
        """Bring every row to the disk."""
        self._flush()
        if self.path.exists():
            with open(self.path, "rb") as file:
                os.fsync(file.fileno())

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write the last row."""
        self.save()

    def _flush(self) -> None:
        row, self._row = self._row, {}
        if not row:
            return
        new = sorted(key for key in row if key not in self._columns)
        if new or not self.path.exists():
            old = []
            if self.path.exists():
                with open(self.path, newline="", encoding="utf-8") as file:
                    old = list(csv.DictReader(file))
            self._columns += new
            self._rewrite([*old, row])
            return
        try:
            with open(self.path, "a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, self._columns, lineterminator="\n").writerow(row)
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {error.strerror}; check the disk") from error

    def _rewrite(self, rows: list[dict[str, Any]]) -> None:
        with atomic_path(self.path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self._columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


def wandb_mode(cfg: WandbConfig) -> Literal["online", "offline", "disabled"]:
    """Resolve `auto`: WANDB_MODE if set, online with a stored key, else offline. Asks nobody, opens no connection."""
    if cfg.mode != "auto":
        return cfg.mode
    environment = os.environ.get("WANDB_MODE", "")
    if environment in {"online", "offline", "disabled"}:
        return environment  # type: ignore[return-value]
    return "online" if os.environ.get("WANDB_API_KEY") or _netrc_has_key() else "offline"


def _netrc_has_key() -> bool:
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    files = [os.environ.get("NETRC"), "~/.netrc", "~/_netrc"]
    for path in (Path(name).expanduser() for name in files if name):
        try:
            if netrc.netrc(path).authenticators(host):
                return True
        except (OSError, netrc.NetrcParseError):  # absent or unreadable: not logged in
            continue
    return False


class WandbLogger(Logger):
    """W&B that asks nothing, waits at most 20 s for its server and logs offline if that stays silent.

    Lightning's own logger sets WANDB_MODE for the whole process and ends the run where the server is out of reach.

    Args:
        cfg: the run; group = package, name = run name.
        folder: where the offline files go; also keeps the id, so that a resumed run continues its dashboard.
        job_type: train or evaluate.
        mode: online or offline.
    """

    def __init__(self, cfg: ExperimentConfig, folder: Path, job_type: str, mode: str) -> None:
        super().__init__()
        self._cfg, self._folder, self._job_type, self._mode = cfg, folder, job_type, mode
        self._run: Any = None

    @property
    def name(self) -> str:
        """Of the run."""
        return self._cfg.run.name

    @property
    def version(self) -> str:
        """Lightning asks for it; the id lives in the run folder."""
        return ""

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The W&B run, opened on first use."""
        if self._run is None:
            import wandb

            try:
                self._run = self._open(self._mode)
            except (wandb.errors.Error, OSError, ValueError) as error:
                warnings.warn(f"Weights & Biases is out of reach, so this run logs offline: {error}", stacklevel=2)
                wandb.teardown()  # its service still holds the run that failed
                self._run = self._open("offline")
            self._run.define_metric("step")
            self._run.define_metric("*", step_metric="step")
        return self._run

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Log values over the x axis `step`."""
        self.experiment.log({**metrics, "step": step})

    @rank_zero_only
    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """Given when the run is opened."""

    @rank_zero_only
    def log_image(self, key: str, images: list[Any], step: int | None = None) -> None:
        """Log PIL images or uint8 arrays."""
        import wandb

        self.experiment.log({key: [wandb.Image(image) for image in images], "step": step})

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Close the run, so that the process can end at once."""
        if self._run is not None:
            self._run.finish(exit_code=0 if status == "success" else 1)
            self._run = None

    def _open(self, mode: str) -> Any:
        import wandb

        self._folder.mkdir(parents=True, exist_ok=True)
        identity = self._folder / f"wandb_{self._job_type}.txt"
        if not identity.exists():
            write_text(identity, uuid.uuid4().hex[:8] + "\n")
        return wandb.init(
            project=self._cfg.wandb.project,
            entity=self._cfg.wandb.entity,
            group=self._cfg.run.package,
            name=self._cfg.run.name,
            job_type=self._job_type,
            tags=self._cfg.wandb.tags,
            config=to_dict(self._cfg),
            id=identity.read_text(encoding="utf-8").strip(),
            resume="allow" if mode == "online" else None,
            mode=cast(Literal["online", "offline"], mode),
            dir=self._folder,
            settings=wandb.Settings(silent=True, console="off", init_timeout=20),
        )


def make_loggers(cfg: ExperimentConfig, folder: Path, job_type: str = "train") -> list[Logger]:
    """The CSV logger of a run folder, and W&B (group = package, name = run) unless disabled.

    `job_type` is train or evaluate; each writes its own `metrics.csv` / `metrics_evaluate.csv`.
    """
    loggers: list[Logger] = [CsvLogger(folder / ("metrics.csv" if job_type == "train" else f"metrics_{job_type}.csv"))]
    mode = wandb_mode(cfg.wandb)
    if mode != "disabled":
        loggers.append(WandbLogger(cfg, folder, job_type, mode))
    return loggers
