"""Networks from the configuration. A wrong argument in `kwargs` dies here in one line."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from common.audio.features import FEATURES
from common.data.corpus import SAMPLE_RATE
from common.errors import UserError
from voice2face.config import Config
from voice2face.networks import DISCRIMINATORS, ENCODERS, GENERATORS
from voice2face.networks.voice import VoiceNetwork

EMBEDDING_DIM = 512
"""Width of the voice embedding (paper 2, section 1.3)."""


def build_voice(cfg: Config) -> VoiceNetwork:
    """Audio front end and voice encoder."""
    feature = _make(FEATURES[cfg.feature.name], "feature", cfg.feature.kwargs)
    channels = feature(torch.zeros(1, SAMPLE_RATE)).shape[1]
    arguments = {"in_channels": channels, "embedding_dim": EMBEDDING_DIM} | cfg.encoder.kwargs
    return VoiceNetwork(feature, _make(ENCODERS[cfg.encoder.name], "encoder", arguments))


def build_face_tower(cfg: Config) -> nn.Module:
    """ResNet18 on RGB images (B,3,S,S) that shares the voice's embedding space."""
    return ENCODERS["resnet18"](
        in_channels=3, embedding_dim=EMBEDDING_DIM, attention="none", activation="relu", width=cfg.encoder.face_width
    )


def build_generator(cfg: Config) -> Any:
    """The generator, whose latent is the voice embedding."""
    arguments = {"resolution": cfg.data.image_size, "z_dim": EMBEDDING_DIM} | cfg.generator.kwargs
    return _make(GENERATORS[cfg.generator.name], "generator", arguments)


def build_discriminator(cfg: Config) -> Any:
    """The discriminator, whose trunk the identity classifier shares."""
    arguments = {"resolution": cfg.data.image_size} | cfg.discriminator.kwargs
    return _make(DISCRIMINATORS[cfg.discriminator.name], "discriminator", arguments)


def take(state: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The entries of the sub-network `name` of a module's `state_dict`, without its prefix."""
    prefix = f"{name}."
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _make(kind: type[nn.Module], section: str, arguments: dict[str, Any]) -> Any:
    try:
        return kind(**arguments)
    except (TypeError, ValueError) as error:
        raise UserError(f"{section}.kwargs does not fit {kind.__name__}: {error}") from error
