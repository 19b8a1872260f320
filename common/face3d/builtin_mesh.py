"""The mesh of the built-in head's skin: an eye patch and a mouth patch of closed rings in a Delaunay mesh.

Only the half x >= 0 is made; `Part.mirrored` adds the other, so that the head is exactly symmetric. Rings follow the
lid lines and the lip contours, which keeps both smooth at any resolution and cuts real openings.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator
from scipy.spatial import Delaunay, cKDTree

from common.face3d import builtin_surface as surface
from common.face3d.builtin_surface import Array

Indices = NDArray[np.int64]

LID_RINGS = (
    -2.0, -1.0, 0.0, 0.05, 0.1, 0.16, 0.22, 0.28, 0.33, 0.38, 0.43, 0.49,
    0.55, 0.61, 0.66, 0.71, 0.76, 0.81, 0.86, 0.93, 1.0,
)  # fmt: skip
"""Ring parameter: 0 is the lid's edge, 1 the border of the orbital patch (above the brow), below 0 the lid's rim."""
LID_COLUMNS = 52
LIP_RINGS = (
    -8.0, -7.0, -6.0, -5.0, -4.0, -3.0, -2.0, -1.0, 0.0, 0.12, 0.25, 0.4,
    0.55, 0.7, 0.82, 0.92, 1.0, 1.07, 1.16, 1.3, 1.5, 1.75, 2.0,
)  # fmt: skip
"""Ring parameter: 0 is where the lips meet, 0..1 the vermilion, 2 the patch's border, below 0 the mouth's inside."""
LIP_COLUMNS = 22
"""Columns from the middle to the corner of each lip."""

NECK_COLUMNS = 35
NECK_RINGS = 6

_POLE = 2.95
"""Angle from +z at which the chart ends, in radians; one vertex closes the back of the head."""


@dataclass
class Part:
    """vertices (n,3), triangles (m,3) counter-clockwise from outside, and named per-vertex values (n,)."""

    vertices: Array
    triangles: Indices
    values: dict[str, Array] = field(default_factory=dict)

    def mirrored(self) -> "Part":
        """This half (x >= 0) with its mirror image; vertices on x = 0 are shared."""
        count = len(self.vertices)
        twin = np.arange(count)
        own = np.abs(self.vertices[:, 0]) > 1e-9
        twin[own] = count + np.arange(own.sum())
        vertices = np.concatenate([self.vertices, self.vertices[own] * (-1.0, 1.0, 1.0)])
        triangles = np.concatenate([self.triangles, twin[self.triangles][:, ::-1]])
        values = {key: np.concatenate([value, value[own]]) for key, value in self.values.items()}
        return Part(vertices, triangles, values)


def join(parts: dict[str, Part]) -> Part:
    """All parts as one; each value is NaN on the parts without it, and value `part` is the part's index."""
    keys = sorted({key for part in parts.values() for key in part.values})
    offsets = np.cumsum([0] + [len(part.vertices) for part in parts.values()])
    values = {
        key: np.concatenate([p.values.get(key, np.full(len(p.vertices), np.nan)) for p in parts.values()])
        for key in keys
    }
    values["part"] = np.concatenate([np.full(len(p.vertices), float(i)) for i, p in enumerate(parts.values())])
    triangles = [part.triangles + offset for part, offset in zip(parts.values(), offsets, strict=False)]
    return Part(np.concatenate([p.vertices for p in parts.values()]), np.concatenate(triangles), values)


def strips(rings: int, columns: int, closed: bool) -> Indices:
    """Triangles between consecutive rings of a (rings, columns) grid of vertices, ring by ring.

    Counter-clockwise where the ring index grows to the left of the walk along the columns.
    """
    ring, column = np.meshgrid(np.arange(rings - 1), np.arange(columns if closed else columns - 1), indexing="ij")
    a = (ring * columns + column).ravel()
    b = (ring * columns + (column + 1) % columns).ravel()
    return np.concatenate([np.stack([a, b, b + columns], 1), np.stack([a, b + columns, a + columns], 1)])


