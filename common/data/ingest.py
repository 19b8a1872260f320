"""From one raw file to voices and faces: cutting speech, finding the best faces, judging both.

Everything here is a pure function of a file and the settings, and reports what it leaves out.
"""

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from common.audio.io import check_voice, load_audio
from common.audio.vad import speech_segments
from common.data.corpus import SAMPLE_RATE, Item
from common.data.engine import Drop, Outcome, Product, Unit
from common.errors import UserError
from common.faces import Face, FaceBackend, align_face, align_matrix, load_backend, read_image
from common.video import probe_video
from common.video.picture import Upright
from common.video.reader import encodable_path, timed_frames

MediaKind = Literal["video", "voice", "photo"]
_SHARPNESS_SIDE = 64
_CANDIDATES_PER_FACE = 4
_FRAMES_AT_ONCE = 8
_DOMINANCE = 2.0
_WHOLE = 0.8  # the last of four or more candidate frames lies behind this, unless the file breaks off


@dataclass(frozen=True)
class Settings:
    """What the result of a file depends on; a corpus is prepared with one value of this."""

    size: int = 256
    """Side of the stored face crops in pixels; training reduces them, never enlarges."""
    backend: str = "dlib"
    """Face backend, see `common.faces.load_backend`."""
    faces_per_video: int = 8
    """At most so many faces of one video, spread evenly over its time."""
    longest_recording: float = 10.0
    """Seconds; speech is packed into recordings of 3 s to this, shorter where a person has little."""
    shortest_recording: float = 1.0
    """Seconds; a file with less speech is dropped."""
    longest_file: float = 600.0
    """Seconds; of a longer file the beginning is used."""
    smallest_face: float = 64.0
    """Pixels of the source under one side of the crop, at least."""
    most_turned: float = 0.5
    """`turn_of` a face at most; about 30 degrees of yaw."""
    least_sharpness: float = 0.05
    """`sharpness_of` a crop at least."""
    brightness: tuple[float, float] = (30.0, 230.0)
    """Mean luminance of a crop, 0 to 255, must lie between these."""

    def __post_init__(self) -> None:
        if self.size < 16 or self.faces_per_video < 1:
            raise UserError(f"a face size of {self.size} px and {self.faces_per_video} faces per video make no corpus")


@dataclass(frozen=True)
class Tools:
    """Settings and models, built once per process; tests pass small fakes."""

    settings: Settings
    faces: FaceBackend
    """Detector with landmarks."""
    speech: Callable[[Tensor, int], Sequence[tuple[int, int]]] = speech_segments
    """(wave, sample rate) -> start and end sample of each stretch of speech."""


@dataclass(frozen=True)
class ToolKit:
    """The factory of `Tools` that is sent to worker processes."""

    settings: Settings
    device: str = "cpu"
    """Torch device of the face backend."""

    def __call__(self) -> Tools:
        return Tools(self.settings, load_backend(self.settings.backend, self.device))


@dataclass(frozen=True)
class Media:
    """One raw file and what is known about it."""

    path: str
    """Where it is."""
    source: str
    """How to name it to the user: its path below the input folder, printable."""
    kind: MediaKind
    """What to take from it: a video gives both voices and faces."""
    identity: str
    """Whom it shows or lets hear, as a folder name."""
    name: str
    """Unique among the identity's files; the items' names start with it."""
    pieces: int = 1
    """Recordings to cut from it at least, speech permitting, so that some can be held out."""
    whole: bool = False
    """Keep all speech as one recording (data sets that come as utterances)."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Further manifest columns of its items."""


def ingest(unit: Unit, tools: Tools) -> Outcome:
    """Voices and faces of a unit, whose payload is a sequence of `Media`; one bad file drops that file alone."""
    outcome = Outcome()
    for media in unit.payload:
        makers = {"video": (voices_of, faces_of), "voice": (voices_of,), "photo": (faces_of,)}[media.kind]
        for make in makers:
            try:
                with encodable_path(Path(media.path)) as path:
                    made = make(media, path, tools)
            except UserError as error:
                outcome.drops.append(Drop(media.source, str(error).replace(media.path, "it")))
            except Exception as error:  # a decoder met something nobody foresaw: the file is named, the run goes on
                outcome.drops.append(Drop(media.source, f"{make.__name__}: {type(error).__name__}: {error}"))
            else:
                outcome.products += made.products
                outcome.drops += made.drops
    return outcome


