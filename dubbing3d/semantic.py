"""Semantic images for stage 1 (eq. 3): faces that a lip-sync network draws for the same speech, or a folder of such.

The only file that knows `lipsync`. A reference lies in another time of the clip than its target: a network that was
shown the target's own mouth would hand it on, and stage 1 would learn to read lips instead of listening.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional as F

from common.config import ExperimentConfig
from common.dubbing.speech import Speech
from common.errors import UserError
from common.video import Clip, read_frames
from dubbing3d.clips import DubClips
from dubbing3d.config import SemanticConfig

_PICTURES = (".png", ".jpg", ".jpeg")
_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv")


class SemanticImages(Protocol):
    """Gives the images of a clip's frames."""

    def __call__(self, index: int, start: int, count: int) -> Tensor:
        """(count,3,S,S) uint8 RGB of frames `start` to `start + count` of clip `index`."""
        ...


def semantic_images(clips: DubClips, cfg: SemanticConfig) -> SemanticImages:
    """What the configuration asks for; `UserError` where it names neither a checkpoint nor a folder."""
    if cfg.checkpoint:
        return DrawnMouths(clips, Path(cfg.checkpoint), cfg.size)
    if cfg.folder:
        return FolderMouths(clips, Path(cfg.folder), cfg.size)
    raise UserError(
        "expression.semantic wants images: set semantic.checkpoint to a lipsync run's last.ckpt or semantic.folder to "
        "drawn faces, or go without (expression.semantic=false)"
    )