def lid_edge(angle: Array) -> tuple[Array, Array]:
    """x and y of the eye opening on the +x side; angle 0 at the outer corner, counter-clockwise."""
    u = np.cos(angle)
    arch = np.where(np.sin(angle) > 0, 0.056 * (1.0 - 0.16 * u), -0.046 * (1.0 + 0.20 * u))
    lift = arch * np.maximum(1.0 - u * u, 0.0) ** 0.68
    return surface.EYE_CENTRE[0] - 0.002 + 0.142 * u, surface.EYE_CENTRE[1] + 0.010 * u + lift


def lid_depth(x: Array, y: Array) -> Array:
    """z of a lid on the +x side: the skin, drawn over the eyeball."""
    return surface.smooth_max(surface.face_depth(x, y), surface.eyeball_depth(x, y, 0.017), 0.014)


def eye_patch() -> Part:
    """Lids and brow of the +x side: rings (LID_RINGS x LID_COLUMNS) from behind the lid's edge to above the brow."""
    angle = np.arange(LID_COLUMNS) * (2 * np.pi / LID_COLUMNS)
    edge = np.stack(lid_edge(angle), 1)
    centre, c, s = np.array([0.322, 0.095]), np.cos(angle), np.sin(angle)
    border = centre + np.stack([0.262 * c, np.where(s > 0, 0.258, 0.235) * s], 1)
    vertices: list[Array] = []
    for t in LID_RINGS:
        x, y = ((1 - max(t, 0.0)) * edge + max(t, 0.0) * border).T
        skin_z = surface.face_depth(x, y)
        # the lower lid leaves the eyeball sooner than the upper
        z: Array = skin_z + (lid_depth(x, y) - skin_z) * np.where(
            s < 0, surface.smoothstep(np.full_like(s, t), 0.50, 0.10), 1.0
        )
        z = surface.smooth_max(z, surface.eyeball_depth(x, y, 0.006), 0.03)
        crease = np.maximum(s, 0.0) ** 0.5 * np.exp(-0.5 * ((t - 0.24) / 0.035) ** 2)
        z -= 0.013 * crease
        if t == -1.0:
            x, y = (edge - 0.03 * (edge - surface.EYE_CENTRE[:2])).T
            z = np.minimum(z, surface.eyeball_depth(x, y, 0.003))
        elif t == -2.0:
            x, y = (edge + 0.05 * (edge - surface.EYE_CENTRE[:2])).T
            z = surface.eyeball_depth(x, y, -0.04)
        vertices.append(np.stack([x, y, z], 1))
    rings = np.repeat(LID_RINGS, LID_COLUMNS)
    triangles = strips(len(LID_RINGS), LID_COLUMNS, closed=True)[:, ::-1]
    return Part(np.concatenate(vertices), triangles, {"lid": rings, "lid_angle": np.tile(angle, len(LID_RINGS))})


_UPPER = PchipInterpolator(
    [0, 0.12, 0.4, 0.7, 0.92, 1.0, 1.16, 1.5, 2.0], [-0.5, 0.15, 0.85, 1.05, 1.0, 0.85, 0.55, 0.2, 0]
)
_LOWER = PchipInterpolator(
    [0, 0.12, 0.4, 0.7, 0.92, 1.0, 1.16, 1.5, 2.0], [-0.5, 0.2, 0.95, 1.1, 0.8, 0.55, 0.15, -0.1, 0]
)
# inside of the mouth, from the lips' contact backwards: half height, depth behind the contact, width
_INSIDE = {
    -1.0: (0.003, 0.030, 0.985),
    -2.0: (0.022, 0.062, 0.97),
    -3.0: (0.075, 0.085, 0.97),
    -4.0: (0.115, 0.120, 0.94),
    -5.0: (0.130, 0.230, 0.88),
    -6.0: (0.120, 0.420, 0.75),
    -7.0: (0.080, 0.500, 0.50),
    -8.0: (0.030, 0.520, 0.25),
}


