"""Painted skin for models without colours: lips, brows, eyes, hair, mouth, and sliders that become albedo modes.

Everything is placed by the 68 landmarks and a few vertex masks and fades over smooth distances, so that no edge
follows a triangle. A `Look` is a set of standard-normal sliders; `paint` colours a mesh for one look, and
`albedo_modes` linearises `paint` around the mean look and adds the smoothest functions on the skin. Colours are
display RGB (sRGB-encoded), 0 to 1.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

import numpy as np

from common.face3d.mesh import (
    Array,
    Indices,
    Mask,
    adjacency,
    ambient_occlusion,
    curve_distance,
    laplacian_modes,
    signed_distance,
    smooth_curve,
)


@dataclass(frozen=True)
class Look:
    """Sliders of the painter; each is N(0,1) over people, and 0 is the mean."""

    tone: float = 0.0
    """Melanin: from light to dark."""
    undertone: float = 0.0
    """From cool to olive."""
    redness: float = 0.0
    """Of the whole skin."""
    blush: float = 0.0
    """Cheeks, nose and ears."""
    lip_depth: float = 0.0
    """From pale to dark lips."""
    lip_hue: float = 0.0
    """From brown to pink lips."""
    brow_depth: float = 0.0
    """From fair to dark brows."""
    brow_width: float = 0.0
    """From thin to bushy brows."""
    brow_height: float = 0.0
    """From low to high brows."""
    iris_hue: float = 0.0
    """From brown to blue eyes."""
    iris_depth: float = 0.0
    """From light to dark eyes."""
    lashes: float = 0.0
    """From no line to a dark line along the lids."""
    eye_shadow: float = 0.0
    """Dark rings around the eyes."""
    beard: float = 0.0
    """From a clean chin to stubble."""
    freckles: float = 0.0
    """From even to freckled cheeks."""
    hair_tone: float = 0.0
    """From dark to fair hair."""
    hairline: float = 0.0
    """From a low to a high forehead."""


@dataclass(frozen=True)
class Canvas:
    """A mesh with what the painter measures on it once: all arrays (V,) unless said; lengths in eye spans.

    An eye span is the distance between the outer eye corners (landmarks 36 and 45), about 0.9 dm.
    """

    points: Array
    """(V,3) vertices in eye spans, the origin between the eyes, z from the nose bridge."""
    landmarks: Array
    """(68,3) in the same frame."""
    regions: Mapping[str, Mask]
    occlusion: Array
    grain: Array
    """Fine noise, standard normal, the same for every mesh of that many vertices."""
    gaze: Array
    """Angle in radians from the nearer eyeball's axis, for the vertices of the eyeballs; pi elsewhere."""


SLIDERS = tuple(field.name for field in fields(Look))

_SKIN = np.array([0.77, 0.58, 0.48])
_LIP = np.array([0.66, 0.34, 0.33])
_INSIDE = {
    "mouth": (np.array([0.42, 0.16, 0.15]), 0.25),
    "gums": (np.array([0.68, 0.35, 0.34]), 0.3),
    "teeth": (np.array([0.88, 0.85, 0.79]), 0.45),
}
"""Parts of the mouth: colour, and the share of light that reaches their darkest places."""
_SCLERA = np.array([0.88, 0.85, 0.83])
_IRIS = np.array([0.36, 0.27, 0.20])
_PUPIL = np.array([0.03, 0.03, 0.03])
_HAIR = np.array([0.20, 0.14, 0.10])
IRIS_ANGLE, PUPIL_ANGLE = 0.40, 0.15
_REACH = 2.0


