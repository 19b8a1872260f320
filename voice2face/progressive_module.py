"""Training of networks that grow: the StyleGAN baseline, and paper 1's three-stage generator."""

from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.callbacks import ema_update
from common.errors import UserError
from common.losses import AMSoftmax, cosine_distance, info_nce, r1_penalty
from voice2face.adopt import Start
from voice2face.build import embedding_dim
from voice2face.config import Config
from voice2face.data import crop_batch
from voice2face.games import GAMES
from voice2face.module import VoicePortrait
from voice2face.networks.growth import Growing, Growth, enlarge, growth_at, pyramid

Terms = dict[str, Tensor]


class GrowingPortrait(VoicePortrait):
    """`VoicePortrait` whose generator and discriminator grow by `cfg.progressive` (StyleGAN, paper 2's table 2)."""

    def __init__(
        self,
        cfg: Config,
        people: int,
        encoder_state: dict[str, Tensor] | None = None,
        start: Start | None = None,
    ) -> None:
        super().__init__(cfg, people, encoder_state, start)
        stages, wanted = len(self.generator.synthesis.sizes), cfg.progressive.stage_steps
        if cfg.progressive.schedule == "progressive" and wanted * (stages - 1) >= cfg.trainer.steps:
            raise UserError(
                f"progressive.stage_steps={wanted} lets the last of {stages} stages begin at step "
                f"{wanted * (stages - 1)} of a run of {cfg.trainer.steps}; lower it, or 0 for equal parts"
            )

    def growth(self) -> Growth:
        """Of the running step; a function of the step and the configuration only."""
        cfg, stages = self.cfg.progressive, len(self.generator.synthesis.sizes)
        if cfg.schedule == "joint":
            return Growth(stages)
        steps = cfg.stage_steps or -(-self.cfg.trainer.steps // stages)
        return growth_at(self.step, stages=stages, stage_steps=steps, fade=cfg.fade)

    def grow(self) -> Growth:
        """Bring all networks to this step's growth."""
        growth = self.growth()
        for network in (self.generator.synthesis, self.generator_ema.synthesis, self.discriminator):
            if isinstance(network, Growing):
                network.grow(growth)
        return growth

    def training_step(self, batch: dict[str, Tensor], index: int) -> Terms:
        """The parent's, on faces reduced and blended as the generator's images are."""
        faces = pyramid(batch["face"], self.generator.synthesis.sizes, self.grow())
        return super().training_step(batch | {"face": enlarge(faces[-1], self.cfg.data.image_size)}, index)


class StageHeads(nn.Module):
    """What reads identities: a classifier on each stage's trunk, and prototypes of people in the face tower's space."""

    def __init__(self, stages: Iterable[nn.Module], prototypes: nn.Module) -> None:
        super().__init__()
        self.stages, self.prototypes = nn.ModuleList(stages), prototypes


class ProgressivePortrait(GrowingPortrait):
    """Paper 1: a discriminator with an identity classifier for each stage's images.

    Losses are sums over the active stages. The face tower, frozen since stage A, sees the newest stage's portrait:
    AM-Softmax asks for its identity, whose prototypes learn on real faces, and InfoNCE for its voice.
    """

    classifier: StageHeads

    def __init__(
        self,
        cfg: Config,
        people: int,
        encoder_state: dict[str, Tensor] | None = None,
        start: Start | None = None,
    ) -> None:
        super().__init__(cfg, people, encoder_state, start)
        ours, theirs = self.generator.synthesis.sizes, getattr(self.discriminator, "sizes", None)
        if ours != theirs:
            raise UserError(
                f"generator.kwargs.stages are {ours} and discriminator.kwargs.stages {theirs}; make them equal"
            )
        heads = [judge.identity_head(people) for judge in self.discriminator]
        self.classifier = StageHeads(heads, AMSoftmax(embedding_dim(cfg), people))
        self.game = GAMES[cfg.progressive.adversarial]

    def tower(self, images: Tensor) -> Tensor:
        """Face-tower embeddings (B,512) of images (B,3,s,s) enlarged to the size that the tower learned on."""
        return self.face_tower(enlarge(images, self.cfg.data.image_size))

    def judge_losses(self, reals: list[Tensor], fakes: list[Tensor], identity: Tensor) -> Terms:
        """The discriminators' terms, unweighted; `d_adversarial_S` is the part of the stage of S px.

        `d_adversarial`, the sum over the stages, is that of `d_real` and `d_fake`.
        """
        terms: Terms = {}
        on_real, on_fake, guessed = [], [], []
        for judge, head, real, fake in zip(self.discriminator, self.classifier.stages, reals, fakes, strict=False):
            features = judge.features(real)
            on_real.append(self.game.real(judge.logits(features)))
            on_fake.append(self.game.fake(judge(fake)))
            terms[f"d_adversarial_{real.shape[-1]}"] = on_fake[-1] + on_real[-1]
            guessed.append(F.cross_entropy(head(features), identity))
        with torch.no_grad():
            seen = self.tower(reals[-1])
        return terms | {
            "d_adversarial": torch.stack(list(terms.values())).sum(),
            "d_real": torch.stack(on_real).sum(),
            "d_fake": torch.stack(on_fake).sum(),
            "d_identity": torch.stack(guessed).sum(),
            "d_margin": self.classifier.prototypes(seen, identity),
        }

    def artist_losses(self, reals: list[Tensor], fakes: list[Tensor], identity: Tensor, embedding: Tensor) -> Terms:
        """The generator's terms, unweighted, as `judge_losses`."""
        terms: Terms = {}
        guessed, apart = [], []
        for judge, head, real, fake in zip(self.discriminator, self.classifier.stages, reals, fakes, strict=False):
            features = judge.features(fake)
            terms[f"g_adversarial_{fake.shape[-1]}"] = self.game.drawn(judge.logits(features))
            guessed.append(F.cross_entropy(head(features), identity))
            apart.append(F.l1_loss(fake, real))
        seen = self.tower(fakes[-1])
        return (
            terms
            | {
                "g_adversarial": torch.stack(list(terms.values())).sum(),
                "g_identity": torch.stack(guessed).sum(),
                "g_pixel": torch.stack(apart).sum(),
                "g_match": cosine_distance(seen, embedding),
                "g_margin": self.classifier.prototypes(seen, identity),
                "g_contrast": info_nce(seen, embedding, temperature=self.cfg.encoder.temperature, identities=identity),
            }
            | self.perceptual_loss(fakes[-1], reals[-1])
        )

    def weighted(self, terms: Terms) -> Tensor:
        """The sum that is optimised."""
        weights, extra = self.cfg.weights, self.cfg.progressive
        factors = {
            "adversarial": weights.adversarial,
            "identity": weights.identity,
            "pixel": weights.pixel,
            "match": weights.match,
            "perceptual": weights.perceptual,
            "margin": extra.margin,
            "contrast": extra.contrast,
        }
        parts = {name.split("_", 1)[1]: value for name, value in terms.items()}
        return torch.stack([factor * parts[name] for name, factor in factors.items() if name in parts]).sum()

    def training_step(self, batch: dict[str, Tensor], index: int) -> Terms:
        growth, identity = self.grow(), batch["identity"]
        embedding = self.voice(crop_batch(batch["wave"], self.cfg.data, self.cfg.run.seed, self.step))
        fakes = self.generator.synthesis.stages(self.styles(embedding))
        reals = pyramid(batch["face"], self.generator.synthesis.sizes, growth)
        d_optimizer, g_optimizer = self.optimizers()  # type: ignore[attr-defined]  # a list of two
        with self.updating(d_optimizer):
            d_terms = self.judge_losses(reals, [fake.detach() for fake in fakes], identity)
            d_loss = self.weighted(d_terms)
            self.manual_backward(d_loss)
        with self.updating(g_optimizer):
            g_terms = self.artist_losses(reals, fakes, identity, embedding)
            g_loss = self.weighted(g_terms)
            self.manual_backward(g_loss)
        logged = {"d_loss": d_loss, "g_loss": g_loss} | self.regularise_stages(reals)
        logged |= self.regularise_paths(embedding.detach(), reals[-1].shape[1:])
        ema_update(self.generator_ema, self.generator, self.ema_beta(len(embedding)))
        return logged | {f"loss_{name}": value for name, value in (d_terms | g_terms).items()}

    def regularise_stages(self, reals: list[Tensor]) -> Terms:
        """Lazy R1 of every active stage, an update of its own times its interval."""
        cfg, gamma = self.cfg.optim, self.cfg.weights.r1
        if gamma == 0 or self.step % cfg.r1_every:
            return {}
        d_optimizer = self.optimizers()[0]  # type: ignore[index]  # a list of two
        with self.updating(d_optimizer):
            pairs = zip(self.discriminator, reals, strict=False)
            r1 = torch.stack([r1_penalty(partial(judge, force_fp32=True), real, gamma) for judge, real in pairs]).sum()
            self.manual_backward(r1 * cfg.r1_every)
        return {"loss_r1": r1}

    def path_images(self, ws: Tensor) -> Tensor:
        """The newest stage's own, not enlarged, so that a path is as long at every growth."""
        images: list[Tensor] = self.generator.synthesis.stages(ws, force_fp32=True)
        return images[-1]
