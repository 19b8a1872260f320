"""The face model interface, the ICT-FaceKit converter on a small clone written here, and the real model where it is."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial import Delaunay

from common.errors import UserError
from common.face3d import ict
from common.face3d.lighting import vertex_normals
from common.face3d.morphable import FaceModel, load_face_model
from common.face3d.render import render
from common.faces.base import load_backend
from common.faces.identity import load_embedder
from common.synthetic.identity import sample_nuisance

COUNT = 70


def parts(seed: int = 0) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "mean_shape": torch.randn(COUNT, 3, generator=generator),
        "identity_basis": torch.randn(4, COUNT, 3, generator=generator),
        "expression_basis": torch.randn(2, COUNT, 3, generator=generator),
        "mean_albedo": torch.rand(COUNT, 3, generator=generator),
        "albedo_basis": torch.randn(3, COUNT, 3, generator=generator),
        "triangles": torch.randint(COUNT, (9, 3), generator=generator),
        "landmark_vertices": torch.arange(68) + 1,
        "name": "toy",
        "expression_names": ("jawOpen", "smile"),
        "regions": {"lips": torch.arange(COUNT) < 5},
    }


def test_shape_and_albedo_equal_plain_loops() -> None:
    model = FaceModel(**parts())
    identity, expression, colour = torch.randn(3, 4), torch.rand(3, 2), torch.randn(3, 3)
    shape, albedo = model.shape(identity, expression), model.albedo(colour)
    for image in range(3):
        points, colours = model.mean_shape.clone(), model.mean_albedo.clone()
        for k in range(4):
            points += identity[image, k] * model.identity_basis[k]
        for k in range(2):
            points += expression[image, k] * model.expression_basis[k]
        for k in range(3):
            colours += colour[image, k] * model.albedo_basis[k]
        torch.testing.assert_close(shape[image], points)
        torch.testing.assert_close(albedo[image], colours.clamp(0, 1))
    assert torch.equal(model.landmarks(shape), shape[:, 1:69])
    assert model.sizes == (4, 2, 3)
    assert model.expression_index("smile") == 1
    assert model.regions["lips"].sum() == 5
    assert model.double().shape(identity.double(), expression.double()).dtype == torch.float64


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("mean_albedo", torch.zeros(COUNT - 1, 3)),
        ("identity_basis", torch.zeros(4, COUNT, 2)),
        ("expression_names", ("jawOpen",)),
        ("triangles", torch.zeros(9, 4, dtype=torch.int64)),
        ("triangles", torch.full((9, 3), COUNT)),
        ("landmark_vertices", torch.arange(67)),
        ("landmark_vertices", torch.arange(68) - 1),
        ("regions", {"lips": torch.zeros(3, dtype=torch.bool)}),
    ],
)
def test_parts_that_do_not_fit_are_refused(key: str, value: object) -> None:
    with pytest.raises(UserError, match=r"face model toy: (?!$)"):
        FaceModel(**(parts() | {key: value}))


def test_wrong_coefficients_are_refused() -> None:
    model = FaceModel(**parts())
    with pytest.raises(UserError, match="identity coefficients"):
        model.shape(torch.zeros(1, 5), torch.zeros(1, 2))
    with pytest.raises(UserError, match="expression coefficients"):
        model.shape(torch.zeros(1, 4), torch.zeros(2))
    with pytest.raises(UserError, match="albedo coefficients"):
        model.albedo(torch.zeros(1, 4))
    with pytest.raises(UserError, match="it has jawOpen, smile"):
        model.expression_index("jawopen")


def landmarks68() -> np.ndarray:
    """A plausible frontal face (68,2) in centimetres, in iBUG order."""
    jaw = [(-7.2 * np.cos(a), 3.5 - 11 * np.sin(a) ** 1.2) for a in np.linspace(0, np.pi, 17)]
    brow = [(-5.8, 5.2), (-4.9, 5.9), (-3.8, 6.2), (-2.4, 6.1), (-1.2, 5.8)]
    nose = [(0, 3.7), (0, 2.6), (0, 1.6), (0, 0.4), (-1.3, -1.1), (-0.6, -1.15), (0, -1.2), (0.6, -1.15), (1.3, -1.1)]
    eye = [(-4.5, 3.4), (-3.9, 3.9), (-2.8, 3.95), (-1.8, 3.3), (-2.7, 3.0), (-3.9, 3.05)]
    outer = [(-2.5, -3.5), (-1.7, -2.8), (-0.7, -2.4), (0, -2.5), (0.7, -2.4), (1.7, -2.8), (2.5, -3.5)]
    outer += [(1.8, -4.1), (1.0, -4.3), (0, -4.4), (-1.0, -4.3), (-1.8, -4.1)]
    inner = [(-2.2, -3.45), (-1, -3.2), (0, -3.25), (1, -3.2), (2.2, -3.45), (1, -3.5), (0, -3.55), (-1, -3.5)]
    mirror = [(-x, y) for x, y in (eye[3], eye[2], eye[1], eye[0], eye[5], eye[4])]
    return np.array(jaw + brow + [(-x, y) for x, y in brow[::-1]] + nose + eye + mirror + outer + inner)


def sphere(centre: tuple[float, float, float], radius: float) -> tuple[np.ndarray, list[list[int]]]:
    """A ball of quads, open at the poles on its x axis."""
    polar, turn = np.linspace(0.2, np.pi - 0.2, 7), np.arange(8) * np.pi / 4
    points = [[np.cos(p), np.sin(p) * np.cos(t), np.sin(p) * np.sin(t)] for p in polar for t in turn]
    quads = [
        [8 * i + j, 8 * i + 8 + j, 8 * i + 8 + (j + 1) % 8, 8 * i + (j + 1) % 8] for i in range(6) for j in range(8)
    ]
    return np.array(points) * radius + centre, quads


def small_face() -> tuple[np.ndarray, list[list[int]], dict[str, tuple[int, int]]]:
    """Vertices (V,3) in centimetres, polygons, and regions of a mask with eyeballs, a mouth and a fluid shell."""
    grid = np.stack(np.meshgrid(np.linspace(-8, 8, 25), np.linspace(-9, 11, 31)), axis=-1).reshape(-1, 2)
    flat = np.concatenate([landmarks68(), grid + 0.013])
    points = np.column_stack([flat, 11 - 0.07 * flat[:, 0] ** 2 - 0.02 * flat[:, 1] ** 2])
    blocks: list[tuple[str, np.ndarray, list[list[int]]]] = [("face", points, Delaunay(flat).simplices.tolist())]
    for name, depth in (("mouth_socket", 6.0), ("gums_tongue", 7.0), ("teeth", 8.0)):
        corners = np.array([[-2, -5, depth], [2, -5, depth], [2, -2, depth], [-2, -2, depth]])
        blocks.append((name, corners, [[0, 1, 2, 3]]))
    for side, x in (("left", 3.1), ("right", -3.1)):
        blocks.append((f"eyeball_{side}", *sphere((x, 3.5, 8.4), 1.5)))
    blocks.append(("lacrimal_left", *sphere((3.1, 3.5, 8.5), 1.7)))
    vertices, polygons, regions = np.zeros((0, 3)), [], {}
    for name, block, faces in blocks:
        regions[name] = (len(vertices), len(vertices) + len(block) - 1)
        for face in faces:
            a, b, c = block[face[:3]]
            outwards = block[face].mean(0) - block.mean(0) if "ball" in name or "lac" in name else np.array([0, 0, 1])
            order = face if np.cross(b - a, c - a) @ outwards > 0 else face[::-1]
            polygons.append([corner + len(vertices) for corner in order])
        vertices = np.concatenate([vertices, block])
    return vertices, polygons, regions


VERTICES, POLYGONS, REGIONS = small_face()
EXPRESSIONS = ["browDown_L", "jawOpen"]


def write_obj(path: Path, vertices: np.ndarray) -> None:
    lines = ["mtllib ICTFaceModelMaterial.mtl"]
    lines += [f"v {x:.15f} {y:.15f} {z:.15f}" for x, y, z in vertices]
    lines += [f"vt {x / 20:.6f} {y / 20:.6f}" for x, y, _ in VERTICES]
    lines += ["f " + " ".join(f"{corner + 1}/{corner + 1}" for corner in polygon) for polygon in POLYGONS]
    path.write_text("\n".join(lines) + "\n")


def offset(index: int) -> np.ndarray:
    return 0.1 * np.random.default_rng(index).standard_normal(VERTICES.shape)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A clone in ICT-FaceKit's layout with 3 identities and 2 expressions."""
    return write_clone(tmp_path / "clone")


