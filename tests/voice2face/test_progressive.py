"""Paper 1's networks: stages, fade, injection, gradients, growth; and their training in small."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from common.checkpoints import LAST, load_checkpoint
from common.config import load, to_dict
from common.data.corpus import Corpus
from common.errors import UserError
from common.layers import AdaIN
from common.losses import path_lengths, r1_penalty
from voice2face.config import Config
from voice2face.infer import VoiceToFace
from voice2face.module import KIND
from voice2face.networks.growth import Growth, blend, enlarge, growth_at, pyramid, reduce, stage_sizes
from voice2face.networks.progressive import Block, ConcatConv, ProgressiveGenerator
from voice2face.networks.progressive_discriminator import StageDiscriminator, StageDiscriminators
from voice2face.train import train

EXPERIMENTS = Path(__file__).parents[2] / "experiments" / "voice2face"
TINY = {"resolution": 32, "channel_base": 512, "channel_max": 16}


def generator(**kwargs: object) -> ProgressiveGenerator:
    torch.manual_seed(0)
    net = ProgressiveGenerator(**(TINY | {"z_dim": 12} | kwargs))
    for module in net.modules():
        if hasattr(module, "gamma"):
            torch.nn.init.constant_(module.gamma, 0.5)
    return net


def discriminators(**kwargs: object) -> StageDiscriminators:
    torch.manual_seed(1)
    nets = StageDiscriminators(**(TINY | kwargs))
    for module in nets.modules():
        if hasattr(module, "gamma"):
            torch.nn.init.constant_(module.gamma, 0.5)
    return nets


def without_gradient(net: torch.nn.Module) -> list[str]:
    return [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]


def test_adain_equals_a_plain_loop() -> None:
    torch.manual_seed(0)
    layer = AdaIN(3, 5)
    x, w = torch.randn(2, 3, 4, 6) * 3 + 1, torch.randn(2, 5)
    affine = layer.affine.weight.detach().numpy() / np.sqrt(5)
    for n, planes in enumerate(layer(x, w).detach().numpy()):
        style = affine @ w[n].numpy()
        for c, plane in enumerate(planes):
            given = x[n, c].numpy()
            unit = (given - given.mean()) / np.sqrt(given.var() + 1e-5)
            np.testing.assert_allclose(plane, (1 + style[c]) * unit + style[3 + c], atol=1e-5)


def test_adain_differentiates_twice() -> None:
    layer = AdaIN(2, 3).double()
    x, w = torch.randn(2, 2, 3, 3, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    layer.eps = 1e-2
    with torch.no_grad():
        reference = F.instance_norm(x.float(), eps=1e-2)
        torch.testing.assert_close(layer(x, torch.zeros_like(w)).float(), reference)
    y = layer.float()
    x32, w32 = x.float().requires_grad_(), w.float().requires_grad_()
    (first,) = torch.autograd.grad(y(x32, w32).square().sum(), x32, create_graph=True)
    second = torch.autograd.grad(first.square().sum(), [x32, w32])
    assert all(torch.isfinite(g).all() and g.any() for g in second)


def test_concat_equals_the_tiled_vector_in_a_convolution() -> None:
    torch.manual_seed(0)
    layer = ConcatConv(3, 4, 5)
    torch.nn.init.normal_(layer.bias)
    x, w = torch.randn(2, 3, 6, 5), torch.randn(2, 5)
    tiled = torch.cat([x, w[:, :, None, None].expand(-1, -1, 6, 5)], dim=1)
    y = F.conv2d(tiled, layer.weight / np.sqrt(8 * 9), layer.bias, padding=1)
    y = F.leaky_relu(y, 0.2) * np.sqrt(2)
    reference = y / (y.square().mean(dim=1, keepdim=True) + 1e-8).sqrt()
    torch.testing.assert_close(layer(x, w), reference, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 3, 5])
@pytest.mark.parametrize("kwargs", [{}, {"injection": "concat"}, {"attention": ()}, {"stages": (32,)}])
def test_any_batch_and_switch(batch: int, kwargs: dict[str, object]) -> None:
    net, judges = generator(**kwargs), discriminators(stages=kwargs.get("stages"))
    images = net.synthesis.stages(net.mapping(torch.randn(batch, 12)))
    sizes = [32] if "stages" in kwargs else [8, 16, 32]
    assert [tuple(image.shape) for image in images] == [(batch, 3, s, s) for s in sizes]
    assert net(torch.randn(batch, 12)).shape == (batch, 3, 32, 32)
    for judge, image in zip(judges, images, strict=True):
        assert judge(image).shape == (batch, 1)
        assert judge.features(image).shape == (batch, judge.num_features)
    torch.testing.assert_close(judges(images[-1]), judges[-1](images[-1]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("stages", [(32, 64, 128), (16, 64), (64,)])
def test_stages_may_skip_a_doubling(stages: tuple[int, ...]) -> None:
    net = generator(resolution=stages[-1], stages=stages, channel_max=8, attention=())
    ws = net.mapping(torch.randn(1, 12))
    assert ws.shape == (1, net.num_ws, 12)
    assert [image.shape[-1] for image in net.synthesis.stages(ws)] == list(stages)


@pytest.mark.parametrize("injection", ["adain", "concat"])
@pytest.mark.parametrize("mapping_layers", [0, 2])
def test_every_parameter_gets_a_gradient(injection: str, mapping_layers: int) -> None:
    net = generator(injection=injection, mapping_layers=mapping_layers, w_dim=24 if mapping_layers else None)
    judges = discriminators(attention=(16, 8))
    images = net.synthesis.stages(net.mapping(torch.randn(4, 12)))
    sum(judge(image).square().sum() for judge, image in zip(judges, images, strict=True)).backward()
    assert without_gradient(net) == []
    assert without_gradient(judges) == []


@pytest.mark.parametrize("kwargs", [{}, {"attention": (16,)}, {"stddev_group": 0}, {"spectral_norm": True}])
def test_r1_reaches_every_weight_but_the_last_bias(kwargs: dict[str, object]) -> None:
    judge = discriminators(**kwargs)[-1]
    images = torch.randn(4, 3, 32, 32)
    penalty = r1_penalty(lambda x: judge(x, force_fp32=True), images)
    assert penalty > 0
    penalty.backward()
    assert not [name for name in without_gradient(judge) if "bias" not in name]
    # Against finite differences of the logits along one direction.
    exact = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(judge(exact, force_fp32=True).sum(), exact)
    judge.eval()
    direction = torch.randn_like(images)
    with torch.no_grad():
        rise = judge(images + 1e-3 * direction).sum() - judge(images - 1e-3 * direction).sum()
    assert float(rise) / 2e-3 == pytest.approx(float((gradient * direction).sum()), rel=0.05, abs=0.05)


@pytest.mark.parametrize("injection", ["adain", "concat"])
def test_path_length_differentiates_through_injection_and_attention(injection: str) -> None:
    net = generator(injection=injection)
    ws = net.mapping(torch.randn(2, 12))
    path_lengths(lambda ws: net.synthesis(ws, force_fp32=True), ws).sum().backward()
    assert any(p.grad is not None and p.grad.any() for p in net.synthesis.parameters())


def test_the_voice_reaches_every_convolution() -> None:
    for injection in ("adain", "concat"):
        net = generator(injection=injection)
        ws = net.mapping(torch.randn(2, 12))
        base = net.synthesis(ws)
        assert net.num_ws == 2 * sum(isinstance(module, Block) for module in net.modules())
        for i in range(net.num_ws):
            changed = ws.clone()
            changed[:, i] += 1
            assert not torch.equal(net.synthesis(changed), base)


def test_the_ablation_has_no_adain_and_the_reference_only_adain() -> None:
    assert not any(isinstance(module, AdaIN) for module in generator(injection="concat").modules())
    net = generator()
    assert sum(isinstance(module, AdaIN) for module in net.modules()) == net.num_ws


def test_fade_ends_at_the_plain_stages() -> None:
    net = generator()
    ws = net.mapping(torch.randn(2, 12))
    small, middle, large = net.synthesis.stages(ws)
    torch.testing.assert_close(net.synthesis.stages(ws, active=3, fade=1.0)[-1], large)
    torch.testing.assert_close(net.synthesis.stages(ws, active=3, fade=0.0)[-1], enlarge(middle, 32))
    torch.testing.assert_close(net.synthesis.stages(ws, active=3, fade=0.25)[-1], enlarge(middle, 32).lerp(large, 0.25))
    two = net.synthesis.stages(ws, active=2)
    assert len(two) == 2
    torch.testing.assert_close(two, [small, middle])
    torch.testing.assert_close(net.synthesis.stages(ws, active=1, fade=0.5), [small])


def test_growth_travels_with_the_weights() -> None:
    net, other = generator(), generator()
    net.synthesis.grow(Growth(2, 0.5))
    other.load_state_dict(net.state_dict())
    assert other.synthesis.growth == Growth(2, 0.5)
    ws = net.mapping(torch.randn(2, 12))
    faded = net.synthesis.stages(ws, active=2, fade=0.5)[-1]
    torch.testing.assert_close(other.synthesis(ws), enlarge(faded, 32))
    for wrong in (Growth(0), Growth(4), Growth(2, 1.5)):
        with pytest.raises(UserError, match="3 stages"):
            net.synthesis.grow(wrong)


def test_the_schedule_is_a_function_of_the_step() -> None:
    grown = [growth_at(step, stages=3, stage_steps=4, fade=0.5) for step in range(14)]
    assert [growth.active for growth in grown] == [1] * 4 + [2] * 4 + [3] * 6
    assert [growth.fade for growth in grown] == [1] * 4 + [0.5, 1, 1, 1] + [0.5, 1, 1, 1, 1, 1]
    assert growth_at(4, stages=3, stage_steps=4, fade=0.0) == Growth(2)
    fades = [growth_at(step, stages=2, stage_steps=100, fade=1.0).fade for step in range(100, 200)]
    assert fades == pytest.approx([k / 100 for k in range(1, 101)])


def test_pyramid_of_faces() -> None:
    faces = torch.randn(2, 3, 32, 32)
    small, middle, large = pyramid(faces, (8, 16, 32), Growth(3))
    assert torch.equal(large, faces)
    torch.testing.assert_close(small, faces.unfold(2, 4, 4).unfold(3, 4, 4).mean(dim=(4, 5)))
    torch.testing.assert_close(pyramid(faces, (8, 16, 32), Growth(2, 0.0))[-1], enlarge(small, 16))
    torch.testing.assert_close(reduce(enlarge(middle, 32), 16), middle)
    assert blend([faces], 0.5) == [faces]


def test_truncation_and_determinism() -> None:
    net = generator()
    z = torch.randn(3, 12)
    assert torch.equal(net(z, noise_mode="random"), net(z, noise_mode="const"))
    net.mapping(z, update_average=True)
    average = net(z, truncation=0.0)
    torch.testing.assert_close(average[0], average[1])
    torch.testing.assert_close(net(z), net(z * 7), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(net(z)[0], net(z)[1])


def test_wrong_input_is_a_user_error() -> None:
    net = generator()
    with pytest.raises(UserError, match="w\\+ of shape"):
        net.synthesis(torch.randn(2, 3, 12))
    with pytest.raises(UserError, match="takes none"):
        net.synthesis(net.mapping(torch.randn(1, 12)), noise=[torch.zeros(1, 1, 4, 4)])
    with pytest.raises(UserError, match="wants images"):
        StageDiscriminator(16, channel_max=8)(torch.randn(1, 3, 32, 32))
    with pytest.raises(UserError, match="unknown injection"):
        generator(injection="add")
    with pytest.raises(UserError, match="w_dim is z_dim"):
        generator(w_dim=9)
    for stages in ((), (16,), (32, 16, 32), (4, 32), (24, 32)):
        with pytest.raises(UserError, match="rising powers of two"):
            stage_sizes(32, stages)


def test_sizes_of_the_reference_networks() -> None:
    with torch.device("meta"):
        nets = {
            "adain": ProgressiveGenerator(),
            "concat": ProgressiveGenerator(injection="concat"),
            "one stage": ProgressiveGenerator(stages=[256]),
            "no attention": ProgressiveGenerator(attention=()),
            "judges": StageDiscriminators(),
        }
    assert {name: sum(p.numel() for p in net.parameters()) for name, net in nets.items()} == {
        "adain": 29_000_267,
        "concat": 49_638_347,
        "one stage": 26_736_581,
        "no attention": 28_590_665,
        "judges": 71_290_819,
    }
    assert nets["adain"].num_ws == 18


def config(name: str, corpus: Corpus, out: Path, *words: str) -> Config:
    """An experiment of paper 1 cut down to seconds."""
    tiny = [
        f"data.root={corpus.root}", f"run.out={out}", "wandb.mode=disabled", "trainer.progress=false",
        "trainer.accelerator=cpu", "trainer.devices=1", "trainer.steps=3", "trainer.log_every=1", "trainer.val_every=3",
        "trainer.save_every=1", "trainer.keep_every=0", "data.image_size=32", "data.batch_size=3", "data.workers=0",
        "data.crop_seconds=[0.5,0.6]", "encoder.steps=0", "encoder.kwargs.width=16", "encoder.face_width=8",
        "generator.kwargs.channel_base=512", "generator.kwargs.channel_max=16", "optim.r1_every=2",
        "discriminator.kwargs.channel_base=512", "discriminator.kwargs.channel_max=16",
    ]  # fmt: skip
    return load(Config, EXPERIMENTS / f"{name}.yaml", [*tiny, *words])


STAGED = ("generator.kwargs.stages=[8,16,32]", "discriminator.kwargs.stages=[8,16,32]")


@pytest.mark.parametrize("schedule", ["joint", "progressive"])
def test_training_grows_resumes_and_draws(schedule: str, identity_corpus: Corpus, tmp_path: Path) -> None:
    words = (*STAGED, f"progressive.schedule={schedule}", "progressive.stage_steps=1", "weights.match=1")
    words += ("weights.path_length=2", "optim.path_length_every=2")
    folder = train(config("paper1_ema_adain", identity_corpus, tmp_path / "whole", *words))
    whole = load_checkpoint(folder / LAST, KIND)["state_dict"]
    assert whole["generator_ema.synthesis._extra_state"].tolist() == [3, 1]
    state = load_checkpoint(folder / "previous.ckpt", KIND)["state_dict"]
    assert state["generator_ema.synthesis._extra_state"].tolist() == ([2, 1] if schedule == "progressive" else [3, 1])
    header = (folder / "metrics.csv").read_text().split("\n")[0].split(",")
    losses = ("r1", "path_length", "g_contrast", "g_margin", "d_adversarial_8", "d_real", "d_fake")
    wanted = {"train/g_loss", "train/d_loss", "val/path_length", *(f"train/loss_{name}" for name in losses)}
    assert wanted <= set(header)
    train(config("paper1_ema_adain", identity_corpus, tmp_path / "split", *words), overwrite=True)
    # The run is cut after two of its three steps by going back to the checkpoint before the last.
    split = tmp_path / "split" / folder.relative_to(tmp_path / "whole")
    (split / "previous.ckpt").replace(split / LAST)
    train(config("paper1_ema_adain", identity_corpus, tmp_path / "split", *words), resume=True)
    ours = load_checkpoint(split / LAST, KIND)["state_dict"]
    assert all(torch.equal(ours[name], value) for name, value in whole.items())
    model = VoiceToFace.load(folder / LAST)
    portrait: Tensor = model.generate(model.embed([torch.randn(16000)]), samples=2)
    assert portrait.shape == (2, 3, 32, 32)


@pytest.mark.parametrize(
    ("experiment", "words"),
    [
        ("paper1_concat", (*STAGED, "progressive.adversarial=hinge", "discriminator.kwargs.spectral_norm=true")),
        ("paper1_no_self_attention", STAGED),
        ("paper1_one_stage", ("generator.kwargs.stages=[32]", "discriminator.kwargs.stages=[32]")),
    ],
)
def test_ablations_train(experiment: str, words: tuple[str, ...], identity_corpus: Corpus, tmp_path: Path) -> None:
    folder = train(config(experiment, identity_corpus, tmp_path, "trainer.steps=2", "trainer.val_every=0", *words))
    assert (folder / LAST).is_file()


def test_configurations_that_cannot_work_are_refused(identity_corpus: Corpus, tmp_path: Path) -> None:
    for word, message in (
        ("discriminator.kwargs.stages=[16,32]", "make them equal"),
        ("progressive.stage_steps=2", "stages begin at step 4"),
        ("generator.kwargs.stages=[16]", "rising powers of two"),
    ):
        words = (*STAGED, "progressive.schedule=progressive", word)
        with pytest.raises(UserError, match=message):
            train(config("paper1_ema_adain", identity_corpus, tmp_path, *words))


def flat(name: str) -> dict[str, object]:
    cfg = to_dict(load(Config, EXPERIMENTS / f"{name}.yaml"))
    return {f"{section}.{key}": value for section, values in cfg.items() for key, value in values.items()}


@pytest.mark.parametrize(
    ("row", "changed"),
    [
        ("paper1_no_ema", {"encoder.kwargs": {"attention"}}),
        ("paper1_no_self_attention", {"generator.kwargs": {"attention"}}),
        ("paper1_concat", {"generator.kwargs": {"injection"}}),
        ("paper1_one_stage", {"generator.kwargs": {"stages"}, "discriminator.kwargs": {"stages"}}),
    ],
)
def test_ablations_differ_from_the_reference_only_in_what_they_ablate(row: str, changed: dict[str, set[str]]) -> None:
    base, other = flat("paper1_ema_adain"), flat(row)
    assert {key for key in base if base[key] != other[key]} == {"run.name", *changed}
    for section, keys in changed.items():
        before, after = base[section], other[section]
        assert isinstance(before, dict)
        assert isinstance(after, dict)
        assert {key for key in before | after if before.get(key) != after.get(key)} == keys
