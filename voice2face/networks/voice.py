"""From a waveform to the latent that the generator takes."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class VoiceNetwork(nn.Module):
    """Audio front end and encoder: mono waves (B, n) at 16 kHz in [-1, 1] -> unit embeddings (B, D)."""

    def __init__(self, feature: nn.Module, encoder: nn.Module) -> None:
        super().__init__()
        self.feature = feature
        self.encoder = encoder

    def forward(self, wave: Tensor) -> Tensor:
        return F.normalize(self.encoder(self.feature(wave)).float(), dim=1)

    @torch.no_grad()
    def embed_speaker(self, waves: Sequence[Tensor]) -> Tensor:
        """One unit embedding (D,) of several recordings (n_i,) of one speaker: the mean of theirs, renormalised."""
        return F.normalize(torch.cat([self(wave[None]) for wave in waves]).mean(dim=0), dim=0)


def voice_latent(embedding: Tensor, noise: Tensor, deviation: float) -> Tensor:
    """Unit embedding plus Gaussian noise of this deviation per dimension, renormalised (Wen et al. 2019).

    embedding (B,D) and noise (B,D) standard normal -> (B,D) of unit length. Other draws of the noise give other
    portraits of the same voice.
    """
    return F.normalize(embedding + deviation * noise, dim=1)
