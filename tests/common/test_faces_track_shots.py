"""Cut detection on drawn scenes: cuts, pans, flashes, fades, dark and tiny pictures."""

import numpy as np
import pytest
from scipy import ndimage

from common.faces.shots import ShotDetector


def picture(seed: int, rows: int = 120, columns: int = 160) -> np.ndarray:
    """Smooth colours with as much detail as a photograph has, uint8 (rows,columns,3)."""
    noise = np.random.default_rng(seed).normal(size=(rows, columns, 3))
    smooth = sum(sigma * ndimage.gaussian_filter(noise, (sigma, sigma, 0)) for sigma in (1, 2, 4, 8, 16, 32))
    return (255 * (smooth - smooth.min()) / np.ptp(smooth)).astype(np.uint8)


def starts(images: list[np.ndarray]) -> tuple[int, ...]:
    detector = ShotDetector()
    for image in images:
        detector.update(image)
    return detector.starts


def noisy(image: np.ndarray, seed: int, strength: float = 6.0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=image.shape) * strength
    return (image + noise).clip(0, 255).astype(np.uint8)


def test_every_cut_is_found_in_its_frame_and_nothing_else() -> None:
    images = [noisy(picture(t // 7), t) for t in range(35)]
    assert starts(images) == (0, 7, 14, 21, 28)


def test_the_answer_of_each_frame_is_given_at_once() -> None:
    detector = ShotDetector()
    assert [detector.update(picture(t // 3)) for t in range(7)] == [True, False, False, True, False, False, True]


def test_no_frames_have_no_shots_and_one_frame_has_one() -> None:
    assert starts([]) == ()
    assert starts([picture(0)]) == (0,)


def test_shots_of_one_frame_each() -> None:
    assert starts([picture(t) for t in range(5)]) == (0, 1, 2, 3, 4)


def test_a_pan_is_no_cut_and_a_cut_within_it_is_one() -> None:
    first, second = picture(1, columns=600), picture(2, columns=600)
    pan = [first[:, 5 * t : 5 * t + 160] for t in range(30)]
    assert starts(pan) == (0,)
    assert starts([*pan[:15], *(second[:, 5 * t : 5 * t + 160] for t in range(15))]) == (0, 15)


def test_a_light_that_is_dimmed_is_no_cut() -> None:
    image = picture(3).astype(np.float64)
    assert starts([(image * level).astype(np.uint8) for level in (1, 0.7, 0.9, 0.75, 1)]) == (0,)


def test_a_fade_to_black_and_dark_noise_are_no_cuts() -> None:
    image = picture(4).astype(np.float64)
    fade = [(image * level).astype(np.uint8) for level in np.linspace(1, 0, 13)]
    dark = [noisy(np.zeros((120, 160, 3)), t, 3.0) for t in range(8)]
    assert starts([*fade, *dark]) == (0,)


@pytest.mark.parametrize("level", [0, 255])
def test_one_odd_frame_is_taken_back_and_two_pictures_are_not(level: int) -> None:
    flash = np.full((120, 160, 3), level, np.uint8)
    flash[:60] = 255 - level
    before = [picture(5)] * 6
    assert starts([*before, flash, *before]) == (0,)
    assert starts([*before, flash, *[picture(6)] * 6]) == (0, 6, 7)


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (33, 7), (1081, 1921)])
def test_pictures_of_any_size(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    images = [np.full((*shape, 3), 90, np.uint8), rng.integers(0, 256, (*shape, 3), np.uint8)]
    assert starts([images[0], images[0]]) == (0,)
    assert starts(images)[0] == 0
