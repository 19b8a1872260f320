"""The visual quality discriminator against the published layer table, and the paper's instance norm in it."""

import pytest
import torch
from torch import Tensor, nn

from lipsync.losses import discriminator_adversarial
from lipsync.networks import QualityDiscriminator, fold_batch_norm
from tests.lipsync import upstream

WIDTH = 0.03


def faces(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(5))


def filled(norm: str) -> QualityDiscriminator:
    net = QualityDiscriminator(width=WIDTH, norm=norm)  # type: ignore[arg-type]
    net.load_state_dict(upstream.random_state(upstream.quality_shapes(WIDTH)))
    return net.eval()


def test_official_network_has_the_published_names_shapes_and_size() -> None:
    with torch.device("meta"):
        net = QualityDiscriminator(norm="none")
    assert {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()} == upstream.quality_shapes()
    assert len(net.state_dict()) == 28
    assert sum(parameter.numel() for parameter in net.parameters()) == 14_113_793


def test_without_norm_forward_equals_the_layer_table_on_lower_halves() -> None:
    net, images = filled("none"), faces(3, 3, 96, 96)
    with torch.inference_mode():
        expected = upstream.quality(net.state_dict(), images[:, :, 48:])
        torch.testing.assert_close(net(images), expected, rtol=0, atol=1e-6)
        assert torch.equal(fold_batch_norm(net)(images), net(images))
    changed = images.clone()
    changed[:, :, :48] = 0
    assert torch.equal(net(changed), net(images))


@pytest.mark.parametrize("norm", ["instance", "none"])
def test_frames_of_a_window_are_judged_one_by_one(norm: str) -> None:
    net, clips = filled(norm), faces(2, 3, 4, 96, 96)
    with torch.inference_mode():
        logits = net(clips)
        assert logits.shape == (8, 1)
        for frame in range(4):
            torch.testing.assert_close(logits[2 * frame : 2 * frame + 2], net(clips[:, :, frame]), rtol=0, atol=1e-6)


def test_paper_s_norm_follows_all_convolutions_but_those_onto_one_position() -> None:
    net = QualityDiscriminator(width=WIDTH)
    blocks = [block for stage in net.face_encoder_blocks for block in stage]
    normed = [isinstance(block.conv_block[-1], nn.InstanceNorm2d) for block in blocks]
    assert normed == [True] * 11 + [False] * 2
    maps: list[Tensor] = []
    blocks[1].conv_block.register_forward_hook(lambda _, __, output: maps.append(output.clone()))
    net(faces(2, 3, 96, 96))
    torch.testing.assert_close(maps[0].mean(dim=(2, 3)), torch.zeros(2, maps[0].shape[1]), rtol=0, atol=1e-5)
    torch.testing.assert_close(
        maps[0].var(dim=(2, 3), correction=0), torch.ones(2, maps[0].shape[1]), rtol=0, atol=0.05
    )


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("norm", ["instance", "none"])
def test_every_weight_learns_at_any_size(size: int, norm: str) -> None:
    torch.manual_seed(0)
    net = QualityDiscriminator(size=size, width=WIDTH, norm=norm)  # type: ignore[arg-type]
    discriminator_adversarial(net(faces(3, 3, size, size)), net(faces(3, 3, 2, size, size))).backward()
    silent = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    # A bias before an instance norm moves nothing but the mean that the norm takes off.
    assert [n for n in silent if norm == "none" or not n.endswith(".bias")] == []


def test_wrong_shapes_and_norms_are_named() -> None:
    net = QualityDiscriminator(width=WIDTH)
    for wrong in (faces(2, 3, 96, 64), faces(2, 6, 96, 96), faces(3, 96, 96), faces(2, 3, 4, 64, 64)):
        with pytest.raises(ValueError, match="expected faces"):
            net(wrong)
    with pytest.raises(ValueError, match="norm 'batch'"):
        QualityDiscriminator(norm="batch")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="multiple of 32"):
        QualityDiscriminator(size=48)
