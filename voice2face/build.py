"""Networks from the configuration. A wrong argument in `kwargs` dies here in one line."""

from collections.abc import Mapping
from pathlib import Path
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
from voice2face.weights_io import StyleGAN2Weights, load_stylegan2

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
    generator = _make(GENERATORS[cfg.generator.name], "generator", arguments)
    if cfg.generator.w_plus:
        generator.mapping = WPlusHead(EMBEDDING_DIM, generator.mapping.w_avg, generator.num_ws)
    return generator


def build_discriminator(cfg: Config) -> Any:
    """The discriminator, whose trunk the identity classifier shares."""
    arguments = {"resolution": cfg.data.image_size} | cfg.discriminator.kwargs
    return _make(DISCRIMINATORS[cfg.discriminator.name], "discriminator", arguments)


def take(state: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The entries of the sub-network `name` of a module's `state_dict`, without its prefix."""
    prefix = f"{name}."
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def adopt_weights(cfg: Config) -> StyleGAN2Weights | None:
    """Read `generator.weights`, and put the configuration of its networks into `cfg`; None where none is named.

    Raises `UserError` for a file that cannot be read or whose networks do not take a voice embedding of this size.
    """
    if not cfg.generator.weights:
        return None
    path = Path(cfg.generator.weights)
    loaded = load_stylegan2(path, averaged=False)
    found = loaded.generator.config
    wanted = {"resolution": cfg.data.image_size, "z_dim": EMBEDDING_DIM, "c_dim": 0}
    if cfg.generator.name != "stylegan2" or any(found[key] != value for key, value in wanted.items()):
        raise UserError(
            f"generator.weights={path} is a StyleGAN2 of { {k: found[k] for k in wanted} }, this experiment wants "
            f"{cfg.generator.name} of {wanted}; set data.image_size={found['resolution']} or another file"
        )
    cfg.generator.kwargs = dict(found)
    if loaded.discriminator is not None:
        cfg.discriminator.kwargs = dict(loaded.discriminator.config)
    return loaded


def _make(kind: type[nn.Module], section: str, arguments: dict[str, Any]) -> Any:
    try:
        return kind(**arguments)
    except (TypeError, ValueError) as error:
        raise UserError(f"{section}.kwargs does not fit {kind.__name__}: {error}") from error
