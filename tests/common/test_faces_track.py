"""Tracking of toy faces with known answers through every hardship, and of rendered and real faces by dlib."""

import tracemalloc
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from common.errors import UserError
from common.face3d.morphable import load_face_model
from common.face3d.render import render
from common.faces.dlib_backend import DlibBackend
from common.faces.track import TrackSettings, track_frames, track_video
from common.faces.tracks import Tracking, choose
from common.synthetic.identity import face_coefficients, sample_nuisance
from common.video import VideoWriter, read_frames
from tests.common.toy_faces import SIDE, ToyEmbedder, ToyFaces, marks, scene

SETTINGS = TrackSettings(every=6)


@pytest.fixture(autouse=True)
def toy_embedder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.faces.track.load_embedder", lambda *_, **__: ToyEmbedder())


def follow(images: list[np.ndarray], settings: TrackSettings = SETTINGS, backend: ToyFaces | None = None) -> Tracking:
    return track_frames(((i / 25, image) for i, image in enumerate(images)), backend or ToyFaces(), settings)


def seen(tracking: Tracking) -> list[list[int]]:
    """Per track the frames in which its face is there."""
    return [(track.start + np.flatnonzero(track.present)).tolist() for track in tracking.tracks]


def test_a_moving_face_is_one_track_that_the_detector_confirms_now_and_then() -> None:
    backend = ToyFaces()
    tracking = follow([scene((0, 60 + 4 * t, 80 + t)) for t in range(25)], backend=backend)
    (track,) = tracking.tracks
    assert (tracking.frames, tracking.size, tracking.shots) == (25, (240, 180), (0,))
    np.testing.assert_allclose(tracking.times, np.arange(25) / 25)
    assert np.flatnonzero(track.detected).tolist() == [0, 6, 12, 18, 24]
    assert backend.searches == [None, 480, 480, 480, 480]
    for t in range(25):
        x, y = 60 + 4 * t, 80 + t
        box = (x - SIDE / 2, y - SIDE / 2, x + SIDE / 2, y + SIDE / 2)
        np.testing.assert_allclose(track.boxes[t], box, atol=1e-3)
        np.testing.assert_allclose(track.landmarks[t], marks(box), atol=1e-3)
    assert track.landmarks.dtype == track.boxes.dtype == track.scores.dtype == np.float32


@pytest.mark.parametrize("images", [[], [scene()], [scene()] * 20, [np.zeros((1, 1, 3), np.uint8)]])
def test_without_a_face_there_is_no_track(images: list[np.ndarray]) -> None:
    tracking = follow(images)
    assert (tracking.frames, tracking.tracks) == (len(images), [])
    assert tracking.shots == ((0,) if images else ())


def test_a_video_of_one_frame() -> None:
    (track,) = follow([scene((1, 100, 90))]).tracks
    assert (track.start, len(track), bool(track.detected[0])) == (0, 1, True)


def test_a_face_that_comes_between_two_searches_is_there_from_its_first_frame() -> None:
    images = [scene(*([(0, 100, 90)] if 8 <= t < 21 else [])) for t in range(30)]
    assert seen(follow(images)) == [list(range(8, 21))]


@pytest.mark.parametrize("recognise", [True, False])
def test_a_face_that_is_gone_in_the_middle_keeps_its_number_and_its_gap(recognise: bool) -> None:
    images = [scene(*([] if 8 <= t < 15 else [(0, 60 + 2 * t, 90)])) for t in range(30)]
    tracking = follow(images, TrackSettings(every=6, recognise=recognise))
    assert seen(tracking) == [[*range(8), *range(15, 30)]]
    (track,) = tracking.tracks
    assert np.isnan(track.landmarks[8:15]).all()
    assert np.isnan(track.boxes[8:15]).all()
    assert not track.detected[8:15].any()


def test_a_longer_video_costs_a_kilobyte_or_two_a_frame() -> None:
    image = scene((0, 100, 90))

    def kept(frames: int) -> int:
        tracemalloc.start()
        track_frames(((t / 25, image.copy()) for t in range(frames)), ToyFaces(), SETTINGS)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    assert 300 < (kept(260) - kept(60)) / 200 < 2500


def test_two_faces_keep_their_numbers_where_one_passes_behind_the_other() -> None:
    images = [scene((1, 200 - 6 * t, 95), (0, 40 + 6 * t, 85)) for t in range(28)]
    tracking = follow(images)
    assert len(tracking.tracks) == 2
    for track in tracking.tracks:
        middles = (track.boxes[:, 0] + track.boxes[:, 2]) / 2
        steps = np.diff(middles[track.present]) / np.diff(np.flatnonzero(track.present))
        assert abs(steps - np.sign(steps[0]) * 6).max() < 5
        assert track.present.sum() >= 15
    front = choose(tracking, "longest")
    assert front.present.all()
    assert front.boxes[0, 0] < 20


