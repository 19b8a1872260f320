"""Networks from the configuration, and from files, whoever wrote them."""

from collections.abc import Mapping
from pathlib import Path
from typing import cast

from torch import Tensor, nn

from common.audio.lipsync_features import SpeechFeatures, SpeechMode, speech_features
from common.config import from_dict
from common.errors import UserError
from lipsync.config import LipSyncConfig
from lipsync.networks import QualityDiscriminator, SyncExpert, Wav2Lip
from lipsync.weights_io import Kind, Weights, load_weights
from lipsync.weights_io import build as build_network

KIND, EXPERT_KIND = "lipsync", "lipsync-expert"
"""Kinds of the checkpoints of the two stages."""
MODES: dict[int, SpeechMode] = {80: "mel", 39: "mfcc", 119: "mel+mfcc"}
"""The speech features by their rows."""
_FRESH = ("attention.", "projection.", "audio_encoder.11.conv_block.0.weight", "audio_encoder.12.conv_block.0.weight")


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


def start_from(network: nn.Module, path: str, kind: Kind) -> None:
    """Load into a fresh network what a file holds of it; nothing where `path` is empty.

    Attention, the projection of feature rows and the kernel that grows with them may begin fresh. Raises `UserError`
    for a file of another network, image size or width.
    """
    if not path:
        return
    own, given = network.state_dict(), load_weights(Path(path), kind).state
    fitting = {name: value for name, value in given.items() if name in own and own[name].shape == value.shape}
    missing = [name for name in own if name not in fitting and not name.startswith(_FRESH)]
    if missing:
        raise UserError(
            f"{path} does not fit the configured {kind}: {missing[0]} is {_shape(given, missing[0])} there and "
            f"{_shape(own, missing[0])} here; give its width and image size in the configuration"
        )
    network.load_state_dict(own | fitting)


def load_generator(path: Path, device: str = "cpu") -> tuple[Wav2Lip, LipSyncConfig | None]:
    """A trained generator in eval mode from a file of any known format, and its run's configuration where it has one.

    Averaged weights come before the last step's. Raises `UserError` as `weights_io.load_weights`.
    """
    weights = load_weights(path, "generator")
    cfg = None if weights.cfg is None else from_dict(LipSyncConfig, weights.cfg)
    return cast(Wav2Lip, build_network(weights)).to(device), cfg


def load_speech(path: Path, device: str = "cpu") -> SpeechFeatures:
    """What a file's generator or expert hears, with the mean and deviation that it was trained with."""
    return speech_of(load_weights(path)).to(device)


def load_expert(path: Path, device: str = "cpu") -> tuple[SyncExpert, SpeechFeatures]:
    """A sync expert in eval mode and what it hears: of a stage A, the judge inside a stage B, or any known format."""
    weights = load_weights(path, "expert")
    return cast(SyncExpert, build_network(weights)).to(device), speech_of(weights).to(device)


def speech_of(weights: Weights) -> SpeechFeatures:
    """The speech features that a generator or expert was trained with."""
    speech = speech_features(MODES[weights.config["rows"]])
    speech.load_state_dict(weights.speech or speech.state_dict())
    return speech.eval()


def _shape(state: Mapping[str, Tensor], name: str) -> str:
    return str(tuple(state[name].shape)) if name in state else "absent"
