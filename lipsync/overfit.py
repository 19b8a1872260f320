"""Can the expert learn one batch by heart? The first thing to ask where its training does not get under 0.69."""

from dataclasses import dataclass, replace

import torch
from torch.utils.data import default_collate

from common.data.corpus import Corpus
from common.data.sampling import StepBatchSampler
from lipsync.build import expert_feature
from lipsync.config import LipSyncConfig, VaryConfig
from lipsync.data import ExpertData
from lipsync.expert_module import ExpertTraining, as_float
from lipsync.plateau import diagnose, gather_facts
from lipsync.train import expert_stage, fitted_speech

LEARNT = 0.35
"""Loss, half of chance, under which a batch counts as learnt."""


@dataclass(frozen=True)
class Overfit:
    """How the loss of one batch fell."""

    first: float
    last: float
    steps: int
    accuracy: float
    """balanced, at the end"""
    cause: str
    """what probably keeps it from being learnt; empty where it was"""

    def text(self) -> str:
        """One line."""
        fell = f"loss {self.first:.3f} -> {self.last:.3f} in {self.steps} steps, balanced accuracy {self.accuracy:.3f}"
        return f"learnt one batch by heart: {fell}" if not self.cause else f"{fell}: {self.cause}"


def overfit_one_batch(cfg: LipSyncConfig, corpus: Corpus, *, steps: int = 200, device: str = "cpu") -> Overfit:
    """Train a fresh expert on the first batch of its training, which is not varied, until it is learnt.

    Wrong pairs are those of the curriculum's beginning; the rate is `expert.lr` from the first step on.
    """
    stage = expert_stage(replace(cfg, data=replace(cfg.data, vary=VaryConfig(flip=False))))
    speech = fitted_speech(expert_feature(cfg), corpus)
    data = ExpertData(corpus, stage, speech)
    draws = StepBatchSampler(len(data.windows), cfg.expert.clips, seed=cfg.run.seed, steps=1).global_batch(0)
    batch = {name: value.to(device) for name, value in default_collate([data.windows[draw] for draw in draws]).items()}
    batch["frames"] = as_float(batch["frames"])
    module = ExpertTraining(stage, speech).to(device)
    optimizer = torch.optim.Adam(module.expert.parameters(), lr=cfg.expert.lr)
    found: list[float] = []
    accuracy = 0.0
    for _ in range(steps):
        terms = module.losses(batch, cfg.expert.min_offset[0])
        found.append(float(terms["bce"].detach()))
        accuracy = float(terms["balanced_accuracy"])
        if found[-1] < LEARNT:
            break
        optimizer.zero_grad(set_to_none=True)
        module.weighted(terms).backward()
        optimizer.step()
    learnt = found[-1] < LEARNT
    cause = "" if learnt else diagnose(gather_facts(stage, data.windows, cfg.expert.min_offset[0]))
    return Overfit(found[0], found[-1], len(found), accuracy, cause)
