"""Typed configuration of paper 3's two training stages; one YAML describes a whole run."""

from dataclasses import dataclass, field
from typing import Literal

from common.attention import Residual
from common.audio.lipsync_features import SpeechMode
from common.config import ExperimentConfig
from common.synthetic.talking import TalkingCorpusOptions
from lipsync.losses import SyncForm
from lipsync.networks.quality import Norm

Attention = Literal["none", "channel", "spatial", "both"]


@dataclass
class VaryConfig:
    """How clips are varied, each as a whole; 0 leaves a thing as it is."""

    flip: bool = True
    """mirror half of them"""
    jitter: float = 0.0
    """most that the expert's faces are moved either way, as a fraction of their side"""
    zoom: float = 0.0
    """most by which the expert's faces are enlarged or reduced, as a fraction"""
    light: float = 0.0
    """most by which the expert's faces get flatter or harsher, and each colour brighter or darker, as a fraction"""
    gain: float = 0.0
    """most by which speech gets louder or softer, in dB"""
    timbre: float = 0.0
    """deviation in dB of a smooth curve over the mel bands: other voices and microphones"""


@dataclass
class DataConfig:
    """What is read, and how it is cut."""

    root: str = ""
    """corpus folder with talking clips (see `prepare`); empty: the embedded corpus"""
    embedded: TalkingCorpusOptions = field(default_factory=lambda: TalkingCorpusOptions(languages=["zh"]))
    """the synthetic corpus that is built when `root` is empty"""
    size: int = 96
    """side of the face crops in px, a multiple of 32; 96 is Wav2Lip's"""
    batch_size: int = 48
    """windows of five frames a generator step, over all devices (paper 3, section 4.1.3)"""
    workers: int = 4
    """loader processes a device"""
    cache: bool = False
    """keep face crops and speech features in memory; for corpora that fit (28 KB a frame of 96 px)"""
    vary: VaryConfig = field(default_factory=VaryConfig)

    def __post_init__(self) -> None:
        if self.size < 32 or self.size % 32:
            raise ValueError(f"data.size: wants a multiple of 32, such as 96, got {self.size}")


@dataclass
class FeatureConfig:
    """What the networks hear."""

    name: SpeechMode = "mel+mfcc"
    """`mel` (80 rows, Wav2Lip), `mfcc` (39: 13 with two slopes) or `mel+mfcc` (119, paper 3)"""
    projection: bool = False
    """map the rows to 80 by a learned matrix, at first [I | 0], instead of a larger kernel: for weights made for mel"""


@dataclass
class ExpertConfig:
    """The sync expert and its own training, stage A (paper 3, section 3.2.1)."""

    checkpoint: str = ""
    """a finished expert (a stage A's `last.ckpt`, or `lipsync_expert.pth`); empty: it is trained first, into
    `NAME-expert` beside the run folder"""
    weights: str = ""
    """file that a trained expert starts from, such as `lipsync_expert.pth`; what it does not hold begins fresh"""
    feature: str = ""
    """what it hears where that is something else than what the generator hears; empty: the same"""
    width: float = 1.0
    """factor on the official network's channels"""
    sync_prob: SyncForm = "cosine"
    """`cosine`, or `sigmoid` of it, as eq. 11 may be read (see `losses.sync_probability`)"""
    steps: int = 100_000
    """stage A's updates"""
    clips: int = 16
    """clips a step, over all devices"""
    windows: int = 8
    """windows of five frames from each; all pairs of a clip's windows and sounds are judged"""
    span: int = 25
    """frames of the stretch that a clip's windows lie in; clips that are shorter are left out"""
    min_offset: tuple[int, int] = (5, 1)
    """frames by which a wrong pair is at least apart, at the beginning and at the end of the curriculum"""
    curriculum: float = 0.5
    """share of the steps over which the smallest offset falls"""
    contrast: float = 0.0
    """weight of the choice of the right sound among those of the clip, beside the binary cross-entropy, which alone
    stays at 0.69 for long"""
    temperature: float = 0.1
    """of that choice"""
    lr: float = 1e-4
    """Adam; the paper's 1e-3 is known to end at a loss of 0.69"""
    warmup: int = 500
    """steps over which the rate rises from 0"""
    decay: bool = True
    """let the rate fall to a fiftieth along a cosine"""

    def __post_init__(self) -> None:
        first, last = self.min_offset
        if not first >= last >= 1:
            raise ValueError(f"expert.min_offset: wants first >= last >= 1, got {first}, {last}")
        if self.clips < 1 or self.windows < 2 or self.span < self.windows + 4:
            raise ValueError(
                "expert: wants clips >= 1, windows >= 2 and span >= windows + 4, "
                f"got {self.clips}, {self.windows} and {self.span}"
            )


