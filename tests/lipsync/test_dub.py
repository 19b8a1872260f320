"""Dubbing as a whole, on toy faces: which pixels change, which frames are shown, what the network is given."""

from fractions import Fraction
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common.audio.io import load_audio, write_wav
from common.audio.lipsync_features import speech_features
from common.dubbing.report import DubReport
from common.faces.track import track_frames
from common.faces.tracks import Track, Tracking, crop_frames
from common.provenance import read_label
from common.video import VideoWriter, probe_video, read_frames, read_times
from lipsync.dub import DubSettings, dub
from lipsync.face_plan import plan_face
from lipsync.networks import Wav2Lip
from lipsync.windows import cut_windows, drawing_window
from tests.common.toy_faces import ToyEmbedder, marks, scene
from tests.common.toy_media import voice
from tests.common.toy_videos import make_video
from tests.lipsync.toy_dub import (
    KeptFrames,
    TalkingFaces,
    Witness,
    all_of_it,
    code,
    coded,
    model_of,
    none_of_it,
    save_exactly,
    save_speech,
    talking,
)
from tests.test_layout import ROOT, brought_along


@pytest.fixture(autouse=True)
def toy_embedder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.faces.track.load_embedder", lambda *_, **__: ToyEmbedder())


def run(
    video: Path, audio: Path, network: torch.nn.Module, out: Path | None = None, detect=all_of_it, **settings: object
) -> DubReport:
    out = out or video.with_name("out.mp4")
    return dub(
        model_of(network),
        video,
        audio,
        out,
        DubSettings(batch=4, **settings),
        backend=TalkingFaces(),
        detect=detect,
        progress=False,
    )


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> type[KeptFrames]:
    monkeypatch.setattr("common.dubbing.stream.VideoWriter", KeptFrames)
    return KeptFrames


def test_only_the_lower_face_changes_and_everything_else_keeps_its_bits(tmp_path: Path, kept: type[KeptFrames]) -> None:
    images = talking(20)
    video, audio = save_exactly(tmp_path / "v.mp4", images), save_speech(tmp_path / "a.wav", 0.8)
    report = run(video, audio, Witness(), seam="plain")
    assert (report.frames, report.without_face) == (20, 0)
    for t, (before, after) in enumerate(zip(images, kept.made.images, strict=True)):
        changed = (before != after).any(axis=2)
        rows, columns = np.nonzero(changed)
        left, top = round(100 + 0.7 * t - 30), 60
        assert rows.min() > top + 20  # the eyes are above
        assert rows.max() < top + 75
        assert columns.min() > left - 8
        assert columns.max() < left + 68
        mouth = after[top + 44 : top + 52, left + 25 : left + 35]
        assert (mouth == (255, 0, 0)).all()
        edge = after[changed].astype(int)
        assert ((edge != (255, 0, 0)).any(axis=1)).mean() > 0.2  # the feather


def test_the_drawing_takes_on_the_colours_of_the_frame(tmp_path: Path, kept: type[KeptFrames]) -> None:
    images = talking(6)
    video, audio = save_exactly(tmp_path / "v.mp4", images), save_speech(tmp_path / "a.wav", 0.24)
    run(video, audio, Witness())
    for t, (before, after) in enumerate(zip(images, kept.made.images, strict=True)):
        left, top = round(100 + 0.7 * t - 30), 60
        face = before[top + 30 : top + 60, left + 10 : left + 50].reshape(-1, 3).mean(axis=0)
        mouth = after[top + 44 : top + 52, left + 25 : left + 35].reshape(-1, 3).mean(axis=0)
        assert np.abs(mouth - face).max() < 0.4 * np.abs(np.array([255, 0, 0]) - face).max()


def test_frames_without_a_face_and_of_other_faces_pass_untouched(tmp_path: Path, kept: type[KeptFrames]) -> None:
    images = [coded(t, *([(0, 70, 90)] if not 8 <= t < 22 else []), (1, 190, 90)) for t in range(30)]
    video, audio = save_exactly(tmp_path / "v.mp4", images), save_speech(tmp_path / "a.wav", 1.2)
    report = run(video, audio, Witness(), face="index:0")
    assert (report.frames, report.without_face) == (30, 14)
    for t, (before, after) in enumerate(zip(images, kept.made.images, strict=True)):
        assert (before[:, 130:] == after[:, 130:]).all()
        assert (before == after).all() == (8 <= t < 22)
    run(video, audio, Witness(), face="largest")
    assert all((a[:, :130] == b[:, :130]).all() for a, b in zip(images, kept.made.images, strict=True))