def prepare(
    vertices: Array, triangles: Indices, landmarks: Indices, regions: Mapping[str, Mask], opened: Array | None = None
) -> Canvas:
    """Measure a neutral, frontal mesh: vertices (V,3), triangles (F,3) counter-clockwise from outside, landmarks (68,)
    vertices. `opened` (V,3) is the same face with an open mouth, by which light falls into it.

    `regions` holds the masks `eyeball_left`, `eyeball_right`, `teeth`, `gums` and `mouth`; all else is skin.
    """
    corners = vertices[landmarks]
    origin = (corners[36] + corners[45]) / 2
    origin[2] = corners[27, 2]
    span = np.linalg.norm(corners[45] - corners[36])
    points = (vertices - origin) / span
    gaze = np.full(len(points), np.pi)
    for side in ("eyeball_left", "eyeball_right"):
        gaze[regions[side]] = _gaze(points[regions[side]])
    blur = adjacency(triangles, len(points))
    occlusion = ambient_occlusion(points, triangles)
    if opened is not None:
        lit = ambient_occlusion((opened - origin) / span, triangles)
        for region in _INSIDE:
            occlusion[regions[region]] = lit[regions[region]]
    return Canvas(
        points=points,
        landmarks=points[landmarks],
        regions=regions,
        occlusion=np.asarray((occlusion + blur @ occlusion) / 2),
        grain=np.random.default_rng(0).standard_normal(len(points)),
        gaze=gaze,
    )


def _gaze(ball: Array) -> Array:
    """Angle (N,) of an eyeball's vertices (N,3) from its axis: through its corneal bulge, else +z."""
    system = np.column_stack([2 * ball, np.ones(len(ball))])
    centre = np.linalg.lstsq(system, (ball**2).sum(1), rcond=None)[0][:3]
    arms = ball - centre
    reach = np.linalg.norm(arms, axis=1)
    bulge = np.maximum(reach / np.median(reach) - 1.02, 0)
    axis = bulge @ arms if bulge.sum() > 0.1 else np.array([0.0, 0.0, 1.0])
    return np.asarray(np.arccos(np.clip(arms @ axis / (reach * np.linalg.norm(axis)), -1, 1)))


def paint(canvas: Canvas, look: Look) -> Array:
    """Colours (V,3) of one look, display RGB, not clamped."""
    colour = _skin(canvas, look)
    colour = _blend(colour, _HAIR * (1 + 0.25 * look.hair_tone), _hair_cap(canvas, look))
    colour = _blend(colour, _HAIR * (0.85 - 0.2 * look.brow_depth), _brows(canvas, look))
    colour = _lips(canvas, look, colour)
    colour = _blend(colour, np.array([0.10, 0.07, 0.06]), _lash_line(canvas, look))
    colour = _blend(colour, np.array([0.16, 0.07, 0.06]), _nostrils(canvas))
    shade = 0.45 + 0.55 * canvas.occlusion
    for region, (inside_colour, darkest) in _INSIDE.items():
        inside = canvas.regions[region]
        colour[inside] = inside_colour
        shade[inside] = np.minimum(1, darkest + canvas.occlusion[inside] * 1.6)
    eyes = canvas.gaze < np.pi
    colour[eyes] = _eyes(canvas, look)[eyes]
    shade[eyes] = 0.55 + 0.45 * canvas.occlusion[eyes]
    return np.asarray(colour * shade[:, None])


def _blend(below: Array, above: Array, weight: Array) -> Array:
    """Lay `above` over `below` (V,3) with opacity (V,) in [0,1]."""
    return np.asarray(below + weight[:, None] * (above - below))


def _fade(value: Array, start: float, stop: float) -> Array:
    """Smooth step: 0 up to `start`, 1 from `stop` on (falling where stop < start)."""
    t = np.clip((value - start) / (stop - start), 0, 1)
    return np.asarray(t * t * (3 - 2 * t))


def _spot(canvas: Canvas, centre: Array, radius: float) -> Array:
    """Gaussian around a point, `radius` its standard deviation in eye spans."""
    return np.asarray(np.exp(-((canvas.points - centre) ** 2).sum(1) / (2 * radius**2)))


