"""The Basel Face Model 2009 with Guo et al.'s expressions, in Deep3DFaceRecon's crop of 35,709 vertices.

Reads a user's licensed `BFM_model_front.mat`, or the raw files that it is made from (Deng et al. 2019;
sicxu/Deep3DFaceRecon_pytorch, MIT): see `load_bfm`. What the house conventions share with Deep3DFaceRecon (rotation,
camera, light, unweighted vertex normals) is used from there; this module adds what differs.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.errors import UserError
from common.face3d.camera import REFERENCE_SIZE, Camera, pose
from common.face3d.coefficients import SIZES
from common.face3d.matlab import indices, read_mat
from common.face3d.morphable import LANDMARKS, FaceModel
from common.weights import WEIGHTS

Arrays = dict[str, NDArray[Any]]

FRONT_FILE = "BFM_model_front.mat"
RAW_FILE = "01_MorphableModel.mat"
EXPRESSION_FILE = "Exp_Pca.bin"
DEVIATION_FILE = "std_exp.txt"
INFO_FILE = "facemodel_info.mat"
FRONT_INDEX_FILE = "BFM_front_idx.mat"
TRIM_INDEX_FILE = "BFM_exp_idx.mat"

NEIGHBOURS = 8
"""Columns of point_buf: no vertex of the crop has more triangles."""

KEYPOINTS = """
16644 16888 16467 16264 32244 32939 33375 33654 33838 34022 34312 34766 35472 27816 27608 27208 27440 28111 28787
29177 29382 29549 30288 30454 30662 31056 31716 8161 8177 8187 8192 6515 7243 8204 9163 9883 2215 3886 4920 5828 4801
3640 10455 11353 12383 14066 12653 11492 5522 6025 7495 8215 8935 10395 10795 9555 8836 8236 7636 6915 5909 7384 8223
9064 10537 8829 8229 7629
"""
LANDMARK_VERTICES = tuple(int(word) for word in KEYPOINTS.split())
"""Deep3DFaceRecon's 68 landmarks, counted from 0 (facemodel_info.mat counts from 1)."""


