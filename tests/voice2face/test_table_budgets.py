"""Every row of the tables under the tiny budget: it builds, is narrow, and still ablates what its name says."""

from pathlib import Path

import pytest
import torch

from common.table import configure
from voice2face.build import build_discriminator, build_generator, build_voice
from voice2face.config import Config
from voice2face.table_rows import ROWS, TINY

EXPERIMENTS = Path(__file__).parents[2] / "experiments" / "voice2face"


@pytest.mark.parametrize("experiment", dict.fromkeys(row.experiment for row in ROWS))
def test_every_row_builds_under_the_tiny_budget(experiment: str) -> None:
    cfg = configure(Config, TINY, EXPERIMENTS / f"{experiment}.yaml")
    with torch.device("meta"):
        generator, others = build_generator(cfg), [build_discriminator(cfg)]
    others.append(build_voice(cfg))
    assert generator.synthesis.resolution == cfg.data.image_size
    assert all(sum(p.numel() for p in network.parameters()) < 1e7 for network in (generator, *others))
    assert (cfg.trainer.steps, cfg.data.batch_size, cfg.data.image_size) == (2200, 8, 32)


def test_tiny_ablations_still_differ_from_the_full_model_in_what_they_ablate() -> None:
    base = configure(Config, TINY, EXPERIMENTS / "paper1_ema_adain.yaml").generator.kwargs
    ablated = {
        name: configure(Config, TINY, EXPERIMENTS / f"paper1_{name}.yaml").generator.kwargs
        for name in ("no_self_attention", "concat", "one_stage")
    }
    assert {name: {key for key in kwargs if kwargs[key] != base[key]} for name, kwargs in ablated.items()} == {
        "no_self_attention": {"attention"}, "concat": {"injection"}, "one_stage": {"stages"},
    }  # fmt: skip
