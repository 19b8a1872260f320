"""SyncNet (Chung and Zisserman, "Out of time: automated lip sync in the wild", 2016): lips and sounds in one space.

The network of the published `syncnet_v2.model`, key for key, with a width and an input size of its own for training
on small machines; the cutting of frames and cepstra into its windows; loading of both kinds of weights.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.audio.psf import psf_mfcc
from common.errors import UserError
from common.files import sha256
from common.weights import WEIGHTS, find_weights, load_state

FPS = 25
SAMPLES_PER_FRAME = 640
"""Audio samples at 16 kHz of one video frame."""
WINDOW = 5
"""Video frames that the lip network sees at once: 0.2 s."""
CEPSTRA_WINDOW, CEPSTRA_STEP = 20, 4
"""Cepstral frames that the sound network sees at once, and those of one video frame."""
SIZE = 224
"""Side in px of the published network's input."""
MIN_SIZE = 51
"""Below it the last pooling has nothing left."""
KIND = "syncnet"
"""Kind of our own checkpoints, see `common.checkpoints`."""
_WINDOWS = 16  # lip windows of one pass: the first layer's maps of these take 73 MB at full size


class Region(NamedTuple):
    """The part of a frame that a network looks at, as fractions of its width and height from the upper left corner."""

    left: float = 0.0
    top: float = 0.0
    right: float = 1.0
    bottom: float = 1.0


class SyncNet(nn.Module):
    """Two towers whose outputs are close (Euclidean) where lips and sound belong together.

    The published network has `width` 1 and `size` 224: 13,631,616 parameters, embeddings of 1024 numbers that are
    not normalised. Frames come in as BGR floats in 0..255 without any normalisation. Smaller `size` leaves smaller
    maps, which the last lip kernel follows; `width` scales every layer, the embedding included.

    Args:
        width: factor on the channels.
        size: side of the frames in px, at least 51.
        region: what part of a frame is looked at; part of the network, since it was trained on it.
    """

    name: str = "untrained"
    """`syncnet_v2` for the published weights, `own:` and eight digits for others; stands beside every score."""

    def __init__(self, *, width: float = 1.0, size: int = SIZE, region: Region | None = None) -> None:
        super().__init__()
        if size < MIN_SIZE or width <= 0:
            raise ValueError(f"SyncNet needs frames of at least {MIN_SIZE} px and a positive width: {size}, {width}")
        self.width, self.size, self.region = width, size, region or Region()
        self.embedding = self._scaled(1024)
        a, b, c, d, e = (self._scaled(channels) for channels in (64, 192, 384, 256, 512))
        self.netcnnaud = nn.Sequential(
            *_conv2d(1, a), nn.MaxPool2d((1, 1), (1, 1)),
            *_conv2d(a, b), nn.MaxPool2d((3, 3), (1, 2)),
            *_conv2d(b, c), *_conv2d(c, d), *_conv2d(d, d), nn.MaxPool2d((3, 3), (2, 2)),
            *_conv2d(d, e, (5, 4), 0),
        )  # fmt: skip
        self.netfcaud = self._head(e)
        first, pool = self._scaled(96), (1, 3, 3)
        self.netcnnlip = nn.Sequential(
            *_conv3d(3, first, (5, 7, 7), 2, 0), nn.MaxPool3d(pool, (1, 2, 2)),
            *_conv3d(first, d, (1, 5, 5), 2), nn.MaxPool3d(pool, (1, 2, 2), (0, 1, 1)),
            *_conv3d(d, d, pool), *_conv3d(d, d, pool), *_conv3d(d, d, pool), nn.MaxPool3d(pool, (1, 2, 2)),
            *_conv3d(d, e, (1, last_map(size), last_map(size)), 1, 0),
        )  # fmt: skip
        self.netfclip = self._head(e)

    def lips(self, video: Tensor) -> Tensor:
        """Frames (N,3,T,S,S) in BGR 0..255 -> embeddings (N,T-4,D) of all windows of five frames.

        Only the first layer reaches over time, so a sequence costs no more than its windows' first layer and gives
        what the windows give one by one.
        """
        maps = self.netcnnlip(video)
        return self.netfclip(maps.flatten(2).transpose(1, 2).flatten(0, 1)).unflatten(0, (len(video), -1))

    def sounds(self, cepstra: Tensor) -> Tensor:
        """Cepstra (N,1,13,F) as of `psf_mfcc` -> embeddings (N,V,D) of windows of 20, one each 4, V = (F-20)//4+1.

        Each window is its own image here, as published: the layers pad in time, so windows cannot share maps.
        """
        windows = cepstra.unfold(-1, CEPSTRA_WINDOW, CEPSTRA_STEP).transpose(1, 3).flatten(0, 1).transpose(1, 2)
        return self.netfcaud(self.netcnnaud(windows).flatten(1)).unflatten(0, (len(cepstra), -1))

    def prepare(self, frames: Tensor) -> Tensor:
        """Frames (N,3,H,W), RGB in 0..255 -> what this network takes, see `prepare_frames`."""
        return prepare_frames(frames, self.size, self.region)

    def _scaled(self, channels: int) -> int:
        return max(1, round(channels * self.width))

    def _head(self, channels: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Linear(channels, channels), nn.BatchNorm1d(channels), nn.ReLU(), nn.Linear(channels, self.embedding)
        )


