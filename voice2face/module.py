"""Stage B: the generator learns to draw the speaker's face (paper 2, section 2.2, eqs 12-15)."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from common.callbacks import ema_update
from common.data.sampling import Draw
from common.faces import IdentityEmbedder, load_embedder
from common.losses import cosine_distance, path_length_penalty, r1_penalty
from common.metrics.fid import FrechetDistance, embedder_extractor, load_extractor
from common.metrics.identity import IdentityMetric
from common.rng import StepRandom
from common.training import TrainModule, reduce_mean
from voice2face.adopt import Start
from voice2face.build import build_discriminator, build_face_tower, build_generator, build_voice, take
from voice2face.config import Config
from voice2face.data import WholeRecordings, crop_batch, load_face
from voice2face.games import GAMES
from voice2face.networks.mapping import draw_mixing_cutoff, mix_styles
from voice2face.networks.voice import voice_latent
from voice2face.paths import validation_path_length

KIND = "voice2face"


class VoicePortrait(TrainModule):
    """StyleGAN2 whose latent is the voice embedding, with an identity classifier on the discriminator's trunk.

    Args:
        cfg: the run.
        people: number of training identities.
        encoder_state: `state_dict` of stage A's module; None leaves the encoder as it is built.
        start: networks to start from (`adopt_weights`); a stage A's encoder comes before one of these.
    """

    cfg: Config
    game = GAMES["logistic"]
    perceiver: IdentityEmbedder | None = None
    """the network of `weights.perceptual`; no submodule, so that no checkpoint holds it"""
    path_length_mean: Tensor

    def __init__(
        self,
        cfg: Config,
        people: int,
        encoder_state: dict[str, Tensor] | None = None,
        start: Start | None = None,
    ) -> None:
        super().__init__(cfg, KIND)
        self.save_hyperparameters({"people": people})
        self.automatic_optimization = False
        self.voice, self.face_tower = build_voice(cfg), build_face_tower(cfg)
        self.generator, self.discriminator = build_generator(cfg), build_discriminator(cfg)
        self.classifier = self.discriminator.identity_head(people)
        self._load_networks(start or Start())
        self.generator.synthesis.requires_grad_(cfg.generator.train_synthesis)
        self.generator_ema = deepcopy(self.generator).eval().requires_grad_(False)
        self.register_buffer("path_length_mean", torch.zeros(()))
        self._load_encoder(encoder_state)
        self.face_tower.requires_grad_(False)
        self.voice.requires_grad_(not cfg.encoder.frozen)
        self.embedder = embedder_extractor(load_embedder(cfg.evaluation.embedder))
        self.fid = FrechetDistance(load_extractor(cfg.evaluation.extractor))
        self.identity = IdentityMetric(self.embedder.num_features)
        self.train()  # Lightning leaves modes as it finds them: put judges and the frozen encoder into theirs

    def _load_encoder(self, state: dict[str, Tensor] | None) -> None:
        if state is not None:
            self.voice.load_state_dict(take(state, "voice"))
            self.face_tower.load_state_dict(take(state, "face_tower"))

    def _load_networks(self, start: Start) -> None:
        if start.encoder is not None:
            self.voice.encoder.load_state_dict(start.encoder.state_dict())
        if start.generator is not None:
            self.generator.synthesis.load_state_dict(start.generator.synthesis.state_dict())
            mapping = start.generator.mapping.state_dict()
            self.generator.mapping.load_state_dict(mapping, strict=not self.cfg.generator.w_plus)
        if start.discriminator is not None:
            self.discriminator.load_state_dict(start.discriminator.state_dict())

    def train(self, mode: bool = True) -> "VoicePortrait":
        """Judges and averages stay in eval mode."""
        super().train(mode)
        self.face_tower.eval()
        self.generator_ema.eval()
        if self.cfg.encoder.frozen:
            self.voice.eval()
        return self

    def forward(self, wave: Tensor) -> Tensor:
        """Waves (B,n) -> portraits (B,3,S,S) by the averaged generator, without noise."""
        return self.generator_ema(self.voice(wave), noise_mode="const")

    def latents(self, embedding: Tensor, stream: str) -> Tensor:
        """The step's noisy latents of these embeddings."""
        noise = self.random.normal(self.step, stream, embedding.shape)
        return voice_latent(embedding, noise, self.cfg.optim.latent_noise)

    def styles(self, embedding: Tensor) -> Tensor:
        """W+ of the step: two latents of the same voice, mixed at a random layer; moves `w_avg`."""
        mapping = self.generator.mapping
        ws = mapping(self.latents(embedding, "latent"), update_average=True)
        mapping.w_avg.copy_(reduce_mean(mapping.w_avg))
        choice = StepRandom(self.cfg.run.seed).generator(self.step, "mixing")
        cutoff = draw_mixing_cutoff(mapping.num_ws, self.cfg.optim.style_mixing, choice)
        if cutoff == mapping.num_ws:
            return ws
        return mix_styles(ws, mapping(self.latents(embedding, "second latent")), cutoff)

    def draw(self, ws: Tensor, stream: str, *, force_fp32: bool = False) -> Tensor:
        """Images (B,3,S,S) of W+ with this step's noise planes."""
        shapes = self.generator.synthesis.noise_shapes()
        noise = [self.random.normal(self.step, f"{stream} {i}", (len(ws), 1, r, r)) for i, r in enumerate(shapes)]
        return self.generator.synthesis(ws, noise=noise, force_fp32=force_fp32)

    def discriminator_losses(self, real: Tensor, fake: Tensor, identity: Tensor) -> dict[str, Tensor]:
        """Eq. 14 (`d_adversarial`, the sum of `d_real` and `d_fake`) and the classifier on real faces."""
        features = self.discriminator.features(real)
        d_real = self.game.real(self.discriminator.logits(features))
        d_fake = self.game.fake(self.discriminator(fake))
        return {
            "d_adversarial": d_fake + d_real,
            "d_real": d_real,
            "d_fake": d_fake,
            "d_identity": F.cross_entropy(self.classifier(features), identity),
        }

    def generator_losses(self, fake: Tensor, batch: dict[str, Tensor], embedding: Tensor) -> dict[str, Tensor]:
        """Eq. 12, the classifier on portraits, and the optional terms."""
        features = self.discriminator.features(fake)
        return {
            "g_adversarial": self.game.drawn(self.discriminator.logits(features)),
            "g_identity": F.cross_entropy(self.classifier(features), batch["identity"]),
            "g_match": cosine_distance(self.face_tower(fake), embedding),
            "g_pixel": F.l1_loss(fake, batch["face"]),
        } | self.perceptual_loss(fake, batch["face"])

    def perceptual_loss(self, portraits: Tensor, faces: Tensor) -> dict[str, Tensor]:
        """How far the identity network holds portraits (B,3,S,S) from the paired faces; nothing where it is unused."""
        if self.perceiver is None:
            return {}
        with torch.autocast(portraits.device.type, enabled=False):
            with torch.no_grad():
                target = self.perceiver.embed_tensor(faces)
            return {"g_perceptual": cosine_distance(self.perceiver.embed_tensor(portraits.float()), target)}

    def training_step(self, batch: dict[str, Tensor], _: int) -> dict[str, Tensor]:
        cfg, weights = self.cfg, self.cfg.weights
        embedding = self.voice(crop_batch(batch["wave"], cfg.data, cfg.run.seed, self.step))
        fake = self.draw(self.styles(embedding), "noise")
        d_optimizer, g_optimizer = self.optimizers()  # type: ignore[attr-defined]  # a list of two
        with self.updating(d_optimizer):
            d_terms = self.discriminator_losses(batch["face"], fake.detach(), batch["identity"])
            d_loss = weights.adversarial * d_terms["d_adversarial"] + weights.identity * d_terms["d_identity"]
            self.manual_backward(d_loss)
        with self.updating(g_optimizer):
            g_terms = self.generator_losses(fake, batch, embedding)
            g_loss = sum(getattr(weights, name.removeprefix("g_")) * value for name, value in g_terms.items())
            self.manual_backward(g_loss)
        logged = {"d_loss": d_loss, "g_loss": g_loss} | self.regularise(batch["face"], embedding.detach())
        ema_update(self.generator_ema, self.generator, self.ema_beta(len(embedding)))
        return logged | {f"loss_{name}": value for name, value in (d_terms | g_terms).items()}

    def on_fit_start(self) -> None:
        """The device is known."""
        if self.cfg.weights.perceptual > 0:
            self.perceiver = load_embedder(self.cfg.weights.perceptual_by, device=str(self.device))

    def ema_beta(self, batch: int) -> float:
        """Decay whose half-life is `ema_kimg` thousand images, whatever the batch; shorter at the start."""
        images = batch * self.trainer.world_size
        half_life = min(1000 * self.cfg.optim.ema_kimg, self.cfg.optim.ema_rampup * images * (self.step + 1))
        return 0.5 ** (images / half_life)

    def regularise(self, real: Tensor, embedding: Tensor) -> dict[str, Tensor]:
        """Lazy R1 (eq. 15) and path length (eq. 13), each an update of its own times its interval."""
        return self.regularise_judge(real) | self.regularise_paths(embedding, real.shape[1:])

    def regularise_judge(self, real: Tensor) -> dict[str, Tensor]:
        """R1, where it is due."""
        cfg, gamma = self.cfg.optim, self.cfg.weights.r1
        if gamma == 0 or self.step % cfg.r1_every:
            return {}
        with self.updating(self.optimizers()[0]):  # type: ignore[index]  # a list of two
            r1 = r1_penalty(lambda images: self.discriminator(images, force_fp32=True), real, gamma)
            self.manual_backward(r1 * cfg.r1_every)
        return {"loss_r1": r1}

    def regularise_paths(self, embedding: Tensor, shape: Sequence[int]) -> dict[str, Tensor]:
        """Path length of pictures of `shape` (C,H,W), where it is due."""
        cfg, weight = self.cfg.optim, self.cfg.weights.path_length
        if weight == 0 or self.step % cfg.path_length_every:
            return {}
        with self.updating(self.optimizers()[1]):  # type: ignore[index]  # a list of two
            # Half the batch, as in StyleGAN2: this penalty costs the most memory.
            ws = self.generator.mapping(self.latents(embedding[: -(-len(embedding) // 2)], "path latent"))
            penalty, lengths = path_length_penalty(
                self.path_images,
                ws,
                self.path_length_mean,
                noise=self.random.normal(self.step, "path direction", (len(ws), *shape)),
                decay=cfg.path_length_decay,
                reduce=reduce_mean,
            )
            self.manual_backward(penalty * weight * cfg.path_length_every)
        self.path_length_mean.lerp_(reduce_mean(lengths.mean()), cfg.path_length_decay)
        return {"loss_path_length": penalty}

    def path_images(self, ws: Tensor) -> Tensor:
        """The pictures of W+ whose path length is regularised, twice differentiable."""
        return self.draw(ws, "path noise", force_fp32=True)

    @property
    def recordings(self) -> WholeRecordings:
        """The validation recordings."""
        return self.trainer.datamodule.recordings  # type: ignore[attr-defined]  # Lightning sets it late

    @torch.no_grad()
    def sample_images(self, count: int) -> Tensor:
        """Pairs of a validation face and the portrait of its person's voice, (2 * count, 3, S, S)."""
        recordings = self.recordings
        shown = range(0, len(recordings), max(1, len(recordings) // count))[:count]
        items = [recordings[Draw(index, 0)] for index in shown]
        pictures = []
        for item in items:
            person = recordings.people[item["identity"]]
            real = load_face(recordings.corpus.file(recordings.faces[person][0]), self.cfg.data.image_size)
            pictures += [real.to(self.device), self(item["wave"][None].to(self.device))[0]]
        return torch.stack(pictures)

    def on_validation_epoch_start(self) -> None:
        """Real faces of the validation recordings' people, shared out over ranks."""
        self.fid.reset()
        self.identity.reset()
        faces, identities = self.recordings.real_faces()
        for part in torch.arange(self.trainer.global_rank, len(faces), self.trainer.world_size).split(64):
            self._measure(faces[part].to(self.device), identities[part].to(self.device), "real")

    def validation_step(self, batch: dict[str, Any], _: int) -> None:
        portraits = torch.cat([self(wave[None]) for wave in batch["wave"]])
        self._measure(portraits.clamp(-1, 1), batch["identity"], "generated")

    def _measure(self, images: Tensor, identities: Tensor, kind: Literal["generated", "real"]) -> None:
        self.fid.update(images, real=kind == "real")
        self.identity.update(self.embedder(images), identities, kind)

    def on_validation_epoch_end(self) -> None:
        # Every rank measures the same pairs: they are few, and nothing has to be gathered.
        length = validation_path_length(
            self.voice, self.generator_ema, self.recordings, self.cfg.evaluation, self.device
        )
        found = {"fid": self.fid.compute(), "path_length": length} | self.identity.compute()
        self.log_dict({f"val/{name}": value.float() for name, value in found.items()})

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """D, then G. Adam with StyleGAN2's correction for lazy regularisation: rate and betas to the power k/(k+1)."""
        cfg, weights = self.cfg.optim, self.cfg.weights

        def adam(groups: list[tuple[Any, float]], every: int, lazy: bool) -> torch.optim.Optimizer:
            ratio = every / (every + 1) if lazy else 1.0
            betas = (cfg.betas[0] ** ratio, cfg.betas[1] ** ratio)
            parameters = [
                {"params": [p for n in networks for p in n.parameters() if p.requires_grad], "lr": lr * ratio}
                for networks, lr in groups
            ]
            return torch.optim.Adam([group for group in parameters if group["params"]], betas=betas)

        judge = [([self.discriminator, self.classifier], cfg.d_lr)]
        artist = [([self.generator], cfg.g_lr), ([self.voice], cfg.encoder_lr)]
        return [
            adam(judge, cfg.r1_every, weights.r1 > 0),
            adam(artist, cfg.path_length_every, weights.path_length > 0),
        ]
