"""Features per clip, ours in batches of 32 beside librosa clip by clip: `python -m benchmarks.audio`.

librosa does the same work with its own functions, in float32 like ours: pre-emphasis, mel energies or cepstra of the
same sizes, logarithm or slopes, and mean and variance per band. On a GPU the same modules run there as well.
"""

from collections.abc import Callable

import librosa
import numpy as np
import torch

from benchmarks.timing import interleaved_medians, print_table
from common.audio.features import MFCC, LogMel

BATCH, SECONDS, RATE = 32, 3, 16000


def normalized(features: np.ndarray) -> np.ndarray:
    return (features - features.mean(-1, keepdims=True)) / (features.std(-1, keepdims=True) + 1e-7)


def librosa_log_mel(wave: np.ndarray) -> np.ndarray:
    emphasised = librosa.effects.preemphasis(wave, coef=0.97)
    frames = {"sr": RATE, "n_fft": 1024, "win_length": 400, "hop_length": 160, "window": "hamming"}
    energies = librosa.feature.melspectrogram(y=emphasised, n_mels=64, fmin=20, fmax=7200, **frames)
    return normalized(np.log(np.maximum(energies, 1e-10)))


def librosa_mfcc(wave: np.ndarray) -> np.ndarray:
    emphasised = librosa.effects.preemphasis(wave, coef=0.95)
    frames = {"sr": RATE, "n_fft": 512, "win_length": 400, "hop_length": 200, "window": "hamming"}
    static = librosa.feature.mfcc(y=emphasised, n_mfcc=40, n_mels=64, fmin=20, **frames)
    slopes = [librosa.feature.delta(static, width=5, order=order, mode="nearest") for order in (1, 2)]
    return normalized(np.stack([static, *slopes]))


def compare(device: str) -> None:
    waves = torch.randn(BATCH, SECONDS * RATE, generator=torch.Generator().manual_seed(0)) * 0.1
    on_device, clip = waves.to(device), waves[0].numpy()
    modules = {
        "log-mel": LogMel(normalize=True),
        "log-mel, float64 spectra (Wen preset)": LogMel.wen(),
        "MFCC with slopes": MFCC(normalize=True),
    }
    functions: dict[str, Callable[[], object]] = {
        "librosa log-mel": lambda: librosa_log_mel(clip),
        "librosa MFCC with slopes": lambda: librosa_mfcc(clip),
    }
    for name, module in modules.items():
        functions[name] = torch.no_grad()(lambda module=module.to(device): module(on_device))
    rows = interleaved_medians(functions)
    rows |= {name: (rows[name][0] / BATCH, rows[name][1] / BATCH) for name in modules}
    print_table(f"features on {device}, per clip of {SECONDS} s, batch {BATCH} (librosa: one clip, CPU)", rows)
    for name in modules:
        peer = "librosa MFCC with slopes" if name.startswith("MFCC") else "librosa log-mel"
        print(f"{name}: {rows[peer][0] / rows[name][0]:.1f} times as fast as librosa (aim: 5)")


def main() -> None:
    torch.set_num_threads(2)
    compare("cpu")
    if torch.cuda.is_available():
        compare("cuda")


if __name__ == "__main__":
    main()
