"""Where somebody speaks: silero-vad's network with the weights inside its package, run over whole blocks of frames.

The package's TorchScript model takes 32 ms per call and keeps its state between calls. The same network is built here
with its weights (the safetensors beside it are an older training), so that frames are encoded together, about ten
times as fast, and threads share a model without state. The rules that turn probabilities into segments are the
package's.
"""

import importlib.util
import warnings
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn

from common.audio.io import StreamResampler
from common.errors import UserError

_RATE, _FRAME, _CONTEXT = 16000, 512, 64
_BLOCK = 1024  # frames, 33 s of sound: bounds the memory for recordings of any length


class _Silero(nn.Module):
    """Probability of speech for each frame of 512 samples at 16 kHz."""

    def __init__(self) -> None:
        super().__init__()
        self.stft_conv = nn.Conv1d(1, 258, 256, stride=128, bias=False)
        self.conv1 = nn.Conv1d(129, 128, 3, padding=1)
        self.conv2 = nn.Conv1d(128, 64, 3, stride=2, padding=1)
        self.conv3 = nn.Conv1d(64, 64, 3, stride=2, padding=1)
        self.conv4 = nn.Conv1d(64, 128, 3, padding=1)
        self.lstm = nn.LSTM(128, 128)
        self.final_conv = nn.Conv1d(128, 1, 1)

    def forward(self, frames: Tensor, state: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Frames (T, 64 + 512), each behind the last 64 samples of the one before, to (T,) and the next state."""
        spectrum = self.stft_conv(nn.functional.pad(frames.unsqueeze(1), (0, 64), mode="reflect"))
        hidden = torch.hypot(spectrum[:, :129], spectrum[:, 129:])
        for layer in (self.conv1, self.conv2, self.conv3, self.conv4):
            hidden = layer(hidden).relu()
        hidden, state = self.lstm(hidden.squeeze(-1), state)
        return self.final_conv(hidden.relu().unsqueeze(-1)).sigmoid().flatten(), state


def _names() -> dict[str, str]:
    """Our parameters' names and those in the package's TorchScript."""
    names = {"stft_conv.weight": "stft.forward_basis_buffer"}
    for kind in ("weight", "bias"):
        names |= {f"conv{i + 1}.{kind}": f"encoder.{i}.reparam_conv.{kind}" for i in range(4)}
        names |= {f"lstm.{kind}_{way}_l0": f"decoder.rnn.{kind}_{way}" for way in ("ih", "hh")}
        names[f"final_conv.{kind}"] = f"decoder.decoder.2.{kind}"
    return names


@lru_cache(maxsize=1)
def _model() -> _Silero:
    spec = importlib.util.find_spec("silero_vad")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("silero-vad is not installed: pip install silero-vad")
    path = Path(spec.submodule_search_locations[0]) / "data" / "silero_vad.jit"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch would rather have its users export anew
        script = torch.jit.load(path, map_location="cpu")
    weights = script._model.state_dict()
    model = _Silero()
    model.load_state_dict({ours: weights[theirs] for ours, theirs in _names().items()})
    return model.eval().requires_grad_(False)


def speech_probability(wave: Tensor) -> Tensor:
    """Probability of speech, (ceil(n / 512),), in each 32 ms of a 16 kHz wave (n,)."""
    model, pieces, state = _model(), [], None
    count = -(-wave.numel() // _FRAME)
    padded = nn.functional.pad(wave.detach().float().cpu(), (_CONTEXT, count * _FRAME - wave.numel()))
    with torch.inference_mode():
        for first in range(0, count, _BLOCK):
            block = padded[first * _FRAME : min(first + _BLOCK, count) * _FRAME + _CONTEXT]
            probability, state = model(block.unfold(0, _CONTEXT + _FRAME, _FRAME), state)
            pieces.append(probability)
    return torch.cat(pieces) if pieces else torch.zeros(0)


def speech_segments(wave: Tensor, sample_rate: int = 16000, *, threshold: float = 0.5) -> list[tuple[int, int]]:
    """(start, end) of every stretch of speech of a mono wave (n,), in its own samples, in order and disjoint.

    A stretch lasts at least 0.25 s, pauses under 0.1 s do not split it, and 30 ms are added on either side
    (silero-vad's rules). Deterministic, and the same on every thread.
    """
    if wave.dim() != 1:
        raise ValueError(f"expected a mono wave (n,), got {tuple(wave.shape)}")
    at16k = wave
    if sample_rate != _RATE:
        resampler = StreamResampler(sample_rate, _RATE)
        samples = wave.detach().float().cpu().numpy()
        at16k = torch.cat([torch.from_numpy(part) for part in (resampler.push(samples), resampler.finish())])
    segments = _rules(speech_probability(at16k), at16k.numel(), threshold)
    scale, length = sample_rate / _RATE, wave.numel()
    return [(round(start * scale), min(length, round(end * scale))) for start, end in segments]


def keep_speech(wave: Tensor, sample_rate: int = 16000) -> Tensor:
    """The speech of a mono wave (n,), its segments joined; no samples where nobody speaks."""
    return torch.cat([wave[:0], *(wave[start:end] for start, end in speech_segments(wave, sample_rate))])


def _rules(probability: Tensor, samples: int, threshold: float) -> list[tuple[int, int]]:
    threads = torch.get_num_threads()
    from silero_vad.utils_vad import get_speech_timestamps_from_probs

    torch.set_num_threads(threads)  # importing silero_vad sets one thread for the whole process
    found = get_speech_timestamps_from_probs(probability.tolist(), threshold=threshold, audio_length_samples=samples)
    return [(int(segment["start"]), int(segment["end"])) for segment in found]
