"""The skin surface of the built-in head: horizontal sections, a neck, and the features of the face.

Everything is a closed formula in decimetres (x image right, y up, z towards the viewer), symmetric in x. The
numbers follow adult anthropometric means (Farkas, Anthropometry of the Head and Face, 1994): head height 2.3,
face width 1.4, eye fissures a fifth of it, subnasale half way from the eyes to the chin.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator

Array = NDArray[np.floating[Any]]

EYE_CENTRE = np.array([0.312, 0.035, 0.645])
"""Centre of the eyeball on the +x side."""
EYE_RADII = np.array([0.172, 0.125, 0.172])
"""Wider than in nature (.12), so that one ellipsoid fills the fissure up to both corners."""
MOUTH_HALF_WIDTH = 0.25
MOUTH_HEIGHT = -0.625
"""y of the line where the lips meet."""
RAY_CENTRE = np.array([0.0, -0.17, 0.0])
"""The head is star-shaped around this point."""

# y, half width W, front z, centre z, back z, exponent of the horizontal section
_SECTIONS = np.array(
    [
        (1.175, 0.000, -0.08, -0.08, -0.08, 2.00),
        (1.130, 0.260, 0.24, -0.08, -0.42, 2.00),
        (1.050, 0.425, 0.47, -0.08, -0.62, 2.02),
        (0.900, 0.588, 0.675, -0.08, -0.80, 2.06),
        (0.700, 0.692, 0.805, -0.08, -0.92, 2.14),
        (0.500, 0.735, 0.872, -0.08, -0.98, 2.22),
        (0.300, 0.740, 0.905, -0.08, -0.98, 2.30),
        (0.150, 0.726, 0.900, -0.08, -0.95, 2.34),
        (0.000, 0.712, 0.878, -0.06, -0.88, 2.34),
        (-0.150, 0.698, 0.872, -0.05, -0.80, 2.30),
        (-0.300, 0.674, 0.882, -0.03, -0.70, 2.22),
        (-0.450, 0.644, 0.905, 0.00, -0.58, 2.14),
        (-0.600, 0.598, 0.915, 0.06, -0.45, 2.08),
        (-0.720, 0.538, 0.900, 0.14, -0.30, 2.04),
        (-0.830, 0.456, 0.870, 0.25, -0.12, 2.02),
        (-0.950, 0.352, 0.860, 0.37, 0.08, 2.00),
        (-1.040, 0.238, 0.810, 0.46, 0.25, 2.00),
        (-1.090, 0.130, 0.725, 0.52, 0.40, 2.00),
        (-1.115, 0.000, 0.580, 0.58, 0.58, 2.00),
    ]
)[::-1]
_Y = _SECTIONS[:, 0]
# squares: a section that closes like sqrt(distance) is then a straight line, so that crown and chin are round
_WIDTH2 = PchipInterpolator(_Y, _SECTIONS[:, 1] ** 2)
_FRONT2 = PchipInterpolator(_Y, (_SECTIONS[:, 2] - _SECTIONS[:, 3]) ** 2)
_BACK2 = PchipInterpolator(_Y, (_SECTIONS[:, 3] - _SECTIONS[:, 4]) ** 2)
_CENTRE = PchipInterpolator(_Y, _SECTIONS[:, 3])
_EXPONENT = PchipInterpolator(_Y, _SECTIONS[:, 5])
NECK_TOP, NECK_BOTTOM = -1.15, -1.80

# how far the nose's ridge stands out of the section's front, by y
_RIDGE = PchipInterpolator(
    [-0.60, -0.440, -0.418, -0.395, -0.37, -0.335, -0.295, -0.23, -0.13, -0.03, 0.05, 0.12, 0.20, 0.30],
    [0.0, 0.012, 0.055, 0.130, 0.186, 0.222, 0.232, 0.208, 0.152, 0.092, 0.054, 0.026, 0.006, 0.0],
)


_HAIRLINE = PchipInterpolator(
    np.radians([0, 14, 26, 35, 43, 50, 57, 63, 68, 73, 80, 88, 100, 112, 128, 150, 180]),
    [0.80, 0.80, 0.77, 0.70, 0.60, 0.51, 0.44, 0.32, 0.13, -0.10, -0.16, -0.05, 0.0, -0.20, -0.45, -0.60, -0.64],
)
"""Height of the hairline by azimuth from the front: forehead, temple, sideburn, ear, nape."""


def smoothstep(value: Array, low: float | Array, high: float | Array) -> Array:
    """0 below `low`, 1 above `high` (or the reverse if low > high), a cubic between; any shape."""
    t = np.clip((value - low) / (high - low), 0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)


def bump(x: Array, y: Array, centre: tuple[float, float], sigma: tuple[float, float], angle: float = 0.0) -> Array:
    """Gaussian of height 1 in (|x|, y), its axes turned by `angle` radians; same shape as x."""
    c, s = np.cos(angle), np.sin(angle)
    u, v = np.abs(x) - centre[0], y - centre[1]
    return np.exp(-0.5 * (((c * u + s * v) / sigma[0]) ** 2 + ((c * v - s * u) / sigma[1]) ** 2))


def smooth_max(a: Array, b: Array, width: float) -> Array:
    """Maximum whose corner is rounded over `width`."""
    return 0.5 * (a + b + np.sqrt((a - b) ** 2 + width**2))


def _section_distance(points: Array) -> Array:
    """Approximate signed distance (n,) of (n,3) points to the skull and jaw; negative inside."""
    x, y, z = points.T
    inside = np.clip(y, _Y[0], _Y[-1])
    width = np.sqrt(np.maximum(_WIDTH2(inside), 1e-4))
    offset = z - _CENTRE(inside)
    depth = np.sqrt(np.maximum(np.where(offset > 0, _FRONT2(inside), _BACK2(inside)), 1e-4))
    exponent = _EXPONENT(inside)
    ratio = ((np.abs(x) / width) ** exponent + (np.abs(offset) / depth) ** exponent) ** (1.0 / exponent)
    side = (ratio - 1.0) * np.hypot(x, offset) / np.maximum(ratio, 1e-6)
    beyond = np.abs(y - inside)
    return np.where(beyond > 0, np.hypot(np.maximum(side, 0.0), beyond), side)


def _neck_distance(points: Array) -> Array:
    """Approximate signed distance to the neck, an elliptic column that leans forward and flares."""
    x, y, z = points.T
    flare = 1.0 + 0.35 * smoothstep(y, -1.25, -1.8)
    centre = -0.28 + 0.10 * np.minimum(y + 1.0, 0.0)
    side = (np.sqrt((x / (0.48 * flare)) ** 2 + ((z - centre) / (0.50 * flare)) ** 2) - 1.0) * 0.48
    return smooth_max(side, y + 0.40, 0.05)


def base_distance(points: Array) -> Array:
    """Signed distance (n,), about, of (n,3) points to the head without features: a rounded union with the neck."""
    return -smooth_max(-_section_distance(points), -_neck_distance(points), 0.10)


def cast(directions: Array) -> Array:
    """Where rays (n,3) from RAY_CENTRE leave the featureless head; (n,3). Bisection to 1e-7 dm."""
    low, high = np.zeros(len(directions)), np.full(len(directions), 2.6)
    for _ in range(28):
        middle = 0.5 * (low + high)
        inside = base_distance(RAY_CENTRE + middle[:, None] * directions) < 0
        low, high = np.where(inside, middle, low), np.where(inside, high, middle)
    return RAY_CENTRE + low[:, None] * directions


def base_depth(x: Array, y: Array) -> Array:
    """z of the featureless face seen from the front at (x, y); valid inside the face's outline."""
    low, high = np.full(len(x), 0.1), np.full(len(x), 1.3)
    for _ in range(26):
        middle = 0.5 * (low + high)
        inside = base_distance(np.stack([x, y, middle], 1)) < 0
        low, high = np.where(inside, middle, low), np.where(inside, high, middle)
    return low