@pytest.mark.parametrize(("every", "recognise"), [(1, True), (5, True), (12, True), (5, False)])
def test_a_face_that_hides_behind_another_for_long_never_takes_its_number(every: int, recognise: bool) -> None:
    middles = [float(np.interp(t, [0, 22, 40, 62], [190, 105, 105, 190])) for t in range(62)]
    images = [scene((1, middle, 92), (0, 100, 90)) for middle in middles]
    tracking = follow(images, TrackSettings(every=every, recognise=recognise))
    front = choose(tracking, "longest")
    assert front.present.all()
    np.testing.assert_allclose(front.boxes[:, 0], 70, atol=1)
    behind = [track for track in tracking.tracks if track is not front]
    assert len(behind) == (1 if recognise else 2)
    for track in behind:
        true = np.array(middles)[track.start : track.start + len(track)]
        assert np.abs(track.boxes[:, 2] - true - SIDE / 2)[track.present].max() < 3
    assert 20 < sum(track.present.sum() for track in behind) < 45


def test_cuts_end_shots_and_people_are_known_again() -> None:
    shots = [((0, 60, 60), 0), ((1, 150, 100), 1), ((0, 170, 120), 2)]
    images = [scene(face, ground=ground) for face, ground in shots for _ in range(9)]
    tracking = follow(images)
    assert tracking.shots == (0, 9, 18)
    assert seen(tracking) == [[*range(9), *range(18, 27)], list(range(9, 18))]
    apart = follow(images, TrackSettings(every=6, recognise=False))
    assert seen(apart) == [list(range(9)), list(range(9, 18)), list(range(18, 27))]


def test_another_person_in_the_same_place_after_a_cut_is_another_track() -> None:
    images = [scene((person, 120, 90), ground=person) for person in (0, 1) for _ in range(9)]
    assert seen(follow(images)) == [list(range(9)), list(range(9, 18))]


def test_a_flash_leaves_a_gap_of_its_own_length_only() -> None:
    images = [scene((0, 100, 90)) for _ in range(20)]
    images[10] = np.full_like(images[10], 255)
    images[10][..., 2] = 0
    tracking = follow(images)
    assert tracking.shots == (0,)
    assert seen(tracking) == [[*range(10), *range(11, 20)]]


def test_a_face_that_leaves_the_frame_is_lost_when_half_of_it_is_outside() -> None:
    (frames,) = seen(follow([scene((0, 120 - 6 * t, 90)) for t in range(40)]))
    assert frames == list(range(frames[-1] + 1))
    assert 15 <= frames[-1] <= 21


def test_what_the_detector_never_confirms_again_is_clutter() -> None:
    class Once(ToyFaces):
        def boxes(self, image: np.ndarray, max_side: int | None = None) -> list:
            found = super().boxes(image, max_side)
            return found if len(self.searches) == 1 else []

    assert follow([scene((0, 100, 90))] * 40, backend=Once()).tracks == []


def test_a_face_that_the_detector_misses_is_followed_with_patience_only() -> None:
    class Fading(ToyFaces):
        def boxes(self, image: np.ndarray, max_side: int | None = None) -> list:
            found = super().boxes(image, max_side)
            return found if len(self.searches) <= 2 else []

    patient = follow([scene((0, 100, 90))] * 30, TrackSettings(every=6, patience=2.0), Fading())
    assert seen(patient) == [list(range(30))]
    impatient = follow([scene((0, 100, 90))] * 30, TrackSettings(every=6, patience=0.4), Fading())
    assert seen(impatient) == [list(range(7))]


def test_tracks_are_numbered_by_appearance_then_size() -> None:
    images = [scene((2, 50, 60), *([(1, 180, 120)] if t >= 6 else [])) for t in range(18)]
    tracking = follow(images)
    assert [(track.id, track.start) for track in tracking.tracks] == [(0, 0), (1, 6)]


def test_only_a_few_frames_are_alive_at_any_time() -> None:
    alive: list[weakref.ref[np.ndarray]] = []
    most = 0

    def stream() -> Iterator[tuple[float, np.ndarray]]:
        nonlocal most
        for t in range(60):
            image = scene((0, 60 + 2 * t, 80))
            alive.append(weakref.ref(image))
            most = max(most, sum(reference() is not None for reference in alive))
            yield t / 25, image

    track_frames(stream(), ToyFaces(), SETTINGS)
    assert most <= SETTINGS.every + 3


def test_unusable_input_is_refused_in_one_line() -> None:
    with pytest.raises(UserError, match="one size"):
        follow([scene(), scene(size=(240, 181))])
    with pytest.raises(UserError, match="uint8"):
        follow([scene().astype(np.float32)])
    for wrong in ({"every": 0}, {"side": 10}, {"patience": -1.0}, {"thorough": 0}):
        with pytest.raises(UserError, match="tracking needs"):
            TrackSettings(**wrong)


