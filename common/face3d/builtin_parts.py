"""What the built-in head carries besides its skin: eyeballs, teeth, ears and long hair, each for the +x side."""

import numpy as np

from common.face3d import builtin_surface as surface
from common.face3d.builtin_mesh import Part, strips
from common.face3d.builtin_surface import Array

PUPIL_RADIUS = 0.023
IRIS_RADIUS = 0.060
_EYE_RINGS = (0.010, 0.0215, 0.0245, 0.032, 0.040, 0.048, 0.0545, 0.0585, 0.0625, 0.070, 0.085, 0.105, 0.13, 0.155)
_EYE_COLUMNS = 28
_UPPER_TEETH = (0.084, 0.066, 0.076, 0.068, 0.066, 0.09)
_LOWER_TEETH = (0.054, 0.058, 0.066, 0.068, 0.068, 0.10)
"""Widths from the middle outwards along the arch."""


def eyeball() -> Part:
    """Closed ellipsoid around EYE_CENTRE with circular rings on the borders of pupil and iris.

    Values `iris`: distance from the axis of sight (front half; large behind), and `iris_angle`.
    """
    angle = np.arange(_EYE_COLUMNS) * (2 * np.pi / _EYE_COLUMNS)
    circle = np.stack([np.cos(angle), np.sin(angle)], 1)
    offsets = np.concatenate([radius * circle for radius in _EYE_RINGS])
    # beyond the iris the rings flatten with the ellipsoid
    squash = surface.EYE_RADII[1] / surface.EYE_RADII[0]
    outer = np.repeat(surface.smoothstep(np.array(_EYE_RINGS), 0.065, 0.13), _EYE_COLUMNS)
    offsets[:, 1] *= 1.0 - outer * (1.0 - squash)
    x, y = (surface.EYE_CENTRE[:2] + offsets).T
    front = np.stack([x, y, surface.eyeball_depth(x, y, 0.0)], 1)
    polar = np.array([np.pi / 2, 2.2])
    behind = [np.column_stack([np.sin(p) * circle, np.full(_EYE_COLUMNS, np.cos(p))]) for p in polar]
    ends = surface.EYE_CENTRE + surface.EYE_RADII * np.array([[0.0, 0.0, 1.0], [0.0, 0.0, -1.0]])
    rear = surface.EYE_CENTRE + surface.EYE_RADII * np.concatenate(behind)
    vertices = np.concatenate([ends[:1], front, rear, ends[1:]])
    rings = len(_EYE_RINGS) + len(polar)
    column = np.arange(_EYE_COLUMNS)
    after = (column + 1) % _EYE_COLUMNS
    last = 1 + _EYE_COLUMNS * (rings - 1)
    triangles = np.concatenate(
        [
            np.stack([np.zeros_like(column), 1 + column, 1 + after], 1),
            strips(rings, _EYE_COLUMNS, closed=True)[:, ::-1] + 1,
            np.stack([np.full_like(column, len(vertices) - 1), last + after, last + column], 1),
        ]
    )
    distance = np.concatenate([[0.0], np.repeat(_EYE_RINGS, _EYE_COLUMNS), np.ones(len(rear) + 1)])
    angles = np.concatenate([[0.0], np.tile(angle, rings), [0.0]])
    return Part(vertices, triangles, {"iris": distance, "iris_angle": angles})


def _arch(widths: tuple[float, ...], front: float, curve: float) -> tuple[Array, Array, Array]:
    """Columns along half a dental arch, five per tooth: x, z, and closeness (0..1) to a gap between teeth."""
    edges = np.concatenate([[0.0], np.cumsum(widths)])
    where = np.array([0.0, 0.10, 0.35, 0.65, 0.90])
    length = np.concatenate([edges[:-1, None] + where * np.diff(edges)[:, None]]).ravel()
    gap = np.tile([1.0, 0.35, 0.0, 0.0, 0.35], len(widths))
    x = np.interp(length, _arc_lengths(curve), _ARCH_X)
    return x, front - curve * x**2 - 14.0 * x**4 - 0.014 * gap, gap


_ARCH_X = np.linspace(0.0, 0.40, 200)


def _arc_lengths(curve: float) -> Array:
    depth = curve * _ARCH_X**2 + 14.0 * _ARCH_X**4
    steps = np.hypot(np.diff(_ARCH_X), np.diff(depth))
    return np.concatenate([[0.0], np.cumsum(steps)])


def _teeth(widths: tuple[float, ...], front: float, edge: float, sign: float) -> Part:
    """One half row: gum, tooth fronts and the edge's back; `sign` 1 for teeth that grow down from the gum."""
    x, z, gap = _arch(widths, front, 1.2)
    rows = []
    # height above the biting edge, setback, gum share, how much the gap rounds the row
    for height, setback, round_off in (
        (0.165, 0.080, 0.0),
        (0.135, 0.012, 0.0),
        (0.118, 0.004, -0.03),
        (0.108, 0.002, -0.03),
        (0.060, 0.000, 0.0),
        (0.015, 0.004, 0.012),
        (0.000, 0.016, 0.016),
        (0.030, 0.050, 0.0),
    ):
        rows.append(np.stack([x, edge + sign * (height + round_off * gap), z - setback], 1))
    triangles = strips(len(rows), len(x), closed=False)
    if sign > 0:
        triangles = triangles[:, ::-1]
    gum = np.repeat([1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0], len(x))
    tooth = np.repeat([0.0, 0.0, 0.0, 0.1, 0.5, 0.9, 1.0, 1.0], len(x))
    values = {"gum": gum, "tooth": tooth, "gap": np.tile(gap, len(rows)), "back": np.tile(x, len(rows))}
    return Part(np.concatenate(rows), triangles, values)


