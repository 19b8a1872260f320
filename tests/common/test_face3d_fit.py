"""Fitting a face model to clips: derivatives, known coefficients, gaps, hostile input, drawing."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from common.errors import UserError
from common.face3d.camera import Camera, pose
from common.face3d.fit import Fit, fit_sequence
from common.face3d.fit_clip import _windows
from common.face3d.fit_photo import Appearance, PhotometricTerm, blurred, look, sample, softening
from common.face3d.fit_render import draw_fit, render_fit
from common.face3d.fit_settings import FitSettings
from common.face3d.fit_solve import Prior, _assemble, _chain_step
from common.face3d.fit_start import clip_matrix, compose_affine, first_pose, invert_affine, transform
from common.face3d.fit_terms import Basis, LandmarkTerm, State, landmark_metric, linearise, project
from common.face3d.morphable import FaceModel, load_face_model
from common.face3d.render import render

WHOLE = np.eye(2, 3)
"""The clip's own 224 px pictures are the fit's frame."""
QUICK = FitSettings(subset=16, vertices=300)


@pytest.fixture(scope="module")
def model() -> FaceModel:
    return load_face_model("builtin")


@pytest.fixture(scope="module")
def basis(model: FaceModel) -> Basis:
    return Basis.of(model, model.landmark_vertices).double()


def performed(model: FaceModel, frames: int, seed: int = 0) -> State:
    """A person who speaks, smiles, blinks and sways; float64."""
    rng = np.random.default_rng(seed)
    time = np.arange(frames) / 25

    def wave(low: float, high: float) -> np.ndarray:
        return np.sin(2 * np.pi * (rng.uniform(low, high) * time + rng.uniform()))

    expression = np.zeros((frames, len(model.expression_names)))
    weights = {
        "jawOpen": 0.5 * np.maximum(wave(2, 4), 0),
        "mouthPucker": 0.6 * np.maximum(wave(1, 2), 0),
        "mouthSmile": 0.5 * np.maximum(wave(0.3, 0.6), 0),
        "browInnerUp": 0.5 * np.maximum(wave(0.3, 0.6), 0),
        "eyeBlink": np.maximum(0, 1 - np.abs(np.arange(frames) % 40 - 12) / 3),
    }
    for column, name in enumerate(model.expression_names):
        expression[:, column] = weights.get(name.removesuffix("_L").removesuffix("_R"), 0.0)
    swings = np.stack([wave(0.2, 0.6) for _ in range(6)], axis=1) * [0.06, 0.2, 0.06, 0.08, 0.08, 0.2]
    placed = torch.from_numpy(np.add(swings, [0.05, 0.1, 0, 0, 0, -3]))
    identity = torch.from_numpy(rng.standard_normal(model.sizes[0])).clamp(-2, 2)
    return State(identity, placed, torch.from_numpy(expression))


def drawn(model: FaceModel, state: State, albedo: Tensor) -> np.ndarray:
    """uint8 (T,224,224,3) pictures of a state, before a grey wall."""
    count, small = len(state.pose), state.at(slice(None), torch.float32)
    with torch.no_grad():
        picture = render(
            model,
            small.identity.expand(count, -1),
            small.expression,
            albedo.expand(count, -1),
            small.pose[:, :3],
            small.pose[:, 3:],
            torch.zeros(count, 27),
            224,
            torch.tensor([0.5, 0.5, 0.5]),
        ).image
    return (picture.permute(0, 2, 3, 1) * 255).round().byte().numpy()


def errors(model: FaceModel, fit: Fit, truth: State, points: Tensor) -> tuple[float, float]:
    """Mean landmark error in px of the fit's frame, and AED over that of a face at rest."""
    found = project(Basis.of(model, model.landmark_vertices).double(), Camera(224), fit.state())
    landmark = (found - transform(points, fit.matrix)).norm(dim=2).mean()
    share = (fit.expression - truth.expression).abs().mean() / truth.expression.abs().mean()
    return float(landmark), float(share)


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
    images = torch.from_numpy(drawn(model, state, torch.zeros(1, model.sizes[2]))).permute(0, 3, 1, 2).float() / 255
    for _ in range(3):  # smooth, so that differences over one pixel are the gradient
        images = blurred(images)
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
        for step in (1e-3, -1e-3):
            packed = torch.cat([start.pose, start.expression], dim=1)
            packed[:, column] += step
            moved = State(start.identity, packed[:, :6], packed[:, 6:])
            costs.append(term.equations(camera, moved, slice(0, 2), free_identity=False).cost)
        numeric = (costs[0] - costs[1]) / 2e-3
        torch.testing.assert_close(
            equations.gradient[:, column], numeric, rtol=0.1, atol=0.05 * float(numeric.abs().max())
        )


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
    expected = -torch.linalg.solve(dense, system.gradient.flatten()).view(frames, width)
    assert (move - expected).norm() < 0.02 * expected.norm()