@dataclass
class GeneratorConfig:
    """Wav2Lip's generator with paper 3's attention."""

    width: float = 1.0
    """factor on the official network's channels"""
    attention: Attention = "both"
    """at the speech encoder's 256 and the identity encoder's 32 and 256 channels (section 3.1.2)"""
    residual: Residual = "none"
    """how gates act: `none` (eqs 5 and 9), `add`, or `identity_init`, which begins as no gate, for loaded weights"""
    reduction: int = 16
    """bottleneck of the channel gates; the paper states none"""
    weights: str = ""
    """file to start from, such as `wav2lip.pth`; what it does not hold begins fresh"""


@dataclass
class DiscriminatorConfig:
    """The visual quality discriminator (section 3.2.2)."""

    width: float = 1.0
    """factor on the official network's channels"""
    norm: Norm = "instance"
    """`instance` (the paper) or `none` (official)"""
    weights: str = ""
    """file to start from: `visual_quality_disc.pth`, of norm `none`"""


@dataclass
class LossWeights:
    """Stage B, eq. 15; reconstruction gets the rest of 1."""

    sync: float = 0.03
    """w_s, from when the gate opens"""
    adversarial: float = 0.07
    """w_g; 0: no discriminator is trained"""
    gate: float = 0.75
    """validation's sync loss below which w_s begins to act (Wav2Lip)"""
    gate_always_on: bool = False
    """w_s acts from the start; the paper mentions no gate"""
    gate_latest: float = 1.0
    """share of the steps after which w_s acts whatever validation says; 1: never"""
    mouth: float = 0.0
    """of eq. 10 on the mouth's part of the face alone, beside that on the whole; 0: the paper"""
    vary_judged: bool = False
    """move and relight drawn faces before the expert sees them, as in its own training: what was drawn for the expert
    alone, specks of colour in place of lips, then pays less"""
    saturating: bool = False
    """eq. 13 as printed, log(1 - D); otherwise -log D, as Wav2Lip"""

    def __post_init__(self) -> None:
        if self.sync < 0 or self.adversarial < 0 or self.sync + self.adversarial > 1:
            raise ValueError(
                f"weights: wants sync and adversarial from 0 with a sum of at most 1, "
                f"got {self.sync} and {self.adversarial}"
            )
        if self.mouth < 0:
            raise ValueError(f"weights.mouth: wants 0 or more, got {self.mouth}")
        if not 0 <= self.gate_latest <= 1:
            raise ValueError(f"weights.gate_latest: wants a share of the steps from 0 to 1, got {self.gate_latest}")


@dataclass
class OptimConfig:
    """Stage B's Adam."""

    g_lr: float = 1e-4
    """section 4.1.3"""
    d_lr: float = 1e-4
    betas: tuple[float, float] = (0.5, 0.999)
    """Wav2Lip's with a discriminator"""
    warmup: int = 0
    """steps over which the rates rise from 0"""
    decay: bool = False
    """let the rates fall to a fiftieth along a cosine"""
    ema_steps: float = 0.0
    """half-life in steps of averaged generator weights, which are then validated and exported; 0: none"""


@dataclass
class EvaluationConfig:
    """What validation during training and `evaluate` measure."""

    split: str = "test"
    """`test` or `val`"""
    validation_windows: int = 4
    """fixed windows of five frames from each clip of the val split that a generator's validation draws"""
    stretch: int = 75
    """frames of each clip that an expert's validation compares at most"""
    max_shift: int = 15
    """frames by which it moves the sound either way; an offset counts as found within one frame"""
    batch_size: int = 16
    """windows a validation step, over all devices"""


@dataclass
class LipSyncConfig(ExperimentConfig):
    """One run of `lipsync`."""

    data: DataConfig = field(default_factory=DataConfig)
    feature: FeatureConfig = field(default_factory=FeatureConfig)
    expert: ExpertConfig = field(default_factory=ExpertConfig)
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    weights: LossWeights = field(default_factory=LossWeights)
    optim: OptimConfig = field(default_factory=OptimConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
