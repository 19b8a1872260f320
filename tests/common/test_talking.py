"""The talking corpus: exact sync, ground truth that draws the stored pictures, the same bytes, and what it refuses."""

import hashlib
import json
import shutil
import wave as wave_file
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from common.data.corpus import MANIFEST, Corpus
from common.data.engine import WORK
from common.errors import UserError
from common.face3d.camera import Camera, pose
from common.face3d.morphable import load_face_model
from common.face3d.render import render
from common.provenance import read_label
from common.synthetic.motion import blinks, head_motion, loudness, sway, upper_face
from common.synthetic.performance import FPS, MAX_SECONDS, MIN_SECONDS, Performance, draw, lip_gaps, perform, record
from common.synthetic.talking import TalkingCorpusOptions, _split, build_talking_corpus
from common.video import Clip

OPTIONS = TalkingCorpusOptions(identities=3, seconds=5, size=64, seed=5)
RATE = 16000


def digests(root: Path) -> dict[str, str]:
    files = [path for path in sorted(root.rglob("*")) if path.is_file() and WORK not in path.parts]
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return build_talking_corpus(tmp_path_factory.mktemp("talking") / "corpus", OPTIONS, workers=0)


def only(made: Performance, frames: list[int]) -> Performance:
    """Some frames of a performance."""
    return Performance(*(value if len(value) == 1 else value[frames] for value in made))


