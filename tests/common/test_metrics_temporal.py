import numpy as np
import pytest
import scipy.ndimage
import torch
from torch import Tensor

from common.metrics.image import box_masks
from common.metrics.path_length import PixelDistance
from common.metrics.temporal import (
    TemporalConsistency,
    flicker,
    landmark_jerk,
    temporal_lpips,
    visible_in_both,
    warp_by_flow,
    warping_error,
)


def smooth(height: int = 33, width: int = 41, seed: int = 0) -> Tensor:
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.uniform(-0.9, 0.9, (1, 3, 5, 5)))
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")[0].clamp(-1, 1).float()


def sliding(frames: int, step: int = 1) -> Tensor:
    """(T,3,33,41): a window that moves right by `step` pixels per frame over a wide picture."""
    wide = smooth(33, 41 + step * frames)
    return torch.stack([wide[:, :, t * step : t * step + 41] for t in range(frames)])


class Shift:
    """A flow that knows that everything moves by (dx, dy) per frame, and back on the way back."""

    def __init__(self, dx: float, dy: float = 0.0) -> None:
        self.motion = torch.tensor([dx, dy])
        self.calls = 0

    def __call__(self, first: Tensor, second: Tensor) -> Tensor:
        self.calls += 1
        sign = 1 if self.calls % 2 else -1
        return (sign * self.motion)[None, :, None, None].expand(len(first), 2, *first.shape[-2:])


def still(first: Tensor, second: Tensor) -> Tensor:
    return first.new_zeros(len(first), 2, *first.shape[-2:])


def test_warping_equals_scipy() -> None:
    rng = np.random.default_rng(0)
    picture = rng.uniform(0, 1, (9, 13))
    flow = rng.uniform(-3, 3, (2, 9, 13))
    warped, inside = warp_by_flow(torch.from_numpy(picture)[None, None], torch.from_numpy(flow)[None])
    y, x = np.mgrid[:9, :13]
    expected = scipy.ndimage.map_coordinates(picture, [y + flow[1], x + flow[0]], order=1, mode="nearest")
    np.testing.assert_allclose(warped[0, 0], expected, atol=1e-12)
    target = (y + flow[1], x + flow[0])
    reference = (target[0] >= 0) & (target[0] <= 8) & (target[1] >= 0) & (target[1] <= 12)
    np.testing.assert_array_equal(inside[0, 0], reference)


def test_a_window_that_slides_over_a_picture_has_no_warping_error() -> None:
    video = sliding(6, step=2)
    assert float(warping_error(video, Shift(-2.0)).max()) < 1e-9
    assert float(warping_error(video, still).min()) > 1e-4


def test_warping_error_equals_a_plain_loop() -> None:
    rng = np.random.default_rng(1)
    video = torch.from_numpy(rng.uniform(-1, 1, (4, 3, 8, 10))).float()
    flow = Shift(0.6, -0.3)
    mask = torch.zeros(4, 1, 8, 10, dtype=torch.bool)
    mask[:, :, 2:7, 1:6] = True
    got = warping_error(video, flow, masks=mask)
    frames = ((video.numpy() + 1) * 127.5).round() / 255
    for t in range(3):
        total, count = 0.0, 0
        for y in range(2, 7):
            for x in range(1, 6):
                if not (0 <= x + 0.6 <= 9 and 0 <= y - 0.3 <= 7):
                    continue
                for channel in range(3):
                    place = [[y - 0.3], [x + 0.6]]
                    there = scipy.ndimage.map_coordinates(frames[t + 1, channel], place, order=1)[0]
                    total += (frames[t, channel, y, x] - there) ** 2
                    count += 1
        assert float(got[t]) == pytest.approx(total / count, rel=1e-4)


def test_long_clips_are_worked_off_in_pieces_with_the_same_result() -> None:
    video = sliding(40)
    single = torch.cat([warping_error(video[t : t + 2], Shift(-1.0)) for t in range(39)])
    torch.testing.assert_close(warping_error(video, Shift(-1.0)), single)
    parts = torch.cat([flicker(video[t : t + 3]) for t in range(38)])
    torch.testing.assert_close(flicker(video), parts)


def test_what_is_hidden_or_torn_is_not_trusted() -> None:
    forward = torch.zeros(1, 2, 12, 16)
    forward[:, 0, :, 8:] = 4.0
    backward = torch.zeros(1, 2, 12, 16)
    backward[:, 0, :, 12:] = -4.0
    trusted = visible_in_both(forward, backward)[0, 0]
    assert trusted[:, :7].all()
    assert not trusted[:, 7].any()  # the edge of what moves
    assert trusted[:, 8:12].all()
    assert not trusted[:, 12:].any()  # leaves the picture
    lost = visible_in_both(forward, torch.zeros_like(backward))[0, 0]
    assert not lost[:, 8:12].any()  # the way back does not return


def test_a_pair_that_cannot_be_trusted_has_no_error() -> None:
    assert warping_error(sliding(3), Shift(1000.0)).isnan().all()


def test_motion_of_the_real_video_can_be_the_measure() -> None:
    real, generated = sliding(4), sliding(4).flip(-1)
    seen = []

    def flow(first: Tensor, second: Tensor) -> Tensor:
        seen.append(first)
        return still(first, second)

    warping_error(generated, flow, real)
    torch.testing.assert_close(seen[0], ((real[:3] + 1) * 127.5).round() / 255)


