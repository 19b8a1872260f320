"""What a fit is made of: derivatives against differences, the linear solver against a dense one, first poses, maps."""

import pytest
import torch
from torch import Tensor

from common.face3d.camera import Camera, pose
from common.face3d.fit_photo import (
    Appearance,
    PhotometricTerm,
    View,
    _power,
    blurred,
    look,
    sample,
    shading,
    softening,
    solve_light,
)
from common.face3d.fit_solve import Prior, _assemble, _chain_step
from common.face3d.fit_start import clip_matrix, compose_affine, first_pose, invert_affine, transform
from common.face3d.fit_terms import Basis, LandmarkTerm, State, landmark_metric, linearise, project
from common.face3d.lighting import harmonics
from common.face3d.morphable import FaceModel, load_face_model
from tests.common.toy_fit import drawn, performed


@pytest.fixture(scope="module")
def model() -> FaceModel:
    return load_face_model("builtin")


@pytest.fixture(scope="module")
def basis(model: FaceModel) -> Basis:
    return Basis.of(model, model.landmark_vertices).double()


@pytest.mark.parametrize("free", [False, True])
def test_derivatives_agree_with_differences(model: FaceModel, basis: Basis, free: bool) -> None:
    state = performed(model, 3)
    _, jacobian = linearise(basis, Camera(224), state, free_identity=free)
    packed = torch.cat([state.pose, state.expression], dim=1)

    def moved(column: int, step: float) -> Tensor:
        if column >= packed.shape[1]:
            identity = state.identity.clone()
            identity[column - packed.shape[1]] += step
            return project(basis, Camera(224), state._replace(identity=identity))
        shifted = packed.clone()
        shifted[:, column] += step
        return project(basis, Camera(224), State(state.identity, shifted[:, :6], shifted[:, 6:]))

    assert jacobian.shape[3] == packed.shape[1] + free * len(state.identity)
    for column in range(jacobian.shape[3]):
        numeric = (moved(column, 1e-5) - moved(column, -1e-5)) / 2e-5
        torch.testing.assert_close(jacobian[..., column], numeric, atol=1e-4, rtol=1e-5)


def test_photometric_gradient_agrees_with_differences(model: FaceModel) -> None:
    state = performed(model, 2)
    own, camera = Appearance.of(model, 200), Camera(224)
    # on ramps, differences over one pixel are the gradient
    x, y = torch.meshgrid(torch.linspace(0, 1, 224), torch.linspace(0, 1, 224), indexing="xy")
    ramps = torch.stack([0.2 + 0.6 * x, 0.7 - 0.5 * y, 0.3 + 0.2 * x + 0.3 * y])
    images = torch.stack([ramps, 0.9 * ramps.flip(0)])
    view = look(model, own, camera, state)
    here = state.at(slice(None), torch.float32)
    base = view.local - own.normals.points(here.identity, here.expression) + own.normals.mean
    albedo, zeros = own.albedo(torch.zeros(model.sizes[2])), torch.zeros(2, 27)
    term = PhotometricTerm(
        Basis(*own.basis).double(),
        Basis(*own.normals).double(),
        images.double(),
        albedo.double(),
        zeros.double(),
        base.double(),
        torch.zeros(2, len(own.vertices), 3).double(),
        view.visible.double(),
        0.3,
    )
    start = state._replace(pose=state.pose + 0.01)
    equations = term.equations(camera, start, slice(0, 2), free_identity=False)
    for column in (0, 1, 2, 3, 5, 6 + model.expression_index("jawOpen"), 6 + model.expression_index("mouthPucker")):
        costs = []
        for step in (1e-4, -1e-4):
            packed = torch.cat([start.pose, start.expression], dim=1)
            packed[:, column] += step
            moved = State(start.identity, packed[:, :6], packed[:, 6:])
            costs.append(term.equations(camera, moved, slice(0, 2), free_identity=False).cost)
        numeric = (costs[0] - costs[1]) / 2e-4
        torch.testing.assert_close(equations.gradient[:, column], numeric, rtol=1e-3, atol=1e-3)


def test_softening_makes_the_vertices_equal_their_own_picture(model: FaceModel) -> None:
    state = performed(model, 1)
    albedo, gamma = torch.zeros(model.sizes[2]), torch.zeros(1, 27)
    pictures = torch.from_numpy(drawn(model, state, albedo[None])).permute(0, 3, 1, 2).float() / 255
    own, camera = Appearance.of(model, 500), Camera(224)
    view = look(model, own, camera, state)
    colours = own.albedo(albedo) * 0.8 * torch.pi / (4 * torch.pi) ** 0.5
    found = softening(model, own, camera, state, pictures, albedo, gamma)
    read = sample(blurred(pictures), view.xy)
    seen = view.visible[0] > 0
    assert (read - colours - found)[0, seen].abs().median() < 0.01
    assert (read - colours)[0, seen].abs().mean() > (read - colours - found)[0, seen].abs().mean()


def test_first_pose_finds_the_mean_face(basis: Basis, model: FaceModel) -> None:
    poses = torch.tensor([[0.2, -0.5, 0.1, 0.2, -0.1, -2.0], [-0.3, 0.4, -0.6, 0.0, 0.3, 0.5]]).double()
    rest = State(torch.zeros(model.sizes[0]).double(), poses, torch.zeros(2, model.sizes[1]).double())
    found = first_pose(project(basis, Camera(224), rest), basis, Camera(224))
    assert (found[:, :3] - poses[:, :3]).abs().max() < 0.1
    assert (found[:, 3:5] - poses[:, 3:5]).abs().max() < 0.1


