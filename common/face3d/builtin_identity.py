"""Identity modes of the built-in head: smooth displacement fields, coefficients ~ N(0,1), symmetric but for two.

A mode is a window over the head times a shift and a stretch. Eyes move as a whole and keep their shape (but for the
modes that are about it), teeth follow the middle of the mouth, ears follow their root.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from common.face3d.builtin_mesh import Part
from common.face3d.builtin_surface import EYE_CENTRE, MOUTH_HEIGHT, Array, above_hairline, bump, smoothstep

EAR_ROOT = np.array([0.70, -0.02, -0.06])
_SIDES = np.array([[-1.0, 1.0, 1.0], [1.0, 1.0, 1.0]])
Window = Callable[[Array], Array]


class Field(NamedTuple):
    """Displacement window(p) * (shift + stretch * p): `window` maps points (n,3) to weights (n,).

    shift in dm per unit coefficient, its x outwards (to +x on the +x side, to -x on the other) unless `one_way`;
    stretch is a fraction per unit coefficient.
    """

    window: Window
    shift: tuple[float, float, float] = (0.0, 0.0, 0.0)
    stretch: tuple[float, float, float] = (0.0, 0.0, 0.0)
    one_way: bool = False

    def __call__(self, points: Array) -> Array:
        side = np.ones(len(points)) if self.one_way else np.sign(points[:, 0])
        outward = np.stack([side, np.ones(len(points)), np.ones(len(points))], 1)
        return self.window(points)[:, None] * (self.shift * outward + self.stretch * points)


def _front(p: Array) -> Array:
    return smoothstep(p[:, 2], 0.1, 0.45)


def _head(p: Array) -> Array:
    """1 on the head, falling to 0 down the neck."""
    return smoothstep(p[:, 1] - 0.35 * p[:, 2], -1.30, -0.85)


def _throat(p: Array) -> Array:
    return (1.0 - _head(p)) * smoothstep(p[:, 1], -0.3, -0.9)


def _spot(centre: tuple[float, float], sigma: tuple[float, float], angle: float = 0.0) -> Window:
    """Gaussian on the front of the face."""
    return lambda p: _front(p) * bump(p[:, 0], p[:, 1], centre, sigma, angle)


def _around_eye(p: Array) -> Array:
    """Flat over the eye, falling outside."""
    squared = ((np.abs(p[:, 0]) - EYE_CENTRE[0]) / 0.19) ** 2 + ((p[:, 1] - EYE_CENTRE[1]) / 0.15) ** 2
    return _front(p) * np.exp(-0.5 * squared**2)


def _lower_nose(p: Array) -> Array:
    vertical = smoothstep(p[:, 1], -0.53, -0.41) * smoothstep(p[:, 1], 0.05, -0.28)
    return _front(p) * vertical * np.exp(-0.5 * (p[:, 0] / 0.17) ** 4)


def _nostrils(p: Array) -> Array:
    return _lower_nose(p) * smoothstep(p[:, 1], -0.12, -0.28)


def _mouth(p: Array) -> Array:
    return _front(p) * np.exp(-((p[:, 0] / 0.38) ** 4) - ((p[:, 1] - MOUTH_HEIGHT) / 0.19) ** 4)


def _mouth_front(p: Array) -> Array:
    return _mouth(p) * np.exp(-0.5 * (p[:, 0] / 0.2) ** 2)


def _brow(p: Array) -> Array:
    return _front(p) * smoothstep(p[:, 1], 0.06, 0.20) * np.exp(-((np.maximum(p[:, 1] - 0.24, 0) / 0.16) ** 2))


def _brow_tilt(p: Array) -> Array:
    """Negative at the brow's inner end, positive at the outer."""
    across = np.abs(p[:, 0])
    return _brow(p) * (across - 0.30) * smoothstep(across, 0.75, 0.5)


def _jaw(p: Array) -> Array:
    return smoothstep(p[:, 1], -0.15, -0.65) * smoothstep(p[:, 2], -0.25, 0.15) * _head(p)


def _jaw_corner(p: Array) -> Array:
    offset = (p * (np.sign(p[:, :1]) * (1, 0, 0) + (0, 1, 1)) - (0.56, -0.62, 0.10)) / (0.20, 0.16, 0.25)
    return np.exp(-0.5 * (offset**2).sum(1))


def _chin(p: Array) -> Array:
    return smoothstep(p[:, 1], -0.68, -0.98) * smoothstep(p[:, 2], 0.15, 0.6)


def _chin_sides(p: Array) -> Array:
    return _chin(p) * np.exp(-((p[:, 0] / 0.42) ** 4))


