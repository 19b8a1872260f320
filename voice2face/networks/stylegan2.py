"""StyleGAN2 under one name: generator, discriminator, identity head and style mixing."""

from voice2face.networks.mapping import MappingNetwork, draw_mixing_cutoff, mix_styles
from voice2face.networks.stylegan2_discriminator import IdentityClassifier, StyleGAN2Discriminator
from voice2face.networks.stylegan2_generator import StyleGAN2Generator, SynthesisNetwork

__all__ = [
    "IdentityClassifier",
    "MappingNetwork",
    "StyleGAN2Discriminator",
    "StyleGAN2Generator",
    "SynthesisNetwork",
    "draw_mixing_cutoff",
    "mix_styles",
]
