"""What the preparing of talking clips works with: settings, models, recordings.

`talking_unit` cuts a recording into clips, `talking_clip` writes one, `talking_prepare` makes a corpus of all.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor

from common.audio.vad import speech_segments
from common.data.talking_filter import PLAIN, ClipFilter
from common.data.talking_measures import FPS
from common.data.talking_sound import Speech
from common.data.talking_takes import Speaker, TubeRules
from common.errors import UserError
from common.faces import FaceBackend, load_backend
from common.faces.patch import Box
from common.metrics.lse import SyncScore, score_clip
from common.syncnet import load_syncnet

Framing = Literal["head", "face", "tube"]
Scorer = Callable[[Iterable[np.ndarray], Tensor], SyncScore]
"""(frames uint8 (H,W,3) at 25 fps, wave (n,) at 16 kHz) -> offset and confidence."""


@dataclass(frozen=True)
class TalkingSettings:
    """What the result of a file depends on; a corpus is prepared with one value of this."""

    size: int = 224
    """Side of the crops in pixels."""
    framing: Framing = "head"
    """head: square around the head, follows it. face: tight, cheek to cheek. tube: fixed for the clip, see `tube`."""
    backend: str = "dlib"
    """Face backend, see `common.faces.load_backend`."""
    speaker: Speaker = "talking"
    """Whose clip it becomes where a shot shows several faces."""
    shortest: float = 1.0
    """Seconds; shorter stretches with a face are dropped."""
    longest: float = 10.0
    """Seconds; longer stretches are cut, in pauses where there are some."""
    bounds: ClipFilter = PLAIN
    """What a clip must measure to stay."""
    shift: bool = True
    """Move the sound by the AV offset where it was measured."""
    tube: TubeRules = field(default_factory=TubeRules)
    """For the framing tube, instead of `shortest` and `longest`."""
    sync: str = ""
    """Extractor that measures sync (`SyncNet.name`); empty where none does."""

    def __post_init__(self) -> None:
        if self.size < 16 or self.shortest <= 0 or self.longest < self.shortest:
            raise UserError(
                f"crops of {self.size} px and clips of {self.shortest:g} to {self.longest:g} s make no corpus; use at "
                "least 16 px and a longest length above the shortest"
            )


@dataclass(frozen=True)
class TalkingTools:
    """Settings and models, built once per process; tests pass small fakes."""

    settings: TalkingSettings
    faces: FaceBackend
    """Detector with landmarks."""
    speech: Speech = speech_segments
    """Finds speech."""
    sync: Scorer | None = None
    """Measures sync, if there are weights for it."""


@dataclass(frozen=True)
class TalkingKit:
    """The factory of `TalkingTools` that is sent to worker processes."""

    settings: TalkingSettings
    device: str = "cpu"
    """Torch device of the networks."""
    syncnet: Path | None = None
    """SyncNet weights; None measures no sync."""

    def __call__(self) -> TalkingTools:
        faces = load_backend(self.settings.backend, self.device)
        scorer = None if self.syncnet is None else partial(score_clip, load_syncnet(self.syncnet, self.device))
        return TalkingTools(self.settings, faces, sync=scorer)


@dataclass(frozen=True)
class Recording:
    """One raw video and what is known about it: the payload of a unit."""

    path: str
    """Where it is."""
    source: str
    """How to name it to the user: its path below the input folder, printable."""
    identity: str
    """Who speaks, as a folder name."""
    name: str
    """Unique in the corpus, and safe as a folder name; the clips' names start with it."""
    audio: str | None = None
    """A sound file that replaces the video's own, both starting together."""
    text: str = ""
    """What is said, where known."""
    language: str = ""
    """ISO 639-1 code, empty when unknown."""
    split: str = ""
    """The official split; empty leaves it to `prepare`."""
    group: str = ""
    """What is held out together when splitting by recording (a broadcast, a date); empty for the file itself."""
    pieces: int = 1
    """Clips to cut from it at least, length permitting, so that some can be held out."""
    whole: bool = False
    """One utterance: it is not cut to length, and its text belongs to it as a whole."""
    window: tuple[float, float] | None = None
    """Seconds (start, end) to take; None for all."""
    box: Box | None = None
    """Fixed crop as fractions of width and height, for data sets that publish it."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Further manifest columns of its clips."""

    @property
    def start(self) -> float:
        """Second of the file at which its first frame lies."""
        return 0.0 if self.window is None else self.window[0]

    @property
    def seconds(self) -> float | None:
        """How much is taken of the file; None for all."""
        return None if self.window is None else self.window[1] - self.window[0]

    def time_of(self, frame: int) -> float:
        """Second of the file at which a frame of what is taken lies, to the millisecond."""
        return round(self.start + frame / FPS, 3)

    def span(self, start: int, count: int) -> str:
        """Some frames as a user finds them in a player: 0:01.44-0:02.00."""
        return f"{_clock(self.time_of(start))}-{_clock(self.time_of(start + count))}"


def frames_in(seconds: float) -> int:
    """Whole frames in a time; 0.04 s is one, whatever the rounding."""
    return int(seconds * FPS + 1e-6)


def _clock(seconds: float) -> str:
    return f"{int(seconds // 60)}:{seconds % 60:05.2f}"
