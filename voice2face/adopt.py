"""Networks to start from, read from other people's files."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common.data.corpus import SAMPLE_RATE
from common.errors import UserError
from voice2face.build import build_feature, embedding_dim
from voice2face.config import Config
from voice2face.weights_io import load_stylegan2
from voice2face.wen_weights import TITLES, WenKind, file_kind, load_wen_generator, load_wen_voice

PLACES: dict[WenKind, str] = {
    "voice": "give it as encoder.weights, with encoder.name=wen",
    "generator": "it fits generator.name=dcgan",
}


@dataclass(frozen=True)
class Start:
    """Networks of the configuration that `adopt_weights` leaves behind; None where no file was named."""

    encoder: nn.Module | None = None
    generator: Any = None
    discriminator: nn.Module | None = None
    """None also where the generator's file has none"""


def adopt_weights(cfg: Config) -> Start:
    """Read `encoder.weights` and `generator.weights`, and put the configuration of their networks into `cfg`.

    What a file must hold follows from `encoder.name` and `generator.name`.

    Raises `UserError` for a file that cannot be read, that holds another network (and says which, where it is a known
    one), or whose sizes do not fit the rest of the configuration.
    """
    encoder = _adopt_encoder(cfg) if cfg.encoder.weights else None
    if not cfg.generator.weights:
        return Start(encoder)
    path = Path(cfg.generator.weights)
    discriminator: Any = None
    if cfg.generator.name == "dcgan":
        generator: Any = load_wen_generator(path)
    elif cfg.generator.name == "stylegan2":
        if kind := file_kind(path):
            raise UserError(f"generator.weights={path} is the {TITLES[kind]} of Wen et al.: {PLACES[kind]}")
        loaded = load_stylegan2(path, averaged=False)
        generator, discriminator = loaded.generator, loaded.discriminator
    else:
        raise UserError(
            f"generator.weights={path}: other people's files are read for generator.name=stylegan2 and dcgan, not for "
            f"{cfg.generator.name}; leave it out"
        )
    _check_generator(cfg, generator.config)
    cfg.generator.kwargs = dict(generator.config)
    if discriminator is not None:
        cfg.discriminator.kwargs = dict(discriminator.config)
    return Start(encoder, generator, discriminator)


def _adopt_encoder(cfg: Config) -> nn.Module:
    path = Path(cfg.encoder.weights)
    if cfg.encoder.name != "wen":
        raise UserError(
            f"encoder.weights={path}: other people's files are read for encoder.name=wen, not for {cfg.encoder.name}; "
            "a stage A of this software goes into encoder.checkpoint"
        )
    encoder = load_wen_voice(path)
    found = tuple(build_feature(cfg)(torch.zeros(1, SAMPLE_RATE)).shape[1:3])
    if found != (encoder.in_channels, encoder.bands):
        raise UserError(
            f"encoder.weights={path} hears {encoder.in_channels} x {encoder.bands} bands, and feature.name="
            f"{cfg.feature.name} gives {found[0]} x {found[1]}; set feature.name=logmel as Wen et al. do"
        )
    cfg.encoder.kwargs = dict(encoder.config)
    return encoder


def _check_generator(cfg: Config, found: dict[str, Any]) -> None:
    wanted = {"resolution": cfg.data.image_size, "z_dim": embedding_dim(cfg), "c_dim": 0}
    differing = [f"{key} {found[key]}, not {value}" for key, value in wanted.items() if found.get(key, value) != value]
    if differing:
        raise UserError(
            f"generator.weights={cfg.generator.weights} has {', '.join(differing)}: set data.image_size and the voice "
            "encoder's embedding_dim (encoder.kwargs) to the file's, or give another file"
        )
