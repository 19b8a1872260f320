"""Alignment against scikit-image (Umeyama), scipy.ndimage (shifts), plain loops and dlib's own chips."""

import numpy as np
import pytest
import torch
from scipy import ndimage
from skimage.transform import SimilarityTransform

from common.errors import UserError
from common.faces import align_face, align_matrix
from common.faces.align import MEAN_FACE, STABLE_POINTS, invert, similarity, template, to_tensor, to_uint8, warp

IDENTITY = np.array([[1.0, 0, 0], [0, 1, 0]])


def photo(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    """Smooth random colours, uint8 (rows,columns,3)."""
    noise = np.random.default_rng(seed).uniform(0, 255, (rows, columns, 3))
    smooth = ndimage.gaussian_filter(noise, (2, 2, 0), mode="reflect")
    return ((smooth - smooth.min()) / np.ptp(smooth) * 255).astype(np.uint8)


def face_landmarks(scale: float = 60.0, angle: float = 0.2, shift: tuple[float, float] = (40.0, 30.0)) -> np.ndarray:
    """(68,2) the mean face, turned and scaled; the jaw, which no fit may read, is NaN-free but absurd."""
    points = np.full((68, 2), 1e6)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    points[17:] = MEAN_FACE @ turn.T * scale + shift
    return points


def test_similarity_is_the_least_squares_fit_of_scikit_image() -> None:
    rng = np.random.default_rng(1)
    for count in (2, 5, 33):
        source, target = rng.normal(size=(count, 2)) * 50, rng.normal(size=(count, 2)) * 9 + 3
        reference = SimilarityTransform.from_estimate(source, target).params[:2]
        np.testing.assert_allclose(similarity(source, target), reference, atol=1e-9)


def test_similarity_never_mirrors() -> None:
    source = np.array([[0.0, 0], [4, 0], [0, 3], [5, 5]])
    matrix = similarity(source, source * [-1, 1])
    assert np.linalg.det(matrix[:, :2]) > 0


@pytest.mark.parametrize(
    "points",
    [np.full((68, 2), 7.0), np.full((68, 2), np.nan), np.zeros((67, 2)), np.full((68, 2), 1e9)],
    ids=["one-point", "nan", "67-points", "one-far-point"],
)
def test_degenerate_landmarks_are_refused_in_one_line(points: np.ndarray) -> None:
    with pytest.raises(UserError, match="landmarks"):
        align_face(photo(20, 20), points, 16)


def test_a_face_lands_on_the_template_at_any_size_and_margin() -> None:
    for size, margin in ((64, 0.4), (150, 0.25), (7, 0.0)):
        landmarks = face_landmarks()
        matrix = align_matrix(landmarks, size, margin)
        moved = landmarks[list(STABLE_POINTS)] @ matrix[:, :2].T + matrix[:, 2]
        np.testing.assert_allclose(moved, template(size, margin), atol=1e-9)
    np.testing.assert_allclose(template(100, 0.3) * 2.24, template(224, 0.3))


@pytest.mark.parametrize(("size", "margin"), [(0, 0.4), (64, -0.5)])
def test_an_impossible_template_is_refused(size: int, margin: float) -> None:
    with pytest.raises(UserError, match="size"):
        template(size, margin)


@pytest.mark.parametrize("shape", [(1, 1), (5, 9), (64, 64), (33, 7)])
def test_identity_returns_the_identical_picture(shape: tuple[int, int]) -> None:
    image = photo(*shape)
    np.testing.assert_array_equal(to_uint8(warp(to_tensor(image), IDENTITY[None], shape)), image)


@pytest.mark.parametrize(("border", "mode"), [("reflection", "reflect"), ("replicate", "nearest")])
def test_sub_pixel_shift_matches_scipy(border: str, mode: str) -> None:
    image = photo(21, 34).astype(np.float64)
    matrix = np.array([[1, 0, 0.5], [0, 1, -1.25]])
    result = warp(torch.from_numpy(image).permute(2, 0, 1)[None], matrix[None], (21, 34), border=border)
    expected = ndimage.shift(image, (-1.25, 0.5, 0), order=1, mode=mode)
    np.testing.assert_allclose(result[0].permute(1, 2, 0).numpy(), expected, atol=1e-6)


def test_zero_border_is_black_outside() -> None:
    shifted = warp(torch.ones(1, 1, 4, 4), np.array([[[1.0, 0, 2], [0, 1, 0]]]), (4, 4), border="zeros")
    np.testing.assert_allclose(shifted[0, 0].numpy(), [[0, 0, 1, 1]] * 4, atol=1e-6)


def test_rotation_about_the_centre_by_a_quarter_turn_is_exact() -> None:
    image = photo(9, 9)
    quarter = np.array([[0.0, -1, 9], [1, 0, 0]])
    np.testing.assert_array_equal(to_uint8(warp(to_tensor(image), quarter[None], (9, 9))), np.rot90(image, -1))


def test_shrinking_by_an_integer_is_the_block_mean() -> None:
    image = torch.rand(1, 3, 24, 36, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for factor in (2, 3, 4, 12):
        matrix = np.array([[[1 / factor, 0, 0], [0, 1 / factor, 0]]])
        blocks = image.reshape(1, 3, 24 // factor, factor, 36 // factor, factor).mean(dim=(3, 5))
        result = warp(image, matrix, (24 // factor, 36 // factor))
        torch.testing.assert_close(result, blocks, atol=0.02 if factor == 12 else 1e-6, rtol=0)


def test_shrinking_a_checkerboard_does_not_alias() -> None:
    board = torch.from_numpy(np.indices((201, 201)).sum(axis=0) % 2).double()[None, None]
    for factor in (2.5, 5.3, 17.0):
        side = int(201 / factor)
        result = warp(board, np.array([[[1 / factor, 0, 0.3], [0, 1 / factor, 0.1]]]), (side, side))
        assert (result - 0.5).abs().max() < 0.12


def test_batch_equals_one_by_one_whatever_the_scales() -> None:
    images = torch.rand(3, 3, 31, 17, generator=torch.Generator().manual_seed(1))
    matrices = np.stack([IDENTITY, IDENTITY * 0.37, np.array([[1.5, 0.4, -3], [-0.4, 1.5, 2]])])
    together = warp(images, matrices, (12, 10))
    for i in range(3):
        torch.testing.assert_close(together[i : i + 1], warp(images[i : i + 1], matrices[i : i + 1], (12, 10)))
    assert warp(images[:0], matrices[:0], (12, 10)).shape == (0, 3, 12, 10)
    with pytest.raises(ValueError, match="one"):
        warp(images, matrices[:2], (12, 10))


def test_warp_is_differentiable() -> None:
    image = torch.rand(1, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: warp(x, IDENTITY[None] * 0.6, (5, 5)), image)


def test_inverse_pastes_back() -> None:
    matrix = align_matrix(face_landmarks(), 48)
    points = np.random.default_rng(2).uniform(0, 48, (5, 2))
    there = points @ invert(matrix)[:, :2].T + invert(matrix)[:, 2]
    np.testing.assert_allclose(there @ matrix[:, :2].T + matrix[:, 2], points, atol=1e-9)
    image = photo(120, 140)
    crop = warp(to_tensor(image), (matrix * 4)[None], (192, 192))
    back = warp(crop, invert(matrix * 4)[None], (120, 140))
    centre = (slice(50, 75), slice(60, 80))
    assert np.abs(to_uint8(back)[centre].astype(int) - image[centre]).mean() < 1.5


def test_cutting_the_needed_part_changes_nothing() -> None:
    small = photo(90, 110, seed=3)
    landmarks = face_landmarks(scale=21.3, shift=(44.2, 33.7))
    matrix = align_matrix(landmarks, 40)
    whole = to_uint8(warp(to_tensor(small), matrix[None], (40, 40)))
    np.testing.assert_array_equal(align_face(small, landmarks, 40), whole)


@pytest.mark.parametrize("channels", [0, 1, 4])
def test_align_face_takes_grey_and_rgba(channels: int) -> None:
    image = photo(50, 60)
    other = image[:, :, 0] if channels == 0 else np.repeat(image[:, :, :1], channels, axis=2)
    crop = align_face(other, face_landmarks(20), 33)
    assert crop.shape == (33, 33, 3)
    np.testing.assert_array_equal(crop[:, :, 0], crop[:, :, 2])


def test_a_face_outside_the_picture_is_filled_by_its_mirror_image() -> None:
    crop = align_face(photo(30, 30), face_landmarks(scale=50, shift=(-10.0, -10.0)), 64)
    assert crop.std() > 5
    one_pixel = align_face(np.full((1, 1, 3), 77, np.uint8), face_landmarks(), 16)
    np.testing.assert_array_equal(one_pixel, np.full((16, 16, 3), 77, np.uint8))


def test_margin_quarter_is_dlibs_own_chip() -> None:
    dlib = pytest.importorskip("dlib")
    image = photo(200, 220, seed=5)
    landmarks = np.round(face_landmarks(scale=80, angle=-0.15, shift=(60.0, 55.0)))
    landmarks[:17] = 0
    # dlib's points are pixel indices: a centre at index 3 is at 3.5 here.
    parts = [dlib.point(int(x), int(y)) for x, y in landmarks]
    detection = dlib.full_object_detection(dlib.rectangle(60, 60, 140, 140), parts)
    chip = dlib.get_face_chip(image, detection, size=150, padding=0.25)
    ours = align_face(image, landmarks + 0.5, 150, 0.25)
    assert np.abs(chip.astype(int) - ours.astype(int)).mean() < 2.5
