"""Both stages resume to the same bits, judge with a frozen expert, and share their work over two processes."""

import csv
import os
import socket
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from common.audio.lipsync_features import speech_features
from common.checkpoints import LAST, load_checkpoint
from common.config import load
from common.data.corpus import Corpus
from common.errors import UserError
from lipsync.build import EXPERT_KIND, KIND, build_expert, load_expert, load_generator, load_speech
from lipsync.config import LipSyncConfig
from lipsync.module import LipSyncTraining, inputs, to_metric
from lipsync.train import train, train_expert
from tests.lipsync.toy_talk import toy_talk

ROOT = Path(__file__).parents[2]
SMOKE = ROOT / "experiments" / "lipsync" / "smoke.yaml"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return toy_talk(tmp_path_factory.mktemp("talk") / "corpus", train=4)


def words(corpus: Corpus, out: Path, *more: str) -> list[str]:
    fixed = [f"data.root={corpus.root}", f"run.out={out}", "wandb.mode=disabled", "trainer.progress=false"]
    return [*fixed, "trainer.threads=1", "feature.name=mel", *more]


def config(corpus: Corpus, out: Path, *more: str) -> LipSyncConfig:
    return load(LipSyncConfig, SMOKE, words(corpus, out, *more))


def take(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """The entries of a sub-network, without its prefix."""
    return {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}


def losses(folder: Path) -> list[dict[str, str]]:
    with open(folder / "metrics.csv", newline="") as file:
        return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, corpus: Corpus) -> Path:
    """The folder of run folders of three steps of each stage, with averaged weights, two feature modes and a gate that
    opens at once."""
    out = tmp_path_factory.mktemp("whole")
    train(config(corpus, out, *STEPS))
    return out / "lipsync"


STEPS = [
    "trainer.steps=3", "trainer.val_every=2", "expert.steps=3", "expert.feature=mel+mfcc", "optim.ema_steps=2",
    "weights.gate=100",
]  # fmt: skip


def test_a_run_in_two_sittings_equals_one(corpus: Corpus, tmp_path: Path, whole: Path) -> None:
    stop = "trainer.kwargs={limit_train_batches: 1}"
    train_expert(config(corpus, tmp_path, *STEPS, stop), corpus)
    train_expert(config(corpus, tmp_path, *STEPS), corpus, resume=True)
    train(config(corpus, tmp_path, *STEPS, stop, f"expert.checkpoint={tmp_path}/lipsync/smoke-expert/{LAST}"))
    train(config(corpus, tmp_path, *STEPS), resume=True)
    for name in ("smoke-expert", "smoke"):
        assert losses(tmp_path / "lipsync" / name) == losses(whole / name)
    kinds = {"smoke-expert": EXPERT_KIND, "smoke": KIND}
    for name, kind in kinds.items():
        ours, theirs = (load_checkpoint(folder / name / LAST, kind) for folder in (tmp_path / "lipsync", whole))
        assert all(torch.equal(ours["state_dict"][key], value) for key, value in theirs["state_dict"].items())


def test_the_log_has_the_houses_keys_and_the_gate_opens_after_the_validation(whole: Path) -> None:
    rows = losses(whole / "smoke")
    train_keys = {"g_loss", "d_loss", "loss_reconstruction", "loss_sync", "loss_adversarial", "sync_weight"}
    assert {f"train/{key}" for key in train_keys} <= set(rows[0])
    val_keys = {"loss_reconstruction", "loss_sync", "ssim", "psnr", "mouth_ssim", "mouth_psnr"}
    assert all(rows[1][f"val/{key}"] for key in val_keys)
    assert [float(row["train/sync_weight"]) for row in rows] == pytest.approx([0, 0, 0.03])
    for row in rows:
        g, recon, sync, adversarial, weight = (
            float(row[f"train/{key}"])
            for key in ("g_loss", "loss_reconstruction", "loss_sync", "loss_adversarial", "sync_weight")
        )
        assert g == pytest.approx((1 - weight - 0.07) * recon + weight * sync + 0.07 * adversarial, rel=1e-5)
    assert list((whole / "smoke" / "samples").glob("*.png"))
    expert = losses(whole / "smoke-expert")
    assert all(expert[1][f"val/{key}"] for key in ("loss", "balanced_accuracy", "offset_accuracy"))
    assert all(float(row["train/loss"]) > 0 for row in expert)


