"""Colours of the built-in head: materials mixed per vertex, and modes that shift the materials.

A vertex is a mixture of materials (weights that sum to 1) under a baked shadow; the colour of a material is its mean
plus what the modes add, so that the albedo is linear in the coefficients. All colours are display RGB in [0,1].
"""

import numpy as np

from common.face3d import builtin_surface as surface
from common.face3d.builtin_mesh import Part
from common.face3d.builtin_parts import IRIS_RADIUS, PUPIL_RADIUS
from common.face3d.builtin_surface import Array, above_hairline, bump, smoothstep

MATERIALS: dict[str, tuple[float, float, float]] = {
    "skin": (0.735, 0.548, 0.455),
    "lips": (0.640, 0.360, 0.335),
    "hair": (0.185, 0.130, 0.098),
    "brow": (0.205, 0.145, 0.110),
    "lash": (0.120, 0.085, 0.075),
    "sclera": (0.860, 0.840, 0.825),
    "iris": (0.330, 0.270, 0.210),
    "dark": (0.025, 0.020, 0.020),
    "light": (1.0, 1.0, 1.0),
    "flesh": (0.560, 0.230, 0.215),
    "tooth": (0.890, 0.865, 0.800),
}


def waves(points: Array, seed: int, count: int, scale: float) -> Array:
    """Smooth random field (n,), about N(0,1), of points (n,3): `count` plane waves of length about `scale` dm."""
    generator = np.random.default_rng(seed)
    direction = generator.normal(size=(3, count)) * (2 * np.pi / scale / np.sqrt(3))
    phase = generator.uniform(0, 2 * np.pi, count)
    return np.sin(points @ direction + phase).sum(1) * np.sqrt(2.0 / count)


def brow_weight(x: Array, y: Array, thickness: float = 1.0) -> Array:
    """How much of a point of the face (x, y) the brow covers, 0..1."""
    u = np.clip((np.abs(x) - 0.105) / 0.435, -0.3, 1.3)
    middle = 0.200 + 0.082 * u - 0.115 * np.maximum(u - 0.55, 0.0) ** 1.5 * 2.2
    half = thickness * (0.030 - 0.020 * smoothstep(u, 0.35, 1.05))
    across = smoothstep(np.abs(y - middle) / half, 1.35, 0.35)
    along = smoothstep(u, -0.07, 0.10) * smoothstep(u, 1.05, 0.80)
    return across * along


def beard_area(x: Array, y: Array) -> Array:
    """Where a beard grows on chin and jaw, 0..1."""
    line = np.interp(np.abs(x), [0.0, 0.2, 0.4, 0.6], [-0.78, -0.72, -0.52, -0.25])
    return smoothstep(y, line + 0.08, line - 0.10) * smoothstep(y, -1.22, -1.05)


def material_weights(head: Part) -> dict[str, Array]:
    """Share of each material (V,) per vertex of the joined head; they sum to 1."""
    points, value = head.vertices, head.values
    x, y, z = points.T
    layers: list[tuple[str, Array]] = []
    front = smoothstep(z, 0.2, 0.4)
    strands = waves(points * (6.0, 0.7, 2.0), 3, 24, 0.5)
    scalp = smoothstep(above_hairline(points) + 0.014 * strands, -0.035, 0.035) * np.isnan(value["ear"])
    layers.append(("hair", np.where(value["curtain"] >= 0, 1.0, scalp)))
    tufts = 1.0 + 0.10 * waves(points * (3.0, 1.0, 0.0), 5, 24, 0.10)
    layers.append(("brow", 0.86 * front * np.clip(brow_weight(x, y) * tufts, 0, 1)))
    lip = value["lip"]
    layers.append(("lips", smoothstep(lip, 1.05, 0.93)))
    layers.append(("flesh", smoothstep(lip, -0.2, -1.5)))
    layers.append(("dark", 0.90 * smoothstep(lip, -2.5, -5.5)))
    lid, upper = value["lid"], np.sin(value["lid_angle"]) > -0.05
    # no lashes at the inner corner, where the pink caruncle shows
    inner = smoothstep(np.cos(value["lid_angle"]), -0.80, -0.95)
    lash = np.where(upper, 0.95 * smoothstep(lid, 0.075, 0.0), 0.42 * smoothstep(lid, 0.06, 0.0))
    rim = lid < -0.5
    layers.append(("lash", np.where(rim, np.where(upper, 0.9, 0.1), lash) * (1.0 - inner)))
    layers.append(("flesh", np.where(rim, np.maximum(np.where(upper, 0.0, 0.55), 0.8 * inner), 0.0)))
    iris = value["iris"]
    layers.append(("sclera", (iris >= 0).astype(float)))
    layers.append(("iris", smoothstep(iris, IRIS_RADIUS + 0.003, IRIS_RADIUS - 0.002)))
    layers.append(("dark", 0.62 * np.exp(-0.5 * ((iris - IRIS_RADIUS + 0.001) / 0.0045) ** 2)))
    layers.append(("dark", smoothstep(iris, PUPIL_RADIUS + 0.002, PUPIL_RADIUS - 0.001)))
    glint = np.hypot(np.abs(x) - surface.EYE_CENTRE[0] + 0.020 * np.sign(x), y - surface.EYE_CENTRE[1] - 0.022)
    layers.append(("light", np.where(iris >= 0, smoothstep(glint, 0.017, 0.006), 0.0)))
    layers.append(("tooth", (value["tooth"] >= 0).astype(float)))
    layers.append(("flesh", np.nan_to_num(value["gum"])))
    weights: dict[str, Array] = {name: np.zeros(len(points)) for name in MATERIALS}
    weights["skin"][:] = 1.0
    for name, cover in layers:
        cover = np.clip(np.nan_to_num(cover), 0.0, 1.0)
        for key in weights:
            weights[key] *= 1.0 - cover
        weights[name] += cover
    return weights


