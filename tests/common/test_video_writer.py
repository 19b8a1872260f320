import os
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from common.audio.io import write_wav
from common.errors import UserError
from common.provenance import Provenance, ProvenanceConfig, read_label
from common.video import VideoWriter, as_rate, probe_video, read_frames, read_times, read_wave
from tests.common.toy_videos import index_of, make_video, picture, tone


def written(
    path: Path, count: int, fps: float | Fraction = 25, size: tuple[int, int] = (64, 48), **kwargs: object
) -> Path:
    with VideoWriter(path, size, fps, **kwargs) as writer:  # type: ignore[arg-type]
        for index in range(count):
            writer.write(picture(index, *size))
    return path


def track_seconds(path: Path) -> tuple[float, float | None]:
    """Lengths of the picture and the sound track, as the container states them."""
    with av.open(str(path)) as container:
        video, sound = container.streams.video[0], next(iter(container.streams.audio), None)
        return (
            float(video.duration * video.time_base),
            None if sound is None else float(sound.duration * sound.time_base),
        )


@pytest.mark.parametrize("seconds", [None, 0.4, 1.0, 1.49, 3.013])
@pytest.mark.parametrize("fps", [25, Fraction(30000, 1001), 12.5])
def test_pictures_and_sound_end_together_at_the_wanted_time(
    seconds: float | None, fps: float | Fraction, tmp_path: Path
) -> None:
    path = written(tmp_path / "a.mp4", 37, fps, audio=torch.from_numpy(tone(2.0, 16000)), seconds=seconds)
    wanted = 37 / fps if seconds is None else seconds
    video, sound = track_seconds(path)
    assert video == pytest.approx(float(wanted), abs=0.5 / float(fps) + 1e-4)
    assert sound == pytest.approx(float(wanted), abs=1 / 16000)
    shown = [index_of(frame.image) for frame in read_frames(path)]
    total = int(float(wanted) * float(fps) + 0.5 + 1e-9)
    assert shown == [min(index, 36) % 32 for index in range(total)]
    assert len(read_times(path)) == total
    expected = np.zeros(round(wanted * 16000), np.float32)
    heard = min(2.0, float(wanted))
    expected[: round(heard * 16000)] = tone(heard, 16000)
    got = read_wave(path, seconds=float(wanted)).numpy()
    assert got.shape == expected.shape
    assert np.sqrt(np.square(got - expected)[200:-1100].mean()) < 0.02


def test_a_variable_rate_keeps_its_times_and_its_length(tmp_path: Path) -> None:
    times = [0.0, 0.04, 0.1, 0.5, 0.52, 0.9]
    for seconds, end in ((1.234, 1.234), (None, 0.94), (0.51, 0.51)):
        path = tmp_path / "a.mp4"
        with VideoWriter(path, (64, 48), 25, audio=torch.zeros(100), seconds=seconds) as writer:
            for index, time in enumerate(times):
                writer.write(picture(index), time)
        kept = [time for time in times if time < end]
        np.testing.assert_allclose(read_times(path), kept, atol=1e-5)
        assert [index_of(frame.image) for frame in read_frames(path)] == list(range(len(kept)))
        assert track_seconds(path) == pytest.approx((end, end), abs=1e-4)


def write_at(path: Path, times: Sequence[float | None]) -> None:
    with VideoWriter(path, (64, 48), 25) as writer:
        for time in times:
            writer.write(picture(0), time)


def test_times_must_make_sense(tmp_path: Path) -> None:
    cases: list[tuple[list[float | None], str]] = [
        ([0, 0.1, 0.1], "come after"),
        ([0, None], "all pictures"),
        ([float("nan")], "shown at"),
        ([-1], "shown at"),
    ]
    for times, message in cases:
        with pytest.raises(ValueError, match=message):
            write_at(tmp_path / "a.mp4", times)
    assert list(tmp_path.iterdir()) == []


