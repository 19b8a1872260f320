"""Fitting a face model to clips: known coefficients, noise, gaps, cuts, starts, pictures, hostile input."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from common.errors import UserError
from common.face3d.camera import Camera
from common.face3d.fit import Fit, fit_sequence
from common.face3d.fit_clip import _windows
from common.face3d.fit_render import render_fit
from common.face3d.fit_settings import FitSettings
from common.face3d.fit_terms import Basis, project
from common.face3d.morphable import FaceModel, load_face_model
from tests.common.toy_fit import QUICK, WHOLE, drawn, errors, performed


@pytest.fixture(scope="module")
def model() -> FaceModel:
    return load_face_model("builtin")


@pytest.fixture(scope="module")
def basis(model: FaceModel) -> Basis:
    return Basis.of(model, model.landmark_vertices).double()


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


def test_a_fit_is_saved_and_loaded(model: FaceModel, basis: Basis, tmp_path: Path) -> None:
    fit = fit_sequence(model, project(basis, Camera(224), performed(model, 2)), size=(224, 224), settings=QUICK)
    fit.save(tmp_path / "fit.npz")
    loaded = Fit.load(tmp_path / "fit.npz")
    assert (loaded.model_name, loaded.size) == ("builtin", 224)
    for name in ("identity", "albedo", "expression", "angles", "translation", "gamma", "confidence", "matrix"):
        torch.testing.assert_close(getattr(loaded, name), getattr(fit, name), rtol=0, atol=0)
    (tmp_path / "text.npz").write_text("no")
    np.savez(tmp_path / "part.npz", identity=np.zeros(3))
    words = {name: np.array(1 if name == "size" else "x") for name in Fit.__dataclass_fields__}
    np.savez(tmp_path / "words.npz", allow_pickle=False, **words)
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
            FitSettings(**bad)
