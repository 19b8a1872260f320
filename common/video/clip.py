"""Clips of a corpus: a folder with an all-intra video, its sound, and what is known about the face in it."""

import itertools
import wave as wave_file
import zipfile
from collections.abc import Iterable, Mapping
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from torch import Tensor

from common.audio.io import write_wav
from common.errors import UserError, reason_of
from common.files import atomic_path
from common.provenance import Provenance
from common.video.picture import Upright
from common.video.reader import open_video
from common.video.writer import VideoWriter, as_rate

VIDEO, AUDIO, LANDMARKS, COEFFICIENTS = "video.mp4", "audio.wav", "landmarks.npy", "coefficients.npz"
SAMPLE_RATE = 16000
CRF = 14
"""x264's quality of corpus clips, since networks learn from them: about 39 dB PSNR and 7 kB per picture of 224 px."""


def clip_samples(frames: int, fps: float | Fraction = 25) -> int:
    """Audio samples at 16 kHz under so many frames: 640 each at 25 fps."""
    return round(frames * SAMPLE_RATE / as_rate(fps))


def write_clip(
    folder: Path,
    frames: Iterable[np.ndarray],
    wave: Tensor,
    *,
    fps: float | Fraction = 25.0,
    landmarks: np.ndarray | None = None,
    coefficients: Mapping[str, np.ndarray] | None = None,
    provenance: Provenance | None = None,
    crf: int = CRF,
) -> int:
    """Fill an empty folder with a clip; what is streamed in is held one picture at a time.

    Args:
        folder: existing; `common.data.engine` gives it to a product's data function and names it when all is written.
        frames: uint8 (H,W,3) RGB, all of one size.
        wave: mono float32 (n,) at 16 kHz in [-1, 1]; cut, or filled with silence, to `clip_samples(frames, fps)`.
        fps: constant rate.
        landmarks: (T,68,2) pixels of the clip's pictures, NaN where there is no face; stored as float32.
        coefficients: arrays by name, without Python objects.
        provenance: label of a synthetic clip.
        crf: x264's quality.

    Returns:
        Number of pictures written.

    Raises:
        ValueError: no picture, landmarks of another length, or arrays of objects.
        UserError: the folder cannot be written.
    """
    pictures = iter(frames)
    first = next(pictures, None)
    if first is None:
        raise ValueError(f"no pictures for the clip {folder}")
    count, size = 0, (first.shape[1], first.shape[0])
    with VideoWriter(folder / VIDEO, size, fps, crf=crf, intra=True, provenance=provenance) as writer:
        for image in itertools.chain([first], pictures):
            writer.write(image)
            count += 1
    sound = torch.zeros(clip_samples(count, fps))
    kept = wave.detach().cpu()[: sound.shape[0]]
    sound[: kept.shape[0]] = kept
    write_wav(folder / AUDIO, sound, SAMPLE_RATE)
    if landmarks is not None:
        if landmarks.shape != (count, 68, 2):
            raise ValueError(f"{count} pictures and landmarks {landmarks.shape} do not belong together")
        with atomic_path(folder / LANDMARKS) as temporary:
            np.save(temporary, landmarks.astype(np.float32), allow_pickle=False)
    if coefficients is not None:
        with atomic_path(folder / COEFFICIENTS) as temporary:
            np.savez(temporary, allow_pickle=False, **coefficients)
    return count


