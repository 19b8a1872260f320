"""StyleGAN2 against its equations in plain numpy, its published sizes, and hostile input."""

import numpy as np
import pytest
import torch
from scipy.signal import correlate2d

from common.errors import UserError
from tests.common.test_layers import upfirdn
from voice2face.networks.stylegan2 import (
    IdentityClassifier,
    StyleGAN2Discriminator,
    StyleGAN2Generator,
    draw_mixing_cutoff,
    mix_styles,
)
from voice2face.networks.stylegan2_generator import ModulatedConv2d, SizePlan, StyledConv, SynthesisBlock

TINY = {"resolution": 32, "channel_base": 512, "channel_max": 32}


def generator(**kwargs: object) -> StyleGAN2Generator:
    torch.manual_seed(0)
    net = StyleGAN2Generator(**(TINY | {"z_dim": 16, "w_dim": 24, "mapping_layers": 2} | kwargs))
    for module in net.modules():
        if isinstance(module, StyledConv):
            torch.nn.init.normal_(module.bias, std=0.2)
            torch.nn.init.constant_(module.noise_strength, 0.3)
    return net


def discriminator(**kwargs: object) -> StyleGAN2Discriminator:
    torch.manual_seed(1)
    return StyleGAN2Discriminator(**(TINY | kwargs))


def lrelu(x: np.ndarray) -> np.ndarray:
    return np.where(x > 0, x, 0.2 * x) * np.sqrt(2)


def modulated(conv: ModulatedConv2d, x: np.ndarray, w: np.ndarray, *, up: bool = False) -> np.ndarray:
    """One sample through the equations: modulate, demodulate, convolve plane by plane."""
    weight = conv.weight.detach().double().numpy()
    affine = conv.affine.weight.detach().double().numpy() / np.sqrt(len(w))
    style = affine @ w + conv.affine.bias.detach().double().numpy()
    kernel = weight * style[None, :, None, None]
    if conv.demodulate:
        kernel = kernel / np.sqrt((kernel**2).sum(axis=(1, 2, 3), keepdims=True) + 1e-8)
    else:
        kernel = kernel / np.sqrt(np.prod(weight.shape[1:]))
    planes = []
    for out in kernel:
        if up:
            spread = np.zeros((len(x), 2 * x.shape[1] - 1, 2 * x.shape[2] - 1))
            spread[:, ::2, ::2] = x
            # A transposed convolution: full convolution of the zero-inserted input.
            full = sum(correlate2d(p, k[::-1, ::-1], mode="full") for p, k in zip(spread, out, strict=True))
            planes.append(upfirdn(full, pad=(1, 1), gain=4))
        else:
            planes.append(sum(correlate2d(p, k, mode="same") for p, k in zip(x, out, strict=True)))
    return np.stack(planes)


@pytest.mark.parametrize("fused", [False, True])
def test_a_skip_block_equals_its_equations(fused: bool) -> None:
    torch.manual_seed(0)
    block = SynthesisBlock(SizePlan(32, channel_base=32, channel_max=5), 8, w_dim=6)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter)
    x, image, ws = torch.randn(2, 5, 4, 4), torch.randn(2, 3, 4, 4), torch.randn(2, 3, 6)
    noise = [torch.randn(2, 1, 8, 8), torch.randn(1, 1, 8, 8)]
    features, rgb = block(x, image, ws, noise, fused=fused, full=False)
    for n in range(2):
        h = x[n].double().numpy()
        w = ws[n].double().numpy()
        for i, layer in enumerate((block.conv0, block.conv1)):
            h = modulated(layer.conv, h, w[i], up=i == 0)
            plane = noise[i][n % len(noise[i]), 0].double().numpy() * layer.noise_strength.item()
            h = lrelu(h + plane + layer.bias.detach().double().numpy()[:, None, None])
        head = modulated(block.to_rgb.conv, h, w[2]) + block.to_rgb.bias.detach().double().numpy()[:, None, None]
        skip = np.stack([upfirdn(p, up=2, pad=(2, 1), gain=4) for p in image[n].double().numpy()])
        np.testing.assert_allclose(features[n].detach().numpy(), h, atol=1e-5 * np.abs(h).max())
        np.testing.assert_allclose(rgb[n].detach().numpy(), head + skip, atol=1e-5 * np.abs(head).max())


