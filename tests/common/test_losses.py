"""Losses against their formulas, known minima and finite differences."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from common.losses import (
    AMSoftmax,
    cosine_distance,
    discriminator_bce,
    discriminator_hinge,
    discriminator_logistic,
    generator_bce,
    generator_hinge,
    generator_logistic,
    gradient_penalty,
    gram,
    info_nce,
    path_length_penalty,
    path_lengths,
    perceptual_distance,
    r1_penalty,
    structural_similarity,
    wasserstein_critic,
)


@pytest.fixture
def logits() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(5, 1, dtype=torch.float64, generator=generator, requires_grad=True) for _ in range(2))


def test_adversarial_losses_equal_their_formulas(logits: tuple[Tensor, Tensor]) -> None:
    real, fake = (x.detach().numpy() for x in logits)
    softplus = lambda x: np.log1p(np.exp(x))  # noqa: E731
    expected = {
        generator_logistic: softplus(-fake).mean(),
        generator_bce: softplus(-fake).mean(),
        generator_hinge: -fake.mean(),
    }
    for loss, value in expected.items():
        assert loss(logits[1]).item() == pytest.approx(value)
    expected = {
        discriminator_logistic: softplus(fake).mean() + softplus(-real).mean(),
        discriminator_bce: softplus(fake).mean() + softplus(-real).mean(),
        discriminator_hinge: np.maximum(0, 1 - real).mean() + np.maximum(0, 1 + fake).mean(),
    }
    for loss, value in expected.items():
        assert loss(*logits).item() == pytest.approx(value)
    smoothed = 0.9 * softplus(-real) + 0.1 * softplus(real)
    value = discriminator_bce(*logits, smoothing=0.1).item()
    assert value == pytest.approx(smoothed.mean() + softplus(fake).mean())


def test_adversarial_losses_differentiate(logits: tuple[Tensor, Tensor]) -> None:
    assert torch.autograd.gradcheck(discriminator_logistic, logits)
    assert torch.autograd.gradcheck(discriminator_bce, logits)
    assert torch.autograd.gradcheck(generator_logistic, logits[1:])
    generator_hinge(logits[1]).backward()
    assert (logits[1].grad < 0).all()  # the generator raises its logits


def test_losses_of_half_precision_logits_are_float32() -> None:
    fake = torch.full((3,), 1e-3, dtype=torch.bfloat16)
    assert generator_logistic(fake).dtype == torch.float32
    assert generator_logistic(fake).item() == pytest.approx(math.log(2) - 5e-4, abs=1e-5)


def test_r1_of_a_quadratic_is_analytic() -> None:
    images = torch.randn(3, 2, 4, 4, dtype=torch.float64)
    scale = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    # logits = scale/2 |x|^2, gradient scale * x, penalty gamma/2 scale^2 mean|x|^2
    loss = r1_penalty(lambda x: scale / 2 * x.square().sum(dim=(1, 2, 3)), images, gamma=10)
    energy = images.square().sum(dim=(1, 2, 3)).mean()
    assert loss.item() == pytest.approx((5 * 1.5**2 * energy).item())
    loss.backward()
    assert scale.grad.item() == pytest.approx((10 * 1.5 * energy).item())
    assert images.grad is None


def test_path_lengths_of_a_linear_generator_are_analytic() -> None:
    torch.manual_seed(0)
    jacobian = torch.randn(3 * 4 * 8, 2 * 5, dtype=torch.float64)
    noise = torch.randn(6, 3, 4, 8, dtype=torch.float64)
    ws = torch.randn(6, 2, 5, dtype=torch.float64)
    lengths = path_lengths(lambda w: (w.flatten(1) @ jacobian.T).view(-1, 3, 4, 8), ws, noise)
    pulled = (noise.flatten(1) / math.sqrt(32)) @ jacobian  # J^T y
    torch.testing.assert_close(lengths, pulled.view(6, 2, 5).square().sum(2).mean(1).sqrt())


def test_path_length_penalty_moves_its_mean_first_and_ranks_agree() -> None:
    ws = torch.randn(4, 1, 3, dtype=torch.float64)
    noise = torch.ones(4, 1, 1, 1, dtype=torch.float64)
    gain = torch.tensor([1.0, 2.0, 3.0, 6.0], dtype=torch.float64, requires_grad=True)

    def synthesis(w: Tensor) -> Tensor:
        return (gain[: len(w)] * w[:, 0, 0])[:, None, None, None]  # length of sample i is gain_i

    mean = torch.tensor(2.0, dtype=torch.float64)
    loss, lengths = path_length_penalty(synthesis, ws, mean, noise=noise, decay=0.5)
    torch.testing.assert_close(lengths, gain.detach())
    target = 2 + 0.5 * (3 - 2)
    assert loss.item() == pytest.approx(((gain - target) ** 2).mean().item())
    loss.backward()
    torch.testing.assert_close(gain.grad, 2 * (gain.detach() - target) / 4)  # the mean is a constant
    assert mean.item() == 2
    half, _ = path_length_penalty(synthesis, ws[:2], mean, noise=noise[:2], decay=0.5, reduce=lambda _: lengths.mean())
    assert half.item() == pytest.approx(((gain[:2] - target) ** 2).mean().item())


def test_a_generator_that_ignores_w_has_a_finite_gradient() -> None:
    scale = torch.zeros((), requires_grad=True)
    loss, _ = path_length_penalty(lambda w: scale * w[:, :, :, None], torch.randn(2, 3, 4), torch.tensor(1.0))
    loss.backward()
    assert torch.isfinite(scale.grad)


def test_info_nce_is_the_mean_of_both_cross_entropies() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(4, 6, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(2))
    cosines = torch.nn.functional.cosine_similarity(a[:, None], b[None], dim=2).detach().numpy() / 0.1
    rows = [np.log(np.exp(cosines[i]).sum()) - cosines[i, i] for i in range(4)]
    columns = [np.log(np.exp(cosines[:, i]).sum()) - cosines[i, i] for i in range(4)]
    assert info_nce(a, b, temperature=0.1).item() == pytest.approx((np.mean(rows) + np.mean(columns)) / 2)
    assert torch.autograd.gradcheck(lambda a, b: info_nce(a, b, temperature=0.5), (a, b))
    assert info_nce(torch.eye(4), torch.eye(4) * 3, temperature=0.01).item() == pytest.approx(0, abs=1e-6)
    assert info_nce(torch.ones(4, 2), torch.ones(4, 2)).item() == pytest.approx(math.log(4))


def test_info_nce_leaves_out_others_of_the_same_identity() -> None:
    a = torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    identities = [0, 1, 0, 2]
    cosines = torch.nn.functional.cosine_similarity(a[:, None], a[None], dim=2).numpy()
    rows = []
    for i in range(4):
        others = [j for j in range(4) if identities[j] != identities[i]]
        rows.append(np.log(np.exp(cosines[i, [i, *others]]).sum()) - cosines[i, i])
    loss = info_nce(a, a, temperature=1.0, identities=torch.tensor(identities))
    assert loss.item() == pytest.approx(np.mean(rows))


def test_am_softmax_subtracts_its_margin_at_the_target() -> None:
    torch.manual_seed(0)
    head = AMSoftmax(5, 3, margin=0.35, scale=30).double()
    embedding = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([0, 2, 1, 1])
    cosines = head.cosines(embedding).detach().numpy()
    values = []
    for row, t in zip(cosines, target, strict=True):
        logits = 30 * (row - 0.35 * (np.arange(3) == t.item()))
        values.append(np.log(np.exp(logits).sum()) - logits[t])
    assert head(embedding, target).item() == pytest.approx(np.mean(values))
    assert torch.autograd.gradcheck(lambda e: head(e, target), (embedding,))
    assert np.abs(cosines).max() <= 1


def test_cosine_distance_of_parallel_opposite_and_orthogonal_rows() -> None:
    a = torch.eye(2)
    assert cosine_distance(a, 5 * a).item() == pytest.approx(0)
    assert cosine_distance(a, -a).item() == pytest.approx(2)
    assert cosine_distance(a, a.flip(0)).item() == pytest.approx(1)


def test_a_wasserstein_critic_weighs_fakes_like_real_images() -> None:
    real, first, second = torch.tensor([1.0, 3.0]), torch.tensor([0.5, 0.5]), torch.tensor([-1.0, 2.0])
    assert wasserstein_critic(real, [first]).item() == pytest.approx(0.5 - 2)
    assert wasserstein_critic(real, [first, second]).item() == pytest.approx(0.5 - 2)
    assert wasserstein_critic(real, [first, second], balance=False).item() == pytest.approx(0.5 + 0.5 - 2)
    shifted = [x + 7 for x in (real, first, second)]
    assert wasserstein_critic(shifted[0], shifted[1:]).item() == pytest.approx(0.5 - 2)
    assert wasserstein_critic(shifted[0], shifted[1:], balance=False).item() == pytest.approx(0.5 + 0.5 - 2 + 7)


def test_the_gradient_penalty_of_known_critics() -> None:
    """A linear critic has one slope everywhere; a quadratic one's slope is the place itself."""
    real, fake = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4)
    weight = torch.randn(2, 4, 4, requires_grad=True)
    slope = weight.norm().item()
    linear = gradient_penalty(lambda x: (x * weight).sum(dim=(1, 2, 3)), real, fake)
    assert linear.item() == pytest.approx((slope - 1) ** 2, rel=1e-5)
    (gradient,) = torch.autograd.grad(linear, weight)
    assert torch.allclose(gradient, 2 * (slope - 1) * weight.detach() / slope, atol=1e-5)
    place = torch.tensor([[3.0, 4.0]])
    quadratic = gradient_penalty(lambda x: x.square().sum(dim=1, keepdim=True) / 2, place, place)
    assert quadratic.item() == pytest.approx((5 - 1) ** 2)
    flat = gradient_penalty(lambda x: 0 * x.sum(dim=1), place, place)
    assert flat.item() == pytest.approx(1)


