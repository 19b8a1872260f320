"""Crops out of frames and back, against plain loops, scipy and exact cases."""

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates
from scipy.spatial import Delaunay

from common.faces.paste import box_mask, cut_crops, lower_face_mask, paste_crops
from common.faces.tracks import crop_frames
from tests.common.toy_faces import marks

SIZE = 24


def frames(count: int, height: int = 70, width: int = 91) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    rough = rng.integers(0, 255, (count, height // 7 + 2, width // 7 + 2, 3)).astype(np.uint8)
    return [np.kron(image, np.ones((7, 7, 1), np.uint8))[:height, :width].copy() for image in rough]


def placed(left: float, top: float, side: float, height: float | None = None) -> np.ndarray:
    """Map of the box at (left, top) to a crop of SIZE px."""
    x, y = SIZE / side, SIZE / (height or side)
    return np.array([[x, 0, -left * x], [0, y, -top * y]])


@pytest.mark.parametrize("box", [(10, 8, 24), (20.4, 13.7, 40), (-9.5, -5, 40), (70, 50, 60), (3, 2, 9)])
def test_crops_are_those_of_frames_cut_one_by_one(box: tuple[float, float, float]) -> None:
    images, others = frames(3), placed(31, 20, 30)
    matrices = np.stack([placed(*box), others, placed(*box)])
    expected = list(crop_frames(images, matrices, SIZE))
    found = cut_crops(images, matrices, SIZE, "cpu") * 255
    assert found.shape == (3, 3, SIZE, SIZE)
    difference = found.permute(0, 2, 3, 1).numpy() - np.stack(expected)
    assert np.abs(difference).max() <= 0.51


def test_a_crop_of_whole_pixels_comes_back_bit_for_bit() -> None:
    images = frames(2)
    matrices = np.stack([placed(10, 8, SIZE), placed(40, 30, SIZE)])
    crops = cut_crops(images, matrices, SIZE, "cpu")
    ones = torch.ones(2, 1, SIZE, SIZE)
    for before, after in zip(images, paste_crops(images, crops, ones, matrices), strict=True):
        assert (before == after).all()
        assert after is not before
    black = paste_crops(images, torch.zeros_like(crops), ones, matrices)
    assert (black[0][8 : 8 + SIZE, 10 : 10 + SIZE] == 0).all()
    black[0][8 : 8 + SIZE, 10 : 10 + SIZE] = images[0][8 : 8 + SIZE, 10 : 10 + SIZE]
    assert (black[0] == images[0]).all()


def test_pasting_is_what_a_plain_loop_does_at_sub_pixel_places() -> None:
    image = frames(1)[0]
    matrix = placed(17.3, 12.6, 37.5, 41.2)
    rng = np.random.default_rng(1)
    crop, mask = rng.random((3, SIZE, SIZE)), np.zeros((SIZE, SIZE))
    mask[5:20, 6:18] = rng.random((15, 12))
    (found,) = paste_crops(
        [image], torch.from_numpy(crop).float()[None], torch.from_numpy(mask).float()[None, None], matrix[None]
    )
    expected = image.astype(float)
    for row in range(image.shape[0]):
        for column in range(image.shape[1]):
            x, y = matrix[:, :2] @ (column + 0.5, row + 0.5) + matrix[:, 2]
            place = [[y - 0.5], [x - 0.5]]
            share = map_coordinates(mask, place, order=1, mode="grid-constant")[0]
            colour = [map_coordinates(channel, place, order=1, mode="nearest")[0] * 255 for channel in crop]
            expected[row, column] += share * (np.array(colour) - expected[row, column])
    assert np.abs(found - expected).max() <= 0.51
    far = expected == image
    assert (found[far] == image[far]).all()
    assert far.mean() > 0.5


@pytest.mark.parametrize("box", [(-20, -12, 40), (75, 55, 40), (200, 300, 20), (-1, -1, 200)])
def test_crops_over_the_edge_paste_what_lies_inside(box: tuple[float, float, float]) -> None:
    image, matrix = frames(1)[0], placed(*box)[None]
    pasted = paste_crops([image], torch.zeros(1, 3, SIZE, SIZE), box_mask(1, SIZE, "cpu"), matrix)[0]
    rows, columns = np.mgrid[: image.shape[0], : image.shape[1]] + 0.5
    left, top, side = box
    inside = (columns > left) & (columns < left + side) & (rows > top) & (rows < top + side)
    deep = (columns > left + side / 24) & (columns < left + side * 23 / 24)
    deep &= (rows > top + side / 24) & (rows < top + side * 23 / 24)
    near = (np.abs(columns - left - side / 2) < side * 0.55) & (np.abs(rows - top - side / 2) < side * 0.55)
    assert (pasted[deep & inside] == 0).all()
    assert (pasted[~near] == image[~near]).all()


def test_frames_do_not_depend_on_their_neighbours_in_a_batch() -> None:
    images = frames(4)
    matrices = np.stack([placed(10, 8, 30), placed(2.5, 3.1, 60), placed(60, 40, 12), placed(-8, 5, 33)])
    crops, masks = torch.rand(4, 3, SIZE, SIZE), torch.rand(4, 1, SIZE, SIZE)
    together = paste_crops(images, crops, masks, matrices)
    for k in range(4):
        (alone,) = paste_crops(images[k : k + 1], crops[k : k + 1], masks[k : k + 1], matrices[k : k + 1])
        assert np.abs(alone.astype(int) - together[k]).max() <= 1


def face(size: int, dx: float = 0.0, dy: float = 0.0) -> torch.Tensor:
    """Landmarks (1,68,2) as in a tight crop."""
    box = (0.05 * size + dx, -0.1 * size + dy, 0.95 * size + dx, 0.95 * size + dy)
    return torch.from_numpy(marks(box))[None]


def test_the_mask_covers_the_mouth_within_the_jaw_and_ends_before_the_edges() -> None:
    size = 96
    points = face(size)
    mask = lower_face_mask(points, size)[0, 0]
    assert mask.shape == (size, size)
    assert (mask[: int(0.4 * size)] == 0).all()
    assert (mask[:, [0, -1]] == 0).all()
    assert (mask[-1] == 0).all()
    for x, y in points[0, 48:68].tolist():
        assert mask[int(y), int(x)] > 0.95
    assert ((mask > 0) & (mask < 1)).float().mean() > 0.05


def test_the_mask_lies_within_the_enlarged_hull() -> None:
    size = 64
    points = face(size, dx=-9, dy=-6)
    mask = lower_face_mask(points, size, feather=0.05, margin=0.0, drop=0.0, top=0.0)[0, 0].numpy()
    corners = points[0, [*range(2, 15), 30]].numpy().astype(float)
    middle = corners.mean(axis=0)
    centres = np.stack(np.meshgrid(np.arange(size) + 0.5, np.arange(size) + 0.5), axis=-1).reshape(-1, 2)
    within = [(Delaunay(middle + (corners - middle) * k).find_simplex(centres) >= 0) for k in (0.85, 1.15)]
    inner, outer = (found.reshape(size, size) for found in within)
    inner[:4], inner[-4:], inner[:, :4], inner[:, -4:] = False, False, False, False
    assert (mask[~outer] == 0).all()
    assert (mask[inner] > 0).all()


def test_the_mask_follows_the_landmarks_smoothly_and_each_on_its_own() -> None:
    size = 48
    steps = [face(size, dx=0.1 * k) for k in range(6)]
    masks = lower_face_mask(torch.cat(steps), size)
    assert float((masks[1:] - masks[:-1]).abs().max()) < 0.05
    for k, points in enumerate(steps):
        assert torch.equal(lower_face_mask(points, size)[0], masks[k])


def test_a_mask_far_from_the_crop_is_empty() -> None:
    assert lower_face_mask(face(48, dx=300), 48).max() == 0


def test_box_masks() -> None:
    assert (box_mask(2, 8, "cpu") == 1).all()
    soft = box_mask(1, 10, "cpu", feather=0.2)[0, 0]
    assert soft[5].tolist() == pytest.approx([0.25, 0.75, 1, 1, 1, 1, 1, 1, 0.75, 0.25])
