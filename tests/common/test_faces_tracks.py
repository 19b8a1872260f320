"""Choosing, saving, smoothing and cropping of tracks, against plain loops and faces posed by hand."""

from pathlib import Path

import numpy as np
import pytest
import torch

from common.errors import UserError
from common.face3d.camera import Camera, pose
from common.face3d.morphable import FaceModel, load_face_model
from common.faces.align import similarity
from common.faces.tracks import (
    POSE_POINTS,
    Track,
    Tracking,
    choose,
    crop_frames,
    crop_matrices,
    face_pose,
    segments,
    smooth,
)
from tests.common.test_faces_align import MEAN_FACE, photo
from tests.common.toy_faces import marks


@pytest.fixture(scope="module")
def model() -> FaceModel:
    return load_face_model("builtin")


def head(model: FaceModel, count: int, **expression: np.ndarray) -> np.ndarray:
    """(count,68,2) landmarks of the average head in 224 px, with weights (count,) of named expressions."""
    weights = torch.zeros(count, model.sizes[1])
    for name, values in expression.items():
        weights[:, model.expression_names.index(name)] = torch.from_numpy(np.asarray(values, np.float32))
    still_head = torch.zeros(count, 3)
    vertices = pose(model.shape(torch.zeros(count, model.sizes[0]), weights), still_head, still_head)
    return model.landmarks(Camera(224).project(vertices)[0]).numpy()


def track(landmarks: np.ndarray, start: int = 0, number: int = 0) -> Track:
    """A track whose boxes bound the landmarks."""
    boxes = np.concatenate([landmarks.min(axis=1), landmarks.max(axis=1)], axis=1).astype(np.float32)
    scores = np.where(np.isnan(boxes[:, 0]), np.nan, 1).astype(np.float32)
    return Track(number, start, boxes, landmarks.astype(np.float32), scores, np.isfinite(scores))


def tracking(*tracks: Track, frames: int = 100) -> Tracking:
    return Tracking(frames, 25.0, np.arange(frames) / 25, (320, 240), (0, 40), list(tracks))


def still(count: int, side: float, x: float = 10.0) -> np.ndarray:
    return np.repeat(marks((x, 20.0, x + side, 20.0 + side))[None], count, axis=0)


