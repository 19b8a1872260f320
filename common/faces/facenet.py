"""FaceNet's Inception-ResNet v1, whose published weights were trained on VGGFace2: a second judge of identity.

Architecture: Szegedy et al., "Inception-v4, Inception-ResNet and the Impact of Residual Connections" (2017), with the
widths of David Sandberg's FaceNet. Names and shapes are those of the PyTorch conversion `20180402-114759-vggface2.pt`
(see `common.weights`), so that file loads as it is.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.errors import UserError
from common.faces.align import DEFAULT_MARGIN, to_tensor, warp
from common.faces.identity import crop_to_chip
from common.faces.images import as_rgb
from common.weights import find_weights, load_state

WEIGHTS = "facenet_vggface2"
INPUT = 160
"""Side of the network's input in px."""
CHIP_MARGIN = 0.3
"""Room around the template's unit square in that input; the training crops are of detector boxes, about this wide."""
_BATCH = 32
_Layer = tuple[int, int | tuple[int, int], int]
"""output channels, kernel, stride; a stride of 1 keeps height and width, one of 2 pads nothing"""


class NormedConv(nn.Module):
    """Convolution without bias, batch norm, ReLU."""

    def __init__(self, inner: int, outer: int, kernel: int | tuple[int, int], stride: int = 1, *, pad: bool = True):
        super().__init__()
        rows, columns = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (rows // 2, columns // 2) if pad and stride == 1 else (0, 0)
        self.conv = nn.Conv2d(inner, outer, (rows, columns), stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outer, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x)).relu()


def _chain(inner: int, layers: Sequence[_Layer]) -> nn.Module:
    """The layers of a branch; a single one stands alone, as its published name asks."""
    widths = [inner, *(outer for outer, _, _ in layers)]
    convs = [NormedConv(width, *layer) for width, layer in zip(widths, layers, strict=False)]
    return convs[0] if len(convs) == 1 else nn.Sequential(*convs)


class Branches(nn.Module):
    """Branches over the same input, named branch0, branch1 ..., their outputs side by side."""

    def __init__(self, inner: int, branches: Sequence[Sequence[_Layer]]) -> None:
        super().__init__()
        self.count = len(branches)
        self.width = sum(layers[-1][0] for layers in branches)
        for number, layers in enumerate(branches):
            self.add_module(f"branch{number}", _chain(inner, layers))

    def together(self, x: Tensor) -> Tensor:
        """(B, inner, H, W) -> (B, width, H', W')."""
        return torch.cat([getattr(self, f"branch{number}")(x) for number in range(self.count)], dim=1)


class Residual(Branches):
    """x + scale * projection of the branches, rectified but for the network's last block: (B, C, H, W) -> the same."""

    def __init__(
        self, channels: int, branches: Sequence[Sequence[_Layer]], *, scale: float, rectify: bool = True
    ) -> None:
        super().__init__(channels, branches)
        self.conv2d = nn.Conv2d(self.width, channels, 1)
        self.scale, self.rectify = scale, rectify

    def forward(self, x: Tensor) -> Tensor:
        y = x + self.scale * self.conv2d(self.together(x))
        return y.relu() if self.rectify else y


