"""Any sound file in, mono at the wanted rate out; and what happens to files that are no sound."""

import logging
import struct
import wave
from pathlib import Path

import av
import numpy as np
import pytest
import scipy.signal
import torch

from common.audio.io import StreamResampler, check_voice, load_audio, probe_audio, write_wav
from common.errors import UserError


def tone(rate: int, seconds: float = 1.0, hertz: float = 440.0, level: float = 0.4) -> np.ndarray:
    return (level * np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate)).astype(np.float32)


def encode(path: Path, codec: str, sample_format: str, layout: str, rate: int, channels: np.ndarray) -> None:
    """Encode float (channels, n) with PyAV's own converter."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        stream.codec_context.format = av.AudioFormat(sample_format)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(channels, dtype=np.float32), "fltp", layout)
        frame.sample_rate = rate
        converter = av.AudioResampler(sample_format, layout, rate, frame_size=stream.codec_context.frame_size or None)
        for converted in [*converter.resample(frame), *converter.resample(None)]:
            container.mux(stream.encode(converted))
        container.mux(stream.encode(None))


def write_video(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25, width=32, height=32, pix_fmt="yuv420p")
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8))))
        container.mux(stream.encode(None))


@pytest.mark.parametrize(
    ("name", "codec", "sample_format", "layout", "rate"),
    [
        ("a.wav", "pcm_u8", "u8", "mono", 8000),
        ("b.wav", "pcm_s16le", "s16", "stereo", 44100),
        ("c.wav", "pcm_s32le", "s32", "mono", 48000),
        ("d.wav", "pcm_f32le", "flt", "stereo", 22050),
        ("e.wav", "pcm_f64le", "dbl", "5.1", 96000),
        ("f.flac", "flac", "s16", "stereo", 11025),
        ("g.mp3", "libmp3lame", "s16p", "stereo", 32000),
        ("h.m4a", "aac", "fltp", "stereo", 48000),
        ("i.ogg", "libopus", "flt", "mono", 48000),
        ("j.mkv", "pcm_s16le", "s16", "mono", 16000),
    ],
)
def test_containers_codecs_rates_and_channels(tmp_path, name, codec, sample_format, layout, rate):
    count = av.AudioLayout(layout).nb_channels
    # every channel carries another level, so that a wrong average or a swapped axis shows
    levels = np.linspace(0.2, 1.0, count)[:, None]
    encode(tmp_path / name, codec, sample_format, layout, rate, levels * tone(rate))
    sound = load_audio(tmp_path / name)
    info = probe_audio(tmp_path / name)
    assert sound.dtype == torch.float32
    assert sound.ndim == 1
    assert (info.sample_rate, info.channels) == (rate, count)
    exact = name.endswith(("wav", "flac", "mkv"))
    assert abs(sound.numel() - 16000) <= (0 if exact else 1600)
    assert info.seconds == pytest.approx(sound.numel() / 16000, abs=0.1)
    middle = sound[4000:12000].double().numpy()
    time = 2 * np.pi * 440 * np.arange(8000) / 16000
    amplitude = 2 * np.hypot(middle @ np.sin(time), middle @ np.cos(time)) / 8000
    assert amplitude == pytest.approx(0.4 * levels.mean(), rel=0.01 if exact else 0.08)


def test_pcm16_round_trip_is_exact_and_clipping_follows_the_rule(tmp_path):
    integers = np.random.default_rng(0).integers(-32768, 32768, 1001)
    write_wav(tmp_path / "a.wav", torch.tensor(integers / 32768.0), 16000)
    assert torch.equal(load_audio(tmp_path / "a.wav"), torch.tensor(integers / 32768.0, dtype=torch.float32))
    write_wav(tmp_path / "b.wav", np.array([1.0, -1.0, 2.0, -2.0, 0.5 / 32768, 1.5 / 32768]), 8000)
    with wave.open(str(tmp_path / "b.wav")) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (8000, 1, 2)
        assert struct.unpack("<6h", file.readframes(6)) == (32767, -32768, 32767, -32768, 0, 2)


def test_write_refuses_what_is_not_a_wave(tmp_path):
    for wrong in (torch.zeros(1, 5), torch.tensor([0.0, float("nan")])):
        with pytest.raises(ValueError, match="finite mono"):
            write_wav(tmp_path / "x.wav", wrong, 16000)
    (tmp_path / "x.wav").mkdir()
    with pytest.raises(UserError, match="cannot write"):
        write_wav(tmp_path / "x.wav", torch.zeros(5), 16000)
    assert [path.name for path in tmp_path.iterdir()] == ["x.wav"]


@pytest.mark.parametrize("source", [8000, 11025, 16000, 22051, 44100, 48000])
@pytest.mark.parametrize("samples", [1, 37, 5003])
def test_chunks_do_not_show_and_the_length_is_exact(source, samples):
    rng = np.random.default_rng(samples)
    sound = np.clip(rng.standard_normal(samples) * 0.2, -1, 1).astype(np.float32)

    def resample(cuts: list[int]) -> np.ndarray:
        resampler = StreamResampler(source, 16000)
        pieces = [resampler.push(chunk) for chunk in np.split(sound, cuts)]
        return np.concatenate([*pieces, resampler.finish()])

    whole = resample([])
    assert whole.dtype == np.float32
    assert whole.size == int(samples * 16000 / source + 0.5)
    assert np.array_equal(resample(sorted(rng.integers(0, samples, 9).tolist())), whole)


@pytest.mark.parametrize("source", [8000, 22050, 44100, 48000])
def test_resampling_keeps_the_band_in_phase_and_stops_aliases(source):
    def resample(sound: np.ndarray) -> np.ndarray:
        resampler = StreamResampler(source, 16000)
        half = len(sound) // 3
        return np.concatenate([resampler.push(sound[:half]), resampler.push(sound[half:]), resampler.finish()])

    inside = 0.85 * min(source, 16000) / 2
    kept = resample(tone(source, 3.0, inside))
    expected = tone(16000, 3.0, inside)
    assert np.abs(kept - expected)[500:-500].max() < 2e-4
    reference = scipy.signal.resample_poly(tone(source, 3.0, 500), 16000, source)
    assert np.abs(resample(tone(source, 3.0, 500)) - reference)[500:-500].max() < 5e-3
    if source > 16000:
        assert np.abs(resample(tone(source, 3.0, 8400)))[500:-500].max() < 1e-4


def test_other_target_rates_and_an_early_stop(tmp_path):
    write_wav(tmp_path / "a.wav", torch.tensor(tone(16000, 2.5)), 16000)
    assert load_audio(tmp_path / "a.wav", 44100).numel() == 110250
    assert load_audio(tmp_path / "a.wav", 8000, max_seconds=1.5).numel() == 12000
    whole = load_audio(tmp_path / "a.wav", 22050)
    assert torch.equal(load_audio(tmp_path / "a.wav", 22050, max_seconds=0.3), whole[:6615])
    assert load_audio(tmp_path / "a.wav", max_seconds=99).numel() == 40000
    with pytest.raises(ValueError, match="max_seconds"):
        load_audio(tmp_path / "a.wav", max_seconds=0)


def test_three_hours_of_8_khz_stereo_stop_early(tmp_path):
    data = 3 * 3600 * 8000 * 4
    header = (
        b"RIFF" + struct.pack("<I", 36 + data) + b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 2, 8000, 32000, 4, 16)
    )
    with open(tmp_path / "long.wav", "wb") as file:
        file.write(header + b"data" + struct.pack("<I", data))
        file.truncate(44 + data)  # sparse: takes no room on the disk
    assert probe_audio(tmp_path / "long.wav").seconds == 10800
    assert load_audio(tmp_path / "long.wav", max_seconds=20).numel() == 320000


def test_one_sample_and_non_finite_or_loud_floats(tmp_path):
    write_wav(tmp_path / "one.wav", torch.tensor([0.5]), 16000)
    assert load_audio(tmp_path / "one.wav").tolist() == [0.5]
    values = np.array([[0.25, np.nan, np.inf, -np.inf, 7.0, -7.0]], dtype=np.float32)
    encode(tmp_path / "wild.wav", "pcm_f32le", "flt", "mono", 16000, values)
    assert load_audio(tmp_path / "wild.wav").tolist() == [0.25, 0, 0, 0, 1, -1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty file"),
        (b"no sound at all, just words\n" * 50, "cannot read .* as audio or video"),
        (np.random.default_rng(0).bytes(20000), "cannot read .* as audio or video"),
        (b"RIFF\x24\x00\x00\x00WAVEfmt ", "cannot read .* as audio or video"),
        (b"#EXTM3U\n#EXTINF:3,\nhttp://127.0.0.1:9/x.wav\n#EXT-X-ENDLIST\n", "cannot read .* as audio or video"),
    ],
)
def test_files_that_are_not_sound(tmp_path, content, message):
    path = tmp_path / "x.wav"
    path.write_bytes(content)
    for read in (load_audio, probe_audio):
        with pytest.raises(UserError, match=message) as error:
            read(path)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)


def test_missing_folder_video_only_and_no_samples(tmp_path):
    write_video(tmp_path / "video.mp4")
    write_wav(tmp_path / "none.wav", torch.zeros(0), 16000)
    for path, message in [
        (tmp_path / "absent.wav", "no such file"),
        (tmp_path, "is not a file"),
        (tmp_path / "video.mp4", "has no audio track"),
        (tmp_path / "none.wav", "no sound can be decoded"),
    ]:
        for read in (load_audio, probe_audio):
            with pytest.raises(UserError, match=message):
                read(path)


def test_every_single_corrupted_header_byte_gives_sound_or_a_user_error(tmp_path):
    write_wav(tmp_path / "a.wav", torch.tensor(tone(16000, 0.1)), 16000)
    good = (tmp_path / "a.wav").read_bytes()
    path, refused = tmp_path / "b.wav", 0
    for position in range(44):
        for value in (0, 127, 255):
            path.write_bytes(good[:position] + bytes([value]) + good[position + 1 :])
            try:
                assert load_audio(path, max_seconds=10).numel() > 0
                probe_audio(path)
            except UserError:
                refused += 1
    assert 20 < refused < 120


@pytest.mark.parametrize("name", ["cut.wav", "cut.m4a", "cut.mp3"])
def test_truncated_files_give_what_decodes_and_say_so(tmp_path, name, caplog):
    path = tmp_path / name
    if name == "cut.wav":
        write_wav(path, torch.tensor(tone(16000, 4.0)), 16000)
    elif name == "cut.mp3":
        encode(path, "libmp3lame", "s16p", "mono", 44100, tone(44100, 4.0)[None])
    else:
        with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
            stream = container.add_stream("aac", rate=44100, layout="mono")
            frame = av.AudioFrame.from_ndarray(tone(44100, 4.0)[None], "fltp", "mono")
            frame.sample_rate = 44100
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with caplog.at_level(logging.WARNING):
        sound = load_audio(path)
    assert 1.5 < sound.numel() / 16000 < 2.5
    assert "is damaged" in caplog.text
    with pytest.raises(UserError, match="is damaged"):
        load_audio(path, strict=True)


def test_a_colon_in_the_name_is_no_protocol(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_wav(Path("http:x.wav"), torch.tensor(tone(16000, 0.1)), 16000)
    assert load_audio(Path("http:x.wav")).numel() == 1600


def test_check_voice():
    speech = torch.tensor(np.random.default_rng(0).standard_normal(16000) * 0.05, dtype=torch.float32)
    assert check_voice(speech) is None
    assert check_voice(torch.tensor(tone(16000))) is None
    assert check_voice(speech[:4800]) is None
    assert "too short: 0.20 s" in check_voice(speech[:3200])
    assert "too short" in check_voice(speech[:0])
    assert "silent" in check_voice(torch.zeros(16000))
    assert "silent" in check_voice(speech * 0.01 + 0.3), "a constant offset is not sound"
    assert "clipped" in check_voice((speech * 40).clamp(-1, 1))
    assert "clipped" in check_voice((speech * 40).clamp(-1, 1) * 0.5)
    assert "not finite" in check_voice(torch.full((16000,), float("nan")))


@pytest.mark.media
def test_real_recordings_and_the_sound_of_real_clips(media):
    files = sorted([*(media / "real" / "speech").glob("*.wav"), *(media / "real" / "clips").glob("clip*")])
    assert len(files) >= 10
    for path in files:
        sound = load_audio(path, strict=True)
        assert sound.numel() / 16000 == pytest.approx(probe_audio(path).seconds, abs=0.05), path.name
        assert check_voice(sound) is None, path.name
