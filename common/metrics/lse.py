"""LSE-D, LSE-C and the offset of SyncNet's embeddings, as syncnet_python and Wav2Lip's evaluation compute them.

Scores compare only within one extractor and one protocol (see `common.sync_protocols`), so both stand in every result.
Offsets count video frames by which the audio must be delayed to be in sync (positive: it is early), which is the sign
that syncnet_python prints and the manifest keeps.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric

from common.errors import UserError
from common.metrics.estimate import Estimate, cluster_bootstrap, plain
from common.metrics.gather import fill_empty, joined, no_rows
from common.syncnet import SAMPLES_PER_FRAME, WINDOW, SyncNet, embed_frames, embed_wave

MAX_SHIFT = 15
"""Video frames by which the sound is moved either way."""
MIN_FRAMES = WINDOW + 1
"""syncnet_python leaves the last window out, so that six frames are the first to give one."""
INJECTED = tuple(range(-5, 6))
"""Offsets in frames that `injected_offsets` puts in."""
_BLOCK_CPU, _BLOCK_DEVICE = 16, 512  # windows whose shifted copies are held at once; on a CPU they stay in the cache


@dataclass(frozen=True)
class SyncScore:
    """What one clip (or one face track) scores."""

    offset: int
    """Frames by which the audio must be delayed, -15..15: 15 minus the place of the least mean distance."""
    distance: float
    """LSE-D, the least mean distance over the shifts; lower is better."""
    confidence: float
    """LSE-C, the median over the shifts minus the least; higher is better."""
    valid_offset: int
    """The same three from real sound only: the official means take zero vectors where a shift reaches over an end, a
    tenth of all pairs in 3 s, so that short and long clips do not compare. Shifts with less than half of the windows
    left do not count."""
    valid_distance: float
    valid_confidence: float
    windows: int
    """Windows of 0.2 s that were compared."""
    curve: tuple[float, ...]
    """The 31 official mean distances, for sound that lies -15..15 frames after the lips."""
    note: str = ""
    """What makes the score doubtful, in one line; empty where nothing does."""


def shift_distances(lips: Tensor, sounds: Tensor, max_shift: int = MAX_SHIFT) -> Tensor:
    """Distances (V, 2 max_shift + 1) of lip windows (V,D) to the sound windows (V,D) up to `max_shift` around them.

    Column i belongs to sound that lies i - max_shift frames after the lips. Sounds over the ends are zero vectors and
    each difference gets 1e-6 added, both as published (`torch.nn.functional.pairwise_distance`).
    """
    if lips.shape != sounds.shape or lips.dim() != 2:
        raise ValueError(f"lips {tuple(lips.shape)} and sounds {tuple(sounds.shape)} must be equal (V, D)")
    if len(lips) == 0:
        raise ValueError("there are no windows to compare")
    padded = F.pad(sounds, (0, 0, max_shift, max_shift)).unfold(0, 2 * max_shift + 1, 1).transpose(1, 2)
    block = _BLOCK_CPU if lips.device.type == "cpu" else _BLOCK_DEVICE
    pairs = zip(lips.split(block), padded.split(block), strict=True)
    return torch.cat([F.pairwise_distance(lip[:, None].expand_as(sound), sound) for lip, sound in pairs])


def official_curve(distances: Tensor) -> Tensor:
    """Mean over the windows of (V, K) -> (K,), summed in the published order."""
    return distances.t().contiguous().mean(dim=1)


def valid_curve(distances: Tensor) -> Tensor:
    """The same over the pairs whose sound exists; NaN for shifts at which less than half of the windows have one."""
    windows, shifts = distances.shape
    reach = torch.arange(shifts, device=distances.device) - shifts // 2
    place = torch.arange(windows, device=distances.device)[:, None] + reach
    valid = (place >= 0) & (place < windows)
    count = valid.sum(dim=0)
    mean = distances.masked_fill(~valid, 0).sum(dim=0) / count
    return mean.masked_fill(2 * count < windows, torch.nan)


def read_curve(curve: Tensor) -> tuple[int, float, float]:
    """Offset, least distance and confidence of a curve (K,) in which NaN marks shifts that do not count."""
    counted = curve[~curve.isnan()]
    least = counted.min()
    place = int(torch.argmax((curve == least).int()))
    return len(curve) // 2 - place, float(least), float(counted.median() - least)


def score_embeddings(lips: Tensor, sounds: Tensor, *, note: str = "") -> SyncScore:
    """The scores of equally many lip and sound windows (V,D).

    Raises:
        UserError: embeddings that are not finite.
        ValueError: no windows, or not equally many.
    """
    distances = shift_distances(lips, sounds)
    if not distances.isfinite().all():
        raise UserError("SyncNet's embeddings are not finite: its weights are broken; train or fetch them again")
    curve = official_curve(distances)
    offset, distance, confidence = read_curve(curve)
    valid_offset, valid_distance, valid_confidence = read_curve(valid_curve(distances))
    return SyncScore(
        offset=offset, distance=distance, confidence=confidence,
        valid_offset=valid_offset, valid_distance=valid_distance, valid_confidence=valid_confidence,
        windows=len(distances), curve=tuple(curve.tolist()), note=note,
    )  # fmt: skip


def score_clip(net: SyncNet, frames: Iterable[np.ndarray], wave: Tensor) -> SyncScore:
    """Scores of 25 fps frames, uint8 (H,W,3) RGB, and their 16 kHz sound (n,) in [-1,1].

    As published, min(frames, n // 640) - 5 windows are compared. A note says where sound and picture differ by more
    than a frame in length, and where the sound is silent or the picture stands still.

    Raises:
        UserError: fewer than six frames of picture or sound.
    """
    lips = embed_frames(net, frames)
    return score_streams(net, lips, wave)


def score_streams(net: SyncNet, lips: Tensor, wave: Tensor) -> SyncScore:
    """As `score_clip`, for lips that are embedded already (T-4,D)."""
    shown, heard = len(lips) + WINDOW - 1 if len(lips) else 0, len(wave) // SAMPLES_PER_FRAME
    windows = min(shown, heard) - WINDOW
    if windows < 1:
        short = f"fewer than {MIN_FRAMES} frames of picture" if shown < MIN_FRAMES else f"{heard} frames of sound"
        raise UserError(f"too short to measure sync: it has {short}, and {MIN_FRAMES} of both are needed")
    used = wave[: (windows + WINDOW) * SAMPLES_PER_FRAME]
    lips, sounds = lips[:windows], embed_wave(net, used)[:windows]
    note = "; ".join(_doubts(shown, heard, bool((used.abs() < 1e-4).all()), bool((lips == lips[:1]).all())))
    return score_embeddings(lips, sounds, note=note)


def injected_offsets(
    net: SyncNet, lips: Tensor, wave: Tensor, offsets: Iterable[int] = INJECTED
) -> list[tuple[int, int]]:
    """Move the sound of a clip by each of `offsets` frames and look for it: pairs (put in, found).

    What the network can do on a clip that was in sync; for one that was not, both differ by its own offset. The sound
    itself is moved, and to be put right it has to be delayed by as many frames. Found by the valid-only mean. Offsets
    that leave too little sound are left out.
    """
    pairs = []
    for offset in offsets:
        samples = offset * SAMPLES_PER_FRAME
        moved = wave[samples:] if offset >= 0 else F.pad(wave, (-samples, 0))
        if len(moved) >= MIN_FRAMES * SAMPLES_PER_FRAME:
            pairs.append((offset, score_streams(net, lips, moved).valid_offset))
    return pairs


def _doubts(shown: int, heard: int, silent: bool, still: bool) -> Iterable[str]:
    if abs(shown - heard) > 1:
        longer, shorter = ("sound", "picture") if heard > shown else ("picture", "sound")
        more = abs(shown - heard)
        yield f"the {longer} is {more} frames longer than the {shorter}; only what both cover is measured"
    if silent:
        yield "the sound is silent, so the score says nothing about sync"
    if still and shown > MIN_FRAMES:
        yield "the picture never changes, so the score says nothing about sync"


@dataclass(frozen=True)
class LseResult:
    """Means over `n` clips or tracks, with what they were measured by and under which protocol."""

    extractor: str
    protocol: str
    n: int
    lse_d: Estimate
    lse_c: Estimate
    valid_lse_d: Estimate
    valid_lse_c: Estimate
    median_offset: float | None
    """Frames, of the valid-only offsets: zero vectors attract a weak network."""
    in_sync: float | None
    """Share of the scores whose valid-only offset is -1, 0 or 1."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for metrics.json."""
        values = {key: value.to_dict() if isinstance(value, Estimate) else value for key, value in vars(self).items()}
        return values | {"median_offset": plain(self.median_offset), "in_sync": plain(self.in_sync)}

    def __str__(self) -> str:
        head = f"extractor {self.extractor}, protocol {self.protocol}, N {self.n}"
        rows = [("LSE-D", self.lse_d), ("LSE-C", self.lse_c)]
        rows += [("LSE-D, valid only", self.valid_lse_d), ("LSE-C, valid only", self.valid_lse_c)]
        lines = [f"{name:18} {_shown(estimate)}" for name, estimate in rows]
        offset = "none" if self.median_offset is None else f"{self.median_offset:g} frames"
        share = "none" if self.in_sync is None else f"{self.in_sync:.1%}"
        return "\n".join([head, *lines, f"{'median offset':18} {offset}", f"{'within 1 frame':18} {share}"])


def summarize(
    scores: Sequence[SyncScore], groups: Sequence[Any] | None = None, *, extractor: str, protocol: str
) -> LseResult:
    """Means over the scores, with 95 % intervals from resampling whole groups (identities; else scores)."""
    rows = np.array([_row(score) for score in scores], dtype=np.float64).reshape(-1, 5)
    labels = np.arange(len(rows)) if groups is None else np.asarray(groups)
    return _lse_compute(rows, labels, extractor, protocol)


def _row(score: SyncScore) -> list[float]:
    """One line of the metric's state."""
    return [score.distance, score.confidence, score.valid_distance, score.valid_confidence, float(score.valid_offset)]


def _lse_compute(rows: np.ndarray, groups: np.ndarray, extractor: str, protocol: str) -> LseResult:
    distance, confidence, valid_distance, valid_confidence = (
        cluster_bootstrap(rows[:, column], groups) for column in range(4)
    )
    offsets = rows[:, 4]
    return LseResult(
        extractor=extractor,
        protocol=protocol,
        n=len(rows),
        lse_d=distance,
        lse_c=confidence,
        valid_lse_d=valid_distance,
        valid_lse_c=valid_confidence,
        median_offset=float(np.median(offsets)) if len(rows) else None,
        in_sync=float((np.abs(offsets) <= 1).mean()) if len(rows) else None,
    )


class LSE(Metric):
    """Mean LSE-D and LSE-C over clips, gathered over ranks: `update(scores)`, `compute()`, `result()`.

    The network stays outside, so that it does not slip into a module's checkpoint.

    Args:
        extractor: `SyncNet.name`.
        protocol: how the crops were made.
    """

    higher_is_better = None
    full_state_update = False
    rows: list[Tensor]
    groups: list[Tensor]

    def __init__(self, extractor: str, protocol: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.extractor, self.protocol = extractor, protocol
        self.add_state("rows", default=[], dist_reduce_fx="cat")
        self.add_state("groups", default=[], dist_reduce_fx="cat")

    def update(self, scores: Sequence[SyncScore], groups: Sequence[int]) -> None:
        """Add the scores of clips that belong to identities `groups` (numbers)."""
        if len(scores) != len(groups):
            raise ValueError(f"{len(scores)} scores of {len(groups)} groups")
        self.rows.append(torch.tensor([_row(s) for s in scores], device=self.device).view(-1, 5))
        self.groups.append(torch.tensor(groups, dtype=torch.int64, device=self.device))

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Gather over ranks, some of which may have seen nothing."""
        fill_empty(self, {"rows": no_rows(5), "groups": no_rows(dtype=torch.int64)})
        super().sync(*args, **kwargs)

    def compute(self) -> dict[str, Tensor]:
        """Scalars by the names of the shared logging keys; NaN where nothing was added."""
        result = self._result()
        values = {"lse_d": result.lse_d.value, "lse_c": result.lse_c.value, "in_sync": result.in_sync}
        return {
            name: torch.tensor(torch.nan if value is None else value, device=self.device)
            for name, value in values.items()
        }

    def result(self) -> LseResult:
        """Everything with its intervals; gathers over ranks like `compute`."""
        with self.sync_context(dist_sync_fn=self.dist_sync_fn):
            return self._result()

    def _result(self) -> LseResult:
        rows, groups = joined(self.rows), joined(self.groups)
        if rows is None or groups is None:
            return _lse_compute(np.zeros((0, 5)), np.zeros(0), self.extractor, self.protocol)
        return _lse_compute(rows.cpu().double().numpy(), groups.cpu().numpy(), self.extractor, self.protocol)


def describe(score: SyncScore) -> dict[str, Any]:
    """A score as plain values for JSON."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(score).items()}


def _shown(estimate: Estimate) -> str:
    if estimate.value is None:
        return f"none ({estimate.reason})"
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.3f} ({estimate.reason})"
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"
