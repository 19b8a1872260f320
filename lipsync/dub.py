"""Dub a video: lips that follow other speech, everything else as it was.

Two passes in constant memory. The first finds the faces and keeps their landmarks. The second decodes again, cuts the
chosen face out of each frame, draws it with the network, and blends its lower part back into the frame, which is
encoded once. The network runs at the video's own frames: a frame's window of speech features is found by its time.

Silence closes the mouth. Where nobody speaks (`common.audio.vad`), the network hears digital silence whatever noise or
music there is, and its reference picture, which upstream is the very frame with its mouth as it was, fades over to a
frame nearby whose mouth is closed, so that the old mouth does not show through.
"""

import signal
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text
from torch import Tensor

from common.audio.vad import speech_segments
from common.background import ahead, behind
from common.config import config_hash
from common.errors import UserError
from common.faces.base import FaceBackend, load_backend
from common.faces.paste import box_mask, cut_crops, lower_face_mask, paste_crops
from common.faces.track import track_frames
from common.faces.tracks import Tracking
from common.files import sha256
from common.provenance import Provenance, ProvenanceConfig
from common.stopwatch import Stopwatch
from common.video import VideoWriter
from lipsync.face_plan import FacePlan, plan_face
from lipsync.footage import Footage, Playback, Shown, open_footage
from lipsync.infer import LOOKED_AT, LipSync
from lipsync.speech import Detector, Speech, SpeechWindows, listen
from lipsync.windows import FPS, drawing_window

_HELD_BYTES = 3 << 27
"""Frames in memory at once: those that were read ahead, those of the batch in hand, those that wait to be encoded."""
_TRACKED_AHEAD = 4
"""Frames that are read ahead of the tracking."""
_CLOSED_KEPT = 32
"""Crops with a closed mouth that are kept; each serves five seconds of the video."""

T = TypeVar("T")


@dataclass(frozen=True)
class DubSettings:
    """How a video is dubbed."""

    face: str = "largest"
    """Whose lips move: largest, longest or index:K."""
    when_shorter: Literal["stop", "keep"] = "stop"
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


@dataclass
class DubReport:
    """What was done."""

    frames: int = 0
    """Pictures of the output."""
    without_face: int = 0
    """Of these, pictures that passed through untouched."""
    seconds: float = 0.0
    """Length of the output."""
    silent: int = 0
    """Pictures in whose time nobody speaks, so that the mouth was closed."""
    stages: dict[str, float] = field(default_factory=dict)
    """Seconds of each stage; together the time that it took: listen, track, crop, generate, paste, and wait for what
    runs beside these and for the end of the file."""
    beside: dict[str, float] = field(default_factory=dict)
    """Seconds of work in other threads at the same time: read, encode."""

    @property
    def elapsed(self) -> float:
        """Seconds that it took."""
        return sum(self.stages.values())

    def text(self) -> str:
        """Two or three lines for the terminal."""
        stages, beside = (
            ", ".join(f"{name} {spent:.1f} s" for name, spent in part.items()) for part in (self.stages, self.beside)
        )
        lines = [
            f"{self.frames} frames, {self.seconds:.2f} s, {self.without_face} without a face; "
            f"made in {self.elapsed:.1f} s, {self.frames / max(self.elapsed, 1e-9):.1f} frames/s",
            f"{stages}; beside it {beside}",
        ]
        if self.silent == self.frames > 0:
            lines.append("warning: no speech was found in the sound, so that the mouth stays closed")
        return "\n".join(lines)


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
        progress: draw bars, on a terminal only.

    Raises:
        UserError: inputs that cannot be read or have no picture, face or sound; an output that cannot be written.
    """
    settings = settings or DubSettings()
    _check_paths(video, audio, out)
    clock, reader, encoder = Stopwatch(), Stopwatch(), Stopwatch()
    with clock("wait"), torch.inference_mode():
        footage = open_footage(video)
        with clock("listen"):
            speech = listen(audio, detect)
        seconds = max(speech.seconds, footage.seconds if settings.when_shorter == "keep" else 0.0)
        label = provenance or Provenance.create(ProvenanceConfig(), config_hash=config_hash(settings))
        writer = VideoWriter(
            out, footage.size, footage.fps, audio=audio, seconds=seconds, crf=settings.crf, provenance=label
        )
        report = DubReport(seconds=seconds, stages=clock.seconds)
        with _bars(progress) as bars, writer:
            frames = reader.each("read", footage.read_until(seconds))
            tracking = _track(
                _with_bar(frames, bars, f"faces in {video.name}", footage.frames), footage, backend, clock
            )
            playback = Playback(footage, tracking.times, seconds)
            plan = plan_face(tracking, settings.face, model.size)
            dubber = _Dubber(model, footage, tracking.times, plan, speech, settings, clock)
            pictures = ahead(reader.each("read", playback.pictures()), dubber.batch)
            task = bars.add_task(f"lips of {out.name}", total=playback.total)
            with behind(encoder.around("encode", writer.write), dubber.batch) as write:
                while batch := list(islice(pictures, dubber.batch)):
                    for (shown, _), image in zip(batch, dubber(batch, report), strict=True):
                        write(image, None if playback.even else shown.time)
                    bars.advance(task, len(batch))
    report.beside = reader.seconds | encoder.seconds
    return report


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
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        return dub(model, video, audio, out, settings, backend=load_backend(settings.backend, device), provenance=label)
    finally:
        signal.signal(signal.SIGTERM, before)


def _track(
    frames: Iterable[tuple[float, np.ndarray]], footage: Footage, backend: FaceBackend | None, clock: Stopwatch
) -> Tracking:
    """All faces; frames are decoded a little ahead."""
    with clock("track"):
        found = backend or load_backend()
        return track_frames(clock.each("wait", ahead(frames, _TRACKED_AHEAD)), found, fps=float(footage.fps))


def _check_paths(video: Path, audio: Path, out: Path) -> None:
    for path in (video, audio):
        if out.exists() and path.exists() and out.samefile(path):
            raise UserError(f"{out} is an input as well; give the output another name")


class _Dubber:
    """Turns batches of frames into dubbed ones, in the order of time."""

    def __init__(
        self,
        model: LipSync,
        footage: Footage,
        times: np.ndarray,
        plan: FacePlan,
        speech: Speech,
        settings: DubSettings,
        clock: Stopwatch,
    ) -> None:
        self._model, self._footage, self._times, self._plan = model, footage, times, plan
        self._speech, self._settings, self._clock = speech, settings, clock
        self._quiet = settings.silence == "close"
        self._windows = SpeechWindows(speech, model, quiet=self._quiet)
        self._closed: dict[int, Tensor] = {}
        frame_bytes = 3 * footage.size[0] * footage.size[1]
        self.batch = max(1, min(settings.batch or model.batch, _HELD_BYTES // (3 * frame_bytes)))

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
            return paste_crops(images, drawn, self._masks(sources), matrices)

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


class _Rate(ProgressColumn):
    """Frames per second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.finished_speed or task.speed or 0:.1f} frames/s")


def _bars(shown: bool) -> Progress:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    return Progress(*columns, console=console, disable=not (shown and console.is_terminal))


def _with_bar(items: Iterable[T], bars: Progress, label: str, total: int | None) -> Iterator[T]:
    task = bars.add_task(label, total=total)
    for item in items:
        bars.advance(task)
        yield item
