"""Path length between the latents of two people's voices: whole in evaluation, over few pairs in validation."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from common.data.sampling import Draw
from common.metrics.path_length import (
    ImageDistance,
    PathLengthResult,
    PixelDistance,
    different_pairs,
    lpips_distance,
    path_length,
)
from voice2face.config import EvaluationConfig
from voice2face.data import WholeRecordings
from voice2face.networks.voice import VoiceNetwork


@cache
def load_distance(name: str, device: torch.device) -> ImageDistance:
    """The image distance `evaluation.distance`, its network (where it has one) on `device`.

    Raises UserError where LPIPS's weights cannot be had.
    """
    if name == "pixel_l2":
        return PixelDistance()
    network: Any = lpips_distance("vgg" if name == "lpips_vgg" else "alex")
    return network.to(device)


def voice_path_length(
    synthesise: Callable[[Tensor], Tensor],
    starts: Tensor,
    ends: Tensor,
    settings: EvaluationConfig,
    *,
    crop: bool = True,
) -> PathLengthResult:
    """Path length by the configured distance from W+ `starts` (P,num_ws,w_dim) towards `ends`, two people's each.

    `synthesise` takes W+ and draws no random noise. With `crop` StyleGAN2's `wend` (the middle of the picture),
    without `2_wend`.
    """
    distance = load_distance(settings.distance, starts.device)
    return path_length(synthesise, starts, ends, distance, crop=crop, batch_size=settings.batch_size)


@torch.no_grad()
def validation_path_length(
    voice: VoiceNetwork, generator: Any, recordings: WholeRecordings, settings: EvaluationConfig, device: torch.device
) -> Tensor:
    """The mean path length (scalar) over `settings.validation_pairs` pairs of recordings, the same at every call.

    NaN without pairs, for recordings of one person, and where no image changes.
    """
    names = [person for _, person in recordings.rows]
    if settings.validation_pairs == 0 or len(set(names)) < 2:
        return torch.full((), torch.nan, device=device)
    used, places = different_pairs(names, settings.validation_pairs).unique(return_inverse=True)
    waves = (recordings[Draw(int(index), 0)]["wave"] for index in used)
    ws = generator.mapping(torch.cat([voice(wave[None].to(device)) for wave in waves]))[places]

    def synthesise(ws: Tensor) -> Tensor:
        images: Tensor = generator.synthesis(ws, noise_mode="const")
        return images.clamp(-1, 1)

    length = voice_path_length(synthesise, ws[:, 0], ws[:, 1], settings).length.value
    return torch.tensor(torch.nan if length is None else length, device=device)