def test_known_coefficients_are_found(model: FaceModel, basis: Basis) -> None:
    truth = performed(model, 40)
    points = project(basis, Camera(224), truth)
    fit = fit_sequence(model, points, size=(224, 224), matrix=WHOLE)
    landmark, share = errors(model, fit, truth, points)
    assert landmark < 0.1
    assert share < 0.25
    assert fit.confidence.min() > 0.99
    assert fit.expression.min() >= 0
    assert fit.expression.max() <= 1
    torch.testing.assert_close(fit.angles.double(), truth.pose[:, :3], atol=0.02, rtol=0)


def test_noise_and_outliers_are_averaged_out(model: FaceModel, basis: Basis) -> None:
    truth = performed(model, 40, seed=1)
    exact = project(basis, Camera(224), truth)
    noisy = exact + 0.4 * torch.randn(exact.shape, generator=torch.Generator().manual_seed(0)).double()
    noisy[20] += 60.0  # one frame whose detection is elsewhere
    noisy[::3, 48] += 25.0  # a landmark that jumps
    fit = fit_sequence(model, noisy, size=(224, 224), matrix=WHOLE, settings=QUICK)
    found = project(basis, Camera(224), fit.state())
    good = torch.arange(40) != 20
    assert (found - exact)[good].norm(dim=2).mean() < 0.5


def test_video_pixels_and_the_start_of_the_frame_do_not_matter(model: FaceModel, basis: Basis) -> None:
    truth = performed(model, 16)
    points = project(basis, Camera(224), truth) * 4.3 + torch.tensor([300.0, -20.0])
    fit = fit_sequence(model, points, size=(1920, 1080), settings=QUICK)
    landmark, _ = errors(model, fit, truth, points)
    assert landmark < 0.5
    assert fit.matrix.shape == (16, 2, 3)


def test_frames_without_a_face_are_interpolated(model: FaceModel, basis: Basis) -> None:
    truth = performed(model, 14)
    points = project(basis, Camera(224), truth)
    points[0] = points[6:8] = torch.nan
    points[10, :3] = torch.nan  # a hand before the jaw
    fit = fit_sequence(model, points, size=(224, 224), matrix=WHOLE, settings=QUICK)
    lost = torch.tensor([0, 6, 7])
    assert (fit.confidence[lost] == 0).all()
    assert fit.residual[lost].isnan().all()
    assert fit.residual[[1, 5, 8, 10]].isfinite().all()
    between = fit.angles[5] + (fit.angles[8] - fit.angles[5]) / 3
    torch.testing.assert_close(fit.angles[6], between)
    torch.testing.assert_close(fit.translation[0], fit.translation[1])


def test_nothing_is_smoothed_across_a_cut(model: FaceModel, basis: Basis) -> None:
    truth = performed(model, 12)
    truth.pose[6:, 1] += 0.5
    points = project(basis, Camera(224), truth)
    fit = fit_sequence(model, points, size=(224, 224), matrix=WHOLE, settings=QUICK, shots=(0, 6))
    assert (fit.angles[:, 1].double() - truth.pose[:, 1]).abs().max() < 0.02


@pytest.mark.parametrize("frames", [1, 2, 3])
def test_short_clips(model: FaceModel, basis: Basis, frames: int) -> None:
    points = project(basis, Camera(224), performed(model, frames))
    fit = fit_sequence(model, points, size=(224, 224), settings=QUICK)
    assert len(fit) == frames
    assert fit.residual.max() < 0.5


def test_windows_join_without_a_seam(model: FaceModel, basis: Basis) -> None:
    points = project(basis, Camera(224), performed(model, 30))
    points = points + 0.3 * torch.randn(points.shape, generator=torch.Generator().manual_seed(0)).double()
    whole = fit_sequence(model, points, size=(224, 224), settings=QUICK)
    parts = fit_sequence(model, points, size=(224, 224), settings=replace(QUICK, window=10, overlap=6))
    torch.testing.assert_close(parts.angles, whole.angles, atol=3e-3, rtol=0)
    assert (parts.expression - whole.expression).abs().mean() < 0.01
    assert list(_windows(5, 2, 1)) == [(0, 0, 2, 3), (1, 2, 4, 5), (3, 4, 5, 5)]


