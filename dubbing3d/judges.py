"""Frozen networks that losses look through: features of faces and flow between them (paper 4, eqs. 27 to 29).

The paper takes VGG-19 and an unnamed flow network, both trained on data and under licences of their own. Users who have
the files name them; otherwise a small network of each kind is trained here, on frames of the corpus in hand, in about a
minute: features by cleaning up spoilt faces, flow by undoing known smooth warps. `name` says which one judged, and
belongs into the log: losses of different judges do not compare.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, Self, TypeVar

import torch
from rich.progress import track
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import vgg19
from torchvision.models.optical_flow import raft_large, raft_small

from common.errors import UserError
from common.files import atomic_path, sha256
from common.weights import load_state
from dubbing3d.losses import FeatureJudge, FlowJudge
from dubbing3d.networks import SFM, warp

SIDE = 96
"""Side in px of the frames that own judges learn from, and at which the own flow network looks."""
STEPS = 400
BATCH = 8
_VERSION = 1
_VGG_LAYERS = (1, 6, 11, 20, 29)  # relu1_1 to relu5_1
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_RAFT_SMALLEST = 128
_RAFT_UPDATES = 5
_CHANNELS = (12, 24, 32, 48, 64)
_FLOW_WIDTH = 0.125
_HELD_OUT = 16


class Frozen(nn.Module):
    """A network that stays as it is: no gradients of its parameters, always in evaluation mode."""

    name: str

    def freeze(self) -> Self:
        """To be called once, when everything is in place."""
        return self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Self:
        """Without effect, so that the module that holds a judge cannot set its norms moving."""
        return super().train(False)


class VGGFeatures(Frozen):
    """relu1_1 to relu5_1 of VGG-19 (Simonyan and Zisserman) for images (B, 3, S, S) in [-1, 1].

    Args:
        path: a state dict under torchvision's names, such as `vgg19-dcbb9e9d.pth`.

    Raises:
        UserError: missing or torn file, or another network's.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, path: Path) -> None:
        super().__init__()
        with torch.device("meta"):
            self.layers = vgg19().features[: _VGG_LAYERS[-1] + 1]
        wanted = self.layers.state_dict()
        state = {name.removeprefix("features."): value for name, value in load_state(path).items()}
        _fill(self.layers, {name: value for name, value in state.items() if name in wanted}, path, "VGG-19")
        self.register_buffer("mean", torch.tensor(_MEAN)[:, None, None])
        self.register_buffer("deviation", torch.tensor(_DEVIATION)[:, None, None])
        self.name = f"VGG-19 from {path.name} ({sha256(path)[:8]})"
        self.freeze()

    def forward(self, images: Tensor) -> list[Tensor]:
        x = ((images + 1) / 2 - self.mean) / self.deviation
        seen = []
        for index, layer in enumerate(self.layers):
            x = layer(x)
            if index in _VGG_LAYERS:
                seen.append(x)
        return seen


