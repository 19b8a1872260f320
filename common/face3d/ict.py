"""ICT-FaceKit (Li et al. 2020, MIT licence): from a clone's OBJ files to one npz, and from there to a `FaceModel`.

`python -m common ict CLONE` converts. The npz holds `neutral` (V,3) float32 in centimetres, `identity`
(100,V,3) and `expression` (53,V,3) float16 offsets per unit coefficient, `expression_names`, `triangles` (F,3) int32
(quads split), `uv` and `uv_triangles`, `landmarks68` int32, `region_names` and `region_ranges` (R,2) int32, inclusive
vertex ranges.
"""

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from common.errors import UserError
from common.face3d import skin
from common.face3d.morphable import LANDMARKS, FaceModel
from common.files import atomic_path

Arrays = dict[str, NDArray[np.generic]]

REGIONS: Mapping[str, tuple[int, int]] = {
    "face": (0, 9408),
    "narrow_face": (0, 6705),
    "head_neck": (9409, 11247),
    "mouth_socket": (11248, 13293),
    "eye_socket_left": (13294, 13677),
    "eye_socket_right": (13678, 14061),
    "gums_tongue": (14062, 17038),
    "teeth": (17039, 21450),
    "eyeball_left": (21451, 23020),
    "eyeball_right": (23021, 24590),
    "iris_left": (22221, 23020),
    "iris_right": (23791, 24590),
    "lacrimal_left": (24591, 24794),
    "lacrimal_right": (24795, 24998),
    "eye_blend_left": (24999, 25022),
    "eye_blend_right": (25023, 25046),
    "eye_occlusion_left": (25047, 25198),
    "eye_occlusion_right": (25199, 25350),
    "eyelashes_left": (25351, 26034),
    "eyelashes_right": (26035, 26718),
}
"""Inclusive vertex ranges of the light model's topology, from its README; `iris` is the inner ball of `eyeball`."""

_HIDDEN = ("iris", "lacrimal", "eye_blend", "eye_occlusion", "eyelashes")
"""Parts made for transparent shaders; opaque, they would cover the eyes. The iris is painted on the outer ball."""

_SHAPES: Mapping[str, tuple[int | str, ...]] = {
    "neutral": ("V", 3),
    "identity": ("I", "V", 3),
    "expression": ("E", "V", 3),
    "expression_names": ("E",),
    "triangles": ("F", 3),
    "uv": ("T", 2),
    "uv_triangles": ("F", 3),
    "landmarks68": (LANDMARKS,),
    "region_names": ("R",),
    "region_ranges": ("R", 2),
}


def load(path: Path) -> FaceModel:
    """The model of an npz or of a clone (or its FaceXModel folder), in decimetres, with painted skin.

    Raises `UserError` for an absent, damaged or foreign file.
    """
    return build(read_clone(path) if path.is_dir() else read_npz(path))


def build(arrays: Arrays) -> FaceModel:
    """A `FaceModel` from the arrays of the npz: centimetres to decimetres, centred on the mean vertex, painted."""
    neutral = arrays["neutral"].astype(np.float64) / 10
    neutral -= neutral.mean(0)
    regions = {name: np.zeros(len(neutral), dtype=bool) for name in arrays["region_names"].tolist()}
    for mask, (first, last) in zip(regions.values(), arrays["region_ranges"].tolist(), strict=True):
        mask[first : last + 1] = True
    hidden = np.zeros(len(neutral), dtype=bool)
    for name, mask in regions.items():
        hidden |= mask & name.startswith(_HIDDEN)
    triangles = arrays["triangles"].astype(np.int64)
    triangles = triangles[~hidden[triangles].any(1)]
    landmarks = arrays["landmarks68"].astype(np.int64)
    painted = {"mouth": regions["mouth_socket"], "gums": regions["gums_tongue"], "teeth": regions["teeth"]}
    for side in ("left", "right"):
        painted[f"eyeball_{side}"] = regions[f"eyeball_{side}"] & ~hidden
    opened = neutral
    if "jawOpen" in arrays["expression_names"]:
        jaw = arrays["expression_names"].tolist().index("jawOpen")
        opened = neutral + 0.6 * arrays["expression"][jaw].astype(np.float64) / 10
    canvas = skin.prepare(neutral, triangles, landmarks, painted, opened)
    mean_albedo, albedo_basis = skin.albedo_modes(canvas, triangles)
    return FaceModel(
        mean_shape=torch.from_numpy(neutral).float(),
        identity_basis=torch.from_numpy(arrays["identity"].astype(np.float32) / 10),
        expression_basis=torch.from_numpy(arrays["expression"].astype(np.float32) / 10),
        mean_albedo=torch.from_numpy(mean_albedo).float(),
        albedo_basis=torch.from_numpy(albedo_basis).float(),
        triangles=torch.from_numpy(triangles),
        landmark_vertices=torch.from_numpy(landmarks),
        name="ict",
        expression_names=arrays["expression_names"].tolist(),
        regions={name: torch.from_numpy(mask) for name, mask in regions.items()},
    )


def read_npz(path: Path) -> Arrays:
    """The arrays of an npz, their names, shapes and index ranges checked; nothing is unpickled."""
    if not path.is_file():
        raise UserError(
            f"no ICT-FaceKit model at {path}: give an npz or a clone of https://github.com/ICT-VGL/ICT-FaceKit"
        )
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in _SHAPES}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is not an ICT-FaceKit npz ({error}); convert it again from the clone") from error
    return _checked(arrays, path)


