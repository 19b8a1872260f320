"""Networks from the configuration, and trained ones from checkpoints."""

from pathlib import Path
from typing import NamedTuple, cast

import torch
from torch import Tensor

from common.checkpoint_file import load_checkpoint
from common.config import from_dict
from common.errors import UserError
from dubbing3d.coefficients import FaceModelMark
from dubbing3d.config import DubbingConfig
from dubbing3d.networks import ExpressionNet, PatchCritic, Renderer
from dubbing3d.networks.inpaint import Scale
from dubbing3d.speech import SpeechWindows

CONSTANTS = {"zero": 0.0, "one": 1.0}
"""Values of `renderer.scale` that are numbers (table 5)."""
KIND, EXPRESSION_KIND = "dubbing3d", "dubbing3d-expression"
"""Kinds of the checkpoints of the two stages: renderer and expressions."""


def build_expression(cfg: DubbingConfig, expressions: int) -> ExpressionNet:
    """Stage 1's network for a face model of so many expressions, with fresh weights."""
    shape = cfg.expression
    return ExpressionNet(
        expressions=expressions,
        width=shape.width,
        image_size=cfg.semantic.size,
        k=shape.k,
        attention=shape.attention,
        semantic=shape.semantic,
        audio_residual=shape.audio_residual,
    )


def build_renderer(cfg: DubbingConfig) -> Renderer:
    """Stage 2's network with fresh weights."""
    shape = cfg.renderer
    scale = cast(Scale, CONSTANTS.get(shape.scale, shape.scale))
    return Renderer(
        width=shape.width,
        image_size=shape.size,
        flow=shape.warp,
        enhancement=shape.enhance,
        msaf=shape.msaf,
        scales=shape.scales,
        scale=scale,
        depthwise=shape.depthwise,
        multi_reference=shape.references > 1,
        reference_guide=shape.reference_guide,
        recurrent=shape.recurrent,
        guide_channels=4 if shape.guide_mask else 3,
    )


def build_critic(cfg: DubbingConfig) -> PatchCritic:
    """Stage 2's critic with fresh weights."""
    return PatchCritic(width=cfg.renderer.width, image_size=cfg.renderer.size)


class LoadedExpression(NamedTuple):
    """A trained stage 1: the network in eval mode, what it hears, whose coefficients it gives, and their mean (Ke,)."""

    network: ExpressionNet
    speech: SpeechWindows
    mark: FaceModelMark
    mean: Tensor
    cfg: DubbingConfig


def load_expression(path: Path, device: str = "cpu") -> LoadedExpression:
    """A trained stage 1 from a run's checkpoint; `UserError` for any other file."""
    checkpoint = load_checkpoint(path, EXPRESSION_KIND)
    cfg = from_dict(DubbingConfig, checkpoint["cfg"])
    mark, state = _mark(checkpoint, path), checkpoint["state_dict"]
    network, speech = build_expression(cfg, len(mark.lengths)), SpeechWindows()
    for module, name in ((network, "network"), (speech, "speech")):
        load_part(module, state, name, path)
    mean = state["mean_expression"].to(device)
    return LoadedExpression(network.eval().to(device), speech.eval().to(device), mark, mean, cfg)


class LoadedRenderer(NamedTuple):
    """A trained stage 2: the network in eval mode and the face model whose drawings it was shown."""

    network: Renderer
    mark: FaceModelMark
    cfg: DubbingConfig


def load_renderer(path: Path, device: str = "cpu") -> LoadedRenderer:
    """A trained stage 2 from a run's checkpoint; `UserError` for any other file."""
    checkpoint = load_checkpoint(path, KIND)
    cfg = from_dict(DubbingConfig, checkpoint["cfg"])
    network = build_renderer(cfg)
    load_part(network, checkpoint["state_dict"], "renderer", path)
    return LoadedRenderer(network.eval().to(device), _mark(checkpoint, path), cfg)


def load_part(module: torch.nn.Module, state: dict[str, Tensor], name: str, path: Path) -> None:
    """Fill a module from the entries of a checkpoint's state that begin with its name."""
    own = {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}
    try:
        module.load_state_dict(own)
    except RuntimeError as error:
        reason = str(error).strip().split("\n")[-1].strip()
        raise UserError(f"{path} does not hold the {name} that its configuration describes ({reason})") from error


def _mark(checkpoint: dict[str, object], path: Path) -> FaceModelMark:
    try:
        return FaceModelMark.from_dict(checkpoint["hyper_parameters"]["mark"])  # type: ignore[index]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} does not say which face model it was trained with") from error
