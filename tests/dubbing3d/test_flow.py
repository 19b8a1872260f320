"""SFM: start, sizes, gradients, and that it can learn to align."""

import pytest
import torch

from dubbing3d.networks import SFM, warp
from tests.dubbing3d.toy_networks import images, randomise, without_gradient


@pytest.mark.parametrize("size", [64, 96, 160])
@pytest.mark.parametrize("width", [0.03, 0.05])
def test_it_starts_with_no_motion_at_any_size(size: int, width: float) -> None:
    torch.manual_seed(0)
    net = SFM(width=width, image_size=size, weigh=True)
    motion = net(images(2, 3, size, size), images(2, 3, size, size, seed=1))
    assert motion.flow.shape == (2, 2, size, size)
    assert not motion.flow.any()
    assert motion.logits is not None
    assert not motion.logits.any()


def test_every_parameter_learns() -> None:
    torch.manual_seed(0)
    net = SFM(width=0.05, image_size=96, weigh=True, guide_channels=4, reference_channels=7)
    randomise(net)
    motion = net(images(2, 4, 96, 96), images(2, 7, 96, 96))
    assert motion.logits is not None
    (motion.flow.square().sum() + motion.logits.square().sum()).backward()
    assert without_gradient(net) == []


def test_both_halves_are_the_convolution_of_the_stack() -> None:
    torch.manual_seed(0)
    net = SFM(width=0.05, image_size=64)
    guide, reference = images(1, 3, 64, 64), images(1, 3, 64, 64, seed=1)
    whole = torch.nn.functional.conv2d(
        torch.cat([guide, reference], dim=1), torch.cat([net.guide.weight, net.reference.weight], dim=1), None, 2, 3
    )
    assert torch.allclose(net.encode_guide(guide) + net.encode_reference(reference), whole, atol=1e-5)


def test_the_flow_is_in_pixels() -> None:
    """A constant prediction of one pixel on the S/4 map is a flow of four."""
    net = SFM(width=0.05, image_size=64).eval()
    net.predict[-1].register_forward_hook(lambda *_: torch.ones(1, 2, 16, 16))
    with torch.no_grad():
        flow = net(images(1, 3, 64, 64), images(1, 3, 64, 64)).flow
    assert torch.allclose(flow, torch.full_like(flow, 4.0))


def test_it_learns_to_align_a_shifted_picture() -> None:
    torch.manual_seed(0)
    net = SFM(width=0.05, image_size=64)
    smooth = torch.nn.functional.interpolate(images(2, 3, 6, 6), size=64, mode="bicubic", align_corners=False)
    guide = smooth.roll((3, -2), dims=(2, 3))
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-2)
    before = (guide - smooth).abs().mean().item()
    for _ in range(15):
        loss = (guide - warp(smooth, net(guide, smooth).flow)).abs().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.75 * before


@pytest.mark.parametrize("size", [0, 32, 100, 112])
def test_sizes_that_do_not_halve_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match="multiple of 32 from 64 on"):
        SFM(image_size=size)


def test_a_width_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="width 0 must be positive"):
        SFM(width=0, image_size=64)
