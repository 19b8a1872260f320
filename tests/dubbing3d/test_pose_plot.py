"""Figure 7: the correlation, the clip that moves most, and the files."""

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.stats import pearsonr

from common.errors import UserError
from dubbing3d.evaluation import FrameRow
from dubbing3d.pose_plot import most_moving, pearson, write_pose_plot


def rows(clip: str, turn: float, count: int = 30, seed: int = 0) -> list[FrameRow]:
    """A clip whose head turns by up to `turn` degrees, and whose SSIM falls with LMD."""
    rng = np.random.default_rng(seed)
    lmd = rng.uniform(1, 3, count)
    return [
        FrameRow(
            clip,
            count - 1 - frame,  # in any order
            {
                "lmd": lmd[frame],
                "ssim": 0.99 - 0.01 * lmd[frame] + 0.002 * rng.standard_normal(),
                "motion": 2 * lmd[frame] + rng.standard_normal(),
                "pitch": 0.0,
                "yaw": turn * frame / count,
                "roll": 0.0,
            },
        )
        for frame in range(count)
    ]


def test_the_clip_whose_head_turns_most_is_shown(tmp_path: Path) -> None:
    both = rows("still", 1.0) + rows("turning", 20.0, seed=1)
    assert most_moving(both) == "turning"
    found = write_pose_plot(tmp_path, both)
    shown = [row.figures for row in both if row.clip == "turning"]
    for name in ("lmd", "motion"):
        expected = pearsonr([row[name] for row in shown], [row["ssim"] for row in shown]).statistic
        assert found[f"pearson_{name}_ssim"] == pytest.approx(expected)
    assert found["clip"] == "turning"
    assert found["lowest_ssim"] == min(row["ssim"] for row in shown)
    with Image.open(tmp_path / "pose.png") as picture:
        assert np.asarray(picture.convert("L")).std() > 10
    with open(tmp_path / "pose.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [int(row["frame"]) for row in table] == list(range(30))
    assert {row["clip"] for row in table} == {"turning"}
    assert float(table[0]["ssim"]) == pytest.approx(shown[-1]["ssim"], rel=1e-5)


def test_a_clip_can_be_named(tmp_path: Path) -> None:
    assert write_pose_plot(tmp_path, rows("still", 1.0) + rows("turning", 20.0), "still")["clip"] == "still"
    with pytest.raises(UserError, match="no frame of the clip gone was drawn"):
        write_pose_plot(tmp_path, rows("still", 1.0), "gone")
    with pytest.raises(UserError, match="no frame was drawn"):
        most_moving([])


def test_there_is_no_correlation_of_what_never_changes_or_is_not_known() -> None:
    changing = np.array([1.0, 2.0, 4.0, np.nan])
    assert pearson(changing, np.ones(4)) is None
    assert pearson(changing, np.array([1.0, np.nan, 2.0, 3.0])) is None
    assert pearson(changing, np.array([2.0, 1.0, -1.0, 5.0])) == pytest.approx(-1)