def shadow(head: Part) -> Array:
    """Baked occlusion (V,3), a factor per channel: warm in thin skin, neutral elsewhere."""
    value = head.values
    x, y, z = head.vertices.T
    face = smoothstep(z, 0.2, 0.4) * np.isnan(value["iris"]) * np.isnan(value["tooth"])
    depth = 0.80 * bump(x, y, (0.068, -0.405), (0.027, 0.013), 0.2)
    depth += 0.22 * bump(x, y, (0.0, -0.43), (0.10, 0.022)) + 0.13 * bump(x, y, (0.195, -0.375), (0.016, 0.05), -0.1)
    depth += 0.20 * bump(x, y, (0.0, -0.775), (0.12, 0.028)) + 0.22 * bump(x, y, (0.262, -0.628), (0.022, 0.020))
    depth += 0.17 * bump(x, y, (0.17, 0.045), (0.035, 0.06)) + 0.10 * bump(x, y, (0.30, 0.13), (0.13, 0.025))
    depth += 0.08 * bump(x, y, (0.265, -0.48), (0.018, 0.09), 0.5) + 0.08 * bump(x, y, (0.28, -0.06), (0.10, 0.025))
    depth *= face
    depth += np.nan_to_num(0.55 * np.exp(-0.5 * (value["lip"] / 0.09) ** 2))
    crease = np.exp(-0.5 * ((value["lid"] - 0.245) / 0.035) ** 2) * np.maximum(np.sin(value["lid_angle"]), 0) ** 0.5
    depth += np.nan_to_num(0.26 * crease)
    depth += np.nan_to_num(0.55 * value["ear_hollow"])
    eye = np.where(value["iris"] >= 0, smoothstep(y - surface.EYE_CENTRE[1], 0.015, 0.060), 0.0)
    corner = np.where(value["iris"] >= 0, smoothstep(value["iris"], 0.09, 0.16), 0.0)
    depth += 0.42 * eye + 0.35 * corner
    depth += np.nan_to_num(0.45 * value["gap"] * (value["gum"] < 0.5) + 0.75 * smoothstep(value["back"], 0.06, 0.26))
    under = smoothstep(y, -1.02, -1.25) * np.isnan(value["ear"])
    depth += 0.22 * under
    dark = np.clip(depth, 0.0, 0.93)[:, None]
    return 1.0 - dark * np.array([0.88, 1.0, 1.0])


def mean_albedo(head: Part) -> Array:
    """Colours (V,3) of the mean head."""
    weights = material_weights(head)
    colour = sum(weights[name][:, None] * np.array(rgb) for name, rgb in MATERIALS.items())
    return np.clip((colour + sum_tints(head, weights)) * shadow(head), 0.0, 1.0)


def sum_tints(head: Part, weights: dict[str, Array]) -> Array:
    """What the mean head adds to the plain materials (V,3): blush, thin skin, strands, the iris's rays."""
    x, y, z = head.vertices.T
    face = weights["skin"] * smoothstep(z, 0.2, 0.4)
    ears = weights["skin"] * ~np.isnan(head.values["ear"])
    red = 0.9 * bump(x, y, (0.42, -0.22), (0.16, 0.13)) + 0.9 * bump(x, y, (0.0, -0.31), (0.09, 0.06))
    red = face * (red + 0.5 * bump(x, y, (0.0, -0.96), (0.14, 0.08))) + 1.1 * ears
    tint = red[:, None] * np.array([0.015, -0.024, -0.020])
    eyes = face * bump(x, y, (0.30, 0.03), (0.15, 0.11))
    tint += eyes[:, None] * np.array([-0.045, -0.055, -0.040])
    tint += (face * beard_area(x, y))[:, None] * np.array([-0.050, -0.040, -0.028])
    strands = waves(head.vertices * (6.0, 0.7, 2.0), 7, 24, 0.45)
    tint += (weights["hair"] * strands)[:, None] * np.array([0.040, 0.031, 0.024])
    rays = np.nan_to_num(np.sin(7.0 * head.values["iris_angle"]) + np.sin(4.0 * head.values["iris_angle"] + 1.0))
    inner = np.nan_to_num(smoothstep(head.values["iris"], 0.050, 0.028))
    tint += (weights["iris"] * (0.25 * rays + 1.2 * inner))[:, None] * np.array([0.060, 0.050, 0.035])
    return tint


