"""A batched z-buffer rasteriser in plain torch: no compiled extension, any device, deterministic.

Triangles become fragments (one per pixel centre in their bounding box), the fragments that lie inside race for their
pixel by `scatter_reduce(amin)` on the key (depth bits, face id), and the winners' barycentric coordinates are
computed once more, with gradients. Visibility itself has no gradient.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

NEAR = 0.1
"""Triangles with a vertex nearer than this (decimetres), or behind the camera, are dropped whole: none is clipped."""

CHUNK = 1 << 18
"""Pixel tests per pass; bounds the memory at about 100 bytes each, whatever the size of the triangles."""

MIN_AREA = 1e-9
"""Triangles with less than this area (square pixels, doubled) cover nothing."""

_FAR_KEY = torch.iinfo(torch.int64).max


@dataclass(frozen=True)
class Fragments:
    """What each pixel sees. Row 0 is the top of the image.

    face_id (B,H,W) int64, -1 where empty; barycentric (B,H,W,3), perspective-correct, zero where empty; depth (B,H,W)
    in the unit of the input, infinite where empty.
    """

    face_id: Tensor
    barycentric: Tensor
    depth: Tensor

    @property
    def mask(self) -> Tensor:
        """Covered pixels (B,H,W), bool."""
        return self.face_id >= 0


def rasterise(
    xy: Tensor, depth: Tensor, triangles: Tensor, size: tuple[int, int], *, cull: bool = True, chunk: int = CHUNK
) -> Fragments:
    """Rasterise one mesh in B poses.

    xy (B,V,2) in pixels, y downwards, pixel (i, j) centred at (j + 0.5, i + 0.5); depth (B,V) > 0 along the optical
    axis; triangles (F,3) int64; size (H, W). `cull` drops back faces: those that wind clockwise as seen on the
    screen.

    A pixel belongs to the nearest triangle that holds its centre, edges and corners included, so shared edges leave
    neither gap nor overlap; at equal depth (as float32) the smaller face id wins. Triangles without area, with a
    non-finite vertex, or with a vertex nearer than `NEAR` are dropped. Coverage is decided in float64; `barycentric`
    and `depth` keep the type of `xy` and are differentiable in `xy` and `depth`.
    """
    batch, (height, width) = xy.shape[0], size
    winners = _visible(xy.detach(), depth.detach(), triangles, size, cull, chunk)
    barycentric = xy.new_zeros(batch * height * width, 3)
    nearest = depth.new_full((batch * height * width,), torch.inf)
    pixel = torch.nonzero(winners >= 0).squeeze(1)
    values, distance = _barycentric(xy, depth, triangles, pixel, winners[pixel], size)
    return Fragments(
        winners.view(batch, height, width),
        barycentric.index_copy(0, pixel, values).view(batch, height, width, 3),
        nearest.index_copy(0, pixel, distance).view(batch, height, width),
    )


def interpolate(fragments: Fragments, attributes: Tensor, triangles: Tensor) -> Tensor:
    """Spread vertex attributes (B,V,C) over the pixels: (B,C,H,W), zero where empty; differentiable in both."""
    batch, height, width = fragments.face_id.shape
    channels = attributes.shape[2]
    faces = fragments.face_id.flatten()
    pixel = torch.nonzero(faces >= 0).squeeze(1)
    weights = fragments.barycentric.view(-1, 3)[pixel]
    corners = triangles[faces[pixel]] + (pixel // (height * width) * attributes.shape[1]).unsqueeze(1)
    flat = attributes.reshape(-1, channels)
    values = (flat[corners] * weights.unsqueeze(2)).sum(dim=1)
    image = attributes.new_zeros(batch * height * width, channels).index_copy(0, pixel, values)
    return image.view(batch, height, width, channels).permute(0, 3, 1, 2).contiguous()


def _visible(xy: Tensor, depth: Tensor, triangles: Tensor, size: tuple[int, int], cull: bool, chunk: int) -> Tensor:
    """Face id per pixel (B*H*W,), -1 where empty."""
    height, width = size
    batch, count = depth.shape
    kept, left, top, columns, rows = _boxes(xy, depth, triangles, size, cull)
    face = kept // batch
    image = kept - face * batch
    corners = [triangles[face, corner] + image * count for corner in range(3)]
    edges, area = _edges([xy.reshape(-1, 2)[corner].double() for corner in corners])
    distances = [depth.reshape(-1)[corner].double() for corner in corners]
    proper = area < -MIN_AREA if cull else area.abs() > MIN_AREA  # y downwards: the front winds negatively in value
    keys = torch.full((batch * height * width,), _FAR_KEY, dtype=torch.int64, device=xy.device)
    for owner, offset in _passes(columns * rows * proper, chunk):
        row = torch.div(offset, columns[owner], rounding_mode="floor")
        x = (offset - row * columns[owner] + left[owner]).double() + 0.5
        y = (row + top[owner]).double() + 0.5
        values: list[Tensor] = []
        for a, b, c in edges:  # most tests fail at the first or the second edge: go on with the rest only
            value = a[owner] * x + b[owner] * y + c[owner]
            inside = torch.nonzero(value >= 0).squeeze(1)
            owner, x, y = owner[inside], x[inside], y[inside]
            values = [each[inside] for each in (*values, value)]
        weights = sum(value / distance[owner] for value, distance in zip(values, distances, strict=True))
        near = (values[0] + values[1] + values[2]) / weights
        key = (near.float().view(torch.int32).long() << 32) | face[owner]
        keys.scatter_reduce_(0, (image[owner] * height + y.long()) * width + x.long(), key, "amin")
    return torch.where(keys == _FAR_KEY, -1, keys & 0xFFFFFFFF)


def _boxes(
    xy: Tensor, depth: Tensor, triangles: Tensor, size: tuple[int, int], cull: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Triangles that may cover a pixel centre: flat index (face * B + image); left, top, columns, rows of the box.

    Works in the input's precision, so each bound is a little generous: a pixel too many is harmless, one too few is a
    hole.
    """
    margin = 1e-3
    valid = (depth >= NEAR) & torch.isfinite(depth) & torch.isfinite(xy).all(dim=2)
    points = xy.masked_fill(~valid.unsqueeze(2), torch.nan)  # not-a-number fails every comparison below
    x, y = (points[..., axis].t().contiguous() for axis in range(2))  # (V,B): a gather takes whole rows
    bounds, sides = [], []
    for values, extent in ((x, size[1]), (y, size[0])):
        first, second, third = (values[triangles[:, corner]] for corner in range(3))
        low = torch.minimum(torch.minimum(first, second), third)
        high = torch.maximum(torch.maximum(first, second), third)
        bounds.append(low.sub_(0.5 + margin).ceil_().clamp_(min=0))
        bounds.append(high.sub_(0.5 - margin).floor_().clamp_(max=extent - 1))
        sides.append((second - first, third - first))
    left, right, top, bottom = bounds
    good = (right >= left) & (bottom >= top)
    if cull:
        plus, minus = sides[0][0] * sides[1][1], sides[1][0] * sides[0][1]
        good &= plus - minus <= 1e-6 * (plus.abs() + minus.abs())
    kept = torch.nonzero(good.flatten()).squeeze(1)
    left, right, top, bottom = (value.flatten()[kept].long() for value in (left, right, top, bottom))
    return kept, left, top, right - left + 1, bottom - top + 1


