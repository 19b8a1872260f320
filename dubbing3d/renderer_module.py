"""Stage 2: flow, texture and inpainting learn to draw the hidden part of a face (paper 4, section 3.3)."""

from copy import deepcopy
from typing import NamedTuple

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn

from common.batch_norm import share_batch_norm
from common.data.sampling import Draw
from common.face3d.morphable import FaceModel
from common.metrics.image import ImageQuality
from common.optim import Ranger
from common.schedule import rate
from common.training import TrainModule
from dubbing3d import losses
from dubbing3d.build import KIND, build_critic, build_renderer
from dubbing3d.coefficients import FaceModelMark
from dubbing3d.config import DubbingConfig, RendererConfig
from dubbing3d.crop_mask import crop_mask
from dubbing3d.guide import guide_input
from dubbing3d.losses import FeatureJudge, FlowJudge, Weights
from dubbing3d.motion import carried
from dubbing3d.networks.renderer import RenderOutput, TextureOutput
from dubbing3d.renderer_data import RenderedFrames, faces_of

SHOWN = 8
"""Pictures of an item in a sample grid."""


class Inputs(NamedTuple):
    """What the renderer sees of a batch, and what it is to draw; images in [-1,1]."""

    guide: Tensor
    """I_3D (B,3 or 4,S,S)."""
    references: Tensor
    """(B,N,3,S,S)."""
    reference_guides: Tensor | None
    """(B,N,3 or 4,S,S)."""
    crop: Tensor
    """I_crop (B,3,S,S), grey where the mask hides."""
    mask: Tensor
    """(B,1,S,S), 1 is hidden."""
    target: Tensor
    """I_t (B,3,S,S)."""
    previous: Tensor | None
    """(B,3,S,S) the renderer's own drawing of the frame before, moved as the face did since; 0 where there is none."""


