"""Streaming of speech and pictures for dubbing: the same as all at once, whatever the pieces."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from common.audio.io import load_audio, write_wav
from common.audio.lipsync_features import speech_features
from common.dubbing import speech as module
from common.dubbing.footage import Playback, Shown, open_footage
from common.dubbing.speech import Speech, listen, samples
from common.errors import UserError
from common.video import read_times, read_wave
from lipsync import speech as features
from lipsync.infer import LipSync
from lipsync.speech import SpeechWindows, feature_blocks
from lipsync.windows import cut_windows
from tests.common.toy_media import loud, voice
from tests.common.toy_videos import index_of, make_video
from tests.lipsync.toy_dub import Witness


def model(mode: str) -> LipSync:
    features = speech_features(mode)  # type: ignore[arg-type]
    network = Witness()
    network.rows = features.rows
    return LipSync(network, features)


def heard_by(wave: Tensor) -> list[tuple[int, int]]:
    return loud(wave, 16000)


@pytest.mark.parametrize("mode", ["mel", "mfcc", "mel+mfcc"])
@pytest.mark.parametrize("count", [100, 1600, 8000, 8001, 16000, 16123, 31999])
def test_features_in_pieces_are_those_of_the_whole(mode: str, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "_PIECE", 40 * 200)
    wave = voice(2.0)[:count] + 0.01 * torch.randn(count, generator=torch.Generator().manual_seed(0))
    network = model(mode)
    chunks = iter(np.array_split(wave.numpy(), 7))
    found = torch.cat(list(feature_blocks(chunks, network)), dim=1)
    assert found.shape == (network.rows, count // 200 + 1)
    assert torch.allclose(found, network.hear(wave), atol=1e-4)


def test_windows_are_those_of_the_whole_recording_and_silent_outside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "_PIECE", 30 * 200)
    write_wav(tmp_path / "a.wav", voice(1.3))
    network = model("mel")
    found = listen(tmp_path / "a.wav", heard_by)
    assert found.seconds == 1.3
    windows = SpeechWindows(found, network, quiet=False)
    starts = np.array([-20, -3, 0, 0, 5, 17, 40, 60, 88, 99, 104, 110, 300, 301])
    taken = torch.cat([windows.take(part) for part in np.split(starts, [2, 3, 7, 12])])
    whole = network.hear(load_audio(tmp_path / "a.wav"))
    assert torch.allclose(taken, cut_windows(whole, starts, network.silence), atol=1e-4)
    assert (taken[0] == -4).all()
    assert (taken[-2:] == -4).all()


def test_quiet_windows_are_silent_between_words(tmp_path: Path) -> None:
    wave = voice(3.0) + 0.005 * torch.randn(48000, generator=torch.Generator().manual_seed(0))
    wave[16000:32000] *= 0.2  # a noise that is no speech
    write_wav(tmp_path / "a.wav", wave)

    def outer(samples: Tensor) -> list[tuple[int, int]]:
        return [(0, 16000), (32000, 48000)]

    network, speech = model("mel"), listen(tmp_path / "a.wav", outer)
    starts = np.arange(0, 224, 8)
    loudly = SpeechWindows(speech, network, quiet=False).take(starts)
    quietly = SpeechWindows(speech, network, quiet=True).take(starts)
    silent = (quietly == -4).all(dim=3).all(dim=2).all(dim=1).numpy()
    # Words end at 80 and begin at 160; 8 frames of fading, 16 of the window.
    assert silent.tolist() == [88 <= start <= 152 - 16 for start in starts.tolist()]
    assert not (loudly == -4).flatten(1).all(dim=1).any()
    same = (starts + 16 <= 80) | (starts >= 160)
    assert torch.equal(loudly[same], quietly[same])


def test_activity_is_what_a_plain_loop_finds() -> None:
    spoken = np.array([[0.5, 1.0], [1.05, 2.0], [2.5, 2.6]])
    times = np.linspace(-0.5, 3.5, 401)

    def plain(time: float) -> float:
        gaps = [max(start - time, time - end, 0.0) for start, end in spoken]
        return max(0.0, 1 - min(gaps) / 0.1)

    speech = Speech(Path("x"), 3.0, spoken)
    assert speech.activity(times) == pytest.approx([plain(time) for time in times], abs=1e-9)
    assert (Speech(Path("x"), 3.0, np.zeros((0, 2))).activity(times) == 0).all()


@pytest.mark.parametrize("seconds", [0.6, 2.0, 3.0, 4.5])
def test_listening_in_blocks_finds_the_words_of_the_whole(
    seconds: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BLOCK", 16000)
    monkeypatch.setattr(module, "_AROUND", 6400)
    write_wav(tmp_path / "a.wav", voice(seconds))
    found = listen(tmp_path / "a.wav", heard_by)
    expected = np.array(heard_by(load_audio(tmp_path / "a.wav"))) / 16000
    assert found.seconds == seconds
    assert found.spoken == pytest.approx(expected)


def test_what_is_too_short_to_be_judged_is_speech(tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", voice(0.1))
    assert listen(tmp_path / "a.wav").spoken.tolist() == [[0.0, 0.1]]


def test_silence_is_no_speech_and_memory_holds_a_block_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK", 16000)
    longest = []

    def detect(wave: Tensor) -> list[tuple[int, int]]:
        longest.append(len(wave))
        return []

    write_wav(tmp_path / "a.wav", torch.zeros(160000))
    assert listen(tmp_path / "a.wav", detect).spoken.shape == (0, 2)
    assert max(longest) <= 16000 * 3


@pytest.mark.parametrize("start", [0.0, 0.3])
def test_the_sound_of_a_video_is_on_the_clock_of_its_pictures(start: float, tmp_path: Path) -> None:
    path = make_video(tmp_path / "v.mkv", frames=25, audio="pcm_s16le", audio_rate=16000, audio_start=start)
    found = np.concatenate(list(samples(path, [])))
    assert found == pytest.approx(read_wave(path).numpy(), abs=1e-6)
    assert abs(found.size / 16000 - (1 + start)) < 0.01


def test_sound_that_begins_before_the_pictures_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_video(tmp_path / "v.mkv", frames=25, audio="pcm_s16le", audio_rate=16000)
    real = module.probe_video(path)
    monkeypatch.setattr(module, "probe_video", lambda _: type(real)(**{**vars(real), "audio_start": -0.25}))
    found = np.concatenate(list(samples(path, [])))
    assert found == pytest.approx(load_audio(path).numpy()[4000:], abs=1e-6)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.write_bytes(b""), "empty"),
        (lambda path: path.write_bytes(b"RIFF" + bytes(100)), "cannot read .* as audio or video"),
        (lambda path: make_video(path), "no audio track"),
        (lambda path: path.mkdir(), "not a file"),
    ],
)
def test_what_is_no_sound_is_refused_in_one_line(make: Callable[[Path], object], words: str, tmp_path: Path) -> None:
    path = tmp_path / "sound.mp4"
    make(path)
    with pytest.raises(UserError, match=words) as error:
        listen(path)
    assert "\n" not in str(error.value)


def order(playback: Playback) -> list[int]:
    return [index_of(image) for _, image in playback.pictures()]


@pytest.mark.parametrize("count", [1, 2, 3, 13])
@pytest.mark.parametrize("held", [1 << 27, 4 * 64 * 48 * 3])
def test_pictures_go_forth_and_back(count: int, held: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.dubbing.footage._REVERSED_BYTES", held)
    path = make_video(tmp_path / "v.mp4", frames=count, options={"g": "5", "bf": "2", "crf": "10"})
    playback = Playback(open_footage(path), read_times(path), 1.6)
    cycle = [*range(count), *range(count - 2, 0, -1)]
    expected = [cycle[k % len(cycle)] for k in range(40)]
    assert playback.even
    assert playback.total == 40
    assert [shown.source for shown in playback.shown()] == expected
    assert order(playback) == expected
    assert [shown.time for shown in playback.shown()] == pytest.approx(np.arange(40) / 25)


def test_a_part_of_the_pictures_can_be_played(tmp_path: Path) -> None:
    path = make_video(tmp_path / "v.mp4", frames=20)
    footage = open_footage(path)
    times = np.array([time for time, _ in footage.read_until(0.2)])
    assert len(times) == 5
    assert order(Playback(footage, times, 0.4)) == [0, 1, 2, 3, 4, 3, 2, 1, 0, 1]
    assert len(list(footage.read_until(0.001))) == 1


@pytest.mark.parametrize("container", ["mkv", "mp4"])
def test_uneven_pictures_are_shown_as_long_as_they_were(container: str, tmp_path: Path) -> None:
    times = [0.0, 0.04, 0.2, 0.24, 0.5]
    path = make_video(tmp_path / f"v.{container}", times=times)
    playback = Playback(open_footage(path), read_times(path), 1.3)
    assert not playback.even
    shown = list(playback.shown())
    assert [each.source for each in shown[:8]] == [0, 1, 2, 3, 4, 3, 2, 1]
    last = shown[5].time - shown[4].time
    assert [each.time for each in shown[:5]] == pytest.approx(times, abs=1e-3)
    assert np.diff([each.time for each in shown[5:9]]) == pytest.approx([0.26, 0.04, 0.16], abs=2e-3)
    assert last > 0
    assert all(isinstance(each, Shown) and each.time < 1.3 for each in shown)
    assert order(playback) == [each.source for each in shown]
