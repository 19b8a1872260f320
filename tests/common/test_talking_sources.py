"""The layouts of data sets: what is listed, paired, split and reported; and the pure functions on the way to clips."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from common.audio.io import write_wav
from common.data.cmlr import plan_cmlr
from common.data.corpus import Corpus
from common.data.engine import Unit
from common.data.folder import Plan
from common.data.lrs2 import plan_lrs2
from common.data.lrw import plan_lrw
from common.data.talking import Recording, TalkingSettings
from common.data.talking_filter import RECIPES, ClipFilter, describe_filter, parse_filter
from common.data.talking_measures import (
    Measures,
    clipped_share,
    count_chars,
    face_measures,
    lip_movement,
    loudness_of,
    sharpness_measure,
    speech_within,
    spread,
)
from common.data.talking_plan import plan_clips, text_of
from common.data.talking_prepare import TALKING_SOURCES, prepare_talking
from common.data.talking_sound import Sound
from common.data.talking_takes import Take, TubeRules, cut_lengths, main_person, pauses_between, takes_of, tubes
from common.data.voxceleb_video import VOX2_TEST, is_test_person, official_split, plan_voxceleb_video
from common.errors import UserError
from common.faces.tracks import Track, Tracking
from common.video import Clip
from tests.common.toy_media import RATE, landmarks_in, voice
from tests.common.toy_talking import SILENT, FakeTalkingKit, full, pictures, save_talk, save_wav


def touch(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return root


def recordings(plan: Plan) -> dict[str, Recording]:
    return {unit.payload.source: unit.payload for unit in plan.units}


def drops(plan: Plan) -> dict[str, str]:
    return {drop.source: drop.reason for drop in plan.drops}


# ---- layouts


def test_a_folder_pairs_sound_and_text_by_name(tmp_path):
    root = touch(tmp_path, "ann/a.mp4", "ann/b.mov", "ann/c.wav", "bob/clips/d.mkv", "bob/face.jpg", "bob/notes.pdf")
    (root / "ann/a.txt").write_text("Text:  HELLO,  world\nConf: 3\n")
    write_wav(root / "ann/b.wav", torch.zeros(10), RATE)
    plan = plan_clips(root)
    found = recordings(plan)
    assert {source: r.identity for source, r in found.items()} == {
        "ann/a.mp4": "ann",
        "ann/b.mov": "ann",
        "bob/clips/d.mkv": "bob",
    }
    assert (found["ann/a.mp4"].text, found["ann/a.mp4"].whole) == ("HELLO, world", True)
    assert found["ann/b.mov"].audio == str(root / "ann/b.wav")
    assert [r.pieces for r in found.values()] == [2, 2, 3]
    assert set(drops(plan)) == {"ann/c.wav", "bob/face.jpg"}
    assert plan.ignored == ["bob/notes.pdf"]
    assert [unit.payload.identity for unit in plan_clips(root, limit=1).units] == ["ann", "ann"]


def test_cmlr_pairs_its_trees_by_path(tmp_path):
    names = ["s1/20090601/20090601_section_1_000.15_004.33", "s1/20090601/section_4_002", "s11/20180601/section_1_001"]
    root = touch(tmp_path, *(f"video/{n}.mp4" for n in names), *(f"audio/{n}.wav" for n in names))
    touch(root, "video/s1/20090601/no_sound.mp4", "audio/s2/20100101/no_picture.wav", "notes.pdf")
    (root / "text" / names[1]).parent.mkdir(parents=True)
    (root / f"text/{names[1]}.txt").write_text("今天 天气好\n今天 0.1 0.4\n")
    plan = plan_cmlr(root)
    found = recordings(plan)
    assert set(found) == {f"video/{name}.mp4" for name in names}
    for name in names:
        assert found[f"video/{name}.mp4"].audio == str(root / f"audio/{name}.wav")
    second = found[f"video/{names[1]}.mp4"]
    assert (second.text, second.identity, second.group) == ("今天 天气好", "s1", "s1/20090601")
    assert (second.language, second.whole) == ("zh", True)
    assert len({r.name for r in found.values()}) == 3
    assert drops(plan) == {
        "video/s1/20090601/no_sound.mp4": "there is no sound file of its path in the other tree",
        "audio/s2/20100101/no_picture.wav": "there is no video of its path in the other tree",
    }
    assert plan.ignored == ["notes.pdf"]
    assert len(plan_cmlr(root, limit=1).units) == 2

    (root / "train.csv").write_text(f"{names[0]}\n{names[1]}.mp4,今天\n")
    (root / "test.csv").write_text(f"\ufeffvideo/{names[2]}.mp4\n")
    splits = {source: r.split for source, r in recordings(plan_cmlr(root)).items()}
    assert list(splits.values()) == ["train", "train", "test"]
    (root / "val.csv").write_text(names[0])
    with pytest.raises(UserError, match="another list into"):
        plan_cmlr(root)
    (tmp_path / "half/video").mkdir(parents=True)
    touch(tmp_path / "half", "video/s1/1/a.mp4")
    with pytest.raises(UserError, match=r"holds no sound .*comes as two trees"):
        plan_cmlr(tmp_path / "half")


def test_lrs2_follows_its_lists(tmp_path):
    root = touch(tmp_path, *(f"mvlrs_v1/{part}/{n}.mp4" for part, n in [
        ("main", "553/00001"), ("main", "553/00002"), ("main", "630/00001"), ("main", "633/00001"),
        ("main", "999/00001"),
        ("pretrain", "553/00001"), ("pretrain", "554/00007")]))  # fmt: skip
    with pytest.raises(UserError, match=r"none of train.txt, val.txt, test.txt"):
        plan_lrs2(root)
    lists = root / "filelists"
    lists.mkdir()
    (lists / "train.txt").write_text("553/00001\n553/00002\n")
    (lists / "val.txt").write_text("630/00001\n")
    (lists / "test.txt").write_text("633/00001 NF\n")
    (root / "mvlrs_v1/main/553/00001.txt").write_text("Text:  WHEN YOU'RE COOKING\nConf: 3\n\nWORD START\n")
    plan = plan_lrs2(root)
    found = recordings(plan)
    assert {source.removeprefix("mvlrs_v1/"): r.split for source, r in found.items()} == {
        "main/553/00001.mp4": "train", "main/553/00002.mp4": "train", "main/630/00001.mp4": "val",
        "main/633/00001.mp4": "test", "pretrain/553/00001.mp4": "train", "pretrain/554/00007.mp4": "train",
    }  # fmt: skip
    first = found["mvlrs_v1/main/553/00001.mp4"]
    assert (first.text, first.identity, first.whole) == ("WHEN YOU'RE COOKING", "553", True)
    assert not found["mvlrs_v1/pretrain/553/00001.mp4"].whole
    assert drops(plan) == {"mvlrs_v1/main/999/00001.mp4": "no official list names it"}
    assert len(plan_lrs2(root / "mvlrs_v1", lists=lists, pretrain=False).units) == 4


def test_lrw_has_its_splits_in_its_folders(tmp_path):
    root = touch(
        tmp_path, *(f"lipread_mp4/{w}/{s}/{w}_00001.mp4" for w in ("ABOUT", "WORLD") for s in ("train", "val", "test"))
    )
    touch(root, "lipread_mp4/ABOUT/train/ABOUT_00001.txt", "lipread_mp4/ABOUT/ABOUT_1.mp4")
    plan = plan_lrw(root)
    assert [(r.text, r.split) for r in recordings(plan).values()] == list(
        itertools.product(("ABOUT", "WORLD"), ("test", "train", "val"))
    )
    assert len({r.identity for r in recordings(plan).values()}) == 6
    assert set(drops(plan)) == {"lipread_mp4/ABOUT/ABOUT_1.mp4"}
    assert plan.ignored == []
    with pytest.raises(UserError, match="give lipread_mp4"):
        plan_lrw(touch(tmp_path / "else", "a.mp4"))


HEADER = "video_id,start,end,bbox,fps,width,height,partition,person_id\n"


def test_voxceleb_tables_give_windows_and_crops(tmp_path):
    root = touch(tmp_path, "youtube/t9mtPhZEJoQ.mp4")
    table = root / "vox-metadata.csv"
    table.write_text(
        HEADER
        + "t9mtPhZEJoQ,2975,3228,642-47-966-507,25,1280,720,train,id11211\n"
        + "t9mtPhZEJoQ,8139,8980,638-47-1003-498,25,1280,720,test,id11211\n"
        + "goneAAAAAAA,1,100,638-47-1003-498,25,1280,720,train,id10001\n"
    )
    plan = plan_voxceleb_video(root)
    first, second = (unit.payload for unit in plan.units)
    assert first.window == (119.0, 3228 / 25)
    assert first.box == (642 / 1280, 47 / 720, 966 / 1280, 507 / 720)
    assert (first.identity, first.split, second.split) == ("id11211", official_split("id11211"), "test")
    assert first.name != second.name
    assert drops(plan) == {"goneAAAAAAA": "the table names this video, which is not here"}
    for row, words in [
        ("t9mtPhZEJoQ,9,3,642-47-966-507,25,1280,720,train,id11211", "contradict"),
        ("t9mtPhZEJoQ,1,30,642-47-966,25,1280,720,train,id11211", "from frame 1 on"),
        ("t9mtPhZEJoQ,x,30,642-47-966-9,25,1280,720,train,id11211", "from frame x on"),
        ("other,1,30,642-47-966-507,25,1280,720,train,id11211", "none of the 1 videos"),
    ]:
        table.write_text(HEADER + row + "\n")
        with pytest.raises(UserError, match=words):
            plan_voxceleb_video(root)
    table.write_text("video_id,start\na,1\n")
    with pytest.raises(UserError, match="lacks end, bbox"):
        plan_voxceleb_video(root)


def test_voxceleb_trees_and_test_people(tmp_path):
    root = touch(tmp_path, "mp4/id00017/abc/00001.mp4", "mp4/id10270/x.mp4", "train/id10001#vid#001#002.mp4", "odd.mp4")
    plan = plan_voxceleb_video(root)
    assert {r.identity: r.split for r in recordings(plan).values()} == {
        "id00017": "test",
        "id10270": "test",
        "id10001": official_split("id10001"),
    }
    assert set(drops(plan)) == {"odd.mp4"}
    assert len(VOX2_TEST) == 118
    assert sum(is_test_person(f"id{number:05}") for number in range(12000)) == 118 + 40
    shares = [official_split(f"id{number:05}") for number in range(20000, 22000)]
    assert 150 < shares.count("val") < 250
    assert shares.count("test") == 0


def test_a_published_window_becomes_the_clip(tmp_path):
    """Frames, crop and sound are those of the table's row."""
    frames = [*pictures(50, (10, 20, 40)), *pictures(100, (60, 30, 60), seed=3)]
    save_talk(tmp_path / "in/vid.mp4", frames)
    (tmp_path / "in/vox-metadata.csv").write_text(HEADER + "vid,50,130,120-60-240-180,25,320,240,train,id10001\n")
    report = prepare_talking(
        "voxceleb-video", tmp_path / "in", tmp_path / "out", {"size": 64}, workers=0, toolkit=FakeTalkingKit
    )
    assert report.dropped == []
    (row,) = Corpus.open(tmp_path / "out").items().to_dict("records")
    assert (row["frames"], row["start"]) == (80, 2.0)
    clip = Clip(tmp_path / "out" / row["path"])
    # The crop is the square itself: 120..240 of 320 is 60..120 of 160.
    assert clip.frames(0, 1)[0].mean() == pytest.approx(frames[-1][30:90, 60:120].mean(), abs=4)
    reference = np.asarray(landmarks_in((60, 30, 120, 90)))[30]
    assert clip.landmarks[0, 30] == pytest.approx((reference - (60, 30)) * 64 / 60, abs=1.5)