def moved(person: int, index: int, language: str, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lip gap (T,) in dm, mouth width (T,) in dm and the wave of a clip of the built-in face."""
    model = load_face_model("builtin")
    take = record(seed, person, index, language)
    made = perform(model, take, seed, person, index, size=64)
    marks = model.landmarks(model.shape(made.identity.expand(len(take.times), -1), made.expression))
    return lip_gaps(marks).mean(1).numpy(), (marks[:, 54, 0] - marks[:, 48, 0]).numpy(), take.wave.numpy()


def test_manifest_files_splits_and_labels(corpus: Corpus) -> None:
    items = corpus.items(kind="clip")
    assert len(items) == 3 * OPTIONS.clips
    assert {split: corpus.identities(split) for split in ("train", "val", "test")} == {
        "train": ["person00000"],
        "val": ["person00001"],
        "test": ["person00002"],
    }
    assert (items.groupby("identity").size() == OPTIONS.clips).all()
    assert set(items["language"]) == {"zh", "en"}
    for row in items.itertuples():
        folder = corpus.file(str(row.path))
        clip = Clip(folder)
        assert len(clip) == row.frames
        assert clip.size == (64, 64)
        assert clip.fps == FPS
        assert clip.samples == row.samples == 640 * row.frames
        with wave_file.open(str(folder / "audio.wav")) as sound:
            assert sound.getnframes() == 640 * row.frames
        assert MIN_SECONDS <= row.frames / FPS <= MAX_SECONDS
        assert row.sync_offset == 0
        assert 0 < row.characters == len(row.text) <= (20 if row.language == "zh" else 60)
        label = read_label(folder / "video.mp4")
        assert label is not None
        assert label["AIGC"]["Label"] == "1"


def test_coefficients_draw_the_stored_pictures(corpus: Corpus) -> None:
    clip = Clip(corpus.file(str(corpus.items(kind="clip")["path"][0])))
    truth, marks = clip.coefficients, clip.landmarks
    assert truth is not None
    assert marks is not None
    model = load_face_model(str(truth["face_model"]))
    assert tuple(truth["expression_names"]) == model.expression_names
    frames, count = clip.frames(), len(clip)
    for key, last in (("expression", model.sizes[1]), ("angles", 3), ("translation", 3), ("gamma", 27)):
        assert truth[key].shape == (count, last)
        assert np.isfinite(truth[key]).all()
    assert truth["expression"].min() >= 0
    assert truth["expression"].max() <= 1
    assert marks.shape == (count, 68, 2)
    head = np.load(clip.folder / "mask.npz")["head"]
    assert head.shape == (count, 64, 64)
    part = torch.from_numpy(np.arange(0, count, 12))
    one = {key: torch.from_numpy(truth[key])[None].expand(len(part), -1) for key in ("identity", "albedo")}
    each = {key: torch.from_numpy(truth[key])[part] for key in ("expression", "angles", "translation", "gamma")}
    drawn = render(model, **one, **each, size=64, supersample=2)
    np.testing.assert_allclose(drawn.landmarks.numpy(), marks[part], atol=0.01)
    inside = head[part] & (drawn.mask[:, 0] > 0.99).numpy()
    assert inside.mean() > 0.9 * head[part].mean() > 0.2
    error = np.abs(drawn.image.permute(0, 2, 3, 1).numpy() * 255 - frames[part])[inside]
    assert error.mean() < 4, "grey levels: another reduction filter, and the codec"


def test_faces_fill_the_frame_and_stay_in_it(corpus: Corpus) -> None:
    for path in corpus.items(kind="clip")["path"]:
        marks = Clip(corpus.file(path)).landmarks
        assert marks is not None
        height = np.ptp(marks[:, :, 1], axis=1) / 64
        assert 0.5 < height.mean() < 0.68
        assert marks.min() > 0
        assert marks.max() < 64
        steps = np.linalg.norm(np.diff(marks[:, 27], axis=0), axis=1)
        assert 0 < steps.max() < 2, "px of 64 in a frame: the head moves, and smoothly"


def test_visemes_are_stored_with_their_times(corpus: Corpus) -> None:
    row = corpus.items(kind="clip").iloc[0]
    said = json.loads((corpus.file(row["path"]) / "visemes.json").read_text(encoding="utf-8"))
    assert said["text"] == row["text"]
    assert said["language"] == row["language"]
    assert said["phonemes"][0] == {"symbol": "_", "start": 0, "end": said["phonemes"][1]["start"]}
    assert said["phonemes"][-1]["end"] == row["samples"]
    assert len(said["frames"]) == row["frames"]
    assert said["frames"][0] == said["frames"][-1] == "sil"
    assert {event["viseme"] for event in said["visemes"]} >= set(said["frames"])
    for frame, viseme in enumerate(said["frames"]):
        sample = (frame + 0.5) * 640
        covering = [event["viseme"] for event in said["visemes"] if event["start"] <= sample < event["end"]]
        assert covering == [viseme]


def test_same_bytes_whatever_the_workers_and_after_a_kill(corpus: Corpus, tmp_path: Path) -> None:
    whole = digests(corpus.root)
    out = tmp_path / "again"
    build_talking_corpus(out, OPTIONS, workers=2)
    assert digests(out) == whole
    (out / MANIFEST).unlink()  # as if killed between two clips
    first = out / "clips/person00000/0000"
    shutil.rmtree(first)
    (out / WORK / "records/person00000_0000.json").unlink()
    (out / "clips/person00000/.0000.12345678").mkdir()
    build_talking_corpus(out, OPTIONS, workers=0)
    assert digests(out) == whole
    with pytest.raises(UserError, match="seed"):
        build_talking_corpus(out, replace(OPTIONS, seed=6), workers=0)


def test_the_mouth_follows_the_sound_at_no_offset() -> None:
    lags = range(-5, 6)
    curves = []
    for person in range(4):
        for index in range(2):
            gap, _, wave = moved(person, index, ("zh", "en")[index])
            energy = np.sqrt((wave.reshape(-1, 640) ** 2).mean(1))
            loud = np.log(energy + 1e-3)
            count = len(gap)
            curves.append(
                [
                    np.corrcoef(gap[max(0, k) : count + min(0, k)], loud[max(0, -k) : count - max(0, k)])[0, 1]
                    for k in lags
                ]
            )
    mean = np.mean(curves, axis=0)
    assert abs(lags[int(mean.argmax())]) <= 1
    assert mean.max() > 0.5
    assert mean.max() > max(mean[0], mean[-1]) + 0.3
    own = [lags[int(np.argmax(curve))] for curve in curves]
    assert np.mean(np.abs(own) <= 1) >= 0.75


def test_lips_are_shut_at_both_ends_and_open_between() -> None:
    for person, language in ((0, "zh"), (1, "en")):
        gap, width, _ = moved(person, 0, language)
        assert np.abs(gap[[0, 1, -1]]).max() < 0.02
        assert gap.max() > 0.08
        assert np.ptp(width) > 0.06


def test_takes_differ_between_people_and_numbers_and_repeat() -> None:
    one, again, next_one, other = (record(0, *which, "zh") for which in ((0, 0), (0, 0), (0, 1), (1, 0)))
    assert torch.equal(one.wave, again.wave)
    assert one.phonemes == again.phonemes
    assert not torch.equal(one.wave[:8000], next_one.wave[:8000])
    assert not torch.equal(one.wave[:8000], other.wave[:8000])
    quiet = one.wave[: one.phonemes[0].end].square().mean().sqrt()
    assert 1e-4 < quiet < 1e-3, "a room, neither digital silence nor a sound"
    assert one.phonemes[-1].end == len(one.wave)


def test_slow_speakers_hurry_but_stay_below_three_seconds() -> None:
    seconds = [len(record(1, person, 0, language).wave) / RATE for person in range(8) for language in ("zh", "en")]
    assert min(seconds) >= MIN_SECONDS
    assert max(seconds) <= MAX_SECONDS
    assert 1.7 < np.mean(seconds) < 2.8


def test_loudness_delays_nothing_and_is_a_share() -> None:
    wave = np.zeros(RATE)
    wave[8000:8160] = 0.5
    level = loudness(wave, np.arange(0, 1, 0.01), seconds=0.03)
    assert level.min() >= 0
    assert 0.95 < level.max() <= 1
    assert abs(int(level.argmax()) - 50) <= 1
    assert np.isfinite(loudness(np.zeros(RATE), np.array([0.1]))).all()


def test_heads_sway_slowly_and_nod_with_the_stress() -> None:
    times = np.arange(0, 60, 0.04)
    swayed = sway(np.random.default_rng(0), times, [1.0, 2.0])
    np.testing.assert_allclose(swayed.std(0), [1.0, 2.0], rtol=0.35)
    assert np.abs(np.diff(swayed[:, 0])).max() < 0.6
    loud = (np.sin(times * 9) > 0.5).astype(float)
    angles, shifts = head_motion(np.random.default_rng(1), times, loud)
    assert angles.shape == shifts.shape == (len(times), 3)
    assert np.corrcoef(angles[:, 0], loud)[0, 1] > 0.3, "pitch turns the nose down with the stress"
    assert np.abs(np.degrees(angles)).max() < 15


def test_blinks_shut_the_eyes_of_every_face() -> None:
    times = (np.arange(25 * 60) + 0.5) / 25
    shut = blinks(np.random.default_rng(0), times)
    starts = np.flatnonzero((shut[1:] == 1) & (shut[:-1] < 1))
    assert 12 <= len(starts) <= 40, "a minute's"
    assert (shut == 0).mean() > 0.7
    model = load_face_model("builtin")
    track = upper_face(np.random.default_rng(0), model.expression_names, times, np.full(len(times), 0.5))
    np.testing.assert_allclose(track[:, model.expression_index("eyeBlink_L")], shut, atol=1e-6)
    assert 0 <= track.min() <= track.max() <= 1
    assert upper_face(np.random.default_rng(0), ("jawOpen",), times, np.zeros(len(times))).max() == 0


@pytest.mark.media
def test_ict_faces_talk_blink_and_keep_their_lips(media: Path) -> None:
    model = load_face_model("ict")
    for person in (0, 1):
        take = record(0, person, 1, "en")
        made = perform(model, take, 0, person, 1, size=64)
        count = len(take.times)
        vertices = model.shape(made.identity.expand(count, -1), made.expression)
        marks = model.landmarks(vertices)
        gaps = lip_gaps(marks)
        assert gaps[[0, 1, -1]].abs().max() < 0.02
        assert gaps.max() > 0.08
        shut = int(made.expression[:, model.expression_index("eyeBlink_L")].argmax())
        assert made.expression[shut, model.expression_index("eyeBlink_L")] == 1
        lids = marks[shut, [37, 38, 43, 44], 1] - marks[shut, [41, 40, 47, 46], 1]
        assert lids.max() < 0.012
        few = [0, count // 2]
        part = made._replace(
            **{key: getattr(made, key)[few] for key in ("expression", "angles", "translation", "gamma")}
        )
        drawn = draw(model, part, 64)
        xy, _ = Camera(64).project(model.landmarks(pose(vertices[few], made.angles[few], made.translation[few])))
        np.testing.assert_allclose(drawn.landmarks, xy.numpy(), atol=1e-3)
        assert 0.2 < drawn.masks.mean() < 0.9


def test_large_pictures_are_reduced_to_their_size() -> None:
    model = load_face_model("builtin")
    take = record(0, 0, 0, "zh")
    whole = perform(model, take, 0, 0, 0, size=192)
    drawn = draw(model, only(whole, [0, 20]), 192)
    assert drawn.images.shape == (2, 192, 192, 3)
    assert drawn.images.dtype == np.uint8
    assert drawn.masks.shape == (2, 192, 192)
    corner = drawn.images[0, :8, :8].astype(float)
    assert corner.std(axis=(0, 1)).max() < 3, "the wall behind the head is smooth"


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"identities": 2}, "identities"),
        ({"split_by": "mixed"}, "split_by"),
        ({"languages": ["fr"]}, "languages"),
        ({"languages": []}, "languages"),
        ({"size": 63}, "size"),
        ({"size": 2000}, "size"),
        ({"seconds": 0}, "seconds"),
        ({"seconds": float("nan")}, "seconds"),
        ({"max_yaw": 90}, "max_yaw"),
    ],
)
def test_options_that_make_no_corpus(wrong: dict[str, object], named: str) -> None:
    with pytest.raises(UserError, match=named):
        TalkingCorpusOptions(**wrong)


def test_an_unknown_face_model_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nobody"):
        build_talking_corpus(tmp_path / "out", replace(OPTIONS, face_model="nobody"), workers=0)
    assert not (tmp_path / "out").exists()


def test_recordings_may_be_split_and_seconds_share_out() -> None:
    options = TalkingCorpusOptions(identities=2, seconds=60, split_by="recording")
    splits = [_split(options, 1, index) for index in range(options.clips)]
    assert splits[0] == "train"
    assert splits[-1] == "test"
    assert splits.count("val") == splits.count("test") == round(options.clips / 8)
    many = TalkingCorpusOptions(identities=24, seconds=3600)
    people = [_split(many, person, 0) for person in range(24)]
    assert [people.count(split) for split in ("train", "val", "test")] == [18, 3, 3]
    assert many.clips * 24 * 2.45 == pytest.approx(3600, rel=0.05)
