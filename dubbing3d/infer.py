"""Trained networks in use: expressions out of a recording, faces out of expressions. Plain modules only."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from common.dubbing.speech import samples
from common.face3d.morphable import FaceModel
from dubbing3d.adapt import Examples, adapted
from dubbing3d.build import LoadedExpression, LoadedRenderer
from dubbing3d.crop_mask import MaskKind
from dubbing3d.guide import FaceFrames, guide_input
from dubbing3d.motion import carried
from dubbing3d.networks.renderer import References
from dubbing3d.render_parts import RenderParts
from dubbing3d.speech import BEFORE

FPS = 25
SAMPLES = 640
"""Of a frame at 25 fps."""
_PART, _AROUND = 100, 25
"""Frames whose expressions are kept of a pass through the network, and those before and behind that it sees as well."""


class ClipFrames(NamedTuple):
    """B frames of one clip as a renderer is given them."""

    crops: Tensor
    """(B,3,S,S) in [-1,1]."""
    faces: FaceFrames
    """Their own coefficients."""
    matrices: Tensor
    """(B,2,3) maps from the clip's px to the crops."""
    masks: Tensor
    """(B,1,S,S) crop masks."""
    landmarks: Tensor
    """(B,68,2) in px of the crops; NaN where they are not known."""


class FaceRenderer(Protocol):
    """Draws the faces of one clip: a trained network, or the face model's own displacement (`warp_renderer`)."""

    @property
    def name(self) -> str:
        """For the report and the label."""
        ...

    @property
    def mask(self) -> MaskKind:
        """What of a crop it draws."""
        ...

    @property
    def batch(self) -> int:
        """Faces that it draws together at the best speed."""
        ...

    def crop_size(self, side: float) -> int:
        """Side in px of the crops that it draws of a part of the frame that is so many px wide."""
        ...

    def begin(self, crops: Tensor, faces: FaceFrames, matrices: Tensor, masks: Tensor, landmarks: Tensor) -> None:
        """Learn the clip's look from references; arguments as of `render`, without an expression."""
        ...

    def render(
        self, crops: Tensor, old: FaceFrames, expression: Tensor, matrices: Tensor, masks: Tensor, landmarks: Tensor
    ) -> RenderParts:
        """Faces with another expression.

        Args:
            crops: (B,3,S,S) in [-1,1].
            old: the frames' own coefficients.
            expression: (B,Ke) that is wanted.
            matrices: (B,2,3) maps from the clip's px to the crops.
            masks: (B,1,S,S) crop masks.
            landmarks: (B,68,2) in px of the crops.
        """
        ...


@runtime_checkable
class Adapting(Protocol):
    """A renderer that can learn more of a clip than its references show."""

    @property
    def adapt_steps(self) -> int:
        """Updates that it was made for; 0 is none."""
        ...

    def adapt(self, frames: Iterable[ClipFrames], steps: int, progress: Callable[[int], None] | None = None) -> None:
        """Learn from batches of the clip's frames as they are, in so many updates; after `begin`."""
        ...


@runtime_checkable
class Remembering(Protocol):
    """A renderer whose faces depend on those that it drew before."""

    def restart(self) -> None:
        """Forget them: the next face does not follow the last one (a cut, or frames without a face)."""
        ...


