"""The rasteriser against a plain float64 loop over triangles and pixels."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.face3d.raster import NEAR, interpolate, rasterise


def reference(xy: Tensor, depth: Tensor, triangles: Tensor, size: tuple[int, int], cull: bool) -> NDArray[np.int64]:
    """Face ids (H,W) of one mesh: every triangle against every pixel centre, in float64."""
    points, distances = xy.double().numpy(), depth.double().numpy()
    ids = np.full(size, -1, dtype=np.int64)
    nearest = np.full(size, np.inf, dtype=np.float32)
    rows, columns = np.mgrid[: size[0], : size[1]] + 0.5
    for face, corners in enumerate(triangles.tolist()):
        (x0, y0), (x1, y1), (x2, y2) = points[corners]
        if (distances[corners] < NEAR).any():
            continue
        area = (x1 - x0) * (y2 - y0) - (y1 - y0) * (x2 - x0)
        if area == 0 or (cull and area > 0):
            continue
        weights = np.stack(
            [
                ((x2 - x1) * (rows - y1) - (y2 - y1) * (columns - x1)) / area,
                ((x0 - x2) * (rows - y2) - (y0 - y2) * (columns - x2)) / area,
                ((x1 - x0) * (rows - y0) - (y1 - y0) * (columns - x0)) / area,
            ]
        )
        depths = (1 / (weights / distances[corners].reshape(3, 1, 1)).sum(0)).astype(np.float32)
        wins = (weights >= 0).all(0) & (depths < nearest)
        ids[wins], nearest[wins] = face, depths[wins]
    return ids


def random_mesh(seed: int, batch: int, size: tuple[int, int], faces: int) -> tuple[Tensor, Tensor, Tensor]:
    """Intersecting, overlapping triangles of all sizes, some off the image, some behind the near plane."""
    generator = torch.Generator().manual_seed(seed)
    vertices = faces // 2
    extent = torch.tensor([size[1], size[0]], dtype=torch.float32)
    xy = torch.rand(batch, vertices, 2, generator=generator) * (extent + 10) - 5
    near = xy[:, :1] + torch.randn(batch, vertices, 2, generator=generator) * 2
    xy = torch.where(torch.rand(batch, vertices, 1, generator=generator) < 0.5, xy, near)
    depth = torch.rand(batch, vertices, generator=generator) * 5 + NEAR * 0.7
    return xy, depth, torch.randint(vertices, (faces, 3), generator=generator)


@pytest.mark.parametrize("cull", [True, False])
@pytest.mark.parametrize("size", [(1, 1), (17, 17), (9, 31), (40, 13)])
def test_face_ids_equal_a_loop(size: tuple[int, int], cull: bool) -> None:
    xy, depth, triangles = random_mesh(size[0] + cull, 3, size, 120)
    found = rasterise(xy, depth, triangles, size, cull=cull).face_id
    for index in range(3):
        expected = reference(xy[index], depth[index], triangles, size, cull)
        assert (found[index].numpy() == expected).all()
    assert size == (1, 1) or (found >= 0).float().mean() > 0.3


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_chunks_and_batches_do_not_matter(chunk: int) -> None:
    xy, depth, triangles = random_mesh(3, 4, (21, 33), 80)
    whole = rasterise(xy, depth, triangles, (21, 33))
    pieces = rasterise(xy[:2], depth[:2], triangles, (21, 33), chunk=chunk)
    assert torch.equal(pieces.face_id, whole.face_id[:2])
    for index in range(4):
        single = rasterise(xy[index : index + 1], depth[index : index + 1], triangles, (21, 33))
        assert torch.equal(single.face_id[0], whole.face_id[index])
        assert torch.equal(single.barycentric[0], whole.barycentric[index])
        assert torch.equal(single.depth[0], whole.depth[index])


def tessellated_quad(corners: Tensor, cells: int, seed: int) -> tuple[Tensor, Tensor]:
    """A quad (4,2) cut in cells x cells jittered cells of two triangles each; its border stays straight."""
    steps = torch.linspace(0, 1, cells + 1, dtype=torch.float64)
    u, v = torch.meshgrid(steps, steps, indexing="xy")
    inner = (u > 0) & (u < 1) & (v > 0) & (v < 1)
    jitter = torch.rand(2, cells + 1, cells + 1, generator=torch.Generator().manual_seed(seed)) - 0.5
    u, v = (w + j * inner / cells / 2 for w, j in zip((u, v), jitter, strict=True))
    points = (
        corners[0] * ((1 - u) * (1 - v))[..., None]
        + corners[1] * (u * (1 - v))[..., None]
        + corners[2] * (u * v)[..., None]
        + corners[3] * ((1 - u) * v)[..., None]
    ).reshape(-1, 2)
    ids = torch.arange((cells + 1) ** 2).view(cells + 1, cells + 1)
    a, b, c, d = ids[:-1, :-1].flatten(), ids[:-1, 1:].flatten(), ids[1:, 1:].flatten(), ids[1:, :-1].flatten()
    return points.float(), torch.cat([torch.stack([a, b, c], 1), torch.stack([a, c, d], 1)])


def test_shared_edges_leave_no_gap() -> None:
    # corners on pixel centres of a 27 x 41 image: many centres lie exactly on the border and on inner edges
    corners = torch.tensor([[3.5, 2.5], [35.5, 2.5], [35.5, 22.5], [3.5, 22.5]], dtype=torch.float64)
    for cells, seed in ((1, 0), (4, 0), (10, 1), (10, 2)):
        xy, triangles = tessellated_quad(corners, cells, seed)
        mask = rasterise(xy[None], torch.full((1, len(xy)), 5.0), triangles, (27, 41), cull=False).mask[0]
        expected = torch.zeros(27, 41, dtype=torch.bool)
        expected[2:23, 3:36] = True
        assert torch.equal(mask, expected)


def test_tessellation_covers_what_the_quad_covers() -> None:
    # sheared, so that no edge is aligned with the pixels; exact in float32, so that the border stays straight
    corners = torch.tensor([[2.25, 4.5], [34.25, 8.5], [38.25, 24.5], [6.25, 20.5]], dtype=torch.float64)
    quad, pair = tessellated_quad(corners, 1, 0)
    steps = torch.linspace(0, 1, 9, dtype=torch.float64)
    u, v = (w.flatten()[:, None] for w in torch.meshgrid(steps, steps, indexing="xy"))
    fine = (corners[0] + u * (corners[1] - corners[0]) + v * (corners[3] - corners[0])).float()
    _, triangles = tessellated_quad(corners, 8, 0)
    masks = [
        rasterise(p[None], torch.ones(1, len(p)), t, (27, 41), cull=False).mask
        for p, t in ((quad, pair), (fine, triangles))
    ]
    assert torch.equal(*masks)


def test_equal_depth_goes_to_the_smaller_face() -> None:
    xy = torch.tensor([[[0.0, 0.0], [8.0, 0.0], [8.0, 8.0], [0.0, 8.0]]])
    triangles = torch.tensor([[1, 2, 3], [0, 2, 1], [0, 1, 2], [0, 2, 3], [0, 3, 2]])
    found = rasterise(xy, torch.full((1, 4), 10.0), triangles, (8, 8), cull=False).face_id[0]
    expected = torch.full((8, 8), 0)
    rows, columns = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    expected[rows + columns < 7] = 3
    expected[(rows + columns < 7) & (rows <= columns)] = 1
    assert torch.equal(found, expected)


def test_front_faces_wind_counter_clockwise_on_the_screen() -> None:
    xy = torch.tensor([[[1.0, 7.0], [7.0, 7.0], [4.0, 1.0]]])  # y downwards: right along the bottom, then up
    depth = torch.full((1, 3), 2.0)
    assert rasterise(xy, depth, torch.tensor([[0, 1, 2]]), (8, 8)).mask.any()
    assert not rasterise(xy, depth, torch.tensor([[0, 2, 1]]), (8, 8)).mask.any()
    assert rasterise(xy, depth, torch.tensor([[0, 2, 1]]), (8, 8), cull=False).mask.any()


@pytest.mark.parametrize("spoil", [0.0, -3.0, NEAR / 2, float("nan"), float("inf")])
def test_a_triangle_that_reaches_the_near_plane_is_dropped_whole(spoil: float) -> None:
    xy = torch.tensor([[[0.0, 8.0], [8.0, 8.0], [4.0, 0.0], [0.0, 0.0]]])
    depth = torch.tensor([[2.0, 2.0, 2.0, spoil]])
    triangles = torch.tensor([[0, 1, 2], [0, 2, 3]])
    found = rasterise(xy, depth, triangles, (8, 8))
    assert set(found.face_id.unique().tolist()) == {-1, 0}
    assert torch.isfinite(found.barycentric).all()


@pytest.mark.parametrize("spoil", [float("nan"), float("inf"), 1e30])
def test_hostile_coordinates_harm_only_their_triangles(spoil: float) -> None:
    xy = torch.tensor([[[0.0, 8.0], [8.0, 8.0], [4.0, 0.0], [spoil, 0.0]]])
    triangles = torch.tensor([[0, 1, 2], [0, 3, 1], [2, 2, 2], [0, 1, 1]])
    found = rasterise(xy, torch.full((1, 4), 2.0), triangles, (8, 8))
    assert torch.isfinite(found.barycentric).all()
    assert (found.face_id[0, 6] == 0).any()
    assert not rasterise(xy, torch.full((1, 4), 2.0), triangles[:0], (8, 8)).mask.any()


def test_perspective_correct_depth_and_barycentrics() -> None:
    # a slanted plane z = 4 + x world: at each pixel the ray meets it at one depth, known in closed form
    focal, size = 20.0, 24
    world = torch.tensor([[-1.5, -1.5], [2.0, -1.0], [0.0, 2.0]], dtype=torch.float64)
    depth = 4 + world[:, 0]
    xy = torch.stack([size / 2 + focal * world[:, 0] / depth, size / 2 - focal * world[:, 1] / depth], dim=1)
    found = rasterise(xy[None], depth[None], torch.tensor([[0, 1, 2]]), (size, size))
    rows, columns = torch.nonzero(found.mask[0], as_tuple=True)
    slope = (columns.double() + 0.5 - size / 2) / focal  # x / z of the ray
    expected = 4 / (1 - slope)
    torch.testing.assert_close(found.depth[0, rows, columns], expected)
    points = found.barycentric[0, rows, columns] @ world
    torch.testing.assert_close(points[:, 0], slope * expected)
    torch.testing.assert_close(points[:, 1], (size / 2 - rows.double() - 0.5) / focal * expected)
    assert torch.isinf(found.depth[~found.mask]).all()


def test_barycentrics_have_the_right_gradient() -> None:
    xy, depth, triangles = random_mesh(5, 2, (7, 6), 20)
    depth = depth + 1
    # vertices far enough from every pixel's edges keep their visibility under the finite differences
    ids = rasterise(xy.double(), depth.double(), triangles, (7, 6)).face_id

    def values(points: Tensor, distances: Tensor) -> tuple[Tensor, Tensor]:
        found = rasterise(points, distances, triangles, (7, 6))
        assert torch.equal(found.face_id, ids)
        return found.barycentric, found.depth[found.mask]

    inputs = (xy.double().requires_grad_(), depth.double().requires_grad_())
    assert torch.autograd.gradcheck(values, inputs, eps=1e-7, atol=1e-5, rtol=1e-4)


def test_interpolation_spreads_linear_functions_exactly() -> None:
    xy, depth, triangles = random_mesh(8, 2, (19, 23), 60)
    depth = torch.full_like(depth, 3.0)  # no perspective: the pixel's own position must come back
    found = rasterise(xy, depth, triangles, (19, 23), cull=False)
    image = interpolate(found, torch.cat([xy, torch.ones_like(xy[..., :1])], dim=2), triangles)
    rows, columns = torch.meshgrid(torch.arange(19) + 0.5, torch.arange(23) + 0.5, indexing="ij")
    assert image.shape == (2, 3, 19, 23)
    for index in range(2):
        mask = found.mask[index]
        torch.testing.assert_close(image[index, 0][mask], columns[mask], atol=1e-4, rtol=0)
        torch.testing.assert_close(image[index, 1][mask], rows[mask], atol=1e-4, rtol=0)
        assert (image[index][:, ~mask] == 0).all()


@pytest.mark.gpu
def test_cuda_equals_the_cpu() -> None:
    xy, depth, triangles = random_mesh(11, 3, (45, 37), 400)
    ours, theirs = (rasterise(xy.to(d), depth.to(d), triangles.to(d), (45, 37)) for d in ("cpu", "cuda"))
    assert torch.equal(ours.face_id, theirs.face_id.cpu())
    torch.testing.assert_close(ours.barycentric, theirs.barycentric.cpu())