@pytest.fixture(scope="module")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> FaceModel:
    return ict.build(ict.read_clone(write_clone(tmp_path_factory.mktemp("ict")), REGIONS))


def write_clone(clone: Path) -> Path:
    folder = clone / "FaceXModel"
    folder.mkdir(parents=True)
    write_obj(folder / "generic_neutral_mesh.obj", VERTICES)
    for index in range(3):
        write_obj(folder / f"identity{index:03d}.obj", VERTICES + offset(index))
    for index, name in enumerate(EXPRESSIONS):
        write_obj(folder / f"{name}.obj", VERTICES + offset(10 + index))
    content = {"expressions": EXPRESSIONS, "idx_to_landmark_verts": list(range(68)), "incompatibilities": []}
    (folder / "vertex_indices.json").write_text(json.dumps(content))
    return clone


def test_clone_converts_to_the_npz_schema(clone: Path, tmp_path: Path) -> None:
    out = tmp_path / "weights" / "ict_facekit.npz"
    ict.convert(clone, out, REGIONS)
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    arrays = ict.read_npz(out)
    np.testing.assert_allclose(arrays["neutral"], VERTICES, atol=1e-5)
    assert arrays["neutral"].dtype == np.float32
    for index in range(3):
        np.testing.assert_allclose(arrays["identity"][index], offset(index), atol=3e-4)
    np.testing.assert_allclose(arrays["expression"][1], offset(11), atol=3e-4)
    assert arrays["identity"].dtype == arrays["expression"].dtype == np.float16
    assert arrays["expression_names"].tolist() == EXPRESSIONS
    fans = [[p[0], p[i], p[i + 1]] for p in POLYGONS for i in range(1, len(p) - 1)]
    assert arrays["triangles"].tolist() == arrays["uv_triangles"].tolist() == fans
    assert arrays["triangles"].dtype == np.int32
    np.testing.assert_allclose(arrays["uv"], VERTICES[:, :2] / 20, atol=1e-6)
    assert arrays["landmarks68"].tolist() == list(range(68))
    assert (
        dict(zip(arrays["region_names"].tolist(), map(tuple, arrays["region_ranges"].tolist()), strict=True)) == REGIONS
    )