def test_affine_maps_compose_and_invert() -> None:
    generator = torch.Generator().manual_seed(0)
    one, two = torch.randn(2, 4, 2, 3, generator=generator).double()
    points = torch.randn(4, 5, 2, generator=generator).double()
    torch.testing.assert_close(transform(points, compose_affine(one, two)), transform(transform(points, two), one))
    torch.testing.assert_close(transform(transform(points, one), invert_affine(one)), points)


def test_clip_matrix_undoes_scale_and_roll(basis: Basis, model: FaceModel) -> None:
    rest = State(
        torch.zeros(model.sizes[0]).double(),
        torch.tensor([[0.0, 0, 0, 0, 0, -3]]).double(),
        torch.zeros(1, model.sizes[1]).double(),
    )
    points = project(basis, Camera(224), rest)
    turn = 3 * torch.tensor([[0.0, -1.0, 50.0], [1.0, 0.0, 10.0]]).double()
    matrix = clip_matrix(transform(points, turn[None]), basis, Camera(224))
    torch.testing.assert_close(transform(transform(points, turn[None]), matrix[None]), points)


def test_chain_step_solves_the_dense_system(model: FaceModel, basis: Basis) -> None:
    frames, count = 5, model.sizes[1]
    state = performed(model, frames)
    state = state._replace(expression=state.expression + 0.1)
    target = project(basis, Camera(224), state) + 1.0
    metric = landmark_metric(target, state.pose[:, 1], across=1.0, along=1.0, turned=(1.0, 2.0))
    term = LandmarkTerm(basis, target, metric, 1e3, 1.0)
    prior = Prior(
        torch.zeros(model.sizes[0]).double(),
        torch.ones(model.sizes[0]).double(),
        torch.zeros(frames, count).double(),
        torch.eye(count).double(),
        torch.zeros(count).double(),
        (-9.0, 9.0),
        torch.full((6,), 30.0).double(),
        torch.full((count,), 20.0).double(),
        torch.tensor([True, True, False, True]),
    )
    system = _assemble([term], Camera(224), state, prior, False)
    move, _ = _chain_step(system, state, prior, 0.0)
    width = 6 + count
    dense = torch.block_diag(*system.frames)
    for column in range(frames * width):
        unit = torch.zeros(frames * width).double()
        unit[column] = 1
        unit = unit.view(frames, width)
        dense[:, column] += prior.stiffness(unit[:, :6], unit[:, 6:]).flatten()
    torch.testing.assert_close(dense, dense.T)
    expected = -torch.linalg.solve(dense, system.gradient.flatten())
    off = move.flatten() - expected
    assert off @ dense @ off < 1e-4 * (expected @ dense @ expected)


def test_the_outline_yields_where_the_head_turns() -> None:
    ring = torch.linspace(torch.pi, 0, 17).double()
    points = torch.zeros(1, 68, 2).double()
    points[0, :17] = 100 * torch.stack([ring.cos(), ring.sin()], dim=1)
    points[0, 67] = torch.nan
    metric = landmark_metric(points, torch.tensor([0.6]).double(), across=0.5, along=0.1, turned=(0.2, 0.5))[0]
    torch.testing.assert_close(metric[20], torch.eye(2).double())
    torch.testing.assert_close(metric[8], torch.diag(torch.tensor([0.1, 0.5])).double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(metric[2].trace(), torch.tensor(0.6).double())
    torch.testing.assert_close(metric[14].trace(), torch.tensor(0.03).double())
    assert not metric[67].any()


def test_a_pose_is_what_the_camera_module_calls_one(model: FaceModel, basis: Basis) -> None:
    state = performed(model, 2)
    shape = model.double().shape(state.identity.expand(2, -1), state.expression)
    xy, _ = Camera(224).project(pose(shape, state.pose[:, :3], state.pose[:, 3:]))
    torch.testing.assert_close(project(basis, Camera(224), state), model.landmarks(xy), atol=1e-4, rtol=0)
    model.float()


def test_light_stays_even_where_the_face_never_shows() -> None:
    generator = torch.Generator().manual_seed(0)
    around = torch.nn.functional.normalize(torch.randn(1, 2000, 3, generator=generator), dim=2)
    shown = around[around[..., 2] > 0.4][None]
    albedo = torch.full((shown.shape[1], 3), 0.6)
    # light from one side, and what no light explains: a stripe, as a beard would be
    colours = albedo * (0.7 + 0.2 * shown[..., :1]) - 0.25 * (shown[..., 1:2].abs() < 0.1)
    view = View(shown, shown, shown[..., :2], torch.ones(shown.shape[:2]))
    weight = torch.full(shown.shape[:2], 1e4)
    gamma = solve_light(colours, albedo, view, weight, torch.zeros(27), 10.0)
    assert (shading(shown, gamma) * albedo - colours).abs().median() < 0.06
    everywhere = shading(around, gamma)
    assert everywhere.min() > 0.3
    assert everywhere.max() < 1.1
    right, left = (shading(torch.tensor([[[x, 0.0, 0.6]]]), gamma).mean() for x in (0.8, -0.8))
    assert right - left > 0.25


def test_the_bands_power_is_their_mean_square_over_the_sphere() -> None:
    around = torch.nn.functional.normalize(torch.randn(200000, 3, generator=torch.Generator().manual_seed(0)), dim=1)
    expected = (harmonics(around) ** 2).mean(0)
    torch.testing.assert_close(_power(around)[1:], expected[1:], rtol=0.02, atol=0)
