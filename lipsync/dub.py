"""Dub a video: lips that follow other speech, everything else as it was.

Two passes in constant memory. The first finds the faces and keeps their landmarks. The second decodes again, cuts the
chosen face out of each frame, draws it with the network, and blends its lower part back into the frame, which is
encoded once. The network runs at the video's own frames: a frame's window of speech features is found by its time.

Silence closes the mouth. Where nobody speaks (`common.audio.vad`), the network hears digital silence whatever noise or
music there is, and its reference picture, which upstream is the very frame with its mouth as it was, fades over to a
frame nearby whose mouth is closed, so that the old mouth does not show through.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from common.audio.vad import speech_segments
from common.config import config_hash
from common.dubbing.footage import Shown
from common.dubbing.report import DubReport
from common.dubbing.speech import Detector
from common.dubbing.stream import Scene, WhenShorter, dub_stream, held_at_once, ordinary_ending
from common.errors import UserError
from common.faces.base import FaceBackend, load_backend
from common.faces.paste import box_mask, cut_crops, lower_face_mask, paste_crops
from common.faces.seam import match_seam
from common.files import sha256
from common.provenance import Provenance, ProvenanceConfig
from lipsync.face_plan import plan_face
from lipsync.infer import LOOKED_AT, LipSync
from lipsync.speech import SpeechWindows
from lipsync.windows import FPS, drawing_window

_CLOSED_KEPT = 32
"""Crops with a closed mouth that are kept; each serves five seconds of the video."""


@dataclass(frozen=True)
class DubSettings:
    """How a video is dubbed."""

    face: str = "largest"
    """Whose lips move: largest, longest or index:K."""
    when_shorter: WhenShorter = "stop"
    """Speech shorter than the video: stop the video with it, or keep the rest, silent and with a closed mouth."""
    align: Literal["train", "upstream"] = "train"
    """Where a frame's speech window begins: 40 ms before the frame, as in training, or at it, as Wav2Lip's inference
    has it, whose lips therefore come 40 ms early."""
    reference: Literal["silence", "same", "closed"] = "silence"
    """The picture that tells the network what the person looks like: the frame itself (same, as Wav2Lip's inference
    has it: sharpest, but its mouth leaks), one nearby with a closed mouth (closed), or the frame itself in speech and
    the closed mouth in silence (silence)."""
    silence: Literal["close", "ignore"] = "close"
    """Whether what is not speech counts as silence for the network."""
    mask: Literal["face", "box"] = "face"
    """What is pasted: the lower face within the jaw, or the whole crop, as Wav2Lip does."""
    feather: float = 0.1
    """Width of the mask's soft edge as a share of the crop; 0 is a hard edge."""
    seam: Literal["match", "plain"] = "match"
    """Let the drawing's colours meet the frame's along the soft edge (`common.faces.seam`), or leave them."""
    crf: int = 18
    """x264's quality of the output, 0 (lossless) to 51."""
    batch: int = 0
    """Frames that the network draws together; 0 is the device's best."""
    precision: Literal["32", "bf16"] = "32"
    """Of the network's weights and maps."""
    backend: str = "dlib"
    """What finds faces: dlib or face_alignment."""
    visible_label: bool = False
    """Draw the synthetic label into the pictures as well."""

    def __post_init__(self) -> None:
        if not 0 <= self.feather <= 0.5 or not 0 <= self.crf <= 51 or self.batch < 0:
            raise UserError(
                f"dubbing needs feather in [0, 0.5], crf in [0, 51] and batch >= 0, not {self.feather}, {self.crf} "
                f"and {self.batch}"
            )


def dub(
    model: LipSync,
    video: Path,
    audio: Path,
    out: Path,
    settings: DubSettings | None = None,
    *,
    backend: FaceBackend | None = None,
    detect: Detector = speech_segments,
    provenance: Provenance | None = None,
    progress: bool = True,
) -> DubReport:
    """Write `out`, the video with lips that follow the speech; see above.

    Args:
        model: the network, on its device.
        video: any video, or a still image.
        audio: any sound file, or a video with sound; it becomes the output's sound, packet by packet where MP4 can
            hold its codec.
        out: ends in .mp4; appears only when it is complete.
        settings: None is the default.
        backend: finds faces; None is dlib.
        detect: finds speech in the sound.
        provenance: the output's label; None is one without a checkpoint.
        progress: show how far it is.

    Raises:
        UserError: inputs that cannot be read or have no picture, face or sound; an output that cannot be written.
    """
    settings = settings or DubSettings()
    return dub_stream(
        video,
        audio,
        out,
        lambda scene: _Dubber(model, scene, settings),
        when_shorter=settings.when_shorter,
        crf=settings.crf,
        backend=backend,
        detect=detect,
        label=provenance or Provenance.create(ProvenanceConfig(), config_hash=config_hash(settings)),
        progress=progress,
    )