def far_frames(known: np.ndarray) -> np.ndarray:
    """For each frame of `known` (T,) bool the frame (T,) that its reference is: half of the known ones away.

    Frames of the first half share the middle of the second, and the other way round, so that references do not change
    with every frame. Frames that are not known get the same.
    """
    places = np.flatnonzero(known)
    early, late = places[len(places) // 4], places[min(len(places) - 1, 3 * len(places) // 4)]
    middle = places[len(places) // 2]
    return np.where(np.arange(len(known)) < middle, late, early)


def teacher_kind() -> str:
    """Kind of the checkpoints that `DrawnMouths` reads."""
    from lipsync.build import KIND

    return KIND


def teacher_config(budget: str, words: Sequence[str]) -> ExperimentConfig:
    """The training of lipsync's own Wav2Lip row at a table's budget, with overrides."""
    from common.table import configure  # brings Lightning along
    from lipsync.config import LipSyncConfig
    from lipsync.table import EXPERIMENTS, TABLE

    return configure(LipSyncConfig, TABLE.budget(budget), EXPERIMENTS / "table2_wav2lip.yaml", words)


def train_teacher(cfg: ExperimentConfig) -> Path:
    """Train, or finish, what `teacher_config` gives; its run folder."""
    from lipsync.config import LipSyncConfig
    from lipsync.train import train

    assert isinstance(cfg, LipSyncConfig)
    return train(cfg, resume=True)


class DrawnMouths:
    """Faces that a lipsync generator draws for the clips' own speech; kept in memory where the clips are.

    Args:
        clips: whose speech.
        checkpoint: a lipsync run's checkpoint or published weights of a generator.
        size: side of the images in px.

    Raises:
        UserError: a checkpoint of another kind; a clip without a face.
    """

    def __init__(self, clips: DubClips, checkpoint: Path, size: int) -> None:
        from lipsync.infer import LipSync  # the teacher is optional

        self.clips, self.size = clips, size
        self.teacher, _ = LipSync.load(checkpoint, whole=True)
        self._kept: dict[int, Tensor] = {}

    def __call__(self, index: int, start: int, count: int) -> Tensor:
        """See `SemanticImages`."""
        if not self.clips.cached:
            return self._draw(index, np.arange(start, start + count))
        if index not in self._kept:
            self._kept[index] = self._draw(index, np.arange(len(self.clips.clips[index])))
        return self._kept[index][start : start + count]

    def _draw(self, index: int, frames: np.ndarray) -> Tensor:
        from lipsync.clips import cut_faces, face_matrices
        from lipsync.networks.blocks import WINDOW
        from lipsync.windows import cut_windows, drawing_window, features_between

        clip, teacher = self.clips.clips[index], self.teacher
        points = clip.landmarks
        assert points is not None
        matrices = face_matrices(points, teacher.size)
        known = np.isfinite(matrices).all(axis=(1, 2))
        matrices = np.where(np.isfinite(matrices), matrices, np.eye(2, 3))
        wanted, places = np.unique(far_frames(known)[frames], return_inverse=True)
        first = int(frames[0])
        cut = partial(cut_faces, size=teacher.size)
        targets = _rgb(cut(clip.frames(first, len(frames)), matrices[frames]))
        references = torch.cat([_rgb(cut(clip.frames(int(f), 1), matrices[f : f + 1])) for f in wanted])
        starts = drawing_window(frames - self.clips.offsets[index])
        begin = max(0, int(starts.min()))
        heard = features_between(teacher.features, clip.wave, clip.samples, begin, int(starts.max()) + WINDOW)
        windows = cut_windows(heard, starts - begin, teacher.silence)
        drawn = [
            teacher.draw(windows[part], targets[part], references[places[part]])
            for part in (slice(at, at + teacher.batch) for at in range(0, len(frames), teacher.batch))
        ]
        return _as_images(torch.cat(drawn), self.size)


def _rgb(faces: Tensor) -> Tensor:
    """(3,T,S,S) uint8 BGR -> (T,3,S,S) RGB in [0,1]."""
    return faces.flip(0).transpose(0, 1).float() / 255


def _as_images(faces: Tensor, size: int) -> Tensor:
    """(T,3,S,S) in [0,1] -> (T,3,size,size) uint8."""
    if faces.shape[-1] != size:
        faces = F.interpolate(faces, (size, size), mode="bilinear", antialias=True, align_corners=False)
    return (faces * 255).round().clamp(0, 255).to(torch.uint8)


class FolderMouths:
    """Faces from `FOLDER/CLIP_ID.mp4`, or from the pictures in `FOLDER/CLIP_ID/` by name, one a frame of the clip.

    Raises:
        UserError: the folder, or what belongs to a clip, is missing or of another length (at once).
    """

    def __init__(self, clips: DubClips, folder: Path, size: int) -> None:
        self.clips, self.size = clips, size
        self.sources: list[Path | list[Path]] = []
        if not folder.is_dir():
            raise UserError(f"semantic.folder: no such folder: {folder}")
        for name, clip in zip(clips.ids, clips.clips, strict=True):
            videos = [folder / f"{name}{suffix}" for suffix in _SUFFIXES]
            found = next((path for path in videos if path.is_file()), None)
            pictures = sorted(p for p in (folder / name).glob("*") if p.suffix.lower() in _PICTURES)
            if found is None and len(pictures) != len(clip):
                raise UserError(
                    f"semantic.folder: {folder / name} holds {len(pictures)} pictures, but the clip has {len(clip)} "
                    f"frames, and there is no {folder / name}.mp4"
                )
            self.sources.append(found or pictures)
        self._kept: dict[int, Tensor] = {}

    def __call__(self, index: int, start: int, count: int) -> Tensor:
        """See `SemanticImages`."""
        if index in self._kept:
            return self._kept[index][start : start + count]
        images = self._read(index, start, count)
        if self.clips.cached:
            self._kept[index] = self._read(index, 0, len(self.clips.clips[index]))
        return images

    def _read(self, index: int, start: int, count: int) -> Tensor:
        source, clip = self.sources[index], self.clips.clips[index]
        pictures = (
            _video(source, clip, start, count) if isinstance(source, Path) else _files(source[start : start + count])
        )
        tensors = [torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255 for picture in pictures]
        return torch.cat([_as_images(tensor, self.size) for tensor in tensors])


def _video(path: Path, clip: Clip, start: int, count: int) -> list[np.ndarray]:
    fps = float(clip.fps)
    found = [frame.image for frame in read_frames(path, fps=fps, start=start / fps, seconds=count / fps)][:count]
    if len(found) < count:
        raise UserError(f"{path} ends before frame {start + count} of the clip that it was drawn for")
    return found


def _files(paths: list[Path]) -> list[np.ndarray]:
    images = []
    for path in paths:
        try:
            with Image.open(path) as image:
                images.append(np.asarray(image.convert("RGB")).copy())
        except (OSError, UnidentifiedImageError) as error:
            raise UserError(f"cannot read {path}: {error}") from error
    return images


class StillMouths:
    """Faces that a lip-sync network draws over one still picture of a person, for a recording that is streamed.

    The picture is its own reference: the speech is another's, so that it cannot tell what the mouth shall do.

    Args:
        checkpoint: a lipsync run's checkpoint or published weights of a generator.
        size: side of the images in px.
        picture: uint8 (H,W,3) RGB that shows the person.
        landmarks: (68,2) px of the picture.
        speech: the recording.
        device: torch device of the network.

    Raises:
        UserError: a checkpoint of another kind.
    """

    def __init__(
        self, checkpoint: Path, size: int, picture: np.ndarray, landmarks: np.ndarray, speech: Speech, *, device: str
    ) -> None:
        from lipsync.clips import cut_faces, face_matrices
        from lipsync.infer import LipSync  # the teacher is optional
        from lipsync.speech import SpeechWindows

        self.size = size
        self.teacher, _ = LipSync.load(checkpoint, device, whole=True)
        matrices = face_matrices(landmarks[None], self.teacher.size)
        self.face = _rgb(cut_faces(picture[None], matrices, self.teacher.size)).to(device)
        self._windows = SpeechWindows(speech, self.teacher, quiet=True)
        self._kept, self._first = torch.zeros(0, 3, size, size), 0

    def __call__(self, start: int, count: int) -> Tensor:
        """(count,3,S,S) in [-1,1] of frames at 25 fps; no frame may lie before the first of the last request."""
        kept = self._kept[start - self._first :]
        drawn = [self._draw(at, min(self.teacher.batch, start + count - at)) for at in self._new(start, count, kept)]
        self._kept, self._first = torch.cat([kept, *drawn]), start
        return self._kept[:count]

    def silent(self, count: int) -> Tensor:
        """(count,3,S,S) in [-1,1] of digital silence."""
        from lipsync.networks.blocks import WINDOW

        return self._shown(self.teacher.silence.cpu()[None, None, :, None].expand(count, 1, -1, WINDOW))

    def _new(self, start: int, count: int, kept: Tensor) -> range:
        return range(start + len(kept), start + count, self.teacher.batch)

    def _draw(self, start: int, count: int) -> Tensor:
        from lipsync.windows import drawing_window

        return self._shown(self._windows.take(drawing_window(np.arange(start, start + count))))

    def _shown(self, windows: Tensor) -> Tensor:
        faces = self.face.expand(len(windows), -1, -1, -1)
        drawn = self.teacher.draw(windows.to(self.face.device), faces, faces).cpu()
        return _as_images(drawn, self.size).float() / 127.5 - 1