@dataclass(frozen=True)
class Layout:
    """Sizes of the files' arrays. The defaults are the only published ones; tests use smaller ones."""

    vertices: int = 35709
    triangles: int = 70789
    front_vertices: int = 27660
    front_triangles: int = 54681
    raw_vertices: int = 53490
    trimmed_vertices: int = 53215
    raw_modes: int = 199
    raw_expressions: int = 79

    def topology(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the index arrays that facemodel_info.mat and BFM_model_front.mat share."""
        return {
            "tri": (self.triangles, 3),
            "point_buf": (self.vertices, NEIGHBOURS),
            "keypoints": (LANDMARKS,),
            "frontmask2_idx": (self.front_vertices,),
            "tri_mask2": (self.front_triangles, 3),
            "skinmask": (self.vertices,),
        }

    def front(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the arrays of BFM_model_front.mat."""
        modes = {"idBase": SIZES["identity"], "exBase": SIZES["expression"], "texBase": SIZES["albedo"]}
        means = dict.fromkeys(("meanshape", "meantex"), (3 * self.vertices,))
        return means | {name: (3 * self.vertices, count) for name, count in modes.items()} | self.topology()


class Bfm09(FaceModel):
    """BFM09 as Deep3DFaceRecon uses it: 80 identity, 64 expression and 80 albedo modes, all N(0,1).

    As `FaceModel`, but colours are not clamped before light, as there. Expressions are PCA modes without meaning of
    their own, named expression_00 to expression_63. Regions: "front" (the part compared with photographs) and "skin".
    `front_triangles` (M,3) are the triangles of "front".
    """

    front_triangles: Tensor

    def __init__(self, *, front_triangles: Tensor, **parts: Any) -> None:
        names = [f"expression_{mode:02d}" for mode in range(SIZES["expression"])]
        super().__init__(name="bfm09", expression_names=names, **parts)
        self.register_buffer("front_triangles", front_triangles)

    def albedo(self, coefficients: Tensor) -> Tensor:
        """Vertex colours (B,V,3), display RGB about [0,1], not clamped, from albedo coefficients (B,80)."""
        self._check_coefficients("albedo", coefficients, self.albedo_basis)
        offset = coefficients @ self.albedo_basis.flatten(1)
        return self.mean_albedo + offset.view(-1, *self.mean_albedo.shape)

    def landmarks_upwards(self, identity: Tensor, expression: Tensor, angles: Tensor, translation: Tensor) -> Tensor:
        """The 68 landmarks (B,68,2) in the 224 px frame as Deep3DFaceRecon's losses and files have them: y UPWARDS.

        identity (B,80), expression (B,64), angles (B,3) rad, translation (B,3) dm. `recon.upwards` brings detected
        landmarks to the same convention. Only the 68 vertices are computed, a 500th of the mesh.
        """
        self._check_coefficients("identity", identity, self.identity_basis)
        self._check_coefficients("expression", expression, self.expression_basis)
        chosen = self.landmark_vertices
        offset = identity @ self.identity_basis[:, chosen].flatten(1)
        offset = offset + expression @ self.expression_basis[:, chosen].flatten(1)
        points = self.mean_shape[chosen] + offset.view(-1, LANDMARKS, 3)
        xy, _ = Camera(REFERENCE_SIZE).project(pose(points, angles, translation))
        return torch.stack([xy[..., 0], REFERENCE_SIZE - xy[..., 1]], dim=-1)


def load_bfm(path: Path, layout: Layout | None = None) -> Bfm09:
    """The model of BFM_model_front.mat, or of a folder with that file or with the raw files.

    Raw files, as in Deep3DFaceRecon_pytorch's folder BFM: 01_MorphableModel.mat (licensed), Exp_Pca.bin, std_exp.txt,
    facemodel_info.mat, BFM_front_idx.mat, BFM_exp_idx.mat. The path of 01_MorphableModel.mat stands for its folder.

    Raises:
        UserError: a file is absent (names where it comes from and the licence), torn, of another model or version, of
            other shapes, or with indices outside the mesh or counted from 0.
    """
    layout = layout or Layout()
    if path.name == RAW_FILE and not path.is_dir():
        path = path.parent
    if not path.is_dir():
        if not path.is_file():
            raise _absent(path)
        return _build(path, read_mat(path, layout.front()), layout)
    front = path / FRONT_FILE
    if front.is_file():
        return _build(front, read_mat(front, layout.front()), layout)
    if not (path / RAW_FILE).is_file():
        raise _absent(path / FRONT_FILE)
    return _build(path / INFO_FILE, _read_raw(path, layout), layout)


def _absent(path: Path) -> UserError:
    if path.name in (INFO_FILE, FRONT_INDEX_FILE, TRIM_INDEX_FILE, DEVIATION_FILE):
        page = WEIGHTS["deep3d_epoch20"].page
        return UserError(f"no {path.name} in {path.parent}: take it from the folder BFM of {page} (MIT)")
    entry = WEIGHTS["bfm09_expression" if path.name == EXPRESSION_FILE else "bfm09"]
    what = "" if path.name == EXPRESSION_FILE else f", or make {FRONT_FILE} with Deep3DFaceRecon_pytorch"
    return UserError(
        f"no {path.name} at {path}: get {entry.file_name} from {entry.page} ({entry.licence}; {entry.note}){what}"
    )


def _read_raw(folder: Path, layout: Layout) -> Arrays:
    """The arrays of BFM_model_front.mat from the raw files: upstream's transferBFM09, but for the folder."""
    paths = {
        name: folder / name for name in (INFO_FILE, FRONT_INDEX_FILE, TRIM_INDEX_FILE, EXPRESSION_FILE, DEVIATION_FILE)
    }
    for path in paths.values():
        if not path.is_file():
            raise _absent(path)
    arrays = read_mat(paths[INFO_FILE], layout.topology())
    front = _read_index(paths[FRONT_INDEX_FILE], "idx", layout.vertices, layout.trimmed_vertices)
    trim = _read_index(paths[TRIM_INDEX_FILE], "trimIndex", layout.trimmed_vertices, layout.raw_vertices)
    for prefix, mean, base, scale in (("shape", "meanshape", "idBase", 1e5), ("tex", "meantex", "texBase", 1.0)):
        arrays |= _read_modes(folder / RAW_FILE, prefix, mean, base, scale, _rows(trim[front]), layout)
    arrays["exBase"] = _read_expressions(paths[EXPRESSION_FILE], paths[DEVIATION_FILE], _rows(front), layout)
    return arrays


def _read_index(path: Path, name: str, size: int, count: int) -> NDArray[np.int64]:
    return indices(path, name, read_mat(path, {name: (size,)})[name], count)


def _rows(vertices: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows of x, y and z of vertices in an array that interleaves them."""
    return (3 * vertices[:, None] + np.arange(3)).ravel()


def _read_modes(
    path: Path, prefix: str, mean: str, base: str, scale: float, rows: NDArray[np.int64], layout: Layout
) -> Arrays:
    """Mean and deviation-scaled modes of shape (micrometres to decimetres) or texture (0-255)."""
    height, count = 3 * layout.raw_vertices, SIZES["identity" if prefix == "shape" else "albedo"]
    shapes = {f"{prefix}PC": (height, layout.raw_modes), f"{prefix}EV": (layout.raw_modes,), f"{prefix}MU": (height,)}
    raw = read_mat(path, shapes)
    modes = raw[f"{prefix}PC"][:, :count][rows] * raw[f"{prefix}EV"][:count].astype(np.float64)
    return {base: modes / scale, mean: raw[f"{prefix}MU"][rows].astype(np.float64) / scale}


def _read_expressions(
    modes_path: Path, deviations_path: Path, rows: NDArray[np.int64], layout: Layout
) -> NDArray[np.float64]:
    """Expression modes (3V,64) in decimetres; the file's mean expression is not used, as upstream."""
    count, width = layout.raw_expressions, 3 * layout.trimmed_vertices
    wanted = 4 + 4 * width * (1 + count)
    try:
        size = modes_path.stat().st_size
        with open(modes_path, "rb") as file:
            head = int.from_bytes(file.read(4), "little", signed=True)
            if size != wanted or head != count:
                raise UserError(
                    f"{modes_path} has {size} bytes and {head} modes, wanted {wanted} and {count}: torn or another file"
                )
            file.seek(4 * width, 1)
            modes = np.fromfile(file, dtype="<f4", count=width * SIZES["expression"]).reshape(-1, width)[:, rows]
        deviations = np.array(deviations_path.read_text(encoding="ascii").split(), dtype=np.float64)
    except OSError as error:
        raise UserError(f"cannot read {modes_path} and {deviations_path.name}: {error.strerror or error}") from error
    except ValueError as error:
        raise UserError(f"{deviations_path} does not hold {count} numbers ({error}): the file is damaged") from error
    if len(deviations) != count or not np.isfinite(deviations).all() or not np.isfinite(modes).all():
        raise UserError(f"{modes_path} or {deviations_path} does not hold {count} finite modes: a file is damaged")
    return modes.T * deviations[: SIZES["expression"]] / 1e5


def _build(path: Path, arrays: Arrays, layout: Layout) -> Bfm09:
    """The model of the arrays of BFM_model_front.mat; `path` is named in errors of the index arrays."""
    triangles = indices(path, "tri", arrays["tri"], layout.vertices)
    _check_neighbours(path, triangles, indices(path, "point_buf", arrays["point_buf"], layout.triangles + 1), layout)
    landmarks = indices(path, "keypoints", arrays["keypoints"], layout.vertices)
    if tuple((landmarks + 1).tolist()) == LANDMARK_VERTICES:
        raise UserError(
            f"{path}: keypoints counts from 0; MATLAB's indices count from 1: the file was converted wrongly"
        )
    front = indices(path, "frontmask2_idx", arrays["frontmask2_idx"], layout.vertices)
    inner = indices(path, "tri_mask2", arrays["tri_mask2"], layout.front_vertices)
    if not np.isin(arrays["skinmask"], (0, 1)).all():
        raise UserError(f"{path}: skinmask holds other values than 0 and 1: the file is damaged")
    mask = np.zeros(layout.vertices, dtype=bool)
    mask[front] = True
    mean = arrays["meanshape"].astype(np.float64).reshape(-1, 3)
    return Bfm09(
        mean_shape=_tensor(mean - mean.mean(axis=0)),
        identity_basis=_basis(arrays["idBase"]),
        expression_basis=_basis(arrays["exBase"]),
        mean_albedo=_tensor(arrays["meantex"].reshape(-1, 3) / 255),
        albedo_basis=_basis(arrays["texBase"]) / 255,
        triangles=torch.from_numpy(triangles),
        landmark_vertices=torch.from_numpy(landmarks),
        front_triangles=torch.from_numpy(front[inner]),
        regions={"front": torch.from_numpy(mask), "skin": torch.from_numpy(arrays["skinmask"].astype(bool))},
    )


def _tensor(array: NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))


def _basis(array: NDArray[Any]) -> Tensor:
    """Columns (3V,K) that interleave x, y and z as modes (K,V,3)."""
    return _tensor(array.T).view(array.shape[1], -1, 3)


def _check_neighbours(path: Path, triangles: NDArray[np.int64], listed: NDArray[np.int64], layout: Layout) -> None:
    """Check that point_buf lists just the triangles of each vertex, filled up with the number after the last.

    Deep3DFaceRecon sums the normals of the listed triangles, `lighting.vertex_normals` those of all adjacent ones:
    after this check the two agree.
    """
    real = listed < layout.triangles
    corners = triangles[np.minimum(listed, layout.triangles - 1)]
    touching = (corners == np.arange(layout.vertices)[:, None, None]).any(axis=2)
    ordered = np.sort(np.where(real, listed, -1 - np.arange(NEIGHBOURS)), axis=1)
    degrees = np.bincount(triangles.ravel(), minlength=layout.vertices)
    if (real & ~touching).any() or (np.diff(ordered, axis=1) == 0).any() or (real.sum(axis=1) != degrees).any():
        raise UserError(
            f"{path}: point_buf does not list the triangles of each vertex: damaged, or indices that count from 0"
        )
