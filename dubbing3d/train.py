"""Stage 1, expressions from speech, then stage 2, the renderer, in one run folder each."""

from dataclasses import replace
from pathlib import Path

from common.data.corpus import Corpus
from common.run import fit
from common.video import Clip
from dubbing3d.clips import corpus_model
from dubbing3d.config import DubbingConfig
from dubbing3d.data import ExpressionData, open_corpus
from dubbing3d.expression_module import ExpressionTraining
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
    return folder


def train_expression(cfg: DubbingConfig, corpus: Corpus, *, resume: bool = False, overwrite: bool = False) -> Path:
    """Stage 1 alone; returns its run folder."""
    stage = expression_stage(cfg)
    model, mark = corpus_model(corpus, cfg.data)
    speech = fitted_speech(corpus)
    data = ExpressionData(corpus, stage, mark, speech)
    module = ExpressionTraining(stage, model, mark, speech, data.mean_expression())
    return fit(module, data, stage, resume=resume, overwrite=overwrite)


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
