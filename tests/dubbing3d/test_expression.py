"""Stage 1's network: shapes, ablations, edges, gradients."""

import pytest
import torch
from torch import Tensor

from dubbing3d.networks import ExpressionNet

SIZE = 40
FORMS = {
    "full": {},
    "audio residual": {"audio_residual": True},
    "no attention": {"attention": False},
    "no semantic": {"semantic": False},
    "base": {"semantic": False, "attention": False},
}


def inputs(frames: int = 7, batch: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(batch, frames, 28, 12, generator=generator),
        torch.rand(batch, frames, 3, SIZE, SIZE, generator=generator) * 2 - 1,
    )


def build(width: float = 0.04, **options: object) -> ExpressionNet:
    torch.manual_seed(0)
    return ExpressionNet(expressions=11, width=width, image_size=SIZE, **options)


@pytest.mark.parametrize("options", FORMS.values(), ids=FORMS.keys())
@pytest.mark.parametrize("frames", [1, 6])
def test_every_ablation_predicts_and_learns_everywhere(options: dict[str, bool], frames: int) -> None:
    net = build(0.07, **options)
    mfcc, images = inputs(frames)
    coefficients = net(mfcc, images if net.semantic else None)
    assert coefficients.shape == (2, frames, 11)
    coefficients.square().sum().backward()
    if frames > 1:  # a lone step has one weight, 1, so queries and keys get no gradient
        dead = [name for name, value in net.named_parameters() if value.grad is None or not value.grad.any()]
        assert dead == []


def test_only_the_window_is_attended() -> None:
    """With the BiLSTM out of the way, a frame's feature depends on images within k frames of it."""
    net = build(k=2).eval()
    mfcc, images = inputs(9, batch=1)
    with torch.no_grad():
        heard, seen = net.encode_audio(mfcc), net.encode_images(images)
        changed = seen.clone()
        changed[:, 4] += 1
        moved = (net.attention(heard, changed) - net.attention(heard, seen)).abs().amax(dim=2)[0] > 0
    assert moved.nonzero().flatten().tolist() == [2, 3, 4, 5, 6]


def test_encoders_work_frame_by_frame() -> None:
    """A clip may be encoded in pieces and predicted at once."""
    net = build().eval()
    mfcc, images = inputs(7)
    with torch.no_grad():
        pieces = [
            (net.encode_audio(mfcc[:, part]), net.encode_images(images[:, part])) for part in (slice(4), slice(4, 7))
        ]
        heard, seen = (torch.cat(each, dim=1) for each in zip(*pieces, strict=True))
        assert torch.allclose(net.predict(heard, seen), net(mfcc, images), atol=1e-6)


def test_without_images_none_are_used() -> None:
    net = build(semantic=False).eval()
    mfcc, images = inputs()
    with torch.no_grad():
        assert torch.equal(net(mfcc), net(mfcc, images))


def test_wrong_input_is_named() -> None:
    net = build()
    mfcc, images = inputs()
    with pytest.raises(ValueError, match="got none"):
        net(mfcc)
    with pytest.raises(ValueError, match="expected cepstra"):
        net(mfcc.mT, images)
    with pytest.raises(ValueError, match="expected images"):
        net(mfcc, images[..., :32])
    with pytest.raises(ValueError, match="without semantic"):
        build(semantic=False).encode_images(images)
    with pytest.raises(ValueError, match="at least 32"):
        ExpressionNet(expressions=3, image_size=16)
    with pytest.raises(ValueError, match="positive"):
        ExpressionNet(expressions=0)