def eyeball_depth(x: Array, y: Array, margin: float) -> Array:
    """z of the +x eyeball's front, grown by `margin`, at (|x|, y); falls steeply beyond its outline."""
    u = (np.abs(x) - EYE_CENTRE[0]) / (EYE_RADII[0] + margin)
    v = (y - EYE_CENTRE[1]) / (EYE_RADII[1] + margin)
    inside = 1.0 - u * u - v * v
    height = np.sqrt(np.maximum(inside, 0.0)) - 2.0 * np.sqrt(np.maximum(-inside, 0.0))
    return EYE_CENTRE[2] + (EYE_RADII[2] + margin) * height


def nose_height(x: Array, y: Array) -> Array:
    """How far the nose stands out of the face at (x, y)."""
    side = np.abs(x)
    # the lower edge rises from the columella to the nostrils
    lifted = y - 0.050 * smoothstep(side, 0.0, 0.085) * smoothstep(y, -0.20, -0.36)
    ridge = np.clip(_RIDGE(np.clip(lifted, -0.60, 0.30)), 0.0, None)
    width = 0.070 + 0.020 * smoothstep(y, 0.1, -0.30)
    bridge = ridge * np.exp(-0.5 * (side / width) ** 2.2)
    ball = 0.230 * np.exp(-0.5 * ((x / 0.110) ** 2 + ((y + 0.308) / 0.072) ** 2) ** 1.25)
    wing = 0.128 * np.exp(-0.6 * (((side - 0.118) / 0.068) ** 2 + ((y + 0.355) / 0.072) ** 2) ** 1.6)
    blended = (np.maximum(bridge, 0.0) ** 3 + ball**3 + wing**3) ** (1 / 3)
    nostril = 0.050 * bump(x, y, (0.064, -0.408), (0.024, 0.012), 0.25)
    return 0.92 * blended - nostril