# ---- texts, measures, filter


def test_texts_and_their_lengths(tmp_path):
    (tmp_path / "a").write_bytes("\ufeffText:  你好,世界 2\nConf".encode())
    (tmp_path / "b").write_text("\n \n second line \n")
    (tmp_path / "c").write_bytes(b"\xff\xfe")
    assert [text_of(tmp_path / name) for name in ("a", "b", "absent")] == ["你好,世界 2", "second line", ""]
    assert isinstance(text_of(tmp_path / "c"), str)
    assert [count_chars(text) for text in ("你好,世界 2", "it's", "")] == [5, 3, 0]


def test_measures_of_sound_against_hand_numbers():
    time = torch.arange(2 * RATE) / RATE
    tone = 0.5 * torch.sin(2 * torch.pi * 997 * time)
    # BS.1770: a full-scale sine of 997 Hz has -3.01 LUFS.
    assert loudness_of(tone) == pytest.approx(-3.01 - 6.02, abs=0.2)
    assert loudness_of(tone / 10) == pytest.approx(loudness_of(tone) - 20, abs=0.01)
    assert loudness_of(torch.zeros(RATE)) == -70
    assert loudness_of(tone[:3000]) == pytest.approx(loudness_of(tone), abs=0.5)
    assert clipped_share((6 * tone).clamp(-1, 1)) == pytest.approx(1 - 2 / np.pi * np.arcsin(1 / 3), abs=0.01)
    assert clipped_share(voice(1.0)) < 0.03
    assert clipped_share(tone * 0.1) == 0
    assert speech_within([(0, 10), (20, 40), (60, 70)], 30, 65) == [(0, 10), (30, 35)]