class LearnedRenderer:
    """Stage 2's networks behind the protocol; references are encoded once per clip.

    With a recurrent network, each face is drawn with the one before it at hand, which the face model's motion carries
    into its frame, and the first of a sequence with none, as in training.

    Args:
        loaded: the network, on its device.
        model: the face model of the coefficients that come, on the same device.
    """

    def __init__(self, loaded: LoadedRenderer, model: FaceModel) -> None:
        self.model, self.shape = model, loaded.cfg.renderer
        self.network, self.name, self.mask = loaded.network, "learned", self.shape.mask
        self.adapt_steps, self._loaded = self.shape.adapt_steps, loaded
        on_cpu = model.mean_shape.device.type == "cpu"
        self.batch = 4 if on_cpu else 16
        if not on_cpu:  # a CPU's instance norms copy maps that are channels last
            self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._shown: tuple[Tensor, Tensor | None] | None = None
        self._references: References | None = None
        # The last picture, with the face that it shows and that one's matrix.
        self._previous: tuple[Tensor, FaceFrames, Tensor] | None = None

    def crop_size(self, side: float) -> int:
        """The network's own, whatever the frame."""
        return self.shape.size

    @torch.no_grad()
    def begin(self, crops: Tensor, faces: FaceFrames, matrices: Tensor, masks: Tensor, landmarks: Tensor) -> None:
        """See `FaceRenderer`; takes as many of the references as the network was trained with."""
        count = min(self.shape.references, len(crops))
        guides = None
        if self.shape.reference_guide:
            guides = self.guide(faces, matrices)[None, :count]
        self.network = self._loaded.network
        self._shown = crops[None, :count], guides
        self._references = self.network.encode_references(*self._shown)
        self.restart()

    @torch.no_grad()
    def adapt(self, frames: Iterable[ClipFrames], steps: int, progress: Callable[[int], None] | None = None) -> None:
        """See `Adapting`; until the next `begin` a copy of the network draws."""
        assert self._shown is not None, "begin comes first"
        parts = [(self.guide(part.faces, part.matrices), part.crops, part.masks) for part in frames]
        examples = Examples(*(torch.cat(values) for values in zip(*parts, strict=True)))
        self.network = adapted(self._loaded.network, self._loaded.cfg, self._shown, examples, steps, progress=progress)
        self._references = self.network.encode_references(*self._shown)

    def restart(self) -> None:
        """See `Remembering`."""
        self._previous = None

    @torch.no_grad()
    def guide(self, faces: FaceFrames, matrices: Tensor) -> Tensor:
        """I_3D (B,3 or 4,S,S) as the network takes it, of faces in crops; matrices (B,2,3) from the clip's px."""
        return guide_input(self.model, faces, matrices, self.shape.size, covered=self.shape.guide_mask)

    @torch.no_grad()
    def render(
        self, crops: Tensor, old: FaceFrames, expression: Tensor, matrices: Tensor, masks: Tensor, landmarks: Tensor
    ) -> RenderParts:
        """See `FaceRenderer`."""
        assert self._references is not None, "begin comes first"
        wanted = old.with_expression(expression)
        guide = self.guide(wanted, matrices)
        left = crops * (1 - masks)
        if not self.network.recurrent:
            return self._parts(guide, left, None)
        parts = []
        for index in range(len(crops)):
            one = slice(index, index + 1)
            face, matrix = wanted.at(one), matrices[one]
            previous = None if self._previous is None else carried(self.model, *self._previous, face, matrix)
            parts.append(self._parts(guide[one], left[one], previous))
            self._previous = parts[-1].image, face, matrix
        return RenderParts(
            *(torch.cat(values) for values in zip(*(vars(part).values() for part in parts), strict=True))
        )

    def _parts(self, guide: Tensor, left: Tensor, previous: Tensor | None) -> RenderParts:
        assert self._references is not None
        drawn = self.network(guide, self._references, left, previous)
        flow = left.new_zeros(len(left), 2, *left.shape[2:]) if drawn.flow is None else drawn.flow[:, 0]
        return RenderParts(drawn.image_i, flow, drawn.warp, drawn.colour_i, drawn.attention_i)


Images = Callable[[int, int], Tensor]
"""(first frame, count) -> semantic images (count,3,S,S) in [-1,1]; asked for in the order of time."""


@torch.inference_mode()
def predict_expressions(loaded: LoadedExpression, audio: Path, seconds: float, images: Images | None = None) -> Tensor:
    """Expressions (F,Ke) at 25 fps, on the CPU, of a recording that is streamed.

    The network goes through the speech in parts that overlap, so that memory does not grow with its length but for the
    result.

    Args:
        loaded: stage 1.
        audio: sound file, or a video with sound.
        seconds: length of the recording.
        images: for a network with semantic images.
    """
    total = max(1, int(np.ceil(seconds * FPS - 1e-6)))
    sound, device = SampleWindow(samples(audio, [])), next(loaded.network.parameters()).device
    found = []
    for start in range(0, total, _PART):
        first, last = max(0, start - _AROUND), min(total, start + _PART + _AROUND)
        windows = loaded.speech(sound.read, first, last - first)[None].to(device)
        seen = None if images is None else images(first, last - first)[None].to(device)
        predicted = loaded.network(windows, seen)[0]
        found.append(predicted[start - first : start - first + min(_PART, total - start)].cpu())
    return torch.cat(found)


@torch.inference_mode()
def silent_expression(loaded: LoadedExpression, images: Callable[[int], Tensor] | None = None) -> Tensor:
    """The expression (Ke,), on the CPU, of a network that hears nothing; `images` gives so many images of that."""
    device = next(loaded.network.parameters()).device
    count = 2 * BEFORE + 9
    windows = loaded.speech(lambda _, samples: torch.zeros(samples), 0, count)[None].to(device)
    seen = None if images is None else images(count)[None].to(device)
    return loaded.network(windows, seen)[0, count // 2].cpu()


def at_times(expressions: Tensor, times: np.ndarray) -> Tensor:
    """Expressions (B,Ke) at seconds (B,), between frames (F,Ke) of 25 fps; the last one holds."""
    place = torch.from_numpy(np.asarray(times) * FPS).clamp(0, len(expressions) - 1)
    first = place.floor().long()
    later = (first + 1).clamp_max(len(expressions) - 1)
    return torch.lerp(expressions[first], expressions[later], (place - first)[:, None].to(expressions))


class SampleWindow:
    """Samples asked for by place, each request no earlier than a second before the latest; holds a few seconds."""

    def __init__(self, chunks: Iterator[np.ndarray]) -> None:
        self._chunks, self._first = chunks, 0
        self._held = np.zeros(0, np.float32)

    def read(self, start: int, count: int) -> Tensor:
        """Samples (count,) from `start` on; zeros outside of the recording."""
        while self._first + self._held.size < start + count and (chunk := next(self._chunks, None)) is not None:
            self._held = np.concatenate([self._held, chunk])
            gone = min(max(0, start - self._first - _AROUND * 2 * SAMPLES), self._held.size)
            self._held, self._first = self._held[gone:], self._first + gone
        sound = torch.zeros(count)
        low, high = max(start, self._first), min(start + count, self._first + self._held.size)
        if high > low:
            sound[low - start : high - start] = torch.from_numpy(self._held[low - self._first : high - self._first])
        return sound
