"""The generator against the published layer table, and its form for inference against itself."""

import pytest
import torch
from torch import Tensor, nn

from lipsync.networks import Wav2Lip, fold_batch_norm, prepare_for_inference
from lipsync.networks.blocks import channels_last
from lipsync.networks.generator import SITES
from tests.lipsync import upstream

WIDTH = 0.03


def inputs(count: int, rows: int = 80, size: int = 96) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    audio = 8 * torch.rand(count, 1, rows, 16, generator=generator) - 4
    return audio, torch.rand(count, 6, size, size, generator=generator)


def filled(width: float = WIDTH, **options: object) -> Wav2Lip:
    """A generator in eval mode whose batch statistics are not those of a new one."""
    net = Wav2Lip(width=width, **options)  # type: ignore[arg-type]
    shapes = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    net.load_state_dict(upstream.random_state(shapes))
    return net.eval()


def shapes_of(net: nn.Module) -> upstream.Shapes:
    return {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}


def parameters(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


@pytest.fixture(scope="module")
def official() -> Wav2Lip:
    return Wav2Lip().eval()


def test_official_network_has_the_published_names_shapes_and_size(official: Wav2Lip) -> None:
    assert shapes_of(official) == upstream.generator_shapes()
    assert len(official.state_dict()) == 352
    assert parameters(official) == 36_298_035


def test_official_network_costs_the_published_arithmetic(official: Wav2Lip) -> None:
    total = 0

    def count(layer: nn.Module, maps: tuple[Tensor], output: Tensor) -> None:
        nonlocal total
        assert isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)
        # The kernel meets each position of the output, or of the input where it is transposed.
        met = maps[0] if isinstance(layer, nn.ConvTranspose2d) else output
        total += layer.weight.numel() * met[0, 0].numel()

    layers = [layer for layer in official.modules() if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    with torch.inference_mode():
        official(*inputs(1))
    for hook in hooks:
        hook.remove()
    assert round(total / 1e9, 2) == 3.97


def test_forward_equals_the_layer_table() -> None:
    net = filled()
    audio, faces = inputs(3)
    with torch.inference_mode():
        torch.testing.assert_close(
            net(audio, faces), upstream.generator(net.state_dict(), audio, faces), rtol=0, atol=1e-6
        )


def test_frames_of_a_window_are_drawn_one_by_one() -> None:
    net = filled()
    audio, faces = inputs(6)
    windows, clips = audio.unflatten(0, (2, 3)), faces.unflatten(0, (2, 3)).transpose(1, 2)
    with torch.inference_mode():
        together = net(windows, clips)
        assert together.shape == (2, 3, 3, 96, 96)
        torch.testing.assert_close(together.transpose(1, 2).flatten(0, 1), net(audio, faces), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("rows", "kernel"), [(13, 1), (39, 2), (80, 3), (93, 4), (119, 5), (1, 1)])
def test_only_the_last_valid_audio_kernel_follows_the_rows(rows: int, kernel: int) -> None:
    net = Wav2Lip(rows=rows, width=WIDTH)
    changed = {name for name, shape in shapes_of(net).items() if shape != upstream.generator_shapes(WIDTH)[name]}
    assert changed == ({"audio_encoder.11.conv_block.0.weight"} if kernel != 3 else set())
    assert net.audio_encoder[11].conv_block[0].weight.shape[2:] == (kernel, 3)
    with torch.inference_mode():
        assert net.hear(inputs(2, rows)[0]).shape[2:] == (1, 1)


def test_rows_and_attention_add_what_the_paper_s_form_adds() -> None:
    with torch.device("meta"):
        assert parameters(Wav2Lip(rows=119)) - 36_298_035 == 786_432
        net = Wav2Lip(attention="both", reduction=16)
    assert parameters(net) - 36_298_035 == 17_517
    added = set(net.state_dict()) - set(upstream.generator_shapes())
    assert {name.split(".")[1] for name in added} == set(SITES) == {"audio_256", "face_32", "face_256"}
    assert all(name.startswith("attention.") for name in added)


@pytest.mark.parametrize("attention", ["channel", "spatial", "both"])
@pytest.mark.parametrize("residual", ["none", "add", "identity_init"])
def test_attention_acts_at_its_sites_and_into_the_skips(attention: str, residual: str) -> None:
    net = filled(attention=attention, residual=residual)
    audio, faces = inputs(1)
    seen: dict[str, Tensor] = {}
    for name, block in net.attention.items():
        block.register_forward_hook(lambda _, __, output, name=name: seen.update({name: output}))
    with torch.inference_mode():
        net.hear(audio)
        maps = net.look(faces)
    assert seen["audio_256"].shape[2:] == (3, 3)
    assert maps[1] is seen["face_32"]
    assert maps[4] is seen["face_256"]
    assert [m.shape[-1] for m in maps] == [96, 48, 24, 12, 6, 3, 1]


def test_identity_init_keeps_what_was_learned_without_attention() -> None:
    plain, warm = filled(), Wav2Lip(width=WIDTH, attention="both").eval()
    missing, unexpected = warm.load_state_dict(plain.state_dict(), strict=False)
    assert unexpected == []
    assert all(name.startswith("attention.") for name in missing)
    with torch.inference_mode():
        assert torch.equal(warm(*inputs(2)), plain(*inputs(2)))


def test_projection_keeps_what_was_learned_on_mel_bit_for_bit() -> None:
    plain, warm = filled(), Wav2Lip(rows=119, width=WIDTH, projection=True).eval()
    missing, unexpected = warm.load_state_dict(plain.state_dict(), strict=False)
    assert (missing, unexpected) == (["projection.weight"], [])
    audio, faces = inputs(2, 119)
    with torch.inference_mode():
        assert torch.equal(warm(audio, faces), plain(audio[:, :, :80], faces))


@pytest.mark.parametrize("size", [32, 64])
def test_other_sizes_keep_all_shapes_but_two_kernels(size: int) -> None:
    net = Wav2Lip(size=size, width=WIDTH)
    changed = {name for name, shape in shapes_of(net).items() if shape != upstream.generator_shapes(WIDTH)[name]}
    assert changed == {
        "face_encoder_blocks.6.0.conv_block.0.weight", "face_decoder_blocks.1.0.conv_block.0.weight"
    }  # fmt: skip
    assert net(*inputs(2, size=size)).shape == (2, 3, size, size)


@pytest.mark.parametrize("options", [{}, {"attention": "both", "residual": "none", "rows": 119, "projection": True}])
def test_every_parameter_learns_and_images_stay_in_range(options: dict[str, object]) -> None:
    torch.manual_seed(0)
    net = Wav2Lip(width=WIDTH, **options)  # type: ignore[arg-type]
    drawn = net(*inputs(3, net.rows))
    assert 0 <= drawn.min().item() < drawn.max().item() <= 1
    (drawn * torch.rand_like(drawn)).sum().backward()
    assert [n for n, p in net.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    # A bias before a batch norm moves nothing but the mean that the norm takes off.
    silent = [n for n, p in net.named_parameters() if p.grad is not None and not p.grad.any()]
    assert [n for n in silent if not n.endswith("conv_block.0.bias")] == []


def test_wrong_shapes_are_named() -> None:
    net = Wav2Lip(width=WIDTH)
    audio, faces = inputs(2)
    with pytest.raises(ValueError, match="not of the same frames"):
        net(audio[:1], faces)
    with pytest.raises(ValueError, match="not of the same frames"):
        net(audio[None], faces)
    with pytest.raises(ValueError, match="not of the same frames"):
        net(audio[None], faces[None])
    with pytest.raises(ValueError, match=r"expected windows \(N, 1, 80, 16\)"):
        net(audio[..., :15], faces)
    with pytest.raises(ValueError, match=r"faces \(N, 6, 96, 96\)"):
        net(audio, faces[..., :64, :64])
    for options in ({"size": 100}, {"size": 0}, {"width": 0.0}, {"rows": 0}, {"attention": "self"}):
        with pytest.raises(ValueError):
            Wav2Lip(**options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="residual 'zero'"):
        Wav2Lip(width=WIDTH, attention="both", residual="zero")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="first_row 96"):
        prepare_for_inference(net, first_row=96)


def test_folding_keeps_the_function_and_leaves_the_network_alone() -> None:
    net = filled(attention="both", residual="add").train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    folded = fold_batch_norm(net)
    assert net.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    with torch.inference_mode():
        torch.testing.assert_close(folded(*inputs(3)), net.eval()(*inputs(3)), rtol=0, atol=1e-5)
        exact = fold_batch_norm(net.double())(*(x.double() for x in inputs(2)))
        torch.testing.assert_close(exact, net(*(x.double() for x in inputs(2))), rtol=0, atol=1e-12)


def test_prepared_generator_draws_the_same_faces() -> None:
    net = filled(attention="both", residual="none")
    ready = prepare_for_inference(net).train()
    assert not any(module.training for module in ready.modules())
    assert not any(parameter.requires_grad for parameter in ready.parameters())
    weight = ready.generator.face_decoder_blocks[6][1].conv_block[0].weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    audio, faces = inputs(4)
    windows, clips = audio.unflatten(0, (2, 2)), faces.unflatten(0, (2, 2)).transpose(1, 2)
    with torch.inference_mode():
        torch.testing.assert_close(ready(windows, clips), net(windows, clips), rtol=0, atol=1e-5)
        half = prepare_for_inference(net, dtype=torch.bfloat16)(audio, faces)
        assert half.dtype == torch.float32
        torch.testing.assert_close(half, net(audio, faces), rtol=0, atol=0.05)


def test_kernels_in_channels_last_order_draw_the_same_faces() -> None:
    net = filled(attention="both")
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with torch.inference_mode():
        plain = net(*inputs(2))
    assert channels_last(net) is net
    assert net.face_decoder_blocks[1][0].conv_block[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    with torch.inference_mode():
        torch.testing.assert_close(net(*inputs(2)), plain, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("size", "first_row"), [(96, 1), (96, 40), (96, 95), (64, 31), (32, 5)])
def test_rows_that_are_not_looked_at_do_not_matter(size: int, first_row: int) -> None:
    net = filled(size=size).double()
    ready = prepare_for_inference(net, first_row=first_row, dtype=torch.float64)
    audio, faces = (x.double() for x in inputs(2, size=size))
    with torch.inference_mode():
        drawn = ready(audio, faces)
        whole = net(audio, faces)
    assert torch.equal(drawn[:, :, :first_row], faces[:, :3, :first_row].float())
    torch.testing.assert_close(drawn[:, :, first_row:], whole[:, :, first_row:].float(), rtol=0, atol=1e-6)


@pytest.mark.gpu
def test_prepared_generator_draws_the_same_faces_on_a_gpu() -> None:
    net = filled()
    audio, faces = inputs(4)
    with torch.inference_mode():
        expected = net(audio, faces)
        drawn = prepare_for_inference(net.cuda(), first_row=40)(audio.cuda(), faces.cuda()).cpu()
    torch.testing.assert_close(drawn[:, :, 40:], expected[:, :, 40:], rtol=0, atol=2e-3)  # TF32
