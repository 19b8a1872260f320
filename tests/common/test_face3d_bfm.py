"""BFM09: loaders against files written here and Deep3DFaceRecon's formulas in numpy, and every way a file is wrong."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import loadmat, savemat
from scipy.sparse import coo_matrix, diags
from scipy.sparse.linalg import spsolve

from common.errors import UserError
from common.face3d.bfm import LANDMARK_VERTICES, Bfm09, Layout, load_bfm
from common.face3d.camera import Camera, pose
from common.face3d.coefficients import COUNT, split
from common.face3d.lighting import shade, vertex_normals
from common.face3d.morphable import load_face_model
from common.face3d.render import render
from tests.common.toy_bfm import SMALL, Arrays, deep3d, front_arrays, topology, write_raw

LICENCE_PAGE = "https://faces.dmi.unibas.ch/bfm"


def coefficients(count: int, seed: int = 0) -> np.ndarray:
    """Random faces (count,257) in front of the camera."""
    values = np.random.default_rng(seed).standard_normal((count, COUNT))
    values[:, 224:227] *= 0.4
    values[:, 227:254] *= 0.2
    values[:, 254:257] *= 0.3
    return values


def write(path: Path, arrays: Arrays) -> Path:
    savemat(path, arrays, do_compression=True)
    return path


@pytest.fixture
def front(tmp_path: Path) -> Path:
    return write(tmp_path / "BFM_model_front.mat", front_arrays())


@pytest.fixture
def raw(tmp_path: Path) -> tuple[Path, Arrays]:
    folder = tmp_path / "BFM of mine"
    folder.mkdir()
    return folder, write_raw(folder, SMALL, topology(SMALL, 10, np.random.default_rng(5)))


def assert_deep3d(model: Bfm09, arrays: Arrays, values: np.ndarray, tolerance: float) -> None:
    """Compare everything that the house computes from the model with the numpy formulas."""
    model = model.double()
    parts = split(torch.from_numpy(values))
    shape = model.shape(parts["identity"], parts["expression"])
    posed = pose(shape, parts["angles"], parts["translation"])
    normals = vertex_normals(posed, model.triangles)
    colours = shade(model.albedo(parts["albedo"]), normals, parts["gamma"])
    xy, depth = Camera(224).project(posed)
    marks = model.landmarks_upwards(*(parts[name] for name in ("identity", "expression", "angles", "translation")))
    for index, row in enumerate(values):
        expected = deep3d(arrays, row)
        for name, found in (
            ("shape", shape),
            ("texture", model.albedo(parts["albedo"])),
            ("normal", normals),
            ("colour", colours),
            ("landmarks", marks),
        ):
            np.testing.assert_allclose(found[index].numpy(), expected[name], atol=tolerance, err_msg=name)
        np.testing.assert_allclose(depth[index].numpy(), expected["camera"][:, 2], atol=tolerance)
        flipped = expected["landmarks"] * [1, -1] + [0, 224]
        np.testing.assert_allclose(xy[index, model.landmark_vertices].numpy(), flipped, atol=tolerance)


def test_front_file_gives_deep3d_faces(front: Path) -> None:
    model = load_bfm(front, SMALL)
    assert model.name == "bfm09"
    assert model.sizes == (80, 64, 80)
    assert model.mean_shape.dtype == torch.float32
    arrays = front_arrays()
    values = coefficients(3)
    assert (deep3d(arrays, values[0])["texture"] < 0).any(), "the test must see colours that a clamp would change"
    assert_deep3d(model, arrays, values, 2e-5)
    np.testing.assert_allclose(model.mean_shape.mean(0).numpy(), 0, atol=1e-6)
    assert model.regions["front"].nonzero().flatten().tolist() == (arrays["frontmask2_idx"].ravel() - 1).tolist()
    assert model.regions["skin"].tolist() == (arrays["skinmask"].ravel() == 1).tolist()
    inner = arrays["frontmask2_idx"].ravel()[arrays["tri_mask2"].astype(int) - 1] - 1
    assert torch.equal(model.front_triangles, torch.from_numpy(inner).long())
    assert model.expression_names[0] == "expression_00"
    assert model.expression_index("expression_63") == 63


def test_render_takes_the_named_coefficients(front: Path) -> None:
    model = load_bfm(front, SMALL)
    values = torch.from_numpy(coefficients(2)).float()
    picture = render(model, **split(values), size=224)
    assert picture.mask.mean() > 0.05
    expected = np.stack([deep3d(front_arrays(), row)["landmarks"] for row in values.double().numpy()])
    np.testing.assert_allclose(picture.landmarks.numpy(), expected * [1, -1] + [0, 224], atol=1e-2)


def test_raw_folder_gives_the_same_model_as_its_front_file(raw: tuple[Path, Arrays], tmp_path: Path) -> None:
    folder, expected = raw
    wanted = load_bfm(write(tmp_path / "BFM_model_front.mat", expected), SMALL)
    for path in (folder, folder / "01_MorphableModel.mat"):
        model = load_bfm(path, SMALL)
        for name, buffer in wanted.named_buffers():
            torch.testing.assert_close(model.get_buffer(name), buffer, rtol=1e-5, atol=1e-6)
    assert_deep3d(model, expected, coefficients(2), 1e-4)
    # a ready front file in the folder is taken before the raw ones
    other = write(folder / "BFM_model_front.mat", front_arrays(seed=9))
    assert torch.equal(load_bfm(folder, SMALL).mean_shape, load_bfm(other, SMALL).mean_shape)


def test_published_sizes(tmp_path: Path) -> None:
    arrays = front_arrays(Layout(), columns=100, modes=2)
    shapes = {name: array.shape for name, array in arrays.items()}
    assert shapes == {
        "meanshape": (1, 107127),
        "meantex": (1, 107127),
        "idBase": (107127, 80),
        "exBase": (107127, 64),
        "texBase": (107127, 80),
        "tri": (70789, 3),
        "point_buf": (35709, 8),
        "keypoints": (1, 68),
        "frontmask2_idx": (27660, 1),
        "tri_mask2": (54681, 3),
        "skinmask": (1, 35709),
    }
    path = write(tmp_path / "BFM_model_front.mat", arrays)
    model = load_bfm(path)
    assert tuple(model.landmark_vertices.tolist()) == LANDMARK_VERTICES
    assert LANDMARK_VERTICES[30] == 8192
    assert_deep3d(model, arrays, coefficients(1), 2e-4)
    for name in ("idBase", "exBase", "texBase"):
        arrays[name][:] = 0
    arrays["keypoints"] -= 1
    with pytest.raises(UserError, match="keypoints counts from 0"):
        load_bfm(write(path, arrays))


def change(name: str, edit: Callable[[np.ndarray], object]) -> Callable[[Arrays], None]:
    def apply(arrays: Arrays) -> None:
        arrays[name] = edit(arrays[name].copy())  # type: ignore[assignment]

    return apply


def put(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def edit(array: np.ndarray) -> np.ndarray:
        array.flat[1] = value
        return array

    return edit


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda arrays: arrays.pop("exBase"), "has no variable exBase; it holds .*meanshape"),
        (change("idBase", lambda a: a[:, :79]), r"idBase is 279 x 79 .*wanted 279 x 80"),
        (change("idBase", lambda a: a.T), r"idBase is 80 x 279"),
        (change("meanshape", lambda a: a[:, :-3]), r"meanshape is 1 x 276"),
        (change("tri", lambda a: {"inner": a}), "tri is a MATLAB struct"),
        (change("tri", lambda a: np.array([[a, 1]], dtype=object)), "tri is a MATLAB cell"),
        (change("tri", lambda a: "x" * a.size), "tri is a MATLAB char"),
        (change("meantex", lambda a: a + 1j), "meantex holds numbers that are not real"),
        (change("texBase", put(np.nan)), "texBase holds numbers that are not real and finite"),
        (change("tri", put(np.inf)), "tri holds numbers that are not real and finite"),
        (change("tri", lambda a: a - 1), "tri counts from 0"),
        (change("point_buf", lambda a: a - 1), "point_buf counts from 0"),
        (change("tri_mask2", lambda a: a - 1), "tri_mask2 counts from 0"),
        (change("frontmask2_idx", lambda a: a - 1), "frontmask2_idx counts from 0"),
        (change("tri", put(94)), "tri holds indices 1 to 94, outside 1 to 93"),
        (change("tri", put(-3)), "tri holds indices -3 to"),
        (change("tri", put(2.5)), "tri holds fractions"),
        (change("tri", put(1e30)), "tri holds"),
        (change("point_buf", put(162)), "point_buf holds indices 1 to 162, outside 1 to 161"),
        (change("point_buf", lambda a: np.roll(a, 1, axis=0)), "does not list the triangles of each vertex"),
        (change("point_buf", lambda a: np.where(a == 160, 161, a)), "does not list the triangles of each vertex"),
        (change("point_buf", lambda a: np.where(a == 161, a[:, :1], a)), "does not list the triangles"),
        (change("keypoints", put(94)), "keypoints holds indices"),
        (change("tri_mask2", put(41)), "tri_mask2 holds indices 1 to 41, outside 1 to 40"),
        (change("skinmask", put(0.5)), "skinmask holds other values"),
    ],
)
def test_wrong_front_files_are_named_in_one_line(tmp_path: Path, spoil: Callable[[Arrays], None], message: str) -> None:
    arrays = front_arrays()
    spoil(arrays)
    path = write(tmp_path / "model.mat", arrays)
    with pytest.raises(UserError, match=message) as caught:
        load_bfm(path, SMALL)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_formats_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    later = tmp_path / "model2017-1_face12_nomouth.h5"
    later.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(300))
    with pytest.raises(UserError, match="HDF5 file, as BFM 2017 and 2019 are"):
        load_bfm(later)
    new = tmp_path / "BFM_model_front.mat"
    new.write_bytes(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM" + bytes(400))
    with pytest.raises(UserError, match=r"MATLAB 7\.3 .*'-v7'"):
        load_bfm(tmp_path)
    for content in (b"", b"<html>404</html>", bytes(200), b"\x00" * 4, b"v 1 2 3\n" * 40):
        new.write_bytes(content)
        with pytest.raises(UserError, match=r"is not a readable MATLAB file, or it is torn|has no variable"):
            load_bfm(new)
    write(new, front_arrays())
    monkeypatch.setattr("common.face3d.matlab.MAX_BYTES", 1 << 10)
    with pytest.raises(UserError, match="more than any face model's"):
        load_bfm(new, SMALL)


@pytest.mark.parametrize("compressed", [False, True])
def test_torn_and_flipped_bytes_never_escape(tmp_path: Path, compressed: bool) -> None:
    whole, path = tmp_path / "whole.mat", tmp_path / "torn.mat"
    savemat(whole, front_arrays(modes=1), do_compression=compressed)
    content = whole.read_bytes()
    rng = np.random.default_rng(3)
    refused = 0
    for trial in range(60):
        torn = bytearray(content[: rng.integers(len(content))] if trial % 2 else content)
        for _ in range(3 * (1 - trial % 2)):
            torn[rng.integers(128, min(len(torn), 4000))] = rng.integers(256)
        path.write_bytes(bytes(torn))
        try:
            load_bfm(path, SMALL)  # a flip in padding or in a float may leave a valid model
        except UserError as error:
            refused += str(path) in str(error)
    assert refused >= 30


@pytest.mark.parametrize(
    ("name", "spoil", "message"),
    [
        ("Exp_Pca.bin", lambda path: path.write_bytes(path.read_bytes()[:-4]), "Exp_Pca.bin has .* torn or another"),
        ("Exp_Pca.bin", lambda path: path.write_bytes(b"\x50" + path.read_bytes()[1:]), "and 80 modes, wanted .* 79"),
        ("Exp_Pca.bin", lambda path: path.write_bytes(path.read_bytes()[:2000] + b"\xff" * 200), "has 2200 bytes"),
        ("std_exp.txt", lambda path: path.write_text("1.0 2.0"), "does not hold 79 finite modes"),
        ("std_exp.txt", lambda path: path.write_text("one two"), "std_exp.txt does not hold 79 numbers"),
        ("std_exp.txt", lambda path: path.write_bytes(b"\xff\xfe\x00"), "std_exp.txt does not hold 79 numbers"),
        ("std_exp.txt", lambda path: path.write_text("nan " * 79), "finite modes"),
        ("BFM_front_idx.mat", lambda path: savemat(path, {"idx": np.arange(93.0)}), "idx counts from 0"),
        ("BFM_front_idx.mat", lambda path: savemat(path, {"idx": np.arange(93.0) + 50}), "outside 1 to 110"),
        ("BFM_exp_idx.mat", lambda path: savemat(path, {"trimIndex": np.arange(110.0)}), "trimIndex counts from 0"),
        ("BFM_exp_idx.mat", lambda path: savemat(path, {"idx": np.arange(110.0)}), "has no variable trimIndex"),
        ("01_MorphableModel.mat", lambda path: savemat(path, {"shapePC": np.zeros((3, 3))}), "shapePC is 3 x 3"),
        ("facemodel_info.mat", lambda path: savemat(path, {"tri": np.zeros((3, 3))}), "tri is 3 x 3"),
    ],
)
def test_wrong_raw_files_are_named(
    raw: tuple[Path, Arrays], name: str, spoil: Callable[[Path], object], message: str
) -> None:
    spoil(raw[0] / name)
    with pytest.raises(UserError, match=message) as caught:
        load_bfm(raw[0], SMALL)
    assert name in str(caught.value)


def test_absent_files_name_the_licence_page(raw: tuple[Path, Arrays], tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    for path in (empty, empty / "BFM_model_front.mat", empty / "01_MorphableModel.mat"):
        with pytest.raises(UserError, match=rf"no BFM_model_front.mat at .*{LICENCE_PAGE}.*licence"):
            load_bfm(path)
    sources = {"Exp_Pca.bin": "Juyong/3DFace.*research purposes"}
    sources |= dict.fromkeys(
        ("std_exp.txt", "facemodel_info.mat", "BFM_front_idx.mat", "BFM_exp_idx.mat"), "folder BFM"
    )
    for name, page in sources.items():
        hidden = (raw[0] / name).rename(tmp_path / name)
        with pytest.raises(UserError, match=f"no {name} .*{page}"):
            load_bfm(raw[0], SMALL)
        hidden.rename(raw[0] / name)


def test_spec_names_the_file_or_the_weights_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPEECHFACE_WEIGHTS", str(tmp_path / "weights"))
    with pytest.raises(UserError, match=LICENCE_PAGE):
        load_face_model("bfm09")
    with pytest.raises(UserError, match=LICENCE_PAGE):
        load_face_model(f"bfm09:{tmp_path / 'absent.mat'}")
    monkeypatch.setattr("common.face3d.bfm.Layout", lambda: SMALL)
    (tmp_path / "weights").mkdir()
    path = write(tmp_path / "weights" / "BFM_model_front.mat", front_arrays())
    named, found = load_face_model(f"bfm09:{path}"), load_face_model("bfm09")
    load_face_model.cache_clear()
    assert isinstance(found, Bfm09)
    assert torch.equal(named.mean_shape, found.mean_shape)


@pytest.fixture(scope="module")
def index_files(media: Path) -> dict[str, np.ndarray]:
    folder = media / "bfm_index"
    if not folder.is_dir():
        pytest.skip(f"{media} has no folder bfm_index/")
    names = ("facemodel_info", "BFM_front_idx", "BFM_exp_idx", "similarity_Lm3D_all")
    return {key: value for name in names for key, value in loadmat(folder / f"{name}.mat").items() if key[0] != "_"}


def stretched_mesh(index_files: dict[str, np.ndarray]) -> np.ndarray:
    """A soap film (35709,3) over the real topology, spanned by the mean face's 68 landmarks."""
    edges = index_files["tri"].astype(int)[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2) - 1
    count = 35709
    links = coo_matrix((np.ones(len(edges)), edges.T), (count, count)).tocsr()
    links = ((links + links.T) > 0).astype(float)
    laplacian = (diags(np.asarray(links.sum(1)).ravel()) - links).tocsr()
    fixed = index_files["keypoints"].astype(int).ravel() - 1
    points = np.zeros((count, 3))
    points[fixed] = index_files["lm"]
    free = np.setdiff1d(np.arange(count), fixed)
    points[free] = spsolve(laplacian[free][:, free].tocsc(), -(laplacian[free][:, fixed] @ points[fixed]))
    return points


