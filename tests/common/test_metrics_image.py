from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from common.metrics.image import (
    MAX_PSNR,
    CosineSimilarity,
    ImageQuality,
    box_masks,
    crop_boxes,
    csim,
    image_quality,
    mouth_boxes,
    psnr,
    quantise,
    ssim,
)
from common.metrics.means import frame_means, ratio_of_means
from common.metrics.path_length import LPIPSDistance, PixelDistance

SSIM: dict[str, Any] = dict(
    channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255
)
"""scikit-image's settings for Wang et al. 2004."""


def images(count: int = 3, height: int = 37, width: int = 45, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two batches of uint8 (B,H,W,3): smooth pictures, and noisy copies of them."""
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.uniform(0, 255, (count, 3, 6, 6)))
    smooth = F.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 255)
    real = smooth.permute(0, 2, 3, 1).numpy().round()
    noise = rng.normal(0, 12, real.shape) * np.arange(1, count + 1)[:, None, None, None]
    return (real + noise).clip(0, 255).round().astype(np.uint8), real.astype(np.uint8)


def as_tensor(pictures: np.ndarray) -> Tensor:
    return torch.from_numpy(pictures).permute(0, 3, 1, 2)


def face(count: int, x: float, y: float, width: float = 10.0, height: float = 6.0) -> Tensor:
    """Landmarks (B,68,2) whose mouth fills the box of that size around (x, y)."""
    landmarks = torch.zeros(count, 68, 2)
    angles = torch.arange(20) * (2 * torch.pi / 20)
    landmarks[:, 48:, 0] = x + width / 2 * angles.cos()
    landmarks[:, 48:, 1] = y + height / 2 * angles.sin()
    return landmarks


def test_whole_crop_equals_scikit_image() -> None:
    preds, real = images()
    values = image_quality(as_tensor(preds), as_tensor(real))
    for index in range(3):
        pair = (real[index], preds[index])
        assert float(values["psnr"][index]) == pytest.approx(peak_signal_noise_ratio(*pair), abs=1e-4)
        assert float(values["ssim"][index]) == pytest.approx(structural_similarity(*pair, **SSIM), abs=2e-5)


def test_mouth_figures_equal_loops_over_the_box() -> None:
    preds, real = images()
    boxes = mouth_boxes(face(3, 20, 22), 37, 45)
    assert boxes.tolist() == [[12, 16, 28, 28]] * 3
    values = image_quality(as_tensor(preds), as_tensor(real), boxes)
    for index in range(3):
        cut = (slice(16, 28), slice(12, 28))
        pair = (real[index], preds[index])
        assert float(values["mouth_psnr"][index]) == pytest.approx(
            peak_signal_noise_ratio(pair[0][cut], pair[1][cut]), abs=1e-4
        )
        _, full = structural_similarity(
            *pair,
            channel_axis=2,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=255,
            full=True,
        )
        assert float(values["mouth_ssim"][index]) == pytest.approx(full[cut].mean(), abs=2e-5)


def test_equal_images_are_the_best_there_is() -> None:
    real = as_tensor(images()[1])
    values = image_quality(real, real, mouth_boxes(face(3, 20, 22), 37, 45), lpips=PixelDistance())
    for name, best in (("psnr", MAX_PSNR), ("ssim", 1.0), ("lpips", 0.0)):
        assert values[name].tolist() == pytest.approx([best] * 3, abs=1e-6)
        assert values[f"mouth_{name}"].tolist() == pytest.approx([best] * 3, abs=1e-6)


def test_floats_are_quantised_as_a_file_would() -> None:
    preds, real = (as_tensor(batch) for batch in images())
    floats = preds.float() / 127.5 - 1
    jitter = floats + 0.45 / 127.5 * torch.linspace(-1, 1, floats.numel()).reshape(floats.shape)
    torch.testing.assert_close(quantise(jitter.clamp(-1.5, 1.5)), quantise(preds))
    ours = image_quality(jitter, real.float() / 127.5 - 1)
    torch.testing.assert_close(ours["psnr"], image_quality(preds, real)["psnr"])
    assert quantise(torch.tensor([[[[-3.0, 3.0]]]])).flatten().tolist() == [0.0, 1.0]


def test_a_mouth_at_the_border_or_nowhere() -> None:
    landmarks = face(4, 2, 3)
    landmarks[1, 50] = torch.nan
    landmarks[2] += 500
    landmarks[3] = 0
    boxes = mouth_boxes(landmarks, 37, 45)
    assert boxes.tolist() == [[0, 0, 10, 9], [0] * 4, [0] * 4, [0] * 4]
    preds, real = (as_tensor(batch) for batch in images(4))
    values = image_quality(preds, real, boxes, lpips=PixelDistance())
    for name in ("mouth_psnr", "mouth_ssim", "mouth_lpips"):
        assert values[name].isnan().tolist() == [False, True, True, True]
    assert not values["psnr"].isnan().any()


def test_crops_are_the_box_and_nothing_else() -> None:
    picture = torch.arange(12 * 10, dtype=torch.float32).reshape(1, 1, 12, 10)
    box = torch.tensor([[2, 3, 8, 9]])
    torch.testing.assert_close(crop_boxes(picture, box, side=6), picture[..., 3:9, 2:8])
    half = crop_boxes(picture, box, side=3)
    blocks = F.avg_pool2d(picture[..., 3:9, 2:8], 2)
    torch.testing.assert_close(half, blocks)
    assert not crop_boxes(picture, torch.zeros(1, 4, dtype=torch.int64)).any()


def test_masks_equal_slices() -> None:
    masks = box_masks(torch.tensor([[1, 2, 4, 5], [0, 0, 0, 0]]), 6, 7)
    expected = torch.zeros(2, 1, 6, 7, dtype=torch.bool)
    expected[0, 0, 2:5, 1:4] = True
    assert torch.equal(masks, expected)


def test_lpips_is_called_on_quantised_images_and_on_the_mouth() -> None:
    torch.manual_seed(0)
    from torchmetrics.functional.image.lpips import _NoTrainLpips  # random weights instead of AlexNet's file

    distance = LPIPSDistance(_NoTrainLpips(net="alex", pretrained=False, pnet_rand=True).eval(), "random")
    preds, real = (as_tensor(batch) for batch in images(2))
    boxes = mouth_boxes(face(2, 20, 22), 37, 45)
    values = image_quality(preds, real, boxes, lpips=distance)
    first, second = (2 * quantise(batch) - 1 for batch in (preds, real))
    torch.testing.assert_close(values["lpips"], distance(first, second))
    cut = [F.interpolate(batch[..., 16:28, 12:28], (64, 64), mode="bilinear") for batch in (first, second)]
    torch.testing.assert_close(values["mouth_lpips"], distance(*cut), atol=1e-3, rtol=0.02)
    assert (values["lpips"] > 0).all()


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="two batches"):
        image_quality(torch.zeros(2, 3, 16, 16), torch.zeros(2, 3, 16, 17))
    with pytest.raises(ValueError, match="11 px"):
        ssim(torch.zeros(1, 3, 10, 30), torch.zeros(1, 3, 10, 30))
    with pytest.raises(ValueError, match="landmarks"):
        ImageQuality().update(torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 16, 16))


def test_csim_equals_the_cosine() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.standard_normal((2, 5, 8))
    first[3], second[4] = 0, np.nan
    values = csim(torch.from_numpy(first), torch.from_numpy(second))
    for index in range(3):
        cosine = first[index] @ second[index] / np.linalg.norm(first[index]) / np.linalg.norm(second[index])
        assert float(values[index]) == pytest.approx(cosine)
    assert values[3:].isnan().all()
    metric = CosineSimilarity("toy")
    metric.update(torch.from_numpy(first), torch.from_numpy(second))
    assert float(metric.compute()["csim"]) == pytest.approx(float(values[:3].mean()), abs=1e-6)


def test_the_metric_is_the_mean_over_all_frames_with_intervals_over_clips() -> None:
    metric = ImageQuality(lpips=PixelDistance())
    collected: dict[str, list[Tensor]] = {}
    landmarks = face(3, 20, 22)
    landmarks[1] = torch.nan
    for clip in range(4):
        preds, real = (as_tensor(batch) for batch in images(3, seed=clip))
        metric.update(preds, real, landmarks, clip)
        boxes = mouth_boxes(landmarks, 37, 45)
        for name, value in image_quality(preds, real, boxes, lpips=PixelDistance()).items():
            collected.setdefault(name, []).append(value)
    means, estimates = metric.compute(), metric.estimates()
    assert set(means) == set(collected) == {*metric.columns}
    clips = torch.arange(4).repeat_interleave(3)
    for name, values in collected.items():
        column = torch.cat(values)
        assert float(means[name]) == pytest.approx(float(column.nanmean()), rel=1e-5)
        estimate = estimates[name]
        assert estimate.value == pytest.approx(float(means[name]), rel=1e-5)
        assert estimate.n == (8 if name.startswith("mouth") else 12)
        by_clip = [float(column[clips == clip].nanmean()) for clip in range(4)]
        assert estimate.low is not None
        assert estimate.high is not None
        assert min(by_clip) <= estimate.low < estimate.value < estimate.high <= max(by_clip)


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_ranks_are_joined_even_where_one_has_seen_nothing() -> None:
    """`dist_sync_fn` plays the other rank: it gives the gathered state of both, told apart by their types."""
    full = ImageQuality(mouth=False)
    full.update(*(as_tensor(batch) for batch in images()), clips=7)
    theirs = {torch.float32: full.rows[0], torch.int64: full.clips[0]}
    for seen in (False, True):
        metric = ImageQuality(
            mouth=False,
            dist_sync_fn=lambda state, group=None: [state, theirs[state.dtype]],
            distributed_available_fn=lambda: True,
        )
        if seen:
            metric.update(*(as_tensor(batch) for batch in images(seed=1)), clips=8)
        expected = torch.cat([*metric.rows, full.rows[0]]).double().mean(dim=0)
        assert torch.stack(list(metric.compute().values())).tolist() == pytest.approx(expected.tolist())
        assert metric.estimates()["psnr"].n == 3 + 3 * seen
        assert (metric.estimates()["psnr"].low is not None) == seen


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_an_empty_metric_has_no_mean() -> None:
    metric = ImageQuality(mouth=False)
    assert all(value.isnan() for value in metric.compute().values())
    assert metric.estimates()["psnr"].value is None


def test_ratios_divide_sums_and_resample_clips() -> None:
    over, under = torch.tensor([1.0, 2.0, torch.nan, 6.0]), torch.tensor([2.0, 2.0, 1.0, 2.0])
    estimate = ratio_of_means(over, under, torch.tensor([0, 0, 0, 1]))
    assert estimate.value == pytest.approx(9 / 6)
    assert (estimate.low, estimate.high) == (pytest.approx(0.75), pytest.approx(3.0))
    assert estimate.n == 3
    assert ratio_of_means(over, under * 0, torch.arange(4)).value is None
    assert ratio_of_means(over[2:3], under[2:3], torch.arange(1)).value is None
    assert ratio_of_means(over[:1], under[:1], torch.arange(1)).low is None


def test_frames_without_clips_stand_for_themselves() -> None:
    estimate = frame_means({"a": torch.tensor([1.0, 3.0, torch.nan])})["a"]
    assert (estimate.value, estimate.low, estimate.high, estimate.n) == (2.0, 1.0, 3.0, 2)


def test_psnr_of_a_known_difference() -> None:
    first = torch.zeros(1, 3, 4, 4)
    assert float(psnr(first, first + 0.1)) == pytest.approx(20.0, abs=1e-5)
