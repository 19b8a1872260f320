"""Speech detection: the same as silero-vad's own model, in any block size, rate and thread."""

import itertools
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from common.audio import vad
from common.audio.io import StreamResampler, load_audio
from common.audio.vad import keep_speech, speech_probability, speech_segments
from common.synthetic.sentences import ENGLISH, MANDARIN
from common.synthetic.speech import speak

RATE = 16000


@pytest.fixture(scope="module")
def recording() -> tuple[torch.Tensor, list[tuple[int, int]]]:
    """Three sentences in faint noise with a second and a half of pause around each, and where they are."""
    rng = np.random.default_rng(0)
    pieces, places, position = [], [], 0
    for text, language in ((MANDARIN[1], "cmn"), (ENGLISH[0], "en"), (MANDARIN[12], "cmn")):
        speech = speak(text, language).wave
        pieces += [torch.zeros(24000), speech]
        places.append((position + 24000, position + 24000 + len(speech)))
        position += 24000 + len(speech)
    wave = torch.cat([*pieces, torch.zeros(24000)])
    return wave + torch.tensor(rng.standard_normal(len(wave)) * 1e-4, dtype=torch.float32), places


def covered(segments: list[tuple[int, int]], length: int) -> np.ndarray:
    mask = np.zeros(length, dtype=bool)
    for start, end in segments:
        mask[start:end] = True
    return mask


def test_same_probabilities_and_segments_as_the_package(recording):
    wave = recording[0][:100001]
    silero_vad = pytest.importorskip("silero_vad")
    model = silero_vad.load_silero_vad()
    expected = torch.stack(
        [model(chunk, RATE)[0, 0] for chunk in torch.nn.functional.pad(wave, (0, -len(wave) % 512)).split(512)]
    ).detach()
    assert torch.allclose(speech_probability(wave), expected, atol=1e-4)
    theirs = silero_vad.get_speech_timestamps(wave, model)
    assert speech_segments(wave) == [(segment["start"], segment["end"]) for segment in theirs]


def test_finds_the_sentences_and_keeps_them(recording):
    wave, places = recording
    segments = speech_segments(wave)
    truth, found = covered(places, len(wave)), covered(segments, len(wave))
    assert found[truth].mean() > 0.9
    assert found[~truth].mean() < 0.15
    assert all(start < end for start, end in segments)
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(segments))
    kept = keep_speech(wave)
    assert len(kept) == sum(end - start for start, end in segments)
    assert torch.equal(kept[:100], wave[segments[0][0] : segments[0][0] + 100])


def test_block_size_does_not_show(recording, monkeypatch):
    wave = recording[0][:60000]
    whole = speech_probability(wave)
    monkeypatch.setattr(vad, "_BLOCK", 7)
    assert torch.allclose(speech_probability(wave), whole, atol=1e-5)


@pytest.mark.parametrize("rate", [8000, 44100])
def test_segments_are_in_the_samples_of_the_given_rate(recording, rate):
    wave, _ = recording
    resampler = StreamResampler(RATE, rate)
    other = torch.tensor(np.concatenate([resampler.push(wave.numpy()), resampler.finish()]))
    segments = [(start * RATE / rate, end * RATE / rate) for start, end in speech_segments(other, rate)]
    mine = covered(speech_segments(wave), len(wave))
    theirs = covered([(round(start), round(end)) for start, end in segments], len(wave))
    assert (mine == theirs).mean() > 0.95
    assert segments[-1][1] <= len(wave) + 2


def test_same_every_time_and_on_every_thread(recording):
    wave = recording[0]
    expected = speech_segments(wave)
    speech_segments(wave.flip(0))
    with ThreadPoolExecutor(4) as pool:
        assert all(segments == expected for segments in pool.map(lambda _: speech_segments(wave), range(4)))


def test_the_number_of_threads_is_left_alone(recording, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "silero_vad"]:
        monkeypatch.delitem(sys.modules, name)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        speech_segments(recording[0][:20000])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    "wave",
    [
        torch.zeros(0),
        torch.zeros(1),
        torch.zeros(511),
        torch.zeros(RATE),
        torch.ones(RATE),
        torch.tensor(np.random.default_rng(0).standard_normal(RATE * 2) * 0.1, dtype=torch.float32),
    ],
)
def test_nobody_speaks(wave):
    assert speech_segments(wave) == []
    assert keep_speech(wave).shape == (0,)


def test_wrong_shape_is_refused():
    with pytest.raises(ValueError, match="mono"):
        speech_segments(torch.zeros(2, 100))


@pytest.mark.media
def test_real_recordings_are_mostly_speech(media):
    for path in sorted((media / "real" / "speech").glob("*.wav")):
        wave = load_audio(path)
        kept = keep_speech(wave)
        assert 0.5 < len(kept) / len(wave) <= 1, path.name
        loud, all_of_it = kept.square().mean(), wave.square().mean()
        assert loud > 0.95 * all_of_it, path.name