COLOURS = [
    *((r, g, b) for r in (0, 128, 255) for g in (0, 128, 255) for b in (0, 128, 255)),
    *np.random.default_rng(0).integers(0, 256, (30, 3)).tolist(),
]


@pytest.mark.parametrize("intra", [False, True])
@pytest.mark.parametrize("size", [(64, 48), (65, 47)])
def test_flat_colours_come_back_within_two_levels(size: tuple[int, int], intra: bool, tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "a.mp4", size, 25, intra=intra) as writer:
        for colour in COLOURS:
            writer.write(np.broadcast_to(np.array(colour, np.uint8), (size[1], size[0], 3)))
    for colour, frame in zip(COLOURS, read_frames(tmp_path / "a.mp4"), strict=True):
        assert np.abs(frame.image.astype(int) - colour).max() <= 2, colour


@pytest.mark.parametrize("size", [(64, 48), (65, 49)])
def test_colours_stay_in_their_place(size: tuple[int, int], tmp_path: Path) -> None:
    """A red spot on grey, of the grey's luminance: its centre must not move through a copy of a copy."""
    x, y = np.arange(size[0]) + 0.5, np.arange(size[1])[:, None] + 0.5
    spot = np.exp(-((x - 30.0) ** 2 + (y - 22.0) ** 2) / (2 * 6.0**2))[..., None]
    image = (120 + spot * np.array([80, -80 * 0.2126 / 0.7152, 0])).round().astype(np.uint8)
    for _ in range(4):
        with VideoWriter(tmp_path / "a.mp4", size, 25, crf=4) as writer:
            writer.write(image)
        (frame,) = read_frames(tmp_path / "a.mp4")
        image = frame.image
    weight = (image[..., 0].astype(float) - image[..., 1] - 4).clip(min=0)
    centre = (float((weight * x).sum() / weight.sum()), float((weight * y).sum() / weight.sum()))
    assert centre == pytest.approx((30, 22), abs=0.1)


@pytest.mark.parametrize("size", [(65, 47), (64, 47), (65, 48), (3, 3), (2, 2)])
def test_odd_sizes_keep_every_pixel_in_its_place(size: tuple[int, int], tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (size[1], size[0], 1), dtype=np.uint8).repeat(3, axis=2)
    with VideoWriter(tmp_path / "a.mp4", size, 25, crf=1) as writer:
        writer.write(image)
    (frame,) = read_frames(tmp_path / "a.mp4")
    assert frame.image.shape == image.shape
    assert np.abs(frame.image.astype(int) - image).max() <= 4


def test_the_stream_is_tagged_as_bt709(tmp_path: Path) -> None:
    with av.open(str(written(tmp_path / "a.mp4", 2))) as container:
        stream = container.streams.video[0]
        assert (stream.color_primaries, stream.color_trc, stream.colorspace, stream.color_range) == (1, 1, 1, 1)
        assert stream.pix_fmt == "yuv420p"


