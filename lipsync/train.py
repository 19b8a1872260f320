"""Stage A, the sync expert, then stage B, the generator, in one run folder each."""

from dataclasses import replace
from pathlib import Path

from common.audio.lipsync_features import MelMFCC, SpeechFeatures, SpeechMode, speech_features
from common.checkpoint_file import LAST
from common.data.corpus import Corpus
from common.errors import UserError
from common.run import fit
from common.video import Clip
from lipsync.build import MODES, expert_feature, load_expert
from lipsync.config import LipSyncConfig
from lipsync.data import ExpertData, LipSyncData, open_corpus
from lipsync.expert_module import ExpertTraining
from lipsync.module import LipSyncTraining
from lipsync.plateau import PlateauWatch

EXPERT_SUFFIX = "-expert"
"""Stage A's run folder stands beside stage B's: `runs/lipsync/NAME-expert`."""


def train(cfg: LipSyncConfig, *, resume: bool = False, overwrite: bool = False) -> Path:
    """Train both stages and return the run folder. Stage A is skipped where `expert.checkpoint` names a finished one.

    Raises `UserError` as `common.run.fit` does, for an expert of another image size, and for a corpus without usable
    clips in its train or val split.
    """
    corpus = open_corpus(cfg.data)
    print(corpus.summary(), flush=True)
    given = cfg.expert.checkpoint
    path = Path(given) if given else train_expert(cfg, corpus, resume=resume, overwrite=overwrite) / LAST
    expert, judge_speech = load_expert(path)
    if expert.size != cfg.data.size:
        raise UserError(f"{path} judges faces of {expert.size} px, but data.size is {cfg.data.size}; make them equal")
    same = MODES[judge_speech.rows] == cfg.feature.name
    speech = judge_speech if same else fitted_speech(cfg.feature.name, corpus)
    data = LipSyncData(corpus, cfg, speech, judge_speech)
    module = LipSyncTraining(cfg, expert, speech, judge_speech)
    return fit(module, data, cfg, resume=resume, overwrite=overwrite)


def train_expert(cfg: LipSyncConfig, corpus: Corpus, *, resume: bool = False, overwrite: bool = False) -> Path:
    """Stage A alone; returns its run folder."""
    stage = expert_stage(cfg)
    speech = fitted_speech(expert_feature(cfg), corpus)
    data = ExpertData(corpus, stage, speech)
    watch = PlateauWatch(stage, data.windows)
    return fit(ExpertTraining(stage, speech), data, stage, resume=resume, overwrite=overwrite, callbacks=[watch])


def expert_stage(cfg: LipSyncConfig) -> LipSyncConfig:
    """The configuration of stage A: its name and its steps."""
    run = replace(cfg.run, name=cfg.run.name + EXPERT_SUFFIX)
    return replace(cfg, run=run, trainer=replace(cfg.trainer, steps=cfg.expert.steps))


def fitted_speech(mode: SpeechMode, corpus: Corpus, clips: int = 500) -> SpeechFeatures:
    """The features of a mode; cepstra are standardised over up to `clips` training clips, spread evenly."""
    speech = speech_features(mode)
    if isinstance(speech, MelMFCC):
        paths = list(corpus.items(kind="clip", split="train")["path"])
        speech.fit(Clip(corpus.file(path)).wave() for path in paths[:: max(1, len(paths) // clips)])
    return speech
