"""Typed configuration of paper 2's two training stages; one YAML describes a whole run."""

from dataclasses import dataclass, field
from typing import Any, Literal

from common.audio.features import FEATURES
from common.config import ExperimentConfig
from common.synthetic.build import IdentityCorpusOptions
from voice2face.networks import DISCRIMINATORS, ENCODERS, GENERATORS


def _check_choice(key: str, value: str, table: dict[str, Any]) -> None:
    if value not in table:
        raise ValueError(f"{key}: unknown value {value!r}, one of {', '.join(sorted(table))}")


@dataclass
class DataConfig:
    """What is read, and how it is cut."""

    root: str = ""
    """corpus folder (see `prepare`); empty: the embedded corpus"""
    embedded: IdentityCorpusOptions = field(default_factory=IdentityCorpusOptions)
    """the synthetic corpus that is built when `root` is empty"""
    image_size: int = 64
    """side of the training images in px, a power of two; larger corpus images are reduced"""
    crop_seconds: tuple[float, float] = (3.0, 8.0)
    """range of the training crops, one length a batch (paper 2, section 3.2); shorter recordings are tiled"""
    max_seconds: float = 60.0
    """whole recordings longer than this are cut in evaluation and generation"""
    batch_size: int = 16
    """samples a step over all devices"""
    workers: int = 2
    """loader processes a device"""
    flip: bool = True
    """mirror half of the training faces"""
    cache: bool = False
    """keep decoded recordings and faces in memory; for corpora that fit"""

    def __post_init__(self) -> None:
        low, high = self.crop_seconds
        if not 0.2 <= low <= high:
            raise ValueError(f"data.crop_seconds: wants 0.2 <= low <= high, got {low}, {high}")
        if self.image_size < 32 or self.image_size & (self.image_size - 1):
            raise ValueError(f"data.image_size: wants a power of two from 32, got {self.image_size}")


@dataclass
class FeatureConfig:
    """Audio front end."""

    name: str = "mfcc"
    """`mfcc` (with two differences, eqs 4-10) or `logmel` (64 bands, 25/10 ms, section 3.2)"""
    kwargs: dict[str, Any] = field(default_factory=dict)
    """arguments of the feature's constructor"""

    def __post_init__(self) -> None:
        _check_choice("feature.name", self.name, FEATURES)


@dataclass
class EncoderConfig:
    """Voice encoder and its own training, stage A."""

    name: str = "resnet18"
    kwargs: dict[str, Any] = field(default_factory=dict)
    """arguments of the encoder: attention, activation, reduction, width (table 3's rows differ here)"""
    face_width: int = 64
    """width of the face tower that the voice is contrasted with; its layers are those of the voice encoder"""
    weights: str = ""
    """file to start from, before stage A or in its place: Wen et al.'s `voice_embedding.pth` (encoder `wen`)"""
    checkpoint: str = ""
    """a finished stage A (`last.ckpt`); empty: it is trained first, into `NAME-encoder` beside the run folder"""
    steps: int = 10_000
    """stage A's updates (paper 2, section 3.3)"""
    batch_size: int = 384
    """stage A's batch over all devices (section 3.3)"""
    lr: float = 1e-3
    """SGD (section 3.3)"""
    momentum: float = 0.9
    weight_decay: float = 1e-4
    cycle: int = 10_000
    """steps of one cosine cycle; the rate restarts after it"""
    temperature: float = 0.07
    """of InfoNCE"""
    info_nce: float = 1.0
    """weight of the voice-face contrast; 0: logged only"""
    identity: float = 1.0
    """weight of the speaker classification"""
    frozen: bool = True
    """stage B leaves the encoder as stage A made it, as Wen et al. do"""

    def __post_init__(self) -> None:
        _check_choice("encoder.name", self.name, ENCODERS)


@dataclass
class NetworkConfig:
    """A network by name and its constructor's arguments."""

    name: str = "stylegan2"
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass
class GeneratorConfig(NetworkConfig):
    """The generator, perhaps from elsewhere."""

    weights: str = ""
    """file to start from. stylegan2: rosinality `.pt`, NVIDIA `.pkl` or exported `.safetensors`, G, and D where the
    file has it; dcgan: Wen et al.'s `generator.pth`"""
    w_plus: bool = False
    """a direct head into W+ in place of the mapping network, for loaded weights (section 3.3: 14x512, 18x512)"""
    train_synthesis: bool = True
    """False: only what feeds the synthesis network is trained"""


@dataclass
class LossWeights:
    """Stage B; a weight of 0 is logged and not optimised."""

    adversarial: float = 1.0
    """eqs 12 and 14"""
    identity: float = 1.0
    """classification of the portrait on the discriminator's trunk"""
    match: float = 0.0
    """1 - cosine between the face tower's embedding of the portrait and the voice embedding"""
    pixel: float = 0.0
    """L1 to the paired face; outside the paper, for short runs"""
    perceptual: float = 0.0
    """1 - cosine between the embeddings of portrait and paired face by `perceptual_by`, as SF2F; 0: not computed"""
    perceptual_by: str = "dlib"
    """`dlib` or `facenet_vggface2`; an evaluation then needs another judge"""
    r1: float = 10.0
    """gamma of eq. 15 (gamma/2 is the factor)"""
    path_length: float = 2.0
    """eq. 13"""