def _shift(**materials: tuple[float, float, float]) -> dict[str, tuple[float, float, float]]:
    """What one unit of a mode adds to the colours of the named materials."""
    return materials


MATERIAL_MODES: dict[str, dict[str, tuple[float, float, float]]] = {
    "skin tone": _shift(skin=(0.105, 0.105, 0.100), lips=(0.070, 0.055, 0.052), flesh=(0.02, 0.01, 0.01)),
    "hair lightness": _shift(hair=(0.135, 0.108, 0.070), brow=(0.075, 0.058, 0.036), lash=(0.01, 0.008, 0.004)),
    "brow darkness": _shift(brow=(-0.085, -0.075, -0.065)),
    "lip darkness": _shift(lips=(-0.042, -0.038, -0.034)),
    "skin redness": _shift(skin=(0.008, -0.012, -0.012), lips=(0.014, -0.008, -0.006)),
    "iris lightness": _shift(iris=(0.045, 0.070, 0.085)),
    "skin warmth": _shift(skin=(0.005, 0.003, -0.009), lips=(0.004, 0.002, -0.006)),
    "hair redness": _shift(hair=(0.028, 0.006, -0.004), brow=(0.016, 0.003, -0.003)),
    "hair ashiness": _shift(hair=(-0.010, 0.002, 0.016), brow=(-0.004, 0.001, 0.008)),
    "lip redness": _shift(lips=(0.022, -0.026, -0.016)),
    "iris warmth": _shift(iris=(0.050, 0.020, -0.030)),
    "lash darkness": _shift(lash=(-0.05, -0.04, -0.04), sclera=(0.012, 0.010, 0.010)),
}
"""Modes that shift the colour of a material, per unit coefficient; those that show most come first."""


def _skin_fields(head: Part, weights: dict[str, Array]) -> dict[str, Array]:
    """Modes that paint the skin: each (V,3) per unit coefficient."""
    x, y, z = head.vertices.T
    face = weights["skin"] * np.isnan(head.values["ear"]) * smoothstep(z, 0.1, 0.4)
    grain = 1.0 + 0.15 * waves(head.vertices, 11, 40, 0.06)
    hairy = np.array([-0.050, -0.042, -0.032])
    thick = brow_weight(x, y, 1.5) - brow_weight(x, y, 0.8)
    speckle = np.maximum(waves(head.vertices, 13, 60, 0.085) - 0.4, 0.0)
    nose_cheeks = bump(x, y, (0.26, -0.14), (0.26, 0.14)) * (1 - bump(x, y, (0.31, 0.03), (0.13, 0.07)))
    eyes = bump(x, y, (0.30, 0.12), (0.14, 0.035))
    bags = bump(x, y, (0.27, -0.055), (0.11, 0.035))
    blush = bump(x, y, (0.42, -0.22), (0.13, 0.10))
    nose = bump(x, y, (0.0, -0.31), (0.10, 0.07))
    paint = {
        "beard": (beard_area(x, y) * grain, hairy),
        "moustache": (bump(x, y, (0.10, -0.490), (0.11, 0.045)) * grain, hairy),
        "brow thickness": (thick, np.array([-0.16, -0.14, -0.12])),
        "freckles": (speckle * nose_cheeks, np.array([-0.017, -0.020, -0.017])),
        "eye shadow": (eyes, np.array([-0.030, -0.036, -0.028])),
        "eye bags": (bags, np.array([-0.028, -0.030, -0.020])),
        "blush": (blush, np.array([0.008, -0.018, -0.016])),
        "red nose": (nose, np.array([0.006, -0.016, -0.015])),
    }
    fields = {name: (face * where)[:, None] * colour for name, (where, colour) in paint.items()}
    for index, scale in enumerate((0.9, 0.5, 0.3)):
        pattern = weights["skin"] * waves(head.vertices, 17 + index, 30, scale)
        fields[f"texture {index + 1}"] = pattern[:, None] * np.array([0.008, 0.009, 0.008])
    strands = weights["hair"] * waves(head.vertices * (3.0, 0.6, 1.5), 29, 30, 0.5)
    fields["hair streaks"] = strands[:, None] * np.array([0.035, 0.028, 0.020])
    return fields


def albedo_modes(head: Part) -> dict[str, Array]:
    """All albedo modes by name, each (V,3) per unit coefficient."""
    weights = material_weights(head)
    modes = {
        name: sum((weights[key][:, None] * np.array(rgb) for key, rgb in shift.items()), np.zeros((1, 3)))
        for name, shift in MATERIAL_MODES.items()
    }
    shade = shadow(head)
    return {name: shade * field for name, field in (modes | _skin_fields(head, weights)).items()}