def features(x: Array, y: Array) -> Array:
    """What the features of the face, nose included, lips and lids excluded, add to z at (x, y)."""
    brow = 0.038 * bump(x, y, (0.27, 0.215), (0.16, 0.060), 0.10) + 0.018 * bump(x, y, (0.0, 0.27), (0.13, 0.09))
    socket = -0.062 * bump(x, y, (0.31, 0.060), (0.140, 0.080)) - 0.052 * bump(x, y, (0.165, 0.045), (0.055, 0.07))
    cheek = 0.050 * bump(x, y, (0.43, -0.19), (0.17, 0.13), 0.25) + 0.020 * bump(x, y, (0.27, -0.33), (0.13, 0.13))
    hollow = -0.026 * bump(x, y, (0.46, -0.52), (0.12, 0.13)) - 0.03 * bump(x, y, (0.66, 0.34), (0.09, 0.16))
    fold = -0.015 * bump(x, y, (0.268, -0.475), (0.020, 0.105), 0.52)
    chin = 0.045 * bump(x, y, (0.0, -0.955), (0.14, 0.075)) - 0.014 * bump(x, y, (0.0, -0.955), (0.022, 0.05))
    sulcus = -0.022 * bump(x, y, (0.0, -0.80), (0.16, 0.040))
    muzzle = 0.030 * bump(x, y, (0.0, -0.58), (0.20, 0.16))
    philtrum = -0.012 * bump(x, y, (0.0, -0.485), (0.020, 0.045)) + 0.007 * bump(x, y, (0.043, -0.50), (0.016, 0.04))
    forehead = 0.012 * bump(x, y, (0.24, 0.58), (0.16, 0.12))
    corner = -0.020 * bump(x, y, (0.285, -0.63), (0.035, 0.045))
    parts = (brow, socket, cheek, hollow, fold, chin, sulcus, muzzle, philtrum, forehead, corner)
    return np.sum(parts, axis=0) + nose_height(x, y)


def face_depth(x: Array, y: Array) -> Array:
    """z of the skin, lips and lids excluded, seen from the front at (x, y)."""
    return base_depth(x, y) + features(x, y)


def above_hairline(points: Array) -> Array:
    """Height in dm (n,) of points (n,3) of the scalp above the hairline; negative on the face and the neck."""
    azimuth = np.arctan2(np.abs(points[:, 0]), points[:, 2] + 0.1)
    return points[:, 1] - _HAIRLINE(azimuth)
