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
from voice2face.networks.w_plus import WPlusHead

EMBEDDING_DIM = 512
"""Width of the voice embedding (paper 2, section 1.3), unless `encoder.kwargs` say otherwise."""


def embedding_dim(cfg: Config) -> int:
    """Width of the voice embedding, of the face tower's and of the generator's latent."""
    return int(cfg.encoder.kwargs.get("embedding_dim", EMBEDDING_DIM))


def build_feature(cfg: Config) -> nn.Module:
    """Audio front end: waves (B,n) -> (B, channels, bands, frames)."""
    feature: nn.Module = _make(FEATURES[cfg.feature.name], "feature", cfg.feature.kwargs)
    return feature


def build_voice(cfg: Config) -> VoiceNetwork:
    """Audio front end and voice encoder."""
    feature = build_feature(cfg)
    channels = feature(torch.zeros(1, SAMPLE_RATE)).shape[1]
    arguments = {"in_channels": channels, "embedding_dim": EMBEDDING_DIM} | cfg.encoder.kwargs
    return VoiceNetwork(feature, _make(ENCODERS[cfg.encoder.name], "encoder", arguments))


def build_face_tower(cfg: Config) -> nn.Module:
    """ResNet18 on RGB images (B,3,S,S) that shares the voice's embedding space."""
    width = cfg.encoder.face_width
    return ENCODERS["resnet18"](
        in_channels=3, embedding_dim=embedding_dim(cfg), attention="none", activation="relu", width=width
    )


def build_generator(cfg: Config) -> Any:
    """The generator, whose latent is the voice embedding."""
    arguments = {"resolution": cfg.data.image_size, "z_dim": embedding_dim(cfg)} | cfg.generator.kwargs
    generator = _make(GENERATORS[cfg.generator.name], "generator", arguments)
    if cfg.generator.w_plus:
        generator.mapping = WPlusHead(embedding_dim(cfg), generator.mapping.w_avg, generator.num_ws)
    return generator


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
