"""Windows of speech against the published arithmetic and against the whole recording."""

import numpy as np
import pytest
import torch

from common.audio.lipsync_features import speech_features
from common.errors import UserError
from lipsync.windows import cut_windows, drawing_window, features_between, window_start


def test_starts_are_those_of_the_published_code() -> None:
    frames = np.arange(-3, 400)
    assert window_start(frames).tolist() == [int(80.0 * (frame / 25.0)) for frame in frames.tolist()]
    # wav2lip_train.py: get_segmented_mels(start) takes crop_audio_window(i - 2) for i from start + 1 on.
    published = [int(80.0 * ((i - 2) / 25.0)) for i in range(8, 13)]
    assert drawing_window(np.arange(7, 12)).tolist() == published
    # inference.py: start_idx = int(i * 80 / fps)
    assert drawing_window(np.arange(7, 12), "upstream").tolist() == [int(i * (80.0 / 25.0)) for i in range(7, 12)]
    with pytest.raises(UserError, match="align"):
        drawing_window(frames, "late")


def test_windows_outside_are_silence() -> None:
    features, silence = torch.arange(60.0).view(3, 20), torch.tensor([-4.0, -5.0, -6.0])
    windows = cut_windows(features, np.array([-3, 0, 10, 40]), silence)
    assert windows.shape == (4, 1, 3, 16)
    for row, start in enumerate((-3, 0, 10, 40)):
        for place in range(16):
            inside = 0 <= start + place < 20
            expected = features[:, start + place] if inside else silence
            assert torch.equal(windows[row, 0, :, place], expected)


@pytest.mark.parametrize("mode", ["mel", "mel+mfcc"])
def test_a_part_of_the_recording_gives_the_whole_ones_features(mode: str) -> None:
    speech = speech_features(mode)
    for samples in (5000, 16050):
        wave = torch.randn(samples, generator=torch.Generator().manual_seed(samples)) * 0.1
        whole = speech(wave[None])[0]
        for start, stop in ((0, 3), (-4, 9), (11, 20), (samples // 200 - 2, samples // 200 + 30)):

            def read(first: int, count: int, wave: torch.Tensor = wave) -> torch.Tensor:
                return wave[first : first + count]

            part = features_between(speech, read, samples, start, stop)
            torch.testing.assert_close(part, whole[:, max(0, start) : stop], rtol=1e-5, atol=1e-5)