def _edges(points: list[Tensor]) -> tuple[list[tuple[Tensor, Tensor, Tensor]], Tensor]:
    """Edge functions of triangles with corners (N,2) x 3: per opposite corner the coefficients (a, b, c), (N,) each,
    of a x + b y + c, not negative inside; and twice the signed area (N,).

    The form changes its sign exactly, to the last bit, when an edge is walked the other way: of two triangles that
    share an edge at least one owns each pixel centre on it.
    """
    (x0, y0), (x1, y1), (x2, y2) = (point.unbind(1) for point in points)
    area = (x1 - x0) * (y2 - y0) - (y1 - y0) * (x2 - x0)
    sign = torch.sign(area)
    pairs = ((x1, y1, x2, y2), (x2, y2, x0, y0), (x0, y0, x1, y1))
    return [(sign * (v - q), sign * (p - u), sign * (u * q - p * v)) for u, v, p, q in pairs], area


def _passes(tests: Tensor, chunk: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Lay the pixel tests of all triangles in a row and cut it in pieces of `chunk`.

    tests (N,) is the number of tests of each triangle. Yields owner (T,), the triangle of each test, and offset (T,),
    its rank among that triangle's tests; a large triangle may be split over several pieces.
    """
    ends = tests.cumsum(0)
    total = int(ends[-1]) if len(ends) else 0
    for start in range(0, total, chunk):
        stop = min(start + chunk, total)
        span = slice(0, len(ends))
        if total > chunk:
            bounds = torch.tensor([start, stop - 1], device=ends.device)
            first, last = torch.searchsorted(ends, bounds, right=True).tolist()
            span = slice(first, last + 1)
        begin = (ends[span] - tests[span]).clamp(min=start)
        length = ends[span].clamp(max=stop) - begin
        names = torch.arange(span.start, span.stop, device=ends.device)
        owner = torch.repeat_interleave(names, length, output_size=stop - start)
        yield owner, torch.arange(start, stop, device=ends.device) - (ends - tests)[owner]


def _barycentric(
    xy: Tensor, depth: Tensor, triangles: Tensor, pixel: Tensor, face: Tensor, size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Perspective-correct barycentrics (P,3) and depth (P,) of the pixel centres in the triangles that they see."""
    height, width = size
    image, place = pixel // (height * width), pixel % (height * width)
    centre = torch.stack([place % width, place // width], dim=1).double() + 0.5
    corners = triangles[face] + (image * xy.shape[1]).unsqueeze(1)
    points = xy.reshape(-1, 2)[corners].double() - centre.unsqueeze(1)
    x, y = points.unbind(2)
    sides = x.roll(-1, 1) * y.roll(-2, 1) - x.roll(-2, 1) * y.roll(-1, 1)
    weights = sides / depth.reshape(-1)[corners].double()
    total = weights.sum(1, keepdim=True)
    return (weights / total).to(xy.dtype), (sides.sum(1) / total.squeeze(1)).to(depth.dtype)
