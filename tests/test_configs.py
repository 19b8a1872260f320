"""Every committed experiment loads, builds its networks and says how it is run."""

from pathlib import Path

import pytest
import torch

from common.config import config_hash, from_dict, load, to_dict
from common.face3d.morphable import load_face_model
from dubbing3d import build as dubbing_build
from dubbing3d.config import DubbingConfig
from lipsync import build as lipsync_build
from lipsync.config import LipSyncConfig
from voice2face.build import build_discriminator, build_face_tower, build_generator, build_voice
from voice2face.config import Config

ROOT = Path(__file__).parent.parent
VOICE2FACE = sorted((ROOT / "experiments" / "voice2face").glob("*.yaml"))
LIPSYNC = sorted((ROOT / "experiments" / "lipsync").glob("*.yaml"))
DUBBING3D = sorted((ROOT / "experiments" / "dubbing3d").glob("*.yaml"))


@pytest.mark.parametrize("path", VOICE2FACE, ids=lambda path: path.stem)
def test_every_experiment_loads_and_builds(path: Path) -> None:
    cfg = load(Config, path)
    assert cfg.run.package == "voice2face"
    assert cfg.run.name == path.stem
    assert config_hash(from_dict(Config, to_dict(cfg))) == config_hash(cfg)
    voice = build_voice(cfg)
    with torch.device("meta"):
        networks = [build_face_tower(cfg), build_generator(cfg), build_discriminator(cfg)]
    assert all(sum(p.numel() for p in network.parameters()) > 0 for network in [voice, *networks])
    assert networks[1].synthesis.resolution == cfg.data.image_size


@pytest.mark.parametrize("path", LIPSYNC, ids=lambda path: path.stem)
def test_every_lipsync_experiment_loads_and_builds(path: Path) -> None:
    cfg = load(LipSyncConfig, path)
    assert cfg.run.package == "lipsync"
    assert cfg.run.name == path.stem
    assert config_hash(from_dict(LipSyncConfig, to_dict(cfg))) == config_hash(cfg)
    with torch.device("meta"):
        expert, generator = lipsync_build.build_expert(cfg), lipsync_build.build_generator(cfg)
        discriminator = lipsync_build.build_discriminator(cfg)
    assert expert.size == generator.size == discriminator.size == cfg.data.size
    assert expert.rows == generator.rows
    official = sum(p.numel() for p in generator.parameters()) == 36_298_035
    assert official == (path.stem == "table2_wav2lip")


@pytest.mark.parametrize("path", DUBBING3D, ids=lambda path: path.stem)
def test_every_dubbing_experiment_loads_and_builds(path: Path) -> None:
    cfg = load(DubbingConfig, path)
    assert cfg.run.package == "dubbing3d"
    assert cfg.run.name == path.stem
    assert config_hash(from_dict(DubbingConfig, to_dict(cfg))) == config_hash(cfg)
    expressions = load_face_model("builtin").sizes[1]
    with torch.device("meta"):
        expression, renderer = dubbing_build.build_expression(cfg, expressions), dubbing_build.build_renderer(cfg)
        critic = dubbing_build.build_critic(cfg)
    assert expression.expressions == expressions
    assert renderer.image_size == cfg.renderer.size
    assert sum(p.numel() for p in critic.parameters()) > 0
    assert cfg.expression.train == (
        path.stem in {"quickstart", "smoke"} or "expression" in path.stem or "table3" in path.stem
    )


@pytest.mark.parametrize("path", VOICE2FACE + LIPSYNC + DUBBING3D, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_experiment_states_command_time_and_metric(path: Path) -> None:
    head = path.read_text().split("\n")[:4]
    assert all(line.startswith("# ") for line in head)
    assert [line.split(":")[0] for line in head[1:]] == ["# command", "# time", "# metric"]
    assert path.name in head[1] or "make" in head[1]


def flat(schema: type, path: str) -> dict[str, object]:
    """The values of an experiment by dotted keys."""
    cfg = to_dict(load(schema, ROOT / "experiments" / path))
    return {f"{section}.{key}": value for section, values in cfg.items() for key, value in values.items()}


def test_table_rows_differ_from_the_reference_only_in_what_they_ablate() -> None:
    base = flat(Config, "voice2face/base_se_stylegan2.yaml")
    for row, changed in {"table3_no_se": "attention", "table3_relu": "activation"}.items():
        other = flat(Config, f"voice2face/{row}.yaml")
        assert {key for key in base if base[key] != other[key]} == {"run.name", "encoder.kwargs"}
        before, after = base["encoder.kwargs"], other["encoder.kwargs"]
        assert {key for key in before if before[key] != after[key]} == {changed}


def test_lipsync_rows_are_the_papers_features_and_attention() -> None:
    rows = {
        "wav2lip": ("mel", "none"),
        "mfcc": ("mfcc", "none"),
        "m": ("mel+mfcc", "none"),
        "cat": ("mel", "channel"),
        "sat": ("mel", "spatial"),
        "csa": ("mel", "both"),
        "full": ("mel+mfcc", "both"),
    }
    base = flat(LipSyncConfig, "lipsync/base_m_csawav2lip.yaml")
    for row, (feature, attention) in rows.items():
        other = flat(LipSyncConfig, f"lipsync/table2_{row}.yaml")
        assert (other["feature.name"], other["generator.attention"]) == (feature, attention)
        changed = {key for key in base if base[key] != other[key]}
        assert changed <= {"run.name", "feature.name", "generator.attention"}


def test_dubbing_rows_differ_from_the_reference_only_in_what_they_ablate() -> None:
    full = ["low", "mid", "high"]
    expression = {
        "base": {"expression.semantic": False, "expression.attention": False, "expression.shape": 0.0},
        "no_semantic": {"expression.semantic": False},
        "no_attention": {"expression.attention": False},
        "no_shape": {"expression.shape": 0.0},
        "full": {},
    }
    renderer = {
        "table4_base": {"renderer.warp": False, "renderer.enhance": False, "renderer.align_steps": 0},
        "table4_no_enhancement": {"renderer.enhance": False},
        "table4_no_cwl": {"weights.correspondence": 0.0},
        "table4_no_msaf": {"renderer.msaf": False},
        "table4_one_stage": {"renderer.align_steps": 0, "renderer.early_steps": 0},
        "table4_full": {},
        "table5_zero": {"renderer.scale": "zero"},
        "table5_one": {"renderer.scale": "one"},
        "table5_learnable": {},
        "table6_high": {"renderer.scales": ["high"]},
        "table6_low": {"renderer.scales": ["low"]},
        "table6_all": {},
    }
    rows = {f"table3_{name}": ("base_expression", changed) for name, changed in expression.items()}
    rows |= {name: ("base_renderer", changed) for name, changed in renderer.items()}
    assert set(rows) == {path.stem for path in DUBBING3D if path.stem.startswith("table")}
    for row, (base, changed) in rows.items():
        before, after = (flat(DubbingConfig, f"dubbing3d/{name}.yaml") for name in (base, row))
        different = {key: value for key, value in after.items() if before[key] != value}
        assert different == changed | {"run.name": row}
    assert flat(DubbingConfig, "dubbing3d/base_renderer.yaml")["renderer.scales"] == full
