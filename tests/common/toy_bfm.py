"""Synthetic BFM09 files with the published keys, shapes and 1-based indices; Deep3DFaceRecon's formulas in numpy."""

import math
from pathlib import Path

import numpy as np
from scipy.io import savemat

from common.face3d.bfm import LANDMARK_VERTICES, Layout

Arrays = dict[str, np.ndarray]

SMALL = Layout(
    vertices=93, triangles=160, front_vertices=40, front_triangles=50, raw_vertices=120, trimmed_vertices=110
)
"""A tube of 9 rings of 10 vertices and three vertices without triangles; modes as published."""


def topology(layout: Layout, columns: int, rng: np.random.Generator) -> Arrays:
    """The arrays of facemodel_info.mat, float32 and 1-based, of a tube with `columns` vertices per ring."""
    rings = layout.vertices // columns - 1
    start = (np.arange(rings)[:, None] * columns + np.arange(columns)).ravel()
    turned = start // columns * columns + (start + 1) % columns
    pairs = [[start, turned, start + columns], [turned, turned + columns, start + columns]]
    tri = np.transpose(pairs, (2, 0, 1)).reshape(-1, 3)[: layout.triangles]
    assert len(tri) == layout.triangles
    order = np.argsort(tri.ravel(), kind="stable")
    vertex = tri.ravel()[order]
    point_buf = np.full((layout.vertices, 8), layout.triangles)
    point_buf[vertex, np.arange(len(vertex)) - np.searchsorted(vertex, vertex)] = order // 3
    front = np.sort(rng.choice(layout.vertices, layout.front_vertices, replace=False))
    front[0] = 0
    inner = rng.permutation(np.arange(3 * layout.front_triangles) % layout.front_vertices).reshape(-1, 3)
    published = layout.vertices == Layout().vertices
    keypoints = np.array(LANDMARK_VERTICES) if published else rng.permutation(layout.vertices)[:68]
    arrays = {
        "tri": tri + 1,
        "point_buf": point_buf + 1,
        "keypoints": keypoints[None] + 1,
        "frontmask2_idx": front[:, None] + 1,
        "tri_mask2": inner + 1,
        "skinmask": rng.integers(2, size=(1, layout.vertices)),
    }
    return {name: array.astype(np.float32) for name, array in arrays.items()}


def tube(count: int, columns: int) -> np.ndarray:
    """Vertices (count,3) of the tube, about 1 dm high and wide, wound outwards by `topology`."""
    ring, place = np.divmod(np.arange(count), columns)
    turn = -2 * math.pi * place / columns
    return np.stack([np.cos(turn), 0.5 - ring / ring.max(), np.sin(turn)], axis=1)


def front_arrays(layout: Layout = SMALL, columns: int = 10, seed: int = 0, modes: int = 80) -> Arrays:
    """The arrays of BFM_model_front.mat; only the first `modes` modes are not zero, so that large files stay small."""
    rng = np.random.default_rng(seed)
    mean = tube(layout.vertices, columns) + 0.05 * rng.standard_normal((layout.vertices, 3)) + 3.0
    arrays = topology(layout, columns, rng)
    arrays["meanshape"] = mean.reshape(1, -1).astype(np.float32)
    arrays["meantex"] = rng.uniform(0, 255, (1, 3 * layout.vertices)).astype(np.float32)
    for name, count, size in (("idBase", 80, 0.02), ("exBase", 64, 0.02), ("texBase", 80, 12.0)):
        arrays[name] = np.zeros((3 * layout.vertices, count), dtype=np.float32)
        used = min(modes, count)
        arrays[name][:, :used] = size * rng.standard_normal((3 * layout.vertices, used), dtype=np.float32)
    return arrays


def write_raw(folder: Path, layout: Layout, info: Arrays, seed: int = 0, modes: int = 80) -> Arrays:
    """Write the raw files, and return the arrays of BFM_model_front.mat that belong to them.

    The expected arrays are computed vertex by vertex as the raw files are described, without the loader.
    """
    rng = np.random.default_rng(seed)
    raw, trimmed = layout.raw_vertices, layout.trimmed_vertices
    trim = np.sort(rng.choice(raw, trimmed, replace=False))
    front = rng.choice(trimmed, layout.vertices, replace=False)
    trim[0], front[0] = 0, 0
    morphable, expected = {}, dict(info)
    picked = trim[front]
    for prefix, mean, base, unit in (("shape", "meanshape", "idBase", 1e5), ("tex", "meantex", "texBase", 1.0)):
        pc = np.zeros((3 * raw, layout.raw_modes), dtype=np.float32)
        pc[:, :modes] = rng.standard_normal((3 * raw, modes), dtype=np.float32)
        pc[:, 80:81] = 7  # what is behind the first 80 modes must not be read
        deviation = np.abs(rng.standard_normal((layout.raw_modes, 1))) * unit / 10
        middle = (rng.standard_normal((3 * raw, 1)) * unit).astype(np.float32)
        morphable |= {f"{prefix}PC": pc, f"{prefix}EV": deviation, f"{prefix}MU": middle}
        scaled = pc.reshape(raw, 3, -1)[picked, :, :80] * deviation[:80, 0] / unit
        expected[base] = scaled.reshape(-1, 80)
        expected[mean] = middle.reshape(raw, 3)[picked].reshape(1, -1) / unit
    savemat(folder / "01_MorphableModel.mat", morphable, do_compression=True)
    savemat(folder / "facemodel_info.mat", info)
    savemat(folder / "BFM_front_idx.mat", {"idx": (front[:, None] + 1).astype(np.float32)})
    savemat(folder / "BFM_exp_idx.mat", {"trimIndex": (trim[:, None] + 1).astype(np.float64)})
    expected["exBase"] = write_expressions(folder, layout, front, rng)
    return expected