class Reduction(Branches):
    """Halving branches beside a halving maximum: (B, C, H, W) -> (B, width + C, (H - 1) // 2, (W - 1) // 2)."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.together(x), F.max_pool2d(x, 3, 2)], dim=1)


def _block35() -> Residual:
    return Residual(256, [[(32, 1, 1)], [(32, 1, 1), (32, 3, 1)], [(32, 1, 1), (32, 3, 1), (32, 3, 1)]], scale=0.17)


def _block17() -> Residual:
    return Residual(896, [[(128, 1, 1)], [(128, 1, 1), (128, (1, 7), 1), (128, (7, 1), 1)]], scale=0.1)


def _block8(scale: float = 0.2, *, rectify: bool = True) -> Residual:
    branches: list[list[_Layer]] = [[(192, 1, 1)], [(192, 1, 1), (192, (1, 3), 1), (192, (3, 1), 1)]]
    return Residual(1792, branches, scale=scale, rectify=rectify)


class InceptionResNetV1(nn.Module):
    """RGB images (B, 3, H, W), (value - 127.5) / 128, of at least 75 px -> unit embeddings (B, 512)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv2d_1a = NormedConv(3, 32, 3, 2)
        self.conv2d_2a = NormedConv(32, 32, 3, pad=False)
        self.conv2d_2b = NormedConv(32, 64, 3)
        self.conv2d_3b = NormedConv(64, 80, 1)
        self.conv2d_4a = NormedConv(80, 192, 3, pad=False)
        self.conv2d_4b = NormedConv(192, 256, 3, 2)
        self.repeat_1 = nn.Sequential(*(_block35() for _ in range(5)))
        self.mixed_6a = Reduction(256, [[(384, 3, 2)], [(192, 1, 1), (192, 3, 1), (256, 3, 2)]])
        self.repeat_2 = nn.Sequential(*(_block17() for _ in range(10)))
        self.mixed_7a = Reduction(
            896, [[(256, 1, 1), (384, 3, 2)], [(256, 1, 1), (256, 3, 2)], [(256, 1, 1), (256, 3, 1), (256, 3, 2)]]
        )
        self.repeat_3 = nn.Sequential(*(_block8() for _ in range(5)))
        self.block8 = _block8(1.0, rectify=False)
        self.last_linear = nn.Linear(1792, 512, bias=False)
        self.last_bn = nn.BatchNorm1d(512, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv2d_2b(self.conv2d_2a(self.conv2d_1a(x)))
        x = self.conv2d_4b(self.conv2d_4a(self.conv2d_3b(F.max_pool2d(x, 3, 2))))
        x = self.mixed_6a(self.repeat_1(x))
        x = self.mixed_7a(self.repeat_2(x))
        x = self.block8(self.repeat_3(x))
        return F.normalize(self.last_bn(self.last_linear(x.mean(dim=(2, 3)))), dim=1)


def load_facenet(path: Path) -> InceptionResNetV1:
    """The network of a published file, frozen; its classifier of the 8631 training people is left out.

    Raises:
        UserError: missing, torn or unsafe file, or one of another network.
    """
    state = {name: value for name, value in load_state(path).items() if not name.startswith("logits.")}
    network = InceptionResNetV1()
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(f"{path} is not FaceNet's Inception-ResNet v1: {str(error)[:300]}") from error
    return network.eval().requires_grad_(False)


class FaceNetEmbedder:
    """FaceNet on VGGFace2, 512-d, 99.65 % on LFW as published; see `IdentityEmbedder`.

    Its training crops are detector boxes, not aligned faces; a cut of the aligned crop about as wide stands in for
    them, so figures compare within this software and not with others' FaceNet figures.

    Args:
        margin: the margin that the crops were aligned with.
        device: torch device of the network.
        weights: the file, or its folder; the weights folder unless given.
    """

    name = WEIGHTS
    dim = 512

    def __init__(self, margin: float = DEFAULT_MARGIN, device: str = "cpu", weights: Path | None = None) -> None:
        self._network = load_facenet(find_weights(WEIGHTS, weights)).to(device)
        self.margin, self.device = margin, device

    @torch.inference_mode()
    def embed(self, images: Sequence[np.ndarray]) -> Tensor:
        """See `IdentityEmbedder.embed`. Raises UserError for a crop that is not square."""
        pictures = [to_tensor(as_rgb(image)) / 127.5 - 1 for image in images]
        vectors = [torch.zeros(0, self.dim)]
        for start in range(0, len(pictures), _BATCH):
            part = pictures[start : start + _BATCH]
            chips = torch.cat([self._chip(picture) for picture in part]).to(self.device)
            vectors.append(self._network(chips).float().cpu())
        return torch.cat(vectors)

    def embed_tensor(self, images: Tensor) -> Tensor:
        """Differentiable: aligned crops (B,3,S,S) in [-1,1] on the embedder's device -> rows (B,512) of length 1."""
        vectors: Tensor = self._network(self._chip(images))
        return vectors

    def _chip(self, images: Tensor) -> Tensor:
        """(B,3,S,S) in [-1,1] -> (B,3,160,160) in the network's units."""
        matrix = crop_to_chip(tuple(images.shape[2:]), self.margin, INPUT, CHIP_MARGIN)
        return warp(images, np.repeat(matrix[None], len(images), axis=0), (INPUT, INPUT)) * (127.5 / 128)
