"""What turns pictures into dubbed ones once the faces of a video are known; the work of `dubbing3d.dub`."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from common.dubbing.footage import Playback, Shown
from common.dubbing.report import DubReport
from common.dubbing.stream import Scene, WhenShorter, held_at_once
from common.errors import UserError
from common.face3d.morphable import FaceModel
from common.faces.paste import cut_crops, paste_crops
from common.faces.seam import match_seam
from common.progress import Bars
from dubbing3d.build import LoadedExpression
from dubbing3d.coefficients import spoken_columns
from dubbing3d.crop_mask import crop_mask, feathered
from dubbing3d.debug_sheet import DebugSheet
from dubbing3d.face_plan import plan_face
from dubbing3d.guide import FaceFrames, draw_guide
from dubbing3d.infer import (
    Adapting,
    ClipFrames,
    FaceRenderer,
    Remembering,
    at_times,
    predict_expressions,
    silent_expression,
)
from dubbing3d.render_parts import RenderParts
from dubbing3d.semantic import StillMouths

_MASK_SIZE = 160
"""px at which masks are worked out; their edges are soft, so that more would show nothing."""
_LEARNED_FROM = 128
"""Frames of a clip, at most, from which a renderer learns the person."""


@dataclass(frozen=True)
class DubSettings:
    """How a video is dubbed."""

    face: str = "largest"
    """Whose lips move: largest, longest or index:K."""
    when_shorter: WhenShorter = "stop"
    """Speech shorter than the video: stop the video with it, or keep the rest, silent and with a closed mouth."""
    silence: Literal["close", "ignore"] = "close"
    """Where nobody speaks, close the mouth, or let it follow whatever is heard."""
    rest: Literal["clip", "model"] = "clip"
    """What the network's silence looks like: the person's closed mouth, or just as the network gives it."""
    smooth: bool = False
    """Smooth the fitted poses in time once more."""
    colours: bool = True
    """Fit the pictures' colours too, not only the landmarks."""
    references: int = 6
    """Pictures of the clip that tell the renderer how the person looks."""
    adapt: int | None = None
    """Steps in which a trained renderer learns the person from the clip; None is what its configuration says."""
    feather: float = 0.05
    """Width of the mask's soft edge as a share of the crop."""
    seam: Literal["match", "plain"] = "match"
    """Let the drawing's colours meet the frame's along the soft edge (`common.faces.seam`), or leave them."""
    crf: int = 18
    """x264's quality of the output, 0 (lossless) to 51."""
    batch: int = 0
    """Faces that are drawn together; 0 is the renderer's best."""
    backend: str = "dlib"
    """What finds faces: dlib or face_alignment."""
    visible_label: bool = False
    """Draw the synthetic label into the pictures as well."""

    def __post_init__(self) -> None:
        if not 0 <= self.feather <= 0.5 or not 0 <= self.crf <= 51 or self.batch < 0 or self.references < 1:
            raise UserError(
                f"dubbing needs feather in [0, 0.5], crf in [0, 51], batch >= 0 and references >= 1, not "
                f"{self.feather}, {self.crf}, {self.batch} and {self.references}"
            )
        if self.adapt is not None and self.adapt < 0:
            raise UserError(f"dubbing needs adapt >= 0, not {self.adapt}")


@dataclass(frozen=True, eq=False)
class Performer:
    """What dubs: stage 1, a renderer, the face model of both on one device, and a lip-sync network at need."""

    expression: LoadedExpression
    renderer: FaceRenderer
    model: FaceModel
    semantic: Path | None = None
    """A lipsync checkpoint that draws the images that stage 1 looks at."""

    def __post_init__(self) -> None:
        """Raises `UserError` where the parts do not belong together."""
        self.expression.mark.check_model(self.model, "the expression checkpoint")
        looks = self.expression.network.semantic
        if looks and self.semantic is None:
            raise UserError(
                "the expression checkpoint looks at drawn mouths: name the network that draws them (--semantic)"
            )
        if self.semantic is not None and not looks:
            raise UserError("the expression checkpoint was trained without drawn mouths: leave --semantic out")


