"""Clips as others might have recorded them: place, size and light of the face, level and colour of the voice.

Each clip is changed as a whole and at random, from numbers that the caller draws, so that training stays a pure
function of (seed, step).
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from common.audio.lipsync_features import BANDS, CEPSTRA, MAX_ABS, MelMFCC, SpeechFeatures
from lipsync.config import VaryConfig

CURVES = 4
"""Cosines that a smooth curve over the mel bands is made of."""
_PER_DB = 2 * MAX_ABS / 100
"""Wav2Lip's mel stretches 100 dB over [-4, 4]."""


def vary_place(faces: Tensor, uniform: Tensor, cfg: VaryConfig) -> Tensor:
    """Move and enlarge clips (B,3,T,S,S), all frames alike.

    Args:
        faces: any float range; edges are repeated.
        uniform: (B,3) in [0,1): size, right, down.
        cfg: how much; nothing is resampled where `jitter` and `zoom` are 0.
    """
    if cfg.jitter == 0 and cfg.zoom == 0:
        return faces
    signed = 2 * uniform - 1
    theta = faces.new_zeros(len(faces), 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = 1 + cfg.zoom * signed[:, 0]
    theta[:, :, 2] = 2 * cfg.jitter * signed[:, 1:]  # the side is 2 long in these coordinates
    grid = F.affine_grid(theta, [len(faces), 3, *faces.shape[-2:]], align_corners=False)
    moved = F.grid_sample(faces.flatten(1, 2), grid, padding_mode="border", align_corners=False)
    return moved.view_as(faces)


def vary_light(faces: Tensor, uniform: Tensor, cfg: VaryConfig) -> Tensor:
    """Change contrast and each colour's brightness of clips (B,3,T,S,S) in [0,1]; `uniform` is (B,4) in [0,1)."""
    if cfg.light == 0:
        return faces
    signed = cfg.light * (2 * uniform - 1)
    contrast, light = 1 + signed[:, 0], signed[:, 1:] / 2
    return ((faces - 0.5) * contrast.view(-1, 1, 1, 1, 1) + 0.5 + light.view(-1, 3, 1, 1, 1)).clamp(0, 1)


def vary_voice(windows: Tensor, uniform: Tensor, normal: Tensor, cfg: VaryConfig, speech: SpeechFeatures) -> Tensor:
    """Make clips louder or softer and put a smooth curve over their bands.

    Args:
        windows: (B,N,1,rows,16) of the features of `speech`.
        uniform: (B,) in [0,1), for the level.
        normal: (B, CURVES), for the curve.
        cfg: how much.
        speech: tells how cepstra follow from the mel, to which the change is added. Mels stay in their range.
    """
    if cfg.gain == 0 and cfg.timbre == 0:
        return windows
    band = (torch.arange(BANDS, device=windows.device) + 0.5) / BANDS
    order = torch.arange(1, CURVES + 1, device=windows.device)
    curves = torch.cos(math.pi * order[:, None] * band) * math.sqrt(2 / CURVES)
    change = _PER_DB * (cfg.gain * (2 * uniform - 1)[:, None] + cfg.timbre * normal @ curves)
    if not isinstance(speech, MelMFCC):
        return (windows + _placed(change)).clamp(-MAX_ABS, MAX_ABS)
    cepstra = F.pad(change @ speech.dct / speech.deviation[:CEPSTRA], (0, 2 * CEPSTRA))  # slopes of a constant are 0
    if not speech.with_mel:
        return windows + _placed(cepstra)
    mel = (windows[..., :BANDS, :] + _placed(change)).clamp(-MAX_ABS, MAX_ABS)
    return torch.cat([mel, windows[..., BANDS:, :] + _placed(cepstra)], dim=-2)


def _placed(rows: Tensor) -> Tensor:
    """(B,rows) -> (B,1,1,rows,1)."""
    return rows[:, None, None, :, None]