def test_checkpoints_hold_the_gate_the_judge_and_the_features(whole: Path) -> None:
    state = load_checkpoint(whole / "smoke" / LAST, KIND)["state_dict"]
    assert bool(state["gate.opened"])
    before = load_checkpoint(whole / "smoke-expert" / LAST, EXPERT_KIND)["state_dict"]
    judge = take(state, "judge.expert")
    assert judge.keys() == take(before, "expert").keys()
    for name, value in take(before, "expert").items():
        assert torch.equal(judge[name], value), name  # batch norms' statistics among them
    assert not torch.equal(state["judge_speech.mean"], torch.zeros(39))
    for path in (whole / "smoke-expert" / LAST, whole / "smoke" / LAST):
        expert, speech = load_expert(path)
        assert (expert.rows, speech.rows, expert.training) == (119, 119, False)
        assert torch.equal(speech.state_dict()["mean"], before["speech.mean"])
    generator, cfg = load_generator(whole / "smoke" / LAST)
    assert cfg is not None
    assert (generator.rows, generator.size, generator.training, cfg.feature.name) == (80, 32, False, "mel")
    assert load_speech(whole / "smoke" / LAST).rows == 80
    assert load_speech(whole / "smoke-expert" / LAST).rows == 119
    averaged = take(state, "generator_ema")
    assert all(torch.equal(value, averaged[name]) for name, value in generator.state_dict().items())
    with pytest.raises(UserError, match="no generator"):
        load_generator(whole / "smoke-expert" / LAST)


def module(corpus: Corpus, out: Path, *more: str) -> LipSyncTraining:
    cfg = config(corpus, out, *more)
    speech = speech_features("mel")
    return LipSyncTraining(cfg, build_expert(cfg), speech, speech)


