"""The interval of FID against simulation, the leakage guard, the line about the machine."""

from pathlib import Path

import numpy as np
import pytest
import torch

from common.errors import UserError
from common.hardware import _processor, describe_hardware
from common.metrics.fid import image_quality
from common.metrics.jackknife import fid_estimate
from common.metrics.leakage import refuse_leakage

PEOPLE, EACH, WIDTH = 30, 4, 3


def draw(rng: np.random.Generator, shift: float) -> torch.Tensor:
    """Features of PEOPLE clusters of EACH images, whose spread is mostly between people."""
    people = rng.normal(size=(PEOPLE, 1, WIDTH)) + shift
    return torch.from_numpy((people + 0.3 * rng.normal(size=(PEOPLE, EACH, WIDTH))).reshape(-1, WIDTH))


def test_the_interval_has_the_width_of_repeated_experiments() -> None:
    ids = np.repeat(np.arange(PEOPLE), EACH)
    found = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        found.append(fid_estimate(draw(rng, 0.0), ids, draw(rng, 2.0), ids, groups=15))
    spread = np.std([estimate.value for estimate in found])
    half = np.mean([(estimate.high - estimate.low) / 2 for estimate in found])
    assert 0.75 < half / (2.14 * spread) < 1.35  # Student's t with 14 degrees of freedom


def test_the_value_is_fid_and_the_result_repeats() -> None:
    rng = np.random.default_rng(0)
    real, fake = draw(rng, 0.0), draw(rng, 1.0)
    ids = [f"person{i // EACH}" for i in range(PEOPLE * EACH)]
    first = fid_estimate(real, ids, fake, ids)
    assert first == fid_estimate(real, ids, fake, ids)
    assert first.value == pytest.approx(image_quality(real, fake, "toy").fid, rel=1e-9)
    assert first.low is not None
    assert 0 <= first.low < first.value < first.high
    assert first.n == PEOPLE * EACH
    assert fid_estimate(real, ids, real, ids).low == 0


def test_too_little_data_gives_the_reason() -> None:
    rows = torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(0))
    assert fid_estimate(rows, [0, 0, 1, 1], rows, [0, 0, 1, 1]).reason == "no interval below 3 identities"
    assert fid_estimate(rows[:1], [0], rows, [0, 0, 1, 2]).value is None
    assert fid_estimate(rows, [0, 0, 1, 2], rows * torch.nan, [0, 0, 1, 2]).value is None
    assert fid_estimate(rows[:3], [0, 0, 1], rows[:3], [2, 2, 1]).value is not None
    with pytest.raises(ValueError, match="identities of shape"):
        fid_estimate(rows, [0], rows, [0, 0, 1, 2])


def test_a_judge_from_the_training_loss_is_refused_unless_told() -> None:
    assert refuse_leakage("dlib", ["face_tower"]) == ""
    assert refuse_leakage("dlib", []) == ""
    with pytest.raises(UserError, match="dlib is part of the training loss"):
        refuse_leakage("dlib", ["vgg19", "DLIB:150px"])
    assert "flatter" in refuse_leakage("dlib", ["dlib"], allow=True)


def test_hardware_is_one_line_on_any_system(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\n")
    assert _processor(tmp_path / "cpuinfo") == "Some CPU @ 2 GHz"
    assert _processor(tmp_path / "absent")
    line = describe_hardware()
    assert torch.__version__ in line
    assert "\n" not in line
