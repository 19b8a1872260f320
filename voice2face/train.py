"""Stage A, then stage B, in one run folder."""

from dataclasses import replace
from pathlib import Path

from common.checkpoint_file import LAST, load_checkpoint
from common.data.corpus import Corpus
from common.run import fit
from voice2face import encoder_module
from voice2face.adopt import Start, adopt_weights
from voice2face.config import Config
from voice2face.data import VoiceFaceData, open_corpus
from voice2face.evaluation import load_judges
from voice2face.module import VoicePortrait
from voice2face.progressive_module import GrowingPortrait, ProgressivePortrait

PORTRAITS: dict[str, type[VoicePortrait]] = {"progressive": ProgressivePortrait, "stylegan": GrowingPortrait}
"""How the generators train that `VoicePortrait` does not."""

ENCODER_SUFFIX = "-encoder"
"""Stage A's run folder stands beside stage B's: `runs/voice2face/NAME-encoder`."""


def train(cfg: Config, *, resume: bool = False, overwrite: bool = False) -> Path:
    """Train both stages and return the run folder. Stage A is skipped where `encoder.checkpoint` names a finished one.

    Raises `UserError` as `common.run.fit` does, where the encoder's checkpoint is of another kind or shape, and where
    a judge of the validation or evaluation cannot be had.
    """
    start = adopt_weights(cfg)
    # A judge without weights fails here and not after days; one from the training loss still draws the curves.
    for text in load_judges(replace(cfg, evaluation=replace(cfg.evaluation, allow_leakage=True))).warnings:
        print(f"warning: in validation, {text}")
    corpus = open_corpus(cfg.data)
    print(corpus.summary(), flush=True)
    given = cfg.encoder.checkpoint
    encoder = Path(given) if given else _train_encoder(cfg, corpus, start, resume, overwrite)
    state = load_checkpoint(encoder, encoder_module.KIND)["state_dict"] if encoder else None
    data = VoiceFaceData(corpus, cfg.data, seed=cfg.run.seed, validation_voices=cfg.evaluation.validation_voices)
    portrait = PORTRAITS.get(cfg.generator.name, VoicePortrait)(cfg, len(data.pairs.people), state, start)
    return fit(portrait, data, cfg, resume=resume, overwrite=overwrite)


def _train_encoder(cfg: Config, corpus: Corpus, start: Start, resume: bool, overwrite: bool) -> Path | None:
    """Stage A's checkpoint; None where the stage has no steps."""
    if cfg.encoder.steps == 0:
        return None
    run = replace(cfg.run, name=cfg.run.name + ENCODER_SUFFIX)
    stage = replace(cfg, run=run, trainer=replace(cfg.trainer, steps=cfg.encoder.steps))
    data = VoiceFaceData(
        corpus,
        cfg.data,
        seed=cfg.run.seed,
        batch_size=cfg.encoder.batch_size,
        validation_voices=cfg.evaluation.validation_voices,
    )
    contrast = encoder_module.VoiceFaceContrast(stage, len(data.pairs.people), start)
    return fit(contrast, data, stage, resume=resume, overwrite=overwrite) / LAST
