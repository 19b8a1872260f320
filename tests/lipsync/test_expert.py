"""The sync expert against the published layer table, and its frozen form."""

import pytest
import torch
from torch import Tensor

from lipsync.losses import sync_loss, sync_probability
from lipsync.networks import FrozenExpert, SyncExpert, fold_batch_norm, sync_window
from tests.lipsync import upstream

WIDTH = 0.03


def inputs(count: int, rows: int = 80, size: int = 96) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    audio = 8 * torch.rand(count, 1, rows, 16, generator=generator) - 4
    return audio, torch.rand(count, 15, size // 2, size, generator=generator)


def shapes_of(net: SyncExpert) -> upstream.Shapes:
    return {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}


def filled() -> SyncExpert:
    net = SyncExpert(width=WIDTH)
    net.load_state_dict(upstream.random_state(upstream.expert_shapes(WIDTH)))
    return net.eval()


def test_official_network_has_the_published_names_shapes_and_size() -> None:
    with torch.device("meta"):
        net = SyncExpert()
    assert shapes_of(net) == upstream.expert_shapes()
    assert len(net.state_dict()) == 217
    assert sum(parameter.numel() for parameter in net.parameters()) == 16_435_072


def test_forward_equals_the_layer_table_and_gives_unit_vectors_without_negatives() -> None:
    net = filled()
    with torch.inference_mode():
        audio, video = net(*inputs(3))
        for ours, theirs in zip((audio, video), upstream.expert(net.state_dict(), *inputs(3)), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
            torch.testing.assert_close(ours.norm(dim=1), torch.ones(3))
            assert ours.min() >= 0
    assert audio.shape == (3, round(512 * WIDTH))


@pytest.mark.parametrize(("rows", "kernel"), [(39, 2), (80, 3), (119, 5)])
def test_only_the_last_valid_audio_kernel_follows_the_rows(rows: int, kernel: int) -> None:
    net = SyncExpert(rows=rows, width=WIDTH)
    changed = {name for name, shape in shapes_of(net).items() if shape != upstream.expert_shapes(WIDTH)[name]}
    assert changed == ({"audio_encoder.12.conv_block.0.weight"} if kernel != 3 else set())
    assert net.hear(inputs(2, rows)[0]).shape == (2, round(512 * WIDTH))


def test_projection_keeps_what_was_learned_on_mel_bit_for_bit() -> None:
    plain, warm = filled(), SyncExpert(rows=119, width=WIDTH, projection=True).eval()
    assert warm.load_state_dict(plain.state_dict(), strict=False).missing_keys == ["projection.weight"]
    audio, _ = inputs(2, 119)
    with torch.inference_mode():
        assert torch.equal(warm.hear(audio), plain.hear(audio[:, :, :80]))


@pytest.mark.parametrize("size", [32, 64, 128])
def test_other_sizes_change_one_kernel(size: int) -> None:
    net = SyncExpert(size=size, width=WIDTH)
    changed = {name for name, shape in shapes_of(net).items() if shape != upstream.expert_shapes(WIDTH)[name]}
    assert changed == {"face_encoder.15.conv_block.0.weight"}
    assert net.look(inputs(2, size=size)[1]).shape == (2, round(512 * WIDTH))


def test_folding_keeps_the_embeddings() -> None:
    net = filled()
    with torch.inference_mode():
        for folded, plain in zip(fold_batch_norm(net)(*inputs(3)), net(*inputs(3)), strict=True):
            torch.testing.assert_close(folded, plain, rtol=0, atol=1e-5)


def test_embeddings_are_the_positive_part_of_the_signed_ones() -> None:
    net = filled()
    audio, frames = inputs(3)
    with torch.inference_mode():
        for signed, embedding in (
            (net.hear_signed(audio), net.hear(audio)),
            (net.look_signed(frames), net.look(frames)),
        ):
            assert (signed < 0).any()
            positive = signed.clamp(min=0)
            torch.testing.assert_close(embedding, positive / positive.norm(dim=1, keepdim=True))


def test_window_is_lower_halves_frame_by_frame() -> None:
    faces = torch.rand(2, 3, 5, 32, 32)
    window = sync_window(faces)
    assert window.shape == (2, 15, 16, 32)
    for frame in range(5):
        for channel in range(3):
            assert torch.equal(window[:, 3 * frame + channel], faces[:, channel, frame, 16:])
    for wrong in (faces[:, :, :4], faces[:, :2], faces[:, :, 0]):
        with pytest.raises(ValueError, match=r"expected faces \(B, 3, 5, S, S\)"):
            sync_window(wrong)


def test_frozen_expert_stays_in_eval_and_its_buffers_do_not_move() -> None:
    expert = filled().train()
    judge = FrozenExpert(expert)
    before = {name: tensor.clone() for name, tensor in judge.state_dict().items()}
    outer = torch.nn.ModuleDict({"judge": judge}).train()
    assert judge.training
    assert not any(module.training for module in expert.modules())
    faces = torch.rand(2, 3, 5, 96, 96, requires_grad=True)
    loss = sync_loss(sync_probability(*judge(inputs(2)[0], faces)))
    loss.backward()
    assert all(torch.equal(tensor, before[name]) for name, tensor in outer["judge"].state_dict().items())
    assert all(parameter.grad is None for parameter in judge.parameters())
    assert faces.grad is not None
    assert faces.grad[:, :, :, 48:].any()
    assert not faces.grad[:, :, :, :48].any()


def test_every_weight_learns() -> None:
    torch.manual_seed(0)
    net = SyncExpert(width=WIDTH)
    sync_loss(sync_probability(*net(*inputs(6))), torch.tensor([1, 0, 1, 0, 1, 0])).backward()
    silent = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    # A bias before a batch norm moves nothing but the mean that the norm takes off.
    assert [n for n in silent if not n.endswith("conv_block.0.bias")] == []


def test_wrong_shapes_are_named() -> None:
    net = SyncExpert(width=WIDTH)
    audio, frames = inputs(2)
    with pytest.raises(ValueError, match=r"expects \(B, 1, 80, 16\), got \(2, 1, 79, 16\)"):
        net(audio[:, :, 1:], frames)
    with pytest.raises(ValueError, match=r"expects \(B, 15, 48, 96\), got \(2, 15, 48, 90\)"):
        net(audio, frames[..., 6:])
    with pytest.raises(ValueError, match="multiple of 32"):
        SyncExpert(size=80)
