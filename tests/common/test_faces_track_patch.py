"""Grey patches against plain means and scipy, box arithmetic by hand, and the backends' two halves against `detect`."""

import numpy as np
import pytest
from scipy import ndimage
from skimage.data import astronaut

from common.faces.base import FaceBackend
from common.faces.dlib_backend import DlibBackend
from common.faces.face_alignment_backend import FaceAlignmentBackend
from common.faces.patch import area, grey_patch, overlap, visible_share
from tests.common.test_faces_align import photo
from tests.common.test_faces_networks import BrightDetector, BrightLandmarks, with_face


def test_a_box_at_its_own_size_is_the_mean_of_the_colours() -> None:
    image = photo(40, 50)
    expected = image[8:28, 15:35].astype(int).sum(axis=2) // 3
    np.testing.assert_array_equal(grey_patch(image, (15, 8, 35, 28), 20), expected)


def test_enlarging_is_bilinear_between_pixel_centres() -> None:
    image = photo(40, 50)
    grey = image.astype(int).sum(axis=2) // 3
    box, side = (10.3, 5.7, 20.3, 15.7), 35
    y, x = (start + (np.arange(side) + 0.5) * 10 / side - 0.5 for start in (box[1], box[0]))
    expected = ndimage.map_coordinates(grey.astype(float), np.meshgrid(y, x, indexing="ij"), order=1)
    inner = slice(3, -3)  # Pillow does not look beyond the box
    np.testing.assert_allclose(grey_patch(image, box, side)[inner, inner], expected[inner, inner], atol=1.5)


def test_shrinking_does_not_alias() -> None:
    board = np.repeat((np.indices((96, 96)).sum(axis=0) % 2 * 255).astype(np.uint8)[..., None], 3, 2)
    patch = grey_patch(board, (4.0, 4.0, 90.0, 90.0), 24)
    assert np.abs(patch.astype(int) - 127).max() < 12


@pytest.mark.parametrize("box", [(-7, -9, 13, 11), (40, 30, 60, 50), (-80, 5, -60, 25), (500, 500, 520, 520)])
def test_outside_the_picture_the_edge_is_repeated(box: tuple[int, int, int, int]) -> None:
    image = photo(40, 50)
    rows, columns = np.arange(box[1], box[3]).clip(0, 39), np.arange(box[0], box[2]).clip(0, 49)
    expected = image[rows[:, None], columns].astype(int).sum(axis=2) // 3
    np.testing.assert_array_equal(grey_patch(image, box, 20), expected)


def test_boxes_by_hand() -> None:
    assert area((1, 2, 4, 6)) == 12
    assert area((4, 2, 1, 6)) == 0
    assert overlap((0, 0, 2, 2), (1, 1, 3, 3)) == pytest.approx(1 / 7)
    assert overlap((0, 0, 2, 2), (2, 0, 4, 2)) == 0
    assert overlap((0, 0, 2, 2), (0, 0, 2, 2)) == 1
    assert visible_share((-5, 0, 5, 10), (20, 30)) == 0.5
    assert visible_share((40, 0, 50, 10), (20, 30)) == 0
    assert visible_share((0, 0, 60, 40), (20, 30)) == 0.25


@pytest.mark.parametrize("name", ["dlib", "face_alignment"])
def test_boxes_and_landmarks_make_up_detection(name: str) -> None:
    if name == "dlib":
        backend: FaceBackend = DlibBackend()
        image = np.ascontiguousarray(np.concatenate([astronaut()[20:260, 90:350]] * 2, axis=1))
    else:
        pytest.importorskip("face_alignment")
        backend = FaceAlignmentBackend(networks=(BrightDetector(), BrightLandmarks()), batch_size=1)
        image = with_face(with_face(np.zeros((320, 320, 3), np.uint8), 32, 32), 256, 256)
    faces = backend.detect([image])[0]
    boxes = backend.boxes(image)
    assert len(faces) == 2
    assert [(face.box, face.score) for face in faces] == boxes
    together = backend.landmarks(image, np.array([box for box, _ in boxes]))
    assert together.shape == (2, 68, 2)
    assert together.dtype == np.float32
    for face, points in zip(faces, together, strict=True):
        np.testing.assert_array_equal(points, face.landmarks)
        np.testing.assert_allclose(backend.landmarks(image, face.box), points, atol=1e-3)
    assert backend.landmarks(image, np.zeros((0, 4))).shape == (0, 68, 2)


def test_boxes_of_a_reduced_picture_are_in_its_own_pixels() -> None:
    image = np.ascontiguousarray(np.kron(astronaut()[20:260, 90:350], np.ones((3, 3, 1), np.uint8)))
    backend = DlibBackend(upsample=0)
    ((whole, _),), ((reduced, _),) = backend.boxes(image), backend.boxes(image, 300)
    assert overlap(whole, reduced) > 0.6