def mapped(matrices: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points (n,k,2) carried by maps (n,2,3)."""
    return np.einsum("nij,nkj->nki", matrices[:, :, :2], points) + matrices[:, None, :, 2]


def test_a_tracking_survives_its_file(tmp_path: Path) -> None:
    landmarks = still(9, 80.0)
    landmarks[3:5] = np.nan
    made = tracking(track(landmarks, 4, 0), track(still(3, 50.0), 90, 1))
    made.save(tmp_path / "faces of é.npz")
    read = Tracking.load(tmp_path / "faces of é.npz")
    assert (read.frames, read.fps, read.size, read.shots) == (100, 25.0, (320, 240), (0, 40))
    np.testing.assert_array_equal(read.times, made.times)
    assert [(t.id, t.start, len(t)) for t in read.tracks] == [(0, 4, 9), (1, 90, 3)]
    for one, other in zip(read.tracks, made.tracks, strict=True):
        for name in ("boxes", "landmarks", "scores", "detected"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
            assert getattr(one, name).dtype == getattr(other, name).dtype
    assert read.tracks[0].present.sum() == 7


def test_an_empty_tracking_survives_its_file(tmp_path: Path) -> None:
    Tracking(0, 25.0, np.zeros(0), (0, 0), (), []).save(tmp_path / "empty.npz")
    read = Tracking.load(tmp_path / "empty.npz")
    assert (read.frames, read.shots, read.tracks) == (0, (), [])


def test_files_that_are_no_tracking_are_one_line(tmp_path: Path) -> None:
    good = tmp_path / "good.npz"
    tracking(track(still(9, 80.0))).save(good)
    (tmp_path / "torn.npz").write_bytes(good.read_bytes()[:-200])
    (tmp_path / "text.npz").write_text("hello")
    (tmp_path / "empty.npz").touch()
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    np.save(tmp_path / "array.npy", np.zeros(3))
    for name in ("torn.npz", "text.npz", "empty.npz", "other.npz", "array.npy", "absent.npz", ""):
        with pytest.raises(UserError, match="tracking"):
            Tracking.load(tmp_path / name)


def test_faces_are_chosen_by_screen_area_length_or_number() -> None:
    made = tracking(track(still(20, 50.0), 0, 0), track(still(10, 100.0), 30, 1), track(still(40, 20.0), 50, 2))
    assert choose(made).id == choose(made, "largest").id == 1
    assert choose(made, "longest").id == 2
    assert choose(made, "index:0").id == 0


def test_a_wrong_choice_lists_what_is_there() -> None:
    gone = still(20, 50.0)
    gone[5:8] = np.nan
    made = tracking(track(gone, 10, 0), track(still(10, 100.0), 30, 1))
    for which in ("index:2", "index:-1", "index:", "index:²", "biggest", ""):
        with pytest.raises(UserError, match=r"0: 17 frames from 0\.4 to 1\.2 s.*1: 10 frames") as caught:
            choose(made, which)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="no face was found in 100 frames"):
        choose(tracking())


def test_segments_end_at_gaps_and_cuts() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        present = rng.random(23) < 0.8
        start, shots = 5, sorted({0, *rng.integers(0, 35, 4).tolist()})
        runs: list[list[int]] = []
        for row in np.flatnonzero(present).tolist():
            joined = runs and runs[-1][-1] == row - 1 and row + start not in shots
            runs = [*runs[:-1], [*runs[-1], row]] if joined else [*runs, [row]]
        assert [list(range(part.start, part.stop)) for part in segments(present, shots, start)] == runs


def test_smoothing_removes_jitter_without_lag_and_keeps_closures() -> None:
    rng, frames = np.random.default_rng(0), np.arange(200)
    motion = 8 * np.sin(2 * np.pi * frames / 50)[:, None, None]
    truth = still(200, 100.0) + motion
    noise = rng.normal(size=truth.shape)
    smoothed = smooth(track(truth + noise), (0,))
    assert smoothed.dtype == np.float32
    error = smoothed - truth
    assert error.std() < 0.72
    assert np.diff(error, 2, axis=0).std() < 0.4 * np.diff(noise, 2, axis=0).std()
    lags = {lag: np.abs(smoothed[20:-20] - truth[20 + lag : 180 + lag]).mean() for lag in (-1, 0, 1)}
    assert min(lags, key=lags.__getitem__) == 0
    closure = still(41, 100.0)
    closure[18:23, 57, 1] -= np.array([4, 8, 10, 8, 4])
    assert (closure - smooth(track(closure), (0,)))[20, 57, 1] > -1.0
    still_face = smooth(track(still(30, 80.0)), (0,))
    np.testing.assert_allclose(still_face, still(30, 80.0), atol=1e-4)


def test_smoothing_stays_inside_shots_and_gaps() -> None:
    landmarks = np.concatenate([still(10, 80.0), still(10, 80.0, x=90.0), still(14, 80.0, x=30.0)])
    landmarks[23:27] = np.nan
    bridged = smooth(track(landmarks, start=7), (0, 17, 27))
    np.testing.assert_allclose(bridged[:10], landmarks[:10], atol=1e-4)
    np.testing.assert_allclose(bridged[10:20], landmarks[10:20], atol=1e-4)
    np.testing.assert_allclose(bridged[20:], still(14, 80.0, x=30.0), atol=1e-4)
    leaky = smooth(track(landmarks, start=7), (0,))
    assert np.abs(leaky[9] - landmarks[9]).max() > 5


def test_gaps_are_bridged_by_a_line_up_to_their_longest_and_not_over_a_cut() -> None:
    landmarks = still(30, 80.0) + np.arange(30)[:, None, None]
    truth = landmarks.copy()
    landmarks[8:13], landmarks[20:26] = np.nan, np.nan
    bridged = smooth(track(landmarks), (0,), max_gap=0.2)
    np.testing.assert_allclose(bridged[:20], truth[:20], atol=1e-3)
    assert np.isnan(bridged[20:26]).all()
    for cut in (8, 10, 13):
        assert np.isnan(smooth(track(landmarks), (0, cut))[8:13]).all(), cut
    assert np.isfinite(smooth(track(landmarks), (0, 7, 14))).all()
    assert np.isnan(smooth(track(landmarks), (0,), fps=5.0)[20:26]).all()


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_short_tracks_and_no_window_are_left_alone(count: int) -> None:
    landmarks = np.random.default_rng(0).normal(size=(count, 68, 2))
    np.testing.assert_allclose(smooth(track(landmarks), (0,), seconds=0), landmarks, atol=1e-6)
    assert smooth(track(landmarks), (0,)).shape == (count, 68, 2)
    if count < 3:
        np.testing.assert_allclose(smooth(track(landmarks), (0,)), landmarks, atol=1e-6)


def test_the_face_pose_is_the_similarity_of_its_points() -> None:
    landmarks = np.random.default_rng(0).normal(size=(3, 4, 68, 2)) * 20 + still(1, 90.0)[0]
    turn, shift = face_pose(landmarks)
    for index in np.ndindex(3, 4):
        expected = similarity(MEAN_FACE[POSE_POINTS - 17], landmarks[index][POSE_POINTS])
        a, b = turn[index], shift[index]
        np.testing.assert_allclose([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]], expected, atol=1e-9)


def test_a_dropping_jaw_and_a_rounding_mouth_move_no_crop(model: FaceModel) -> None:
    time = np.arange(40)
    jaw = np.where(time < 25, 0.0, 0.8) * np.abs(np.sin(time))
    talking = head(model, 40, jawOpen=jaw, mouthPucker=np.where(time % 9 < 4, 0.9, 0.0))
    silent = head(model, 40)
    assert np.abs(talking[:, 8] - silent[:, 8]).max() > 8
    for framing in ("head", "face"):
        spoken, quiet = (crop_matrices(points, (0,), 96, framing=framing) for points in (talking, silent))
        corners = np.array([[[80.0, 80.0], [140.0, 160.0]]]).repeat(40, axis=0)
        np.testing.assert_allclose(mapped(spoken, corners), mapped(quiet, corners), atol=0.5)
        assert np.abs(np.diff(mapped(spoken, corners), axis=0)).max() < 0.1


def test_the_crops_frame_what_they_say(model: FaceModel) -> None:
    points = head(model, 5)
    face = mapped(crop_matrices(points, (0,), 96, framing="face"), points)[2]
    assert face[8, 1] == pytest.approx(93, abs=2.5)
    assert 20 < face[36:48, 1].mean() < 38
    assert 56 < face[48:60, 1].mean() < 76
    assert face[27:31, 0].mean() == pytest.approx(48, abs=1.5)
    assert face[17:27, 1].min() > 8
    head_crop = mapped(crop_matrices(points, (0,), 224), points)[2]
    assert ((head_crop > 30) & (head_crop < 194)).all()
    assert np.ptp(head_crop[:, 1]) == pytest.approx(0.48 * 224, rel=0.15)
    assert crop_matrices(points, (0,), 224)[0, 0, 0] == crop_matrices(points, (0,), 224)[0, 1, 1]


def test_crops_follow_the_head_exactly_and_scale_with_it(model: FaceModel) -> None:
    moved = head(model, 50) + np.arange(50)[:, None, None] * np.array([1.3, -0.4])
    for framing in ("head", "face"):
        matrices = crop_matrices(moved, (0,), 96, framing=framing)
        nose = mapped(matrices, moved)[:, 30]
        np.testing.assert_allclose(nose, nose[:1].repeat(50, axis=0), atol=1e-3)
        doubled = crop_matrices(2 * moved, (0,), 96, framing=framing)
        np.testing.assert_allclose(mapped(doubled, 2 * moved), mapped(matrices, moved), atol=1e-3)


def test_jitter_of_landmarks_hardly_moves_the_crop() -> None:
    landmarks = still(60, 160.0) + np.random.default_rng(0).normal(size=(60, 68, 2))
    for framing, most in (("head", 0.12), ("face", 0.3)):
        corners = np.array([[[40.0, 40.0], [150.0, 160.0]]]).repeat(60, axis=0)
        steps = np.diff(mapped(crop_matrices(landmarks, (0,), 224, framing=framing), corners), axis=0)
        assert np.sqrt((steps**2).mean()) < most


def test_crops_jump_at_cuts_and_are_absent_where_the_face_is() -> None:
    landmarks = np.concatenate([still(12, 80.0), still(12, 60.0, x=150.0)])
    landmarks[5:7] = np.nan
    matrices = crop_matrices(landmarks, (0, 42), 96, start=30)
    assert np.isnan(matrices[5:7]).all()
    alone = [crop_matrices(part, (0,), 96) for part in (landmarks[:5], landmarks[7:12], landmarks[12:])]
    for part, expected in zip((slice(0, 5), slice(7, 12), slice(12, 24)), alone, strict=True):
        np.testing.assert_allclose(matrices[part], expected, atol=1e-9)
    assert np.isnan(crop_matrices(landmarks[5:7], (0,), 96, framing="face")).all()
    assert crop_matrices(landmarks[:0], (0,), 96).shape == (0, 2, 3)


def test_impossible_crops_are_refused_in_one_line() -> None:
    with pytest.raises(UserError, match="68"):
        crop_matrices(np.zeros((3, 67, 2)), (0,), 96)
    with pytest.raises(UserError, match="head or face"):
        crop_matrices(still(3, 80.0), (0,), 96, framing="body")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="1 px"):
        crop_matrices(still(3, 80.0), (0,), 0)
    matrices = np.full((1, 2, 3), np.nan)
    with pytest.raises(UserError, match="no face"):
        list(crop_frames([photo(9, 9)], matrices, 8))
    with pytest.raises(ValueError, match="zip"):
        list(crop_frames([photo(9, 9)], np.zeros((0, 2, 3)), 8))


def test_a_picture_that_glides_by_fractions_of_a_pixel_stands_still_in_its_crop() -> None:
    """A plane wave moved by 0.3 px a frame, sampled exactly; only the interpolation's blur may change."""
    y, x = np.mgrid[:120, :150] + 0.5
    shifts = 0.3 * np.arange(20)
    images = [
        np.repeat((127 + 90 * np.sin((x - s) / 4) * np.cos(y / 11))[..., None], 3, 2).astype(np.uint8) for s in shifts
    ]
    landmarks = still(20, 60.0, x=30.0) + shifts[:, None, None] * np.array([1.0, 0.0])
    crops = np.stack(list(crop_frames(images, crop_matrices(landmarks, (0,), 64), 64))).astype(float)
    assert crops.shape == (20, 64, 64, 3)
    drift = np.abs(crops[4:16] - crops[10]).mean()
    rounded = np.stack([image[30:90, 40 + round(s) : 100 + round(s)] for image, s in zip(images, shifts, strict=True)])
    assert drift < 0.5 * np.abs(rounded[4:16].astype(float) - rounded[10]).mean()
    assert drift < 1.2


def test_a_crop_outside_the_frame_repeats_its_edge_whatever_part_is_read() -> None:
    image = photo(40, 50)
    shifted = np.array([[[1.0, 0, 20], [0, 1.0, -25]]])
    (crop,) = crop_frames([image], shifted, 48)
    rows, columns = (np.arange(48) + 25).clip(0, 39), (np.arange(48) - 20).clip(0, 49)
    np.testing.assert_array_equal(crop, image[rows[:, None], columns])
    (black,) = crop_frames([image], shifted, 48, border="zeros")
    np.testing.assert_array_equal(black[:15, 20:], crop[:15, 20:])
    assert not black[:, :20].any()
    far = np.array([[[1.0, 0, 500], [0, 1.0, 500]]])
    (corner,) = crop_frames([image], far, 16)
    np.testing.assert_array_equal(corner, np.broadcast_to(image[0, 0], (16, 16, 3)))
