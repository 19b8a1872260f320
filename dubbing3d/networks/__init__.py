"""The networks of both stages. They know torch and common only."""

from dubbing3d.networks.critic import PatchCritic
from dubbing3d.networks.expression import ExpressionNet
from dubbing3d.networks.flow import SFM
from dubbing3d.networks.inpaint import MSAF, RBFIN
from dubbing3d.networks.renderer import References, Renderer, RenderOutput, TextureOutput
from dubbing3d.networks.texture import TMN
from dubbing3d.networks.warp import warp

__all__ = [
    "MSAF",
    "RBFIN",
    "SFM",
    "TMN",
    "ExpressionNet",
    "PatchCritic",
    "References",
    "RenderOutput",
    "Renderer",
    "TextureOutput",
    "warp",
]
