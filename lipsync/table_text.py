"""What the table of lipsync says of its own figures."""

from common.table_text import Outcome, Words
from lipsync.build import expert_feature
from lipsync.config import LipSyncConfig


def measured(outcome: Outcome) -> str:
    """Split, N, protocol and extractor."""
    m = outcome.metrics
    return (
        f"{m.get('split')} split, {m.get('clips')} clips of {m.get('people')} people, {m.get('frames')} frames of "
        f"{'x'.join(map(str, m.get('picture', [])))} px; faces of {m.get('face_size')} px, {m.get('paste')}, reference "
        f"{m.get('reference')}; LSE by {m.get('extractor')}, protocol {m.get('protocol')}; SSIM and PSNR of the whole "
        f"picture and of the mouth's box; intervals resample {m.get('resampled')}"
    )


def trained(cfg: LipSyncConfig) -> str:
    """Steps and batches of both stages, and the judge that all rows share."""
    expert, generator = cfg.expert, cfg.generator
    critic = "" if cfg.weights.adversarial else ", no discriminator"
    return (
        f"{cfg.trainer.steps} steps of {cfg.data.batch_size} windows of five frames (generator of width "
        f"{generator.width:g}{critic}), after {expert.steps} expert steps of {expert.clips} clips (width "
        f"{expert.width:g}); one expert, which hears {expert_feature(cfg)}, teaches all rows"
    )


WORDS = Words(
    title="lipsync: the paper's tables",
    papers="the paper",
    unstated="the paper states neither splits, nor crop, nor which LSE script, and its absolute LSE of real video is "
    "not the usual one",
    interval="over held-out clips or people",
    measured=measured,
    budget=trained,
)
