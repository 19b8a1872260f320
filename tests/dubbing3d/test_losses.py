"""Losses of both stages against hand numbers and loops; every switch does what it says."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dubbing3d import losses
from dubbing3d.losses import Forms, Weights
from dubbing3d.networks import PatchCritic, Renderer, warp
from tests.dubbing3d.toy_networks import images

FORMS = Forms()


class ToyFlow:
    """Knows the answer: every pixel comes from `shift` pixels to the right in the second image."""

    name = "toy"

    def __init__(self, shift: float) -> None:
        self.shift = shift

    def __call__(self, first: Tensor, second: Tensor) -> Tensor:
        flow = torch.zeros_like(first[:, :2])
        flow[:, 0] = self.shift
        return flow

    def features(self, images: Tensor) -> Tensor:
        return 2 * images[:, :, ::2, ::2]


class ToyFeatures:
    name = "toy"

    def __call__(self, images: Tensor) -> list[Tensor]:
        return [images[:, :, ::2], images.square()[:, :, ::4]]


def test_expression_and_shape_by_hand() -> None:
    predicted, true = torch.zeros(1, 2, 3), torch.tensor([[[1.0, -2.0, 0.0], [0.5, 0.0, 0.0]]])
    assert losses.expression_loss(predicted, true).item() == pytest.approx((3 + 0.5) / 2)
    assert losses.expression_loss(predicted, true, literal=True).item() == pytest.approx(3 + 0.5)
    points = torch.zeros(1, 2, 68, 2)
    moved = points.clone()
    moved[0, 1, 5] = torch.tensor([3.0, -4.0])
    assert losses.shape_loss(points, moved, 224).item() == pytest.approx(7 / 224 / 2)
    assert losses.shape_loss(points, moved, 224, literal=True).item() == pytest.approx(7 / 224)
    assert losses.expression_total(torch.tensor(2.0), torch.tensor(3.0)).item() == pytest.approx(3.5)


def test_frames_without_a_face_do_not_count() -> None:
    predicted = torch.zeros(1, 3, 2, requires_grad=True)
    true = torch.tensor([[[1.0, 1.0], [torch.nan, torch.nan], [3.0, 3.0]]])
    loss = losses.expression_loss(predicted, true, torch.tensor([[1.0, 0.0, 1.0]]))
    assert loss.item() == pytest.approx((2 + 6) / 2)
    loss.backward()
    assert predicted.grad is not None
    assert predicted.grad.tolist() == [[[-0.5, -0.5], [0, 0], [-0.5, -0.5]]]
    none = losses.expression_loss(predicted, true, torch.zeros(1, 3))
    assert none.item() == 0


def test_reconstruction_by_hand() -> None:
    drawn, real = torch.zeros(2, 3, 2, 2), torch.ones(2, 3, 2, 2)
    real[:, :, 0] = 3
    mask = torch.zeros(2, 1, 2, 2)
    mask[:, :, 0, 0] = 1
    assert losses.reconstruction(drawn, real).item() == pytest.approx(2)
    assert losses.reconstruction(drawn, real, literal=True).item() == pytest.approx(3 * (2 * 3 + 2 * 1))
    assert losses.reconstruction(drawn, real, mask).item() == pytest.approx(3)
    assert losses.reconstruction(drawn, real, mask, literal=True).item() == pytest.approx(9)
    assert losses.reconstruction(drawn, real, mask * 0).item() == 0


def test_ssim_forms() -> None:
    a, b = images(1, 3, 16, 16), images(1, 3, 16, 16, seed=1)
    assert losses.ssim_loss(a, a).item() == pytest.approx(0, abs=1e-6)
    assert losses.ssim_loss(a, b).item() != pytest.approx(losses.ssim_loss(a, b, signed=False).item(), abs=1e-3)


def test_style_equals_a_plain_loop() -> None:
    drawn, real = [images(2, 3, 4, 5), images(2, 2, 2, 2)], [images(2, 3, 4, 5, seed=1), images(2, 2, 2, 2, seed=1)]
    paper, mean = 0.0, 0.0
    for a, b in zip(drawn, real, strict=True):
        channels, size = a.shape[1], a[0].numel()
        for sample in range(2):
            for i in range(channels):
                for j in range(channels):
                    difference = (
                        ((a[sample, i] * a[sample, j]).sum() - (b[sample, i] * b[sample, j]).sum()).abs().item()
                    )
                    paper += difference / size**2 / 2
                    mean += difference / size / channels**2 / 2
    assert losses.style_loss(drawn, real).item() == pytest.approx(paper, rel=1e-5)
    assert losses.style_loss(drawn, real, form="mean").item() == pytest.approx(mean, rel=1e-5)
    with pytest.raises(ValueError, match="style 'other'"):
        losses.style_loss(drawn, real, form="other")  # type: ignore[arg-type]


def test_correspondence_forgives_what_the_flow_explains() -> None:
    real = images(2, 3, 16, 16)
    moved = warp(real, torch.full((2, 2, 16, 16), 2.0) * torch.tensor([1.0, 0.0])[None, :, None, None])
    explained = losses.correspondence_loss(real, moved, _TwoWay(2.0), keep=0.0)
    assert explained < 0.5 * losses.correspondence_loss(real, moved, ToyFlow(0.0))
    still = losses.correspondence_loss(real, moved, ToyFlow(0.0))
    rms = (real - moved).square().flatten(1).mean(dim=1).sqrt().mean()
    assert still.item() == pytest.approx(2 * rms.item(), rel=1e-5)
    literal = losses.correspondence_loss(real, moved, ToyFlow(0.0), form="literal")
    coarse = (2 * (real - moved)[:, :, ::2, ::2]).square().flatten(1).mean(dim=1).sqrt().mean()
    assert literal.item() == pytest.approx(coarse.item(), rel=1e-5)
    assert losses.position_error(real, moved, ToyFlow(3.0)).item() == pytest.approx(3)
    with pytest.raises(ValueError, match="correspondence 'other'"):
        losses.correspondence_loss(real, moved, ToyFlow(0.0), form="other")  # type: ignore[arg-type]


class _TwoWay(ToyFlow):
    """Shifts to one side on its first call and to the other on its second."""

    def __call__(self, first: Tensor, second: Tensor) -> Tensor:
        flow = super().__call__(first, second)
        self.shift = -self.shift
        return flow


@pytest.mark.parametrize("form", ["warp", "literal"])
def test_correspondence_has_gradients_and_no_infinite_ones(form: Any) -> None:
    warped = images(1, 3, 16, 16).requires_grad_()
    for target in (warped.detach().clone(), images(1, 3, 16, 16, seed=1)):
        warped.grad = None
        losses.correspondence_loss(warped, target, ToyFlow(0.0), form=form).backward()
        assert warped.grad is not None
        assert warped.grad.isfinite().all()
    assert warped.grad.any()


def test_the_critic_separates_and_its_penalty_is_in() -> None:
    torch.manual_seed(0)
    critic = PatchCritic(width=0.05, image_size=64)
    real, fakes = images(2, 3, 64, 64), [images(2, 3, 64, 64, seed=seed).requires_grad_() for seed in (1, 2)]
    bare = losses.critic_loss(critic, real, fakes, penalty=0)
    scores = [critic(x).mean().item() for x in (*fakes, real)]
    assert bare.item() == pytest.approx((scores[0] + scores[1]) / 2 - scores[2], abs=1e-5)
    literal = losses.critic_loss(critic, real, fakes, penalty=0, balance=False)
    assert literal.item() == pytest.approx(scores[0] + scores[1] - scores[2], abs=1e-5)
    loss = losses.critic_loss(critic, real, fakes, generator=torch.Generator().manual_seed(0))
    assert loss > bare
    loss.backward()
    assert all(fake.grad is None for fake in fakes)
    assert all(p.grad is not None and p.grad.any() for name, p in critic.named_parameters() if "weight" in name)


def test_mask_regularisers_by_hand() -> None:
    mask = torch.tensor([[[[0.0, 1.0], [0.0, 0.5]]]])
    mean, steps = losses.attention_regulariser(mask)
    assert mean.item() == pytest.approx(0.375)
    assert steps.item() == pytest.approx((0 + 0.25) / 2 + (1 + 0.25) / 2)


def terms_of(weights: Weights, forms: Forms = FORMS, **options: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    torch.manual_seed(0)
    net = Renderer(width=0.03, image_size=64, **options)
    guide, reference, crop, real = (images(2, 3, 64, 64, seed=seed) for seed in range(4))
    mask = torch.zeros(2, 1, 64, 64)
    mask[:, :, 32:] = 1
    critic = PatchCritic(width=0.05, image_size=64)
    output = net(guide, reference, crop)
    judges: dict[str, Any] = {"features": ToyFeatures(), "critic": critic, "weights": weights, "forms": forms}
    texture = losses.texture_terms(output, real, mask, flow=ToyFlow(0.0), **judges)
    return texture, losses.inpainting_terms(output, real, **judges)


def test_the_terms_are_those_of_equations_30_and_31() -> None:
    texture, inpainting = terms_of(Weights())
    assert set(texture) == {"rec", "ssim", "perceptual", "wgan", "correspondence"}
    assert set(inpainting) == {"rec", "ssim", "perceptual", "wgan", "style"}
    expected = sum(
        value.item() * {"rec": 1, "ssim": 1, "perceptual": 0.1, "wgan": 0.01, "style": 10}[name]
        for name, value in inpainting.items()
    )
    assert losses.total(inpainting, Weights()).item() == pytest.approx(expected, rel=1e-5)


def test_terms_without_weight_are_left_out() -> None:
    texture, inpainting = terms_of(Weights(ssim=0, perceptual=0, style=0, wgan=0, correspondence=0))
    assert set(texture) == set(inpainting) == {"rec"}
    texture, inpainting = terms_of(Weights(attention=0.1, variation=1e-5))
    assert {"attention", "variation"} <= set(texture)
    assert {"attention", "variation"} <= set(inpainting)
    texture, _ = terms_of(Weights(attention=0.1), flow=False, enhancement=False)
    assert "attention" not in texture


def test_the_texture_is_judged_inside_the_mask() -> None:
    masked, _ = terms_of(Weights())
    whole, _ = terms_of(Weights(), Forms(masked_texture=False))
    assert masked["rec"].item() != pytest.approx(whole["rec"].item())


def test_epsilon_shares_out_the_two_losses() -> None:
    texture, inpainting = torch.tensor(2.0), torch.tensor(5.0)
    values = [losses.renderer_total(inpainting, texture, epsilon).item() for epsilon in (0, 0.1, 0.2)]
    assert values == pytest.approx([2.0, 2.3, 2.6])


def test_losses_stay_in_float32_under_autocast() -> None:
    a, b = images(2, 3, 64, 64), images(2, 3, 64, 64, seed=1)
    critic = PatchCritic(width=0.05, image_size=64)
    exact = losses.critic_loss(critic, a, [b], generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        values = [
            losses.reconstruction(a.bfloat16(), b),
            losses.ssim_loss(a, b),
            losses.style_loss([a], [b]),
            losses.expression_loss(a[:, 0].bfloat16(), b[:, 0]),
            losses.correspondence_loss(a, b, ToyFlow(0.0)),
        ]
        half = losses.critic_loss(critic, a, [b], generator=torch.Generator().manual_seed(0))
    assert all(value.dtype == torch.float32 for value in values)
    assert half.item() == pytest.approx(exact.item(), rel=0.02)


def test_a_module_may_be_any_critic() -> None:
    class Sum(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean(dim=(1, 2, 3))

    a, b = images(1, 3, 64, 64), images(1, 3, 64, 64, seed=1)
    loss = losses.critic_loss(Sum(), a, [b], penalty=0)
    assert loss.item() == pytest.approx((b.mean() - a.mean()).item(), abs=1e-6)
