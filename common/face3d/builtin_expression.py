"""Expression modes of the built-in head, in [0,1], with the names that ICT-FaceKit and ARKit use.

`_L` is the subject's left, on the image's right (+x). A mode is a displacement field (V,3) in decimetres at weight 1.
"""

import numpy as np

from common.face3d.builtin_mesh import Part, lid_depth, lid_edge
from common.face3d.builtin_surface import MOUTH_HEIGHT, Array, bump, smoothstep

JAW_HINGE = np.array([0.0, -0.08, -0.02])
JAW_ANGLE = np.radians(14.0)
"""How far jawOpen turns the jaw at weight 1: the lips part by about .23 dm."""
_CORNER_SHARE = 0.40


class _Regions:
    """Weights (V,) of the joined head that several modes share."""

    def __init__(self, head: Part, teeth: Array) -> None:
        value, (x, y, z) = head.values, head.vertices.T
        self.points, self.x, self.y, self.z = head.vertices, x, y, z
        self.lip, self.lid, self.lid_angle = value["lip"], value["lid"], value["lid_angle"]
        self.side, self.u = np.nan_to_num(value["lip_side"]), np.nan_to_num(value["lip_u"])
        self.in_patch, self.teeth = ~np.isnan(self.lip), teeth
        self.skin = np.isnan(value["iris"]) & np.isnan(value["tooth"]) & np.isnan(value["ear"])
        self.front = np.where(self.in_patch, 1.0, self.skin * smoothstep(z, 0.2, 0.4))
        self.left = smoothstep(x, -0.12, 0.12)
        # the lining follows the lips less the deeper it lies
        self.depth = np.where(self.in_patch, np.exp(np.minimum(np.nan_to_num(self.lip), 0.0) / 2.5), 1.0)
        above = np.where(self.in_patch, self.side > 0, y > MOUTH_HEIGHT)
        middle = np.where(self.in_patch, np.abs(self.side) ** 0.5, smoothstep(np.abs(y - MOUTH_HEIGHT), 0.0, 0.08))
        across = np.exp(-((x / 0.30) ** 4)) * middle * self.front * self.depth
        self.upper = across * above * np.exp(-((np.maximum(y + 0.535, 0.0) / 0.10) ** 2))
        self.lower = across * ~above * np.exp(-((np.maximum(-0.715 - y, 0.0) / 0.11) ** 2))
        self.corner = self.front * self.depth * bump(x, y, (0.26, MOUTH_HEIGHT), (0.085, 0.085))
        self.mouth = self.front * self.depth * np.exp(-((x / 0.36) ** 4) - ((y - MOUTH_HEIGHT) / 0.19) ** 4)

    def jaw(self) -> Array:
        """How much of the jaw's turn a vertex takes, 0..1."""
        y, z = self.y, self.z
        line = np.interp(z, [0.0, 0.86], [-0.20, MOUTH_HEIGHT])
        field = smoothstep(line - y, -0.13, 0.19) * smoothstep(z, -0.10, 0.25)
        field *= np.where(y < -0.95, smoothstep(z + 0.55 * np.minimum(y + 1.1, 0.0), 0.10, 0.50), 1.0)
        lips = np.where(self.side > 0, _CORNER_SHARE * self.u**5, 1.0 - (1.0 - _CORNER_SHARE) * self.u**4)
        blend = smoothstep(self.lip, 1.0, 2.0)
        weight = np.where(self.in_patch, (1.0 - blend) * lips + blend * field, field * self.skin)
        return np.where(self.teeth < 0, 1.0, np.nan_to_num(weight))


def _turned(points: Array, angle: float) -> Array:
    """Displacement (n,3) of points that turn about the jaw's hinge; a positive angle opens."""
    offset = points - JAW_HINGE
    c, s = np.cos(angle), np.sin(angle)
    y = c * offset[:, 1] - s * offset[:, 2]
    z = s * offset[:, 1] + c * offset[:, 2]
    return np.stack([np.zeros(len(points)), y - offset[:, 1], z - offset[:, 2]], 1)


def _blink(r: _Regions, closing: float, lifting: float) -> Array:
    """Both eyes' lids: the upper goes down by `closing` (1 meets the lower), the lower up by `lifting` dm."""
    lid, angle = np.nan_to_num(r.lid), np.nan_to_num(r.lid_angle)
    upper = np.sin(angle) > 1e-6
    _, edge = lid_edge(angle)
    _, opposite = lid_edge(-angle)
    fall = smoothstep(lid, 0.55, 0.02)
    lift = lifting * np.sqrt(np.abs(np.sin(angle)))
    dy = np.where(upper, closing * (opposite - edge) + (lift if closing >= 1 else 0.0) - 0.004, lift) * fall
    dy = np.where(np.isnan(r.lid), 0.0, dy)
    moved = r.y + dy
    near = np.flatnonzero(dy)
    over = np.full(len(dy), -1.0)
    over[near] = lid_depth(np.abs(r.x[near]), moved[near]) + (0.014 * upper * np.sqrt(np.abs(np.sin(angle))))[near]
    rim = np.where(lid < -0.5, 0.012 * (-lid), 0.0)
    dz = np.where(dy != 0, smoothstep(fall, 0.05, 0.4) * np.maximum(over - rim - r.z, -0.004), 0.0)
    return np.stack([np.zeros_like(dy), dy, dz], 1)