class RendererTraining(TrainModule):
    """Eq. 32 in three phases, against a critic; the faces and masks that are shown are drawn in the step.

    With several processes the flow network's batch norms share their statistics.

    Args:
        cfg: the run.
        model, mark: the face model of the coefficients.
        features, flow: frozen judges; None leaves their terms out. Like the model they stay out of checkpoints.
    """

    cfg: DubbingConfig

    def __init__(
        self,
        cfg: DubbingConfig,
        model: FaceModel,
        mark: FaceModelMark,
        features: FeatureJudge | None = None,
        flow: FlowJudge | None = None,
    ) -> None:
        super().__init__(cfg, KIND)
        self.save_hyperparameters({"mark": mark.to_dict()})
        self.automatic_optimization = False
        self.renderer = build_renderer(cfg)
        self.critic = build_critic(cfg) if cfg.weights.wgan else None
        self.weights = Weights(**vars(cfg.weights))
        self.forms = cfg.forms.of_pictures()
        # Hidden from `state_dict`: files under licences of their own must not travel in checkpoints.
        self._frozen = (deepcopy(model), features, flow)
        self.quality, self.copied, self.textured = ImageQuality(), ImageQuality(), ImageQuality()

    def setup(self, stage: str) -> None:
        if self.trainer.world_size > 1:
            share_batch_norm(self.renderer, self.trainer.strategy.root_device)
        for part in self._frozen:
            if isinstance(part, nn.Module):
                part.to(self.trainer.strategy.root_device)

    def forward(self, inputs: Inputs) -> RenderOutput:
        """Draw faces."""
        references = self.renderer.encode_references(inputs.references, inputs.reference_guides)
        output: RenderOutput = self.renderer(inputs.guide, references, inputs.crop, inputs.previous)
        return output

    def texture(self, inputs: Inputs) -> TextureOutput:
        """Flow and texture alone."""
        references = self.renderer.encode_references(inputs.references, inputs.reference_guides)
        return self.renderer.texture(inputs.guide, references)

    @torch.no_grad()
    def inputs(self, batch: dict[str, Tensor], *, recall: Tensor | bool = True) -> Inputs:
        """What the renderer sees of a batch of `RenderedFrames`.

        A recurrent one draws the frame before first, knowing nothing of earlier ones, and is shown what it drew there,
        as it is when it dubs: the true frame would hand it the true mouth. The face model's motion carries that into
        the target's frame. `recall` (B,) bool says where; elsewhere, and where a clip begins, it sees nothing.
        """
        cfg = self.cfg.renderer
        found = self._inputs(batch, slice(0, 1), batch["target"], batch["landmarks"])
        if not cfg.recurrent or recall is False:
            return found
        last = slice(1 + cfg.references, None)
        before = self._inputs(batch, last, batch["before"], batch["landmarks_before"])
        faces = (*faces_of(batch, last), *faces_of(batch, slice(0, 1)))
        previous = carried(self._frozen[0], self(before).image_i, *faces)
        shown = batch["follows"] & recall
        return found._replace(previous=previous * shown.view(-1, 1, 1, 1))

    def _inputs(self, batch: dict[str, Tensor], row: slice, picture: Tensor, landmarks: Tensor) -> Inputs:
        """Those of one frame of each item, drawn as a clip's first."""
        cfg, model = self.cfg.renderer, self._frozen[0]
        faces, crops = faces_of(batch, row)
        target, references = as_signed(picture), as_signed(batch["references"])
        mask = crop_mask(model, faces, crops, cfg.size, kind=cfg.mask, landmarks=landmarks)
        guides = None
        if cfg.reference_guide:
            guides = self._guide(batch, slice(1, 1 + cfg.references)).unflatten(0, (len(target), -1))
        return Inputs(self._guide(batch, row), references, guides, target * (1 - mask), mask, target, None)

    def _guide(self, batch: dict[str, Tensor], rows: slice) -> Tensor:
        faces, crops = faces_of(batch, rows)
        cfg = self.cfg.renderer
        return guide_input(self._frozen[0], faces, crops, cfg.size, covered=cfg.guide_mask)

    def training_step(self, batch: dict[str, Tensor], _: int) -> dict[str, Tensor]:
        self._set_rates()
        epsilon = phase_epsilon(self.cfg.renderer, self.step)
        recall = self.random.uniform(self.step, "previous", (len(batch["target"]),)) < 0.5
        inputs = self.inputs(batch, recall=recall if epsilon else False)
        optimizers = self.optimizers()
        g_optimizer, *d_optimizer = optimizers if isinstance(optimizers, list) else [optimizers]
        with self.updating(g_optimizer):
            output = self(inputs) if epsilon else self.texture(inputs)
            terms = self.terms(output, inputs)
            parts = {side: losses.total(found, self.weights) for side, found in terms.items()}
            g_loss = losses.renderer_total(parts.get("i", 0.0), parts["e"], epsilon)
            self.manual_backward(g_loss)
        logged = {"g_loss": g_loss, "epsilon": torch.tensor(epsilon)}
        logged |= {f"loss_{side}_{name}": value for side, found in terms.items() for name, value in found.items()}
        if self.critic is not None:
            logged["d_loss"] = self._critic_step(d_optimizer[0], output, inputs)
        return logged

    def terms(self, output: RenderOutput | TextureOutput, inputs: Inputs) -> dict[str, dict[str, Tensor]]:
        """The terms of L^e and, where the whole renderer ran, of L^i, unweighted."""
        _, features, flow = self._frozen
        weights, forms, critic = self.weights, self.forms, self.critic
        found = {
            "e": losses.texture_terms(
                output,
                inputs.target,
                inputs.mask,
                weights=weights,
                forms=forms,
                features=features,
                flow=flow,
                critic=critic,
            )
        }
        if isinstance(output, RenderOutput):
            found["i"] = losses.inpainting_terms(
                output, inputs.target, weights=weights, forms=forms, features=features, critic=critic
            )
        return found

    def _critic_step(
        self, optimizer: LightningOptimizer, output: RenderOutput | TextureOutput, inputs: Inputs
    ) -> Tensor:
        fakes = [output.image_e, output.image_i] if isinstance(output, RenderOutput) else [output.image_e]
        with self.updating(optimizer):
            assert self.critic is not None
            loss = losses.critic_loss(
                self.critic,
                inputs.target,
                fakes,
                penalty=self.weights.penalty,
                balance=self.cfg.forms.balance,
                generator=self.random.generator(self.step, "penalty"),
            )
            self.manual_backward(loss)
        return loss

    def _set_rates(self) -> None:
        """Learning rates as a function of the step, so that a resumed run needs no schedule's state."""
        cfg = self.cfg.optim
        factor = rate(self.step, self.cfg.trainer.steps, cfg.warmup, cfg.decay)
        for optimizer, base in zip(self.trainer.optimizers, (cfg.g_lr, cfg.d_lr), strict=False):
            for group in optimizer.param_groups:
                group["lr"] = base * factor

    def validation_step(self, batch: dict[str, Tensor], _: int) -> None:
        inputs = self.inputs(batch)
        output = self(inputs)
        for metric, image in (
            (self.quality, pasted(output.image_i, inputs)),
            (self.textured, pasted(output.image_e, inputs)),
            (self.copied, pasted(inputs.references[:, 0], inputs)),
        ):
            metric.update(image.float(), inputs.target, batch["landmarks"], batch["clip"])

    def on_validation_epoch_end(self) -> None:
        """Log the means, the same on every rank, of frames with I_i, I_e, or the reference, in their hidden part."""
        for prefix, metric in (("", self.quality), ("texture_", self.textured), ("copy_", self.copied)):
            self.log_dict({f"val/{prefix}{name}": value.float() for name, value in metric.compute().items()})
            metric.reset()

    @property
    def shown(self) -> RenderedFrames:
        """The validation frames."""
        return self.trainer.datamodule.shown  # type: ignore[attr-defined]  # Lightning sets it late

    @torch.no_grad()
    def sample_images(self, count: int) -> Tensor:
        """`SHOWN` pictures of each of `count // SHOWN` frames, in [-1,1]: reference, I_3D, I_warp and I_e, then I_crop,
        A_i, I_i and I_t."""
        chosen = torch.linspace(0, len(self.shown) - 1, max(1, count // SHOWN)).round().int().tolist()
        was_training = self.renderer.training
        self.renderer.eval()
        pictures = []
        for index in chosen:
            item = {name: value[None].to(self.device) for name, value in self.shown[Draw(index, index)].items()}
            inputs = self.inputs(item)
            output = self(inputs)
            attention = output.attention_i.expand(-1, 3, -1, -1) * 2 - 1
            row = [inputs.references[:, 0], inputs.guide[:, :3], output.warp, output.image_e]
            row += [inputs.crop, attention, output.image_i, inputs.target]
            pictures += [image[0].float().clamp(-1, 1) for image in row]
        self.renderer.train(was_training)
        return torch.stack(pictures)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """The renderer's, then the critic's where there is one."""
        cfg = self.cfg.optim
        found: list[torch.optim.Optimizer] = [
            Ranger(self.renderer.parameters(), lr=cfg.g_lr, centralise=cfg.centralise)
        ]
        if self.critic is not None:
            found.append(torch.optim.Adam(self.critic.parameters(), lr=cfg.d_lr, betas=cfg.d_betas))
        return found


def phase_epsilon(cfg: RendererConfig, step: int) -> float:
    """Weight of the inpainting losses at a step (eq. 32): 0 while flow and texture align, then early, then late."""
    if step < cfg.align_steps:
        return 0.0
    return cfg.epsilon[0] if step < cfg.align_steps + cfg.early_steps else cfg.epsilon[1]


def as_signed(images: Tensor) -> Tensor:
    """uint8 0..255 -> float32 in [-1,1]."""
    return images.float() / 127.5 - 1


def pasted(image: Tensor, inputs: Inputs) -> Tensor:
    """The target with an image (B,3,S,S) in place of what the mask hides."""
    return torch.lerp(inputs.target, image.to(inputs.target), inputs.mask)