def test_measures_of_a_face():
    boxes = np.array([[10, 20, 50, 60]] * 4, np.float32)
    points = np.stack([full(landmarks_in((10, 20, 50, 60)))] * 4)
    for frame, gap in enumerate((0, 8, 0, 8)):
        points[frame, 65:68, 1] = points[frame, [63, 62, 61], 1] + gap
    eyes = float(np.linalg.norm(points[0, 45] - points[0, 36]))
    measured = face_measures(boxes, points, (200, 100))
    assert measured["face_pixels"] == 40
    assert measured["centre_offset"] == pytest.approx(np.hypot(30 - 100, 40 - 50) / 100)
    assert measured["missing"] == 0
    assert measured["lips"] == pytest.approx(4 / eyes, rel=0.01)
    points[1:3] = np.nan
    assert face_measures(boxes, points, (200, 100))["missing"] == 0.5
    assert face_measures(boxes, np.full_like(points, np.nan), (200, 100)) == {"missing": 1}
    assert lip_movement(points[:1]) == 0
    noise = np.random.default_rng(0).integers(0, 255, (100, 200, 3), dtype=np.uint8)
    sharp = sharpness_measure([noise, noise], [points[0], points[1]])
    assert sharp is not None
    assert sharp > 0.1
    assert sharpness_measure([noise], [points[1]]) is None