def test_model_of_a_clone_is_painted_and_renders(small_model: FaceModel) -> None:
    model = small_model
    assert model.sizes == (3, 2, 37)
    centred = (VERTICES - VERTICES.mean(0)) / 10
    np.testing.assert_allclose(model.mean_shape.numpy(), centred, atol=1e-5)
    np.testing.assert_allclose(model.identity_basis[2].numpy(), offset(2) / 10, atol=3e-5)
    fluid = model.regions["lacrimal_left"]
    assert not fluid[model.triangles].any()

    def colour(x: float, y: float) -> np.ndarray:
        face = VERTICES[: REGIONS["face"][1] + 1, :2]
        return model.mean_albedo[np.linalg.norm(face - [x, y], axis=1).argsort()[:3]].mean(0).numpy()

    cheek, lip, brow = colour(4.0, -0.5), colour(0.0, -2.9), colour(-3.6, 5.8)
    assert cheek[0] > cheek[1] > cheek[2] > 0.25
    assert lip[0] / lip[1] > 1.25 * cheek[0] / cheek[1]
    assert brow.mean() < 0.7 * cheek.mean()
    assert torch.isfinite(model.albedo_basis).all()
    assert (model.albedo_basis.flatten(1).norm(dim=1) > 0).all()
    tone = model.albedo(torch.eye(37)[:1] * 3)[0] - model.mean_albedo
    assert tone[: REGIONS["face"][1]].mean() < -0.15
    zeros = [torch.zeros(1, k) for k in (3, 2, 37, 3, 3, 27)]
    picture = render(model, *zeros, 32)
    assert picture.mask.mean() > 0.3
    assert 0 <= picture.image.min() < picture.image.max() <= 1


