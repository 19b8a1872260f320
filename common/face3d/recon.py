"""Coefficients of a face in a photograph: Deep3DFaceRecon's network and its alignment (Deng et al. 2019).

Pixels are continuous, as in `faces.align`: pixel (row i, column j) is centred at (j + 0.5, i + 0.5), y down.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torchvision.models import resnet50

from common.errors import UserError
from common.face3d.camera import REFERENCE_SIZE
from common.face3d.coefficients import COUNT, split
from common.faces.align import invert, warp
from common.weights import find_weights, load_state

HEADS = (80, 64, 80, 3, 27, 2, 1)
"""Outputs of `final_layers.0` to `.6`: identity, expression, albedo, angles, gamma, translation x and y, and z."""

FEATURES = 2048
SADTALKER_PREFIX = "face_3drecon."
TARGET_SCALE = 102.0

STANDARD_POINTS = np.array(
    [
        [-0.31148657, 0.29036078, 0.13377953],
        [0.30979887, 0.28972036, 0.13179526],
        [0.0032535, -0.04617932, 0.55244243],
        [-0.25216928, -0.38133916, 0.22405732],
        [0.24846619, -0.38128236, 0.22235769],
    ]
)
"""(5,3) a mean face's left eye, right eye (as the viewer sees them), nose and mouth corners; x right, y up, z to the
viewer: five points of similarity_Lm3D_all.mat (sicxu/Deep3DFaceRecon_pytorch, MIT)."""


class ReconNet(nn.Module):
    """ResNet-50, average pooling and seven 1x1 convolutions; keys as in Deep3DFaceRecon_pytorch's checkpoints.

    Images (B,3,224,224), RGB in [0,1] without ImageNet's normalisation, to coefficients (B,257) in the order of
    `coefficients.SIZES`. `backbone` replaces the ResNet: any module to (B, `features`).
    """

    def __init__(self, backbone: nn.Module | None = None, features: int = FEATURES) -> None:
        super().__init__()
        if backbone is None:
            backbone = resnet50(weights=None)
            backbone.fc = nn.Identity()
        self.backbone = backbone
        self.final_layers = nn.ModuleList(nn.Conv2d(features, outputs, 1) for outputs in HEADS)

    def forward(self, images: Tensor) -> Tensor:
        """Coefficients (B,257) of aligned images (B,3,224,224) in [0,1]; see `alignment`."""
        pooled = self.backbone(images)[:, :, None, None]
        return torch.cat([head(pooled) for head in self.final_layers], dim=1).flatten(1)


def load_recon(path: Path | None = None) -> ReconNet:
    """The network of a checkpoint, frozen, in eval mode, on the CPU.

    `path`: Deep3DFaceRecon_pytorch's epoch_20.pth (`net_recon` beside its optimisers) or SadTalker's safetensors
    (`face_3drecon.`), told apart by content; a folder stands for the epoch_20.pth in it; None looks in the weights
    folder.

    Raises:
        UserError: absent (says where it comes from), torn, or other weights (says which keys or shapes differ).
    """
    path = find_weights("deep3d_epoch20", path)
    with open(path, "rb") as file:
        named = file.read(9)[8:9] == b"{"  # safetensors: 8 bytes of header length, then JSON
    state = _read_sadtalker(path) if named else load_state(path, "net_recon")
    with torch.device("meta"):
        network = ReconNet()
    _check_state(path, state, network.state_dict())
    network.load_state_dict({name: _like(state[name]) for name in network.state_dict()}, assign=True)
    return network.eval().requires_grad_(False)


def _read_sadtalker(path: Path) -> dict[str, Tensor]:
    """The reconstruction network alone, out of 700 MB of others."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            names = list(file.keys())
            ours = [name for name in names if name.startswith(SADTALKER_PREFIX)]
            state = {name.removeprefix(SADTALKER_PREFIX): file.get_tensor(name) for name in ours}
    except (OSError, SafetensorError, ValueError) as error:
        raise UserError(f"{path} is not a readable safetensors file, or it is torn: {str(error)[:120]}") from error
    if not state:
        held = sorted({name.partition(".")[0] for name in names})
        raise UserError(
            f"{path} has no keys {SADTALKER_PREFIX}*, it holds {', '.join(held[:6])}: use SadTalker's "
            "SadTalker_V0.0.2_256.safetensors or Deep3DFaceRecon's epoch_20.pth"
        )
    return state


