"""The lip-sync network that draws semantic images for table 3's rows: trained once, on the table's own corpus."""

import json
from dataclasses import dataclass
from pathlib import Path

from common.config import ExperimentConfig, config_hash, to_dict
from common.table import FirstStage
from dubbing3d.config import DubbingConfig
from dubbing3d.data import open_corpus
from dubbing3d.semantic import teacher_config, teacher_kind, train_teacher

_STEPS = {"tiny": ("trainer.steps=200",)}


@dataclass(frozen=True)
class Teacher(FirstStage[DubbingConfig]):
    """A Wav2Lip of `lipsync`, by the recipe of that package's own table at the same budget."""

    budget: str = "tiny"

    def config(self, cfg: DubbingConfig, root: str = "") -> ExperimentConfig:
        """The configuration of its training on the corpus at `root`, with the row's seed and folder."""
        words = [*_STEPS.get(self.budget, ()), f"run.name={cfg.run.name}{self.suffix}", f"run.out={cfg.run.out}"]
        words += [f"run.seed={cfg.run.seed}", f"data.root={json.dumps(root)}", "trainer.progress=false"]
        return teacher_config(self.budget, words)

    def steps(self, cfg: DubbingConfig) -> int:
        """0 where the row sees no semantic images, or was given what draws them."""
        needed = cfg.expression.train and cfg.expression.semantic
        if not needed or cfg.semantic.checkpoint or cfg.semantic.folder:
            return 0
        return int(self.config(cfg).trainer.steps)

    def folder(self, cfg: DubbingConfig) -> Path:
        """Its run folder, among those of `lipsync`."""
        return cfg.run.out / "lipsync" / f"{cfg.run.name}{self.suffix}"


def teacher(budget: str) -> Teacher:
    """The stage for a budget's name."""
    return Teacher("lip-sync teacher", "semantic", teacher_kind(), "-teacher", _key, _Training(budget), budget)


@dataclass(frozen=True)
class _Training:
    """Trains the teacher that a row asks for; small enough to be sent to other processes."""

    budget: str

    def __call__(self, cfg: DubbingConfig) -> Path:
        return train_teacher(teacher(self.budget).config(cfg, str(open_corpus(cfg.data).root)))


def _key(cfg: DubbingConfig) -> str:
    """Equal for rows whose teacher is the same training."""
    return config_hash({"data": to_dict(cfg)["data"], "seed": cfg.run.seed})