def test_spec_loads_files_and_names_what_is_missing(
    clone: Path, small_model: FaceModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPEECHFACE_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.delenv("SPEECHFACE_MEDIA", raising=False)
    load_face_model.cache_clear()  # another test may have loaded the real one
    with pytest.raises(UserError, match=r"no ICT-FaceKit model at .*weights.ict_facekit.npz: clone https://github.com"):
        load_face_model("ict")
    with pytest.raises(UserError, match=r"no ICT-FaceKit model at .*nowhere"):
        load_face_model(f"ict:{tmp_path / 'nowhere'}")
    with pytest.raises(UserError, match="unknown face model 'flame'"):
        load_face_model("flame")
    with pytest.raises(UserError, match="fewer than the ICT-FaceKit light model"):
        load_face_model(f"ict:{clone}")
    ict.convert(clone, tmp_path / "weights" / "ict_facekit.npz", REGIONS)
    model = load_face_model("ict")
    assert model is load_face_model("ict")
    load_face_model.cache_clear()
    for name, buffer in model.named_buffers():  # the way through the file changes nothing: same clone, same model
        torch.testing.assert_close(buffer, small_model.get_buffer(name))


def spoil_clone(folder: Path, kind: str) -> None:
    if kind == "missing":
        (folder / "jawOpen.obj").unlink()
    elif kind == "short":
        write_obj(folder / "identity001.obj", VERTICES[:-1])
    elif kind == "json":
        (folder / "vertex_indices.json").write_text("{")
    elif kind == "escape":
        content = {"expressions": ["../jawOpen"], "idx_to_landmark_verts": list(range(68))}
        (folder / "vertex_indices.json").write_text(json.dumps(content))
    elif kind == "landmarks":
        content = {"expressions": EXPRESSIONS, "idx_to_landmark_verts": [*range(67), 10**6]}
        (folder / "vertex_indices.json").write_text(json.dumps(content))
    elif kind == "text":
        (folder / "generic_neutral_mesh.obj").write_text("v 1 2 three\n")
    else:
        for path in folder.glob("identity*.obj"):
            path.unlink()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "cannot read .*jawOpen.obj"),
        ("short", "identity001.obj has .* a mixed clone"),
        ("json", "vertex_indices.json has no expressions"),
        ("escape", "not a plain file name"),
        ("landmarks", "landmarks68 points outside"),
        ("text", "does not hold 3 numbers"),
        ("identities", "no identity000.obj"),
    ],
)
def test_broken_clones_are_named_and_leave_no_file(clone: Path, tmp_path: Path, kind: str, message: str) -> None:
    spoil_clone(clone / "FaceXModel", kind)
    with pytest.raises(UserError, match=message):
        ict.convert(clone, tmp_path / "out.npz", REGIONS)
    assert not list(tmp_path.glob("*.npz"))