class Dubber:
    """Turns batches of pictures into dubbed ones, in the order of time; see `common.dubbing.stream.Dubber`.

    Args:
        performer: the networks and the face model.
        scene: the video and the speech.
        settings: how.
        debug: whether to keep a debug sheet.

    Attributes:
        batch: pictures that are taken at once.
        sheet: the debug sheet, if one is kept.

    Raises:
        UserError: no face that can be dubbed; a semantic checkpoint of another kind.
    """

    def __init__(self, performer: Performer, scene: Scene, settings: DubSettings, *, debug: bool) -> None:
        self._model, self._renderer, self._settings = performer.model, performer.renderer, settings
        self._clock, self._footage, self._speech = scene.clock, scene.footage, scene.speech
        self._times, self._shots = scene.tracking.times, list(scene.tracking.shots)
        self._last = (-1, 0)  # number and source of the last face that was drawn
        self._device = self._model.mean_shape.device
        self.batch = held_at_once(scene.footage, settings.batch or self._renderer.batch)
        self.sheet = DebugSheet(Playback(scene.footage, self._times, scene.seconds).total) if debug else None
        task = scene.bars.add_task("face model", total=scene.tracking.frames)
        with self._clock("fit"):
            self._plan = plan_face(
                scene.tracking,
                settings.face,
                self._model,
                scene.footage,
                self._renderer.crop_size,
                references=settings.references,
                colours=settings.colours,
                smooth_poses=settings.smooth,
                progress=lambda frames: scene.bars.advance(task, frames),
            )
        with self._clock("render"):
            pictures = self._begin()
        self._adapt(scene.bars)
        with self._clock("listen"):
            self._expressions, self._shift = self._predict(performer, pictures[0])
        names = self._model.expression_names
        self._columns = torch.tensor(spoken_columns(names))
        self._named = len(self._columns) < len(names)

    def __call__(self, batch: list[tuple[Shown, np.ndarray]], report: DubReport) -> list[np.ndarray]:
        """The pictures, those with a face dubbed, the others the very same arrays."""
        images = [image for _, image in batch]
        sources = np.array([shown.source for shown, _ in batch])
        times = np.array([shown.time for shown, _ in batch])
        present = self._plan.present[sources]
        rows = np.flatnonzero(present)
        activity = self._speech.activity(times) if self._settings.silence == "close" else np.ones(len(batch))
        if self.sheet is not None:
            self.sheet.count(np.where(present, self._plan.fit.confidence.numpy()[sources], 0.0))
        if len(rows):
            wanted = self._wanted(sources[rows], times[rows], activity[rows])
            for part in self._sequences(sources[rows], report.frames + rows):
                chosen = rows[part]
                given = [images[row] for row in chosen]
                drawn = self._draw(given, sources[chosen], wanted[part], report.frames + chosen)
                for row, image in zip(chosen, drawn, strict=True):
                    images[row] = image
        report.frames += len(batch)
        report.without_face += len(batch) - len(rows)
        report.silent += int((activity == 0).sum())
        return images

    def _sequences(self, sources: np.ndarray, numbers: np.ndarray) -> Iterator[slice]:
        """Faces (B,) that may be drawn at once: a renderer with a memory loses it before any that follows no other."""
        if not isinstance(self._renderer, Remembering):
            yield slice(0, len(sources))
            return
        number, source = self._last
        earlier = np.append(source, sources[:-1])
        broken = (np.diff(numbers, prepend=number) != 1) | (
            np.isin(np.maximum(earlier, sources), self._shots) & (earlier != sources)
        )
        self._last = int(numbers[-1]), int(sources[-1])
        starts = np.flatnonzero(broken)
        for first, last in pairwise([0, *starts[starts > 0], len(sources)]):
            if broken[first]:
                self._renderer.restart()
            yield slice(first, last)

    def _begin(self) -> list[np.ndarray]:
        """Show the renderer the references, which are read out of turn; returns their pictures."""
        plan = self._plan
        pictures = []
        for frame in plan.references:
            found = self._footage.read(float(self._times[frame]))
            pictures.append(next(found)[1])
            found.close()
        given = self._inputs(pictures, plan.references)
        self._reference = given.crops[0].cpu()
        self._renderer.begin(*given)
        return pictures

    def _adapt(self, bars: Bars) -> None:
        """Let a renderer that can learn from the clip do so, from frames spread over all of it."""
        if not isinstance(self._renderer, Adapting):
            return
        steps = self._renderer.adapt_steps if self._settings.adapt is None else self._settings.adapt
        free = np.setdiff1d(np.flatnonzero(self._plan.present), self._plan.references)
        if steps and len(free):
            chosen = free[np.linspace(0, len(free) - 1, min(len(free), _LEARNED_FROM)).round().astype(int)]
            task = bars.add_task("learning the face", total=steps)
            with self._clock("adapt"):
                self._renderer.adapt(self._frames(chosen), steps, lambda done: bars.advance(task, done))

    def _frames(self, chosen: np.ndarray) -> Iterator[ClipFrames]:
        """Frames of the footage, given in the order of time, in batches."""
        wanted = set(chosen.tolist())
        stored = enumerate(islice(self._footage.read(), int(chosen[-1]) + 1))
        pictures = ((index, image) for index, (_, image) in stored if index in wanted)
        while part := list(islice(pictures, self.batch)):
            yield self._inputs([image for _, image in part], np.array([index for index, _ in part]))

    def _predict(self, performer: Performer, picture: np.ndarray) -> tuple[Tensor, Tensor]:
        """Expressions (F,Ke) at 25 fps, and what is added to them, so that silence is the person's closed mouth."""
        loaded, images = performer.expression, self._semantic(performer, picture)
        silent = silent_expression(loaded, None if images is None else images.silent)
        spoken = predict_expressions(loaded, self._speech.path, self._speech.seconds, images)
        shift = self._plan.closed - silent if self._settings.rest == "clip" else torch.zeros_like(silent)
        return spoken, shift

    def _semantic(self, performer: Performer, picture: np.ndarray) -> StillMouths | None:
        if performer.semantic is None:
            return None
        landmarks = self._plan.landmarks[self._plan.references[0]]
        size = performer.expression.network.image_size
        return StillMouths(performer.semantic, size, picture, landmarks, self._speech, device=str(self._device))

    def _wanted(self, sources: np.ndarray, times: np.ndarray, activity: np.ndarray) -> Tensor:
        """The expressions (B,Ke) of pictures: spoken ones, closed in silence, the video's own beyond the mouth."""
        own, columns = self._plan.fit.expression[torch.from_numpy(sources)], self._columns
        spoken = at_times(self._expressions, times) + self._shift
        talk = torch.from_numpy(activity).to(spoken)[:, None]
        spoken = torch.lerp(self._plan.closed.expand_as(spoken), spoken, talk)
        if self._named:  # weights of named expressions; BFM's modes have no bounds
            spoken = spoken.clamp(0, 1)
        share = torch.from_numpy(self._plan.share[sources]).to(own)[:, None]
        wanted = own.clone()
        wanted[:, columns] = torch.lerp(own[:, columns], spoken[:, columns], share)
        return wanted

    def _inputs(self, images: list[np.ndarray], sources: np.ndarray) -> ClipFrames:
        plan, size = self._plan, self._plan.size
        faces = FaceFrames.of(plan.fit, torch.from_numpy(sources))
        matrices = torch.from_numpy(plan.matrices[sources])
        landmarks = plan.landmarks_in_crop(sources).to(self._device)
        crops = cut_crops(images, plan.matrices[sources], size, self._device) * 2 - 1
        small = min(size, _MASK_SIZE)
        masks = crop_mask(
            self._model, faces, matrices * (small / size), small, kind=self._renderer.mask,
            landmarks=landmarks * (small / size),
        )  # fmt: skip
        masks = F.interpolate(masks, (size, size), mode="bilinear", align_corners=False)
        return ClipFrames(crops, faces, matrices, masks, landmarks)

    def _draw(
        self, images: list[np.ndarray], sources: np.ndarray, wanted: Tensor, numbers: np.ndarray
    ) -> list[np.ndarray]:
        """Pictures with a face: cut, draw, paste."""
        with self._clock("crop"):
            crops, faces, matrices, masks, landmarks = self._inputs(images, sources)
        with self._clock("render"):
            parts = self._renderer.render(crops, faces, wanted, matrices, masks, landmarks)
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
        with self._clock("paste"):
            shares = feathered(masks, round(self._settings.feather * self._plan.size / 2))
            image = match_seam(parts.image, crops, shares) if self._settings.seam == "match" else parts.image
            pasted = paste_crops(images, (image + 1) / 2, shares, self._plan.matrices[sources])
        if self.sheet is not None:
            parts = replace(parts, image=torch.lerp(crops, image, shares))
            self._note(crops, faces.with_expression(wanted), matrices, parts, sources, numbers)
        return pasted

    def _note(
        self,
        crops: Tensor,
        faces: FaceFrames,
        matrices: Tensor,
        parts: RenderParts,
        sources: np.ndarray,
        numbers: np.ndarray,
    ) -> None:
        """Keep rows of the debug sheet."""
        assert self.sheet is not None
        for row, number in enumerate(numbers.tolist()):
            if self.sheet.wants(number):
                guide = draw_guide(self._model, faces, matrices, crops.shape[-1])[0][row]
                confidence = float(self._plan.fit.confidence[sources[row]])
                self.sheet.add(number, confidence, self._reference, crops[row], guide, parts, row)
