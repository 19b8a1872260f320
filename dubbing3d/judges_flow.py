"""Our own flow network for losses: coarse to fine, by local correlation (after PWC-Net, Sun et al., 2018)."""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dubbing3d.judges_base import Frozen, hide, learn, relight, resize_flow, shrink, split
from dubbing3d.networks import warp

BATCH = 4
_RATE = 3e-3
_CHANNELS = (16, 24, 32)
_RADII = (2, 3, 3)
_WIDTHS = (24, 48, 64)
_SHARPNESSES = (10.0, 40.0)
"""Of the softmax over costs by which the likeliest displacement is guessed: cautious and bold."""
SMALL = 0.12
"""Factor on `random_flow` for faces that hardly move: by 0.4 px on average."""
_LEAST_SCALE = 0.02
_LENGTH = 0.3
"""px; errors of shorter flows count as they are, those of longer ones less."""


class SmallFlow(Frozen):
    """Flow between faces at 96 px, at 1/8, 1/4 and 1/2 of it in turn.

    Each level brings the second image's features to the first's along the flow so far, correlates both within a few
    pixels, and corrects the flow by what it finds. It is told the likeliest displacements, which it would otherwise
    need most of a short training to read off the correlations.

    `error` (2,) and `still` (2,) are mean end point errors in px at 96 px, its own and no flow's, where faces hardly
    move and where they do.
    """

    error: Tensor
    still: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.levels = nn.ModuleList(
            nn.Sequential(_convolution(inputs, outputs, 2), _convolution(outputs, outputs))
            for inputs, outputs in pairwise((3, *_CHANNELS))
        )
        self.estimators = nn.ModuleList(
            nn.Sequential(
                _convolution((2 * radius + 1) ** 2 + 2 * len(_SHARPNESSES) + channels + 2, width),
                _convolution(width, width, dilation=2),
                _convolution(width, width // 2, dilation=4),
                _correction(width // 2),
            )
            for channels, radius, width in zip(_CHANNELS, _RADII, _WIDTHS, strict=True)
        )
        self.register_buffer("error", torch.full((2,), torch.nan))
        self.register_buffer("still", torch.full((2,), torch.nan))
        self.name = "the flow network"

    def quality(self) -> str:
        """How well it does, in words."""
        small, large = (self.error / self.still).tolist()
        return f"whose error is {small:.0%} of no flow's where faces hardly move and {large:.0%} where they do"

    def encode(self, images: Tensor) -> list[Tensor]:
        """Features of images (B, 3, 96, 96), fine to coarse."""
        deviation, mean = torch.std_mean(images, dim=(2, 3), keepdim=True)
        images = (images - mean) / (deviation + 0.1)
        seen = []
        for level in self.levels:
            images = level(images)
            seen.append(images)
        return seen

    def looks(self, first: Tensor, second: Tensor) -> list[Tensor]:
        """The flow after each level, coarse to fine, in px at 96 px, of images of that size."""
        both = self.encode(torch.cat([first, second]))
        flow = first.new_zeros(len(first), 2, *(side // 2 for side in both[-1].shape[2:]))
        found = []
        for index in reversed(range(len(both))):
            one, two = both[index].chunk(2)
            flow = resize_flow(flow, one.shape[2:]).detach()
            costs = correlate(one, warp(two, flow), _RADII[index])
            likeliest = displacements(costs, _RADII[index])
            flow = flow + self.estimators[index](torch.cat([costs - costs.mean(1, True), likeliest, one, flow], dim=1))
            found.append(resize_flow(flow, first.shape[2:]))
        return found

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """(B, 2, H, W) in pixels, with warp(second, flow) close to first; images in [-1, 1]."""
        return resize_flow(self.looks(shrink(first), shrink(second))[-1], first.shape[2:])

    def features(self, images: Tensor) -> Tensor:
        """What is matched on the middle level: (B, 24, 24, 24)."""
        return _unit(self.encode(shrink(images))[1])


def correlate(first: Tensor, second: Tensor, radius: int) -> Tensor:
    """Cosines of features (B, C, H, W) with those up to `radius` px away: (B, (2 radius + 1)^2, H, W), row by row."""
    first, second = _unit(first), F.pad(_unit(second), (radius,) * 4)
    height, width = first.shape[2:]
    reach = range(2 * radius + 1)
    shifted = [second[:, :, y : y + height, x : x + width] for y in reach for x in reach]
    return torch.stack([(first * other).sum(dim=1) for other in shifted], dim=1)


def displacements(costs: Tensor, radius: int) -> Tensor:
    """Where features lie by costs of `correlate`: x and y in px, (B, 4, H, W), cautiously and boldly guessed."""
    reach = torch.arange(-radius, radius + 1, device=costs.device, dtype=costs.dtype)
    places = torch.stack(torch.meshgrid(reach, reach, indexing="xy")).flatten(1)
    shares = [(sharpness * costs).softmax(dim=1) for sharpness in _SHARPNESSES]
    return torch.cat([torch.einsum("bkhw,ck->bchw", share, places) for share in shares], dim=1)


def train_flow(frames: Tensor, *, steps: int, seed: int = 0, device: str | torch.device = "cpu") -> SmallFlow:
    """Learn flow between frames (N, 3, S, S) in [-1, 1] and smoothly warped copies, whose flow is known.

    Noise and light differ between both, and a box of either may show nothing but noise. Half of the flows are smaller,
    by up to fifty times, and count more for their size, so that large ones do not drown them. `error` and `still` are
    measured on the last frames, which it does not learn from.

    Measured after 200 steps (27 s of a busy CPU core) on 512 synthetic frames, for people who are not among them: 0.31
    px on small pairs and 1.51 on large ones, where no flow has 0.32 and 3.06. Between frames of their clips, one frame
    apart: 0.22 px for 0.25 over whole faces, 0.91 for 1.68 where they move by more than a pixel, 0.18 for 0.17 where
    they move by less. Under such noise a flow of a tenth of a pixel is not found: 0.24 px for 0.12.
    """
    kept, rest = split(shrink(frames))
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        judge = SmallFlow()
    judge.to(device)

    def loss_of(batch: Tensor) -> Tensor:
        scale = random_scale(len(batch), generator)
        first, second, flow = (x.to(device) for x in random_pairs(batch, generator, scale))
        return torch.stack([balanced_error(look, flow) for look in judge.looks(first, second)]).sum()

    learn(judge, rest, loss_of, generator=generator, steps=steps, batch=BATCH, rate=_RATE, what="learning flow")
    judge.freeze()
    with torch.no_grad():
        for index, scale in enumerate((SMALL, 1.0)):
            pairs = random_pairs(kept, generator, torch.full((len(kept), 1, 1, 1), scale))
            first, second, flow = (x.to(device) for x in pairs)
            judge.error[index] = end_point_error(judge(first, second), flow)
            judge.still[index] = end_point_error(torch.zeros_like(flow), flow)
    return judge


def random_scale(count: int, generator: torch.Generator) -> Tensor:
    """Factors (count, 1, 1, 1) on flows: 1 for half of them, down to a fiftieth for the others."""
    exponent, small = torch.rand(2, count, 1, 1, 1, generator=generator)
    return torch.where(small < 0.5, _LEAST_SCALE**exponent, 1.0)


def random_pairs(frames: Tensor, generator: torch.Generator, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs of images (N, 3, S, S), and flows (N, 2, S, S) px with warp(second, flow) close to first.

    `scale` (N, 1, 1, 1) multiplies the flows.
    """
    flow = random_flow(len(frames), frames.shape[2], generator) * scale
    pair = [warp(frames, flow, border="reflection"), frames]
    for index, images in enumerate(pair):
        hidden = hide(images, generator, 0.35) & (torch.rand(len(images), 1, 1, 1, generator=generator) < 0.25)
        noise = torch.rand(images.shape, generator=generator) * 2 - 1
        pair[index] = torch.where(hidden, noise, relight(images, generator))
    return pair[0], pair[1], flow


def random_flow(count: int, side: int, generator: torch.Generator) -> Tensor:
    """Smooth flows (count, 2, side, side) in pixels, each a mixture: the head moves, bends, and a part of it, such as
    the mouth, shifts, opens or turns. Most are 1 to 10 % of the side long."""
    place = (torch.arange(side) + 0.5) / side - 0.5
    points = torch.stack(torch.meshgrid(place, place, indexing="xy"))

    def normal(*shape: int) -> Tensor:
        """Of a random strength for each sample."""
        return torch.randn(count, *shape, generator=generator) * torch.rand(
            count, *[1] * len(shape), generator=generator
        )

    flow = torch.einsum("nij,jyx->niyx", 0.1 * normal(2, 2), points) + 0.05 * normal(2, 1, 1)
    for cells, strength in ((3, 0.03), (6, 0.015)):
        grid = strength * normal(2, cells, cells)
        flow += F.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)
    for _ in range(2):
        middle = 0.3 * torch.randn(count, 2, 1, 1, generator=generator).clamp(-1.5, 1.5)
        spread = 0.05 + 0.1 * torch.rand(count, 1, 1, 1, generator=generator)
        away = points - middle
        near = (-away.square().sum(dim=1, keepdim=True) / (2 * spread**2)).exp()
        flow += near * (torch.einsum("nij,njyx->niyx", 0.5 * normal(2, 2), away) + 0.04 * normal(2, 1, 1))
    return flow * side * torch.rand(count, 1, 1, 1, generator=generator).clamp(min=0.1).sqrt()


def end_point_error(found: Tensor, flow: Tensor) -> Tensor:
    """Mean distance in px of flows (B, 2, H, W) where the true `flow` does not lead out of the image."""
    return _distance(found, flow)[_inside(flow)].mean()


def balanced_error(found: Tensor, flow: Tensor) -> Tensor:
    """`end_point_error` with each sample's distances divided by the root of its flow's mean length and 0.3 px."""
    length = flow.square().sum(dim=1).sqrt().mean(dim=(1, 2), keepdim=True)
    return (_distance(found, flow) / (length + _LENGTH).sqrt())[_inside(flow)].mean()


def _distance(found: Tensor, flow: Tensor) -> Tensor:
    return ((found - flow).square().sum(dim=1) + 1e-6).sqrt()


def _inside(flow: Tensor) -> Tensor:
    """Bool (B, H, W): places from which the flow does not lead out of the image."""
    height, width = flow.shape[2:]
    x = flow[:, 0] + torch.arange(width, device=flow.device)
    y = flow[:, 1] + torch.arange(height, device=flow.device)[:, None]
    return (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)


def _unit(x: Tensor) -> Tensor:
    """Features (B, C, H, W) of length 1 at each place, their mean over the image taken away first."""
    return F.normalize(x - x.mean(dim=(2, 3), keepdim=True), dim=1, eps=1e-3)


def _correction(inputs: int) -> nn.Conv2d:
    """To a flow, none at first."""
    layer = nn.Conv2d(inputs, 2, 3, padding=1)
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def _convolution(inputs: int, outputs: int, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    layer = nn.Conv2d(inputs, outputs, 3, stride, dilation, dilation)
    nn.init.kaiming_normal_(layer.weight, a=0.1)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return nn.Sequential(layer, nn.LeakyReLU(0.1))
