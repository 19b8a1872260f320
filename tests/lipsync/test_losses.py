"""The losses of paper 3 against numbers by hand and their printed forms."""

import math

import pytest
import torch
from torch import Tensor

from lipsync.losses import (
    SyncGate,
    discriminator_adversarial,
    generator_adversarial,
    reconstruction,
    sync_loss,
    sync_probability,
    total,
)


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


def test_the_mouth_may_count_more() -> None:
    real = torch.zeros(2, 3, 5, 40, 40)
    drawn = real.clone()
    drawn[..., 30, 20] = 1.0  # within rows 22 to 35 and columns 10 to 29
    drawn[..., 10, 20] = 1.0
    torch.testing.assert_close(reconstruction(drawn, real, 3.0), torch.tensor(2 / 1600 + 3 / (14 * 20)))
    assert reconstruction(drawn, real, 0.0) == reconstruction(drawn, real)


def test_reconstruction_is_the_mean_absolute_difference() -> None:
    x = torch.rand(2, 3, 4, 5, 6)
    assert reconstruction(x, x) == 0
    assert reconstruction(torch.tensor([0.0, 0.5]), torch.tensor([0.25, 0.0])) == 0.375
    half = reconstruction(x.half(), torch.zeros_like(x).half())
    assert half.dtype == torch.float32
    assert math.isclose(half, x.mean(), rel_tol=1e-3)


