"""Stage 1, expressions from speech, then stage 2, the renderer, in one run folder each."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common.data.corpus import Corpus
from common.run import fit
from common.video import Clip
from dubbing3d.clips import DubClips, corpus_model
from dubbing3d.config import DubbingConfig
from dubbing3d.data import ExpressionData, open_corpus
from dubbing3d.expression_module import ExpressionTraining
from dubbing3d.judges import Judges, load_judges
from dubbing3d.renderer_data import RendererData
from dubbing3d.renderer_module import RendererTraining, as_signed
from dubbing3d.speech import SpeechWindows

EXPRESSION_SUFFIX = "-expression"
"""Stage 1's run folder stands beside stage 2's: `runs/dubbing3d/NAME-expression`."""


def train(cfg: DubbingConfig, *, resume: bool = False, overwrite: bool = False) -> Path:
    """Train what the configuration asks for and return the run folder of the last stage.

    Raises `UserError` as `common.run.fit` does, and for a corpus without usable clips in its train or val split.
    """
    corpus = open_corpus(cfg.data)
    print(corpus.summary(), flush=True)
    folder = cfg.run.folder
    if cfg.expression.train:
        given = cfg.expression.checkpoint
        folder = Path(given).parent if given else train_expression(cfg, corpus, resume=resume, overwrite=overwrite)
    if cfg.renderer.train:
        folder = train_renderer(cfg, corpus, resume=resume, overwrite=overwrite)
    return folder


def train_expression(cfg: DubbingConfig, corpus: Corpus, *, resume: bool = False, overwrite: bool = False) -> Path:
    """Stage 1 alone; returns its run folder."""
    stage = expression_stage(cfg)
    model, mark = corpus_model(corpus, cfg.data)
    speech = fitted_speech(corpus)
    data = ExpressionData(corpus, stage, mark, speech)
    module = ExpressionTraining(stage, model, mark, speech, data.mean_expression())
    return fit(module, data, stage, resume=resume, overwrite=overwrite)


def train_renderer(cfg: DubbingConfig, corpus: Corpus, *, resume: bool = False, overwrite: bool = False) -> Path:
    """Stage 2 alone; returns its run folder. Own judges are trained first, once for a corpus and a size."""
    model, mark = corpus_model(corpus, cfg.data)
    data = RendererData(corpus, cfg, mark)
    judges = _judges(cfg, data)
    module = RendererTraining(cfg, model, mark, judges.features, judges.flow)
    return fit(module, data, cfg, resume=resume, overwrite=overwrite)


def prepare_judges(cfg: DubbingConfig, corpus: Corpus) -> Judges:
    """Train stage 2's own judges where they are not there yet, for runs that go at the same time afterwards."""
    _, mark = corpus_model(corpus, cfg.data)
    return _judges(cfg, RendererData(corpus, cfg, mark))


def _judges(cfg: DubbingConfig, data: RendererData) -> Judges:
    given = cfg.judges
    return load_judges(
        partial(judge_frames, data.clips),
        cfg.run.out / cfg.run.package / "judges",
        vgg=Path(given.vgg) if given.vgg else None,
        raft=Path(given.raft) if given.raft else None,
        steps=given.steps,
    )


def judge_frames(clips: DubClips, most: int = 512) -> Tensor:
    """Crops (N,3,S,S) in [-1,1] of up to `most` known frames, spread evenly over the clips: what judges learn from."""
    each = -(-most // len(clips))
    frames = []
    for index in np.unique(np.linspace(0, len(clips) - 1, min(most, len(clips))).round().astype(int)):
        known = clips.starts(int(index), 1)
        chosen = known[np.unique(np.linspace(0, len(known) - 1, min(each, len(known))).round().astype(int))]
        frames.append(clips.crops(int(index), chosen))
    return as_signed(torch.cat(frames))


def expression_stage(cfg: DubbingConfig) -> DubbingConfig:
    """The configuration of stage 1: its name and its steps."""
    run = replace(cfg.run, name=cfg.run.name + EXPRESSION_SUFFIX)
    return replace(cfg, run=run, trainer=replace(cfg.trainer, steps=cfg.expression.steps))


def fitted_speech(corpus: Corpus, clips: int = 500) -> SpeechWindows:
    """Speech windows, standardised over up to `clips` training clips, spread evenly."""
    paths = list(corpus.items(kind="clip", split="train")["path"])
    speech = SpeechWindows()
    speech.fit(Clip(corpus.file(path)).wave() for path in paths[:: max(1, len(paths) // clips)])
    return speech