def test_a_face_that_leaves_the_picture_is_dubbed_as_long_as_it_is_seen(tmp_path: Path, kept: type[KeptFrames]) -> None:
    images = [coded(t, (0, 60 - 4 * t, 90)) for t in range(25)]
    video, audio = save_exactly(tmp_path / "v.mp4", images), save_speech(tmp_path / "a.wav", 1.0)
    report = run(video, audio, Witness())
    changed = [bool((a != b).any()) for a, b in zip(kept.made.images, images, strict=True)]
    assert changed == [True] * (25 - report.without_face) + [False] * report.without_face
    assert 10 <= report.without_face < 20
    assert all(image.shape == (180, 240, 3) for image in kept.made.images)


@pytest.mark.parametrize(
    ("speech", "when_shorter", "expected"),
    [
        (1.0, "stop", [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 1, 2, 3, 4, 5, 6]),
        (0.24, "stop", [0, 1, 2, 3, 4, 5]),
        (0.24, "keep", list(range(10))),
        (0.1, "stop", [0, 1, 2]),
    ],
)
def test_the_output_lasts_as_long_as_the_speech(
    speech: float, when_shorter: str, expected: list[int], tmp_path: Path, kept: type[KeptFrames]
) -> None:
    video, audio = save_exactly(tmp_path / "v.mp4", talking(10)), save_speech(tmp_path / "a.wav", speech)
    report = run(video, audio, Witness(), when_shorter=when_shorter)
    assert [code(image) for image in kept.made.images] == expected
    assert kept.made.options["seconds"] == pytest.approx(max(speech, 0.4 if when_shorter == "keep" else 0))
    assert report.without_face == 0
    assert kept.made.times == [None] * len(expected)


@pytest.mark.parametrize("fps", [25, Fraction(30000, 1001), 50])
@pytest.mark.parametrize("align", ["train", "upstream"])
def test_a_frame_hears_the_speech_of_its_time(
    fps: int | Fraction, align: str, tmp_path: Path, kept: type[KeptFrames]
) -> None:
    video = save_exactly(tmp_path / "v.mp4", talking(7), fps)
    audio = save_speech(tmp_path / "a.wav", 0.88)
    network = Witness()
    run(video, audio, network, align=align, silence="ignore")
    features = speech_features("mel")
    heard = features(load_audio(audio)[None])[0]
    count = round(0.88 * fps)
    assert len(network.windows) == count
    late = Fraction(1, 25) if align == "train" else 0
    starts = np.array([int(80 * (k / Fraction(fps) - late)) for k in range(count)])
    expected = cut_windows(heard, starts, features.silence)[:, 0]
    assert torch.allclose(torch.stack(network.windows), expected, atol=1e-4)
    if fps == 25:
        assert (starts == drawing_window(np.arange(count), align)).all()


def test_pictures_at_uneven_times_keep_them(tmp_path: Path, kept: type[KeptFrames]) -> None:
    times = [0.0, 0.04, 0.1, 0.3, 0.32, 0.5]
    video = save_exactly(tmp_path / "v.mkv", talking(6), times=times)
    network = Witness()
    run(video, save_speech(tmp_path / "a.wav", 1.2), network, silence="ignore")
    shown = [code(image) for image in kept.made.images]
    assert shown[:10] == [0, 1, 2, 3, 4, 5, 4, 3, 2, 1]
    assert kept.made.times[:6] == pytest.approx(times)
    lengths = np.diff(kept.made.times[6:11])
    assert lengths == pytest.approx([0.18, 0.02, 0.2, 0.06], abs=1e-6)
    assert kept.made.times[-1] < 1.2
    starts = np.trunc(80 * (np.array(kept.made.times) - 0.04) + 1e-4).astype(int)
    heard = speech_features("mel")(load_audio(tmp_path / "a.wav")[None])[0]
    expected = cut_windows(heard, starts, speech_features("mel").silence)[:, 0]
    assert torch.allclose(torch.stack(network.windows), expected, atol=1e-4)


def first_second(wave: torch.Tensor) -> list[tuple[int, int]]:
    return [(0, 16000)]


