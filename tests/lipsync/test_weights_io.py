"""Wav2Lip's files in every format they come in, and our own exports."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from common.checkpoint_file import SCHEMA
from common.errors import UserError
from lipsync.__main__ import app
from lipsync.networks import QualityDiscriminator, SyncExpert, Wav2Lip
from lipsync.weights_io import Weights, build, export_onnx, load_weights, save_safetensors
from tests.lipsync import upstream
from tests.lipsync.legacy_files import STATES, WIDTH, safetensors_header, write_legacy, write_torchscript


def same(weights: Weights, state: dict[str, torch.Tensor]) -> bool:
    return weights.state.keys() == state.keys() and all(torch.equal(weights.state[k], state[k]) for k in state)


@pytest.mark.parametrize("kind", STATES)
def test_legacy_dictionaries_give_their_network(tmp_path: Path, kind: str) -> None:
    state = STATES[kind]
    path = tmp_path / "any name.bin"
    for prefix in ("", "module."):
        for zipped in (True, False):
            weights = load_weights(write_legacy(path, state, prefix=prefix, zipped=zipped))
            assert weights.kind == kind
            assert same(weights, state)
    torch.save(state, path)
    assert same(load_weights(path, weights.kind), state)
    save_file(state, path)
    assert same(load_weights(path), state)
    network = build(weights)
    assert not network.training
    assert weights.config["width"] == WIDTH
    assert weights.config["size"] == 96


def test_only_a_leading_module_is_taken_off(tmp_path: Path) -> None:
    state = {name.replace("audio_encoder.0.", "audio_encoder.module.0."): v for name, v in STATES["generator"].items()}
    with pytest.raises(UserError, match=r"missing audio_encoder.0.conv_block.* unexpected audio_encoder.module.0"):
        load_weights(write_legacy(tmp_path / "w.pth", state, prefix="module."))


@pytest.mark.parametrize("kind", STATES)
def test_torchscript_gives_the_tensors_that_torch_itself_finds(tmp_path: Path, kind: str) -> None:
    path = write_torchscript(tmp_path / "Wav2Lip-SD-GAN.pt", STATES[kind])
    weights = load_weights(path)
    assert weights.kind == kind
    theirs = torch.jit.load(path).state_dict()
    assert theirs.keys() == weights.state.keys()
    assert all(torch.equal(theirs[name], weights.state[name]) for name in theirs)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_traced_network_is_read(tmp_path: Path) -> None:
    network = Wav2Lip(width=WIDTH, size=32).eval()
    audio, faces = torch.rand(1, 1, 80, 16), torch.rand(1, 6, 32, 32)
    path = tmp_path / "traced.pt"
    torch.jit.trace(network, (audio, faces), check_trace=False).save(path)
    loaded = build(load_weights(path, "generator"))
    torch.testing.assert_close(loaded(audio, faces), network(audio, faces), rtol=0, atol=0)


def test_loaded_networks_compute_what_the_published_ones_do(tmp_path: Path) -> None:
    torch.manual_seed(1)
    audio, faces = torch.rand(2, 1, 80, 16), torch.rand(2, 6, 96, 96)
    path = tmp_path / "w.pth"
    generator = build(load_weights(write_legacy(path, STATES["generator"], prefix="module.")))
    torch.testing.assert_close(generator(audio, faces), upstream.generator(STATES["generator"], audio, faces))
    expert = build(load_weights(write_legacy(path, STATES["expert"])))
    frames = torch.rand(2, 15, 48, 96)
    torch.testing.assert_close(expert(audio, frames), upstream.expert(STATES["expert"], audio, frames))
    judge = build(load_weights(write_legacy(path, STATES["discriminator"])))
    wanted = upstream.quality(STATES["discriminator"], faces[:, :3, 48:])
    torch.testing.assert_close(judge(faces[:, :3]), wanted)


def test_counters_that_old_files_lack_are_0_and_halves_become_floats(tmp_path: Path) -> None:
    state = {
        name: value.half() if value.is_floating_point() else value
        for name, value in STATES["expert"].items()
        if not name.endswith("num_batches_tracked")
    }
    weights = load_weights(write_legacy(tmp_path / "e.pth", state))
    assert weights.state.keys() == STATES["expert"].keys()
    assert weights.state["audio_encoder.0.conv_block.1.num_batches_tracked"] == 0
    assert weights.state["audio_encoder.0.conv_block.0.weight"].dtype == torch.float32


VARIANTS = [
    {"rows": 119, "attention": "both", "residual": "none", "reduction": 4},
    {"rows": 39, "attention": "channel", "residual": "add", "size": 64},
    {"rows": 119, "projection": True, "attention": "spatial", "width": 0.07},
    {"size": 128},
]


@pytest.mark.parametrize("given", VARIANTS)
def test_safetensors_keep_what_shapes_do_not_tell(tmp_path: Path, given: dict) -> None:
    config = {"width": WIDTH} | given
    network = Wav2Lip(**config)
    speech = {"mean": torch.rand(39), "deviation": torch.rand(39)}
    path = tmp_path / "w.safetensors"
    save_safetensors(path, Weights("generator", network.state_dict(), config, speech))
    loaded = load_weights(path, "generator")
    assert same(loaded, network.state_dict())
    assert config.items() <= loaded.config.items()
    assert loaded.speech.keys() == speech.keys()
    assert torch.equal(loaded.speech["mean"], speech["mean"])
    assert safetensors_header(path)["__metadata__"]["kind"] == "generator"
    assert same(Weights("generator", build(loaded).state_dict(), {}), network.state_dict())


def stage_b(path: Path, *, ema: bool) -> tuple[dict[str, torch.nn.Module], Path]:
    torch.manual_seed(2)
    shape = {"width": WIDTH, "attention": "both", "residual": "none", "reduction": 4}
    nets: dict[str, torch.nn.Module] = {
        "generator": Wav2Lip(rows=119, **shape),
        "judge.expert": SyncExpert(rows=119, width=0.07),
        "discriminator": QualityDiscriminator(width=WIDTH),
    }
    if ema:
        nets["generator_ema"] = Wav2Lip(rows=119, **shape)
    state = {f"{name}.{key}": value for name, net in nets.items() for key, value in net.state_dict().items()}
    state |= {
        "speech.mean": torch.full((39,), 2.0),
        "judge_speech.mean": torch.full((39,), 3.0),
        "gate.opened": torch.tensor(False),
    }
    cfg = {"generator": shape, "discriminator": {"width": WIDTH, "norm": "instance"}}
    hyper = {"cfg": cfg, "judge": {"feature": "mel+mfcc", "size": 96, "width": 0.07, "projection": False}}
    content = {"kind": "lipsync", "schema": SCHEMA, "step": 5, "hyper_parameters": hyper, "state_dict": state}
    torch.save(content, path)
    return nets, path


@pytest.mark.parametrize("ema", [True, False])
def test_checkpoints_of_our_training_give_each_of_their_networks(tmp_path: Path, ema: bool) -> None:
    nets, path = stage_b(tmp_path / "last.ckpt", ema=ema)
    generator = load_weights(path)
    assert same(generator, nets["generator_ema" if ema else "generator"].state_dict())
    assert generator.config["residual"] == "none"
    assert generator.speech["mean"][0] == 2
    assert generator.cfg["discriminator"]["norm"] == "instance"
    expert = load_weights(path, "expert")
    assert same(expert, nets["judge.expert"].state_dict())
    assert expert.config["width"] == 0.07
    assert expert.speech["mean"][0] == 3
    discriminator = load_weights(path, "discriminator")
    assert discriminator.config["norm"] == "instance"
    assert discriminator.speech == {}
    exported = tmp_path / "g.safetensors"
    save_safetensors(exported, generator)
    again = load_weights(exported)
    assert same(again, generator.state)
    assert again.config == generator.config


def test_a_stage_a_holds_an_expert_only(tmp_path: Path) -> None:
    expert = SyncExpert(width=0.07)
    state = {f"expert.{name}": value for name, value in expert.state_dict().items()}
    content = {
        "kind": "lipsync-expert", "schema": SCHEMA, "step": 5, "state_dict": state,
        "hyper_parameters": {"cfg": {"expert": {"width": 0.07}}},
    }  # fmt: skip
    path = tmp_path / "last.ckpt"
    torch.save(content, path)
    assert same(load_weights(path), expert.state_dict())
    with pytest.raises(UserError, match="but no generator"):
        load_weights(path, "generator")
    torch.save(content | {"schema": SCHEMA + 1}, path)
    with pytest.raises(UserError, match="newer version"):
        load_weights(path)
    torch.save(content | {"kind": "voice2face"}, path)
    with pytest.raises(UserError, match="'voice2face', which holds no lip-sync network"):
        load_weights(path)
    torch.save(content | {"hyper_parameters": {}}, path)
    with pytest.raises(UserError, match="does not say how its expert was configured"):
        load_weights(path)


def test_onnx_draws_what_the_network_draws(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    reference = pytest.importorskip("onnx.reference")
    network = Wav2Lip(width=1 / 64, size=32, rows=119, attention="both", residual="none").eval()
    weights = Weights(
        "generator",
        network.state_dict(),
        {"width": 1 / 64, "size": 32, "rows": 119, "attention": "both", "residual": "none"},
    )
    path = tmp_path / "a b.onnx"
    export_onnx(path, weights)
    model = onnx.load(path)
    onnx.checker.check_model(model)
    audio, faces = torch.rand(3, 1, 119, 16), torch.rand(3, 6, 32, 32)  # exported with 2
    (drawn,) = reference.ReferenceEvaluator(model).run(None, {"audio": audio.numpy(), "faces": faces.numpy()})
    torch.testing.assert_close(torch.from_numpy(drawn), network(audio, faces), rtol=0, atol=1e-5)
    with pytest.raises(UserError, match="only generators"):
        export_onnx(tmp_path / "e.onnx", Weights("expert", {}, {}))
    assert [file.name for file in tmp_path.iterdir()] == ["a b.onnx"]


def test_the_command_imports_and_exports(tmp_path: Path) -> None:
    source, out = write_legacy(tmp_path / "lipsync expert.pth", STATES["expert"]), tmp_path / "out" / "e.safetensors"
    result = CliRunner().invoke(app, ["export", "-c", str(source), "-o", str(out)])
    assert result.exit_code == 0, result.output
    assert f"{out}: a sync expert of 96 px, 80 feature rows" in result.stdout
    assert same(load_weights(out), STATES["expert"])
    for words, message in (
        (["-o", str(tmp_path / "e.onnx")], "only generators are exported to ONNX"),
        (["-o", str(tmp_path / "e.pth")], "the name must end in .safetensors or .onnx"),
        (["-o", str(out), "--network", "teacher"], "unknown network 'teacher'"),
        (["-o", str(out), "--network", "generator"], "holds a sync expert, but a lip-sync generator is needed"),
    ):
        result = CliRunner().invoke(app, ["export", "-c", str(source), *words])
        assert result.exit_code == 2
        assert message in result.output
    assert sorted(file.name for file in tmp_path.iterdir()) == ["lipsync expert.pth", "out"]