@pytest.fixture(scope="module")
def talking_head() -> tuple[list[np.ndarray], np.ndarray]:
    """Ten frames of a rendered head that turns, moves and talks, on an odd canvas, and its true landmarks."""
    model, count, size = load_face_model("builtin"), 10, 192
    identity, albedo = face_coefficients(np.zeros(8), model)
    nuisance = sample_nuisance(model, np.random.default_rng(0), 1, size)
    time = torch.arange(count) / 25
    expression = torch.zeros(count, model.sizes[1])
    expression[:, model.expression_names.index("jawOpen")] = 0.25 + 0.25 * torch.sin(20 * time)
    angles = torch.stack([0.1 * torch.sin(3 * time), 0.3 * time, 0.1 * time], dim=1)
    translation = nuisance.translation + torch.stack([time, 0.3 * time, 0 * time], dim=1)
    rows = (identity.expand(count, -1), expression, albedo.expand(count, -1), angles, translation)
    made = render(model, *rows, nuisance.gamma.expand(count, -1), size, nuisance.background)
    images = (made.image.clamp(0, 1) * 255).byte().permute(0, 2, 3, 1).numpy()
    padded = [np.pad(image, ((7, 0), (20, 15), (0, 0)), mode="edge") for image in images]
    return padded, made.landmarks.numpy() + np.array([20, 7])


def test_following_agrees_with_detecting_every_frame(talking_head: tuple[list[np.ndarray], np.ndarray]) -> None:
    images, truth = talking_head
    backend = DlibBackend(upsample=0)
    tracking = track_frames(((i / 25, image) for i, image in enumerate(images)), backend, TrackSettings(every=8))
    (track,) = tracking.tracks
    assert track.present.all()
    assert track.detected.tolist() == [t in (0, 8) for t in range(10)]
    found = backend.detect(images)
    reference = np.stack([faces[0].landmarks for faces in found])
    width = float(np.median(track.boxes[:, 2] - track.boxes[:, 0]))
    assert np.median(np.linalg.norm(track.landmarks - reference, axis=-1)) * 224 / width < 1.0
    boxes = np.array([faces[0].box for faces in found])
    assert np.abs(track.boxes - boxes).mean() < 0.06 * width
    errors = [np.linalg.norm(points - truth, axis=-1)[:, 27:].mean() for points in (track.landmarks, reference)]
    assert errors[0] < 1.15 * errors[1]


def test_a_video_file_is_tracked_at_its_own_and_at_another_rate(tmp_path: Path) -> None:
    path = tmp_path / "moving face.mp4"
    with VideoWriter(path, (240, 180), 12.5, crf=5) as writer:
        for t in range(10):
            writer.write(scene((0, 60 + 5 * t, 90)))

    class Rough(ToyFaces):
        def squares(self, image: np.ndarray) -> list:
            cleaned = image.copy()
            cleaned[..., 2] = np.where(image[..., 2] > 25, 50, 0)
            return super().squares(cleaned)

    stored = track_video(path, Rough(), SETTINGS)
    assert (stored.frames, stored.fps) == (10, 12.5)
    np.testing.assert_allclose(stored.times, np.arange(10) / 12.5, atol=1e-3)
    resampled = track_video(path, Rough(), SETTINGS, fps=25)
    assert (resampled.frames, resampled.fps) == (20, 25.0)
    with pytest.raises(UserError):
        track_video(tmp_path / "absent.mp4", Rough())


@pytest.mark.media
@pytest.mark.slow
def test_real_clips_are_followed_within_a_pixel(media: Path) -> None:
    backend = DlibBackend()
    paths = sorted((media / "real" / "clips").iterdir())
    assert paths
    for path in paths:
        images = [frame.image for frame in read_frames(path, seconds=2)]
        tracking = track_frames(((i / 25, image) for i, image in enumerate(images)), backend)
        (track,) = tracking.tracks
        assert track.present.all(), path.name
        assert len(track) == len(images)
        reference = np.stack([faces[0].landmarks for faces in backend.detect(images)])
        width = float(np.median(track.boxes[:, 2] - track.boxes[:, 0]))
        assert np.median(np.linalg.norm(track.landmarks - reference, axis=-1)) * 224 / width <= 1.0, path.name


@pytest.mark.media
@pytest.mark.slow
def test_cuts_between_real_clips_are_found_and_people_told_apart(media: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    scenes = []
    for name in ("clip04_grid_brbk7n.mpg", "clip05_grid_lbax4n.mpg"):
        images = [frame.image for frame in read_frames(media / "real" / "clips" / name, seconds=1.6)]
        scenes += [images[:16], images[20:36]]
    order = [scenes[0], scenes[2], scenes[1], scenes[3]]
    images = [image for part in order for image in part]
    tracking = track_frames(((i / 25, image) for i, image in enumerate(images)), DlibBackend())
    assert tracking.shots == (0, 16, 32, 48)
    assert seen(tracking) == [[*range(16), *range(32, 48)], [*range(16, 32), *range(48, 64)]]