class RAFTFlow(Frozen):
    """RAFT (Teed and Deng, 2020), large or small, five updates as Geng et al. (2022) take.

    Images under 128 px a side, or whose side is no multiple of 8, are enlarged for it.

    Args:
        path: a state dict of torchvision's `raft_large` or `raft_small`, told apart by their widths.

    Raises:
        UserError: missing or torn file, or another network's.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        state = load_state(path)
        first = state.get("feature_encoder.convnormrelu.0.weight")
        large = first is not None and first.shape[0] == 64
        self.network = raft_large() if large else raft_small()
        _fill(self.network, state, path, "torchvision's RAFT")
        self.name = f"RAFT {'large' if large else 'small'} from {path.name} ({sha256(path)[:8]})"
        self.freeze()

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """(B, 2, H, W) in pixels, with warp(second, flow) close to first; images in [-1, 1]."""
        flow = self.network(_fit(first), _fit(second), num_flow_updates=_RAFT_UPDATES)[-1]
        return _resize_flow(flow, first)

    def features(self, images: Tensor) -> Tensor:
        """What RAFT matches: (B, C, H/8, W/8)."""
        return self.network.feature_encoder(_fit(images))


class FaceFeatures(Frozen):
    """Five levels of features (S to S/16) of the encoder of a network that cleans up spoilt faces.

    Each channel has zero mean and unit variance over the frames that it learnt from.
    """

    def __init__(self) -> None:
        super().__init__()
        self.levels = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(inputs, outputs, 3, 1 if inputs == 3 else 2, 1),
                nn.LeakyReLU(0.1),
                nn.Conv2d(outputs, outputs, 3, padding=1),
                nn.LeakyReLU(0.1),
            )
            for inputs, outputs in pairwise((3, *_CHANNELS))
        )
        for index, channels in enumerate(_CHANNELS):
            self.register_buffer(f"mean{index}", torch.zeros(channels, 1, 1))
            self.register_buffer(f"deviation{index}", torch.ones(channels, 1, 1))
        self.register_buffer("error", torch.tensor(torch.nan))
        self.name = "own face features"

    def encode(self, images: Tensor) -> list[Tensor]:
        """The levels as they come."""
        seen = []
        for level in self.levels:
            images = level(images)
            seen.append(images)
        return seen

    def forward(self, images: Tensor) -> list[Tensor]:
        levels = enumerate(self.encode(images))
        return [(x - self.get_buffer(f"mean{i}")) / self.get_buffer(f"deviation{i}") for i, x in levels]

    @torch.no_grad()
    def standardise(self, frames: Tensor) -> None:
        """Measure the channels on frames (N, 3, S, S)."""
        for index, seen in enumerate(self.encode(frames)):
            deviation, mean = torch.std_mean(seen, dim=(0, 2, 3))
            self.get_buffer(f"mean{index}").copy_(mean[:, None, None])
            self.get_buffer(f"deviation{index}").copy_(deviation.clamp(min=1e-3)[:, None, None])


class SmallFlow(Frozen):
    """A narrow SFM that looks twice: the second time at what the first flow left over. It sees 96 px images."""

    def __init__(self) -> None:
        super().__init__()
        self.network = SFM(width=_FLOW_WIDTH, image_size=SIDE)
        self.register_buffer("error", torch.tensor(torch.nan))
        self.name = "own flow network"

    def looks(self, first: Tensor, second: Tensor) -> list[Tensor]:
        """The flow after each look, at the images' own size."""
        flow = self.network(first, second).flow
        rest = self.network(first, warp(second, flow)).flow
        return [flow, rest + warp(flow, rest)]

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """(B, 2, H, W) in pixels, with warp(second, flow) close to first; images in [-1, 1]."""
        return _resize_flow(self.looks(_shrink(first), _shrink(second))[-1], first)

    def features(self, images: Tensor) -> Tensor:
        """What the first convolution makes of single images: (B, C, 48, 48)."""
        return self.network.encode_reference(_shrink(images))


Judge = TypeVar("Judge", FaceFeatures, SmallFlow)


class Judges(NamedTuple):
    """The judges of a training run."""

    features: FeatureJudge
    flow: FlowJudge


def load_judges(
    frames: Callable[[], Tensor],
    folder: Path,
    *,
    vgg: Path | None = None,
    raft: Path | None = None,
    device: str | torch.device = "cpu",
    steps: int = STEPS,
    log: Callable[[str], None] = print,
) -> Judges:
    """Both judges on `device`, from files where given, else trained or found in `folder`, where trained ones are kept.

    Args:
        frames: gives training frames (N, 3, S, S) in [-1, 1], called only where a judge must be trained or looked up;
            some hundreds from all over the training split do.
        folder: for own judges, one file each, under a hash of frames and settings.
        vgg, raft: weights files, see `VGGFeatures` and `RAFTFlow`.
        steps: of own trainings.
        log: is told which judges there are.

    Raises:
        UserError: an unusable file, or too few frames.
    """
    given = None if vgg and raft else _quantise(frames())
    features: VGGFeatures | FaceFeatures
    flow: RAFTFlow | SmallFlow
    if vgg:
        features = VGGFeatures(vgg)
    else:
        assert given is not None
        features = _kept(folder, "features", FaceFeatures, train_face_features, given, device, steps)
    if raft:
        flow = RAFTFlow(raft)
    else:
        assert given is not None
        flow = _kept(folder, "flow", SmallFlow, train_flow, given, device, steps)
    log(f"perceptual and style losses look through {features.name}")
    log(f"the correspondence loss looks through {flow.name}")
    return Judges(features.to(device), flow.to(device))