def test_spread_is_even_and_inside():
    assert spread(100, 4) == [12, 37, 62, 87]
    assert spread(3, 8) == [0, 1, 2]
    assert all(len(set(spread(count, 8))) == min(count, 8) for count in range(1, 50))


def test_the_filter_names_the_bound_that_is_broken():
    measures = Measures(seconds=2.0, faces=1, centre_offset=0.1, n_chars=20, sync_offset=-2.0, sync_confidence=5.0)
    clr = RECIPES["clr"]
    assert clr.refuse(measures) is None
    broken = {
        "max_chars": Measures(n_chars=30), "max_seconds": Measures(seconds=3.04), "max_faces": Measures(faces=2),
        "max_centre": Measures(centre_offset=0.4), "max_offset": Measures(sync_offset=-6.0),
        "min_confidence": Measures(sync_confidence=2.9), "max_missing": Measures(missing=0.3),
    }  # fmt: skip
    for name, bad in broken.items():
        assert (reason := clr.refuse(bad)) is not None
        assert reason.endswith(f"({name})")
    assert clr.refuse(Measures(seconds=3.0)) is None
    assert "max_chars" in clr.unmeasured(Measures(seconds=1.0))
    assert ClipFilter().refuse(Measures()) is None
    changed = parse_filter("clr", ["max_seconds=5", "max_chars=none", "max_faces=2"])
    assert (changed.max_seconds, changed.max_chars, changed.max_faces) == (5.0, None, 2)
    assert "max_seconds 5" in describe_filter(changed)
    assert describe_filter(RECIPES["none"]) == "none"
    for recipe, words, message in [
        ("crl", [], "unknown filter 'crl'; use one of none, plain, clr"),
        ("clr", ["max_second=5"], "is no bound of the filter"),
        ("clr", ["max_seconds=long"], "must be a number"),
        ("clr", ["min_seconds=4"], "above its max_seconds"),
    ]:
        with pytest.raises(UserError, match=message):
            parse_filter(recipe, words)


# ---- sound, takes, tubes


