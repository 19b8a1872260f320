"""The built-in morphable head: a plausible human head authored by code alone, with no data files and no licence.

Head, neck and hair are one closed surface with real eye and mouth openings over eyeballs, a mouth cavity and teeth.
Decimetres, x image right, y up, nose towards +z, origin in the middle of the head.
"""

import numpy as np
import torch
from torch import Tensor

from common.face3d import builtin_mesh as mesh
from common.face3d import builtin_parts as parts
from common.face3d import builtin_surface as surface
from common.face3d.builtin_albedo import (
    albedo_modes,
    brow_weight,
    mean_albedo,
)
from common.face3d.builtin_expression import expressions
from common.face3d.builtin_identity import identities
from common.face3d.builtin_mesh import Indices, Part
from common.face3d.builtin_surface import Array, above_hairline
from common.face3d.morphable import FaceModel

ORIGIN = np.array([0.0, -0.31, 0.0])
"""The point of the authored head that becomes the origin: half way between eyes and mouth, as in BFM and ICT."""
PARTS = ("skin", "eyeballs", "upper_teeth", "lower_teeth", "ears", "long_hair")


def build() -> FaceModel:
    """The built-in head as a `FaceModel` named "builtin"; deterministic, float32, on the CPU.

    Identity and albedo coefficients are N(0,1), plausible up to |c| = 2.5; expression coefficients are weights in
    [0,1]. Regions: skin, face, eyeballs, upper_teeth, lower_teeth, ears, teeth, mouth_cavity, upper_lip, lower_lip,
    lips, hair, neck, brows, irises.
    """
    head = _assemble()
    part = head.values["part"]
    teeth = np.where(part == PARTS.index("upper_teeth"), 1.0, np.where(part == PARTS.index("lower_teeth"), -1.0, 0.0))
    expression = expressions(head, teeth)
    identity = identities(head, expression["eyeBlink_L"] + expression["eyeBlink_R"])
    return FaceModel(
        mean_shape=_tensor(head.vertices - ORIGIN),
        identity_basis=_tensor(np.stack(list(identity.values()))),
        expression_basis=_tensor(np.stack(list(expression.values()))),
        mean_albedo=_tensor(mean_albedo(head)),
        albedo_basis=_tensor(np.stack(list(albedo_modes(head).values()))),
        triangles=torch.from_numpy(head.triangles),
        landmark_vertices=torch.from_numpy(landmarks(head)),
        name="builtin",
        expression_names=tuple(expression),
        regions={name: torch.from_numpy(mask) for name, mask in _regions(head).items()},
    )


def _tensor(array: Array) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))


def _assemble() -> Part:
    halves = {
        "skin": parts.with_hair_volume(mesh.skin()),
        "eyeballs": parts.eyeball(),
        "upper_teeth": parts.upper_teeth(),
        "lower_teeth": parts.lower_teeth(),
        "ears": parts.ear(),
        "long_hair": parts.hair_curtain(),
    }
    whole = {name: halves[name].mirrored() for name in PARTS}
    y, z = whole["skin"].vertices[:, 1:].T
    throat = surface.smoothstep(y, -0.85, -1.0) * surface.smoothstep(y, -1.7, -1.5) * surface.smoothstep(z, 0.62, 0.45)
    whole["skin"] = mesh.smoothed(whole["skin"], 0.6 * throat, 10)
    head = mesh.join(whole)
    return Part(head.vertices, np.ascontiguousarray(head.triangles), head.values)


def _regions(head: Part) -> dict[str, np.ndarray]:
    value, (x, y, z) = head.values, head.vertices.T
    masks = {name: value["part"] == index for index, name in enumerate(PARTS)}
    skin, lip = masks["skin"], value["lip"]
    hair = skin & (above_hairline(head.vertices) > 0)
    neck = skin & ~hair & (y < -0.55) & (y - 0.9 * z < -1.25)
    lips = (lip >= 0) & (lip <= 1)
    return masks | {
        "teeth": masks["upper_teeth"] | masks["lower_teeth"],
        "mouth_cavity": lip < 0,
        "lips": lips,
        "upper_lip": lips & (value["lip_side"] > 0),
        "lower_lip": lips & (value["lip_side"] < 0),
        "hair": hair,
        "neck": neck,
        "face": skin & ~hair & ~neck & ~(lip < 0) & ~(value["lid"] < -0.5) & (z > 0.1),
        "brows": skin & (z > 0.3) & (brow_weight(x, y) > 0.5),
        "irises": value["iris"] <= parts.IRIS_RADIUS,
    }


