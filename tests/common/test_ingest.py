"""One raw file to voices and faces: cuts, frames, and the filters that judge a face."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage
import torch

from common.data.engine import Unit
from common.data.ingest import (
    Media,
    Settings,
    Tools,
    best_face,
    cut_speech,
    ingest,
    sampled_frames,
    sharpness_of,
    turn_of,
)
from common.errors import UserError
from common.faces import Face
from tests.common.toy_media import RATE, FakeFaces, landmarks_in, loud, photo, save_video, save_voice, voice


@pytest.mark.parametrize(
    ("seconds", "pieces", "count"),
    [(0.9, 3, 1), (1.2, 3, 1), (2.6, 3, 2), (5.0, 3, 3), (9.0, 1, 1), (10.0, 1, 1), (11.0, 1, 2), (60.0, 3, 8)],
)
def test_cut_speech_lengths(seconds, pieces, count):
    rng = np.random.default_rng(3)
    edges = np.unique(np.sort(rng.integers(0, round(seconds * RATE), 20)))
    edges = [0, *edges.tolist(), round(seconds * RATE)]
    wave = torch.arange(round(seconds * RATE) * 2, dtype=torch.float32)
    segments = [(2 * start, start + stop) for start, stop in itertools.pairwise(edges) if stop > start]
    recordings = cut_speech(wave, segments, RATE, 10 * RATE, pieces)
    assert len(recordings) == count
    assert torch.equal(torch.cat(recordings), torch.cat([wave[a:b] for a, b in segments]))
    if seconds > 1.2:
        assert all(RATE <= len(recording) <= 10 * RATE for recording in recordings)


def test_cuts_move_into_pauses():
    segments = [(0, 95), (200, 310), (400, 500)]
    assert [len(piece) for piece in cut_speech(torch.zeros(500), segments, 50, 1000, 3)] == [95, 110, 100]


def test_of_a_long_file_the_beginning_is_used_and_the_rest_is_named(tmp_path):
    save_video(tmp_path / "x.mp4", [photo((20, 20, 100), seed=i) for i in range(125)], voice(5.0))
    media = Media(str(tmp_path / "x.mp4"), "x.mp4", "video", "ann", "x")
    tools = Tools(Settings(size=64, longest_file=2.0, faces_per_video=4), FakeFaces(), loud)
    outcome = ingest(Unit("x", "", (media,)), tools)
    assert [drop.reason for drop in outcome.drops] == ["only its first 2 s are used"]
    assert [product.item.kind for product in outcome.products] == ["voice"] + ["face"] * 4
    assert outcome.products[0].item.samples == pytest.approx(1.6 * RATE, rel=0.1)  # AAC smears the bursts


def test_turn_and_sharpness():
    box = (10.0, 20.0, 110.0, 120.0)
    for turn in (0.0, 0.3, -0.6, 1.0):
        points = landmarks_in(box, turn)
        angle = np.deg2rad(25)
        rolled = points @ np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        assert turn_of(points) == pytest.approx(abs(turn), abs=1e-5)
        assert turn_of(rolled) == pytest.approx(turn_of(points), abs=0.15)
    flat = landmarks_in(box)
    flat[30, 1] = flat[36, 1] = flat[45, 1]
    grey = np.random.default_rng(0).integers(0, 255, (256, 256), dtype=np.uint8)
    blurred = scipy.ndimage.gaussian_filter(grey.astype(float), 12)
    dim = (grey // 4).astype(np.uint8)
    assert sharpness_of(blurred.astype(np.uint8)) < 0.2 * sharpness_of(grey)
    assert sharpness_of(dim) == pytest.approx(sharpness_of(grey), rel=0.1)
    assert sharpness_of(np.full((40, 30), 7, np.uint8)) == 0


def test_refused_faces_say_why():
    settings = Settings(size=64)
    image = photo((40, 30, 100))
    face = FakeFaces().squares(image)[0]
    assert best_face(image, [face], settings).image.shape == (64, 64, 3)
    turned = Face(face.box, 1.0, landmarks_in(face.box, 0.8))
    with pytest.raises(UserError, match="turned away"):
        best_face(image, [turned], settings)
    with pytest.raises(UserError, match="overexposed"):
        best_face(image // 20, [face], settings)
    with pytest.raises(UserError, match="overexposed"):
        best_face(np.full_like(image, 255), [face], settings)
    smooth = scipy.ndimage.gaussian_filter(image.astype(float), (8, 8, 0)).astype(np.uint8)
    with pytest.raises(UserError, match="blurred"):
        best_face(smooth, [face], settings)


def test_frames_are_spread_and_upright(tmp_path):
    frames = [np.full((48, 64, 3), 4 * i, np.uint8) for i in range(50)]
    for image in frames:
        image[:24, :32] = 255  # top left
    path = tmp_path / "x.mp4"
    save_video(path, frames, None)
    seen = list(sampled_frames(path, 10, 600))
    assert [round(place * 50) for place, _ in seen] == list(range(0, 50, 5))
    assert [round(image[40, 60].mean() / 4) for _, image in seen] == pytest.approx(list(range(0, 50, 5)), abs=1)
    assert len(list(sampled_frames(path, 10, 1.0))) == 10
    assert len(list(sampled_frames(path, 1000, 600))) == 50
    turn_clockwise(path)
    _, image = next(sampled_frames(path, 1, 600))
    assert image.shape == (64, 48, 3)
    assert image[5, 40].mean() > 200
    assert image[5, 5].mean() < 100


def turn_clockwise(path: Path) -> None:
    """Patch the display matrix of an MP4's first track, as a telephone held upright writes it."""
    data = path.read_bytes()
    place = data.index(b"tkhd") + 4 + 40
    one, zero, minus = (value.to_bytes(4, "big", signed=True) for value in (1 << 16, 0, -(1 << 16)))
    path.write_bytes(data[:place] + zero + one + zero + minus + zero + data[place + 20 :])


def test_broken_videos(tmp_path):
    path = tmp_path / "x.mkv"
    save_video(path, [photo((20, 20, 100), seed=i) for i in range(40)], voice(1.6))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    places = [place for place, _ in sampled_frames(path, 10, 600)]
    assert len(places) == 10
    assert places[-1] > 0.8
    for bad in (b"", b"no video" * 100, whole[:100]):
        path.write_bytes(bad)
        with pytest.raises(UserError, match=r"empty file|damaged or of another kind|can be decoded"):
            list(sampled_frames(path, 10, 600))
    save_voice(tmp_path / "sound.wav")
    with pytest.raises(UserError, match="no video track"):
        list(sampled_frames(tmp_path / "sound.wav", 10, 600))
