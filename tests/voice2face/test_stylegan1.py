"""The StyleGAN baseline: shapes, layers against their equations, growth with fade, gradients, training in small."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from common.checkpoints import LAST, load_checkpoint
from common.data.corpus import Corpus
from common.errors import UserError
from common.losses import path_lengths, r1_penalty
from tests.voice2face.test_progressive import config, without_gradient
from voice2face.module import KIND
from voice2face.networks.growth import Growth, enlarge, reduce
from voice2face.networks.mapping import mix_styles
from voice2face.networks.stylegan1 import StyleBlock, StyleGANDiscriminator, StyleGANGenerator, StyleLayer
from voice2face.train import train

TINY = {"resolution": 32, "channel_base": 512, "channel_max": 16}


def generator(**kwargs: object) -> StyleGANGenerator:
    torch.manual_seed(0)
    net = StyleGANGenerator(**(TINY | {"z_dim": 12, "w_dim": 20, "mapping_layers": 2} | kwargs))
    for module in net.modules():
        if isinstance(module, StyleLayer):
            torch.nn.init.constant_(module.noise_strength, 0.3)
    return net


def discriminator() -> StyleGANDiscriminator:
    torch.manual_seed(1)
    return StyleGANDiscriminator(**TINY)


@pytest.mark.parametrize(("resolution", "num_ws"), [(32, 8), (64, 10), (256, 14)])
def test_sizes(resolution: int, num_ws: int) -> None:
    net = generator(resolution=resolution, channel_max=8)
    assert net.num_ws == num_ws
    assert len(net.synthesis.noise_shapes()) == num_ws
    assert net.synthesis.sizes[0] == 8
    assert net.synthesis.sizes[-1] == resolution


def test_counts_of_the_reference_networks() -> None:
    with torch.device("meta"):
        nets = [StyleGANGenerator(64), StyleGANDiscriminator(64)]
    assert [sum(p.numel() for p in net.parameters()) for net in nets] == [25_136_396, 22_496_001]


@pytest.mark.parametrize("batch", [1, 3, 5])
@pytest.mark.parametrize("growth", [Growth(1), Growth(2, 0.5), Growth(3)])
def test_any_batch_at_any_growth(batch: int, growth: Growth) -> None:
    net, judge = generator(), discriminator()
    net.synthesis.grow(growth)
    judge.grow(growth)
    image = net(torch.randn(batch, 12))
    assert image.shape == (batch, 3, 32, 32)
    assert judge(image).shape == (batch, 1)
    assert judge.features(image).shape == (batch, judge.num_features)
    size = net.synthesis.sizes[growth.active - 1]
    torch.testing.assert_close(enlarge(reduce(image, size), 32), image)


def test_a_block_equals_its_equations() -> None:
    torch.manual_seed(0)
    block = StyleBlock(5, 4, 8, 6)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter)
    x, ws = torch.randn(2, 5, 4, 4), torch.randn(2, 2, 6)
    noise = [torch.randn(2, 1, 8, 8), torch.randn(1, 1, 8, 8)]

    def layer(y: torch.Tensor, part: StyleLayer, w: torch.Tensor, plane: torch.Tensor) -> torch.Tensor:
        y = F.leaky_relu(y + part.noise_strength * plane + part.bias, 0.2)
        style = F.linear(w, part.style.affine.weight / 6**0.5, part.style.affine.bias)
        return F.instance_norm(y) * style[:, :4, None, None] + style[:, 4:, None, None]

    taps = torch.tensor([1.0, 2.0, 1.0]) / 4
    doubled = enlarge(x, 8)
    smooth = F.conv2d(doubled.flatten(0, 1)[:, None], torch.outer(taps, taps)[None, None], padding=1).view_as(doubled)
    y = F.conv2d(smooth, block.conv0.weight / 45**0.5, padding=1)
    y = layer(y, block.layer0, ws[:, 0], noise[0])
    y = layer(F.conv2d(y, block.conv1.weight / 36**0.5, padding=1), block.layer1, ws[:, 1], noise[1])
    torch.testing.assert_close(block(x, ws, noise), y, rtol=1e-4, atol=1e-4)


def test_fade_ends_at_the_plain_resolutions() -> None:
    net, judge = generator(), discriminator()
    ws = net.mapping(torch.randn(2, 12))

    def draw(growth: Growth) -> torch.Tensor:
        net.synthesis.grow(growth)
        return net.synthesis(ws, noise_mode="const")

    def score(image: torch.Tensor, growth: Growth) -> torch.Tensor:
        judge.grow(growth)
        return judge(image)

    before, after = draw(Growth(1)), draw(Growth(2))
    assert not torch.allclose(before, after)
    torch.testing.assert_close(draw(Growth(2, 0.0)), before)
    torch.testing.assert_close(draw(Growth(2, 0.25)), before.lerp(after, 0.25))
    torch.testing.assert_close(score(after, Growth(2, 0.0)), score(after, Growth(1)))
    torch.testing.assert_close(score(after, Growth(2, 1.0)), score(after, Growth(2)))
    assert not torch.allclose(score(after, Growth(2)), score(after, Growth(1)))


def test_every_parameter_gets_a_gradient_while_growing() -> None:
    net, judge = generator(), discriminator()
    for growth in (Growth(1), Growth(2, 0.5), Growth(3, 0.5)):
        net.synthesis.grow(growth)
        judge.grow(growth)
        judge(net(torch.randn(4, 12))).square().sum().backward()
    assert without_gradient(net) == []
    assert without_gradient(judge) == []


def test_penalties_differentiate_twice() -> None:
    net, judge = generator(), discriminator()
    growth = Growth(2, 0.5)
    net.synthesis.grow(growth)
    judge.grow(growth)
    r1_penalty(lambda x: judge(x, force_fp32=True), torch.randn(3, 3, 32, 32)).backward()
    assert all(judge.blocks[k][0].weight.grad.any() for k in (0, 1))
    ws = net.mapping(torch.randn(2, 12))
    path_lengths(lambda ws: net.synthesis(ws, force_fp32=True), ws).sum().backward()
    assert net.synthesis.blocks[1].conv0.weight.grad.any()


def test_noise_styles_and_truncation() -> None:
    net = generator()
    z = torch.randn(2, 12)
    ws = net.mapping(z, update_average=True)
    const = net.synthesis(ws, noise_mode="const")
    assert torch.equal(net.synthesis(ws, noise_mode="const"), const)
    assert not torch.equal(net.synthesis(ws), const)
    zeros = [torch.zeros(1, 1, r, r) for r in net.synthesis.noise_shapes()]
    torch.testing.assert_close(net.synthesis(ws, noise=zeros), net.synthesis(ws, noise_mode="none"))
    assert not torch.equal(net.synthesis(mix_styles(ws, ws.flip(0), 3), noise_mode="const"), const)
    for i in range(net.num_ws):
        changed = ws.clone()
        changed[:, i] += 1
        assert not torch.equal(net.synthesis(changed, noise_mode="const"), const)
    average = net(z, truncation=0.0, noise_mode="const")
    torch.testing.assert_close(average[0], average[1])


def test_wrong_input_is_a_user_error() -> None:
    net = generator()
    ws = net.mapping(torch.randn(1, 12))
    with pytest.raises(UserError, match="noise planes"):
        net.synthesis(ws, noise=[torch.zeros(1, 1, 4, 4)])
    with pytest.raises(UserError, match="noise_mode"):
        net.synthesis(ws, noise_mode="loud")
    with pytest.raises(UserError, match="w\\+ of shape"):
        net.synthesis(ws[:, 1:])
    with pytest.raises(UserError, match="wants images"):
        discriminator()(torch.randn(1, 3, 16, 16))
    with pytest.raises(UserError, match="resolution 48"):
        StyleGANGenerator(48)


def test_training_grows(identity_corpus: Corpus, tmp_path: Path) -> None:
    words = ("progressive.stage_steps=1", "trainer.val_every=0", "generator.kwargs.mapping_layers=2")
    folder = train(config("table2_stylegan", identity_corpus, tmp_path, *words))
    growths = [
        load_checkpoint(folder / name, KIND)["state_dict"]["generator_ema.synthesis._extra_state"].tolist()
        for name in ("previous.ckpt", LAST)
    ]
    assert growths == [[2, 1], [3, 1]]
