"""FID and KID against closed forms, scipy and plain loops; small sets, broken images, several ranks."""

import json
import math
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
import torch.multiprocessing as multiprocessing
from torch import Tensor, distributed, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from common.errors import UserError
from common.metrics import fid
from common.metrics.fid import FeatureExtractor, FrechetDistance, KernelDistance, frechet_distance, image_quality
from common.metrics.identity import IdentityMetric
from common.weights import WEIGHTS

pytestmark = pytest.mark.filterwarnings("ignore:.*(before the ``update``|save all extracted).*")


def gaussian(count: int, width: int, seed: int, shift: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=generator, dtype=torch.float64)
    return torch.randn(count, width, generator=generator, dtype=torch.float64) @ mixing + shift


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    return features.mean(dim=0), torch.cov(features.T)


def toy_extractor(size: int = 4) -> FeatureExtractor:
    torch.manual_seed(0)
    return FeatureExtractor("toy", 5, nn.Sequential(nn.Flatten(), nn.Linear(3 * size * size, 5)))


def images(count: int, seed: int, size: int = 4) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_frechet_distance_of_axis_aligned_gaussians_is_the_closed_form():
    variances1, variances2 = torch.tensor([1.0, 4.0, 0.0, 9.0]), torch.tensor([4.0, 1.0, 2.0, 9.0])
    mean1, mean2 = torch.tensor([0.0, 1.0, 0.0, 3.0]), torch.tensor([2.0, 1.0, 0.0, 0.0])
    expected = (4 + 9) + ((variances1.sqrt() - variances2.sqrt()) ** 2).sum()
    distance = frechet_distance(mean1, variances1.diag(), mean2, variances2.diag())
    assert distance.dtype == torch.float64
    assert distance.item() == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize("width", [1, 3, 17])
def test_frechet_distance_equals_scipys_matrix_square_root(width):
    (mean1, cov1), (mean2, cov2) = moments(gaussian(60, width, 1)), moments(gaussian(70, width, 2, shift=0.5))
    cov1, cov2 = cov1.reshape(width, width), cov2.reshape(width, width)
    root = scipy.linalg.sqrtm((cov1 @ cov2).numpy()).real
    expected = ((mean1 - mean2) ** 2).sum().item() + np.trace(cov1.numpy() + cov2.numpy() - 2 * root)
    assert frechet_distance(mean1, cov1, mean2, cov2).item() == pytest.approx(expected, rel=1e-9)


def test_singular_covariances_stay_exact():
    """Fewer images than features: compare with the same sets expressed in a basis of their own span."""
    real, fake = gaussian(6, 40, 3), gaussian(9, 40, 4, shift=0.2)
    basis = scipy.linalg.orth(torch.cat([real, fake]).T.numpy())
    low_real, low_fake = real @ torch.from_numpy(basis), fake @ torch.from_numpy(basis)
    centred = [(rows - rows.mean(dim=0)) / math.sqrt(len(rows) - 1) for rows in (low_real, low_fake)]
    cross = np.linalg.svd((centred[0] @ centred[1].T).numpy(), compute_uv=False).sum()
    expected = (low_real.mean(0) - low_fake.mean(0)).square().sum() + sum(c.square().sum() for c in centred) - 2 * cross
    result = image_quality(real, fake, "toy")
    assert result.fid == pytest.approx(expected.item(), rel=1e-9)
    assert len(result.warnings) == 2
    assert "6 real images for 40 features: the covariance is singular" in result.warnings[0]
    scale = real.var().item() * 40
    assert image_quality(real, real, "toy").fid == pytest.approx(0, abs=1e-9 * scale)
    same = torch.ones(5, 8, dtype=torch.float64)
    assert image_quality(same, same * 3, "toy").fid == pytest.approx(32, rel=1e-12)