@dataclass
class ProgressiveConfig:
    """How networks with stages grow (generators `stylegan` and `progressive`), and what paper 1's stages add.

    The other generators ignore this section. Paper 1's abstract states none of it.
    """

    schedule: Literal["joint", "progressive"] = "joint"
    """`joint`: all stages from the first step; `progressive`: stage after stage, each blended in"""
    stage_steps: int = 0
    """steps of each stage before the next joins; 0: the run in equal parts"""
    fade: float = 0.5
    """share of its steps over which a new stage is blended in, 0 to 1"""
    adversarial: Literal["logistic", "hinge"] = "logistic"
    """the stages' game: non-saturating (StyleGAN) or hinge (SAGAN); R1 joins either by `weights.r1`"""
    margin: float = 0.0
    """weight of AM-Softmax over identities on the portrait's face-tower embedding"""
    contrast: float = 0.0
    """weight of InfoNCE between that embedding and the voices of the batch, at `encoder.temperature`"""

    def __post_init__(self) -> None:
        if self.stage_steps < 0 or not 0 <= self.fade <= 1:
            raise ValueError(
                f"progressive: wants stage_steps >= 0 and fade in [0, 1], got {self.stage_steps} and {self.fade}"
            )


@dataclass
class OptimConfig:
    """Stage B's optimisers (section 3.3) and lazy regularisation (StyleGAN2)."""

    g_lr: float = 2e-4
    d_lr: float = 2e-4
    encoder_lr: float = 2e-4
    """used when the encoder is not frozen"""
    betas: tuple[float, float] = (0.5, 0.999)
    r1_every: int = 16
    """steps between R1 updates of D"""
    path_length_every: int = 4
    """steps between path-length updates of G"""
    path_length_decay: float = 0.01
    style_mixing: float = 0.9
    """probability of a second draw of the same voice's latent from a random layer on"""
    latent_noise: float = 0.05
    """standard deviation per dimension of the noise on the normalised embedding, renormalised (Wen et al.)"""
    ema_kimg: float = 10.0
    """half-life of G's averaged weights in thousands of images; its beta follows the batch"""
    ema_rampup: float = 0.05
    """the half-life is at most this share of the images seen so far, so that early averages are not the initial G"""


@dataclass
class EvaluationConfig:
    """What `evaluate` and the validation measure."""

    split: str = "test"
    """`test` or `val`"""
    extractor: str = "dlib"
    """features of FID and KID: `dlib` (packaged), `inception2015` (weights file), `auto` (the latter if present)"""
    fid_groups: int = 24
    """groups of people that FID's interval leaves out in turn; 0: no interval (2048 features take minutes a group)"""
    embedder: str = "dlib"
    """identity embedding of retrieval, cosine and matching: `dlib` (packaged) or `facenet_vggface2` (weights file)"""
    second_embedder: str = ""
    """a second judge of the same, reported beside the first; empty: none"""
    allow_leakage: bool = False
    """let a network judge that was part of the training loss; the report then says so"""
    gallery_sizes: list[int] = field(default_factory=list)
    """retrieval also in galleries of so many people, as many disjoint ones as there are people for"""
    group: str = "gender"
    """column of the manifest for matching within groups; corpora without it are matched over all only"""
    distance: Literal["pixel_l2", "lpips_vgg", "lpips_alex"] = "pixel_l2"
    """distance of path length; LPIPS needs a weights file"""
    portraits: int = 4
    """portraits a recording for FID and KID, with other latent noise each"""
    path_length_samples: int = 64
    batch_size: int = 32
    bootstrap: int = 1000
    """resamples of each interval"""
    validation_voices: int = 64
    """recordings measured in a validation during training; 0: all"""
    validation_pairs: int = 16
    """pairs of recordings between which a validation measures path length; 0: none"""

    def __post_init__(self) -> None:
        if any(size < 2 for size in self.gallery_sizes):
            raise ValueError(f"evaluation.gallery_sizes: galleries hold at least 2 people, got {self.gallery_sizes}")
        if self.fid_groups == 1 or self.fid_groups < 0:
            raise ValueError(f"evaluation.fid_groups: wants 0, or at least 2 groups, got {self.fid_groups}")


@dataclass
class Config(ExperimentConfig):
    """One run of `voice2face`."""

    data: DataConfig = field(default_factory=DataConfig)
    feature: FeatureConfig = field(default_factory=FeatureConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    discriminator: NetworkConfig = field(default_factory=NetworkConfig)
    weights: LossWeights = field(default_factory=LossWeights)
    progressive: ProgressiveConfig = field(default_factory=ProgressiveConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def __post_init__(self) -> None:
        _check_choice("generator.name", self.generator.name, GENERATORS)
        _check_choice("discriminator.name", self.discriminator.name, DISCRIMINATORS)