def _skin(canvas: Canvas, look: Look) -> Array:
    """Base colour with tone, blush, eye shadow, beard shadow and freckles."""
    marks = canvas.landmarks
    red = np.array([0.35, 1.0, 0.85])  # haemoglobin absorbs green and blue
    cheeks, rings = np.zeros(len(canvas.points)), np.zeros(len(canvas.points))
    for corners, eye in (((41, 31, 3), slice(36, 42)), ((46, 35, 13), slice(42, 48))):
        cheeks += _spot(canvas, marks[list(corners)].mean(0), 0.16)
        rings += _spot(canvas, marks[eye].mean(0) - [0, 0.06, 0], 0.11)
    tip = _spot(canvas, marks[30], 0.11)
    flush = 0.05 * look.redness + (0.10 + 0.09 * look.blush) * (cheeks + 0.8 * tip)
    melanin = np.array([0.11, 0.16, 0.19]) * look.tone + np.array([0.0, -0.006, 0.03]) * look.undertone
    speckle = (0.08 + 0.08 * look.freckles) * (cheeks + tip) * np.clip(canvas.grain - 0.4, -0.5, 1.5)
    depth = melanin + np.outer(flush, red) + np.outer(0.01 * canvas.grain + 0.6 * speckle, [0.5, 0.8, 1.0])
    depth += np.outer(0.10 + 0.08 * look.eye_shadow, [0.9, 1.0, 0.8]) * rings[:, None]
    depth += np.outer(max(0.0, 0.10 + 0.11 * look.beard) * _beard(canvas), [1.1, 1.0, 0.85])
    return np.asarray(_SKIN * np.exp(-depth))


def _beard(canvas: Canvas) -> Array:
    """Where a beard grows: below the cheekbones and the nose, over jaw, chin and upper lip, fading down the neck."""
    marks = canvas.landmarks
    jaw = smooth_curve(np.concatenate([marks[3:14]]), closed=False)
    lip = smooth_curve(marks[[31, 48, 57, 54, 35]], closed=True)
    chin = _fade(curve_distance(canvas.points, jaw)[0], 0.40, 0.05)
    lips = 0.9 * _fade(curve_distance(canvas.points, lip)[0], 0.30, 0.02)
    below_nose = _fade(canvas.points[:, 1], marks[33, 1] + 0.05, marks[33, 1] - 0.09)
    either = chin + lips - chin * lips
    return np.asarray(either * below_nose * _fade(canvas.points[:, 2], -0.9, -0.55) * (1 + 0.08 * canvas.grain))


def _hair_cap(canvas: Canvas, look: Look) -> Array:
    """Close-cropped hair: above a line from the forehead over the temples and the ears down to the nape."""
    x, y, z = canvas.points.T
    brow, (_, ear, side) = canvas.landmarks[19, 1], canvas.landmarks[0]
    forehead = brow + 0.50 - 0.35 * x**2
    around = [side - 0.85, side - 0.62, side - 0.55, side + 0.05, side + 0.30]  # nape, behind the ear, over it, temple
    flank = np.interp(z, around, [ear - 0.7, ear - 0.35, ear + 0.07, ear + 0.12, brow + 0.25])
    blend = _fade(z, side + 0.35, side + 0.10)
    line = forehead * (1 - blend) + np.minimum(forehead, flank) * blend
    return 0.92 * _fade(y - line - 0.015 * look.hairline + 0.012 * canvas.grain, -0.05, 0.05)


def _brows(canvas: Canvas, look: Look) -> Array:
    """Tapered strokes along landmarks 17-21 and 22-26, denser towards the nose."""
    weight = np.zeros(len(canvas.points))
    facing = _fade(canvas.points[:, 2], -0.6, -0.4)
    for row in (range(17, 22), range(26, 21, -1)):
        curve = smooth_curve(canvas.landmarks[list(row)][:, :2], closed=False)
        curve[:, 1] += 0.006 * look.brow_height - 0.035
        distance, place = curve_distance(canvas.points[:, :2], curve)
        half = np.interp(place, [0, 0.35, 0.8, 1], [0.010, 0.030, 0.042, 0.036]) * (1.1 + 0.12 * look.brow_width)
        density = np.interp(place, [0, 0.2, 0.8, 1], [0.5, 0.9, 0.9, 0.7])
        weight = np.maximum(weight, density * _fade(distance / half, 1.5, 0.4))
    return weight * facing