@pytest.mark.media
def test_real_index_files(index_files: dict[str, np.ndarray], tmp_path: Path) -> None:
    layout, names = Layout(), ("tri", "point_buf", "keypoints", "frontmask2_idx", "tri_mask2", "skinmask")
    info = {name: index_files[name] for name in names}
    assert {name: array.size for name, array in info.items()} == {
        name: int(np.prod(shape)) for name, shape in layout.topology().items()
    }
    assert tuple(int(k) - 1 for k in info["keypoints"].ravel()) == LANDMARK_VERTICES
    arrays = front_arrays(layout, columns=100, modes=1) | info
    points = stretched_mesh(index_files)
    arrays["meanshape"] = points.reshape(1, -1).astype(np.float32)
    model = load_bfm(write(tmp_path / "BFM_model_front.mat", arrays))
    assert_deep3d(model, arrays, coefficients(1), 1e-3)
    # triangles wind counter-clockwise as the camera sees them, so that culling keeps the face
    corners = points[info["tri"].astype(int) - 1]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    assert (normals[:, 2] > 0).mean() > 0.85
    assert set(map(tuple, model.front_triangles.tolist())) <= set(map(tuple, model.triangles.tolist()))


@pytest.mark.media
def test_raw_folder_with_the_real_index_files(media: Path, index_files: dict[str, np.ndarray], tmp_path: Path) -> None:
    info = {name: index_files[name] for name in Layout().topology()}
    expected = write_raw(tmp_path, Layout(), info, modes=1)
    model = load_bfm(tmp_path)
    torch.testing.assert_close(
        model.expression_basis[63].flatten(), torch.from_numpy(expected["exBase"][:, 63]).float()
    )
    for name in ("BFM_front_idx.mat", "BFM_exp_idx.mat"):
        (tmp_path / name).write_bytes((media / "bfm_index" / name).read_bytes())
    real = load_bfm(tmp_path)
    picked = index_files["trimIndex"].astype(int).ravel()[index_files["idx"].astype(int).ravel() - 1] - 1
    raw = loadmat(tmp_path / "01_MorphableModel.mat", variable_names=["texMU"])["texMU"].reshape(-1, 3)
    np.testing.assert_allclose(real.mean_albedo.numpy(), raw[picked] / 255, atol=1e-6)
