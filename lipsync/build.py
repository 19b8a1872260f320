"""Networks from the configuration, and from files, whoever wrote them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from common.audio.lipsync_features import SpeechFeatures, SpeechMode, speech_features
from common.checkpoint_file import load_checkpoint
from common.config import from_dict
from common.errors import UserError
from lipsync.config import LipSyncConfig
from lipsync.networks import QualityDiscriminator, SyncExpert, Wav2Lip

KIND, EXPERT_KIND = "lipsync", "lipsync-expert"
"""Kinds of the checkpoints of the two stages."""


def expert_feature(cfg: LipSyncConfig) -> SpeechMode:
    """What the expert hears: `expert.feature`, or what the generator hears."""
    return cast(SpeechMode, cfg.expert.feature or cfg.feature.name)


def build_expert(cfg: LipSyncConfig) -> SyncExpert:
    """The sync expert of a configuration, with fresh weights."""
    rows = speech_features(expert_feature(cfg)).rows
    return SyncExpert(rows=rows, size=cfg.data.size, width=cfg.expert.width)


def build_generator(cfg: LipSyncConfig) -> Wav2Lip:
    """The generator of a configuration, with fresh weights."""
    shape = cfg.generator
    return Wav2Lip(
        rows=speech_features(cfg.feature.name).rows,
        size=cfg.data.size,
        width=shape.width,
        attention=shape.attention,
        residual=shape.residual,
        reduction=shape.reduction,
        projection=cfg.feature.projection,
    )


def build_discriminator(cfg: LipSyncConfig) -> QualityDiscriminator:
    """The visual quality discriminator of a configuration, with fresh weights."""
    shape = cfg.discriminator
    return QualityDiscriminator(size=cfg.data.size, width=shape.width, norm=shape.norm)


def load_generator(path: Path, device: str = "cpu") -> tuple[Wav2Lip, LipSyncConfig | None]:
    """A trained generator in eval mode, and its run's configuration.

    Averaged weights come before the last step's. Raises `UserError` for a file that holds no generator.
    """
    checkpoint = load_checkpoint(path, KIND)
    cfg = from_dict(LipSyncConfig, checkpoint["cfg"])
    generator = build_generator(cfg)
    state = checkpoint["state_dict"]
    generator.load_state_dict(take(state, "generator_ema") or take(state, "generator"))
    return generator.to(device).eval(), cfg


def load_speech(path: Path, device: str = "cpu") -> SpeechFeatures:
    """The speech features of a trained generator or expert, with the mean and deviation that it was trained with."""
    checkpoint = _load_run(path)
    cfg = from_dict(LipSyncConfig, checkpoint["cfg"])
    speech = speech_features(cfg.feature.name if checkpoint["kind"] == KIND else expert_feature(cfg))
    speech.load_state_dict(take(checkpoint["state_dict"], "speech"))
    return speech.to(device).eval()


def load_expert(path: Path, device: str = "cpu") -> tuple[SyncExpert, SpeechFeatures]:
    """A sync expert in eval mode and what it hears: of a stage A, or the judge inside a stage B.

    Raises `UserError` for a file that holds no expert.
    """
    checkpoint = _load_run(path)
    state = checkpoint["state_dict"]
    if checkpoint["kind"] == EXPERT_KIND:
        cfg = from_dict(LipSyncConfig, checkpoint["cfg"])
        expert, speech, names = build_expert(cfg), speech_features(expert_feature(cfg)), ("expert", "speech")
    else:
        shape = dict(checkpoint["hyper_parameters"]["judge"])
        speech = speech_features(shape.pop("feature"))
        expert, names = SyncExpert(rows=speech.rows, **shape), ("judge.expert", "judge_speech")
    expert.load_state_dict(take(state, names[0]))
    speech.load_state_dict(take(state, names[1]))
    return expert.to(device).eval(), speech.to(device).eval()


def feature_name(speech: SpeechFeatures) -> SpeechMode:
    """The mode that `speech_features` made a module of."""
    names: dict[int, SpeechMode] = {80: "mel", 39: "mfcc", 119: "mel+mfcc"}
    return names[speech.rows]


def take(state: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The entries of the sub-network `name` of a module's `state_dict`, without its prefix."""
    prefix = f"{name}."
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _load_run(path: Path) -> dict[str, Any]:
    """A checkpoint of either stage."""
    try:
        return load_checkpoint(path, KIND)
    except UserError:
        return load_checkpoint(path, EXPERT_KIND)
