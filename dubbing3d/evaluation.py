"""Stage 2 on held-out people: faces drawn from references of another time, beside what needs no training.

Every frame is drawn with its own true expression, so that the real frame is the truth (self-reconstruction). Its
references come from the other half of the clip, chosen as dubbing chooses them; none lies near the frame. All rows see
the same references and frames, and what lies outside of the mask is the real frame's for all of them:

- `rendered`: the network;
- `warp`: the reference, carried to the frame's pose and expression by the face model, see `warp_renderer`;
- `copy`: the reference as it is.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.clip_scores import ClipScore, paired_difference, report
from common.face3d.fit_start import compose_affine, invert_affine
from common.face3d.morphable import FaceModel
from common.metrics.temporal import flicker, landmark_jerk
from common.progress import counted
from dubbing3d.crop_mask import MaskKind, crop_mask
from dubbing3d.data import longest_run
from dubbing3d.expression_evaluation import REAL, People, chosen_columns
from dubbing3d.guide import FaceFrames
from dubbing3d.infer import FaceRenderer
from dubbing3d.likeness import STATED, Likeness
from dubbing3d.references import choose_references, lip_opening
from dubbing3d.warp_renderer import WarpRenderer

RENDERED, WARP, COPY, REFERENCE = "rendered", "warp", "copy", "reference"
BASELINES = (WARP, COPY)
APART = 10
"""Frames at least between a frame and its references, in clips of 40 frames or more."""
SHORTEST = 8
"""Frames with a face that a clip needs."""
COMPARED = (
    "psnr",
    "ssim",
    "lpips",
    "mouth_psnr",
    "mouth_ssim",
    "hidden_psnr",
    "hidden_ssim",
    "lmd",
    "mouth_lmd",
    "csim",
)
_BATCH = 8
_STRETCH = 64  # frames that are held at once, for figures over time
_UNSTEADY = ("flicker", "mouth_flicker", "jerk")


@dataclass(frozen=True)
class FrameRow:
    """A frame of the network's."""

    clip: str
    frame: int
    figures: dict[str, float]
    """of `Likeness.compare`; `motion`, how far the real landmarks lie from the reference's, in px at `STATED`; `pitch`,
    `yaw` and `roll` in degrees"""


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate_renderer` found."""

    metrics: dict[str, Any]
    """plain values, ready for JSON"""
    frames: list[FrameRow]
    pictures: dict[str, list[np.ndarray]] = field(default_factory=dict)
    """method -> crops uint8 (S,S,3) of the same frames"""


@dataclass(frozen=True, eq=False)
class _Shown:
    """Frames of a clip with all that a renderer is told of them."""

    numbers: np.ndarray
    crops: Tensor
    """(B,3,S,S) uint8."""
    faces: FaceFrames
    matrices: Tensor
    masks: Tensor
    landmarks: Tensor

    @property
    def signed(self) -> Tensor:
        """The crops in [-1,1]."""
        return self.crops.float() / 127.5 - 1


class _Turning(FaceFrames):
    """Faces of reference frames that take on another frame's pose and light together with its expression."""

    target: FaceFrames

    @classmethod
    def between(cls, reference: _Shown, target: _Shown) -> "_Turning":
        """From one reference to B frames, all drawn in the reference's crop as they lie in their own crops."""
        count = len(target.numbers)
        found = cls(**vars(_repeated(reference.faces, count)))
        into = compose_affine(target.matrices, invert_affine(target.faces.matrix.double()))
        here = reference.matrices.expand(count, 2, 3)
        placed = compose_affine(invert_affine(into), here)
        object.__setattr__(found, "target", FaceFrames(**(vars(target.faces) | {"matrix": placed})))
        return found

    def with_expression(self, expression: Tensor) -> FaceFrames:
        """The other frame's faces with an expression (B,Ke)."""
        return self.target.with_expression(expression)


def evaluate_renderer(
    renderer: FaceRenderer,
    model: FaceModel,
    people: People,
    likeness: Likeness,
    *,
    references: int = 1,
    frames: int = 0,
) -> Evaluation:
    """Measure a renderer on clips.

    On the CPU the same files, settings and number of threads give the same numbers to the last digit. Memory does not
    grow with the length of a clip but for its coefficients and figures.

    Args:
        renderer: the network behind the protocol of `dubbing3d.infer`.
        model: the face model of the clips' coefficients, on the renderer's device.
        people: clips with crops of the renderer's size.
        likeness: compares frames.
        references: pictures that the renderer is shown of a clip.
        frames: consecutive frames of each clip at most, from a quarter of it on; 0: all.
    """
    rows, scores = list[FrameRow](), {name: list[ClipScore]() for name in (RENDERED, *BASELINES)}
    columns, pictures = chosen_columns(people.chosen), dict[str, list[np.ndarray]]()
    warper = WarpRenderer(model)
    for index in counted(people.chosen, "drawn clips"):
        clip = _Clip(people, index, model, renderer.mask, frames, references)
        found: dict[str, list[dict[str, Tensor]]] = {name: [] for name in scores}
        for shown, drawn, reference in _stretches(clip, renderer, warper):
            values = _measure(likeness, shown, drawn)
            for name, part in values.items():
                found[name].append(part)
            rows += _rows(people.clips.ids[index], shown, values[RENDERED], reference)
            if index in columns and shown.numbers[0] == clip.frames[0]:
                _collect(pictures, shown, drawn, reference, columns[index])
        for name, parts in found.items():
            figures = _clip_figures(parts)
            scores[name].append(ClipScore(people.clips.ids[index], people.names[index], len(clip.frames), figures))
    metrics = report(scores, "")
    metrics |= {
        "clips": len(people.chosen),
        "people": len({people.names[index] for index in people.chosen}),
        "frames": len(rows),
        "against": {name: _against(metrics["scores"], name) for name in BASELINES},
        "size": people.clips.size,
        "mask": renderer.mask,
        "references": references,
        "reference": "from the other half of the clip",
        "measured_by": likeness.names,
        "warping_error": "not measured: it needs a flow network that is not the one trained with",
    }
    return Evaluation(metrics, rows, pictures)


class _Clip:
    """The frames of a clip that are drawn, and the references of each half."""

    def __init__(
        self, people: People, index: int, model: FaceModel, mask: MaskKind, frames: int, references: int
    ) -> None:
        self.clips, self.index, self.model, self.mask, self.count = people.clips, index, model, mask, references
        start, count = longest_run(self.clips.matrices[index])
        begin = start + (count - frames) // 4 if 0 < frames < count else start
        self.frames = np.arange(begin, begin + min(count, frames or count))
        self.run, self.middle = np.arange(start, start + count), start + count // 2
        self.gap = min(APART, count // 4)

    def halves(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Frames of the first half with the references of the second, and the other way round."""
        late = self.run[self.run >= self.middle + self.gap]
        early = self.run[self.run < self.middle - self.gap]
        before = self.frames < self.middle
        for frames, places in ((self.frames[before], late), (self.frames[~before], early)):
            if len(frames):
                yield frames, self._best(places)

    def _best(self, places: np.ndarray) -> np.ndarray:
        known = np.zeros(self.run[-1] + 1, bool)
        known[places] = True
        angles = self.clips.coefficients(self.index).angles.numpy()[: len(known)]
        points = self.clips.clips[self.index].landmarks
        assert points is not None
        return choose_references(known, angles, lip_opening(points[: len(known)]), self.count)

    def show(self, numbers: np.ndarray) -> _Shown:
        """Frames (B,) of the clip."""
        clips, index = self.clips, self.index
        faces = FaceFrames.of(clips.coefficients(index), torch.from_numpy(numbers))
        matrices, landmarks = torch.from_numpy(clips.matrices[index][numbers]), clips.landmarks(index, numbers)
        masks = crop_mask(self.model, faces, matrices, clips.size, kind=self.mask, landmarks=landmarks).cpu()
        return _Shown(numbers, clips.crops(index, numbers), faces, matrices, masks, landmarks)


def _stretches(
    clip: _Clip, renderer: FaceRenderer, warper: WarpRenderer
) -> Iterator[tuple[_Shown, dict[str, Tensor], _Shown]]:
    """Stretches of consecutive frames, what each method draws of them, uint8 (B,3,S,S), and the first reference."""
    device = clip.model.mean_shape.device
    for frames, places in clip.halves():
        references = clip.show(places)
        for each in (renderer, warper):
            each.begin(*_told(references, device))
        first = clip.show(places[:1])
        for part in np.array_split(frames, -(-len(frames) // _STRETCH)):
            shown = clip.show(part)
            drawn: dict[str, list[Tensor]] = {name: [] for name in (RENDERED, WARP, COPY)}
            for begin in range(0, len(part), _BATCH):
                batch = _part(shown, slice(begin, begin + _BATCH))
                for name, image in _drawn(batch, first, renderer, warper, device).items():
                    drawn[name].append(_pasted(image.cpu(), batch))
            yield shown, {name: torch.cat(images) for name, images in drawn.items()}, first


def _drawn(
    batch: _Shown, reference: _Shown, renderer: FaceRenderer, warper: WarpRenderer, device: torch.device
) -> dict[str, Tensor]:
    """Crops (B,3,S,S) in [-1,1] by method."""
    crops, faces, matrices, masks, landmarks = _told(batch, device)
    expression, count = faces.expression.to(device), len(batch.numbers)
    rendered = renderer.render(crops, faces, expression, matrices, masks, landmarks)
    copied = reference.signed.to(device).expand(count, -1, -1, -1)
    warped = warper.render(
        copied,
        _Turning.between(reference, batch),
        expression,
        reference.matrices.expand(count, 2, 3),
        torch.ones_like(masks),  # the whole reference moves, not its lower face alone
        reference.landmarks.expand(count, 68, 2),
    )
    return {RENDERED: rendered.image, WARP: warped.image, COPY: copied}


def _told(shown: _Shown, device: torch.device) -> tuple[Tensor, FaceFrames, Tensor, Tensor, Tensor]:
    return shown.signed.to(device), shown.faces, shown.matrices, shown.masks.to(device), shown.landmarks


def _part(shown: _Shown, rows: slice) -> _Shown:
    return _Shown(
        shown.numbers[rows],
        shown.crops[rows],
        shown.faces.at(rows),
        shown.matrices[rows],
        shown.masks[rows],
        shown.landmarks[rows],
    )


def _repeated(faces: FaceFrames, count: int) -> FaceFrames:
    """One frame's face `count` times."""
    values: dict[str, Any] = {
        name: value.expand(count, *value.shape[1:]) if isinstance(value, Tensor) else value
        for name, value in vars(faces).items()
    }
    return FaceFrames(**values)


def _pasted(image: Tensor, shown: _Shown) -> Tensor:
    """uint8 crops: the real ones, with an image in place of what the mask hides."""
    mixed = torch.lerp(shown.signed, image.float().clamp(-1, 1), shown.masks)
    return ((mixed + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def _measure(likeness: Likeness, shown: _Shown, drawn: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Figures by method and name, a value a frame or fewer (those over time)."""
    look, values = likeness.look(shown.crops, shown.landmarks), {}
    mouths, scale = likeness.mouths(look), STATED / shown.crops.shape[-1]
    real = _over_time(shown.crops, look.found * scale, mouths)
    for name, images in drawn.items():
        values[name], found = likeness.compare(images, look, shown.masks)
        values[name] |= _over_time(images, found * scale, mouths)
        values[name] |= {f"real_{key}": value for key, value in real.items()}
    return values


def _over_time(images: Tensor, landmarks: Tensor, mouths: Tensor) -> dict[str, Tensor]:
    if len(images) < 4:
        return {name: torch.zeros(0) for name in _UNSTEADY}
    return dict(zip(_UNSTEADY, (flicker(images), flicker(images, mouths), landmark_jerk(landmarks)), strict=True))


def _clip_figures(parts: Sequence[dict[str, Tensor]]) -> dict[str, float]:
    """Means over a clip's frames; figures over time as a share of the real clip's, 1 is right."""
    joined = {name: torch.cat([part[name].double() for part in parts]) for name in parts[0]}
    figures = {}
    for name, values in joined.items():
        if values.isfinite().any() and not name.startswith("real_"):
            figures[name] = float(values.nanmean())
    for name in _UNSTEADY:
        if name in figures and float(joined[f"real_{name}"].nansum()) > 0:
            figures[f"{name}_ratio"] = figures[name] / float(joined[f"real_{name}"].nanmean())
    return figures


def _rows(clip: str, shown: _Shown, values: dict[str, Tensor], reference: _Shown) -> list[FrameRow]:
    scale = STATED / shown.crops.shape[-1]
    columns = {name: column for name, column in values.items() if len(column) == len(shown.numbers)}
    columns = {name: column for name, column in columns.items() if not name.endswith(_UNSTEADY)}
    columns["motion"] = scale * (shown.landmarks - reference.landmarks).norm(dim=2).mean(dim=1)
    angles = torch.rad2deg(shown.faces.angles)
    columns |= {name: angles[:, place] for place, name in enumerate(("pitch", "yaw", "roll"))}
    return [
        FrameRow(clip, int(frame), {name: float(column[row]) for name, column in columns.items()})
        for row, frame in enumerate(shown.numbers)
    ]


def _against(scores: Mapping[str, Mapping[str, Any]], baseline: str) -> dict[str, Any]:
    """Differences of the network's figures to a baseline's, clip by clip."""
    found = {name: paired_difference(scores[RENDERED], scores[baseline], name) for name in COMPARED}
    return {name: difference.to_dict() for name, difference in found.items() if difference is not None}


def _collect(
    pictures: dict[str, list[np.ndarray]], shown: _Shown, drawn: dict[str, Tensor], reference: _Shown, count: int
) -> None:
    rows = np.linspace(0, len(shown.numbers) - 1, count + 2).round().astype(int)[1:-1]
    sources = {REAL: shown.crops, REFERENCE: reference.crops.expand_as(shown.crops), **drawn}
    for name, images in sources.items():
        pictures.setdefault(name, []).extend(images[row].permute(1, 2, 0).numpy() for row in rows)
