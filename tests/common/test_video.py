import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from common.errors import UserError
from common.video import probe_video, read_frames, read_times, read_wave
from common.video.picture import Upright
from tests.common.toy_videos import index_of, make_video, picture, tone

KINDS = {
    "h264.mp4": dict(codec="libx264"),
    "ten_bit.mp4": dict(codec="libx265", pixels="yuv420p10le", options={"x265-params": "log-level=none"}),
    "system.mpg": dict(codec="mpeg1video"),
    "transport.ts": dict(codec="libx264"),
    "vp9.webm": dict(codec="libvpx-vp9"),
    "lossless.mkv": dict(codec="ffv1", pixels="yuv444p"),
    "old.avi": dict(codec="mpeg4"),
    "prores.mov": dict(codec="prores_ks", pixels="yuv422p10le"),
    "raw.h264": dict(codec="libx264"),
    "flash.flv": dict(codec="libx264"),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_file_gives_its_pictures_at_their_times(name: str, tmp_path: Path) -> None:
    path = make_video(tmp_path / name, frames=30, **KINDS[name])
    info = probe_video(path)
    assert (info.width, info.height, info.fps, info.rotation) == (64, 48, 25, 0)
    assert info.seconds == pytest.approx(1.2, abs=0.001)
    assert info.frames in (30, None)
    assert not info.variable
    assert not info.has_audio
    assert info.bits == (10 if "10" in str(KINDS[name].get("pixels")) else 8)
    frames = list(read_frames(path))
    assert [frame.index for frame in frames] == list(range(30))
    assert [frame.time for frame in frames] == pytest.approx(np.arange(30) / 25, abs=0.001)
    assert [index_of(frame.image) for frame in frames] == list(range(30))
    assert np.abs(frames[7].image.astype(int) - picture(7)).mean() < 9
    np.testing.assert_allclose(read_times(path), [frame.time for frame in frames], atol=1e-9)
    assert len(list(read_frames(path, fps=25))) == 30


@pytest.mark.parametrize("name", ["h264.mp4", "system.mpg", "transport.ts", "vp9.webm", "old.avi", "raw.h264"])
def test_a_start_inside_the_file_gives_the_picture_that_is_shown_then(name: str, tmp_path: Path) -> None:
    path = make_video(tmp_path / name, frames=100, options={"g": "15"}, **KINDS[name])
    for start, first, last in ((0.3, 7, 19), (2.02, 50, 62), (3.99, 99, 99)):
        frames = list(read_frames(path, start=start, seconds=0.5))
        assert [index_of(frame.image) for frame in frames] == [index % 32 for index in range(first, last + 1)]
        assert frames[0].time == pytest.approx(first / 25, abs=1e-3)
    resampled = list(read_frames(path, fps=10, start=2.0, seconds=1.0))
    assert [index_of(frame.image) for frame in resampled] == [int(51.25 + 2.5 * k) % 32 for k in range(10)]
    with pytest.raises(UserError, match="no picture at 4"):
        list(read_frames(path, start=4.1))


@pytest.mark.parametrize(("rate", "target"), [(30, 25), (60, 25), (15, 25), (Fraction(24000, 1001), 25), (25, 29.97)])
def test_resampling_takes_the_picture_shown_in_the_middle(rate: Fraction, target: float, tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mkv", "ffv1", frames=30, fps=rate, pixels="yuv444p")
    got = list(read_frames(path, fps=target))
    count = round(30 / float(rate) * target)
    expected = [min(29, int((k + 0.5) / target * float(rate) + 1e-2)) for k in range(count)]
    assert [index_of(frame.image) for frame in got] == expected
    assert [frame.time for frame in got] == pytest.approx(np.arange(count) / target)


def test_jittering_times_do_not_lose_a_picture(tmp_path: Path) -> None:
    jitter = np.random.default_rng(0).uniform(-0.015, 0.015, 30)
    jitter[0] = 0
    path = make_video(tmp_path / "a.mkv", "ffv1", pixels="yuv444p", times=np.arange(30) / 25 + jitter)
    assert [index_of(frame.image) for frame in read_frames(path, fps=25)] == list(range(30))


def test_a_variable_rate_is_seen_and_its_holes_are_held(tmp_path: Path) -> None:
    times = [0.0, 0.04, 0.1, 0.5, 0.52, 0.9]
    path = make_video(tmp_path / "a.mp4", times=times, options={"bf": "0"})
    assert probe_video(path).variable
    np.testing.assert_allclose(read_times(path), times, atol=1e-6)
    shown = [index_of(frame.image) for frame in read_frames(path, fps=20)]
    assert shown[:18] == [int(np.searchsorted(times, (k + 0.5) / 20, side="right")) - 1 for k in range(18)]
    assert [round(frame.time, 3) for frame in read_frames(path, start=0.2, seconds=0.31)] == [0.1, 0.5]


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("rotation", [0, 90, 180, -90])
def test_pictures_stand_as_the_display_matrix_says(rotation: int, mirrored: bool, tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", frames=2, rotation=rotation, mirrored=mirrored)
    image = picture(0)
    # FFmpeg's matrix turns the stored picture counter-clockwise first and mirrors it afterwards.
    expected = np.rot90(image, rotation // 90)
    expected = expected[:, ::-1] if mirrored else expected
    frame = next(read_frames(path))
    assert frame.image.shape == expected.shape
    assert np.abs(frame.image.astype(int) - expected).mean() < 6
    info = probe_video(path)
    assert (info.height, info.width) == expected.shape[:2]
    if not mirrored:
        assert info.rotation == -rotation % 360


@pytest.mark.parametrize(("aspect", "size"), [(Fraction(16, 11), (93, 48)), (Fraction(1, 2), (64, 96)), (9, (64, 48))])
def test_pixels_become_square_by_enlarging(aspect: Fraction, size: tuple[int, int], tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", frames=3, aspect=aspect)
    info = probe_video(path)
    assert (info.width, info.height) == size
    frames = list(read_frames(path))
    assert frames[0].image.shape == (size[1], size[0], 3)
    assert [index_of(frame.image) for frame in frames] == [0, 1, 2]


def test_aspect_and_rotation_work_together(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", frames=2, aspect=Fraction(2, 1), rotation=90)
    assert next(read_frames(path)).image.shape == (128, 48, 3)


def test_full_range_and_rgb_sources_keep_their_colours(tmp_path: Path) -> None:
    for name, codec, pixels in (("a.avi", "mjpeg", "yuvj444p"), ("b.mkv", "ffv1", "bgr0"), ("c.mkv", "ffv1", "gray")):
        path = make_video(tmp_path / name, codec, frames=1, pixels=pixels, options={"qscale": "1"})
        expected = picture(0).astype(float)
        if pixels == "gray":
            expected[:] = (expected @ [0.299, 0.587, 0.114])[..., None]
        assert np.abs(next(read_frames(path)).image - expected).mean() < 3


@pytest.mark.parametrize(("matrix", "weights"), [(1, (0.2126, 0.0722)), (6, (0.299, 0.114)), (9, (0.2627, 0.0593))])
@pytest.mark.parametrize("limits", [1, 2])
def test_colours_follow_the_tags(matrix: int, weights: tuple[float, float], limits: int) -> None:
    red, blue = weights
    rgb = np.array([200.0, 90.0, 40.0])
    luma = rgb @ [red, 1 - red - blue, blue]
    values = [luma, (rgb[2] - luma) / (2 - 2 * blue), (rgb[0] - luma) / (2 - 2 * red)]
    scale = (219 / 255, 224 / 255) if limits == 1 else (1.0, 1.0)
    planes = [16 * (limits == 1) + scale[0] * values[0], *(128 + scale[1] * value for value in values[1:])]
    stored = np.stack([np.full((16, 16), round(plane), np.uint8) for plane in planes])
    frame = av.VideoFrame.from_ndarray(stored, format="yuv444p")
    frame.colorspace, frame.color_range = matrix, limits
    assert np.abs(Upright(frame, None)(frame).astype(int) - rgb).max() <= 2


def test_untagged_colours_are_read_as_players_do() -> None:
    for size, expected in (((640, 480), 6), ((1280, 720), 1)):
        frame = av.VideoFrame.from_ndarray(np.full((3, size[1], size[0]), 90, np.uint8), format="yuv444p")
        tagged = av.VideoFrame.from_ndarray(np.full((3, size[1], size[0]), 90, np.uint8), format="yuv444p")
        tagged.colorspace, tagged.color_range = expected, 1
        np.testing.assert_array_equal(Upright(frame, None)(frame), Upright(tagged, None)(tagged))


@pytest.mark.slow
def test_hlg_white_becomes_white() -> None:
    """BT.2408: diffuse white is 75 % of the HLG signal, BT.709's full signal."""
    level = np.full((16, 32), round(64 + 876 * 0.75), np.uint16)
    frame = av.VideoFrame(32, 16, "yuv444p10le")
    for plane, values in zip(frame.planes, (level, np.full_like(level, 512), np.full_like(level, 512)), strict=True):
        plane.update(np.pad(values, ((0, 0), (0, plane.line_size // 2 - 32))).tobytes())
    frame.colorspace, frame.color_range, frame.color_trc, frame.color_primaries = 9, 1, 18, 9
    assert Upright(frame, None)(frame).min() >= 250


def test_sound_is_read_on_the_clock_of_the_pictures(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mkv", audio="pcm_s16le", audio_start=0.25, audio_seconds=0.5, frames=25)
    info = probe_video(path)
    assert info.has_audio
    assert info.audio_start == pytest.approx(0.25, abs=0.001)
    expected = np.zeros(16000, np.float32)
    expected[4000:12000] = tone(0.5, 16000, 0.25)
    got = read_wave(path, seconds=1.0)
    assert got.shape == (16000,)
    np.testing.assert_allclose(got[100:3900], 0, atol=1e-4)
    np.testing.assert_allclose(got[4100:11900], expected[4100:11900], atol=2e-3)
    np.testing.assert_allclose(read_wave(path, start=0.3, seconds=0.1), got[4800:6400], atol=1e-6)
    np.testing.assert_allclose(read_wave(path), got[:12000], atol=1e-6)
    assert float(read_wave(path, start=0.0, seconds=0.2).abs().max()) == 0
    assert float(read_wave(path, start=5.0, seconds=0.2).abs().max()) == 0
    with pytest.raises(UserError, match="no sound at 5 s"):
        read_wave(path, start=5.0)


def test_sound_before_the_first_picture_is_left_out(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mkv", times=[0.5, 0.54, 0.58], audio="pcm_s16le", audio_seconds=1.0)
    assert probe_video(path).audio_start == pytest.approx(-0.5, abs=0.001)
    np.testing.assert_allclose(read_wave(path, seconds=0.4)[100:], tone(0.4, 16000, 0.5)[100:], atol=2e-3)


def bad_files(folder: Path) -> dict[str, tuple[Path, str]]:
    whole = make_video(folder / "whole.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("no video " * 100)
    (folder / "zeros.mp4").write_bytes(bytes(5000))
    (folder / "playlist.m3u8").write_text("#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n")
    with av.open(str(folder / "sound.m4a"), "w") as container:
        track = container.add_stream("aac", rate=16000, layout="mono")
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        silence.sample_rate = 16000
        container.mux(track.encode(silence))
        container.mux(track.encode(None))
    return {
        "missing": (folder / "missing.mp4", "no such file"),
        "folder": (folder, "is not a file"),
        "empty": (folder / "empty.mp4", "empty file"),
        "cut": (folder / "cut.mp4", "cannot read"),
        "text": (folder / "text.mp4", "cannot read .* as video"),
        "zeros": (folder / "zeros.mp4", "cannot read"),
        "playlist": (folder / "playlist.m3u8", "cannot read|no video track"),
        "sound": (folder / "sound.m4a", "no video track"),
    }


def test_a_bad_file_is_one_line(tmp_path: Path) -> None:
    for path, message in bad_files(tmp_path).values():
        for read in (probe_video, read_times, lambda path: next(read_frames(path)), read_wave):
            with pytest.raises(UserError, match=message) as caught:
                read(path)
            assert str(path) in str(caught.value)
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["a.mkv", "b.ts"])
def test_a_cut_off_file_gives_what_is_left(name: str, tmp_path: Path) -> None:
    whole = make_video(tmp_path / name, frames=60, options={"g": "10"})
    whole.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    frames = list(read_frames(whole))
    assert 5 < len(frames) < 55
    assert [index_of(frame.image) for frame in frames[:-2]] == [k % 32 for k in range(len(frames) - 2)]


def test_a_file_damaged_in_the_middle_goes_on_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = make_video(
        tmp_path / "a.mp4", "mpeg4", frames=60, options={"g": "5"}, container_options={"movflags": "faststart"}
    )
    data = bytearray(path.read_bytes())
    path.write_bytes(bytes(data[: len(data) * 3 // 5]))
    frames = list(read_frames(path))
    assert 20 < len(frames) < 60
    assert [index_of(frame.image) for frame in frames[:20]] == list(range(20))
    assert "damaged" in caplog.text
    with pytest.raises(UserError, match="damaged"):
        list(read_frames(path, strict=True))


@pytest.mark.parametrize("name", ["a.mp4", "b.ts", "c.mkv"])
def test_one_picture_is_a_video(name: str, tmp_path: Path) -> None:
    path = make_video(tmp_path / name, frames=1)
    assert probe_video(path).seconds == pytest.approx(0.04, abs=0.021)
    assert len(list(read_frames(path))) == len(list(read_frames(path, fps=25))) == len(read_times(path)) == 1


def test_names_of_any_bytes_can_be_read(tmp_path: Path) -> None:
    whole = make_video(tmp_path / "a.mp4", frames=3, audio="aac").read_bytes()
    for name in (b"caf\xe9 \xff.mp4", "唇 语.mp4".encode(), b"a: b%03d'\".mp4", b"file:x.mp4"):
        path = tmp_path / os.fsdecode(name)
        path.write_bytes(whole)
        assert probe_video(path).frames == len(list(read_frames(path))) == len(read_times(path)) == 3


def test_a_cover_picture_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "song.mp4"
    with av.open(str(path), "w") as container:
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 32, 32, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
        container.mux([*cover.encode(frame.reformat(format="yuvj420p")), *cover.encode(None)])
    with pytest.raises(UserError, match="no video track"):
        probe_video(path)


def test_a_size_that_changes_inside_the_file_stays_that_of_the_first(tmp_path: Path) -> None:
    parts = [make_video(tmp_path / f"{n}.ts", frames=5, size=size) for n, size in enumerate(((64, 48), (96, 80)))]
    joined = tmp_path / "joined.ts"
    joined.write_bytes(b"".join(part.read_bytes() for part in parts))
    frames = list(read_frames(joined))
    assert len(frames) == 10
    assert {frame.image.shape for frame in frames} == {(48, 64, 3)}
    # the second part's clock starts again
    assert [frame.time for frame in frames] == sorted({frame.time for frame in frames})
    assert frames[-1].time < 1
    np.testing.assert_allclose(read_times(joined), [frame.time for frame in frames])


@pytest.mark.parametrize("kwargs", [{"fps": 0}, {"fps": float("inf")}, {"start": -1}, {"seconds": 0}])
def test_senseless_requests_are_refused_at_once(kwargs: dict[str, float], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot read"):
        read_frames(tmp_path / "a.mp4", **kwargs)


@pytest.mark.media
def test_real_clips_are_read(media: Path) -> None:
    for path in sorted((media / "real" / "clips").iterdir()):
        info = probe_video(path)
        times = read_times(path)
        assert info.has_audio
        assert not info.variable
        assert len(times) == round(info.seconds * info.fps)
        frames = list(read_frames(path, fps=25, start=1.0, seconds=0.6))
        assert [frame.image.shape for frame in frames] == [(info.height, info.width, 3)] * 15
        assert torch.isfinite(read_wave(path, seconds=1.0)).all()