def prepare_frames(frames: Tensor, size: int, region: Region) -> Tensor:
    """Frames (N,3,H,W), RGB in 0..255 -> BGR (N,3,S,S) float: the region, resized bilinearly as cv2.resize does."""
    height, width = frames.shape[-2:]
    left, top, right, bottom = region
    rows = slice(round(top * height), max(round(bottom * height), round(top * height) + 1))
    columns = slice(round(left * width), max(round(right * width), round(left * width) + 1))
    part = frames[..., rows, columns].flip(1).float()
    if part.shape[-2:] == (size, size):
        return part
    return F.interpolate(part, (size, size), mode="bilinear", align_corners=False)


def last_map(size: int) -> int:
    """Side of the lip maps before the last layer for frames of `size` px: 6 for 224, 1 for 64."""
    side = (size - 7) // 2 + 1
    side = (side - 3) // 2 + 1
    side = (side + 2 - 5) // 2 + 1
    side = (side + 2 - 3) // 2 + 1
    return (side - 3) // 2 + 1


def load_syncnet(path: Path | None = None, device: str | torch.device = "cpu") -> SyncNet:
    """The published weights, or a file of them or of our own training, in eval mode without gradients.

    Without `path` the file `syncnet_v2.model` of the weights folder. A plain dictionary of tensors has the published
    names; counters of batches, which old files lack, stay 0.

    Raises:
        UserError: no such file, a torn one, or one of another network (names the first tensor that is off).
    """
    file = find_weights("syncnet_v2", path)
    state = load_state(file)
    if any(name.startswith("net.") for name in state):
        net = _load_own(file)
    else:
        net = SyncNet()
        fill(net, state, file)
    official = WEIGHTS["syncnet_v2"].sha256 == sha256(file)
    net.name = "syncnet_v2" if official else f"own:{fingerprint(net)}"
    return net.eval().requires_grad_(False).to(device)


def fill(net: SyncNet, state: dict[str, Tensor], source: Path) -> None:
    """Copy `state` by name; UserError naming the first tensor that is missing, of another shape or unknown."""
    own = net.state_dict()
    for name in [*own, *(name for name in state if name not in own)]:
        here, there = own.get(name), state.get(name)
        if there is None and name.endswith("num_batches_tracked"):
            continue
        if here is None or there is None or here.shape != there.shape:
            shapes = ["absent" if tensor is None else str(tuple(tensor.shape)) for tensor in (there, here)]
            raise UserError(f"{source} holds no SyncNet weights: {name} is {shapes[0]} there, {shapes[1]} in SyncNet")
    net.load_state_dict(state, strict=False)