def test_flicker_equals_a_plain_loop() -> None:
    rng = np.random.default_rng(2)
    video = rng.integers(0, 256, (5, 3, 7, 9), dtype=np.uint8)
    masks = torch.from_numpy(rng.uniform(size=(5, 1, 7, 9)) > 0.5)
    whole, part = flicker(torch.from_numpy(video)), flicker(torch.from_numpy(video), masks)
    frames = video.astype(np.float64) / 255
    for t in range(3):
        second = np.abs(frames[t] - 2 * frames[t + 1] + frames[t + 2])
        assert float(whole[t]) == pytest.approx(second.mean(), rel=1e-5)
        inside = second[:, masks[t + 1, 0].numpy()]
        assert float(part[t]) == pytest.approx(inside.mean(), rel=1e-5)


def test_a_steady_change_of_brightness_does_not_flicker() -> None:
    ramp = torch.arange(20, dtype=torch.uint8)[:, None, None, None].expand(20, 3, 8, 8)
    assert float(flicker(ramp).max()) < 1e-6
    blink = (torch.arange(20) % 2).to(torch.uint8)[:, None, None, None].expand(20, 3, 8, 8) * 255
    assert flicker(blink).tolist() == pytest.approx([2.0] * 18)


def test_jerk_equals_a_plain_loop_and_vanishes_for_smooth_motion() -> None:
    rng = np.random.default_rng(3)
    points = rng.uniform(0, 9, (9, 68, 3))
    values = landmark_jerk(torch.from_numpy(points), fps=25)
    for t in range(6):
        lengths = [
            np.linalg.norm(points[t + 3, i] - 3 * points[t + 2, i] + 3 * points[t + 1, i] - points[t, i])
            for i in range(68)
        ]
        assert float(values[t]) == pytest.approx(np.mean(lengths) * 25**3)
    time = torch.arange(10, dtype=torch.float64)[:, None, None]
    assert float(landmark_jerk((3 + 2 * time - 0.4 * time**2).expand(10, 68, 2)).max()) < 1e-6
    cubic = landmark_jerk((time / 25) ** 3 * torch.tensor([0.0, 1.0]).expand(1, 68, 2))
    assert cubic.tolist() == pytest.approx([6.0] * 7)
    broken = torch.from_numpy(points)
    broken[4, 7] = torch.nan
    assert landmark_jerk(broken).isnan().tolist() == [t <= 4 <= t + 3 for t in range(6)]


def test_temporal_lpips_compares_steps() -> None:
    video, real = sliding(20, 2), sliding(20, 1)
    values = temporal_lpips(video, real, PixelDistance())
    frames, truth = (2 * (((clip + 1) * 127.5).round() / 255) - 1 for clip in (video, real))
    expected = [
        abs(float((frames[t] - frames[t + 1]).square().mean()) - float((truth[t] - truth[t + 1]).square().mean()))
        for t in range(19)
    ]
    assert values.tolist() == pytest.approx(expected, abs=1e-6)
    assert float(temporal_lpips(real, real, PixelDistance()).max()) == 0


def points(frames: int, seed: int = 0) -> Tensor:
    rng = np.random.default_rng(seed)
    landmarks = torch.from_numpy(rng.normal(0, 0.5, (frames, 68, 2)))
    landmarks[:, 48:] += torch.tensor([20.0, 18.0]) + torch.from_numpy(rng.uniform(-5, 5, (20, 2)))
    return landmarks


def test_the_metric_gives_ratios_of_one_for_the_real_video_itself() -> None:
    metric = TemporalConsistency(flow=still)
    for clip in range(3):
        metric.update(sliding(8, clip + 1), sliding(8, clip + 1), points(8, clip), points(8, clip), clip)
    means, estimates = metric.compute(), metric.estimates()
    for name in ("flicker", "mouth_flicker", "warp", "mouth_warp", "jerk"):
        assert float(means[f"{name}_ratio"]) == pytest.approx(1.0)
        assert float(means[name]) == pytest.approx(float(means[f"real_{name}"])) != 0
        assert estimates[f"{name}_ratio"].low == pytest.approx(1.0)


def test_the_metric_sees_flicker_in_the_mouth_and_a_frozen_face() -> None:
    generator = torch.Generator().manual_seed(0)
    real, marks = sliding(10, 2), points(10)
    noisy = real.clone()
    box = box_masks(torch.tensor([[14, 12, 27, 25]]), 33, 41)
    noisy = torch.where(box, (noisy + 0.3 * torch.randn(real.shape, generator=generator)).clamp(-1, 1), noisy)
    flickering, frozen = TemporalConsistency(), TemporalConsistency()
    flickering.update(noisy, real, marks, marks, 0)
    frozen.update(real[:1].expand_as(real), real, marks[:1].expand_as(marks), marks, 0)
    high, low = flickering.compute(), frozen.compute()
    assert float(high["mouth_flicker_ratio"]) > 2 * float(high["flicker_ratio"]) > 2
    assert float(low["flicker_ratio"]) == pytest.approx(0, abs=1e-9)
    assert float(low["jerk_ratio"]) == pytest.approx(0, abs=1e-9)
    expected = float(flicker(noisy).mean() / flicker(real).mean())
    assert float(high["flicker_ratio"]) == pytest.approx(expected, rel=1e-5)
    assert "warp_ratio" not in high


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_frames_without_a_face_and_no_frames_at_all() -> None:
    metric = TemporalConsistency()
    assert all(value.isnan() for value in metric.compute().values())
    assert metric.estimates()["jerk_ratio"].value is None
    marks = points(8)
    marks[3] = torch.nan
    metric.update(sliding(8), sliding(8), points(8), marks, 0)
    estimates = metric.estimates()
    assert estimates["real_jerk"].n == 1  # 5 windows of 4 frames, of which 4 hold the lost one
    assert estimates["mouth_flicker"].n == 5
    with pytest.raises(ValueError, match="4 frames"):
        metric.update(sliding(3), sliding(3), points(3), points(3), 0)
