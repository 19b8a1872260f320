"""Varied clips: what a louder recording really gives, what stays, and that nothing changes where all is off."""

import pytest
import torch

from common.audio.lipsync_features import MelMFCC, speech_features
from lipsync.config import VaryConfig
from lipsync.vary import CURVES, vary_light, vary_place, vary_voice
from lipsync.windows import cut_windows


@pytest.mark.parametrize("mode", ["mel", "mfcc", "mel+mfcc"])
def test_gain_is_what_a_louder_recording_gives(mode: str) -> None:
    wave = torch.randn(1, 16000, generator=torch.Generator().manual_seed(0)) * 0.03
    speech = speech_features(mode)
    if isinstance(speech, MelMFCC):
        speech.fit([wave[0]])
    quiet, loud = (speech(w)[0] for w in (wave, wave * 10 ** (4.5 / 20)))
    starts = torch.tensor([10, 30]).numpy()
    windows, expected = (cut_windows(found, starts, speech.silence) for found in (quiet, loud))
    varied = vary_voice(
        windows[None], torch.tensor([0.875]), torch.zeros(1, CURVES), VaryConfig(gain=6.0), speech
    )  # 2 * .875 - 1 = .75 of 6 dB
    torch.testing.assert_close(varied[0], expected, rtol=1e-3, atol=2e-3)


def test_timbre_is_smooth_over_bands_the_same_over_time_and_alike_for_mel_and_cepstra() -> None:
    cfg, both = VaryConfig(timbre=3.0), MelMFCC()
    normal = torch.randn(64, CURVES, generator=torch.Generator().manual_seed(1))
    zeros = torch.zeros(64, 2, 1, 119, 16)
    change = vary_voice(zeros, torch.full((64,), 0.5), normal, cfg, both)
    mel = change[:, 0, 0, :80, 0]
    assert torch.equal(change, change[:, :1, :, :, :1].expand_as(change))
    assert float(mel.std()) * 100 / 8 == pytest.approx(3.0, rel=0.25)  # dB
    assert (mel[:, 1:] - mel[:, :-1]).abs().max() < 0.15
    assert (change[:, 0, 0, 93:] == 0).all()
    torch.testing.assert_close(both.cepstra(mel[:, :, None].expand(-1, -1, 9))[:, :13, 0], change[:, 0, 0, 80:93, 0])
    alone = vary_voice(zeros[..., :80, :], torch.full((64,), 0.5), normal, cfg, speech_features("mel"))
    assert torch.equal(alone[..., 0], change[..., :80, 0])


def test_mel_stays_in_its_range() -> None:
    windows = torch.cat([torch.full((1, 1, 1, 80, 16), value) for value in (-4.0, 4.0)], dim=1)
    for uniform in (0.0, 0.99):
        varied = vary_voice(
            windows, torch.tensor([uniform]), torch.zeros(1, CURVES), VaryConfig(gain=20.0), speech_features("mel")
        )
        assert varied.min() >= -4
        assert varied.max() <= 4


def test_light_and_place_change_all_frames_alike_and_by_no_more_than_stated() -> None:
    ramp = torch.linspace(0.2, 0.8, 64).expand(8, 3, 4, 64, 64)
    uniform = torch.rand(8, 4, generator=torch.Generator().manual_seed(2))
    lit = vary_light(ramp, uniform, VaryConfig(light=0.4))
    assert lit.min() >= 0
    assert lit.max() <= 1
    assert (lit - ramp).abs().max() > 0.1
    assert (lit - ramp).abs().max() <= 0.4 * 0.8 + 1e-6
    moved = vary_place(ramp, torch.tensor([[0.5, 1.0, 0.5]]).expand(8, 3), VaryConfig(jitter=0.25))
    torch.testing.assert_close(moved[..., 40], ramp[..., 56], rtol=0, atol=1e-4)
    for changed in (lit, moved):
        assert torch.equal(changed, changed[:, :, :1].expand_as(changed))


def test_nothing_changes_where_all_is_off() -> None:
    faces, windows = torch.rand(2, 3, 4, 32, 32), torch.randn(2, 3, 1, 80, 16)
    off, uniform = VaryConfig(), torch.rand(2, 4)
    assert vary_light(faces, uniform, off) is faces
    assert vary_place(faces, uniform[:, :3], off) is faces
    assert vary_voice(windows, uniform[:, 0], torch.randn(2, CURVES), off, speech_features("mel")) is windows
