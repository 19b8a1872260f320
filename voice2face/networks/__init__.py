"""Voice encoders, generators and discriminators. They know torch, einops and common only."""

from torch import nn

from voice2face.networks.encoder import VoiceEncoder
from voice2face.networks.stylegan2_discriminator import StyleGAN2Discriminator
from voice2face.networks.stylegan2_generator import StyleGAN2Generator

ENCODERS: dict[str, type[nn.Module]] = {"resnet18": VoiceEncoder}
GENERATORS: dict[str, type[nn.Module]] = {"stylegan2": StyleGAN2Generator}
DISCRIMINATORS: dict[str, type[nn.Module]] = {"stylegan2": StyleGAN2Discriminator}