@pytest.mark.parametrize(
    ("name", "source", "kept"),
    [
        ("a.mp4", dict(audio="aac"), "aac"),
        ("a.ts", dict(audio="aac"), "aac"),
        ("a.mkv", dict(audio="ac3", audio_rate=48000), "ac3"),
        ("a.mkv", dict(audio="flac"), "flac"),
        ("a.mkv", dict(audio="libopus", audio_rate=48000), "opus"),
        ("a.mkv", dict(audio="libmp3lame"), "mp3float"),
        ("a.mpg", dict(codec="mpeg1video", audio="mp2"), None),
        ("a.mkv", dict(audio="pcm_s16le", audio_rate=22000), None),
    ],
)
def test_sound_of_a_file_is_taken_over(name: str, source: dict[str, str], kept: str | None, tmp_path: Path) -> None:
    origin = make_video(tmp_path / name, frames=50, **source)  # type: ignore[arg-type]
    path = written(tmp_path / "out.mp4", 40, audio=origin)
    with av.open(str(path)) as out, av.open(str(origin)) as old:
        assert out.streams.audio[0].codec_context.codec.canonical_name == (kept or "aac").removesuffix("float")
        if kept:
            header = 7 if name == "a.ts" else 0  # ADTS, which MP4 keeps once for all packets
            copies = {bytes(packet) for packet in out.demux(audio=0) if packet.size}
            assert copies <= {bytes(packet)[header:] for packet in old.demux(audio=0)}
            assert len(copies) > 15
    video, sound = track_seconds(path)
    assert (video, sound) == pytest.approx((1.6, 1.6), abs=0.001)
    before, after = read_wave(origin, seconds=1.5), read_wave(path, seconds=1.5)
    best = max(range(-40, 41), key=lambda lag: float(before[800:16800] @ after[800 + lag : 16800 + lag]))
    assert abs(best) <= 16  # a millisecond, Matroska's clock
    # a shift by half a sample makes most of the difference
    assert float((before[800:16800] - after[800 + best : 16800 + best]).square().mean().sqrt()) < 0.08


def test_late_and_early_sound_stay_where_they_were(tmp_path: Path) -> None:
    for audio in ("pcm_s16le", "aac"):
        late = make_video(tmp_path / "late.mkv", audio=audio, audio_start=0.25, audio_seconds=0.5, audio_rate=16000)
        early = make_video(
            tmp_path / "early.mkv",
            audio=audio,
            audio_seconds=1.0,
            audio_rate=16000,
            times=np.arange(0.5, 1, 0.04).tolist(),
        )
        for source, start in ((late, 0.0), (early, 0.5)):
            path = written(tmp_path / "out.mp4", 12, audio=source)
            got = read_wave(path, seconds=0.45)
            expected = torch.from_numpy(tone(0.45, 16000, start))
            if source is late:
                assert float(got[:3800].abs().max()) < 0.01
            inside = slice(4600, 7000)
            assert float((got - expected)[inside].square().mean().sqrt()) < 0.03


def test_sound_shorter_than_the_pictures(tmp_path: Path) -> None:
    origin = make_video(tmp_path / "a.mp4", audio="aac", audio_seconds=0.5)
    assert track_seconds(written(tmp_path / "b.mp4", 40, audio=origin)) == pytest.approx((1.6, 0.5), abs=0.03)
    write_wav(tmp_path / "a.wav", tone(0.5, 16000))
    path = written(tmp_path / "c.mp4", 40, audio=tmp_path / "a.wav")
    assert track_seconds(path) == pytest.approx((1.6, 1.6), abs=1e-4)
    assert float(read_wave(path, seconds=1.6)[9000:].abs().max()) < 1e-3


