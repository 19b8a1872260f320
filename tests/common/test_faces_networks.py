"""The face_alignment backend: real architectures and file formats, toy networks with known answers.

The published weights are not in the repository, so accuracy on photographs is not tested here.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.errors import UserError
from common.faces import load_backend
from common.faces.face_alignment_backend import FaceAlignmentBackend, decode_heatmaps

face_alignment = pytest.importorskip("face_alignment")
STRIDES = (4, 8, 16, 32, 64, 128)


class BrightDetector(nn.Module):
    """In S3FD's output format: a face of 128 px wherever a 32 px cell is bright."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []

    def forward(self, image: Tensor) -> list[Tensor]:
        self.batches.append(len(image))
        outputs = []
        for stride in STRIDES:
            rows, columns = (max(1, side // stride) for side in image.shape[2:])
            logits = torch.full((len(image), 2, rows, columns), -20.0)
            logits[:, 0] = 20
            if stride == 32:
                bright = F.avg_pool2d(image.mean(dim=1), 32) > 60
                logits[:, 1][bright] = 25
            outputs += [logits, torch.zeros(len(image), 4, rows, columns)]
        return outputs


class BrightLandmarks(nn.Module):
    """In FAN's output format: each heat map is the picture's brightness; eyes look at their own half only."""

    def forward(self, crop: Tensor) -> list[Tensor]:
        bright = F.avg_pool2d(crop.mean(dim=1, keepdim=True), 4).expand(-1, 68, -1, -1).clone()
        bright[:, 36:42, :, 32:] = 0
        bright[:, 42:48, :, :32] = 0
        return [torch.zeros_like(bright), bright]


def spots(shape: tuple[int, int], *centres: tuple[float, float], sigma: float = 6.0) -> np.ndarray:
    """Gaussian spots of light on black, uint8 (H,W,3); centres are x, y in continuous pixels."""
    y, x = np.mgrid[: shape[0], : shape[1]] + 0.5
    light = sum(np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * sigma**2)) for cx, cy in centres)
    return np.repeat((np.clip(light, 0, 1) * 255).astype(np.uint8)[:, :, None], 3, axis=2)


def with_face(picture: np.ndarray, row: int, column: int) -> np.ndarray:
    """A bright 32 px cell whose centre the toy detector takes for a face's centre."""
    picture = picture.copy()
    picture[row : row + 32, column : column + 32] = 255
    return picture


@pytest.fixture
def backend() -> FaceAlignmentBackend:
    return FaceAlignmentBackend(networks=(BrightDetector(), BrightLandmarks()))


def test_heat_maps_decode_to_a_fraction_of_a_cell() -> None:
    rng = np.random.default_rng(0)
    centres = torch.from_numpy(rng.uniform(2, 62, (3, 68, 2)))
    grid = torch.arange(64) + 0.5
    across = torch.exp(-((grid - centres[..., :1]) ** 2) / 2)
    down = torch.exp(-((grid - centres[..., 1:]) ** 2) / 2)
    maps = down[..., :, None] * across[..., None, :]
    torch.testing.assert_close(decode_heatmaps(maps), centres.float(), atol=0.01, rtol=0)


def test_heat_maps_with_their_maximum_at_the_rim_or_flat_are_still_answered() -> None:
    maps = torch.zeros(1, 3, 64, 64)
    maps[0, 0, 0, 63] = 1
    maps[0, 1] = -1
    maps[0, 2, 63, 10] = 2
    np.testing.assert_allclose(decode_heatmaps(maps)[0].numpy(), [[63.5, 0.5], [0.5, 0.5], [10.5, 63.5]])


def test_landmarks_come_back_in_the_pictures_own_sub_pixels(backend: FaceAlignmentBackend) -> None:
    picture = spots((200, 240), (101.3, 77.8))
    ((points,),) = [backend._landmarks([(picture, np.array([60.0, 40, 150, 130, 1]))])]
    jaw = points[:17]
    np.testing.assert_allclose(jaw, np.tile([101.3, 77.8], (17, 1)), atol=0.15)


def test_mirrored_maps_are_put_back_on_their_own_side(backend: FaceAlignmentBackend) -> None:
    picture = spots((200, 200), (75.0, 80.0), (130.0, 85.0))
    (points,) = backend._landmarks([(picture, np.array([55.0, 60, 145, 150, 1]))])
    np.testing.assert_allclose(points[36:42].mean(axis=0), (75, 80), atol=0.3)
    np.testing.assert_allclose(points[42:48].mean(axis=0), (130, 85), atol=0.3)