def test_fid_of_a_set_with_itself_is_zero_and_order_does_not_matter():
    real, fake = gaussian(300, 6, 5), gaussian(200, 6, 6)
    assert image_quality(real, real, "toy").fid == pytest.approx(0, abs=1e-8)
    assert image_quality(real, real, "toy").warnings == []
    assert image_quality(real, fake, "toy").fid == pytest.approx(image_quality(fake, real, "toy").fid, rel=1e-10)
    assert image_quality(real, fake.flip(0), "toy").to_dict() == image_quality(real, fake, "toy").to_dict()


def kid_by_loops(real: np.ndarray, fake: np.ndarray) -> float:
    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return (float(a @ b) / len(a) + 1) ** 3

    def within(rows: np.ndarray) -> float:
        pairs = [kernel(rows[i], rows[j]) for i in range(len(rows)) for j in range(len(rows)) if i != j]
        return sum(pairs) / len(pairs)

    between = [kernel(a, b) for a in real for b in fake]
    return within(real) + within(fake) - 2 * sum(between) / len(between)


def test_kid_and_its_interval_equal_plain_loops():
    real, fake = gaussian(7, 4, 7).numpy(), gaussian(11, 4, 8).numpy()
    kid = image_quality(torch.from_numpy(real), torch.from_numpy(fake), "toy").kid
    assert kid.value == pytest.approx(kid_by_loops(real, fake), rel=1e-10)
    variance = 0.0
    for left_out in (0, 1):
        sets = [real, fake]
        values = []
        for item in range(len(sets[left_out])):
            reduced = list(sets)
            reduced[left_out] = np.delete(sets[left_out], item, axis=0)
            values.append(kid_by_loops(*reduced))
        variance += (len(values) - 1) * np.var(values)
    assert kid.high - kid.value == pytest.approx(1.959964 * math.sqrt(variance), rel=1e-8)
    assert kid.value - kid.low == pytest.approx(kid.high - kid.value, rel=1e-12)


def test_kid_in_blocks_equals_kid_at_once(monkeypatch):
    real, fake = gaussian(23, 4, 9), gaussian(10, 4, 10)
    whole = [sums.tolist() for sums in fid._kernel_sums(real, fake, same=False)]
    whole += [fid._kernel_sums(real, real, same=True)[0].tolist()]
    pieces = [sums.tolist() for sums in fid._kernel_sums(real, fake, same=False, rows=7)]
    pieces += [fid._kernel_sums(real, real, same=True, rows=7)[0].tolist()]
    for one, other in zip(whole, pieces, strict=True):
        assert one == pytest.approx(other, rel=1e-12)


def test_kid_is_unbiased_around_zero_and_its_interval_covers():
    values, covered = [], 0
    for trial in range(150):
        both = torch.randn(40, 3, generator=torch.Generator().manual_seed(trial), dtype=torch.float64)
        kid = image_quality(both[:15], both[15:], "toy").kid
        values.append(kid.value)
        covered += kid.low <= 0 <= kid.high
    assert abs(np.mean(values)) < 3 * np.std(values) / math.sqrt(len(values))
    assert min(values) < 0 < max(values)
    assert covered >= 0.9 * len(values)


def test_metrics_equal_torchmetrics_and_the_functions():
    extractor = toy_extractor()
    ours, kernel = FrechetDistance(extractor), KernelDistance(extractor)
    theirs = FrechetInceptionDistance(feature=extractor, normalize=True).set_dtype(torch.float64)
    theirs_kernel = KernelInceptionDistance(feature=extractor, subsets=1, subset_size=12)
    for batch in images(12, 0).split(5):
        for metric in (ours, kernel, theirs, theirs_kernel):
            metric.update(batch, real=True)
    for batch in (images(12, 1) * 0.5).split(7):
        for metric in (ours, kernel, theirs, theirs_kernel):
            metric.update(batch, real=False)
    assert ours.compute().item() == pytest.approx(theirs.compute().item(), rel=1e-5)
    assert kernel.compute()[0].item() == pytest.approx(theirs_kernel.compute()[0].item(), rel=1e-4)
    result = image_quality(
        fid.extract(extractor, images(12, 0).split(4)), fid.extract(extractor, [images(12, 1) * 0.5]), extractor.name
    )
    assert ours.compute().item() == pytest.approx(result.fid, rel=1e-6)
    assert kernel.compute()[0].item() == pytest.approx(result.kid.value, rel=1e-6)
    assert (ours.name, kernel.name) == ("fid[toy]", "kid[toy]")


