"""Voice encoders, generators and discriminators. They know torch, einops and common only."""

from torch import nn

from voice2face.networks.dcgan import DCGANDiscriminator, DCGANGenerator
from voice2face.networks.encoder import VoiceEncoder
from voice2face.networks.progressive import ProgressiveGenerator
from voice2face.networks.progressive_discriminator import StageDiscriminators
from voice2face.networks.stylegan1 import StyleGANDiscriminator, StyleGANGenerator
from voice2face.networks.stylegan2_discriminator import StyleGAN2Discriminator
from voice2face.networks.stylegan2_generator import StyleGAN2Generator
from voice2face.networks.wen_voice import WenVoiceEncoder

ENCODERS: dict[str, type[nn.Module]] = {"resnet18": VoiceEncoder, "wen": WenVoiceEncoder}
GENERATORS: dict[str, type[nn.Module]] = {
    "stylegan2": StyleGAN2Generator,
    "stylegan": StyleGANGenerator,
    "progressive": ProgressiveGenerator,
    "dcgan": DCGANGenerator,
}
DISCRIMINATORS: dict[str, type[nn.Module]] = {
    "stylegan2": StyleGAN2Discriminator,
    "stylegan": StyleGANDiscriminator,
    "progressive": StageDiscriminators,
    "dcgan": DCGANDiscriminator,
}