def test_sound_on_the_clock_of_the_pictures(tmp_path):
    wave = torch.linspace(-0.5, 0.5, RATE)
    save_wav(tmp_path / "a.wav", wave)
    stored = (wave * 32768).round() / 32768
    for delay in (0.0, 0.25, -0.25):
        sound = Sound(tmp_path / "a.wav", delay=delay)
        shift = round(delay * RATE)
        assert len(sound) == RATE + shift
        for start, count in ((0, 100), (3000, 9000), (-50, 100), (RATE - 50, 10000), (-20000, 100), (40000, 10)):
            places = np.arange(start, start + count) - shift
            expected = torch.tensor([float(stored[i]) if 0 <= i < RATE else 0.0 for i in places])
            assert torch.equal(sound.wave(start, count), expected)
    save_talk(tmp_path / "mute.mp4", pictures(3), SILENT)
    with pytest.raises(UserError, match="no audio"):
        Sound(tmp_path / "mute.mp4")


def test_speech_is_found_by_the_minute_and_joined(tmp_path, monkeypatch):
    monkeypatch.setattr("common.data.talking_sound._BLOCK", 1000)
    save_wav(tmp_path / "a.wav", torch.zeros(3500))
    sound = Sound(tmp_path / "a.wav")
    asked: list[int] = []

    def find(wave: torch.Tensor, rate: int) -> list[tuple[int, int]]:
        asked.append(len(wave))
        return {0: [(0, 990)], 1: [(0, 100)], 2: [], 3: [(400, 450)]}[len(asked) - 1]

    assert sound.speech(find) == [(0, 1100), (3400, 3450)]
    assert asked == [1000, 1000, 1000, 500]


