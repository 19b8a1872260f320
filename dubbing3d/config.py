"""Typed configuration of paper 4's two training stages; one YAML describes a whole run."""

from dataclasses import dataclass, field
from typing import Literal

from common.config import ExperimentConfig
from common.synthetic.talking import TalkingCorpusOptions
from dubbing3d.crop_mask import MaskKind
from dubbing3d.losses import Correspondence, Forms, StyleForm

Scale = Literal["learnable", "sigmoid", "zero", "one"]
SCALES = ("low", "mid", "high")


@dataclass
class DataConfig:
    """What is read."""

    root: str = ""
    """corpus folder whose talking clips have coefficients (see `prepare`); empty: the embedded corpus"""
    embedded: TalkingCorpusOptions = field(default_factory=TalkingCorpusOptions)
    """the synthetic corpus that is built when `root` is empty"""
    face_model: str = ""
    """face model of the coefficients, as `face3d.load_face_model` takes it; empty: the one that the corpus names"""
    min_confidence: float = 0.3
    """frames whose coefficients were fitted with less are left out"""
    workers: int = 4
    """loader processes a device"""
    cache: bool = False
    """keep crops, speech and semantic images in memory; for corpora that fit (28 KB a frame of 96 px)"""

    def __post_init__(self) -> None:
        if not 0 <= self.min_confidence <= 1:
            raise ValueError(f"data.min_confidence: wants 0 to 1, got {self.min_confidence}")


@dataclass
class SemanticConfig:
    """Where the semantic images come from: mouths that a lip-sync network drew for the same speech (eq. 3)."""

    checkpoint: str = ""
    """a lipsync run's `last.ckpt`, or Wav2Lip's weights, that draws them with a reference from another time"""
    folder: str = ""
    """or a folder of drawn faces: `FOLDER/CLIP_ID.mp4`, or pictures `FOLDER/CLIP_ID/*.png`, one a frame"""
    size: int = 96
    """side of the images in px; 96 is Wav2Lip's"""

    def __post_init__(self) -> None:
        if self.checkpoint and self.folder:
            raise ValueError("semantic: give a checkpoint or a folder, not both")
        if self.size < 32:
            raise ValueError(f"semantic.size: wants 32 or more, got {self.size}")


@dataclass
class ExpressionConfig:
    """Stage 1: expression coefficients from speech (section 3.2)."""

    train: bool = True
    """train it; otherwise a run is stage 2 alone"""
    checkpoint: str = ""
    """a finished stage 1, which is then not trained again"""
    steps: int = 100_000
    """updates"""
    width: float = 1.0
    """factor on the paper's channels"""
    frames: int = 16
    """T, frames of a training window"""
    k: int = 2
    """half window of the attention; the paper states none"""
    attention: bool = True
    """local cross-modal attention (eqs 5-7); otherwise both features are concatenated"""
    semantic: bool = True
    """look at semantic images; `semantic` says which"""
    audio_residual: bool = False
    """append the speech feature to the attended one, which carries visual values only (eq. 7)"""
    batch_size: int = 16
    """windows a step, over all devices"""
    shape: float = 0.5
    """weight of the shape loss (eq. 13)"""
    timbre: float = 0.0
    """deviation of what is added to each cepstrum, in its own deviations, alike for a whole window: other voices"""
    lr: float = 2e-4
    """Ranger (section 4.1)"""
    centralise: bool = True
    """Ranger's gradient centralisation; the paper names RAdam and Lookahead only"""
    warmup: int = 0
    """steps over which the rate rises from 0"""
    decay: bool = False
    """let the rate fall to a fiftieth along a cosine"""

    def __post_init__(self) -> None:
        if self.frames < 2 or self.batch_size < 1 or self.steps < 1:
            raise ValueError(
                f"expression: wants frames >= 2, batch_size >= 1 and steps >= 1, got {self.frames}, "
                f"{self.batch_size} and {self.steps}"
            )
        if self.shape < 0 or self.timbre < 0:
            raise ValueError(f"expression: shape and timbre cannot be negative, got {self.shape} and {self.timbre}")