def _cheek(p: Array) -> Array:
    return smoothstep(p[:, 2], -0.2, 0.2) * bump(p[:, 0], p[:, 1], (0.48, -0.50), (0.17, 0.20))


def _hairline(p: Array) -> Array:
    return _front(p) * np.exp(-(((p[:, 1] - 0.80) / 0.26) ** 2))


def _scalp(p: Array) -> Array:
    return smoothstep(above_hairline(p), -0.03, 0.25)


def _hair_top(p: Array) -> Array:
    return _scalp(p) * smoothstep(p[:, 1], 0.3, 0.9)


def _hair_sides(p: Array) -> Array:
    return _scalp(p) * smoothstep(np.abs(p[:, 0]), 0.2, 0.6) * np.exp(-0.5 * ((p[:, 1] - 0.2) / 0.35) ** 2)


def _crown(p: Array) -> Array:
    return _head(p) * smoothstep(p[:, 1], 1.1, 0.5)


def _back(p: Array) -> Array:
    return _head(p) * smoothstep(p[:, 2], 0.3, -0.3)


def _below_nose(p: Array) -> Array:
    return _front(p) * smoothstep(p[:, 1], -0.3, -0.9)


# those that change the look most come first
FIELDS: dict[str, Field] = {
    "head width": Field(_head, stretch=(0.038, 0.0, 0.0)),
    "jaw width": Field(_jaw, stretch=(0.062, 0.0, 0.0)),
    "nose width": Field(_nostrils, stretch=(0.105, 0.0, 0.0)),
    "face length": Field(_crown, stretch=(0.0, 0.038, 0.0)),
    "cheek fullness": Field(_cheek, shift=(0.029, -0.006, 0.026)),
    "brow height": Field(_brow, shift=(0.0, 0.018, 0.0)),
    "mouth width": Field(_mouth, stretch=(0.062, 0.0, 0.0)),
    "hairline height": Field(_hairline, shift=(0.0, 0.060, -0.035)),
    "chin length": Field(_chin, shift=(0.0, -0.036, 0.0)),
    "chin protrusion": Field(_chin, shift=(0.0, 0.0, 0.032)),
    "chin width": Field(_chin_sides, stretch=(0.14, 0.0, 0.0)),
    "cheekbones": Field(_spot((0.50, -0.13), (0.16, 0.11)), shift=(0.020, 0.0, 0.025)),
    "jaw corner": Field(_jaw_corner, shift=(0.020, -0.032, 0.0)),
    "temple recess": Field(_spot((0.46, 0.66), (0.13, 0.17)), shift=(0.0, 0.055, 0.0)),
    "widow's peak": Field(_spot((0.0, 0.80), (0.11, 0.10)), shift=(0.0, -0.030, 0.008)),
    "forehead bulge": Field(_spot((0.0, 0.55), (0.40, 0.20)), shift=(0.0, 0.0, 0.020)),
    "head depth": Field(_back, stretch=(0.0, 0.0, 0.035)),
    "hair height": Field(_hair_top, shift=(0.0, 0.040, 0.0)),
    "hair sides": Field(_hair_sides, shift=(0.032, 0.0, 0.0)),
    "neck width": Field(_throat, stretch=(0.070, 0.0, 0.035)),
    "brow slant": Field(_brow_tilt, shift=(0.0, 0.045, 0.0)),
    "brow ridge": Field(_spot((0.19, 0.22), (0.20, 0.075)), shift=(0.0, 0.0, 0.016)),
    "eye spacing": Field(_around_eye, shift=(0.014, 0.0, 0.0)),
    "eye height": Field(_around_eye, shift=(0.0, 0.014, 0.0)),
    "eye depth": Field(_around_eye, shift=(0.0, 0.0, -0.012)),
    "eye bags": Field(_spot((0.30, -0.085), (0.11, 0.035)), shift=(0.0, 0.0, 0.008)),
    "nose length": Field(_lower_nose, shift=(0.0, -0.025, 0.0)),
    "nose projection": Field(_spot((0.0, -0.30), (0.13, 0.12)), shift=(0.0, 0.0, 0.025)),
    "nose tip lift": Field(_spot((0.0, -0.31), (0.11, 0.085)), shift=(0.0, 0.018, 0.004)),
    "nose bridge height": Field(_spot((0.0, 0.03), (0.075, 0.11)), shift=(0.0, 0.0, 0.020)),
    "nose bridge width": Field(_spot((0.0, -0.05), (0.10, 0.12)), stretch=(0.20, 0.0, 0.0)),
    "nose hump": Field(_spot((0.0, -0.12), (0.065, 0.065)), shift=(0.0, 0.0, 0.012)),
    "mouth height": Field(_mouth, shift=(0.0, 0.018, 0.0)),
    "mouth protrusion": Field(_mouth_front, shift=(0.0, 0.0, 0.018)),
    "mouth corners": Field(_spot((0.26, MOUTH_HEIGHT), (0.08, 0.08)), shift=(0.0, 0.011, 0.0)),
    "nose skew": Field(_lower_nose, shift=(0.008, 0.0, 0.0), one_way=True),
    "chin skew": Field(_below_nose, shift=(0.010, 0.0, 0.0), one_way=True),
}