def upper_teeth() -> Part:
    """Half of the upper row, its edge a little below the line of the lips; values gum, tooth, gap, back (x)."""
    return _teeth(_UPPER_TEETH, 0.842, surface.MOUTH_HEIGHT - 0.036, 1.0)


def lower_teeth() -> Part:
    """Half of the lower row, behind the upper; values as for the upper."""
    return _teeth(_LOWER_TEETH, 0.815, surface.MOUTH_HEIGHT - 0.022, -1.0)


def ear() -> Part:
    """Simple outer ear at the side of the head: helix, antihelix, concha, lobe.

    Values `ear`: 0 at the middle, 1 at the rim; `ear_hollow`: how deep in the concha (0..1).
    """
    columns, radii = 24, np.array([0.18, 0.34, 0.48, 0.60, 0.70, 0.79, 0.87, 0.94, 1.0, 1.03, 0.98])
    angle = np.arange(columns) * (2 * np.pi / columns)
    c, s = np.cos(angle), np.sin(angle)
    # egg: wide at the top, narrow at the lobe; angle 0 points to the back of the head, 90 degrees up
    outline_h = 0.170 * c * (1.0 + 0.28 * s)
    outline_v = 0.305 * s
    h = np.append(0.0, np.outer(radii, outline_h))
    v = np.append(0.0, np.outer(radii, outline_v))
    r = np.concatenate([[0.0], np.repeat(radii, columns)])
    s_all = np.concatenate([[0.0], np.tile(s, len(radii))])
    c_all = np.concatenate([[0.0], np.tile(c, len(radii))])
    behind = np.concatenate([np.zeros(1 + 9 * columns), np.full(columns, 0.35), np.ones(columns)])
    upper = surface.smoothstep(s_all, -0.75, -0.2)
    helix = 0.030 * np.exp(-0.5 * ((r - 0.94) / 0.075) ** 2) * np.maximum(upper, 0.3)
    antihelix = 0.022 * np.exp(-0.5 * ((r - 0.62) / 0.10) ** 2) * upper * surface.smoothstep(c_all, -0.5, 0.3)
    hollow = np.exp(-0.5 * (((h + 0.02) / 0.062) ** 2 + ((v + 0.03) / 0.10) ** 2))
    height = helix + antihelix - 0.055 * hollow - 0.16 * behind
    tilt, flare = 0.16, 0.42
    up = np.array([0.0, np.cos(tilt), -np.sin(tilt)])
    back = np.array([np.sin(flare), -np.cos(flare) * np.sin(tilt), -np.cos(flare) * np.cos(tilt)])
    normal = np.cross(up, back) * -1.0
    vertices = np.array([0.775, -0.02, -0.10]) + h[:, None] * back + v[:, None] * up + height[:, None] * normal
    column = np.arange(columns)
    fan = np.stack([np.zeros_like(column), 1 + column, 1 + (column + 1) % columns], 1)
    triangles = np.concatenate([fan, strips(len(radii), columns, closed=True)[:, ::-1] + 1])
    return Part(vertices, triangles, {"ear": r, "ear_hollow": hollow * (behind == 0)})


def hair_curtain() -> Part:
    """Long hair around the back of the neck, in the mean head hidden inside the neck; value `curtain`: 0 top, 1 end."""
    columns, rows = 13, 8
    angle, level = np.linspace(np.radians(94.0), np.pi, columns), np.linspace(0.0, 1.0, rows)
    c, s = np.cos(angle), np.where(angle == np.pi, 0.0, np.sin(angle))
    height = 0.05 - 1.65 * level[:, None] + 0.05 * np.cos(7.0 * angle) * level[:, None]
    outside = np.stack([0.36 * s + 0.0 * height, height, -0.25 + 0.36 * c + 0.0 * height], -1).reshape(-1, 3)
    # two faces that meet at the side edge
    thickness = 0.01 * (angle > angle[0])[:, None] * np.stack([s, 0.0 * s, c], 1)
    inside = outside - np.tile(thickness, (rows, 1))
    # rows go down and columns from the side to the back: seen from outside the next row is on the right
    triangles = strips(rows, columns, closed=False)
    both = np.concatenate([triangles[:, ::-1], triangles + len(outside)])
    return Part(np.concatenate([outside, inside]), both, {"curtain": np.tile(np.repeat(level, columns), 2)})


def with_hair_volume(skin: Part) -> Part:
    """The skin (half or whole) with the scalp raised to the surface of short hair."""
    outward = skin.vertices - (0.0, 0.1, -0.1)
    outward /= np.linalg.norm(outward, axis=1)[:, None]
    raised = 0.085 * surface.smoothstep(surface.above_hairline(skin.vertices), -0.02, 0.28)
    # short around the ears
    ear = (skin.vertices - (0.0, 0.05, -0.12)) / (1e3, 0.34, 0.30)
    raised *= 1.0 - 0.8 * np.exp(-(ear**2).sum(1)) * (np.abs(skin.vertices[:, 0]) > 0.4)
    return Part(skin.vertices + raised[:, None] * outward, skin.triangles, skin.values)