def test_foreign_and_torn_files_are_refused(clone: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole.npz"
    ict.convert(clone, whole, REGIONS)
    torn = tmp_path / "torn.npz"
    torn.write_bytes(whole.read_bytes()[:-400])
    text = tmp_path / "text.npz"
    text.write_text("not a model")
    other = tmp_path / "other.npz"
    np.savez(other, neutral=np.zeros((3, 3)))
    pickled = tmp_path / "pickled.npz"
    np.savez(pickled, **(ict.read_npz(whole) | {"uv": np.array([{"a": 1}], dtype=object)}))
    for path in (torn, text, other, pickled):
        with pytest.raises(UserError, match=f"{path.name} is not an ICT-FaceKit npz"):
            ict.load(path)
    shorter = tmp_path / "shorter.npz"
    arrays = ict.read_npz(whole)
    np.savez(shorter, **(arrays | {"identity": arrays["identity"][:, :-1]}))
    with pytest.raises(UserError, match="identity has shape"):
        ict.load(shorter)


@pytest.mark.media
def test_real_ict_model_is_a_face(media: Path) -> None:
    model = load_face_model(f"ict:{media / 'face_model' / 'ict_facekit.npz'}")
    assert model.mean_shape.shape == (26719, 3)
    assert model.sizes[:2] == (100, 53)
    assert model.sizes[2] >= 10
    marks = model.mean_shape[model.landmark_vertices]
    assert marks[30, 2] == marks[:, 2].max()  # the nose tip is nearest to the camera
    assert marks[36, 0] < marks[45, 0]
    assert marks[8, 1] < marks[57, 1] < marks[33, 1] < marks[27, 1] < marks[19, 1]
    normals = vertex_normals(model.mean_shape[None], model.triangles)[0]
    assert normals[model.landmark_vertices[27:36], 2].min() > -0.2
    assert normals[model.landmark_vertices[30], 2] > 0.8
    # an open jaw shows the inside of the mouth, dark and red, with a row of bright teeth
    opened = torch.zeros(2, 53)
    opened[1, model.expression_index("jawOpen")] = 0.3
    zeros = [torch.zeros(2, k) for k in (model.sizes[2], 3, 3, 27)]
    picture = render(model, torch.zeros(2, 100), opened, *zeros, 224)
    rows = slice(int(picture.landmarks[1, 62, 1]) + 1, int(picture.landmarks[1, 66, 1]))
    columns = slice(int(picture.landmarks[1, 61, 0]), int(picture.landmarks[1, 63, 0]))
    inside = picture.image[1, :, rows, columns]
    assert inside.shape[1] >= 5
    assert picture.mask[1, 0, rows, columns].all()
    assert inside.mean(0).min() < 0.25
    assert inside.min(0).values.max() > 0.4  # white, not merely red


@pytest.mark.slow
@pytest.mark.media
def test_ict_renders_are_faces_to_a_real_detector(media: Path) -> None:
    model = load_face_model(f"ict:{media / 'face_model' / 'ict_facekit.npz'}")
    people, rng = 24, np.random.default_rng(0)
    identity, albedo = (torch.from_numpy(rng.standard_normal((people, k))).float() for k in (100, model.sizes[2]))
    shots = [sample_nuisance(model, rng, people, 224) for _ in range(4)]
    pictures = [
        render(model, identity, s.expression, albedo, s.angles, s.translation, s.gamma, 224, s.background, 2).image
        for s in shots
    ]
    images = list((torch.cat(pictures).clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).contiguous().numpy())
    faces = load_backend("dlib").detect(images)
    found = np.array([len(each) > 0 for each in faces])
    assert found.mean() >= 0.97
    middle = np.full((68, 2), 112.0) + np.random.default_rng(1).standard_normal((68, 2))
    marks = [each[0].landmarks if each else middle for each in faces]
    embedded = load_embedder("dlib").embed(images, marks)
    nearest = (embedded[people:] @ embedded[:people].T).argmax(dim=1).numpy()
    right = (nearest == np.tile(np.arange(people), 3)) & found[people:]
    print(f"detected {found.mean():.3f} of {len(found)}, identity first in {right.mean():.3f} of {len(right)}")
    assert right.mean() >= 0.85
