"""Files of the names and shapes of Wen et al.'s published ones, with random numbers."""

from pathlib import Path

import torch
from torch import Tensor


def published(kind: str, scale: int = 1) -> dict[str, Tensor]:
    """Random tensors under the keys and shapes of the published files, channels divided by `scale`."""
    state: dict[str, Tensor] = {}
    if kind == "voice":
        widths = [64, 256 // scale, 384 // scale, 576 // scale, 864 // scale, 64]
        for layer in range(5):
            state[f"model.{3 * layer}.weight"] = torch.randn(widths[layer + 1], widths[layer], 3) * 0.05
            if layer < 4:
                norm = f"model.{3 * layer + 1}"
                for name in ("weight", "bias", "running_mean", "running_var"):
                    state[f"{norm}.{name}"] = torch.rand(widths[layer + 1]) + 0.5
        state["model.12.bias"] = torch.randn(64)
        return state
    widths = [64, 1024 // scale, 512 // scale, 256 // scale, 128 // scale, 64 // scale, 3]
    for layer in range(6):
        kernel = 1 if layer == 5 else 4
        state[f"model.{2 * layer}.weight"] = torch.randn(widths[layer], widths[layer + 1], kernel, kernel) * 0.05
        state[f"model.{2 * layer}.bias"] = torch.randn(widths[layer + 1])
    return state


def save(state: object, path: Path) -> Path:
    """In the format from before PyTorch 1.6, as the published files are."""
    torch.save(state, path, _use_new_zipfile_serialization=False)
    return path