def _check_state(path: Path, state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    missing, unknown = [k for k in wanted if k not in state], [k for k in state if k not in wanted]
    for problem, names in (("lacks", missing), ("also holds", unknown)):
        if names:
            some = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            raise UserError(f"{path} is not Deep3DFaceRecon's network (ResNet-50 and seven heads): it {problem} {some}")
    for name, tensor in state.items():
        if tensor.shape != wanted[name].shape:
            shapes = f"{tuple(tensor.shape)}, wanted {tuple(wanted[name].shape)}"
            raise UserError(f"{path} is not Deep3DFaceRecon's network (ResNet-50 and seven heads): {name} is {shapes}")
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise UserError(f"{path}: {name} is not finite: the file is damaged")


def _like(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


def five_points(landmarks: NDArray[np.floating]) -> NDArray[np.float64]:
    """Eyes (means of their corners), nose tip and mouth corners (N,5,2) of landmarks (N,68,2); as `STANDARD_POINTS`."""
    points = landmarks.astype(np.float64)
    eyes = [(points[:, inner] + points[:, outer]) / 2 for inner, outer in ((36, 39), (42, 45))]
    return np.stack([*eyes, points[:, 30], points[:, 48], points[:, 54]], axis=1)


def upwards(landmarks: NDArray[np.floating], height: int) -> NDArray[np.float64]:
    """Landmarks (..., 2) in continuous pixels of an image as Deep3DFaceRecon counts: whole pixels, y up.

    Pixel (row i, column j) becomes (j, height - 1 - i); `Bfm09.landmarks_upwards` is compared with these.
    """
    points = landmarks.astype(np.float64)
    return np.stack([points[..., 0] - 0.5, height - 0.5 - points[..., 1]], axis=-1)


def alignment(landmarks: NDArray[np.floating], scale: float = TARGET_SCALE) -> NDArray[np.float64]:
    """Maps (N,2,3) from frames to the 224 px crops that the network was trained on, sub-pixel exact.

    Five points of landmarks (N,68,2) are fitted by an affine map of `STANDARD_POINTS` (least squares, POS); the mean
    norm of its two rows is the face's scale, which becomes `scale`, and the standard face's origin goes to the middle.
    Upstream rounds the resized picture and the crop to whole pixels, up to a pixel of jitter per frame; this does not.
    To be used with `faces.align.warp`. A row with a NaN gives a map of NaN.

    Raises `UserError` for another shape, or landmarks that lie in one point.
    """
    if landmarks.ndim != 3 or landmarks.shape[1:] != (68, 2):
        raise UserError(f"alignment needs landmarks of shape (frames, 68, 2), not {landmarks.shape}")
    known = np.isfinite(landmarks).all(axis=(1, 2))
    points = five_points(landmarks[known])
    design = np.concatenate([STANDARD_POINTS, np.ones((5, 1))], axis=1)
    fitted = np.linalg.pinv(design) @ points  # (N,4,2): three columns of the map, then the shift
    spread = np.linalg.norm(fitted[:, :3], axis=1).mean(axis=1)
    if (spread < 1e-6).any():
        raise UserError("the landmarks of a frame all lie in one point; the face cannot be aligned")
    zoom = scale / spread
    # Upstream fits whole-pixel coordinates, y up, but moves the picture by continuous ones: half a pixel each way.
    shift = fitted[:, 3] + (-0.5, 0.5)
    matrices = np.full((len(landmarks), 2, 3), np.nan)
    matrices[known] = zoom[:, None, None] * np.eye(2, 3)
    matrices[known, :, 2] = REFERENCE_SIZE / 2 - zoom[:, None] * shift
    return matrices


class Reconstruction(NamedTuple):
    """coefficients: named tensors (N,n) on the network's device (`coefficients.SIZES`); matrices (N,2,3) float64 from
    the frames to the 224 px crops in which `render(model, **coefficients, size=224)` lies over the face. Both are NaN
    in frames without landmarks."""

    coefficients: dict[str, Tensor]
    matrices: NDArray[np.float64]


@torch.no_grad()
def reconstruct(
    network: ReconNet, images: Iterable[NDArray[np.uint8]], landmarks: NDArray[np.floating], *, batch: int = 16
) -> Reconstruction:
    """Coefficients of the faces in frames, `batch` frames at a time; memory is constant in their number.

    images: N frames uint8 (H,W,3) RGB of one size, read once; landmarks (N,68,2) in continuous pixels, NaN where there
    is no face. Raises `UserError` where the numbers, types or sizes do not fit.
    """
    matrices = alignment(landmarks)
    device = next(network.parameters()).device
    frames, parts = iter(images), []
    for start in range(0, len(landmarks), batch):
        maps = matrices[start : start + batch]
        part = torch.full((len(maps), COUNT), torch.nan, device=device)
        stack = _stack(frames, len(maps), start)
        faces = np.flatnonzero(np.isfinite(maps).all(axis=(1, 2)))
        if len(faces):
            part[torch.from_numpy(faces).to(device)] = network(_crops(stack[faces], maps[faces], device)).float()
        parts.append(part)
    if next(frames, None) is not None:
        raise UserError(f"there are more frames than the {len(landmarks)} rows of landmarks")
    found = torch.cat(parts) if parts else torch.empty(0, COUNT, device=device)
    return Reconstruction(split(found), matrices)


def _stack(frames: Iterator[NDArray[np.uint8]], count: int, start: int) -> NDArray[np.uint8]:
    """The next `count` frames (count,H,W,3)."""
    taken = list(islice(frames, count))
    if len(taken) < count:
        raise UserError(f"there are {start + len(taken)} frames but more rows of landmarks")
    for index, frame in enumerate(taken):
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or frame.shape != taken[0].shape:
            raise UserError(
                f"frame {start + index} is {frame.dtype} {frame.shape}, wanted uint8 (H,W,3), all of one size as "
                f"{taken[0].shape}"
            )
    return np.stack(taken)


def _crops(frames: NDArray[np.uint8], matrices: NDArray[np.float64], device: torch.device) -> Tensor:
    """Aligned crops (B,3,224,224) in [0,1], black outside the frame as upstream."""
    rows, columns = _window(matrices, frames.shape[1], frames.shape[2])
    part = torch.from_numpy(frames[:, rows, columns]).to(device).permute(0, 3, 1, 2).float() / 255
    shifted = matrices.copy()
    shifted[:, :, 2] += matrices[:, :, :2] @ np.array([columns.start, rows.start])
    return warp(part, shifted, (REFERENCE_SIZE, REFERENCE_SIZE), border="zeros")


_WINDOW_GRID = 64
"""A window starts at multiples of this, so that `warp` halves large pictures at the same pixels as the whole frame."""


def _window(matrices: NDArray[np.float64], height: int, width: int) -> tuple[slice, slice]:
    """Rows and columns that hold all the crops, with room for interpolation; never empty."""
    corners = np.array([[0, 0], [REFERENCE_SIZE, 0], [0, REFERENCE_SIZE], [REFERENCE_SIZE, REFERENCE_SIZE]])
    inverses = np.stack([invert(matrix) for matrix in matrices])
    points = corners @ inverses[:, :, :2].transpose(0, 2, 1) + inverses[:, None, :, 2]
    low = (points.min(axis=(0, 1)) - _WINDOW_GRID) // _WINDOW_GRID * _WINDOW_GRID
    high = points.max(axis=(0, 1)) + _WINDOW_GRID
    sides = []
    for start, stop, size in zip(low, high, (width, height), strict=True):
        first = int(np.clip(start, 0, (size - 1) // _WINDOW_GRID * _WINDOW_GRID))
        sides.append(slice(first, int(np.clip(np.ceil(stop), first + 1, size))))
    return sides[1], sides[0]
