"""Our own face features for losses: the encoder of a small network that cleans up spoilt faces."""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dubbing3d.judges_base import Frozen, hide, learn, relight, shrink, split

BATCH = 6
_RATE = 2e-3
_CHANNELS = (12, 24, 32, 48, 64)
LEVEL_SCALES = (0.25, 0.5, 1.0, 1.5, 1.75)
"""Standard deviations of the levels' channels: what faces look like counts more than where their edges lie."""


class FaceFeatures(Frozen):
    """Five levels of features (S to S/16) of faces.

    Each channel has zero mean and its level's deviation (`LEVEL_SCALES`) over the frames that it learnt from. The light
    of an image is evened out first.
    """

    error: Tensor
    still: Tensor

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
        self.register_buffer("still", torch.tensor(torch.nan))
        self.name = "face features"

    def quality(self) -> str:
        """How well it repairs faces, in words; `still` is the error of a mean face."""
        return f"whose error is {(self.error / self.still).item():.0%} of a mean face's"

    def encode(self, images: Tensor) -> list[Tensor]:
        """The levels as they come, of images whose colours have been brought to zero mean and unit variance."""
        images = _even(images)
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
            self.get_buffer(f"deviation{index}").copy_(deviation.clamp(min=1e-3)[:, None, None] / LEVEL_SCALES[index])


def train_face_features(
    frames: Tensor, *, steps: int, seed: int = 0, device: str | torch.device = "cpu"
) -> FaceFeatures:
    """Learn features of frames (N, 3, S, S) in [-1, 1] by repairing noise, a hidden box and changed light.

    Its decoder sees the coarsest level only, so that what is drawn must be understood first, and draws at half the
    size. On the last frames, which it does not learn from, `error` becomes the mean absolute error of what is drawn,
    and `still` that of their mean picture.

    Measured after 300 steps (22 s of a busy CPU core) on 540 synthetic frames, for three people who are not among them:
    65 % of pairs of a mild change (light, colour, slight noise, a shift by a pixel) and a bad one (blur, strong noise,
    a mouth that is blurred, displaced or another viseme's) are in order, 32 % by L1 of pixels. Most of that is the even
    light: by L1 after it 59 %, by an untrained network 62 %.
    """
    kept, rest = split(shrink(frames))
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        judge = FaceFeatures()
        decoder = _Decoder()
    judge.to(device)
    decoder.to(device)

    def loss_of(batch: Tensor) -> Tensor:
        spoilt = relight(batch, generator).masked_fill(hide(batch, generator, 0.5), 0.0)
        return (decoder(judge.encode(spoilt.to(device))[-1]) - _halved(_even(batch.to(device)))).abs().mean()

    both = nn.ModuleList([judge, decoder])
    learn(both, rest, loss_of, generator=generator, steps=steps, batch=BATCH, rate=_RATE, what="learning face features")
    with torch.no_grad():
        drawn = _halved(_even(kept))
        judge.error.copy_(loss_of(kept))
        judge.still.copy_((drawn - _halved(_even(rest)).mean(dim=0)).abs().mean())
    judge.standardise(rest[:: -(-len(rest) // 64)].to(device))
    return judge.freeze()


class _Decoder(nn.Module):
    """The coarsest level to the image at half its size."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential()
        for inputs, outputs in pairwise((64, 48, 32, 24)):
            self.layers.extend(
                [nn.Upsample(scale_factor=2), nn.Conv2d(inputs, outputs, 3, padding=1), nn.LeakyReLU(0.1)]
            )
        self.layers.append(nn.Conv2d(24, 3, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def _halved(images: Tensor) -> Tensor:
    return F.avg_pool2d(images, 2)


def _even(images: Tensor) -> Tensor:
    """Each image's colours at zero mean and unit variance, so that a change of light is hardly seen."""
    deviation, mean = torch.std_mean(images, dim=(2, 3), keepdim=True)
    return (images - mean) / (deviation + 0.1)
