"""The sampler against loops, grid_sample and finite differences."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dubbing3d.networks import warp


def random(*shape: int, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=dtype) * scale


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (96, 96), (192, 192)])
@pytest.mark.parametrize("border", ["replicate", "reflection"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_flow_gives_the_very_image(size: tuple[int, int], border: str, dtype: torch.dtype) -> None:
    image = random(2, 3, *size).to(dtype)
    assert torch.equal(warp(image, torch.zeros(2, 2, *size), border=border), image)


def test_whole_pixels_shift_the_picture() -> None:
    """A flow to the right brings what is on the right to the left."""
    image = random(1, 2, 5, 6)
    flow = torch.zeros(1, 2, 5, 6)
    flow[:, 0], flow[:, 1] = 2, -1
    out = warp(image, flow)
    assert torch.equal(out[:, :, 1:, :4], image[:, :, :-1, 2:])
    assert torch.equal(out[:, :, 0, 0], image[:, :, 0, 2])
    mirrored = warp(image, flow, border="reflection")
    assert torch.equal(mirrored[:, :, 0, 0], image[:, :, 1, 2])
    assert torch.equal(mirrored[:, :, 1, 5], image[:, :, 0, 3])


@pytest.mark.parametrize(("border", "padding"), [("replicate", "border"), ("reflection", "reflection")])
@pytest.mark.parametrize("scale", [0.5, 30.0])
def test_it_equals_grid_sample_with_aligned_corners(border: str, padding: str, scale: float) -> None:
    image, flow = random(2, 3, 9, 7, dtype=torch.float64), random(2, 2, 9, 7, scale=scale, dtype=torch.float64)
    x = torch.arange(7) + flow[:, 0]
    y = torch.arange(9)[:, None] + flow[:, 1]
    grid = torch.stack([2 * x / 6 - 1, 2 * y / 8 - 1], dim=-1)
    expected = F.grid_sample(image, grid, mode="bilinear", padding_mode=padding, align_corners=True)
    assert torch.allclose(warp(image, flow, border=border), expected, atol=1e-10)


def test_gradcheck() -> None:
    image = random(1, 1, 3, 4, dtype=torch.float64).requires_grad_()
    flow = (random(1, 2, 3, 4, dtype=torch.float64) * 0.7).requires_grad_()
    assert torch.autograd.gradcheck(warp, (image, flow))


def test_a_half_precision_picture_is_not_moved() -> None:
    """Positions keep their precision where images have none to spare."""
    ramp = torch.arange(192.0).expand(1, 1, 192, 192)
    with torch.autocast("cpu", torch.bfloat16):
        out = warp(ramp, torch.full((1, 2, 192, 192), 0.25))
    assert torch.allclose(out[..., :-1], ramp[..., :-1] + 0.25)


def test_shapes_must_fit() -> None:
    with pytest.raises(ValueError, match="cannot have shape"):
        warp(torch.zeros(1, 3, 4, 4), torch.zeros(1, 2, 4, 5))