def test_a_start_is_refined(model: FaceModel, basis: Basis) -> None:
    truth = performed(model, 10)
    points = project(basis, Camera(224), truth)
    rough = fit_sequence(model, points, size=(224, 224), matrix=WHOLE, settings=replace(QUICK, iterations=1))
    noise = 0.1 * torch.randn(truth.expression.shape, generator=torch.Generator().manual_seed(0))
    start = replace(
        rough,
        identity=truth.identity.float(),
        expression=(truth.expression.float() + noise).clamp(0, 1),
        angles=truth.pose[:, :3].float() + 0.05,
        translation=truth.pose[:, 3:].float(),
    )
    fit = fit_sequence(model, points, size=(224, 224), start=start, settings=QUICK)
    before, after = ((each.expression - truth.expression).abs().mean() for each in (start, fit))
    assert after < 0.6 * before
    assert errors(model, fit, truth, points)[0] < 0.2
    with pytest.raises(UserError, match="has 10 frames, the landmarks 9"):
        fit_sequence(model, points[:9], size=(224, 224), start=start)
    with pytest.raises(UserError, match="the start was made with face model other"):
        fit_sequence(model, points, size=(224, 224), start=replace(start, model_name="other"))


def test_pictures_refine_noisy_landmarks_and_give_colours(model: FaceModel, basis: Basis) -> None:
    truth = performed(model, 8)
    albedo = torch.zeros(1, model.sizes[2])
    images = drawn(model, truth, albedo)
    exact = project(basis, Camera(224), truth)
    noisy = exact + 0.8 * torch.randn(exact.shape, generator=torch.Generator().manual_seed(0)).double()
    done: list[int] = []
    blind = fit_sequence(model, noisy, size=(224, 224), matrix=WHOLE, settings=QUICK)
    fit = fit_sequence(
        model, noisy, size=(224, 224), matrix=WHOLE, settings=QUICK, images=iter(images), progress=done.append
    )
    assert sum(done) == 8
    assert errors(model, fit, truth, exact)[0] < errors(model, blind, truth, exact)[0]
    shown = render_fit(model, fit, torch.arange(8), torch.from_numpy(WHOLE), 224)
    pictures = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    inside = (shown.mask > 0).expand_as(pictures)
    assert (shown.image - pictures)[inside].abs().mean() < 0.03
    assert not blind.gamma.any()


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


def test_render_fit_places_the_face_in_any_crop(model: FaceModel, basis: Basis) -> None:
    truth = performed(model, 3)
    points = project(basis, Camera(224), truth) * 2 + torch.tensor([100.0, 40.0])
    fit = fit_sequence(model, points, size=(700, 600), settings=QUICK)
    crop = torch.tensor([[0.5, 0.1, -30.0], [-0.1, 0.5, 7.0]]).double()
    shown = render_fit(model, fit, torch.tensor([2, 0]), crop, 160, supersample=2)
    assert shown.image.shape == (2, 3, 160, 160)
    expected = transform(points[[2, 0]], crop)
    assert (shown.landmarks - expected).norm(dim=2).mean() < 0.3
    rest = render_fit(model, fit, torch.tensor([0]), crop, 160, expression=torch.zeros(1, model.sizes[1]))
    assert not torch.equal(rest.landmarks[0], shown.landmarks[1])
    with pytest.raises(UserError, match="frames 0 to 2"):
        render_fit(model, fit, torch.tensor([3]), crop, 160)
    with pytest.raises(UserError, match="not builtin"):
        render_fit(model, replace(fit, model_name="other"), torch.tensor([0]), crop, 160)


def test_a_fit_is_rendered_where_the_plain_renderer_draws_it(model: FaceModel, basis: Basis) -> None:
    truth = performed(model, 2)
    fit = fit_sequence(model, project(basis, Camera(224), truth), size=(224, 224), matrix=WHOLE, settings=QUICK)
    ours = render_fit(model, fit, torch.tensor([1]), torch.from_numpy(WHOLE), 224)
    theirs = render(
        model,
        fit.identity[None],
        fit.expression[1:],
        fit.albedo[None],
        fit.angles[1:],
        fit.translation[1:],
        fit.gamma[1:],
        224,
    )
    torch.testing.assert_close(ours.landmarks, theirs.landmarks, atol=1e-3, rtol=0)
    assert (ours.image - theirs.image).abs().mean() < 1e-3