def dub_files(
    checkpoint: Path, video: Path, audio: Path, out: Path, settings: DubSettings, device: str = "cpu"
) -> DubReport:
    """`dub` with the network of a file, under a label that names it.

    An ending by SIGTERM is made an ordinary one, so that it leaves no temporary file.

    Raises:
        UserError: as `LipSync.load` and `dub`.
    """
    dtype = torch.bfloat16 if settings.precision == "bf16" else torch.float32
    model, cfg = LipSync.load(checkpoint, device, whole=settings.mask == "box", dtype=dtype)
    answerable = replace(cfg.provenance if cfg else ProvenanceConfig(), visible=settings.visible_label)
    label = Provenance.create(
        answerable, config_hash=config_hash(cfg or settings), checkpoint_sha256=sha256(checkpoint)
    )
    with ordinary_ending():
        return dub(model, video, audio, out, settings, backend=load_backend(settings.backend, device), provenance=label)


class _Dubber:
    """Turns batches of frames into dubbed ones, in the order of time."""

    def __init__(self, model: LipSync, scene: Scene, settings: DubSettings) -> None:
        self._model, self._settings = model, settings
        self._footage, self._times, self._clock = scene.footage, scene.tracking.times, scene.clock
        self._speech, self._plan = scene.speech, plan_face(scene.tracking, settings.face, model.size)
        self._quiet = settings.silence == "close"
        self._windows = SpeechWindows(scene.speech, model, quiet=self._quiet)
        self._closed: dict[int, Tensor] = {}
        self.batch = held_at_once(scene.footage, settings.batch or model.batch)

    def __call__(self, batch: list[tuple[Shown, np.ndarray]], report: DubReport) -> list[np.ndarray]:
        """The frames, those with a face dubbed, the others the very same arrays."""
        images = [image for _, image in batch]
        sources = np.array([shown.source for shown, _ in batch])
        times = np.array([shown.time for shown, _ in batch])
        silence = 1 - self._speech.activity(times) if self._quiet else np.zeros(len(batch))
        rows = np.flatnonzero(self._plan.present[sources])
        report.frames += len(batch)
        report.without_face += len(batch) - len(rows)
        report.silent += int((silence == 1).sum())
        if len(rows):
            chosen = [images[row] for row in rows]
            for row, image in zip(rows, self._speak(chosen, sources[rows], times[rows], silence[rows]), strict=True):
                images[row] = image
        return images

    def _speak(
        self, images: list[np.ndarray], sources: np.ndarray, times: np.ndarray, silence: np.ndarray
    ) -> list[np.ndarray]:
        """Frames with a face: cut, draw, paste."""
        model, matrices = self._model, self._plan.matrices[sources]
        with self._clock("crop"):
            targets = cut_crops(images, matrices, model.size, model.device)
            references = self._references(targets, sources, silence)
        with self._clock("listen"):
            # A hair later, since a time that is not exact in binary must not cost a feature frame.
            windows = self._windows.take(drawing_window(FPS * times + 1e-6, self._settings.align))
        with self._clock("generate"):
            drawn = model.draw(windows, targets, references)
            if model.device.type == "cuda":
                torch.cuda.synchronize(model.device)
        with self._clock("paste"):
            masks = self._masks(sources)
            if self._settings.seam == "match":
                drawn = match_seam(drawn, targets, masks)
            return paste_crops(images, drawn, masks, matrices)

    def _masks(self, sources: np.ndarray) -> Tensor:
        size, device, feather = self._model.size, self._model.device, self._settings.feather
        if self._settings.mask == "box":
            return box_mask(len(sources), size, device, feather=feather)
        landmarks = torch.from_numpy(self._plan.landmarks_in_crop(sources)).to(device, torch.float32)
        return lower_face_mask(landmarks, size, feather=feather, top=LOOKED_AT)

    def _references(self, targets: Tensor, sources: np.ndarray, silence: np.ndarray) -> Tensor:
        """The frames themselves, pictures with a closed mouth, or something between."""
        shares = {"same": 0 * silence, "closed": 1 + 0 * silence, "silence": silence}[self._settings.reference]
        if not shares.any():
            return targets
        closed = torch.stack([self._closed_crop(int(frame)) for frame in self._plan.closed[sources]])
        return torch.lerp(targets, closed, torch.from_numpy(shares).to(targets)[:, None, None, None])

    def _closed_crop(self, frame: int) -> Tensor:
        """Crop (3,S,S) of a frame of the footage, read from the file out of turn."""
        if frame not in self._closed:
            if len(self._closed) >= _CLOSED_KEPT:
                del self._closed[next(iter(self._closed))]
            pictures = self._footage.read(float(self._times[frame]))
            _, image = next(pictures)
            pictures.close()
            matrix = self._plan.matrices[frame : frame + 1]
            self._closed[frame] = cut_crops([image], matrix, self._model.size, self._model.device)[0]
        return self._closed[frame]