def test_the_gradient_penalty_looks_between_each_pair() -> None:
    seen: list[Tensor] = []

    def critic(x: Tensor) -> Tensor:
        seen.append(x.detach())
        return x.mean(dim=(1, 2), keepdim=True)

    real, fake = torch.zeros(64, 3, 3), torch.ones(64, 3, 3)
    gradient_penalty(critic, real, fake, generator=torch.Generator().manual_seed(0))
    shares = seen[0].flatten(1)
    assert torch.equal(shares.amin(dim=1), shares.amax(dim=1))
    assert 0 <= shares.min() < 0.1 < 0.9 < shares.max() <= 1


@pytest.mark.parametrize("data_range", [1.0, 2.0])
def test_structural_similarity_is_scikit_images(data_range: float) -> None:
    metrics = pytest.importorskip("skimage.metrics")
    generator = torch.Generator().manual_seed(0)
    a = (torch.rand(2, 3, 19, 23, generator=generator, dtype=torch.float64) - 0.5) * data_range
    b = a + 0.1 * torch.randn(a.shape, generator=generator, dtype=torch.float64)
    expected = [
        metrics.structural_similarity(
            x.numpy(),
            y.numpy(),
            channel_axis=0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=data_range,
        )
        for x, y in zip(a, b, strict=True)
    ]
    assert structural_similarity(a, b, data_range=data_range).item() == pytest.approx(np.mean(expected), abs=1e-9)
    assert structural_similarity(a, a, data_range=data_range).item() == pytest.approx(1)
    with pytest.raises(ValueError, match="11 px"):
        structural_similarity(a[..., :10], b[..., :10], data_range=1.0)


def test_structural_similarity_passes_gradcheck() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.rand(1, 1, 11, 12, generator=generator, dtype=torch.float64) for _ in range(2))
    a.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: structural_similarity(x, b, data_range=1.0), a)


def test_perceptual_distance_and_gram_by_hand() -> None:
    a = [torch.tensor([[[[1.0, 2.0]], [[3.0, 4.0]]]])]
    b = [torch.zeros(1, 2, 1, 2)]
    assert perceptual_distance(a * 2, b * 2).item() == pytest.approx(2 * 2.5)
    assert torch.allclose(gram(a[0]), torch.tensor([[[5.0, 11.0], [11.0, 25.0]]]) / 4)