def _checked(arrays: Arrays, path: Path) -> Arrays:
    sizes: dict[str, int] = {}
    for key, wanted in _SHAPES.items():
        found = arrays[key].shape
        expected = tuple(size if isinstance(size, int) else sizes.get(size, -1) for size in wanted)
        if len(found) != len(wanted) or any(e not in (-1, f) for e, f in zip(expected, found, strict=True)):
            raise UserError(f"{path}: {key} has shape {found}, wanted {wanted}; convert it again from the clone")
        sizes |= {name: size for name, size in zip(wanted, found, strict=True) if isinstance(name, str)}
    for key, limit in (("triangles", "V"), ("uv_triangles", "T"), ("landmarks68", "V"), ("region_ranges", "V")):
        indices = arrays[key].astype(np.int64)
        if indices.size and (indices.min() < 0 or indices.max() >= sizes[limit]):
            raise UserError(f"{path}: {key} points outside the mesh; convert it again from the clone")
    return arrays


def convert(clone: Path, out: Path, regions: Mapping[str, tuple[int, int]] = REGIONS) -> None:
    """Convert a clone to the npz (about 20 MB), written atomically."""
    arrays = read_clone(clone, regions)
    with atomic_path(out) as temporary:
        np.savez_compressed(temporary, allow_pickle=False, **arrays)


def read_clone(clone: Path, regions: Mapping[str, tuple[int, int]] = REGIONS) -> Arrays:
    """The arrays of the npz, from a clone of ICT-FaceKit or its FaceXModel folder.

    The identity files are `identity000.obj`, ...; expressions and landmarks are named in `vertex_indices.json`.
    Raises `UserError` that names the file which is missing, malformed or of another topology.
    """
    folder = clone / "FaceXModel" if (clone / "FaceXModel").is_dir() else clone
    names, landmarks = _read_indices(folder / "vertex_indices.json")
    neutral, uv, triangles, uv_triangles = _read_mesh(folder / "generic_neutral_mesh.obj")
    count = len(neutral)
    if max(last for _, last in regions.values()) >= count:
        raise UserError(f"{folder} has {count} vertices, fewer than the ICT-FaceKit light model: update the clone")
    identities = sorted(folder.glob("identity[0-9][0-9][0-9].obj"))
    if not identities:
        raise UserError(f"no identity000.obj in {folder}: give a whole clone of ICT-FaceKit")
    arrays: Arrays = {
        "neutral": neutral.astype(np.float32),
        "identity": _offsets(identities, neutral),
        "expression": _offsets([folder / f"{name}.obj" for name in names], neutral),
        "expression_names": np.array(names),
        "triangles": triangles,
        "uv": uv.astype(np.float32),
        "uv_triangles": uv_triangles,
        "landmarks68": np.array(landmarks, dtype=np.int32),
        "region_names": np.array(list(regions)),
        "region_ranges": np.array(list(regions.values()), dtype=np.int32),
    }
    return _checked(arrays, folder)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}; give a whole clone of ICT-FaceKit") from error


def _read_indices(path: Path) -> tuple[list[str], list[int]]:
    """Expression names and landmark vertices of vertex_indices.json."""
    try:
        content = json.loads(_read_text(path))
        names, landmarks = content["expressions"], content["idx_to_landmark_verts"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise UserError(f"{path} has no expressions and idx_to_landmark_verts ({error})") from error
    if not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise UserError(f"{path}: an expression name is not a plain file name")
    return names, landmarks


def _offsets(paths: list[Path], neutral: NDArray[np.float64]) -> NDArray[np.float16]:
    """Differences (N,V,3) of shapes from the neutral mesh."""
    offsets = np.empty((len(paths), *neutral.shape), dtype=np.float16)
    for index, path in enumerate(paths):
        vertices = _read_lines(path, _read_text(path), "v ", 3)
        if vertices.shape != neutral.shape:
            raise UserError(f"{path} has {len(vertices)} vertices, the neutral mesh {len(neutral)}: a mixed clone")
        offsets[index] = vertices - neutral
    return offsets


def _read_lines(path: Path, text: str, keyword: str, columns: int) -> NDArray[np.float64]:
    """The numbers (N, columns) of the lines that start with a keyword."""
    rows = [line[len(keyword) :] for line in text.splitlines() if line.startswith(keyword)]
    try:
        return np.array([row.split()[:columns] for row in rows], dtype=np.float64).reshape(-1, columns)
    except ValueError as error:
        raise UserError(f"{path}: a line {keyword.strip()!r} does not hold {columns} numbers ({error})") from error


def _read_mesh(path: Path) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int32], NDArray[np.int32]]:
    """Vertices, texture coordinates, and the triangles of both; faces are `v/vt` polygons, split into fans."""
    text = _read_text(path)
    fans: list[list[list[int]]] = []
    try:
        for line in text.splitlines():
            if line.startswith("f "):
                corners = [[int(number) - 1 for number in word.split("/")[:2]] for word in line.split()[1:]]
                fans += [[corners[0], corners[i], corners[i + 1]] for i in range(1, len(corners) - 1)]
        faces = np.array(fans, dtype=np.int32).reshape(-1, 3, 2)
    except ValueError as error:
        raise UserError(f"{path}: a face is not a polygon of v/vt pairs ({error})") from error
    uv = _read_lines(path, text, "vt ", 2)
    return _read_lines(path, text, "v ", 3), uv, faces[..., 0].copy(), faces[..., 1].copy()