def landmarks(head: Part) -> Indices:
    """Vertices (68,) of the iBUG landmarks on the mean head: image-left first, as the annotation goes."""
    right = np.concatenate([_jaw_half(head), _brow_half(head), _eye_half(head)])
    left = np.array([_nearest(head, head.vertices[i] * (-1.0, 1.0, 1.0), head.values["part"] == 0) for i in right])
    jaw, brow, eye = slice(0, 8), slice(8, 13), slice(13, 19)
    # iBUG 42..47 start at the inner corner, 36..41 at the outer one
    eye_left = left[eye][[3, 2, 1, 0, 5, 4]]
    middle = _midline(head)
    outer, inner = _mouth(head)
    groups = (left[jaw], middle[:1], right[jaw][::-1], left[brow][::-1], right[brow], middle[1:5])
    return np.concatenate([*groups, _nose_base(head), eye_left, right[eye], outer, inner]).astype(np.int64)


def _nearest(head: Part, point: Array, allowed: np.ndarray, axes: tuple[int, ...] = (0, 1, 2)) -> int:
    distance = ((head.vertices[:, axes] - np.asarray(point)[list(axes)]) ** 2).sum(1)
    return int(np.argmin(np.where(allowed, distance, np.inf)))


def _on_face(head: Part, points: list[tuple[float, float]]) -> list[int]:
    """Vertices of the outer skin nearest to (x, y) as seen from the front."""
    allowed = (head.values["part"] == 0) & (head.vertices[:, 2] > 0.3)
    allowed &= ~(head.values["lip"] < 1.2) & ~(head.values["lid"] < 0.1)
    return [_nearest(head, np.array([x, y, 0.0]), allowed, (0, 1)) for x, y in points]


def _jaw_half(head: Part) -> list[int]:
    """The outline 16..9 on the +x side, from the ear to beside the chin: the border of the visible face."""
    heights = [0.115, -0.10, -0.285, -0.465, -0.640, -0.800, -0.935, -1.040]
    depths = [0.22, 0.16, 0.15, 0.17, 0.25, 0.38, 0.52, 0.65]
    skin = head.values["part"] == 0
    found = []
    for y, z in zip(heights, depths, strict=True):
        ray = np.stack([np.linspace(0.0, 1.0, 400), np.full(400, y), np.full(400, z)], 1)
        inside = surface.base_distance(ray) < 0
        found.append(_nearest(head, ray[np.flatnonzero(inside)[-1]], skin))
    return found


def _brow_half(head: Part) -> list[int]:
    return _on_face(head, [(0.105, 0.206), (0.215, 0.256), (0.330, 0.274), (0.445, 0.262), (0.535, 0.196)])


def _eye_half(head: Part) -> list[int]:
    """42..47: inner corner, two on the upper lid, outer corner, two on the lower lid, outer first."""
    angles = np.radians([180.0, 118.0, 68.0, 0.0, -68.0, -118.0])
    x, y = mesh.lid_edge(angles)
    allowed = head.values["lid"] == 0.0
    return [_nearest(head, np.array([u, v, 0.0]), allowed, (0, 1)) for u, v in zip(x, y, strict=True)]


def _midline(head: Part) -> list[int]:
    """8 (chin) and 27..30 (root to tip of the nose)."""
    chin = _nearest(head, np.array([0.0, -1.075, 0.78]), (head.values["part"] == 0) & (head.vertices[:, 0] == 0))
    return [chin, *_on_face(head, [(0.0, 0.04), (0.0, -0.07), (0.0, -0.19), (0.0, -0.295)])]


def _nose_base(head: Part) -> list[int]:
    return _on_face(head, [(-0.120, -0.405), (-0.068, -0.430), (0.0, -0.442), (0.068, -0.430), (0.120, -0.405)])


def _mouth(head: Part) -> tuple[list[int], list[int]]:
    """48..59 around the vermilion's border and 60..67 around the line of the lips."""
    value, x = head.values, head.vertices[:, 0]

    def pick(ring: float, across: float, side: int) -> int:
        allowed = (value["lip"] == ring) & (np.sign(value["lip_side"]) == side)
        return int(np.argmin(np.where(allowed, np.abs(x - across), np.inf)))

    wide = [-0.165, -0.050, 0.0, 0.050, 0.165]
    narrow = [-0.07, 0.0, 0.07]
    left, right = pick(1.0, -1.0, 0), pick(1.0, 1.0, 0)
    outer = [left, *(pick(1.0, a, 1) for a in wide), right, *(pick(1.0, a, -1) for a in wide[::-1])]
    inner = [pick(0.0, -0.21, 1), *(pick(0.0, a, 1) for a in narrow)]
    return outer, [*inner, pick(0.0, 0.21, 1), *(pick(0.0, a, -1) for a in narrow[::-1])]
