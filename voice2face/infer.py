"""A trained model for use: voices in, portraits out. Plain modules only."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.checkpoint_file import load_checkpoint
from common.config import from_dict
from voice2face.build import build_face_tower, build_generator, build_voice, take
from voice2face.config import Config
from voice2face.networks.voice import VoiceNetwork, voice_latent

KIND = "voice2face"
REFINE_LR, RAMP_UP, RAMP_DOWN, REFINE_DISTANCE = 0.05, 0.05, 0.25, 0.008
"""Stage C: rate 0.05 (paper 2, section 3.1) with the ramps and the pull to the start of its source."""


class VoiceToFace:
    """Voice network, face tower and averaged generator of a checkpoint.

    Attributes:
        cfg: the configuration of the training run.
        voice, tower, generator: networks in eval mode on `device`.
    """

    def __init__(
        self, cfg: Config, voice: VoiceNetwork, tower: nn.Module, generator: Any, device: torch.device
    ) -> None:
        self.cfg, self.device = cfg, device
        for network in (voice, tower, generator):
            network.to(device).eval().requires_grad_(False)
        self.voice, self.tower, self.generator = voice, tower, generator

    @classmethod
    def load(cls, path: Path, device: str = "cpu") -> Self:
        """From a run's checkpoint; `UserError` where it is missing, torn, unsafe or of another kind."""
        checkpoint = load_checkpoint(path, KIND)
        cfg = from_dict(Config, checkpoint["cfg"])
        networks: dict[str, Any] = {
            "voice": build_voice(cfg),
            "face_tower": build_face_tower(cfg),
            "generator_ema": build_generator(cfg),
        }
        for name, network in networks.items():
            network.load_state_dict(take(checkpoint["state_dict"], name))
        return cls(cfg, networks["voice"], networks["face_tower"], networks["generator_ema"], torch.device(device))

    def embed(self, waves: Sequence[Tensor]) -> Tensor:
        """Unit embedding (D,) of recordings (n_i,) at 16 kHz of one speaker."""
        return self.voice.embed_speaker([wave.to(self.device) for wave in waves])

    @torch.no_grad()
    def styles(
        self, embeddings: Tensor, *, truncation: float = 1.0, generator: torch.Generator | None = None
    ) -> Tensor:
        """W+ (B,num_ws,512) of unit embeddings (B,D); a generator adds the training's latent noise."""
        if generator is not None:
            noise = torch.randn(embeddings.shape, generator=generator).to(self.device)
            embeddings = voice_latent(embeddings, noise, self.cfg.optim.latent_noise)
        return self.generator.mapping(embeddings, truncation=truncation)

    @torch.no_grad()
    def synthesise(self, ws: Tensor) -> Tensor:
        """Portraits (B,3,S,S) in [-1,1] of W+, with the generator's stored noise planes."""
        return self.generator.synthesis(ws, noise_mode="const").clamp(-1, 1)

    def generate(
        self, embedding: Tensor, *, samples: int = 1, seed: int = 0, truncation: float = 1.0, refine_steps: int = 0
    ) -> Tensor:
        """Portraits (samples,3,S,S) in [-1,1] of one unit embedding (D,).

        The first is the voice's own latent; the others add noise drawn from `seed`, as training did.
        """
        ws = self.styles(embedding[None], truncation=truncation)
        if samples > 1:
            drawn = embedding.expand(samples - 1, -1)
            source = torch.Generator().manual_seed(seed)
            ws = torch.cat([ws, self.styles(drawn, truncation=truncation, generator=source)])
        if refine_steps:
            ws = self.refine(ws, embedding, refine_steps)
        return self.synthesise(ws)

    def refine(self, ws: Tensor, embedding: Tensor, steps: int) -> Tensor:
        """Stage C: descend on W+ (B,num_ws,512) until the face tower hears the voice in the portrait.

        Minimises 1 - cos(tower(G(w)), voice) + 0.008 |w - w_0|^2 / num_ws with Adam, rate 0.05 under a linear rise over
        the first twentieth and a cosine fall over the last quarter.
        """
        start, w = ws.detach(), ws.detach().clone().requires_grad_(True)
        optimizer = torch.optim.Adam([w], lr=REFINE_LR)
        for step in range(steps):
            share = (step + 1) / steps
            fall = min(1.0, (1 - step / steps) / RAMP_DOWN)
            optimizer.param_groups[0]["lr"] = (
                REFINE_LR * min(1.0, share / RAMP_UP) * (0.5 - 0.5 * math.cos(math.pi * fall))
            )
            portraits = self.generator.synthesis(w, noise_mode="const")
            heard = (F.normalize(self.tower(portraits), dim=1) * embedding).sum(dim=1)
            pull = (w - start).square().sum(dim=2).mean(dim=1)
            loss = (1 - heard + REFINE_DISTANCE * pull).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return w.detach()