def test_draw_fit_shows_three_panels(model: FaceModel, basis: Basis) -> None:
    truth = performed(model, 2)
    points = project(basis, Camera(224), truth)
    fit = fit_sequence(model, points, size=(224, 224), settings=QUICK)
    images = drawn(model, truth, torch.zeros(1, model.sizes[2]))
    points[1] = torch.nan
    pictures = list(draw_fit(model, fit, iter(images), points.numpy(), size=120))
    assert [picture.shape for picture in pictures] == [(120, 360, 3)] * 2
    green = [(picture == (64, 224, 96)).all(2).any() for picture in pictures]
    assert green == [True, False]
    with pytest.raises(UserError, match="end after 1 frames"):
        list(draw_fit(model, fit, images[:1]))


def test_a_fit_is_saved_and_loaded(model: FaceModel, basis: Basis, tmp_path: Path) -> None:
    fit = fit_sequence(model, project(basis, Camera(224), performed(model, 2)), size=(224, 224), settings=QUICK)
    fit.save(tmp_path / "fit.npz")
    loaded = Fit.load(tmp_path / "fit.npz")
    assert (loaded.model_name, loaded.size) == ("builtin", 224)
    for name in ("identity", "albedo", "expression", "angles", "translation", "gamma", "confidence", "matrix"):
        torch.testing.assert_close(getattr(loaded, name), getattr(fit, name), rtol=0, atol=0)
    (tmp_path / "text.npz").write_text("no")
    np.savez(tmp_path / "part.npz", identity=np.zeros(3))
    np.savez(tmp_path / "words.npz", **{name: np.array("x") for name in Fit.__dataclass_fields__} | {"size": 1})
    for bad in ("text.npz", "part.npz", "words.npz", "absent.npz"):
        with pytest.raises(UserError, match=bad):
            Fit.load(tmp_path / bad)


def _wrong_size(images: np.ndarray) -> Iterator[np.ndarray]:
    yield images[0]
    yield images[1, :100]


def test_hostile_input(model: FaceModel, basis: Basis) -> None:
    truth = performed(model, 2)
    points = project(basis, Camera(224), truth)
    images = drawn(model, truth, torch.zeros(1, model.sizes[2]))
    with pytest.raises(UserError, match="shape"):
        fit_sequence(model, points[:, :67], size=(224, 224))
    with pytest.raises(UserError, match="shape"):
        fit_sequence(model, points[:0], size=(224, 224))
    with pytest.raises(UserError, match="never show"):
        fit_sequence(model, torch.full_like(points, torch.nan), size=(224, 224))
    with pytest.raises(UserError, match="one point"):
        fit_sequence(model, torch.full_like(points, 5.0), size=(224, 224))
    with pytest.raises(UserError, match="end after 1 frames"):
        fit_sequence(model, points, size=(224, 224), images=images[:1], settings=QUICK)
    with pytest.raises(UserError, match="more images"):
        fit_sequence(model, points, size=(224, 224), images=[*images, images[0]], settings=QUICK)
    with pytest.raises(UserError, match="224x100"):
        fit_sequence(model, points, size=(224, 224), images=_wrong_size(images), settings=QUICK)
    for bad in ({"window": 0}, {"start_sigma": 0.0}, {"contour_turn": (40.0, 15.0)}):
        with pytest.raises(UserError, match="fit settings"):
            FitSettings(**bad)  # type: ignore[arg-type]


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


@pytest.mark.media
def test_real_clips(media: Path) -> None:
    from common.faces import load_backend
    from common.video import probe_video, read_frames

    model = load_face_model("ict")
    backend = load_backend("dlib")
    clips = sorted((media / "real" / "clips").iterdir())
    assert clips
    for clip in clips:
        info = probe_video(clip)
        faces = [backend.detect([frame.image])[0] for frame in read_frames(clip, seconds=1.0)]
        points = np.stack([each[0].landmarks if each else np.full((68, 2), np.nan) for each in faces])
        fit = fit_sequence(model, points, size=(info.width, info.height))
        assert (fit.confidence > 0.5).all(), clip
        assert fit.residual.median() < 3, clip


def test_a_pose_is_what_the_camera_module_calls_one(model: FaceModel, basis: Basis) -> None:
    state = performed(model, 2)
    shape = model.double().shape(state.identity.expand(2, -1), state.expression)
    xy, _ = Camera(224).project(pose(shape, state.pose[:, :3], state.pose[:, 3:]))
    torch.testing.assert_close(project(basis, Camera(224), state), model.landmarks(xy), atol=1e-4, rtol=0)
    model.float()