def lip_line(x: Array) -> Array:
    """y of the line where the lips meet, at x."""
    x = np.abs(x)
    return surface.MOUTH_HEIGHT - 0.008 * np.exp(-((x / 0.05) ** 2)) + 0.005 * np.exp(-(((x - 0.12) / 0.06) ** 2))


def _lip_heights(x: Array) -> tuple[Array, Array]:
    """Height of the upper and the lower vermilion at |x|, with the cupid's bow."""
    q = np.clip(np.abs(x) / surface.MOUTH_HALF_WIDTH, 0.0, 1.0)
    upper = 0.083 * (1.0 - q**1.5) - 0.013 * np.exp(-((x / 0.024) ** 2))
    return upper, 0.096 * (1.0 - q**3.4)


def mouth_patch() -> Part:
    """Lips, the skin around them and the mouth's lining, +x half: columns from the upper middle to the lower."""
    columns = 2 * LIP_COLUMNS + 1
    angle = np.linspace(0.0, np.pi, columns)
    u, side = np.sin(angle), np.cos(angle)
    u[[0, -1]], side[LIP_COLUMNS] = 0.0, 0.0
    half = surface.MOUTH_HALF_WIDTH
    line = lip_line(half * u)
    up, down = _lip_heights(half * u)
    border = np.stack([(half + 0.010) * u, line + np.where(side > 0, up, -down) * (side != 0)], 1)
    contact = np.stack([half * u, line], 1)
    outer = np.stack([0.37 * u, surface.MOUTH_HEIGHT + np.where(side > 0, 0.172, 0.165) * side], 1)
    amount = np.where(side > 0, 0.040, 0.052) * np.maximum(1.0 - u**2, 0.0) ** 0.6
    meeting = surface.face_depth(*contact.T) + amount * _UPPER(0.0)
    back = np.array([[0.0, surface.MOUTH_HEIGHT, meeting[0] - 0.525]])
    vertices = [back]
    for t in LIP_RINGS:
        if t < 0:
            height, depth, width = _INSIDE[t]
            vertices.append(np.stack([width * half * u, line + height * side, meeting - depth], 1))
            continue
        x, y = ((1 - t) * contact + t * border).T if t <= 1 else ((2 - t) * border + (t - 1) * outer).T
        profile = np.where(side > 0, _UPPER(t), _LOWER(t))
        if t == 0.0:  # closed lips overlap a little, so that no light shines between them
            y = y - 0.003 * side
        vertices.append(np.stack([x, y, surface.face_depth(x, y) + amount * profile], 1))
    fan = 1 + np.arange(columns - 1)
    fan_triangles = np.stack([np.zeros_like(fan), fan + 1, fan], 1)
    triangles = np.concatenate([fan_triangles, strips(len(LIP_RINGS), columns, closed=False) + 1])
    rings = np.concatenate([[-9.0], np.repeat(LIP_RINGS, columns)])
    values = {
        "lip": rings,
        "lip_u": np.concatenate([[0.0], np.tile(u, len(LIP_RINGS))]),
        "lip_side": np.concatenate([[0.0], np.tile(side, len(LIP_RINGS))]),
    }
    return Part(np.concatenate(vertices), triangles, values)