def test_a_metric_adds_nothing_to_checkpoints_and_keeps_its_network_frozen():
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, 5), nn.BatchNorm1d(5), nn.Dropout(0.5))
    module = nn.Module()
    module.metric = FrechetDistance(FeatureExtractor("toy", 5, network), reset_real_features=False)
    assert module.state_dict() == {}
    assert list(module.parameters()) == []
    before = network[1].weight.clone()
    module.train()
    module.half()
    assert torch.equal(network[1].weight, before), "a judge's precision must not follow the training's"
    with torch.autocast("cpu", torch.bfloat16):
        features = module.metric.inception(images(8, 0).bfloat16())
    assert features.dtype == torch.float32
    assert torch.equal(features, network(images(8, 0).bfloat16().float()))
    module.metric.update(images(8, 0), real=True)
    module.metric.update(images(8, 1), real=False)
    assert network[2].running_mean.abs().sum() == 0, "a frozen judge moved its buffers"
    assert not any(parameter.requires_grad for parameter in network.parameters())
    module.metric.reset()
    assert module.metric.compute().isnan(), "one side is empty"
    module.metric.update(images(8, 2), real=False)
    assert module.metric.compute() > 0, "the real side was kept"
    assert all(value.isnan() for value in KernelDistance(toy_extractor()).compute())


def test_result_names_extractor_and_counts_and_is_the_same_json_each_time():
    real, fake = gaussian(30, 4, 1).float(), gaussian(20, 4, 2).float()
    texts = {json.dumps(image_quality(real, fake, "dlib_resnet_v1").to_dict(), allow_nan=False) for _ in range(3)}
    assert len(texts) == 1
    result = json.loads(texts.pop())
    assert (result["extractor"], result["n_real"], result["n_fake"], result["features"]) == (
        "dlib_resnet_v1",
        30,
        20,
        4,
    )
    assert result["fid[dlib_resnet_v1]"] > 0
    assert result["kid[dlib_resnet_v1]"].keys() == {"value", "low", "high", "n"}


def test_sets_without_a_figure_say_why():
    real = gaussian(4, 3, 1)
    for fake, reason in [
        (real[:0], "0 fake image(s)"),
        (real[:1], "1 fake image(s)"),
        (real * torch.nan, "4 of 4 fake"),
    ]:
        result = image_quality(real, fake, "toy").to_dict()
        assert result["fid[toy]"] is None
        assert result["kid[toy]"]["value"] is None
        assert reason in result["warnings"][0]
        json.dumps(result, allow_nan=False)
    two = image_quality(real, real[:2], "toy")
    assert (two.kid.low, two.kid.reason) == (None, "no interval below 3 images")
    broken = images(3, 0)
    broken[1, 0, 2, 2] = torch.inf
    assert toy_extractor()(broken).isnan().all(dim=1).tolist() == [False, True, False]


def test_bytes_are_rounded_and_clipped():
    exact = torch.arange(256).float() / 127.5 - 1
    assert fid.to_uint8(exact).tolist() == list(range(256))
    assert fid.to_uint8(torch.tensor([-3.0, 1.7, 0.0])).tolist() == [0, 255, 128]


class FakeEmbedder:
    """Mean colour as an "identity"; checks what it is handed."""

    name, dim = "fake_identity", 3

    def embed(self, crops) -> Tensor:
        assert all(crop.shape == (4, 6, 3) and crop.dtype == np.uint8 for crop in crops)
        return nn.functional.normalize(torch.tensor(np.array([crop.mean(axis=(0, 1)) for crop in crops])), dim=1)


