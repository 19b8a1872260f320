"""What moves in a talking head besides the mouth: the head itself, the lids, the brows. All of it smooth in time."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d

from common.synthetic.speech import SAMPLE_RATE

Array = NDArray[np.float64]

_CLOSING, _SHUT, _OPENING = 0.08, 0.05, 0.16
"""Seconds of a blink; shut for longer than a frame lasts, so that one frame at least shows it."""


def loudness(wave: Array, times: Array, *, seconds: float = 0.1) -> Array:
    """How loud a wave (n,) at 16 kHz is at `times` (T,) s: its smoothed RMS over the wave's highest, in [0,1].

    `seconds` is the standard deviation of the smoothing, which is symmetric and delays nothing.
    """
    step = SAMPLE_RATE // 100
    blocks = np.asarray(wave, dtype=np.float64)[: len(wave) // step * step].reshape(-1, step)
    power = gaussian_filter1d((blocks**2).mean(1), seconds / 0.01, mode="nearest")
    level = np.sqrt(power / max(float(power.max()), 1e-12))
    return np.asarray(np.interp(times, (np.arange(len(level)) + 0.5) * 0.01, level))


def sway(rng: np.random.Generator, times: Array, scales: Sequence[float], *, waves: int = 4) -> Array:
    """Slow random motion (T,K) about 0 of standard deviation `scales` (K,): sums of sines of 0.1 to 0.7 Hz."""
    frequency = rng.uniform(0.1, 0.7, (waves, len(scales)))
    phase = rng.uniform(0, 2 * np.pi, (waves, len(scales)))
    angle = 2 * np.pi * frequency * np.asarray(times)[:, None, None] + phase
    return np.asarray(np.sin(angle).sum(1) * np.asarray(scales) * np.sqrt(2 / waves))


def head_motion(rng: np.random.Generator, times: Array, loud: Array) -> tuple[Array, Array]:
    """Angles (T,3) in rad (pitch, yaw, roll) and shifts (T,3) in dm around a clip's own pose.

    The head sways slowly, and nods and turns a little with the loudness `loud` (T,) in [0,1] of the speech, as
    talkers do (Yehia, Kuratate and Vatikiotis-Bateson 2002).
    """
    angles = sway(rng, times, [0.020, 0.038, 0.020])
    stress = (loud - loud.mean())[:, None]
    angles += stress * np.radians([rng.uniform(2.0, 5.0), rng.normal(0, 1.5), rng.normal(0, 1.0)])
    shifts = sway(rng, times, [0.02, 0.02, 0.05]) - stress * np.array([0.0, 0.02, 0.0])
    return angles, shifts


def blinks(rng: np.random.Generator, times: Array, *, interval: float = 2.5) -> Array:
    """How far the lids are shut (T,) in [0,1]; `interval` s between blinks on average, half a second at least."""
    shut = np.zeros(len(times))
    moment = float(times[0]) + rng.exponential(interval)
    while moment < times[-1] + 1.0:
        before, after = (moment - times) / _CLOSING, (times - moment - _SHUT) / _OPENING
        shut = np.maximum(shut, 0.5 + 0.5 * np.cos(np.pi * np.clip(np.maximum(before, after), 0, 1)))
        moment += 0.5 + rng.exponential(interval)
    return shut


def upper_face(
    rng: np.random.Generator, names: Sequence[str], times: Array, loud: Array, *, squint: float = 0.0
) -> NDArray[np.float32]:
    """Expression coefficients (T,Ke) of lids and brows by ARKit's names: blinks, and brows that rise with the stress.

    Args:
        rng: decides when and how much.
        names: the face model's expressions; those that it lacks are left out.
        times: (T,) s.
        loud: (T,) loudness in [0,1].
        squint: weight of `eyeSquint` in a blink, for lids that `eyeBlink` alone leaves ajar.
    """
    shut = blinks(rng, times)
    raised = np.clip(rng.uniform(0.1, 0.5) * (loud - 0.4) + sway(rng, times, [0.08])[:, 0], 0, 1)
    weights = {"eyeBlink": shut, "eyeSquint": squint * shut, "browInnerUp": raised, "browOuterUp": 0.6 * raised}
    weights["browDown"] = 0.08 * shut  # lids that shut draw the brows down a little
    track = np.zeros((len(times), len(names)), dtype=np.float32)
    for column, name in enumerate(names):
        track[:, column] = weights.get(name.removesuffix("_L").removesuffix("_R"), 0.0)
    return track
