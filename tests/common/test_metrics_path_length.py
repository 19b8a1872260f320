"""Path length: a linear generator has one in closed form; settings, crops, names and hostile generators."""

import json
import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.models import alexnet

from common.errors import UserError
from common.metrics.path_length import (
    FeatureDistance,
    PixelDistance,
    different_pairs,
    lpips_distance,
    path_length,
)


def latents(count: int, *shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, *shape, generator=generator, dtype=torch.float64)


class LinearGenerator:
    """Image = A w, any latent shape."""

    def __init__(self, width: int, size: tuple[int, int] = (8, 8), seed: int = 9) -> None:
        self.size = size
        self.matrix = latents(3 * size[0] * size[1], width, seed=seed) * 0.1
        self.seen: list[Tensor] = []

    def __call__(self, w: Tensor) -> Tensor:
        self.seen.append(w)
        return (w.flatten(1) @ self.matrix.T.to(w.dtype)).view(-1, 3, *self.size)


def trimmed_mean(values: np.ndarray) -> float:
    ordered = np.sort(values)
    low = ordered[math.floor(0.01 * (len(values) - 1))]
    high = ordered[math.ceil(0.99 * (len(values) - 1))]
    return float(ordered[(ordered >= low) & (ordered <= high)].mean())


@pytest.mark.parametrize("shape", [(7,), (2, 5)])
@pytest.mark.parametrize("sampling", ["end", "full"])
def test_linear_generator_has_its_closed_form(shape, sampling):
    """d = mean (eps A (w2 - w1))² / eps² wherever t lies, so that both samplings give the same."""
    starts, ends = latents(205, *shape), latents(205, *shape, seed=1)
    generator = LinearGenerator(math.prod(shape))
    expected = ((ends - starts).flatten(1) @ generator.matrix.T).square().mean(dim=1).numpy()
    result = path_length(generator, starts, ends, PixelDistance(), sampling=sampling, crop=False, batch_size=32)
    assert result.length.value == pytest.approx(trimmed_mean(expected), rel=1e-6)
    assert result.length.low < result.length.value < result.length.high
    assert result.length.n in (201, 202, 203), "one or two in a hundred fall off at each end"


def test_float32_latents_keep_the_step():
    starts, ends = latents(64, 6), latents(64, 6, seed=1)
    generator = LinearGenerator(6)
    exact = path_length(generator, starts, ends, PixelDistance(), crop=False)
    single = path_length(generator, starts.float(), ends.float(), PixelDistance(), crop=False)
    assert single.length.value == pytest.approx(exact.length.value, rel=5e-3)


def test_ends_start_at_zero_and_full_lies_between():
    starts, ends = torch.zeros(50, 1, dtype=torch.float64), torch.ones(50, 1, dtype=torch.float64)
    end, full = LinearGenerator(1), LinearGenerator(1)
    path_length(end, starts, ends, PixelDistance(), batch_size=50)
    path_length(full, starts, ends, PixelDistance(), batch_size=50, sampling="full", seed=3)
    assert torch.equal(end.seen[-2], starts)
    assert torch.allclose(end.seen[-1], starts + 1e-4, rtol=1e-12)
    times = full.seen[-2]
    assert len(times.unique()) == 50
    assert 0 <= times.min() < 0.2 < 0.8 < times.max() < 1
    assert torch.allclose(full.seen[-1] - times, torch.full_like(times, 1e-4), rtol=1e-9)