def neck_patch() -> Part:
    """The neck below the jaw, +x half: rings from NECK_TOP to the open bottom, columns from front to back."""
    angle = np.linspace(0.0, np.pi, NECK_COLUMNS)
    outward = np.stack([np.sin(angle), np.zeros(NECK_COLUMNS), np.cos(angle)], 1)
    outward[-1, 0] = 0.0
    rings = []
    for level in np.linspace(0.0, 1.0, NECK_RINGS):
        centre = np.array([0.0, (1 - level) * surface.NECK_TOP + level * surface.NECK_BOTTOM, -0.25])
        # the upper rings slope with the jaw: lower in front
        slope = np.array([0.0, -0.10 * (1 - level), 0.0])
        low, high = np.zeros((NECK_COLUMNS, 1)), np.full((NECK_COLUMNS, 1), 1.5)
        for _ in range(26):
            middle = 0.5 * (low + high)
            inside = surface.base_distance(centre + slope * outward[:, 2:] + middle * outward)[:, None] < 0
            low, high = np.where(inside, middle, low), np.where(inside, high, middle)
        rings.append(centre + slope * outward[:, 2:] + low * outward)
    # from the bottom up, so that the walk along the columns has the next ring on its outer side
    return Part(np.concatenate(rings), strips(NECK_RINGS, NECK_COLUMNS, closed=False)[:, ::-1])


def to_chart(points: Array) -> Array:
    """Azimuthal equidistant coordinates (n,2) in radians of points (n,3) around RAY_CENTRE, +z in the middle."""
    d = points - surface.RAY_CENTRE
    across = np.hypot(d[:, 0], d[:, 1])
    angle = np.arctan2(across, d[:, 2])
    return d[:, :2] * (angle / np.maximum(across, 1e-12))[:, None]


def from_chart(chart: Array) -> Array:
    """Unit directions (n,3) of chart coordinates (n,2)."""
    angle = np.hypot(chart[:, 0], chart[:, 1])
    scale = np.sinc(angle / np.pi)
    return np.stack([chart[:, 0] * scale, chart[:, 1] * scale, np.cos(angle)], 1)


_SPACING = PchipInterpolator([0, 0.3, 0.6, 1.0, 1.5, 2.0, 3.2], [0.0165, 0.021, 0.036, 0.048, 0.075, 0.13, 0.28])
"""Distance of the free points in the chart by the angle from +z, both in radians."""


def _free_points() -> Array:
    """Half rings of chart points around the nose, fine in the face and coarse at the back of the head."""
    rings: list[Array] = [np.zeros((1, 2))]
    radius, turn = float(_SPACING(0.0)), 0
    while radius < _POLE - 0.5 * float(_SPACING(radius)):
        rings.append(_half_ring(radius, float(_SPACING(radius)), turn % 2 == 1))
        radius += 0.87 * float(_SPACING(radius))
        turn += 1
    rings.append(_half_ring(_POLE, float(_SPACING(_POLE)), False))
    return np.concatenate(rings)


def _half_ring(radius: float, spacing: float, shifted: bool) -> Array:
    """Points on the half circle x >= 0; both ends lie on x = 0."""
    count = max(3, round(np.pi * radius / spacing))
    angle = np.linspace(-np.pi / 2, np.pi / 2, count + 1)
    if shifted:
        angle = np.concatenate([angle[:1], 0.5 * (angle[1:] + angle[:-1]), angle[-1:]])
    points = radius * np.stack([np.cos(angle), np.sin(angle)], 1)
    points[[0, -1], 0] = 0.0
    return points


def _inside(points: Array, polygon: Array) -> NDArray[np.bool_]:
    """Whether points (n,2) lie in the polygon (m,2), by crossings."""
    a, b = polygon, np.roll(polygon, -1, axis=0)
    x, y = points[:, :1], points[:, 1:]
    crosses = (a[:, 1] > y) != (b[:, 1] > y)
    where = a[:, 0] + (y - a[:, 1]) * (b[:, 0] - a[:, 0]) / np.where(b[:, 1] == a[:, 1], 1e-12, b[:, 1] - a[:, 1])
    return (np.sum(crosses & (x < where), axis=1) % 2).astype(bool)