def test_a_damaged_source_of_sound_leaves_silence(tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", tone(2.0, 16000))
    data = (tmp_path / "a.wav").read_bytes()
    (tmp_path / "cut.wav").write_bytes(data[: len(data) // 4])
    path = written(tmp_path / "b.mp4", 25, audio=tmp_path / "cut.wav")
    assert track_seconds(path) == pytest.approx((1.0, 1.0), abs=1e-4)


def test_a_source_without_sound_is_refused(tmp_path: Path) -> None:
    silent = make_video(tmp_path / "a.mp4", frames=3)
    for audio, message in ((silent, "no audio track"), (tmp_path / "gone.wav", "no such file")):
        with pytest.raises(UserError, match=message):
            written(tmp_path / "b.mp4", 3, audio=audio)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4"]


@pytest.mark.parametrize("visible", [False, True])
def test_the_label_is_written_in_the_same_pass(visible: bool, tmp_path: Path) -> None:
    label = Provenance.create(ProvenanceConfig(visible=visible), config_hash="0" * 8)
    path = written(tmp_path / "a.mp4", 3, size=(160, 120), provenance=label, audio=torch.zeros(1600))
    assert read_label(path) == label.as_dict()
    corner = next(read_frames(path)).image[-16:, -70:]
    plain = picture(0, 160, 120)[-16:, -70:]
    assert (np.abs(corner.astype(int) - plain).max() > 100) == visible


def write_and_fail(path: Path, error: Exception) -> None:
    with VideoWriter(path, (64, 48), 25) as writer:
        writer.write(picture(0))
        raise error


def test_nothing_is_left_behind_by_a_failure(tmp_path: Path) -> None:
    target = tmp_path / "a.mp4"
    target.write_bytes(b"before")
    for error in (KeyError("mine"), FileNotFoundError("mine"), KeyboardInterrupt("mine")):
        with pytest.raises(type(error), match="mine"):
            write_and_fail(target, error)
    with pytest.raises(UserError, match="no picture"):
        written(target, 0)
    with pytest.raises(ValueError, match="expected uint8"), VideoWriter(target, (64, 48), 25) as writer:
        writer.write(picture(0, 48, 64))
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]
    assert target.read_bytes() == b"before"


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write .*file"):
        written(tmp_path / "file" / "a.mp4", 1)
    with pytest.raises(UserError, match=r"does not end in \.mp4"):
        written(tmp_path / "a.mkv", 1)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def write_to_full_disk(writer: VideoWriter, count: int) -> None:
    with writer:
        writer._temporary.unlink()
        writer._temporary.symlink_to("/dev/full")
        for index in range(count):
            writer.write(np.random.default_rng(index).integers(0, 256, (48, 64, 3), dtype=np.uint8))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("count", [1, 100])
def test_a_full_disk_is_one_line(count: int, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot write .*a\.mp4") as caught:
        write_to_full_disk(VideoWriter(tmp_path / "a.mp4", (64, 48), 25), count)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_names_of_any_bytes_can_be_written(tmp_path: Path) -> None:
    label = Provenance.create(ProvenanceConfig(), config_hash="0" * 8)
    for name in (b"caf\xe9 \xff.mp4", "唇 语.mp4".encode(), b"a: b%03d'\".mp4"):
        path = written(tmp_path / os.fsdecode(name), 3, provenance=label, audio=torch.zeros(100))
        assert probe_video(path).frames == 3


def test_pictures_are_written_alike_each_time(tmp_path: Path) -> None:
    files = [written(tmp_path / name, 12, intra=True).read_bytes() for name in ("a.mp4", "b.mp4")]
    assert files[0] == files[1]


def test_every_picture_of_an_intra_file_is_a_key_frame(tmp_path: Path) -> None:
    for intra in (True, False):
        with av.open(str(written(tmp_path / "a.mp4", 12, intra=intra))) as container:
            keys = [packet.is_keyframe for packet in container.demux(video=0) if packet.size]
        assert all(keys) == intra


def test_rates(tmp_path: Path) -> None:
    cases = {29.97: Fraction(30000, 1001), 23.976: Fraction(24000, 1001), 25: Fraction(25), 12.5: Fraction(25, 2)}
    for rate, expected in cases.items():
        assert as_rate(rate) == expected
    assert as_rate(Fraction(30000, 1001)) == Fraction(30000, 1001)
    for rate in (0, -1, float("nan"), 1e6):
        with pytest.raises(ValueError, match="frame rate"):
            as_rate(rate)


def test_senseless_requests_are_refused(tmp_path: Path) -> None:
    for size, seconds in (((1, 48), None), ((64, 48), 0), ((64, 48), float("inf")), ((64, 20000), None)):
        with pytest.raises(ValueError, match="cannot write"):
            VideoWriter(tmp_path / "a.mp4", size, 25, seconds=seconds)
    with pytest.raises(ValueError, match="finite mono"):
        written(tmp_path / "a.mp4", 1, audio=torch.full((10,), float("nan")))
    assert list(tmp_path.iterdir()) == []