@pytest.mark.parametrize("size", [(16, 24), (17, 23)])
def test_crop_is_the_face_of_the_frame(size):
    generator = LinearGenerator(4, size)
    starts, ends = latents(20, 4), latents(20, 4, seed=1)
    change = ((ends - starts) @ generator.matrix.T).view(-1, 3, *size)
    inside = change[:, :, 6:14, 2 * (size[1] // 8) : 6 * (size[1] // 8)].square().flatten(1).mean(dim=1)
    result = path_length(generator, starts, ends, PixelDistance(), crop=True)
    assert result.length.value == pytest.approx(trimmed_mean(inside.numpy()), rel=1e-6)


def test_large_images_are_averaged_down_by_the_factor_of_the_whole():
    class Recording(PixelDistance):
        def __call__(self, first: Tensor, second: Tensor) -> Tensor:
            self.shape = first.shape
            return super().__call__(first, second)

    def synthesize(w: Tensor) -> Tensor:
        return w.view(-1, 1, 1, 1).expand(-1, 3, 512, 512)

    starts, ends = torch.zeros(2, 1), torch.ones(2, 1)
    for crop, shape in [(True, (2, 3, 128, 128)), (False, (2, 3, 256, 256))]:
        distance = Recording()
        path_length(synthesize, starts, ends, distance, crop=crop)
        assert distance.shape == shape


def test_names_and_json():
    starts, ends = latents(12, 4), latents(12, 4, seed=1)
    generator = LinearGenerator(4)
    features = FeatureDistance("mean_colour", lambda images: images.mean(dim=(2, 3)))
    names = {
        path_length(generator, starts, ends, PixelDistance()).name,
        path_length(generator, starts, ends, PixelDistance(), crop=False).name,
        path_length(generator, starts, ends, features, sampling="full").name,
    }
    assert names == {"ppl_wend[pixel_l2]", "ppl2_wend[pixel_l2]", "ppl_wfull[feature_l2[mean_colour]]"}
    texts = {json.dumps(path_length(generator, starts, ends, features).to_dict(), allow_nan=False) for _ in range(3)}
    assert len(texts) == 1
    assert json.loads(texts.pop())["ppl_wend[feature_l2[mean_colour]]"]["value"] > 0


def test_generators_without_a_figure():
    starts, ends = latents(6, 4), latents(6, 4, seed=1)

    def constant(w: Tensor) -> Tensor:
        return torch.zeros(len(w), 3, 8, 8)

    def broken(w: Tensor) -> Tensor:
        return torch.where(w[:, :1] > starts[1:, 0].min(), w[:, :1], torch.inf).view(-1, 1, 1, 1).expand(-1, 3, 8, 8)

    flat = path_length(constant, starts, ends, PixelDistance())
    assert flat.length.value is None
    assert "no change at this epsilon" in flat.length.reason
    odd = path_length(broken, starts, ends, PixelDistance())
    assert odd.length.value is None
    assert "of 6 distances are not finite" in odd.length.reason
    json.dumps([flat.to_dict(), odd.to_dict()], allow_nan=False)
    with pytest.raises(ValueError, match="not deterministic"):
        path_length(lambda w: torch.rand(len(w), 3, 8, 8), starts, ends, PixelDistance())
    with pytest.raises(ValueError, match="must be equal and not empty"):
        path_length(constant, starts, ends[:3], PixelDistance())
    with pytest.raises(ValueError, match="must be equal and not empty"):
        path_length(constant, starts[:0], ends[:0], PixelDistance())


def test_pairs_are_of_different_identities_and_uniform():
    identities = ["b"] * 3 + ["a"] + ["c"] * 2 + ["b"]
    pairs = different_pairs(identities, 6000, seed=1)
    assert pairs.shape == (6000, 2)
    assert all(identities[i] != identities[j] for i, j in pairs.tolist())
    assert torch.equal(pairs, different_pairs(identities, 6000, seed=1))
    assert not torch.equal(pairs, different_pairs(identities, 6000, seed=2))
    partners = torch.bincount(pairs[pairs[:, 0] == 3, 1], minlength=7).double()
    assert partners[3] == 0
    assert partners[[0, 1, 2, 4, 5, 6]].numpy() == pytest.approx(partners.sum().item() / 6, rel=0.25)
    with pytest.raises(UserError, match="fewer than two identities"):
        different_pairs(["a", "a"], 4)


def test_lpips_from_a_backbone_file(tmp_path):
    torch.manual_seed(0)
    backbone = alexnet(weights=None)
    path = tmp_path / "own_alexnet.pth"
    torch.save({name: tensor for name, tensor in backbone.state_dict().items() if "features" in name}, path)
    distance = lpips_distance("alex", path)
    assert distance.name == "lpips_alex"
    first = torch.rand(2, 3, 64, 48) * 2 - 1
    second = (first + 0.2 * torch.randn(first.shape)).clamp(-1, 1)
    values = distance(first, second)
    assert values.shape == (2,)
    assert (values > 0).all()
    assert torch.equal(distance(first, first), torch.zeros(2))
    assert values.tolist() == pytest.approx(lpips_by_hand(backbone, distance, first, second), rel=1e-4)
    assert distance(first[..., :20, :21], second[..., :20, :21]).isfinite().all()

    torch.save({"features.0.weight": torch.zeros(64, 3, 3, 3)}, path)
    with pytest.raises(UserError, match=r"own_alexnet\.pth is no alexnet of torchvision: features\.0\.weight"):
        lpips_distance("alex", path)


def lpips_by_hand(backbone: torch.nn.Module, distance: torch.nn.Module, first: Tensor, second: Tensor) -> list[float]:
    """Zhang et al. 2018, eq. 1, from the layers of the torchvision network and the packaged 1x1 weights."""
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    heads = [linear.model[-1].weight.flatten() for linear in distance.network.lins]
    pair = [(image - shift.view(1, 3, 1, 1)) / scale.view(1, 3, 1, 1) for image in (first, second)]
    total, taken = torch.zeros(len(first)), 0
    with torch.no_grad():
        for index, layer in enumerate(backbone.features[:12]):
            pair = [layer.eval()(image.clone()) for image in pair]
            if index in (1, 4, 7, 9, 11):
                one, two = (F.normalize(image, dim=1) for image in pair)
                total += torch.einsum("bchw,c->bhw", (one - two) ** 2, heads[taken]).mean(dim=(1, 2))
                taken += 1
    return total.tolist()


def test_lpips_without_a_backbone_says_what_to_put_where(monkeypatch, tmp_path):
    monkeypatch.setenv("SPEECHFACE_WEIGHTS", str(tmp_path))
    with pytest.raises(UserError, match=r"vgg16-397923af\.pth.*put it at"):
        lpips_distance("vgg", fetch=False)