@pytest.mark.parametrize(
    ("resolution", "g_count", "d_count"), [(64, 27_032_600, 26_488_833), (256, 30_034_338, 28_864_129)]
)
def test_parameter_counts_are_the_published_ones(resolution: int, g_count: int, d_count: int) -> None:
    with torch.device("meta"):
        nets = StyleGAN2Generator(resolution), StyleGAN2Discriminator(resolution)
    assert tuple(sum(p.numel() for p in net.parameters()) for net in nets) == (g_count, d_count)


@pytest.mark.parametrize(("resolution", "num_ws"), [(32, 8), (64, 10), (128, 12), (256, 14), (512, 16), (1024, 18)])
def test_every_power_of_two_builds(resolution: int, num_ws: int) -> None:
    with torch.device("meta"):
        net = StyleGAN2Generator(resolution)
        StyleGAN2Discriminator(resolution)
    assert net.num_ws == num_ws
    assert len(net.synthesis.noise_shapes()) == num_ws - 1


@pytest.mark.parametrize("resolution", [0, 16, 48, 2048])
def test_other_resolutions_are_refused(resolution: int) -> None:
    for build in (StyleGAN2Generator, StyleGAN2Discriminator):
        with pytest.raises(UserError, match=f"resolution {resolution}"):
            build(resolution)


@pytest.mark.parametrize("batch", [1, 3, 5])
@pytest.mark.parametrize("kernel", [3, 4, 5])
def test_any_batch_and_low_resolution_kernel(batch: int, kernel: int) -> None:
    net, judge = generator(low_res_kernel=kernel), discriminator(low_res_kernel=kernel)
    image = net(torch.randn(batch, 16))
    assert image.shape == (batch, 3, 32, 32)
    assert judge(image).shape == (batch, 1)
    assert judge.features(image).shape == (batch, 32)


def test_every_parameter_gets_a_gradient() -> None:
    net, judge = generator(c_dim=4), discriminator(c_dim=4)
    head = IdentityClassifier(judge.num_features, 7)
    z, c = torch.randn(4, 16), torch.randn(4, 4)
    features = judge.features(net(z, c))
    (judge.logits(features, c).square().sum() + head(features).square().sum()).backward()
    for module in (net, judge, head):
        missing = [name for name, p in module.named_parameters() if p.grad is None or not p.grad.any()]
        assert missing == []


def test_fused_and_unfused_modulation_agree_with_their_gradients() -> None:
    net = generator()
    noise = net.synthesis.make_noise(3, torch.Generator().manual_seed(0))
    ws = net.mapping(torch.randn(3, 16)).detach().requires_grad_()
    images = [net.synthesis(ws, noise=noise, fused=fused) for fused in (False, True)]
    torch.testing.assert_close(*images, rtol=1e-4, atol=1e-4)
    gradients = [torch.autograd.grad(image.square().sum(), ws)[0] for image in images]
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-3 * float(gradients[0].abs().max()))


def test_noise_is_controlled() -> None:
    net = generator()
    ws = net.mapping(torch.randn(2, 16))

    def draw(seed: int) -> torch.Tensor:
        return net.synthesis(ws, generator=torch.Generator().manual_seed(seed))

    torch.testing.assert_close(draw(1), draw(1), rtol=0, atol=0)
    assert not torch.equal(draw(1), draw(2))
    given = net.synthesis(ws, noise=net.synthesis.make_noise(2, torch.Generator().manual_seed(1)))
    torch.testing.assert_close(given, draw(1), rtol=0, atol=0)
    const = net.synthesis(ws, noise_mode="const")
    torch.testing.assert_close(net.synthesis(ws, noise_mode="const"), const, rtol=0, atol=0)
    zeros = [torch.zeros_like(plane) for plane in net.synthesis.make_noise(1)]
    torch.testing.assert_close(net.synthesis(ws, noise_mode="none"), net.synthesis(ws, noise=zeros))
    with pytest.raises(UserError, match="noise planes"):
        net.synthesis(ws, noise=zeros[1:])
    with pytest.raises(UserError, match="noise_mode"):
        net.synthesis(ws, noise_mode="loud")