def train_face_features(
    frames: Tensor, *, steps: int = STEPS, seed: int = 0, device: str | torch.device = "cpu"
) -> FaceFeatures:
    """Learn features of frames (N, 3, S, S) in [-1, 1] by repairing noise, a hidden box and changed light.

    Its decoder sees the coarsest level only, so that what is drawn must be understood first. `error` becomes the mean
    absolute error on spoilt frames that it did not learn from.
    """
    frames = _shrink(frames)
    kept, train = _split(frames)
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        judge = FaceFeatures()
        decoder = _Decoder()
    judge.to(device)
    decoder.to(device)

    def loss_of(batch: Tensor) -> Tensor:
        return (decoder(judge.encode(_spoil(batch, generator).to(device))[-1]) - batch.to(device)).abs().mean()

    _learn(nn.ModuleList([judge, decoder]), train, loss_of, generator, steps, "learning face features")
    with torch.no_grad():
        judge.get_buffer("error").copy_(loss_of(kept))
    judge.standardise(train[: 4 * _HELD_OUT].to(device))
    return judge.freeze()


def train_flow(frames: Tensor, *, steps: int = STEPS, seed: int = 0, device: str | torch.device = "cpu") -> SmallFlow:
    """Learn flow between frames (N, 3, S, S) in [-1, 1] and smoothly warped copies, whose flow is known.

    Noise and light differ between both. `error` becomes the mean end point error in px at 96 px on frames that it did
    not learn from.
    """
    frames = _shrink(frames)
    kept, train = _split(frames)
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        judge = SmallFlow()
    judge.to(device)

    def errors(batch: Tensor) -> list[Tensor]:
        flow = random_flow(len(batch), SIDE, generator)
        moved = _relight(warp(batch, flow, border="reflection"), generator).to(device)
        looks = judge.looks(moved, _relight(batch, generator).to(device))
        return [((look - flow.to(device)).square().sum(dim=1) + 1e-6).sqrt().mean() for look in looks]

    _learn(judge, train, lambda batch: torch.stack(errors(batch)).sum(), generator, steps, "learning flow")
    judge.freeze()
    with torch.no_grad():
        judge.get_buffer("error").copy_(errors(kept)[-1])
    return judge


def random_flow(count: int, side: int, generator: torch.Generator) -> Tensor:
    """Smooth flows (count, 2, side, side) in pixels: shifts, bends and ripples, of up to about a tenth of the side."""
    flow = torch.zeros(count, 2, side, side)
    for cells, strength in ((1, 0.04), (2, 0.03), (4, 0.025), (10, 0.006)):
        grid = torch.randn(count, 2, cells, cells, generator=generator) * strength * side
        grid = grid * torch.rand(count, 1, 1, 1, generator=generator)
        flow += F.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)
    return flow