def test_probability_is_the_clamped_cosine() -> None:
    audio = torch.tensor([[3.0, 4.0], [1.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
    video = torch.tensor([[3.0, 4.0], [1.0, 1.0], [5.0, 0.0], [1.0, 0.0]])
    probability = sync_probability(audio, video)
    torch.testing.assert_close(probability, torch.tensor([1 - 1e-7, 0.5**0.5, 1e-7, 1e-7]), rtol=1e-6, atol=0)
    assert probability.max() < 1
    assert sync_loss(probability).isfinite()
    assert sync_probability(audio.double(), video.double()).dtype == torch.float64


def test_cosines_that_round_above_one_stay_finite_in_loss_and_gradient() -> None:
    torch.manual_seed(0)
    embedding = torch.rand(512, 16).requires_grad_()
    for matching in (None, torch.zeros(512), torch.ones(512)):
        loss = sync_loss(sync_probability(embedding, embedding.detach()), matching)
        (gradient,) = torch.autograd.grad(loss, embedding)
        assert loss.isfinite()
        assert gradient.isfinite().all()


def test_sigmoid_form_has_the_floors_that_the_documentation_names() -> None:
    same, apart = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    best, worst = sync_probability(same, same, "sigmoid"), sync_probability(same, apart, "sigmoid")
    assert math.isclose(best, 1 / (1 + math.exp(-1)), rel_tol=1e-6)
    assert worst == 0.5
    assert sync_loss(best) > 0.313
    assert sync_loss(torch.cat([best, worst]), torch.tensor([1, 0])) > 0.503
    with pytest.raises(ValueError, match="sync_prob 'softmax'"):
        sync_probability(same, same, "softmax")  # type: ignore[arg-type]


def test_sync_loss_is_the_cross_entropy() -> None:
    probability = torch.tensor([0.9, 0.2, 0.5])
    assert math.isclose(sync_loss(probability), -(math.log(0.9) + math.log(0.2) + math.log(0.5)) / 3, rel_tol=1e-6)
    by_hand = -(math.log(0.9) + math.log(0.8) + math.log(0.5)) / 3
    for matching in (torch.tensor([True, False, True]), torch.tensor([1, 0, 1]), torch.tensor([1.0, 0.0, 0.0])):
        assert math.isclose(sync_loss(probability, matching), by_hand, rel_tol=1e-6)


def test_generator_s_two_forms_and_the_discriminator_s_loss_are_those_printed() -> None:
    real, fake = torch.tensor([[2.0], [-1.0]]), torch.tensor([[0.5], [-3.0]])
    assert math.isclose(generator_adversarial(fake), -(log_sigmoid(0.5) + log_sigmoid(-3.0)) / 2, rel_tol=1e-6)
    saturating = generator_adversarial(fake, saturating=True)
    assert math.isclose(saturating, (log_sigmoid(-0.5) + log_sigmoid(3.0)) / 2, rel_tol=1e-6)
    printed = (log_sigmoid(2.0) + log_sigmoid(-1.0)) / 2 + saturating.item()
    assert math.isclose(discriminator_adversarial(real, fake), -printed, rel_tol=1e-6)


@pytest.mark.parametrize("saturating", [True, False])
def test_generator_pushes_logits_up_and_only_one_form_fades(saturating: bool) -> None:
    logits = torch.tensor([-8.0, 0.0, 8.0], requires_grad=True)
    generator_adversarial(logits, saturating=saturating).backward()
    assert logits.grad is not None
    assert (logits.grad < 0).all()
    assert (logits.grad[0].abs() < 1e-3) == saturating


def test_losses_are_smooth_where_they_should_be() -> None:
    torch.manual_seed(1)
    audio, video = (torch.rand(3, 5, dtype=torch.float64).add(0.1).requires_grad_() for _ in range(2))
    matching = torch.tensor([1, 0, 1])
    for form in ("cosine", "sigmoid"):
        assert torch.autograd.gradcheck(
            lambda a, v, form=form: sync_loss(sync_probability(a, v, form), matching), (audio, video)
        )
    logits = torch.randn(4, 1, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: generator_adversarial(x, saturating=True), (logits,))
    assert torch.autograd.gradcheck(lambda x: discriminator_adversarial(x, 2 * x), (logits,))


def test_autocast_and_half_types_leave_the_losses_in_float32() -> None:
    audio, video = torch.rand(4, 8), torch.rand(4, 8)
    exact = sync_loss(sync_probability(audio, video), torch.tensor([1, 0, 1, 0]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = sync_loss(sync_probability(audio, video), torch.tensor([1, 0, 1, 0]))
    assert torch.equal(exact, cast)
    for loss in (sync_loss(sync_probability(audio.bfloat16(), video.bfloat16())), generator_adversarial(audio.half())):
        assert loss.dtype == torch.float32


def test_total_weighs_by_the_paper_s_equation() -> None:
    recon, sync, adversarial = (torch.tensor(x, requires_grad=True) for x in (2.0, 3.0, 5.0))
    loss = total(recon, sync, adversarial)
    assert math.isclose(loss.detach(), 0.9 * 2 + 0.03 * 3 + 0.07 * 5, rel_tol=1e-6)
    loss.backward()
    grads = [x.grad.item() for x in (recon, sync, adversarial) if x.grad is not None]
    assert grads == pytest.approx([0.9, 0.03, 0.07])
    assert total(recon, 0.0, 0.0, sync_weight=0, adversarial_weight=0) == 2
    gated = total(recon, sync, 0.0, sync_weight=SyncGate()(), adversarial_weight=0)
    assert gated.item() == 2


def test_gate_opens_once_stays_open_and_is_saved() -> None:
    gate = SyncGate()
    assert gate() == 0
    for loss in (0.8, math.nan, 0.75, math.inf):
        gate.update(loss)
        assert gate() == 0
    gate.update(torch.tensor(0.7499))
    assert gate().item() == pytest.approx(0.03)
    assert gate().dtype == torch.float32
    gate.update(3.0)
    assert gate().item() == pytest.approx(0.03)
    resumed = SyncGate(weight=0.01)
    resumed.load_state_dict(gate.state_dict())
    assert resumed().item() == pytest.approx(0.01)


def test_gate_that_is_always_on_weighs_from_the_start() -> None:
    gate = SyncGate(0.05, threshold=0.1, always_on=True)
    gate.update(2.0)
    assert gate().item() == pytest.approx(0.05)
    closed = SyncGate(0.05, threshold=0.1)
    closed.load_state_dict(gate.state_dict())
    assert closed() == 0


def test_gate_can_be_updated_where_validation_runs() -> None:
    gate = SyncGate()
    with torch.inference_mode():
        gate.update(0.5)
    loss: Tensor = gate() * torch.tensor(1.0, requires_grad=True)
    loss.backward()
    assert not gate.opened.is_inference()
