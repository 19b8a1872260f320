"""The crops of the three protocols against run_pipeline.py's arithmetic, and scores of files."""

from pathlib import Path

import numpy as np
import pytest
import torch

from common import sync_protocols
from common.errors import UserError
from common.faces.tracks import Track, Tracking
from common.metrics.lse import score_clip
from common.sync_protocols import Shot, crop_face, face_places, face_shots, score_video
from common.syncnet import SyncNet
from common.video import VideoWriter, read_frames, read_wave
from tests.common.toy_sync import toy_clip


class NoFaces:
    name = "none"

    def detect(self, images: object) -> list[list[object]]:
        raise AssertionError("the tracking is replaced in these tests")


@pytest.fixture(scope="module")
def net() -> SyncNet:
    torch.manual_seed(0)
    return SyncNet(width=0.05, size=64).eval()


def track(boxes: np.ndarray, start: int = 0, number: int = 0) -> Track:
    count = len(boxes)
    lost = np.full((count, 68, 2), np.nan, np.float32)
    return Track(number, start, boxes.astype(np.float32), lost, np.ones(count, np.float32), np.ones(count, bool))


def tracking(frames: int, tracks: list[Track], shots: tuple[int, ...] = (0,)) -> Tracking:
    return Tracking(frames, 25.0, np.arange(frames) / 25, (640, 480), shots, tracks)


def boxes(count: int, side: float = 150) -> np.ndarray:
    rng = np.random.default_rng(0)
    corner = np.cumsum(rng.normal(size=(count, 2)), axis=0) + 200
    return np.concatenate([corner, corner + np.array([side, side * 1.2])], axis=1) + rng.normal(size=(count, 4))


def published_crop(image: np.ndarray, x: float, y: float, half: float) -> np.ndarray:
    """run_pipeline.py's crop_video, for a picture."""
    border = int(half * (1 + 2 * 0.4))
    padded = np.pad(image, ((border, border), (border, border), (0, 0)), "constant", constant_values=(110, 110))
    my, mx = y + border, x + border
    return padded[
        int(my - half) : int(my + half * (1 + 2 * 0.4)), int(mx - half * (1 + 0.4)) : int(mx + half * (1 + 0.4))
    ]


@pytest.mark.parametrize(
    "place",
    [(80.3, 60.7, 25.2), (5.0, 8.9, 30.0), (150.2, 110.1, 40.7), (0.0, 0.0, 50.0), (80.0, 60.0, 0.6), (159, 119, 20.5)],
)
def test_crops_equal_the_published_script(place: tuple[float, float, float]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    expected = published_crop(image, *place)
    found = crop_face(image, np.array(place))
    if expected.size:
        assert np.array_equal(found, expected)
    else:
        assert found.shape[2] == 3


def test_a_place_outside_the_picture_is_grey() -> None:
    found = crop_face(np.zeros((40, 40, 3), np.uint8), np.array([500.0, 500.0, 10.0]))
    assert (found == 110).all()


def test_places_are_medians_over_thirteen_frames_with_zeros_behind_the_ends() -> None:
    given = boxes(40)
    half = np.maximum(given[:, 2] - given[:, 0], given[:, 3] - given[:, 1]) / 2
    columns = [(given[:, 0] + given[:, 2]) / 2, (given[:, 1] + given[:, 3]) / 2, half]
    places = face_places(given)
    for column, values in enumerate(columns):
        padded = np.concatenate([np.zeros(6), values, np.zeros(6)])
        expected = [np.median(padded[t : t + 13]) for t in range(40)]
        np.testing.assert_allclose(places[:, column], expected)


@pytest.mark.parametrize(("protocol", "least"), [("real", 101), ("latentsync", 51)])
def test_tracks_must_be_longer_than_the_published_least(protocol: str, least: int) -> None:
    assert [len(shot) for shot in face_shots(tracking(least, [track(boxes(least))]), protocol)] == [least]
    assert face_shots(tracking(least, [track(boxes(least - 1))]), protocol) == []


def test_small_faces_are_left_out() -> None:
    assert face_shots(tracking(60, [track(boxes(60, side=80))]), "latentsync") == []


def test_short_gaps_are_filled_and_long_ones_and_cuts_divide() -> None:
    given = np.repeat(np.array([[100.0, 100, 250, 280]]), 300, axis=0)
    given[:, [0, 2]] += np.arange(300)[:, None]
    lost = given.copy()
    lost[60:85] = np.nan
    lost[200:226] = np.nan
    shots = face_shots(tracking(310, [track(lost, start=10)]), "latentsync")
    assert [(shot.start, len(shot)) for shot in shots] == [(10, 200), (236, 74)]
    middle = slice(20, 180)
    np.testing.assert_allclose(shots[0].places[middle], face_places(given[:200])[middle], atol=1e-3)
    cut = face_shots(tracking(310, [track(given, start=10)], shots=(0, 110, 200)), "latentsync")
    assert [(shot.start, len(shot)) for shot in cut] == [(10, 100), (110, 90), (200, 110)]
    inside = face_shots(tracking(310, [track(lost, start=10)], shots=(0, 80)), "latentsync")
    assert [(shot.start, len(shot)) for shot in inside] == [(10, 60), (95, 115), (236, 74)]


def write(path: Path, images: list[np.ndarray], wave: torch.Tensor | None, fps: float = 25) -> Path:
    with VideoWriter(path, (images[0].shape[1], images[0].shape[0]), fps, audio=wave, crf=10) as writer:
        for image in images:
            writer.write(image)
    return path


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("lse") / "mit Leerzeichen.mp4", *toy_clip(0, 70))


