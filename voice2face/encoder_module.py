"""Stage A: the voice encoder learns who speaks, and which face belongs to the voice."""

from typing import Any

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn import functional as F

from common.losses import info_nce
from common.metrics.identity import IdentityMetric
from common.training import TrainModule
from voice2face.adopt import Start
from voice2face.build import build_face_tower, build_voice, embedding_dim
from voice2face.config import Config
from voice2face.data import WholeRecordings, crop_batch

KIND = "voice2face-encoder"


class VoiceFaceContrast(TrainModule):
    """InfoNCE between voices and faces plus speaker classification (paper 2, sections 2.1 and 3.3).

    SGD with a cosine cycle. Other pairs of the same person are left out of the negatives, which under DDP come from
    the rank's own share of the batch.

    Args:
        cfg: the run; `encoder` holds this stage.
        people: number of training identities.
        start: networks to start from (`adopt_weights`).
    """

    cfg: Config

    def __init__(self, cfg: Config, people: int, start: Start | None = None) -> None:
        super().__init__(cfg, KIND)
        self.save_hyperparameters({"people": people})
        self.voice = build_voice(cfg)
        if start is not None and start.encoder is not None:
            self.voice.encoder.load_state_dict(start.encoder.state_dict())
        self.face_tower = build_face_tower(cfg)
        self.classifier = nn.Linear(embedding_dim(cfg), people, bias=False)
        self.metric = IdentityMetric(embedding_dim(cfg), ks=(1, 5))

    def forward(self, wave: Tensor) -> Tensor:
        """Waves (B,n) -> unit voice embeddings (B,512)."""
        return self.voice(wave)

    def embed_faces(self, faces: Tensor) -> Tensor:
        """Faces (B,3,S,S) in [-1,1] -> unit embeddings (B,512) in the voices' space."""
        return F.normalize(self.face_tower(faces).float(), dim=1)

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Unweighted terms."""
        voices = self.voice(batch["wave"])
        temperature = self.cfg.encoder.temperature
        logits = voices @ F.normalize(self.classifier.weight, dim=1).T / temperature
        return {
            "info_nce": info_nce(
                voices, self.embed_faces(batch["face"]), temperature=temperature, identities=batch["identity"]
            ),
            "identity": F.cross_entropy(logits, batch["identity"]),
        }

    def training_step(self, batch: dict[str, Tensor], _: int) -> dict[str, Tensor]:
        batch["wave"] = crop_batch(batch["wave"], self.cfg.data, self.cfg.run.seed, self.step)
        losses = self.losses(batch)
        weights = self.cfg.encoder
        total = weights.info_nce * losses["info_nce"] + weights.identity * losses["identity"]
        return {"loss": total} | {f"loss_{name}": value.detach() for name, value in losses.items()}

    @property
    def recordings(self) -> WholeRecordings:
        """The validation recordings."""
        return self.trainer.datamodule.recordings  # type: ignore[attr-defined]  # Lightning sets it late

    def on_validation_epoch_start(self) -> None:
        """The gallery: every real face of the validation recordings' people, in the tower's space."""
        self.metric.reset()
        faces, identities = self.recordings.real_faces()
        for part in torch.arange(self.trainer.global_rank, len(faces), self.trainer.world_size).split(64):
            self.metric.update(self.embed_faces(faces[part].to(self.device)), identities[part].to(self.device), "real")

    def validation_step(self, batch: dict[str, Any], _: int) -> None:
        self.metric.update(torch.cat([self(wave[None]) for wave in batch["wave"]]), batch["identity"], "generated")

    def on_validation_epoch_end(self) -> None:
        self.log_dict({f"val/{name}": value.float() for name, value in self.metric.compute().items()})

    def configure_optimizers(self) -> OptimizerLRScheduler:
        cfg = self.cfg.encoder
        optimizer = torch.optim.SGD(self.parameters(), lr=cfg.lr, momentum=cfg.momentum, weight_decay=cfg.weight_decay)
        schedule = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, T_0=cfg.cycle)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