def _field(x: Array | float, y: Array | float, z: Array | float, like: Array) -> Array:
    return np.stack([np.broadcast_to(part, like.shape) for part in (x, y, z)], 1)


def _mouth_shapes(r: _Regions) -> dict[str, Array]:
    """Modes of the mouth that both sides share."""
    jaw = r.jaw()[:, None] * _turned(r.points, JAW_ANGLE)
    below = np.exp(-((np.maximum(-0.70 - r.y, 0.0) / 0.17) ** 2) - (r.x / 0.38) ** 4)
    lining = np.where(r.in_patch, smoothstep(r.lip, -5.0, -2.0), r.front)
    shut = below * lining
    press_out = np.exp(-0.5 * ((r.y - MOUTH_HEIGHT) / 0.12) ** 2) * r.mouth
    rolled = np.where(r.in_patch, smoothstep(r.lip, 1.1, 0.6), 0.0) * r.depth
    low, up = rolled * (r.side < 0) * np.abs(r.side), rolled * (r.side > 0) * np.abs(r.side)
    return {
        "jawOpen": jaw,
        "mouthClose": -shut[:, None] * jaw,
        "mouthFunnel": _field(-0.30 * r.x * r.mouth, 0.050 * r.upper - 0.060 * r.lower, 0.075 * press_out, r.x),
        "mouthPucker": _field(
            -0.42 * r.x * r.mouth, -0.004 * r.upper + 0.004 * r.lower, 0.095 * press_out - 0.01 * r.corner, r.x
        ),
        "mouthRollLower": _field(0.0, 0.045 * low + 0.012 * r.lower, -0.045 * low - 0.012 * r.lower, r.x),
        "mouthRollUpper": _field(0.0, -0.040 * up, -0.040 * up - 0.008 * r.upper, r.x),
    }


def _one_sided(r: _Regions) -> dict[str, Array]:
    """Modes with a left and a right: displacement of both sides together."""
    out, brow = np.sign(r.x), r.front * smoothstep(np.nan_to_num(r.lid, nan=1.0), 0.2, 0.6)
    cheek = r.front * bump(r.x, r.y, (0.42, -0.28), (0.13, 0.12))
    inner, outer = bump(r.x, r.y, (0.13, 0.22), (0.11, 0.09)), bump(r.x, r.y, (0.44, 0.22), (0.12, 0.09))
    whole = bump(r.x, r.y, (0.26, 0.20), (0.20, 0.085))
    puff = r.front * r.depth * bump(r.x, r.y, (0.40, -0.56), (0.14, 0.15))
    below = r.front * r.depth * bump(r.x, r.y, (0.30, -0.72), (0.10, 0.09))
    press = r.mouth * np.exp(-0.5 * ((r.y - MOUTH_HEIGHT) / 0.06) ** 2)
    squeeze = np.where(r.in_patch, smoothstep(r.lip, 1.6, 0.8), 0.0) * r.depth
    return {
        "browDown": _field(-0.012 * out * brow * inner, -0.050 * brow * whole, 0.010 * brow * inner, r.x),
        "browInnerUp": _field(0.0, 0.062 * brow * inner, 0.0, r.x),
        "browOuterUp": _field(0.0, 0.055 * brow * outer, 0.0, r.x),
        "cheekPuff": _field(0.045 * out * puff, 0.0, 0.060 * puff, r.x),
        "eyeBlink": _blink(r, 1.07, 0.014),
        "eyeSquint": _blink(r, 0.14, 0.022) + _field(0.0, 0.015 * cheek, 0.010 * cheek, r.x),
        "eyeWide": _blink(r, -0.20, -0.010) + _field(0.0, 0.014 * brow * whole, 0.0, r.x),
        "mouthFrown": _field(0.008 * out * r.corner, -0.060 * r.corner - 0.015 * below, 0.0, r.x),
        "mouthLowerDown": _field(0.0, -0.085 * r.lower, -0.006 * r.lower, r.x),
        "mouthPress": _field(
            0.010 * out * r.corner, -0.020 * squeeze * np.sign(r.side) * np.abs(r.side), -0.022 * press, r.x
        ),
        "mouthSmile": _field(
            out * (0.070 * r.corner + 0.020 * cheek),
            0.062 * r.corner + 0.035 * cheek - 0.012 * r.upper + 0.006 * r.lower,
            -0.045 * r.corner + 0.028 * cheek - 0.012 * r.mouth,
            r.x,
        ),
        "mouthStretch": _field(
            out * (0.085 * r.corner + 0.03 * below),
            -0.018 * r.corner - 0.01 * below,
            -0.040 * r.corner - 0.01 * r.mouth,
            r.x,
        ),
        "mouthUpperUp": _field(0.0, 0.068 * r.upper, 0.004 * r.upper, r.x),
        "noseSneer": _field(
            0.0, r.front * 0.028 * bump(r.x, r.y, (0.12, -0.33), (0.07, 0.07)) + 0.018 * r.upper, 0.0, r.x
        ),
    }  # fmt: skip


def expressions(head: Part, teeth: Array) -> dict[str, Array]:
    """All modes by name, in alphabetical order; each (V,3). `teeth` (V,): 1 upper, -1 lower, 0 elsewhere."""
    regions = _Regions(head, teeth)
    modes = _mouth_shapes(regions)
    for name, field in _one_sided(regions).items():
        modes[f"{name}_L"] = regions.left[:, None] * field
        modes[f"{name}_R"] = (1.0 - regions.left)[:, None] * field
    return dict(sorted(modes.items()))
