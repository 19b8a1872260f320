"""Stage 1: expression coefficients from speech and semantic images (paper 4, section 3.2)."""

from copy import deepcopy

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from common.batch_norm import share_batch_norm
from common.face3d.camera import REFERENCE_SIZE
from common.face3d.morphable import FaceModel
from common.metrics.expression import ExpressionDistance
from common.metrics.landmark import LandmarkDistance
from common.optim import Ranger
from common.schedule import rate
from common.training import TrainModule
from dubbing3d import losses
from dubbing3d.build import EXPRESSION_KIND, build_expression
from dubbing3d.coefficients import FaceModelMark, spoken_columns
from dubbing3d.config import DubbingConfig
from dubbing3d.landmarks import LandmarkProjector
from dubbing3d.speech import SpeechWindows


class ExpressionTraining(TrainModule):
    """Eq. 13: L1 of coefficients (eq. 11) and of the landmarks that they give (eq. 12).

    Validation logs AED over all coefficients, as the metric is defined (`val/aed`), although speech cannot know of
    blinks; `val/aed_mouth` is that of jaw and mouth alone. `val/*_share` are over the mean expression's. With several
    processes the batch norms share their statistics.

    Args:
        cfg: the run; `expression` holds this stage.
        model, mark: the face model of the coefficients.
        speech: what the network hears; its mean and deviation become part of the checkpoint.
        mean: (Ke,) mean expression of the training clips, which the network is measured against.
    """

    cfg: DubbingConfig
    mean_expression: Tensor

    def __init__(
        self, cfg: DubbingConfig, model: FaceModel, mark: FaceModelMark, speech: SpeechWindows, mean: Tensor
    ) -> None:
        super().__init__(cfg, EXPRESSION_KIND)
        self.save_hyperparameters({"mark": mark.to_dict()})
        self.network = build_expression(cfg, len(mark.lengths))
        self.speech = deepcopy(speech)
        self.register_buffer("mean_expression", mean.clone())
        self.projector = LandmarkProjector(model)
        self.spoken = spoken_columns(mark.expression_names)
        self.aed, self.aed_mouth, self.mean_aed, self.mean_aed_mouth = (ExpressionDistance(mark.kind) for _ in range(4))
        self.lmd, self.mean_lmd = LandmarkDistance(REFERENCE_SIZE), LandmarkDistance(REFERENCE_SIZE)

    def setup(self, stage: str) -> None:
        if self.trainer.world_size > 1:
            share_batch_norm(self.network, self.trainer.strategy.root_device)

    def forward(self, mfcc: Tensor, images: Tensor | None = None) -> Tensor:
        """Windows (B,T,28,12) and images (B,T,3,S,S) in [-1,1] -> coefficients (B,T,Ke)."""
        return self.network(mfcc, images)

    def predict(self, batch: dict[str, Tensor]) -> Tensor:
        """Coefficients (B,T,Ke) of a batch of `ExpressionWindows`."""
        images = batch["images"].float() / 127.5 - 1 if "images" in batch else None
        return self.network(batch["mfcc"], images)

    def landmarks(self, batch: dict[str, Tensor], expression: Tensor) -> Tensor:
        """Landmarks (B,T,68,2) in px at 224 of the batch's faces with an expression (B,T,Ke)."""
        return self.projector(batch["identity"], expression, batch["angles"], batch["translation"])

    def losses(self, predicted: Tensor, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Eqs 11 and 12, unweighted: L1 norms, means over frames, landmarks in sides of their frame."""
        ours, true = (self.landmarks(batch, expression) for expression in (predicted, batch["expression"]))
        return {
            "expression": losses.expression_loss(predicted, batch["expression"]),
            "shape": losses.shape_loss(ours, true, REFERENCE_SIZE),
        }

    def training_step(self, batch: dict[str, Tensor], _: int) -> dict[str, Tensor]:
        terms = self.losses(self.predict(self.varied(batch)), batch)
        total = losses.expression_total(terms["expression"], terms["shape"], weight=self.cfg.expression.shape)
        return {"loss": total} | {f"loss_{name}": value.detach() for name, value in terms.items()}

    def varied(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The batch with each window's cepstra moved by as much throughout, as another voice or microphone does."""
        deviation, mfcc = self.cfg.expression.timbre, batch["mfcc"]
        if deviation == 0:
            return batch
        shift = self.random.normal(self.step, "timbre", (len(mfcc), 1, 1, mfcc.shape[-1]))
        return batch | {"mfcc": mfcc + deviation * shift}

    def validation_step(self, batch: dict[str, Tensor], _: int) -> None:
        predicted, true = self.predict(batch), batch["expression"]
        mean = self.mean_expression.expand_as(true)
        frames, clips = true.flatten(0, 1), batch["clip"].repeat_interleave(true.shape[1])
        for guess, aed, aed_mouth, lmd in (
            (predicted, self.aed, self.aed_mouth, self.lmd),
            (mean, self.mean_aed, self.mean_aed_mouth, self.mean_lmd),
        ):
            rows = guess.flatten(0, 1)
            aed.update(rows, frames, clips)
            aed_mouth.update(rows[:, self.spoken], frames[:, self.spoken], clips)
            ours, theirs = (self.landmarks(batch, value).flatten(0, 1) for value in (guess, true))
            lmd.update(ours, theirs, clips)

    def on_validation_epoch_end(self) -> None:
        """Log AED and LMD, and how large a share they are of what the mean expression gives, the same on every rank."""
        pairs = {
            "aed": (self.aed, self.mean_aed, "aed"),
            "aed_mouth": (self.aed_mouth, self.mean_aed_mouth, "aed"),
            "lmd": (self.lmd, self.mean_lmd, "lmd"),
            "mouth_lmd": (self.lmd, self.mean_lmd, "mouth_lmd"),
        }
        for name, (ours, baseline, column) in pairs.items():
            value, reference = (metric.compute()[column].float() for metric in (ours, baseline))
            self.log_dict({f"val/{name}": value, f"val/{name}_share": value / reference})
        for metric in (self.aed, self.aed_mouth, self.lmd, self.mean_aed, self.mean_aed_mouth, self.mean_lmd):
            metric.reset()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        cfg = self.cfg.expression
        optimizer = Ranger(self.network.parameters(), lr=cfg.lr, centralise=cfg.centralise)
        steps = self.cfg.trainer.steps
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, steps, cfg.warmup, cfg.decay))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