@pytest.mark.parametrize("reference", ["silence", "same", "closed"])
def test_in_silence_the_network_hears_nothing_and_sees_a_closed_mouth(
    reference: str, tmp_path: Path, kept: type[KeptFrames]
) -> None:
    images = talking(50, openings=[6, 5, 0, 6, 7])
    video, audio = save_exactly(tmp_path / "v.mp4", images), save_speech(tmp_path / "a.wav", 2.0)
    network = Witness(colour=None)
    report = run(video, audio, network, detect=first_second, reference=reference)
    windows, faces = torch.stack(network.windows), torch.stack(network.faces)
    assert (windows[30:] == -4).all()
    assert not (windows[:24] == -4).all(dim=(1, 2)).any()
    assert 20 <= report.silent <= 24
    own = faces[:, 3:].clone()
    own[:, :, 16:] = 0
    is_own = torch.isclose(own, faces[:, :3]).all(dim=1).all(dim=1).all(dim=1)
    tracking = track_frames(((t / 25, image) for t, image in enumerate(images)), TalkingFaces())
    plan = plan_face(tracking, "largest", 32)
    assert {t % 5 for t in plan.closed} == {2}
    closed = next(crop_frames([images[plan.closed[0]]], plan.matrices[plan.closed[:1]], 32))
    difference = np.abs(faces[:, 3:].flip(1).permute(0, 2, 3, 1).numpy() * 255 - closed).max(axis=(1, 2, 3))
    if reference == "same":
        assert is_own.all()
    if reference == "silence":
        assert is_own[:25].all()
        assert (difference[28:] < 0.6).all()
    if reference == "closed":
        assert (difference < 0.6).all()


def test_the_closed_mouth_is_one_of_the_usual_pose_in_the_same_shot() -> None:
    count, still = 100, marks((70, 60, 130, 120)).astype(np.float64)
    landmarks = np.repeat(still[None], count, axis=0)
    landmarks[:, [57, 65, 66, 67], 1] += 4.0  # open, but for the following
    for shut in (5, 14, 31, 61, 88):
        landmarks[shut - 2 : shut + 3] = still
    turn = np.array([[0.9, -0.44], [0.44, 0.9]])
    for rolled in (5, 31, 61):
        rows = slice(rolled - 4, rolled + 5)
        landmarks[rows] = (landmarks[rows] - (100, 90)) @ turn.T + (100, 90)
    landmarks[40] = np.nan
    boxes = np.tile(np.array([70, 60, 130, 120], np.float32), (count, 1))
    boxes[40] = np.nan
    ones = np.ones(count, np.float32)
    track = Track(0, 0, boxes, landmarks.astype(np.float32), ones, ones > 0)
    plan = plan_face(Tracking(count, 25.0, np.arange(count) / 25, (240, 180), (0, 50), [track]), "largest", 32)
    assert set(plan.closed[:50]) <= {13, 14, 15}
    assert set(plan.closed[50:]) <= {87, 88, 89}
    assert plan.present.all()  # a short gap is bridged


def test_music_alone_closes_the_mouth_and_says_so(tmp_path: Path, kept: type[KeptFrames]) -> None:
    video, audio = save_exactly(tmp_path / "v.mp4", talking(5)), save_speech(tmp_path / "a.wav", 1.0)
    network = Witness()
    report = run(video, audio, network, detect=none_of_it)
    assert (torch.stack(network.windows) == -4).all()
    assert "no speech" in report.text()
    loud = run(video, audio, network, detect=none_of_it, silence="ignore")
    assert "no speech" not in loud.text()
    assert not (torch.stack(network.windows[-25:]) == -4).all()


def test_the_whole_crop_can_be_pasted_as_upstream_does(tmp_path: Path, kept: type[KeptFrames]) -> None:
    images = talking(3)
    video, audio = save_exactly(tmp_path / "v.mp4", images), save_speech(tmp_path / "a.wav", 0.12)
    run(video, audio, Witness(), mask="box", feather=0.0)
    red = (kept.made.images[0] == (255, 0, 0)).all(axis=2)
    rows, columns = np.nonzero(red)
    assert red[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].all()
    assert rows.max() - rows.min() >= 60


def test_a_file_is_written_once_labelled_and_exactly_as_long(tmp_path: Path) -> None:
    folder = tmp_path / "a folder, with spaces"
    folder.mkdir()
    video, audio = save_exactly(folder / "my video.mp4", talking(9)), save_speech(folder / "my speech.wav", 0.72)
    torch.manual_seed(0)
    report = run(video, audio, Wav2Lip(width=0.03, size=32), folder / "out 1.mp4")
    info = probe_video(folder / "out 1.mp4")
    assert (info.width, info.height, info.fps) == (240, 180, 25)
    assert info.frames == 18
    assert info.audio_seconds == pytest.approx(0.72, abs=1 / 16000)
    assert read_label(folder / "out 1.mp4")["AIGC"]["Label"] == "1"
    assert sorted(path.name for path in folder.iterdir()) == ["my speech.wav", "my video.mp4", "out 1.mp4"]
    assert set(report.stages) == {"wait", "listen", "track", "crop", "generate", "paste"}
    assert set(report.beside) == {"read", "encode"}
    assert "18 frames" in report.text()
    quarter = next(read_frames(folder / "out 1.mp4")).image[:40, 100:]
    assert np.abs(quarter.astype(int) - talking(1)[0][:40, 100:]).mean() < 6