@dataclass
class RendererConfig:
    """Stage 2: the picture from a reference, the drawn face model and what is left of the frame (section 3.3)."""

    train: bool = True
    """train it; otherwise a run is stage 1 alone"""
    size: int = 192
    """side of the crops in px, a multiple of 32 from 64 on"""
    width: float = 1.0
    """factor on the paper's channels"""
    references: int = 1
    """references a frame; 1 is the paper's"""
    apart: int = 10
    """frames that lie at least between a target and its references in training"""
    warp: bool = True
    """align the references by the flow network; otherwise the inpainting network sees them as they are"""
    enhance: bool = True
    """draw texture by the motion network (TMN)"""
    msaf: bool = True
    """fuse its texture into the decoder (eqs 19-22); otherwise it is added"""
    scales: list[str] = field(default_factory=lambda: ["low", "mid", "high"])
    """which maps are fused: low (S/4), mid (S/2), high (S)"""
    scale: Scale = "learnable"
    """factor of the fused texture (eq. 22): `learnable`, `sigmoid` (learnable, in [0,1]), `zero` or `one`"""
    depthwise: bool = True
    """MSAF's convolutions per channel; eq. 19 read plainly costs more than table 7 prints"""
    reference_guide: bool = False
    """show the flow network each reference's own drawn face as well"""
    guide_mask: bool = False
    """give the drawn face its coverage as a fourth channel"""
    recurrent: bool = False
    """show the inpainting network the frame drawn before as well, moved as the face moved; starts as if it did not"""
    mask: MaskKind = "model"
    """what is hidden: `model`, which the expression does not move, or `landmark`, the paper's polygon"""
    batch_size: int = 2
    """frames a step, over all devices"""
    align_steps: int = 50_000
    """steps that train flow and texture only, epsilon 0"""
    early_steps: int = 50_000
    """steps after those with the first epsilon; the rest of `trainer.steps` has the second"""
    epsilon: tuple[float, float] = (0.1, 0.2)
    """weight of the inpainting losses early and late (eq. 32)"""
    adapt_steps: int = 0
    """steps in which `dub` lets the trained network learn the clip's person first; `dub --adapt` overrules it"""

    def __post_init__(self) -> None:
        if self.size < 64 or self.size % 32:
            raise ValueError(f"renderer.size: wants a multiple of 32 from 64 on, such as 96 or 192, got {self.size}")
        if self.references < 1 or self.apart < 1 or self.batch_size < 1:
            raise ValueError(
                f"renderer: wants references, apart and batch_size from 1 on, got {self.references}, {self.apart} "
                f"and {self.batch_size}"
            )
        if self.size == 64 and self.batch_size == 1:
            raise ValueError("renderer.batch_size: the flow network's batch norms want 2 frames or more at 64 px")
        if min(self.align_steps, self.early_steps, self.adapt_steps) < 0 or not all(
            0 <= value <= 1 for value in self.epsilon
        ):
            raise ValueError("renderer: steps cannot be negative, and epsilon lies in [0,1]")
        if not self.warp and (self.references > 1 or self.reference_guide):
            raise ValueError("renderer: several references, and their drawn faces, need renderer.warp")
        if self.align_steps and not (self.warp or self.enhance):
            raise ValueError("renderer.align_steps: without flow and texture there is nothing to align; set it to 0")
        if unknown := sorted(set(self.scales) - set(SCALES)):
            raise ValueError(f"renderer.scales: {unknown[0]} is none of {', '.join(SCALES)}")


@dataclass
class LossWeights:
    """Eqs 26, 30 and 31; the paper prints none, these bring the terms to like sizes. 0: the term is not computed."""

    ssim: float = 1.0
    """of 1 - SSIM (eq. 24)"""
    perceptual: float = 0.1
    """of the distance of features (eq. 28)"""
    style: float = 10.0
    """of the distance of their Gram matrices (eq. 29)"""
    wgan: float = 0.01
    """of the critic's score (eq. 25)"""
    correspondence: float = 0.1
    """of the correspondence-wise loss on aligned references (eq. 27)"""
    penalty: float = 10.0
    """of the critic's gradient penalty (eq. 26)"""
    attention: float = 0.0
    """of the masks' mean (GANimation; the paper has none)"""
    variation: float = 0.0
    """of the masks' total variation (likewise)"""

    def __post_init__(self) -> None:
        if min(vars(self).values()) < 0:
            raise ValueError("weights: none can be negative")


@dataclass
class FormConfig:
    """How equations are read where the paper contradicts itself or is silent; see `dubbing3d.losses`."""

    literal_reconstruction: bool = False
    """eq. 23 as a sum instead of a mean"""
    masked_texture: bool = True
    """L1 of I_e over the hidden part of the crop only (Omega_c of eq. 23)"""
    ssim_signed: bool = True
    """SSIM of images in [-1,1] with a range of 2; otherwise of images in [0,1]"""
    style: StyleForm = "paper"
    """how eq. 29 is normalised: `paper`, or `mean` over the entries as PIRender does"""
    correspondence: Correspondence = "warp"
    """`warp`: the loss that eq. 27 cites; `literal`: features of single images"""
    balance: bool = True
    """let both fakes together weigh as much as the real image in eq. 26, which drifts as printed"""

    def of_pictures(self) -> Forms:
        """Those of what a picture is measured by: all but the critic's."""
        return Forms(**{name: value for name, value in vars(self).items() if name != "balance"})


@dataclass
class JudgeConfig:
    """Frozen networks that losses look through; empty: small ones of our own, trained on the corpus."""

    vgg: str = ""
    """file with torchvision's VGG-19 weights, for perception and style"""
    raft: str = ""
    """file with torchvision's RAFT weights, for correspondence"""
    steps: int = 300
    """updates in which our own are trained before stage 2"""


@dataclass
class OptimConfig:
    """Stage 2's optimisers."""

    g_lr: float = 1e-4
    """Ranger (section 4.1)"""
    d_lr: float = 1e-4
    """Adam"""
    d_betas: tuple[float, float] = (0.5, 0.999)
    centralise: bool = True
    """Ranger's gradient centralisation"""
    warmup: int = 0
    """steps over which the rates rise from 0"""
    decay: bool = False
    """let the rates fall to a fiftieth along a cosine"""


@dataclass
class EvaluationConfig:
    """What validation during training and `evaluate` measure."""

    split: str = "test"
    """`test` or `val`"""
    validation_frames: int = 8
    """fixed frames of each clip of the val split that a renderer's validation draws"""
    batch_size: int = 4
    """frames a validation step, over all devices"""
    frames: int = 0
    """consecutive frames of each clip that `evaluate` measures at most; 0: all"""


@dataclass
class DubbingConfig(ExperimentConfig):
    """One run of `dubbing3d`."""

    data: DataConfig = field(default_factory=DataConfig)
    semantic: SemanticConfig = field(default_factory=SemanticConfig)
    expression: ExpressionConfig = field(default_factory=ExpressionConfig)
    renderer: RendererConfig = field(default_factory=RendererConfig)
    weights: LossWeights = field(default_factory=LossWeights)
    forms: FormConfig = field(default_factory=FormConfig)
    judges: JudgeConfig = field(default_factory=JudgeConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def __post_init__(self) -> None:
        if not (self.expression.train or self.renderer.train):
            raise ValueError("expression.train and renderer.train are both off: there is nothing to train")