def fingerprint(net: SyncNet) -> str:
    """Eight hexadecimal digits of the SHA-256 of shape and weights, whatever file they came from."""
    digest = hashlib.sha256(f"{net.width:g} {net.size} {tuple(map(float, net.region))}".encode())
    for name, tensor in sorted(net.state_dict().items()):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(tensor.detach().cpu().numpy()).tobytes())
    return digest.hexdigest()[:8]


class LipStream:
    """Embeds the frames of a video as they come; memory does not grow with them but for the embeddings.

    Args:
        net: the network, in eval mode.
    """

    def __init__(self, net: SyncNet) -> None:
        self.net = net
        self.frames = 0
        self._held: list[Tensor] = []
        self._done: list[Tensor] = []

    def push(self, image: np.ndarray) -> None:
        """Add the next frame, uint8 (H,W,3) RGB of any size."""
        pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]
        device = next(self.net.parameters()).device
        self._held.append(self.net.prepare(pixels.to(device)).round()[0])
        self.frames += 1
        if len(self._held) == _WINDOWS + WINDOW - 1:
            self._embed()

    def finish(self) -> Tensor:
        """Embeddings (T-4, D) on the CPU of all that was pushed; (0, D) for fewer than five frames."""
        if len(self._held) >= WINDOW:
            self._embed()
        return torch.cat([torch.zeros(0, self.net.embedding), *self._done])

    @torch.no_grad()
    def _embed(self) -> None:
        self._done.append(self.net.lips(torch.stack(self._held, dim=1)[None])[0].float().cpu())
        self._held = self._held[1 - WINDOW :]


def embed_frames(net: SyncNet, frames: Iterable[np.ndarray]) -> Tensor:
    """Embeddings (T-4, D) on the CPU of uint8 RGB frames (H,W,3)."""
    stream = LipStream(net)
    for image in frames:
        stream.push(image)
    return stream.finish()


@torch.no_grad()
def embed_wave(net: SyncNet, wave: Tensor) -> Tensor:
    """Embeddings (V, D) on the CPU of a 16 kHz wave (n,) in [-1,1], one for each video frame that has 0.2 s left."""
    device = next(net.parameters()).device
    parts = [torch.zeros(0, net.embedding)]
    if len(wave):
        cepstra = psf_mfcc(wave[None].cpu())
        count = max(0, (cepstra.shape[-1] - CEPSTRA_WINDOW) // CEPSTRA_STEP + 1)
        for start in range(0, count, 4 * _WINDOWS):
            last = min(count, start + 4 * _WINDOWS) - 1
            piece = cepstra[..., start * CEPSTRA_STEP : last * CEPSTRA_STEP + CEPSTRA_WINDOW]
            parts.append(net.sounds(piece.to(device))[0].float().cpu())
    return torch.cat(parts)


def _load_own(path: Path) -> SyncNet:
    from common.checkpoints import load_checkpoint  # brings Lightning along, which the published weights do not need

    checkpoint = load_checkpoint(path, KIND)
    try:
        shape = checkpoint["cfg"]["model"]
        net = SyncNet(width=shape["width"], size=shape["size"], region=Region(*shape["region"]))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} does not say which SyncNet it holds ({error}); train it again") from error
    fill(net, {name.removeprefix("net."): value for name, value in checkpoint["state_dict"].items()}, path)
    return net


def _conv2d(inputs: int, outputs: int, kernel: tuple[int, int] = (3, 3), padding: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, kernel, padding=padding), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]


def _conv3d(
    inputs: int, outputs: int, kernel: tuple[int, int, int], stride: int = 1, padding: int = 1
) -> list[nn.Module]:
    """Stride and padding of the two spatial axes."""
    layer = nn.Conv3d(inputs, outputs, kernel, (1, stride, stride), (0, padding, padding))
    return [layer, nn.BatchNorm3d(outputs), nn.ReLU(inplace=True)]
