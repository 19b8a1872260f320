import pytest
import torch
from torch import Tensor

from common.faces.seam import match_seam


def disc(size: int, radius: float, feather: float) -> Tensor:
    """(1,1,S,S), 1 in the middle, falling to 0 over `feather` px before `radius`."""
    centres = torch.arange(size) + 0.5 - size / 2
    distance = torch.hypot(*torch.meshgrid(centres, centres, indexing="ij"))
    return ((radius - distance) / feather).clamp(0, 1)[None, None]


@pytest.mark.parametrize("size", [33, 64, 96])
def test_a_wrong_colour_is_taken_back_and_detail_stays(size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    masks = disc(size, size * 0.4, size * 0.1)
    frames = torch.rand(1, 3, 1, 1, generator=generator).expand(1, 3, size, size)
    detail = torch.randn(1, 3, size, size, generator=generator) * (masks == 1)
    wrong = torch.tensor([0.3, -0.2, 0.1]).view(1, 3, 1, 1)
    matched = match_seam(frames + wrong + detail, frames, masks)
    torch.testing.assert_close(matched, frames + detail, atol=2e-4, rtol=0)


def test_light_from_one_side_is_followed() -> None:
    size = 96
    masks = disc(size, 40, 10)
    slope = torch.linspace(-0.2, 0.2, size).expand(1, 1, size, size)
    matched = match_seam(torch.zeros(1, 1, size, size), slope, masks)
    inside = masks[0, 0] == 1
    left, before = ((image - slope)[0, 0][inside].abs() for image in (matched, torch.zeros_like(matched)))
    assert float(left.mean()) < 0.2 * float(before.mean())
    assert float(left.max()) < 0.25 * float(before.max())


def test_what_lies_far_outside_does_not_count() -> None:
    masks = disc(64, 20, 6)
    frames = torch.zeros(1, 3, 64, 64)
    far = frames.clone()
    far[..., :8] = 5.0
    drawn = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    assert torch.equal(match_seam(drawn, far, masks), match_seam(drawn, frames, masks))


def test_without_an_edge_nothing_is_known() -> None:
    drawn = torch.rand(2, 3, 40, 40, generator=torch.Generator().manual_seed(2))
    for share in (0.0, 1.0):
        assert torch.equal(match_seam(drawn, drawn + 1, torch.full((2, 1, 40, 40), share)), drawn)


def test_faces_of_a_batch_do_not_mix() -> None:
    generator = torch.Generator().manual_seed(3)
    drawn, frames = (torch.rand(3, 3, 48, 48, generator=generator) for _ in range(2))
    masks = torch.cat([disc(48, radius, 5) for radius in (10.0, 15.0, 20.0)])
    together = match_seam(drawn, frames, masks)
    alone = torch.cat([match_seam(drawn[i : i + 1], frames[i : i + 1], masks[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone)
