"""Geometry that painting needs: smooth curves, ambient occlusion, Laplacian eigenfunctions. Numpy, float64."""

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline
from scipy.sparse import coo_matrix, csr_matrix, diags
from scipy.sparse.linalg import eigsh
from scipy.spatial import cKDTree

from common.face3d.lighting import vertex_normals
from common.face3d.raster import NEAR, rasterise

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Indices = NDArray[np.int64]


def smooth_curve(points: Array, *, closed: bool, samples: int = 200) -> Array:
    """A cubic spline through points (N,D), sampled (samples,D) by chord length; the first point repeats if closed."""
    if closed:
        points = np.concatenate([points, points[:1]])
    length = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))])
    spline = CubicSpline(length, points, bc_type="periodic" if closed else "natural")
    return np.asarray(spline(np.linspace(0, length[-1], samples)))


def curve_distance(points: Array, curve: Array) -> tuple[Array, Array]:
    """Distance (N,) of points (N,D) to a sampled curve (S,D), and the place on it (N,), from 0 (start) to 1 (end)."""
    distance, nearest = cKDTree(curve).query(points)
    return np.asarray(distance), np.asarray(nearest, dtype=np.float64) / (len(curve) - 1)


def signed_distance(points: Array, outline: Array) -> Array:
    """Distance (N,) of points (N,2) to a closed outline (S,2), negative inside."""
    distance, _ = curve_distance(points, outline)
    low, high = outline.min(0), outline.max(0)
    near = np.flatnonzero(((points >= low) & (points <= high)).all(1))
    start, end = outline, np.roll(outline, -1, axis=0)
    x, y = points[near, 0, None], points[near, 1, None]
    crosses = (start[:, 1] > y) != (end[:, 1] > y)
    rise = np.where(crosses, end[:, 1] - start[:, 1], 1.0)
    hits = crosses & (x < start[:, 0] + (y - start[:, 1]) / rise * (end[:, 0] - start[:, 0]))
    distance[near[hits.sum(1) % 2 == 1]] *= -1
    return distance


def normals(vertices: Array, triangles: Indices) -> Array:
    """Unit vertex normals (V,3) of one mesh."""
    return vertex_normals(torch.from_numpy(vertices)[None], torch.from_numpy(triangles))[0].numpy()


def ambient_occlusion(vertices: Array, triangles: Indices, *, directions: int = 40, size: int = 160) -> Array:
    """How much of a white sky each vertex (V,3) sees, cosine-weighted: 1 in the open, 0 in a closed cavity.

    From each of `directions` places spread over the sphere (Fibonacci lattice) the mesh is drawn into a depth map of
    `size` pixels; what lies behind the map is in the dark.
    """
    centred = vertices - (vertices.max(0) + vertices.min(0)) / 2
    radius = np.linalg.norm(centred, axis=1).max() * 1.01
    bias = 3 * radius / size
    rank = np.arange(directions) + 0.5
    height, turn = 1 - 2 * rank / directions, rank * np.pi * (3 - np.sqrt(5))
    level = np.sqrt(1 - height**2)
    towards = np.stack([level * np.cos(turn), height, level * np.sin(turn)], 1)
    side = np.cross(towards, np.roll(towards, 1, axis=1))
    side /= np.linalg.norm(side, axis=1, keepdims=True)
    up = np.cross(towards, side)
    cosine = np.maximum(towards @ normals(vertices, triangles).T, 0)
    seen, faces = np.empty_like(cosine), torch.from_numpy(triangles)
    for start in range(0, directions, 8):  # a few at a time bounds the memory
        part = slice(start, start + 8)
        plane = np.stack([side[part] @ centred.T, up[part] @ centred.T], axis=2)
        xy, depth = (plane / radius + 1) * size / 2, radius + 2 * NEAR - towards[part] @ centred.T
        drawn = rasterise(torch.from_numpy(xy), torch.from_numpy(depth), faces, (size, size), cull=False).depth.numpy()
        column, row = np.moveaxis(xy.astype(np.int64).clip(0, size - 1), 2, 0)
        seen[part] = depth <= np.take_along_axis(drawn.reshape(len(xy), -1), row * size + column, axis=1) + bias
    return np.asarray((seen * cosine).sum(0) / (cosine.sum(0) + 1e-9))


def adjacency(triangles: Indices, count: int) -> csr_matrix:
    """Row-stochastic neighbour matrix (V,V): multiplying by it averages each vertex's neighbours."""
    edges = np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [2, 0]]])
    both = np.concatenate([edges, edges[:, ::-1]])
    matrix = coo_matrix((np.ones(len(both)), (both[:, 0], both[:, 1])), (count, count)).tocsr()
    matrix.data[:] = 1.0
    degree = np.asarray(matrix.sum(1)).ravel()
    return csr_matrix(diags(1 / np.maximum(degree, 1)) @ matrix)


def laplacian_modes(vertices: Array, triangles: Indices, mask: Mask, count: int) -> Array:
    """The `count` smoothest functions (count,V) on the part of the mesh in `mask`: unit mean square there, zero
    outside.

    Eigenfunctions of the cotangent Laplacian with the area as measure, the constant left out; their sign is fixed by
    making the value of largest magnitude positive. Vertices of `mask` in no triangle of it stay zero.
    """
    inside = triangles[mask[triangles].all(1)]
    used, compact = np.unique(inside, return_inverse=True)
    faces = compact.reshape(-1, 3)
    points, size = vertices[used], len(used)
    stiffness, measure = csr_matrix((size, size)), np.zeros(size)
    for corner in range(3):
        a, b, c = faces[:, corner], faces[:, (corner + 1) % 3], faces[:, (corner + 2) % 3]
        one, two = points[b] - points[a], points[c] - points[a]
        double_area = np.linalg.norm(np.cross(one, two), axis=1) + 1e-12
        weight = np.clip((one * two).sum(1) / double_area, 0.01, 10) / 2
        stiffness = stiffness + coo_matrix((weight, (b, c)), (size, size)) + coo_matrix((weight, (c, b)), (size, size))
        np.add.at(measure, a, double_area / 6)
    measure /= measure.mean()
    laplacian = diags(np.asarray(stiffness.sum(1)).ravel()) - stiffness
    _, functions = eigsh(laplacian, count + 1, diags(measure), sigma=-1e-6, which="LM", v0=np.ones(size))
    functions = functions[:, 1:].T
    functions /= np.sqrt((functions**2).mean(1, keepdims=True))
    peak = functions[np.arange(count), np.abs(functions).argmax(1)]
    modes = np.zeros((count, len(vertices)))
    modes[:, used] = functions * np.sign(peak)[:, None]
    return modes