def voices_of(media: Media, path: Path, tools: Tools) -> Outcome:
    """Recordings of speech from the audio of a file, 16 kHz mono, pauses cut out.

    Raises:
        UserError: no audio, broken, silent, clipped, or too little speech.
    """
    settings, outcome = tools.settings, Outcome()
    wave = load_audio(path, SAMPLE_RATE, max_seconds=settings.longest_file, strict=True)
    if wave.shape[0] >= round(settings.longest_file * SAMPLE_RATE):
        outcome.drops.append(Drop(media.source, f"only its first {settings.longest_file:g} s are used"))
    if reason := check_voice(wave, SAMPLE_RATE):
        raise UserError(f"no voice: {reason}")
    segments = tools.speech(wave, SAMPLE_RATE)
    total = sum(end - start for start, end in segments)
    shortest = round(settings.shortest_recording * SAMPLE_RATE)
    if total < shortest:
        least = settings.shortest_recording
        raise UserError(f"no voice: only {total / SAMPLE_RATE:.1f} s of speech, at least {least:g} s are needed")
    longest = total if media.whole else round(settings.longest_recording * SAMPLE_RATE)
    for index, recording in enumerate(cut_speech(wave, segments, shortest, longest, media.pieces)):
        identifier = f"voices/{media.identity}/{media.name}_{index:03}"
        samples = recording.shape[0]
        item = Item(identifier, media.identity, "train", "voice", f"{identifier}.wav", samples=samples)
        outcome.products.append(Product(item, recording, media.extra))
    return outcome


