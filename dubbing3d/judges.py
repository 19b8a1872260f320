"""Frozen networks that losses look through: features of faces and flow between them (paper 4, eqs. 27 to 29).

The paper takes VGG-19 and an unnamed flow network, both trained on data and under licences of their own. Users who have
the files name them; otherwise a small network of each kind is trained here, on frames of the corpus in hand, in about a
minute: features by cleaning up spoilt faces, flow by undoing known smooth warps. `name` says which one judged, and
belongs into the log: losses of different judges do not compare.
"""

import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import vgg19
from torchvision.models.optical_flow import raft_large, raft_small

from common.errors import UserError
from common.files import atomic_path, sha256
from common.weights import load_state
from dubbing3d.judges_base import Frozen, resize, resize_flow, shrink
from dubbing3d.judges_features import FaceFeatures, train_face_features
from dubbing3d.judges_flow import SmallFlow, train_flow
from dubbing3d.losses import FeatureJudge, FlowJudge

STEPS = 600
"""Of own trainings: each takes about a minute of one CPU core."""
_VERSION = 3
_VGG_LAYERS = (1, 6, 11, 20, 29)  # relu1_1 to relu5_1
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_RAFT_SMALLEST = 128
_RAFT_UPDATES = 5


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
        return resize_flow(flow, first.shape[2:])

    def features(self, images: Tensor) -> Tensor:
        """What RAFT matches: (B, C, H/8, W/8)."""
        return self.network.feature_encoder(_fit(images))


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
    judge.name += f" own:{digest.hexdigest()[:8]}, {judge.quality()}"
    return judge.freeze()


def _fill(network: nn.Module, state: dict[str, Tensor], path: Path, what: str) -> None:
    try:
        network.load_state_dict(state, assign=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"{path} is not a state dict of {what}: {reason}") from error


def _quantise(frames: Tensor) -> Tensor:
    """Frames as bytes, at the size at which judges learn: what the hash is taken of."""
    return ((shrink(frames).cpu().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def _fit(images: Tensor) -> Tensor:
    """To sides that RAFT takes."""
    sides = [max(_RAFT_SMALLEST, math.ceil(side / 8) * 8) for side in images.shape[2:]]
    return resize(images, sides)