def test_embedder_as_extractor_gets_rgb_bytes(monkeypatch):
    red = torch.full((2, 3, 4, 6), -1.0)
    red[:, 0] = 1.0
    extractor = fid.embedder_extractor(FakeEmbedder())
    assert (extractor.name, extractor.num_features) == ("fake_identity", 3)
    assert extractor(red).tolist() == [[1.0, 0.0, 0.0]] * 2


def test_extractors_by_name(monkeypatch, tmp_path):
    monkeypatch.setenv("SPEECHFACE_WEIGHTS", str(tmp_path))
    monkeypatch.setattr("common.faces.load_embedder", lambda name: FakeEmbedder(), raising=False)
    monkeypatch.setitem(
        WEIGHTS,
        "inception2015",
        WEIGHTS["inception2015"].__class__(
            "inception2015", "inception.pth", "https://example.org", "Apache-2.0", "test", "0" * 64, "file:///absent"
        ),
    )
    assert fid.load_extractor("auto").name == "fake_identity"
    assert fid.load_extractor("dlib").name == "fake_identity"
    with pytest.raises(UserError, match=r"cannot be reached.*inception\.pth.*put it at"):
        fid.load_extractor("inception2015")
    with pytest.raises(UserError, match=r"inception2015.*missing"):
        fid.inception_extractor(tmp_path / "absent.pth")
    with pytest.raises(UserError, match="unknown feature extractor 'vgg'; known: inception2015, dlib, auto"):
        fid.load_extractor("vgg")


def test_inception_from_a_file(monkeypatch, tmp_path):
    from torch_fidelity import feature_extractor_inceptionv3 as fidelity

    with monkeypatch.context() as patch:
        patch.setattr(fidelity, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(fidelity.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        network = fidelity.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    path = tmp_path / "own_inception.pth"
    torch.save(network.state_dict(), path)
    extractor = fid.inception_extractor(path)
    batch = images(2, 3, size=20)
    expected = network(((batch + 1) * 127.5).round().to(torch.uint8))[0]
    assert (extractor.name, extractor(batch).shape) == ("inception2015", (2, 2048))
    assert torch.equal(extractor(batch), expected)
    torch.save({"weight": torch.zeros(3)}, path)
    with pytest.raises(UserError, match="does not fit the 2015 Inception network"):
        fid.inception_extractor(path)
    torch.save({"weight": torch.zeros(3), "code": Path}, path)
    with pytest.raises(UserError, match="refused"):
        fid.inception_extractor(path)


def identities_of(rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Generated faces on rank 1 only, real faces on both."""
    rows = torch.randn(8, 6, generator=torch.Generator().manual_seed(10 + rank))
    return (rows[:0] if rank == 0 else rows[:4]), rows[4:], torch.arange(4)


def figures(ranks: list[int]) -> dict[str, Tensor]:
    """All metrics over what the given ranks see: uneven batches, and rank 0 sees no fake image for KID."""
    distance, kernel, identity = (
        FrechetDistance(toy_extractor()),
        KernelDistance(toy_extractor()),
        IdentityMetric(6, (1, 2)),
    )
    for rank in ranks:
        distance.update(images(9, rank), real=True)
        distance.update(images(5 + rank, rank + 5), real=False)
        for batch in images(4 + 3 * rank, rank).split(3):
            kernel.update(batch, real=True)
        generated, real, ids = identities_of(rank)
        identity.update(real, ids, "real")
        if rank == 1:
            kernel.update(images(6, 7), real=False)
            identity.update(generated, ids, "generated")
    value, error = kernel.compute()
    return {"fid": distance.compute(), "kid": value, "kid_error": error, **identity.compute()}


def run_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2, timeout=timedelta(seconds=120)
    )
    torch.save(figures([rank]), f"{folder}/rank{rank}.pt")
    distributed.destroy_process_group()


def test_two_ranks_give_the_figures_of_one(tmp_path):
    multiprocessing.spawn(run_rank, (str(tmp_path),), nprocs=2)
    expected = figures([0, 1])
    for rank in (0, 1):
        found = torch.load(tmp_path / f"rank{rank}.pt", weights_only=True)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert found[name].item() == pytest.approx(value.item(), rel=1e-9), name