def cut_speech(
    wave: Tensor, segments: Sequence[tuple[int, int]], shortest: int, longest: int, pieces: int
) -> list[Tensor]:
    """Join the speech segments of a wave (n,) and cut them into recordings of equal length.

    There are as many as needed to stay below `longest` samples, and at least `pieces` as long as each has
    `shortest`. A cut within a tenth of a recording from a pause is moved into it.

    Returns:
        Waves (m,) in the order of time, with shortest <= m <= longest where the speech suffices.
    """
    speech = torch.cat([wave[start:end] for start, end in segments])
    joints = np.cumsum([0] + [end - start for start, end in segments])
    total = int(joints[-1])
    # A fifth is left to the cuts' moves: each side of a recording may grow by a tenth.
    needed = math.ceil(total / (0.8 * longest)) if total > longest else 1
    count = max(needed, min(pieces, total * 4 // (5 * shortest)))
    length = total / count
    cuts = [0]
    for index in range(1, count):
        cut = index * length
        pause = joints[np.abs(joints - cut).argmin()]
        cuts.append(int(pause) if abs(pause - cut) <= 0.1 * length else round(cut))
    return [speech[start:end].clone() for start, end in zip(cuts, [*cuts[1:], total], strict=True)]


def faces_of(media: Media, path: Path, tools: Tools) -> Outcome:
    """Aligned face crops: one from a photograph, the best of each stretch of time from a video.

    Raises:
        UserError: unreadable, or no face that passes the quality filters, with the reasons counted.
    """
    settings = tools.settings
    if media.kind == "photo":
        image = read_image(path)
        return Outcome([_face_product(media, 0, best_face(image, tools.faces.detect([image])[0], settings))])
    best: dict[int, Crop] = {}
    refused: Counter[str] = Counter()
    count, place = settings.faces_per_video, 0.0
    frames = sampled_frames(path, count * _CANDIDATES_PER_FACE, settings.longest_file)
    while batch := list(itertools.islice(frames, _FRAMES_AT_ONCE)):
        found = tools.faces.detect([image for _, image in batch])
        for (place, image), faces in zip(batch, found, strict=True):
            try:
                crop = best_face(image, faces, settings)
            except UserError as error:
                refused[str(error)] += 1
                continue
            stretch = min(int(place * count), count - 1)
            if stretch not in best or crop.score > best[stretch].score:
                best[stretch] = crop
    if not best:
        reasons = "; ".join(f"{reason} ({number} frames)" for reason, number in refused.most_common(3))
        raise UserError(f"no usable face: {reasons or 'no frames'}")
    outcome = Outcome([_face_product(media, index, best[stretch]) for index, stretch in enumerate(sorted(best))])
    if place < _WHOLE:
        outcome.drops.append(Drop(media.source, f"its pictures break off after {place:.0%} of the stated length"))
    return outcome


@dataclass(frozen=True)
class Crop:
    """An aligned face that passed the filters."""

    image: np.ndarray
    """uint8 (size,size,3) RGB."""
    pixels: float
    """Pixels of the source under one side: where they are fewer than `size`, the crop was enlarged."""
    score: float
    """Sharp and frontal is high."""


def best_face(image: np.ndarray, faces: Sequence[Face], settings: Settings) -> Crop:
    """The one face of a picture, aligned, if it passes the quality filters.

    Of several faces the largest is taken when its box has at least twice the area of the next; otherwise nobody
    can say whose picture it is.

    Raises:
        UserError: the reason why the picture is not used.
    """
    if not faces:
        raise UserError("no face was found")
    if len(faces) > 1 and faces[0].area < _DOMINANCE * faces[1].area:
        raise UserError("several faces, none of which is clearly the largest")
    face = faces[0]
    matrix = align_matrix(face.landmarks, settings.size)
    pixels = settings.size / math.hypot(matrix[0, 0], matrix[1, 0])
    if pixels < settings.smallest_face:
        raise UserError(f"the face is smaller than {settings.smallest_face:g} px")
    turn = turn_of(face.landmarks)
    if turn > settings.most_turned:
        raise UserError("the face is turned away")
    crop = align_face(image, face.landmarks, settings.size)
    grey = np.asarray(Image.fromarray(crop).convert("L"))
    low, high = settings.brightness
    if not low <= float(grey.mean()) <= high:
        raise UserError("the face is under- or overexposed")
    sharpness = sharpness_of(grey)
    if sharpness < settings.least_sharpness:
        raise UserError("the face is blurred")
    return Crop(crop, pixels, sharpness * (1 - turn))


def turn_of(landmarks: np.ndarray) -> float:
    """How far a face is turned to the side: 0 frontal, 1 when the nose tip covers an eye's outer corner.

    The difference between the nose tip's distances from the two corners, measured along the line of the eyes, over
    the distance of the corners; in-plane rotation does not count. `landmarks` is (68,2).
    """
    right, left, tip = (landmarks[i].astype(np.float64) for i in (36, 45, 30))
    line = left - right
    along = float((tip - right) @ line) / max(float(line @ line), 1e-9)
    return abs(2 * along - 1)


def sharpness_of(grey: np.ndarray) -> float:
    """Variance of the Laplacian over the variance of a uint8 face (H,W), reduced to 64 px so that sizes compare.

    The ratio does not change with contrast, so a dim face is not taken for a blurred one. Sharp photographs have 0.2
    to 0.6; a Gaussian blur of 3 px on a crop of 256 px leaves 0.05 to 0.13, of 4 px 0.03 to 0.07.
    """
    side = (_SHARPNESS_SIDE, _SHARPNESS_SIDE)
    small = np.asarray(Image.fromarray(grey).resize(side, Image.Resampling.BOX), dtype=np.float64)
    neighbours = small[:-2, 1:-1] + small[2:, 1:-1] + small[1:-1, :-2] + small[1:-1, 2:]
    return float((neighbours - 4 * small[1:-1, 1:-1]).var() / max(small.var(), 1e-9))


def sampled_frames(path: Path, count: int, longest: float) -> Iterator[tuple[float, np.ndarray]]:
    """About `count` frames of a video (of its first `longest` seconds), spread evenly, decoded one at a time.

    Yields:
        Place in the stretch, 0 to 1, and the upright frame with square pixels, uint8 (H,W,3) RGB. A file that
        breaks off gives the frames before the break.

    Raises:
        UserError: not a video, or nothing of it can be decoded.
    """
    duration = min(probe_video(path).seconds, longest)
    upright: Upright | None = None
    taken = 0
    for frame in timed_frames(path, []):
        place = frame.time / duration
        if place >= 1:
            break
        if place * count >= taken:
            taken += 1
            upright = upright or Upright(frame.picture, frame.aspect)
            yield place, upright(frame.picture)


def _face_product(media: Media, index: int, crop: Crop) -> Product:
    identifier = f"faces/{media.identity}/{media.name}_{index:03}"
    item = Item(identifier, media.identity, "train", "face", f"{identifier}.png")
    return Product(item, crop.image, {**media.extra, "face_pixels": round(crop.pixels)})