class _Decoder(nn.Module):
    """The coarsest level to the image."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential()
        for inputs, outputs in pairwise(reversed(_CHANNELS)):
            self.layers.extend(
                [nn.Upsample(scale_factor=2), nn.Conv2d(inputs, outputs, 3, padding=1), nn.LeakyReLU(0.1)]
            )
        self.layers.append(nn.Conv2d(_CHANNELS[0], 3, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def _learn(
    network: nn.Module,
    frames: Tensor,
    loss_of: Callable[[Tensor], Tensor],
    generator: torch.Generator,
    steps: int,
    what: str,
) -> None:
    """Adam with a rate that falls to 0 along a cosine."""
    optimiser = torch.optim.Adam(network.parameters(), lr=2e-3)
    for step in track(range(steps), description=what, transient=True):
        optimiser.param_groups[0]["lr"] = 1e-3 * (1 + math.cos(math.pi * step / steps))
        chosen = torch.randint(len(frames), (BATCH,), generator=generator)
        loss = loss_of(frames[chosen])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def _spoil(frames: Tensor, generator: torch.Generator) -> Tensor:
    """Changed light, noise and one grey box of about a third of the side."""
    frames = _relight(frames, generator)
    count, side = len(frames), frames.shape[2]
    corner = torch.rand(count, 2, 1, 1, generator=generator) * 0.7 * side
    place = torch.arange(side) + 0.5
    x, y = place - corner[:, :1], place[:, None] - corner[:, 1:]
    hidden = (x > 0) & (x < 0.3 * side) & (y > 0) & (y < 0.3 * side)
    return frames.masked_fill(hidden, 0.0)


def _relight(frames: Tensor, generator: torch.Generator) -> Tensor:
    """Each frame and colour a little lighter or darker, flatter or harsher, with noise."""
    count = len(frames)
    gain = 1 + 0.15 * torch.randn(count, 1, 1, 1, generator=generator)
    shift = 0.08 * torch.randn(count, 3, 1, 1, generator=generator)
    level = 0.08 * torch.rand(count, 1, 1, 1, generator=generator)
    return frames * gain + shift + level * torch.randn(frames.shape, generator=generator)


def _split(frames: Tensor) -> tuple[Tensor, Tensor]:
    """Frames to measure on, spread over all, and the rest."""
    if len(frames) < 2 * _HELD_OUT:
        raise UserError(f"judges learn from at least {2 * _HELD_OUT} frames, got {len(frames)}; give them more clips")
    chosen = torch.zeros(len(frames), dtype=torch.bool)
    chosen[torch.linspace(0, len(frames) - 1, _HELD_OUT).long()] = True
    return frames[chosen], frames[~chosen]


def _kept(
    folder: Path,
    kind: str,
    build: Callable[[], Judge],
    train: Callable[..., Judge],
    frames: Tensor,
    device: str | torch.device,
    steps: int,
) -> Judge:
    """The judge of these frames and settings from its file, which is written first where there is none."""
    digest = hashlib.sha256(f"{_VERSION} {kind} {steps} {tuple(frames.shape)}".encode())
    digest.update(frames.numpy().tobytes())
    path = folder / f"judge-{kind}-{digest.hexdigest()[:16]}.safetensors"
    if not path.is_file():
        trained = train(frames.float() / 127.5 - 1, steps=steps, device=device)
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            save_file({name: value.cpu().contiguous() for name, value in trained.state_dict().items()}, temporary)
    judge = build()
    _fill(judge, load_state(path), path, "this version's judge")
    judge.name += f" {digest.hexdigest()[:8]}, error {judge.get_buffer('error').item():.3g}"
    return judge.freeze()


def _fill(network: nn.Module, state: dict[str, Tensor], path: Path, what: str) -> None:
    try:
        network.load_state_dict(state, assign=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"{path} is not a state dict of {what}: {reason}") from error


def _quantise(frames: Tensor) -> Tensor:
    """Frames as bytes, at the size at which judges learn: what the hash is taken of."""
    return ((_shrink(frames).cpu().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def _shrink(images: Tensor) -> Tensor:
    """To 96 px a side; an image that has them passes as it is."""
    if images.shape[2:] == (SIDE, SIDE):
        return images
    return F.interpolate(images.float(), size=(SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False)


def _fit(images: Tensor) -> Tensor:
    """To sides that RAFT takes."""
    sides = [max(_RAFT_SMALLEST, math.ceil(side / 8) * 8) for side in images.shape[2:]]
    return _resize(images, sides)


def _resize_flow(flow: Tensor, like: Tensor) -> Tensor:
    """A flow at the size of images `like`, its values in their pixels."""
    scale = flow.new_tensor([like.shape[3] / flow.shape[3], like.shape[2] / flow.shape[2]])
    return _resize(flow, like.shape[2:]) * scale[:, None, None]


def _resize(x: Tensor, sides: Sequence[int]) -> Tensor:
    if tuple(x.shape[2:]) == tuple(sides):
        return x
    return F.interpolate(x.float(), size=tuple(sides), mode="bilinear", align_corners=False)
