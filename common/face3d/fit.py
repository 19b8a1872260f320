"""Fits a face model to a clip without any trained network: shared identity and albedo, smooth pose and expression.

68 landmarks carry the fit, and the picture's colours refine it where they are given. All frames of a window are
solved at once by Levenberg-Marquardt with analytic derivatives (`fit_solve`); beyond the coefficients themselves,
memory does not grow with the length of the clip.
"""

import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common.errors import UserError
from common.face3d.camera import REFERENCE_SIZE, Camera
from common.face3d.fit_clip import ClipFit
from common.face3d.fit_refine import Photometry
from common.face3d.fit_settings import FitSettings
from common.face3d.fit_start import clip_matrix, invert_affine, transform, whole_frames
from common.face3d.fit_terms import Basis, State
from common.face3d.morphable import LANDMARKS, FaceModel
from common.faces.align import warp
from common.faces.images import as_rgb
from common.files import atomic_path


@dataclass(frozen=True, eq=False)
class Fit:
    """Coefficients of a clip of T frames, float32 on the CPU, as `face3d.render` takes them.

    They live in a frame of `size` (224) px. `matrix` maps the video's pixels there, so that a render can be drawn into
    any crop of the video without resampling (`fit_render.render_fit`).
    """

    model_name: str
    """`FaceModel.name`."""
    size: int
    identity: Tensor
    """(Ki,), shared by all frames."""
    albedo: Tensor
    """(Ka,), shared; zero where no pictures were given."""
    expression: Tensor
    """(T,Ke)."""
    angles: Tensor
    """(T,3) pitch, yaw, roll in rad."""
    translation: Tensor
    """(T,3) dm."""
    gamma: Tensor
    """(T,27) light; zero (plain white) where no pictures were given."""
    confidence: Tensor
    """(T,) in [0,1]: how much of the 68 landmarks was there and agreed with the model; 0 where there was no face and
    the coefficients are interpolated."""
    residual: Tensor
    """(T,) mean distance of the landmarks from the model's in px of the fit's frame; NaN where there was no face."""
    matrix: Tensor
    """(T,2,3) affine map from the video's pixels to the fit's."""

    def __len__(self) -> int:
        return len(self.expression)

    def summary(self) -> str:
        """How well it fits, in one line."""
        seen = self.confidence > 0
        worst = int(torch.nan_to_num(self.residual, nan=-1.0).argmax())
        return (
            f"{int(seen.sum())} of {len(self)} frames show the face; its landmarks lie {self.residual.nanmedian():.2f} "
            f"px from the model's at {self.size} px (median over frames; frame {worst} is the worst with "
            f"{self.residual[worst]:.2f} px); least confidence where it shows {self.confidence[seen].min():.2f}"
        )

    def save(self, path: Path) -> None:
        """Write an npz, atomically."""
        values = {field.name: np.asarray(getattr(self, field.name)) for field in fields(self)}
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            np.savez_compressed(file, allow_pickle=False, **values)

    @classmethod
    def load(cls, path: Path) -> "Fit":
        """Read what `save` wrote; `UserError` in one line for anything else."""
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {field.name: file[field.name] for field in fields(cls)}
        except FileNotFoundError as error:
            raise UserError(f"no such fit: {path}") from error
        except (OSError, KeyError, ValueError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(f"{path} is no fit that can be read ({error}); fit the video again") from error
        tensors = {key: torch.from_numpy(value) for key, value in arrays.items() if value.dtype.kind == "f"}
        if len(tensors) != len(arrays) - 2:
            raise UserError(f"{path} is no fit: its coefficients are not numbers; fit the video again")
        return cls(model_name=str(arrays["model_name"]), size=int(arrays["size"]), **tensors)

    def state(self) -> State:
        """The unknowns of the solver, float64."""
        pose = torch.cat([self.angles, self.translation], dim=1)
        return State(self.identity.double(), pose.double(), self.expression.double())


def fit_sequence(
    model: FaceModel,
    landmarks: np.ndarray | Tensor,
    *,
    size: tuple[int, int],
    images: Iterable[np.ndarray] | None = None,
    start: Fit | None = None,
    settings: FitSettings | None = None,
    matrix: np.ndarray | Tensor | None = None,
    shots: Sequence[int] = (),
    progress: Callable[[int], None] | None = None,
) -> Fit:
    """Fit a model to one face through a clip.

    Args:
        model: any face model; the work is done in float64 on its device.
        landmarks: (T,68,2) px of the video, NaN where a landmark or a whole face is missing.
        size: (width, height) of the video in px.
        images: T frames, uint8 (H,W,3) RGB, read once and in order; None fits by landmarks alone.
        start: coefficients to refine, e.g. a network's; the result stays near them.
        settings: None is the default.
        matrix: (2,3) or (T,2,3) maps from video to fit; None takes those of `start`, else one for the whole clip from
            its median landmarks.
        shots: first frames of the shots (`Tracking.shots`); nothing is smoothed across them.
        progress: called with the number of frames done since the last call; T in all.

    Raises:
        UserError: no frame with a face, a start of another model or length, frames of another size or number.
    """
    settings, report = settings or FitSettings(), progress or _silent
    points = torch.as_tensor(landmarks).detach().to(model.mean_shape.device, torch.float64)
    _check(model, points, start)
    camera, basis = Camera(REFERENCE_SIZE), Basis.of(model, model.landmark_vertices).double()
    if matrix is None:
        matrix = clip_matrix(points, basis, camera) if start is None else start.matrix
    affine = torch.as_tensor(matrix).to(points).expand(len(points), 2, 3)
    seen = whole_frames(points) & torch.isfinite(affine).all(2).all(1)
    if not bool(seen.any()):
        raise UserError("no frame of the clip shows a face with landmarks; there is nothing to fit")
    kept = torch.nonzero(seen).squeeze(1)
    begun = None if start is None else start.state().at(kept.cpu(), torch.float64)
    clip = ClipFit(model, camera, basis, transform(points[kept], affine[kept]), _linked(kept, shots), settings, begun)
    state = clip.solve()
    albedo, gamma = torch.zeros(model.sizes[2]), torch.zeros(len(kept), 27)
    if start is not None:
        albedo, gamma = start.albedo, start.gamma[kept.cpu()]
    if images is not None:
        photometry = Photometry(model, camera, settings.vertices, settings.photometric)
        pictures = _pictures(images, affine.cpu(), seen.tolist(), size)
        state, albedo, gamma = clip.refine(state, photometry, pictures, albedo, report)
        for _ in pictures:  # frames after the last face, so that their number is checked
            pass
        report(len(points) - len(kept))
    else:
        report(len(points))
    residual, confidence = clip.quality(state)
    return _gathered(model, state, albedo, gamma, residual, confidence, affine, kept)


def _silent(frames: int) -> None:
    """Progress of a fit that nobody watches."""


def _check(model: FaceModel, points: Tensor, start: Fit | None) -> None:
    if points.dim() != 3 or points.shape[1:] != (LANDMARKS, 2) or len(points) == 0:
        raise UserError(f"landmarks have the shape {tuple(points.shape)}; a fit needs (frames, 68, 2)")
    if start is None:
        return
    sizes = (len(start.identity), start.expression.shape[1], len(start.albedo))
    if start.model_name != model.name or sizes != model.sizes or start.size != REFERENCE_SIZE:
        raise UserError(
            f"the start was made with face model {start.model_name} {sizes} at {start.size} px, not with "
            f"{model.name} {model.sizes} at {REFERENCE_SIZE} px"
        )
    if len(start) != len(points):
        raise UserError(f"the start has {len(start)} frames, the landmarks {len(points)}")


def _linked(kept: Tensor, shots: Sequence[int]) -> Tensor:
    """Which neighbours (n-1,) among the kept frames (n,) follow each other within a shot."""
    cuts = torch.tensor(sorted(shots), dtype=kept.dtype, device=kept.device)
    return (kept[1:] - kept[:-1] == 1) & ~torch.isin(kept[1:], cuts)


def _pictures(
    images: Iterable[np.ndarray],
    matrix: Tensor,
    seen: Sequence[bool],
    size: tuple[int, int],
) -> Iterator[Tensor]:
    """The fit's own frames (3,S,S) in [0,1] of those images that show a face; checks the images' size and number."""
    stream = iter(images)
    for index, wanted in enumerate(seen):
        image = next(stream, None)
        if image is None:
            raise UserError(f"the images end after {index} frames, the landmarks after {len(seen)}")
        rgb = as_rgb(image)
        if rgb.shape[:2] != (size[1], size[0]):
            raise UserError(f"frame {index} has {rgb.shape[1]}x{rgb.shape[0]} px, wanted {size[0]}x{size[1]}")
        if wanted:
            yield _cut(rgb, matrix[index])
    if next(stream, None) is not None:
        raise UserError(f"there are more images than the {len(seen)} frames of landmarks")


def _cut(image: np.ndarray, matrix: Tensor) -> Tensor:
    """One picture (3,S,S) in [0,1], from the part of the image that it shows."""
    side = REFERENCE_SIZE
    corners = torch.tensor([[0.0, 0], [side, 0], [0, side], [side, side]], dtype=matrix.dtype)
    reach = transform(corners[None], invert_affine(matrix)[None])[0]
    room = 4 + 2 * float((reach[1] - reach[0]).norm()) / side
    low = (reach.amin(0) - room).floor().long().clamp_min(0).tolist()
    high = (reach.amax(0) + room).ceil().long().tolist()
    part = image[low[1] : max(high[1], low[1]), low[0] : max(high[0], low[0])]
    shifted = matrix.clone()
    if part.size:
        shifted[:, 2] += matrix[:, :2] @ matrix.new_tensor([float(low[0]), float(low[1])])
    else:
        part = image
    tensor = torch.from_numpy(np.ascontiguousarray(part)).permute(2, 0, 1)[None].float() / 255
    return warp(tensor, shifted[None], (side, side), border="replicate")[0]


def _gathered(
    model: FaceModel,
    state: State,
    albedo: Tensor,
    gamma: Tensor,
    residual: Tensor,
    confidence: Tensor,
    affine: Tensor,
    kept: Tensor,
) -> Fit:
    """All T frames from the kept ones: what lies between is interpolated, what lies outside held."""
    frames, place = np.arange(len(affine)), kept.cpu().numpy()

    def spread(values: Tensor) -> Tensor:
        known = values.cpu().double().numpy()
        columns = [np.interp(frames, place, column) for column in known.T]
        return torch.from_numpy(np.stack(columns, axis=1)).float()

    def placed(values: Tensor, empty: float) -> Tensor:
        whole = torch.full((len(frames),), empty)
        whole[kept.cpu()] = values.cpu().float()
        return whole

    pose = spread(state.pose)
    return Fit(
        model_name=model.name,
        size=REFERENCE_SIZE,
        identity=state.identity.cpu().float(),
        albedo=albedo.cpu().float(),
        expression=spread(state.expression),
        angles=pose[:, :3],
        translation=pose[:, 3:],
        gamma=spread(gamma),
        confidence=placed(confidence, 0.0),
        residual=placed(residual, torch.nan),
        matrix=affine.cpu(),
    )