def _lips(canvas: Canvas, look: Look, below: Array) -> Array:
    """Vermilion inside the outer lip line (48-59), darker towards the inner one (60-67)."""
    outer = smooth_curve(canvas.landmarks[48:60][:, :2], closed=True)
    near = canvas.points[:, 2] > canvas.landmarks[48:60, 2].min() - 0.25
    weight, wet = np.zeros(len(below)), np.zeros(len(below))
    weight[near] = _fade(signed_distance(canvas.points[near, :2], outer), 0.009, -0.011)
    inner = smooth_curve(canvas.landmarks[60:68], closed=True)
    wet[near] = _fade(curve_distance(canvas.points[near], inner)[0], 0.05, 0.0)
    depth = np.array([0.10, 0.14, 0.12]) * look.lip_depth + np.array([0.04, -0.02, -0.06]) * look.lip_hue
    depth = depth + 0.6 * np.array([0.12, 0.17, 0.20]) * look.tone + np.outer(0.45 * wet, [0.8, 1.0, 1.0])
    return _blend(below, _LIP * np.exp(-depth), weight)


def _lash_line(canvas: Canvas, look: Look) -> Array:
    """A dark rim along the lids, stronger above; on the skin only."""
    weight = np.zeros(len(canvas.points))
    for first in (36, 42):
        marks = canvas.landmarks[first : first + 6]
        rim = smooth_curve(marks, closed=True)
        distance, place = curve_distance(canvas.points, rim)
        upper = _fade(np.cos(2 * np.pi * (place - 0.22)), -0.3, 0.6)
        weight = np.maximum(weight, (0.35 + 0.5 * upper) * np.exp(-((distance / (0.016 + 0.012 * upper)) ** 2)))
    return np.asarray(np.clip(weight * (0.9 + 0.15 * look.lashes), 0, 1))


def _nostrils(canvas: Canvas) -> Array:
    """The occluded hollows above the nose base (landmarks 31-35) are dark."""
    weight = np.zeros(len(canvas.points))
    for wing in (31, 35):
        centre = (canvas.landmarks[wing] + canvas.landmarks[33]) / 2 + [0, 0.08, -0.02]
        weight = np.maximum(weight, _fade(_spot(canvas, centre, 0.06), 0.05, 0.5))
    return 0.85 * weight * _fade(canvas.occlusion, 0.30, 0.05)


def _eyes(canvas: Canvas, look: Look) -> Array:
    """Sclera, iris with a dark ring and pupil, by the angle from the eyeball's axis."""
    angle = canvas.gaze
    depth = np.array([0.18, 0.02, -0.22]) * look.iris_hue + 0.22 * look.iris_depth
    fibres = 1 + 0.08 * canvas.grain[:, None]
    iris = _IRIS * np.exp(-depth) * fibres * (0.55 + 0.45 * _fade(angle, IRIS_ANGLE, 0.7 * IRIS_ANGLE))[:, None]
    colour = _blend(np.broadcast_to(_SCLERA, iris.shape), iris, _fade(angle, IRIS_ANGLE + 0.04, IRIS_ANGLE - 0.04))
    return _blend(colour, _PUPIL, _fade(angle, PUPIL_ANGLE + 0.04, PUPIL_ANGLE - 0.04))


def albedo_modes(canvas: Canvas, triangles: Indices, *, smooth: int = 10) -> tuple[Array, Array]:
    """Mean colours (V,3) and albedo modes (K,V,3) for coefficients N(0,1), K = len(SLIDERS) + 2 smooth.

    First the sliders of `Look` in order, each the straight line between its looks at -2 and +2 (so that an edge that
    moves neither overshoots nor leaves a halo within that range); then `smooth` Laplacian eigenfunctions of the skin,
    once in lightness and once in redness, with falling strength.
    """
    base = paint(canvas, Look())
    mean, modes = base.copy(), []
    for name in SLIDERS:
        low, high = (paint(canvas, replace(Look(), **{name: value})) for value in (-_REACH, _REACH))
        mean += (low + high) / 2 - base
        modes.append((high - low) / (2 * _REACH))
    skin = canvas.gaze == np.pi
    for region in _INSIDE:
        skin &= ~canvas.regions[region]
    waves = laplacian_modes(canvas.points, triangles, skin, smooth)
    waves *= (0.035 / np.sqrt(1 + np.arange(smooth) / 2))[:, None]
    axes = (np.array([1.0, 1.0, 1.0]), np.array([0.3, -0.2, -0.2]))
    return mean, np.concatenate([np.stack(modes), *(waves[:, :, None] * axis * mean for axis in axes)])