def test_lrs_scores_whole_frames(net: SyncNet, video: Path) -> None:
    (found,) = score_video(net, video, "lrs")
    frames = [frame.image for frame in read_frames(video, fps=25)]
    assert found == score_clip(net, frames, read_wave(video))
    assert found.windows == 65


def test_other_frame_rates_are_resampled(net: SyncNet, tmp_path: Path) -> None:
    images, wave = toy_clip(1, 50)
    twice = write(tmp_path / "fifty.mp4", [image for image in images for _ in range(2)], wave, fps=50)
    (found,) = score_video(net, twice, "lrs")
    assert found.windows == 45
    assert found.note == ""


def test_tracks_are_cut_out_of_picture_and_sound(net: SyncNet, video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = np.array([[10.0, 5, 160, 165]]).repeat(55, axis=0)
    both = [track(given, start=8, number=0), track(given + 20, start=2, number=1)]
    monkeypatch.setattr(sync_protocols, "track_video", lambda *_, **__: tracking(70, both))
    scores = score_video(net, video, "latentsync", backend=NoFaces())
    assert [score.windows for score in scores] == [50, 50]
    frames = [frame.image for frame in read_frames(video, fps=25)]
    for score, start, boxes_ in ((scores[0], 2, given + 20), (scores[1], 8, given)):
        places = face_places(boxes_)
        crops = [crop_face(frames[start + i], places[i]) for i in range(55)]
        wave = read_wave(video)[start * 640 : (start + 55) * 640]
        assert score == score_clip(net, crops, wave)


def test_videos_without_a_long_track_have_no_score(net: SyncNet, video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sync_protocols, "track_video", lambda *_, **__: tracking(70, []))
    with pytest.raises(UserError, match=r"no face over more than 100 frames.*use lrs"):
        score_video(net, video, "real", backend=NoFaces())
    with pytest.raises(ValueError, match="needs a backend"):
        score_video(net, video, "real")
    with pytest.raises(ValueError, match="unknown protocol"):
        score_video(net, video, "lsr")


def test_files_without_sound_or_with_one_frame_say_so(net: SyncNet, tmp_path: Path) -> None:
    images, wave = toy_clip(0, 30)
    with pytest.raises(UserError, match="audio"):
        score_video(net, write(tmp_path / "mute.mp4", images, None), "lrs")
    with pytest.raises(UserError, match="too short to measure sync"):
        score_video(net, write(tmp_path / "one.mp4", images[:1], wave[:640]), "lrs")
    with pytest.raises(UserError):
        score_video(net, tmp_path / "absent.mp4", "lrs")


def test_a_shot_is_as_long_as_its_places() -> None:
    assert len(Shot(3, np.zeros((7, 3)))) == 7


@pytest.mark.media
@pytest.mark.slow
def test_real_clips_have_tracks_that_score(net: SyncNet, media: Path) -> None:
    from common.faces.base import load_backend

    (score,) = score_video(
        net, media / "real" / "clips" / "clip01_latentsync_demo1_720.mp4", "latentsync", backend=load_backend("dlib")
    )
    assert score.windows > 46
