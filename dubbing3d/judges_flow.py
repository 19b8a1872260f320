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


class SmallFlow(Frozen):
    """Flow between faces at 96 px, at 1/8, 1/4 and 1/2 of it in turn.

    Each level brings the second image's features to the first's along the flow so far, correlates both within a few
    pixels, and corrects the flow by what it finds.
    """

    error: Tensor
    still: Tensor
    baseline = "no flow's"
    """What `still` is the error of."""

    def __init__(self) -> None:
        super().__init__()
        self.levels = nn.ModuleList(
            nn.Sequential(_convolution(inputs, outputs, 2), _convolution(outputs, outputs))
            for inputs, outputs in pairwise((3, *_CHANNELS))
        )
        self.estimators = nn.ModuleList(
            nn.Sequential(
                _convolution((2 * radius + 1) ** 2 + channels + 2, width),
                _convolution(width, width, dilation=2),
                _convolution(width, width // 2, dilation=4),
                _correction(width // 2),
            )
            for channels, radius, width in zip(_CHANNELS, _RADII, _WIDTHS, strict=True)
        )
        self.register_buffer("error", torch.tensor(torch.nan))
        self.register_buffer("still", torch.tensor(torch.nan))
        self.name = "the flow network"

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
            flow = flow + self.estimators[index](torch.cat([costs, one, flow], dim=1))
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


def train_flow(frames: Tensor, *, steps: int, seed: int = 0, device: str | torch.device = "cpu") -> SmallFlow:
    """Learn flow between frames (N, 3, S, S) in [-1, 1] and smoothly warped copies, whose flow is known.

    Noise and light differ between both, and a box of either may show nothing but noise. On the last frames, which it
    does not learn from, `error` becomes the mean end point error in px at 96 px, and `still` that of no flow.

    Measured after 600 steps (66 s of a busy CPU core) on 540 synthetic frames, for three people who are not among them:
    1.27 px on such pairs, where no flow has 3.13. Between frames of their clips, where a face moves by more than a
    pixel: 0.8 to 1.0 px for 1.6 to 1.7; over whole faces one frame apart, which hardly move, 0.30 px for 0.25: small
    flows are not to be trusted.
    """
    kept, rest = split(shrink(frames))
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        judge = SmallFlow()
    judge.to(device)

    def loss_of(batch: Tensor) -> Tensor:
        first, second, flow = (x.to(device) for x in random_pairs(batch, generator))
        errors = [end_point_error(look, flow) for look in judge.looks(first, second)]
        return torch.stack(errors).sum()

    learn(judge, rest, loss_of, generator=generator, steps=steps, batch=BATCH, rate=_RATE, what="learning flow")
    judge.freeze()
    with torch.no_grad():
        first, second, flow = (x.to(device) for x in random_pairs(kept, generator))
        judge.error.copy_(end_point_error(judge(first, second), flow))
        judge.still.copy_(end_point_error(torch.zeros_like(flow), flow))
    return judge


def random_pairs(frames: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs of images (N, 3, S, S), and flows (N, 2, S, S) px with warp(second, flow) close to first."""
    flow = random_flow(len(frames), frames.shape[2], generator)
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
    height, width = flow.shape[2:]
    x = flow[:, 0] + torch.arange(width, device=flow.device)
    y = flow[:, 1] + torch.arange(height, device=flow.device)[:, None]
    inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    return ((found - flow).square().sum(dim=1) + 1e-6).sqrt()[inside].mean()


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
