"""Face backends: dlib on photographs and hostile pictures, face_alignment with its own file formats."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage.data import astronaut

from common.errors import UserError
from common.faces import Face, align_face, as_rgb, load_backend, read_image
from common.faces.base import largest_first
from common.faces.dlib_backend import DlibBackend, dlib_weights


@pytest.fixture(scope="module")
def dlib_backend() -> DlibBackend:
    return DlibBackend()


@pytest.fixture(scope="module")
def portrait() -> np.ndarray:
    return astronaut()


def noise(rows: int, columns: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (rows, columns, 3), dtype=np.uint8)


def test_the_weights_are_found_without_importing_their_package() -> None:
    assert dlib_weights("shape_predictor_68_face_landmarks.dat").stat().st_size > 90_000_000
    assert "face_recognition_models" not in sys.modules


def test_missing_weights_say_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="pip install"):
        dlib_weights("no_such_model.dat")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install face-recognition-models"):
        DlibBackend("cnn")


def test_missing_dlib_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dlib", None)
    with pytest.raises(UserError, match="pip install dlib-bin"):
        DlibBackend()


def test_unknown_names_are_refused() -> None:
    with pytest.raises(UserError, match="choose"):
        load_backend("mtcnn")
    with pytest.raises(UserError, match="choose"):
        DlibBackend("yolo")


def test_a_portrait_has_one_face_with_plausible_landmarks(dlib_backend: DlibBackend, portrait: np.ndarray) -> None:
    (faces,) = dlib_backend.detect([portrait])
    (face,) = faces
    assert face.landmarks.shape == (68, 2)
    assert face.landmarks.dtype == np.float32
    assert face.score > 0
    x0, y0, x1, y1 = face.box
    assert x1 - x0 == pytest.approx(90, abs=25)
    assert ((face.landmarks >= (x0 - 30, y0 - 30)) & (face.landmarks <= (x1 + 30, y1 + 30))).all()
    jaw, nose, eyes, lips = (face.landmarks[part].mean(axis=0) for part in np.split(np.arange(68), (17, 36, 48))[:4])
    assert eyes[1] < nose[1] + 10 < lips[1] < jaw[1] + 60
    assert face.landmarks[36:42, 0].mean() < face.landmarks[42:48, 0].mean()


def test_landmarks_follow_sub_pixel_motion(dlib_backend: DlibBackend, portrait: np.ndarray) -> None:
    """Half the size of the picture: landmarks halve, to less than a pixel."""
    whole = dlib_backend.detect([portrait])[0][0]
    half = np.asarray(Image.fromarray(portrait).resize((256, 256), Image.Resampling.BOX))
    box = tuple(value / 2 for value in whole.box)
    difference = dlib_backend.landmarks(half, box) - whole.landmarks / 2
    assert np.abs(difference).mean() < 0.5
    assert np.abs(difference.mean(axis=0)).max() < 0.3


def test_five_faces_come_largest_first(dlib_backend: DlibBackend, portrait: np.ndarray) -> None:
    head = portrait[0:260, 100:360]
    canvas = np.full((560, 1000, 3), 128, np.uint8)
    for side, row, column in [(260, 0, 0), (440, 60, 280), (300, 0, 700), (280, 280, 0), (250, 310, 740)]:
        tile = np.asarray(Image.fromarray(head).resize((side, side)))
        canvas[row : row + side, column : column + side] = tile[: 560 - row]
    faces = dlib_backend.detect([canvas])[0]
    assert len(faces) == 5
    assert [face.area for face in faces] == sorted((face.area for face in faces), reverse=True)
    assert 280 < faces[0].box[0] < 700


def test_a_large_picture_is_searched_reduced_and_answered_in_its_own_pixels(portrait: np.ndarray) -> None:
    reduced = DlibBackend(max_side=400).detect([portrait])[0][0]
    plain = DlibBackend().detect([portrait])[0][0]
    assert np.abs(reduced.landmarks - plain.landmarks).mean() < 4
    assert reduced.area == pytest.approx(plain.area, rel=0.4)


def test_small_faces_need_upsampling(portrait: np.ndarray) -> None:
    thumbnail = np.asarray(Image.fromarray(portrait[30:230, 120:320]).resize((112, 112), Image.Resampling.BOX))
    assert DlibBackend(upsample=0).detect([thumbnail]) == [[]]
    assert len(DlibBackend(upsample=1).detect([thumbnail])[0]) == 1


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (3, 2), (77, 131)])
def test_pictures_without_a_face_give_an_empty_list(dlib_backend: DlibBackend, shape: tuple[int, int]) -> None:
    assert dlib_backend.detect([noise(*shape), noise(*shape)[:, :, 0]]) == [[], []]
    assert dlib_backend.detect([]) == []


def test_grey_and_rgba_find_the_same_face(dlib_backend: DlibBackend, portrait: np.ndarray) -> None:
    rgba = np.concatenate([portrait, np.full((512, 512, 1), 9, np.uint8)], axis=2)
    grey = portrait.mean(axis=2).astype(np.uint8)
    colour, with_alpha, flat = (faces[0] for faces in dlib_backend.detect([portrait, rgba, grey]))
    np.testing.assert_array_equal(colour.landmarks, with_alpha.landmarks)
    assert np.abs(colour.landmarks - flat.landmarks).mean() < 6


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4, 2), np.uint8),
        np.zeros((0, 5, 3), np.uint8),
        np.zeros(7, np.uint8),
    ],
    ids=["float", "two-channels", "empty", "one-axis"],
)
def test_unusable_arrays_are_refused_in_one_line(image: np.ndarray) -> None:
    with pytest.raises(UserError, match="image"):
        as_rgb(image)


def test_read_image_turns_a_photo_upright(tmp_path: Path) -> None:
    image = Image.fromarray(noise(6, 9))
    exif = image.getexif()
    exif[0x0112] = 6  # turned by a quarter
    image.save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "turned.png"), np.rot90(noise(6, 9), -1))


def test_unreadable_photos_are_one_line(tmp_path: Path) -> None:
    Image.fromarray(noise(64, 64)).save(tmp_path / "torn.png")
    data = (tmp_path / "torn.png").read_bytes()
    (tmp_path / "torn.png").write_bytes(data[: len(data) // 2])
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "empty.png").touch()
    for name in ("torn.png", "text.png", "empty.png", "absent.png", ""):
        with pytest.raises(UserError) as caught:
            read_image(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_ties_are_ordered_by_score_then_place() -> None:
    points = np.zeros((68, 2), np.float32)
    boxes = [((5.0, 0, 6, 1), 0.1), ((0.0, 0, 1, 1), 0.1), ((9.0, 0, 10, 1), 0.5), ((0.0, 0, 2, 2), 0.0)]
    ordered = largest_first([Face(box, score, points) for box, score in boxes])
    assert [face.box[0] for face in ordered] == [0.0, 9.0, 0.0, 5.0]


@pytest.mark.media
def test_every_real_photo_has_a_face_that_aligns(media: Path, dlib_backend: DlibBackend) -> None:
    for path in sorted((media / "real" / "photos").glob("*.png")):
        image = read_image(path)
        faces = dlib_backend.detect([image])[0]
        assert len(faces) == 1, path.name
        again = dlib_backend.detect([align_face(image, faces[0].landmarks, 224)])[0]
        assert len(again) == 1, path.name
        eyes = again[0].landmarks[36:48].reshape(2, 6, 2).mean(axis=1)
        np.testing.assert_allclose(eyes[:, 1], 224 * 0.341, atol=8)
        np.testing.assert_allclose(eyes[:, 0], (224 * 0.35, 224 * 0.645), atol=8)


@pytest.mark.media
@pytest.mark.slow
def test_the_cnn_detector_agrees_with_hog(media: Path, dlib_backend: DlibBackend) -> None:
    image = read_image(media / "real" / "photos" / "still_grid_brbk7n.png")
    (face,) = DlibBackend("cnn", upsample=0).detect([image])[0]
    assert np.abs(face.landmarks - dlib_backend.detect([image])[0][0].landmarks).mean() < 4
    assert DlibBackend("cnn", upsample=0).detect([noise(3, 3)]) == [[]]
