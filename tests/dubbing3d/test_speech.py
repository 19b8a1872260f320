"""Windows of cepstra lie around their frames, wherever a recording is read from."""

import numpy as np
import pytest
import torch

from common.audio.psf import psf_mfcc
from dubbing3d.speech import SpeechWindows, raw_cepstra, reader


def wave(samples: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).normal(0, 0.1, samples).astype(np.float32))


def test_windows_are_28_frames_around_a_video_frame() -> None:
    sound = wave(640 * 20)
    padded = torch.cat([torch.zeros(1920), sound, torch.zeros(1920)])  # as the published inference pads
    cepstra = psf_mfcc(padded[None])[0, 0, 1:].T
    found = SpeechWindows()(reader(sound), 0, 20)
    assert found.shape == (20, 28, 12)
    for frame in (0, 7, 16):
        assert torch.allclose(found[frame], cepstra[4 * frame : 4 * frame + 28], atol=2e-4)


def test_any_part_of_a_recording_gives_the_same_windows() -> None:
    sound = wave(640 * 12 + 100)
    speech = SpeechWindows()
    whole = speech(reader(sound), -4, 20)
    for start, count in ((-4, 3), (0, 5), (3, 1), (9, 7)):
        assert torch.allclose(speech(reader(sound), start, count), whole[start + 4 : start + 4 + count], atol=1e-5)
    assert speech(reader(sound), -5, 1).abs().max() < 1e-6  # digital silence


def test_a_click_is_heard_in_the_windows_around_it() -> None:
    sound = torch.zeros(640 * 30)
    sound[640 * 15 + 320] = 1.0
    loud = SpeechWindows()(reader(sound), 0, 30).abs().amax((1, 2)) > 1
    assert torch.nonzero(loud).squeeze(1).tolist() == list(range(12, 19))


def test_standardising_travels_in_the_state() -> None:
    sounds = [wave(16000), 0.3 * wave(8000)]
    speech = SpeechWindows()
    speech.fit(sounds)
    rows = torch.cat([raw_cepstra(reader(sound), 0, (len(sound) - 400) // 160) for sound in sounds])
    assert torch.allclose(speech.mean, rows.mean(0), atol=1e-4)
    assert torch.allclose(speech.deviation, rows.std(0, correction=0), rtol=1e-4)
    other = SpeechWindows()
    other.load_state_dict(speech.state_dict())
    assert torch.equal(other(reader(sounds[0]), 2, 3), speech(reader(sounds[0]), 2, 3))
    speech.fit([torch.zeros(4000)])
    assert torch.equal(speech.deviation, torch.ones(12))


@pytest.mark.parametrize(("start", "count"), [(-7, 3), (5, 4), (-2, 20), (30, 2)])
def test_a_reader_fills_with_silence(start: int, count: int) -> None:
    sound = torch.arange(1.0, 11.0)
    expected = torch.tensor([float(sound[i]) if 0 <= i < 10 else 0.0 for i in range(start, start + count)])
    assert torch.equal(reader(sound)(start, count), expected)