def skin() -> Part:
    """Half (x >= 0) of head and neck without hair volume and ears, mean shape; open at the neck's end."""
    patches = {"eye": eye_patch(), "mouth": mouth_patch(), "neck": neck_patch()}
    borders = {
        "eye": np.arange((len(LID_RINGS) - 1) * LID_COLUMNS, len(LID_RINGS) * LID_COLUMNS),
        "mouth": len(patches["mouth"].vertices) - (2 * LIP_COLUMNS + 1) + np.arange(2 * LIP_COLUMNS + 1),
        "neck": np.arange(NECK_COLUMNS),
    }
    loops = {name: to_chart(patches[name].vertices[border]) for name, border in borders.items()}
    # the two loops that end on x = 0 close a little beyond it
    holes = [loops["eye"]] + [
        np.concatenate([loops[name], loops[name][[-1, 0]] - (0.02, 0.0)]) for name in ("mouth", "neck")
    ]
    rim = np.concatenate(list(loops.values()))
    free = _free_points()
    # an edge of a loop is an edge of the Delaunay mesh where the circle over it is empty
    middles = [0.5 * (hole + np.roll(hole, 1, axis=0)) for hole in holes]
    keep = cKDTree(np.concatenate([rim, *middles])).query(free)[0] > 0.55 * _SPACING(np.hypot(*free.T))
    for hole in holes:
        keep &= ~_inside(free, hole)
    free = free[keep]
    triangles = _triangulate(np.concatenate([rim, free]), holes)
    whole = join({**patches, "free": Part(lift(from_chart(free)), np.zeros((0, 3), np.int64))})
    starts = np.cumsum([0] + [len(patch.vertices) for patch in patches.values()])
    index = np.concatenate([start + border for start, border in zip(starts, borders.values(), strict=False)])
    index = np.concatenate([index, starts[-1] + np.arange(len(free))])
    pole = len(whole.vertices)
    last = index[len(rim) + np.flatnonzero(np.hypot(*free.T) > _POLE - 1e-6)]
    cap = np.stack([np.full(len(last) - 1, pole), last[1:], last[:-1]], 1)
    vertices = np.concatenate([whole.vertices, surface.cast(np.array([[0.0, 0.0, -1.0]]))])
    values = {key: np.append(value, np.nan) for key, value in whole.values.items() if key != "part"}
    return Part(vertices, np.concatenate([whole.triangles, index[triangles], cap]), values)


def smoothed(part: Part, share: Array, rounds: int) -> Part:
    """The part with each vertex drawn `share` (n,) of the way to the mean of its neighbours, `rounds` times."""
    t = part.triangles
    edges = np.unique(np.sort(np.concatenate([t[:, :2], t[:, 1:], t[:, ::2]]), axis=1), axis=0)
    both = np.concatenate([edges, edges[:, ::-1]])
    count = np.bincount(both[:, 0], minlength=len(part.vertices))[:, None]
    vertices = part.vertices
    for _ in range(rounds):
        total = np.stack([np.bincount(both[:, 0], vertices[both[:, 1], i], len(vertices)) for i in range(3)], 1)
        vertices = vertices + share[:, None] * (total / count - vertices)
    return Part(vertices, part.triangles, part.values)


def _triangulate(chart: Array, holes: list[Array]) -> Indices:
    """Delaunay triangles of chart points, counter-clockwise, without those in the holes."""
    triangles = Delaunay(chart).simplices.astype(np.int64)
    a, b, c = (chart[triangles[:, i]] for i in range(3))
    area = (b[:, 0] - a[:, 0]) * (c[:, 1] - a[:, 1]) - (b[:, 1] - a[:, 1]) * (c[:, 0] - a[:, 0])
    triangles[area < 0] = triangles[area < 0][:, ::-1]
    centre = (a + b + c) / 3
    outside = np.abs(area) > 1e-10
    for hole in holes:
        outside &= ~_inside(centre, hole)
    return triangles[outside]


def lift(directions: Array) -> Array:
    """Skin points (n,3) along directions from RAY_CENTRE: the featureless head and the face's features."""
    points = surface.cast(directions)
    points[np.abs(directions[:, 0]) < 1e-9, 0] = 0.0
    front = surface.smoothstep(points[:, 2], 0.15, 0.45)
    points[:, 2] += front * surface.features(points[:, 0], points[:, 1])
    return points
