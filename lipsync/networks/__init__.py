"""The generator and its two judges. They know torch and common only."""

from lipsync.networks.blocks import fold_batch_norm
from lipsync.networks.expert import FrozenExpert, SyncExpert, sync_window
from lipsync.networks.generator import Wav2Lip
from lipsync.networks.inference import InferenceGenerator, prepare_for_inference
from lipsync.networks.quality import QualityDiscriminator

__all__ = [
    "FrozenExpert",
    "InferenceGenerator",
    "QualityDiscriminator",
    "SyncExpert",
    "Wav2Lip",
    "fold_batch_norm",
    "prepare_for_inference",
    "sync_window",
]
