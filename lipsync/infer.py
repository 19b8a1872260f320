"""A trained generator for use: speech windows and faces in, faces with moving lips out. Plain modules only."""

from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from common.audio.lipsync_features import SpeechFeatures
from lipsync.build import load_generator, load_speech
from lipsync.config import LipSyncConfig
from lipsync.networks import Wav2Lip, prepare_for_inference

LOOKED_AT = 0.4
"""Rows above this share of a face are the target's own: the mask of `dub` does not show what is drawn there."""
CPU_BATCH, GPU_BATCH = 16, 128


class LipSync:
    """A generator with its speech features, folded and frozen on one device.

    Attributes:
        size: side of the faces in px.
        rows: of the speech features.
        features: waves (B,n) at 16 kHz -> (B,rows,frames), 80 a second.
        silence: (rows,) features of digital silence.
        batch: frames that are drawn together at the best speed.

    Args:
        generator: a `Wav2Lip`, or any network that is called like it and has its `rows` and `size`.
        features: the speech features that it was trained with.
        device: torch device.
        whole: draw the whole face, not only what lies below `LOOKED_AT`.
        dtype: of weights and maps: float32, or bfloat16 where the device is quick at it.

    Raises:
        ValueError: features of another number of rows than the generator hears.
    """

    def __init__(
        self,
        generator: nn.Module,
        features: SpeechFeatures,
        *,
        device: str = "cpu",
        whole: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.device = torch.device(device)
        self.size, self.rows = _whole_number(generator, "size"), _whole_number(generator, "rows")
        if features.rows != self.rows:
            raise ValueError(f"the generator hears {self.rows} feature rows, but the features have {features.rows}")
        if isinstance(generator, Wav2Lip):
            first_row = 0 if whole else int(LOOKED_AT * self.size)
            generator = prepare_for_inference(generator, first_row=first_row, dtype=dtype)
        self._generator = generator.to(self.device).eval()
        self.features = features.to(self.device).eval().requires_grad_(False)
        self.silence = self.features.silence.to(self.device)
        self.batch = CPU_BATCH if self.device.type == "cpu" else GPU_BATCH

    @classmethod
    def load(
        cls, path: Path, device: str = "cpu", *, whole: bool = False, dtype: torch.dtype = torch.float32
    ) -> tuple[Self, LipSyncConfig | None]:
        """From a file with a generator, and the configuration of its run where it is a run's checkpoint.

        Raises:
            UserError: missing, torn, unsafe, or without a generator of this architecture.
        """
        generator, cfg = load_generator(path)
        return cls(generator, load_speech(path), device=device, whole=whole, dtype=dtype), cfg

    @torch.inference_mode()
    def draw(self, windows: Tensor, targets: Tensor, references: Tensor) -> Tensor:
        """Faces that speak.

        Args:
            windows: (B,1,rows,16) speech features.
            targets: (B,3,S,S) RGB in [0,1]; their lower half is not looked at.
            references: (B,3,S,S) RGB in [0,1]: the person's look, mouth included.

        Returns:
            (B,3,S,S) RGB in [0,1]. Rows above `LOOKED_AT` are the target's unless the whole face is drawn.
        """
        masked = targets.clone()
        masked[:, :, self.size // 2 :] = 0
        faces = torch.cat([masked.flip(1), references.flip(1)], dim=1)
        drawn: Tensor = self._generator(windows.to(self.device), faces.to(self.device))
        return drawn.flip(1)

    @torch.inference_mode()
    def hear(self, wave: Tensor) -> Tensor:
        """Speech features (rows,frames) of a wave (n,) at 16 kHz."""
        heard: Tensor = self.features(wave[None].to(self.device))[0]
        return heard


def _whole_number(generator: nn.Module, name: str) -> int:
    value = getattr(generator, name, None)
    if not isinstance(value, int):
        raise ValueError(f"a generator for dubbing states its {name}; {type(generator).__name__} does not")
    return value