def batch_of(count: int = 2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    faces = torch.randint(0, 256, (2, count, 3, 5, 32, 32), dtype=torch.uint8, generator=generator)
    return {
        "target": faces[0],
        "reference": faces[1],
        "audio": torch.randn(count, 5, 1, 80, 16, generator=generator),
        "sync_audio": torch.randn(count, 1, 80, 16, generator=generator),
    }


def test_the_generator_sees_the_upper_half_and_the_reference(corpus: Corpus, tmp_path: Path) -> None:
    batch = {name: value.float() / 255 for name, value in batch_of().items()}
    faces = inputs(batch)
    assert (faces[:, :3, :, 16:] == 0).all()
    assert torch.equal(faces[:, :3, :, :16], batch["target"][:, :, :, :16])
    assert torch.equal(faces[:, 3:], batch["reference"])
    frames = to_metric(batch["target"])
    assert torch.equal(frames[6], (batch["target"][1, :, 1].flip(0) * 2 - 1))


def test_the_judge_stays_frozen_and_passes_gradients_to_the_faces(corpus: Corpus, tmp_path: Path) -> None:
    found = module(corpus, tmp_path)
    before = deepcopy(found.judge.state_dict())
    found.train()
    assert not found.judge.expert.training
    drawn = torch.rand(2, 3, 5, 32, 32, requires_grad=True)
    found.sync_loss(drawn, batch_of()["sync_audio"]).backward()
    assert drawn.grad is not None
    assert drawn.grad[:, :, :, 16:].abs().sum() > 0
    assert (drawn.grad[:, :, :, :16] == 0).all()
    assert all(torch.equal(value, before[name]) for name, value in found.judge.state_dict().items())
    assert all(parameter.grad is None for parameter in found.judge.parameters())


def test_losses_are_the_papers(corpus: Corpus, tmp_path: Path) -> None:
    batch = {name: value.float() / 255 if "audio" not in name else value for name, value in batch_of().items()}
    found = module(corpus, tmp_path, "weights.mouth=0", "weights.vary_judged=false").eval().requires_grad_(False)
    drawn = torch.rand(2, 3, 5, 32, 32)
    terms = found.generator_losses(drawn, batch)
    assert float(terms["reconstruction"]) == pytest.approx(float(F.l1_loss(drawn, batch["target"])))
    sound, lips = found.judge(batch["sync_audio"], drawn)
    expected = -F.cosine_similarity(sound, lips).clamp(1e-7, 1 - 1e-7).log().mean()
    assert float(terms["sync"]) == pytest.approx(float(expected), rel=1e-5)
    assert found.discriminator is not None
    logits = found.discriminator(drawn)
    assert float(terms["adversarial"]) == pytest.approx(float(F.softplus(-logits).mean()), rel=1e-5)
    found.gate.update(0.1)
    assert float(found.weighted(terms)) == pytest.approx(
        float(0.9 * terms["reconstruction"] + 0.03 * terms["sync"] + 0.07 * terms["adversarial"]), rel=1e-5
    )


def test_voices_vary_alike_for_generator_and_judge(corpus: Corpus, tmp_path: Path) -> None:
    found = module(corpus, tmp_path, "data.vary.gain=6", "data.vary.timbre=3")
    found.trainer = SimpleNamespace(global_rank=0, world_size=1)
    batch = batch_of() | {"audio": torch.zeros(2, 5, 1, 80, 16), "sync_audio": torch.zeros(2, 1, 80, 16)}
    varied = found.varied(batch)
    assert torch.equal(varied["audio"][:, 0], varied["sync_audio"])
    assert varied["audio"].abs().max() > 0.05
    assert varied["target"].max() <= 1


def test_without_an_adversarial_weight_there_is_no_discriminator(corpus: Corpus, tmp_path: Path, whole: Path) -> None:
    folder = train(
        config(corpus, tmp_path, f"expert.checkpoint={whole / 'smoke-expert' / LAST}", "weights.adversarial=0")
    )
    assert not any(name.startswith("discriminator") for name in load_checkpoint(folder / LAST, KIND)["state_dict"])
    assert "train/d_loss" not in losses(folder)[0]
    assert not (tmp_path / "lipsync" / "smoke-expert").exists()
    with pytest.raises(UserError, match=r"judges faces of 32 px, but data\.size is 64"):
        train(config(corpus, tmp_path, f"expert.checkpoint={whole / 'smoke-expert' / LAST}", "data.size=64"))


def test_the_gate_opens_at_the_latest_after_its_share_of_the_steps(corpus: Corpus, tmp_path: Path, whole: Path) -> None:
    expert = f"expert.checkpoint={whole / 'smoke-expert' / LAST}"
    steps = ["trainer.steps=4", "trainer.val_every=0", "weights.gate=0", "weights.gate_latest=0.5"]
    folder = train(config(corpus, tmp_path, expert, *steps))
    assert [float(row["train/sync_weight"]) for row in losses(folder)] == pytest.approx([0, 0, 0.03, 0.03])
    with pytest.raises(UserError, match="gate_latest"):
        config(corpus, tmp_path, "weights.gate_latest=2")


def test_two_processes_equal_one_on_the_same_global_batch(corpus: Corpus, tmp_path: Path) -> None:
    steps = [
        "trainer.steps=3", "trainer.val_every=3", "expert.steps=3", "expert.contrast=0.5", "data.vary.gain=0",
        "optim.g_lr=1e-4", "expert.lr=1e-4",
    ]  # fmt: skip
    train(config(corpus, tmp_path / "one", *steps))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={port}", "-m"]
    command += ["lipsync", "train", str(SMOKE), *words(corpus, tmp_path / "two", *steps)]
    done = subprocess.run(
        [*command, "trainer.devices=2", "trainer.strategy=ddp"],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("smoke-expert", "smoke"):
        ours, theirs = (losses(tmp_path / count / "lipsync" / name) for count in ("two", "one"))
        assert len(ours) == len(theirs)
        for our, their in zip(ours, theirs, strict=True):
            for key, value in their.items():
                assert bool(our[key]) == bool(value), key
                if value:
                    assert float(our[key]) == pytest.approx(float(value), rel=1e-4, abs=1e-4, nan_ok=True), (name, key)


def test_networks_start_from_files_as_far_as_they_fit(corpus: Corpus, tmp_path: Path, whole: Path) -> None:
    finished, expert = whole / "smoke" / LAST, whole / "smoke-expert" / LAST
    start = [f"{network}.weights={finished}" for network in ("generator", "discriminator")]
    found = module(corpus, tmp_path, *start, f"expert.weights={expert}")
    state = load_checkpoint(finished, KIND)["state_dict"]
    for network, name in (("generator", "generator_ema"), ("discriminator", "discriminator")):
        for key, value in take(state, name).items():
            assert torch.equal(getattr(found, network).state_dict()[key], value)
    more = module(corpus, tmp_path, start[0], "feature.name=mel+mfcc", "generator.attention=spatial")
    assert torch.equal(more.generator.output_block[1].weight, found.generator.output_block[1].weight)
    projected = module(corpus, tmp_path, start[0], "feature.name=mel+mfcc", "feature.projection=true")
    audio, faces = torch.randn(2, 1, 119, 16), torch.rand(2, 6, 32, 32)
    assert torch.equal(
        projected.generator.eval()(audio, faces), found.generator.eval()(audio[:, :, :80], faces)
    )  # [I | 0] hears the mel as before
    for words, message in (
        (["generator.width=0.1"], "does not fit the configured generator: face_encoder_blocks.0.0"),
        ([f"generator.weights={expert}"], "no generator"),
    ):
        with pytest.raises(UserError, match=message):
            module(corpus, tmp_path, start[0], *words)