def test_truncation_and_its_cutoff() -> None:
    net = generator()
    z = torch.randn(64, 16)
    ws = net.mapping(z, update_average=True)
    assert net.mapping.w_avg.abs().sum() > 0
    torch.testing.assert_close(net.mapping.w_avg, 0.005 * ws[:, 0].mean(dim=0))
    torch.testing.assert_close(net.mapping(z, truncation=0.0), net.mapping.w_avg.expand_as(ws))
    half = net.mapping(z, truncation=0.5, truncation_cutoff=3)
    torch.testing.assert_close(half[:, :3], (ws[:, :3] + net.mapping.w_avg) / 2)
    torch.testing.assert_close(half[:, 3:], ws[:, 3:])


def test_mapping_normalises_its_input() -> None:
    net = generator()
    z = torch.randn(2, 16)
    torch.testing.assert_close(net.mapping(z), net.mapping(z * 100))


def test_w_plus_goes_straight_into_synthesis() -> None:
    net = generator()
    w_plus = torch.randn(2, net.num_ws, 24)
    base = net.synthesis(w_plus, noise_mode="none")
    for i in range(net.num_ws):
        changed = w_plus.clone()
        changed[:, i] += 1
        assert not torch.equal(net.synthesis(changed, noise_mode="none"), base)


def test_style_mixing_splits_at_the_cutoff() -> None:
    a, b = torch.zeros(2, 8, 3), torch.ones(2, 8, 3)
    assert mix_styles(a, b, 3).sum(dim=(0, 2)).tolist() == [0, 0, 0, 6, 6, 6, 6, 6]
    random = torch.Generator().manual_seed(0)
    cutoffs = [draw_mixing_cutoff(8, 0.9, random) for _ in range(500)]
    assert set(cutoffs) == set(range(1, 9))
    assert 0.05 < cutoffs.count(8) / 500 < 0.15
    assert draw_mixing_cutoff(8, 0.0, random) == 8


@pytest.mark.parametrize("half_type", ["bf16", "fp16"])
def test_half_precision_stays_near_float32(half_type: str) -> None:
    net = generator(num_fp16_res=2, half_type=half_type)
    judge = discriminator(num_fp16_res=2, half_type=half_type)
    z, noise = torch.randn(2, 16), net.synthesis.make_noise(2)
    half, full = net(z, noise=noise), net(z, noise=noise, force_fp32=True)
    assert half.dtype == torch.float32
    assert not torch.equal(half, full)
    torch.testing.assert_close(half, full, rtol=0, atol=0.05 * full.detach().abs().max().item())
    torch.testing.assert_close(judge(full), judge(full, force_fp32=True), rtol=0, atol=0.05)


def test_half_precision_clamps_huge_activations() -> None:
    net = generator(num_fp16_res=2, half_type="fp16")
    with torch.no_grad():
        for block in net.synthesis.blocks:
            block.conv1.bias.fill_(1e6)
    assert torch.isfinite(net(torch.randn(1, 16))).all()


def test_autocast_does_not_change_the_networks() -> None:
    net, judge = generator(), discriminator()
    z, noise = torch.randn(2, 16), net.synthesis.make_noise(2)
    plain = judge(net(z, noise=noise))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(judge(net(z, noise=noise)), plain, rtol=0, atol=0)


def test_conditions_matter_and_must_be_given() -> None:
    net, judge = generator(c_dim=4), discriminator(c_dim=4)
    z, image, c = torch.randn(2, 16), torch.randn(2, 3, 32, 32), torch.eye(2, 4)
    assert not torch.allclose(net.mapping(z, c), net.mapping(z, c.flip(0)))
    assert not torch.allclose(judge(image, c), judge(image, c.flip(0)))
    with pytest.raises(UserError, match="leaves out"):
        net(z)
    with pytest.raises(UserError, match="leaves out"):
        judge(image)


def test_wrong_shapes_are_user_errors() -> None:
    with pytest.raises(UserError, match=r"latent of shape \(batch, 16\)"):
        generator()(torch.randn(2, 17))
    with pytest.raises(UserError, match="w\\+ of shape"):
        generator().synthesis(torch.randn(2, 3, 24))
    with pytest.raises(UserError, match="wants images"):
        discriminator()(torch.randn(2, 3, 64, 64))
    with pytest.raises(UserError, match="low_res_kernel 7"):
        generator(low_res_kernel=7)


def test_config_rebuilds_the_network() -> None:
    net, judge = generator(num_fp16_res=1, low_res_kernel=5), discriminator(c_dim=3)
    StyleGAN2Generator(**net.config).load_state_dict(net.state_dict())
    StyleGAN2Discriminator(**judge.config).load_state_dict(judge.state_dict())