def test_cuts_lie_in_pauses_and_leave_no_holes():
    assert cut_lengths(100, 250, []) == [(0, 100)]
    assert cut_lengths(300, 250, []) == [(0, 150), (150, 300)]
    assert cut_lengths(300, 250, [40, 130, 200, 260]) == [(0, 200), (200, 300)]
    assert cut_lengths(100, 250, [], shortest=25, pieces=3) == [(0, 34), (34, 67), (67, 100)]
    assert cut_lengths(60, 250, [], shortest=25, pieces=3) == [(0, 30), (30, 60)]
    assert cut_lengths(49, 250, [20], shortest=25, pieces=3) == [(0, 49)]
    assert cut_lengths(60, 50, [], shortest=50) == [(0, 50), (50, 60)]
    random = np.random.default_rng(0)
    for _ in range(500):
        frames, longest = int(random.integers(1, 500)), int(random.integers(1, 100))
        pauses = sorted(random.integers(0, 500, 8).tolist())
        shortest = int(random.integers(1, longest // 2 + 2))
        shortest = min(shortest, longest)
        wanted = int(random.integers(1, 5))
        pieces = cut_lengths(frames, longest, pauses, shortest=shortest, pieces=wanted)
        assert [start for start, _ in pieces] == [0, *(end for _, end in pieces[:-1])]
        assert pieces[-1][1] == frames
        lengths = [end - start for start, end in pieces]
        assert max(lengths) <= longest
        assert min(lengths) >= (min(shortest, frames) if longest >= 2 * shortest else 1)
    assert pauses_between([(0, 640), (1920, 2560), (3840, 5000)], 640) == [2, 5]


def face_track(number: int, start: int, boxes: np.ndarray, gap: float | np.ndarray = 0.0) -> Track:
    points = np.stack(
        [full(landmarks_in(box)) if np.isfinite(box).all() else np.full((68, 2), np.nan) for box in boxes]
    )
    points[:, 65:68, 1] = points[:, [63, 62, 61], 1] + np.broadcast_to(gap, len(boxes))[:, None]
    found = np.isfinite(boxes[:, 0])
    return Track(number, start, boxes.astype(np.float32), points.astype(np.float32), np.ones(len(boxes)), found)


def still(box: tuple[float, ...], count: int) -> np.ndarray:
    return np.repeat(np.array([box], np.float32), count, axis=0)


def test_the_face_that_talks_is_taken_in_each_shot():
    moving = np.tile([0.0, 6.0], 30)
    first = face_track(0, 0, still((0, 0, 80, 80), 60))
    second = face_track(1, 0, still((100, 0, 160, 60), 60), moving)
    third = face_track(2, 0, still((200, 0, 220, 20), 60), moving * 3)
    tracking = Tracking(60, 25.0, np.arange(60) / 25, (300, 200), (0, 30), [first, second, third])
    takes = takes_of(tracking)
    assert [(take.person, take.start, len(take), take.faces) for take in takes] == [(1, 0, 30, 3), (1, 30, 30, 3)]
    assert [take.person for take in takes_of(tracking, "largest")] == [0, 0]
    assert main_person(takes) == 1
    assert main_person([]) == 0


def test_gaps_are_bridged_or_split():
    boxes = still((0, 0, 80, 80), 60)
    boxes[20:25] = np.nan
    boxes[40:55] = np.nan
    takes = takes_of(Tracking(60, 25.0, np.arange(60) / 25, (300, 200), (0,), [face_track(0, 0, boxes)]))
    assert [(take.start, len(take), int(take.found.sum())) for take in takes] == [(0, 40, 35), (55, 5, 5)]
    assert np.isfinite(takes[0].landmarks).all()


def published_tubes(boxes: np.ndarray, rules: TubeRules) -> list[tuple[int, int, tuple[float, ...]]]:
    """crop_vox.py's loop and its aspect-preserving box, written out; without rounding to whole pixels."""
    result, start, initial = [], 0, boxes[0]
    for frame in range(len(boxes) + 1):
        if frame < len(boxes):
            a, b = initial, boxes[frame]
            inter = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
            areas = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
            if inter / (areas - inter) >= rules.least_overlap and frame - start < rules.most_frames:
                continue
        part = boxes[start:frame]
        left, top, right, bottom = part[:, 0].min(), part[:, 1].min(), part[:, 2].max(), part[:, 3].max()
        width, height, more = right - left, bottom - top, rules.increase
        wider = max(more, ((1 + 2 * more) * height - width) / (2 * width)) * width
        taller = max(more, ((1 + 2 * more) * width - height) / (2 * height)) * height
        result.append((start, frame, (left - wider, top - taller, right + wider, bottom + taller)))
        if frame < len(boxes):
            start, initial = frame, boxes[frame]
    return result


def test_tubes_are_those_of_the_published_loop():
    random = np.random.default_rng(1)
    path = np.cumsum(random.normal(0, 9, (400, 2)), axis=0) + 700
    boxes = np.concatenate([path, path + np.array([130, 170])], axis=1).astype(np.float32)
    rules = TubeRules(most_frames=90, least_frames=1, least_side=1)
    track = face_track(0, 7, boxes)
    take = Take(7, track.boxes, track.landmarks, np.ones(400, bool), (0,))
    made = [(t.start - 7, t.start - 7 + len(t), t.box) for t, reason in tubes(take, rules, (1600, 1600)) if not reason]
    expected = published_tubes(boxes.astype(np.float64), rules)
    assert len(made) == len(expected) > 5
    for (a, b, box), (c, d, reference) in zip(made, expected, strict=True):
        assert (a, b) == (c, d)
        assert box == pytest.approx(reference, abs=1e-3)
    reasons = [reason for _, reason in tubes(take, TubeRules(most_frames=90), (1600, 1600))]
    assert any(reason and "at least 64 are needed" in reason for reason in reasons)
    small = take.part(0, 64)
    assert "at least 256 px are needed" in str(next(tubes(small, TubeRules(), (1600, 1600)))[1])
    assert "leaves the picture" in str(next(tubes(small, TubeRules(least_side=1), (700, 700)))[1])
    tube, reason = next(tubes(small, TubeRules(least_side=1), (1600, 1600)))
    assert reason is None
    matrices = tube.matrices(100, "head")
    corners = np.array([tube.box[:2], tube.box[2:]]) @ matrices[0, :, :2].T + matrices[0, :, 2]
    assert corners == pytest.approx(np.array([[0, 0], [100, 100]]), abs=1e-9)
    assert (matrices == matrices[0]).all()


def test_every_source_has_defaults_that_are_settings():
    for source in TALKING_SOURCES.values():
        TalkingSettings(**source.defaults)
    assert TALKING_SOURCES["cmlr"].defaults["bounds"] is RECIPES["clr"]


def test_units_change_when_their_files_or_texts_do(tmp_path):
    def unit() -> Unit:
        return plan_clips(tmp_path).units[0]

    touch(tmp_path, "ann/a.mp4")
    first = unit()
    assert first == unit()
    (tmp_path / "ann/a.txt").write_text("hello")
    second = unit()
    touch(tmp_path, "ann/a.wav")
    third = unit()
    assert first.key == second.key == third.key
    assert len({first.stamp, second.stamp, third.stamp}) == 3