class Clip:
    """A clip for training: windows of pictures and sound from anywhere in it.

    Opening costs nothing, and no file stays open between calls, so that a data set may hold a million clips and send
    them to worker processes.

    Raises (at first use):
        UserError: a file is missing or damaged, with its path.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)

    def __repr__(self) -> str:
        return f"Clip({str(self.folder)!r})"

    def __len__(self) -> int:
        """Number of pictures."""
        return self._header[0]

    @property
    def fps(self) -> Fraction:
        """Pictures per second."""
        return self._header[1]

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self._header[2]

    @property
    def samples(self) -> int:
        """Audio samples at 16 kHz."""
        return clip_samples(len(self), self.fps)

    @cached_property
    def _header(self) -> tuple[int, Fraction, tuple[int, int]]:
        path = self.folder / VIDEO
        with open_video(path) as (_, stream):
            if not stream.frames or not stream.average_rate:
                raise UserError(f"{path} does not say how many pictures it holds: it is no clip of a corpus")
            return stream.frames, stream.average_rate, (stream.width, stream.height)

    def frames(self, start: int = 0, count: int | None = None) -> np.ndarray:
        """Pictures `start` to `start + count` (None: to the end), uint8 (count,H,W,3) RGB.

        Only these are decoded, since every picture is a key frame.

        Raises:
            IndexError: the window leaves the clip.
            UserError: the file cannot be decoded there.
        """
        count = len(self) - start if count is None else count
        if start < 0 or count < 1 or start + count > len(self):
            raise IndexError(f"pictures {start} to {start + count} of {self.folder}, which has {len(self)}")
        path = self.folder / VIDEO
        width, height = self.size
        images = np.empty((count, height, width, 3), dtype=np.uint8)
        filled = 0
        with open_video(path) as (container, stream):
            assert stream.time_base is not None
            stream.thread_count = 1  # threads hold pictures back, which a window of a few would wait for
            container.seek(round(start / self.fps / stream.time_base), stream=stream)
            upright: Upright | None = None
            try:
                for frame in container.decode(stream):
                    if frame.pts is None or round(frame.pts * stream.time_base * self.fps) < start:
                        continue
                    upright = upright or Upright(frame, None)
                    images[filled] = upright(frame)
                    filled += 1
                    if filled == count:
                        return images
            except av.FFmpegError as error:
                raise UserError(f"{path} is damaged near picture {start + filled}: {reason_of(error)}") from error
        raise UserError(f"{path} is damaged: it ends after picture {start + filled - 1} of {len(self)}")

    def wave(self, start: int = 0, count: int | None = None) -> Tensor:
        """Samples `start` to `start + count` (None: to the end) at 16 kHz, float32 (count,) in [-1, 1].

        What lies outside the clip, on either side, is silence: windows around the first and last pictures need it.
        Picture t covers the samples from 640 t on at 25 fps.
        """
        path = self.folder / AUDIO
        try:
            with wave_file.open(str(path), "rb") as file:
                form = (file.getframerate(), file.getnchannels(), file.getsampwidth())
                if form != (SAMPLE_RATE, 1, 2):
                    raise UserError(f"{path} is not 16 kHz mono of 16 bits: it is no clip of a corpus")
                total = file.getnframes()
                count = max(0, total - start) if count is None else count
                first, last = min(max(start, 0), total), min(max(start + count, 0), total)
                file.setpos(first)
                data = np.frombuffer(file.readframes(last - first), dtype="<i2")
        except (OSError, EOFError, wave_file.Error) as error:
            raise UserError(f"cannot read {path}: {reason_of(error)}") from error
        sound = torch.zeros(count)
        sound[first - start : first - start + data.size] = torch.from_numpy(data.astype(np.float32) / 32768)
        return sound

    @property
    def landmarks(self) -> np.ndarray | None:
        """(T,68,2) float32 pixels, NaN where there is no face, read at each access; None where none are stored."""
        path = self.folder / LANDMARKS
        return None if not path.exists() else _load(path)

    @property
    def coefficients(self) -> dict[str, np.ndarray] | None:
        """Arrays by name, read at each access; None where none are stored."""
        path = self.folder / COEFFICIENTS
        return None if not path.exists() else dict(_load(path))


def _load(path: Path) -> Any:
    """An array, or arrays by name; Python objects in the file are refused."""
    try:
        content = np.load(path, allow_pickle=False)
        return content if isinstance(content, np.ndarray) else {name: content[name] for name in content.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"cannot read {path}: {reason_of(error)}; prepare the clip again") from error