def write_expressions(folder: Path, layout: Layout, front: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Write Exp_Pca.bin and std_exp.txt; return exBase (3V,64)."""
    trimmed, count = layout.trimmed_vertices, layout.raw_expressions
    mean = rng.standard_normal(3 * trimmed, dtype=np.float32)
    pc = np.zeros((count, 3 * trimmed), dtype=np.float32)
    pc[:64] = rng.standard_normal((64, 3 * trimmed), dtype=np.float32)
    deviation = np.abs(rng.standard_normal(count)) * 1e4
    head = np.array([count], dtype="<i4").tobytes()
    (folder / "Exp_Pca.bin").write_bytes(head + mean.tobytes() + pc.tobytes())
    (folder / "std_exp.txt").write_text(" ".join(f"{value:.17g}" for value in deviation) + "\n")
    return np.concatenate([(pc[:64, 3 * v : 3 * v + 3] * deviation[:64, None]).T / 1e5 for v in front])


def deep3d(arrays: Arrays, coefficients: np.ndarray) -> Arrays:
    """Shape, camera vertices, normals, colours and landmarks of one face (257,), after the paper's code, in float64."""
    a = {name: value.astype(np.float64) for name, value in arrays.items()}
    tri, point_buf = a["tri"].astype(int) - 1, a["point_buf"].astype(int) - 1
    mean = a["meanshape"].reshape(-1, 3)
    mean = (mean - mean.mean(0)).ravel()
    shape = (mean + a["idBase"] @ coefficients[:80] + a["exBase"] @ coefficients[80:144]).reshape(-1, 3)
    texture = ((a["meantex"].ravel() + a["texBase"] @ coefficients[144:224]) / 255).reshape(-1, 3)
    v1, v2, v3 = (shape[tri[:, k]] for k in range(3))
    normal = np.cross(v1 - v2, v2 - v3)
    normal = np.concatenate([normal / np.linalg.norm(normal, axis=1, keepdims=True), np.zeros((1, 3))])
    normal = normal[point_buf].sum(1)
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-12)
    (x, y, z), (sx, sy, sz) = np.cos(coefficients[224:227]), np.sin(coefficients[224:227])
    about_x = np.array([[1, 0, 0], [0, x, -sx], [0, sx, x]])
    about_y = np.array([[y, 0, sy], [0, 1, 0], [-sy, 0, y]])
    about_z = np.array([[z, -sz, 0], [sz, z, 0], [0, 0, 1]])
    turn = (about_z @ about_y @ about_x).T
    camera = shape @ turn + coefficients[254:257]
    camera[:, 2] = 10 - camera[:, 2]
    projected = camera @ np.array([[1015.0, 0, 112], [0, 1015, 112], [0, 0, 1]]).T
    projected = projected[:, :2] / projected[:, 2:]
    n = normal @ turn
    w = (math.pi * math.sqrt(1 / (4 * math.pi)), 2 * math.pi / math.sqrt(3) * math.sqrt(3 / (4 * math.pi)))
    w2 = 2 * math.pi / math.sqrt(8) * 3 * math.sqrt(5) / math.sqrt(12 * math.pi)
    p, q, r = n.T
    bands = [w[0] + 0 * p, -w[1] * q, w[1] * r, -w[1] * p, w2 * p * q, -w2 * q * r]
    bands += [w2 / (2 * math.sqrt(3)) * (3 * r * r - 1), -w2 * p * r, w2 / 2 * (p * p - q * q)]
    light = coefficients[227:254].reshape(3, 9) + np.array([0.8] + [0.0] * 8)
    colour = texture * (np.stack(bands, 1) @ light.T)
    keypoints = a["keypoints"].astype(int).ravel() - 1
    return {
        "shape": shape,
        "texture": texture,
        "normal": n,
        "colour": colour,
        "camera": camera,
        "landmarks": projected[keypoints],
    }