@pytest.mark.slow  # the package compiles its decoder with numba
def test_the_packages_own_pipeline_agrees_to_its_whole_pixels(backend: FaceAlignmentBackend) -> None:
    theirs = object.__new__(face_alignment.FaceAlignment)
    theirs.device, theirs.dtype, theirs.flip_input, theirs.max_batch_size = "cpu", torch.float32, True, 4
    theirs.landmarks_type = face_alignment.LandmarksType.TWO_D
    theirs.face_alignment_net = BrightLandmarks()
    theirs.face_detector = face_alignment.detection.core.FaceDetector("cpu", verbose=False)
    picture = spots((260, 300), (120.0, 95.0), (170.0, 101.0), sigma=4)
    box = np.array([95.0, 70, 200, 190, 0.99])
    (expected,) = theirs.get_landmarks_from_image(picture, detected_faces=[box])
    (ours,) = backend._landmarks([(picture, box)])
    assert np.abs(ours[36:48] - expected[36:48]).max() < 2.5


def test_faces_are_found_batched_over_frames_and_ordered(backend: FaceAlignmentBackend) -> None:
    empty = np.zeros((160, 192, 3), np.uint8)
    one = with_face(empty, 64, 96)
    two = with_face(with_face(np.zeros((320, 320, 3), np.uint8), 32, 32), 256, 256)
    found = backend.detect([one, empty, two, one])
    assert [len(faces) for faces in found] == [1, 0, 2, 1]
    assert backend._detector.batches == [3, 1]
    (face,) = found[0]
    np.testing.assert_allclose(face.box, (48, 16, 176, 144), atol=1e-3)
    np.testing.assert_allclose(face.landmarks[30], (112, 80), atol=17)
    assert face.score > 0.99
    np.testing.assert_array_equal(found[3][0].landmarks, face.landmarks)
    alone = FaceAlignmentBackend(networks=(BrightDetector(), BrightLandmarks()), batch_size=1).detect([one])
    np.testing.assert_allclose(alone[0][0].landmarks, face.landmarks, atol=1e-4)


def test_large_pictures_are_reduced_and_answered_in_their_own_pixels() -> None:
    backend = FaceAlignmentBackend(networks=(BrightDetector(), BrightLandmarks()), max_side=160)
    large = np.kron(with_face(np.zeros((120, 160, 3), np.uint8), 32, 64), np.ones((4, 4, 1), np.uint8))
    (face,) = backend.detect([large])[0]
    np.testing.assert_allclose(face.box, (64, -64, 576, 448), atol=1e-3)


@pytest.mark.parametrize("shape", [(1, 1), (1, 90), (33, 5)])
def test_tiny_pictures_have_no_face(backend: FaceAlignmentBackend, shape: tuple[int, int]) -> None:
    assert backend.detect([np.zeros(shape, np.uint8)]) == [[]]


@pytest.mark.slow
def test_published_architectures_load_from_a_folder_and_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of the published names and layout, with random numbers: loading, shapes and the whole chain."""
    from face_alignment.detection.sfd.net_s3fd import s3fd

    torch.manual_seed(0)
    torch.save(s3fd().state_dict(), tmp_path / "s3fd-619a316812.pth")
    torch.save(face_alignment.models.FAN(4).state_dict(), tmp_path / "2DFAN4-11f355bf06.pth.tar")
    with pytest.raises(UserError, match="SHA-256"):
        load_backend("face_alignment", weights=tmp_path)
    monkeypatch.setattr("common.weights._check", lambda entry, path, shown=None: None)
    backend = load_backend("face_alignment", weights=tmp_path)
    assert isinstance(backend, FaceAlignmentBackend)
    backend.threshold = 1.1
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert backend.detect([noise, noise]) == [[], []]
    (points,) = backend._landmarks([(noise, np.array([10.0, 10, 50, 60, 1]))])
    assert points.shape == (68, 2)
    assert np.isfinite(points).all()
    torch.save({"wrong": torch.zeros(1)}, tmp_path / "s3fd-619a316812.pth")
    with pytest.raises(UserError, match="does not fit the network s3fd"):
        load_backend("face_alignment", weights=tmp_path)


def test_absent_weights_say_which_file_goes_where(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"s3fd-619a316812\.pth"):
        load_backend("face_alignment", weights=tmp_path)


def test_without_a_network_the_error_names_the_file_and_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setenv("SPEECHFACE_WEIGHTS", str(tmp_path))
    monkeypatch.setattr("urllib.request.urlopen", refuse)
    with pytest.raises(UserError) as caught:
        load_backend("face_alignment")
    message = str(caught.value)
    assert "s3fd-619a316812.pth" in message
    assert str(tmp_path) in message
    assert list(tmp_path.iterdir()) == []
