"""The W&B sweep: every combination of its switches is a configuration that builds, and each run has its own folder."""

import itertools
from pathlib import Path

import pytest
import yaml

from common.config import load
from voice2face.build import build_voice
from voice2face.config import Config

ROOT = Path(__file__).parents[2]
SWEEP = yaml.safe_load((ROOT / "experiments" / "sweeps" / "voice2face.yaml").read_text())


def words(values: tuple[object, ...]) -> list[str]:
    """What W&B's `${args_no_hyphens}` makes of one combination, and the words after it."""
    pairs = [f"{key}={value}" for key, value in zip(SWEEP["parameters"], values, strict=True)]
    after = SWEEP["command"][SWEEP["command"].index("${args_no_hyphens}") + 1 :]
    return [*pairs, *after]


def test_every_combination_is_a_run_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = next(word for word in SWEEP["command"] if word.endswith(".yaml"))
    combinations = list(itertools.product(*(parameter["values"] for parameter in SWEEP["parameters"].values())))
    seen = set()
    for number, values in enumerate(combinations):
        monkeypatch.setenv("WANDB_RUN_ID", f"id{number}")
        cfg = load(Config, ROOT / experiment, words(values))
        seen.add((cfg.run.folder, cfg.encoder.kwargs["attention"], cfg.encoder.kwargs["activation"]))
        assert cfg.run.name == f"sweep-id{number}"
    assert len(seen) == len(combinations) == 24


@pytest.mark.parametrize("attention", SWEEP["parameters"]["encoder.kwargs.attention"]["values"])
def test_every_attention_builds(attention: str) -> None:
    quickstart = ROOT / "experiments" / "voice2face" / "quickstart.yaml"
    cfg = load(Config, quickstart, [f"encoder.kwargs.attention={attention}"])
    assert sum(p.numel() for p in build_voice(cfg).parameters()) > 0


def test_the_command_is_the_projects_own() -> None:
    assert SWEEP["command"][:5] == ["${env}", ".venv/bin/python", "-m", "${program}", "train"]
    assert SWEEP["program"] == "voice2face"
    assert SWEEP["metric"]["name"] == "val/fid"