def test_stereo_of_another_rate_becomes_the_sound(tmp_path: Path) -> None:
    video = save_exactly(tmp_path / "v.mp4", talking(5))
    make_video(tmp_path / "sound.mp4", frames=20, audio="aac", audio_rate=44100, audio_seconds=0.8)
    run(video, tmp_path / "sound.mp4", Witness())
    info = probe_video(tmp_path / "out.mp4")
    assert info.audio_seconds == pytest.approx(0.8, abs=0.03)
    assert info.frames == pytest.approx(20, abs=1)


def test_a_still_image_speaks(tmp_path: Path, kept: type[KeptFrames]) -> None:
    image = scene((0, 100, 90), size=(241, 181))
    Image.fromarray(image).save(tmp_path / "still.png")
    network = Witness()
    report = run(tmp_path / "still.png", save_speech(tmp_path / "a.wav", 1.0), network, when_shorter="keep")
    assert (report.frames, report.without_face, len(network.windows)) == (25, 0, 25)
    assert (kept.made.size, kept.made.fps) == ((241, 181), 25)
    assert len({window.numpy().tobytes() for window in network.windows}) > 20
    assert all((frame[:, 150:] == image[:, 150:]).all() for frame in kept.made.images)


def test_an_odd_size_is_kept(tmp_path: Path) -> None:
    Image.fromarray(scene((0, 100, 90), size=(241, 181))).save(tmp_path / "still.png")
    run(tmp_path / "still.png", save_speech(tmp_path / "a.wav", 0.2), Witness())
    assert next(read_frames(tmp_path / "out.mp4")).image.shape == (181, 241, 3)
    assert len(read_times(tmp_path / "out.mp4")) == 5


def test_the_batch_does_not_show(tmp_path: Path, kept: type[KeptFrames]) -> None:
    video, audio = save_exactly(tmp_path / "v.mp4", talking(11)), save_speech(tmp_path / "a.wav", 1.0)
    torch.manual_seed(0)
    network = Wav2Lip(width=0.03, size=32).eval()
    found = []
    for batch in (1, 5, 64):
        settings = DubSettings(batch=batch)
        dub(model_of(network), video, audio, tmp_path / "o.mp4", settings, backend=TalkingFaces(), detect=all_of_it)
        found.append(np.stack(kept.made.images))
    for other in found[1:]:
        assert np.abs(other.astype(int) - found[0]).max() <= 1


def test_dubbing_brings_no_training_library_along() -> None:
    assert brought_along(ROOT / "lipsync" / "dub.py", "lightning") == []


@pytest.mark.media
def test_a_real_clip_speaks_mandarin(media: Path, tmp_path: Path) -> None:
    clip = media / "real" / "clips" / "clip04_grid_brbk7n.mpg"
    speech = media / "real" / "speech" / "zh_yeyu_a_2.wav"
    with VideoWriter(tmp_path / "short.mp4", (360, 288), 25, crf=0) as writer:
        for frame in islice(read_frames(clip), 20):
            writer.write(frame.image)
    plain = DubSettings(seam="plain")
    report = dub(model_of(Witness(size=96)), tmp_path / "short.mp4", speech, tmp_path / "o.mp4", plain, progress=False)
    assert report.frames == round(2.2 * 25)
    assert report.without_face == 0
    assert 0 < report.silent < report.frames
    image = next(read_frames(tmp_path / "o.mp4")).image.astype(int)
    red = (image[..., 0] > 200) & (image[..., 1] < 60)
    rows, columns = np.nonzero(red)
    assert 180 < rows.mean() < 250  # the mouth of this clip lies at (170, 215)
    assert 150 < columns.mean() < 200


def test_silence_between_words_is_found_in_sound(tmp_path: Path, kept: type[KeptFrames]) -> None:
    """The default detector, on what it cannot take for speech."""
    video = save_exactly(tmp_path / "v.mp4", talking(5))
    write_wav(tmp_path / "a.wav", 0.2 * torch.sin(torch.arange(16000) * 0.3) * (voice(1.0) == 0))
    report = dub(
        model_of(Witness()), video, tmp_path / "a.wav", tmp_path / "o.mp4", backend=TalkingFaces(), progress=False
    )
    assert report.silent == report.frames == 25
