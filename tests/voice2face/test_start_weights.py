"""Other people's weights through the training command, and back out through export."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from common.checkpoints import LAST, load_checkpoint
from common.data.corpus import Corpus
from tests.voice2face.toy_wen import published, save
from voice2face.__main__ import app
from voice2face.build import take
from voice2face.infer import VoiceToFace
from voice2face.module import KIND
from voice2face.networks import DISCRIMINATORS
from voice2face.networks.stylegan2 import IdentityClassifier, StyleGAN2Discriminator, StyleGAN2Generator
from voice2face.weights_io import load_stylegan2, save_safetensors
from voice2face.wen_weights import load_wen_generator, load_wen_voice

ROOT = Path(__file__).parents[2]
STILL = ("optim.g_lr=0", "optim.d_lr=0", "optim.encoder_lr=0", "trainer.steps=1")
SCALE = 64
Train = Callable[..., Path]
Refused = Callable[..., str]


@pytest.fixture
def train(identity_corpus: Corpus, tmp_path: Path) -> Train:
    """Runs `train` of an experiment as typed, for one step and without validation; returns the run folder."""

    def command(experiment: str, *words: str) -> Path:
        path = ROOT / "experiments" / "voice2face" / f"{experiment}.yaml"
        fixed = [
            f"data.root={identity_corpus.root}", f"run.out={tmp_path / 'runs'}", "run.name=toy", "wandb.mode=disabled",
            "trainer.val_every=0", "trainer.log_every=1", "trainer.accelerator=cpu", "trainer.devices=1",
            "trainer.keep_every=0", "data.batch_size=2", "data.workers=0", "data.crop_seconds=[0.5,0.6]",
            "encoder.steps=0",
        ]  # fmt: skip
        with pytest.raises(SystemExit) as ended:
            app(args=["train", str(path), *fixed, *words, "--overwrite"])
        if ended.value.code:
            raise SystemExit(ended.value.code)
        return tmp_path / "runs" / "voice2face" / "toy"

    return command


@pytest.fixture
def refused(train: Train, capsys: pytest.CaptureFixture[str]) -> Refused:
    """The one line in which a training ends that cannot begin."""

    def command(experiment: str, *words: str) -> str:
        with pytest.raises(SystemExit) as ended:
            train(experiment, *words)
        assert ended.value.code == 2
        said = capsys.readouterr().err.strip()
        assert said.startswith("error: ")
        assert "\n" not in said
        return said

    return command


def stored(folder: Path, name: str) -> dict[str, Tensor]:
    return take(load_checkpoint(folder / LAST, KIND)["state_dict"], name)


def assert_equal(state: dict[str, Tensor], network: nn.Module) -> None:
    own = network.state_dict()
    assert state.keys() == own.keys()
    assert all(torch.equal(state[name], value) for name, value in own.items())


def stylegan2_file(path: Path) -> tuple[StyleGAN2Generator, StyleGAN2Discriminator]:
    """A 32 px StyleGAN2 with a 512-d latent, written to `path`."""
    torch.manual_seed(5)
    narrow = {"channel_base": 256, "channel_max": 8}
    generator = StyleGAN2Generator(32, w_dim=16, mapping_layers=2, **narrow)
    generator.mapping.w_avg.normal_()
    discriminator = StyleGAN2Discriminator(32, **narrow)
    save_safetensors(path, generator, discriminator)
    return generator, discriminator


def export(folder: Path, out: Path) -> int:
    with pytest.raises(SystemExit) as ended:
        app(args=["export", "--checkpoint", str(folder / LAST), "--out", str(out)])
    return int(ended.value.code or 0)


def test_a_stylegan2_file_is_where_training_starts_and_export_gives_it_back(train: Train, tmp_path: Path) -> None:
    generator, discriminator = stylegan2_file(tmp_path / "theirs.safetensors")
    folder = train("smoke", f"generator.weights={tmp_path / 'theirs.safetensors'}", *STILL)
    assert_equal(stored(folder, "generator.synthesis"), generator.synthesis)
    assert_equal(stored(folder, "discriminator"), discriminator)
    moved = stored(folder, "generator")
    assert not torch.equal(moved["mapping.w_avg"], generator.mapping.w_avg)  # a running mean, not a weight
    generator.load_state_dict(moved)
    for name in ("ours.safetensors", "ours.pt"):
        assert export(folder, tmp_path / name) == 0
        back = load_stylegan2(tmp_path / name)
        assert back.discriminator is not None
        assert_equal(back.generator.state_dict(), generator)
        assert_equal(back.discriminator.state_dict(), discriminator)
    assert export(folder, tmp_path / "ours.onnx") == 2
    assert not (tmp_path / "ours.onnx").exists()


def test_w_plus_trains_the_head_alone_from_the_loaded_average(train: Train, tmp_path: Path) -> None:
    generator, _ = stylegan2_file(tmp_path / "theirs.safetensors")
    words = ("generator.w_plus=true", "generator.train_synthesis=false", "optim.style_mixing=0", "trainer.steps=2")
    folder = train("smoke", f"generator.weights={tmp_path / 'theirs.safetensors'}", *words)
    assert_equal(stored(folder, "generator.synthesis"), generator.synthesis)
    head = stored(folder, "generator.mapping")
    assert torch.equal(head["w_avg"], generator.mapping.w_avg)
    assert head["delta.weight"].any()
    model = VoiceToFace.load(folder / LAST)
    ws = model.styles(model.embed([torch.randn(16000)])[None])
    assert ws.shape == (1, 8, 16)
    assert not torch.equal(ws[0, 0], ws[0, 7])
    assert export(folder, tmp_path / "ours.pt") == 2


WEN = ("wen_published", "discriminator.kwargs.channel_base=128", "discriminator.kwargs.channel_max=8")


def test_wens_published_files_are_a_model_after_one_still_step(train: Train, tmp_path: Path) -> None:
    torch.manual_seed(1)
    names = {"encoder": "voice_embedding.pth", "generator": "generator.pth"}
    voice = save(published("voice", SCALE // 2), tmp_path / names["encoder"])
    drawn = save(published("generator", SCALE), tmp_path / names["generator"])
    experiment, *narrow = WEN
    folder = train(
        experiment, f"encoder.weights={voice}", f"generator.weights={drawn}", "data.image_size=64", *narrow, *STILL
    )
    assert_equal(stored(folder, "voice.encoder"), load_wen_voice(voice))
    assert_equal(stored(folder, "generator.synthesis"), load_wen_generator(drawn).synthesis)
    head = stored(folder, "classifier")
    assert {name: tuple(value.shape) for name, value in head.items()} == {"weight": (3, 64)}  # Wen's own kind of head
    model = VoiceToFace.load(folder / LAST)
    embedding = model.embed([torch.randn(16000)])
    assert embedding.shape == (64,)
    assert model.generate(embedding, samples=2).shape == (2, 3, 64, 64)
    assert export(folder, tmp_path / "ours.pt") == 2


def test_the_wrong_file_is_named(refused: Refused, tmp_path: Path) -> None:
    torch.manual_seed(1)
    voice = save(published("voice", SCALE // 2), tmp_path / "voice_embedding.pth")
    drawn = save(published("generator", SCALE), tmp_path / "generator.pth")
    stylegan2_file(tmp_path / "theirs.safetensors")
    experiment, *narrow = WEN
    for words, said in (
        ((f"generator.weights={voice}",), "voice_embedding.pth does not hold the generator of Wen et al.: it is Wen's"),
        ((f"encoder.weights={drawn}",), "generator.pth does not hold the voice network of Wen et al.: it is Wen's"),
        ((f"generator.weights={drawn}", "data.image_size=32"), "has resolution 64, not 32: set data.image_size"),
        ((f"generator.weights={tmp_path / 'theirs.safetensors'}",), "does not hold the generator of Wen et al."),
    ):
        assert said in refused(experiment, *narrow, *words)
    for words, said in (
        ((f"generator.weights={drawn}",), "is the generator of Wen et al.: it fits generator.name=dcgan"),
        ((f"generator.weights={voice}",), "give it as encoder.weights, with encoder.name=wen"),
        ((f"encoder.weights={voice}",), "are read for encoder.name=wen, not for resnet18"),
        (("encoder.name=wen", f"encoder.weights={voice}"), "hears 1 x 64 bands, and feature.name=mfcc gives 3 x"),
        (("generator.name=stylegan", "generator.weights=x.pt"), "not for stylegan; leave it out"),
        ((f"generator.weights={tmp_path / 'absent.pt'}",), "cannot read"),
    ):
        assert said in refused("smoke", *words)


def test_every_discriminator_makes_its_own_identity_head() -> None:
    heads = {}
    for name, kind in DISCRIMINATORS.items():
        judge = kind(resolution=32, channel_base=256, channel_max=8)
        heads[name] = judge.identity_head(5)
        assert heads[name](torch.randn(2, judge.num_features)).shape == (2, 5)
    assert isinstance(heads.pop("dcgan"), nn.Linear)
    assert all(isinstance(head, IdentityClassifier) for head in heads.values())