def _carried(head: Part, field: Field) -> Array:
    """The field (V,3) on the head with rigid eyes, teeth and ears."""
    points, value = head.vertices, head.values
    moved = field(points)
    side = np.where(points[:, 0] < 0, 0, 1)
    eye = np.where(value["iris"] >= 0, 1.0, np.nan_to_num(smoothstep(value["lid"], 0.80, 0.15)))[:, None]
    moved = (1 - eye) * moved + eye * field(EYE_CENTRE * _SIDES + (0.0, 0.0, 0.17))[side]
    mouth = field(np.array([[0.0, MOUTH_HEIGHT, 0.90]]))
    moved = np.where((value["tooth"] >= 0)[:, None], mouth, moved)
    return np.where((value["ear"] >= 0)[:, None], field(EAR_ROOT * _SIDES)[side], moved)


def _from(head: Part, pivot: Array) -> tuple[Array, Array]:
    """Offsets (V,3) from the pivot of a vertex's own side, and that side's sign (V,)."""
    side = np.where(head.vertices[:, 0] < 0, 0, 1)
    return head.vertices - (pivot * _SIDES)[side], _SIDES[side, 0]


def _eye_modes(head: Part, blink: Array) -> dict[str, Array]:
    """Modes about the eyes' own shape; `blink` (V,3) shuts both eyes."""
    offset, side = _from(head, EYE_CENTRE)
    lid = smoothstep(np.nan_to_num(head.values["lid"], nan=1.0), 1.0, 0.35)[:, None]
    whole = np.maximum(lid, head.values["iris"][:, None] >= 0)
    turned = np.stack([-offset[:, 1] * side, offset[:, 0] * side, np.zeros(len(side))], 1)
    return {
        "eye size": 0.060 * whole * offset,
        "eye slant": 0.055 * lid * turned,
        "eye openness": -0.055 * blink,
        "eye length": 0.040 * lid * offset * (1.0, 0.0, 0.0),
    }


def _lip_modes(head: Part) -> dict[str, Array]:
    """Thickness of the lips and depth of the cupid's bow."""
    lip, side = (np.nan_to_num(head.values[key], nan=0.0) for key in ("lip", "lip_side"))
    ramp = smoothstep(lip, 0.0, 1.0) * smoothstep(lip, 2.0, 1.0)
    full = np.exp(-0.5 * ((lip - 0.7) / 0.35) ** 2)
    arch = np.abs(side) ** 0.8
    bow = np.exp(-((head.vertices[:, 0] / 0.03) ** 2) - 0.5 * ((lip - 1.0) / 0.3) ** 2)
    flat = np.zeros(len(lip))
    return {
        "upper lip": ((side > 0) * arch * np.stack([flat, 0.014 * ramp, 0.011 * full])).T,
        "lower lip": ((side < 0) * arch * np.stack([flat, -0.016 * ramp, 0.011 * full])).T,
        "cupid's bow": ((side > 0) * bow * np.stack([flat, flat - 0.006, flat])).T,
    }


def _ear_modes(head: Part) -> dict[str, Array]:
    """Size and stance of the ears."""
    offset, side = _from(head, EAR_ROOT)
    ear = (head.values["ear"] >= 0).astype(float)[:, None]
    out = np.maximum(-offset[:, 2], 0.0)
    return {
        "ear size": 0.09 * ear * offset,
        "ear stance": 0.13 * ear * np.stack([side * out, np.zeros(len(side)), 0.5 * out], 1),
    }


def _hair_mode(head: Part) -> dict[str, Array]:
    """Long hair: the curtain, hidden in the neck at 0, comes out around it."""
    curtain = (head.values["curtain"] >= 0).astype(float)[:, None]
    outward = head.vertices * (1.0, 0.0, 1.0) - (0.0, 0.0, -0.25)
    return {"hair length": curtain * 0.42 * outward * (1.35, 1.0, 1.0)}


def identities(head: Part, blink: Array) -> dict[str, Array]:
    """All modes by name, each (V,3) dm per unit coefficient; `blink` (V,3) is the displacement that shuts both eyes."""
    modes = {name: _carried(head, field) for name, field in FIELDS.items()}
    return modes | _eye_modes(head, blink) | _lip_modes(head) | _ear_modes(head) | _hair_mode(head)
