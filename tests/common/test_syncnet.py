"""SyncNet against its published layout, its windows one by one, and hostile weight files."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from common.audio.psf import psf_mfcc
from common.errors import UserError
from common.syncnet import (
    LipStream,
    Region,
    SyncNet,
    embed_frames,
    embed_wave,
    fingerprint,
    last_map,
    load_syncnet,
)
from common.weights import WEIGHTS

LIP = {0: (96, 3, 5, 7, 7), 4: (256, 96, 1, 5, 5), 8: (256, 256, 1, 3, 3), 11: (256, 256, 1, 3, 3)}
LIP |= {14: (256, 256, 1, 3, 3), 18: (512, 256, 1, 6, 6)}
SOUND = {0: (64, 1, 3, 3), 4: (192, 64, 3, 3), 8: (384, 192, 3, 3), 11: (256, 384, 3, 3), 14: (256, 256, 3, 3)}
SOUND |= {18: (512, 256, 5, 4)}


def published_shapes() -> dict[str, tuple[int, ...]]:
    """The 102 tensors of syncnet_v2.model."""
    shapes: dict[str, tuple[int, ...]] = {}
    for tower, layers in (("netcnnlip", LIP), ("netcnnaud", SOUND)):
        for index, weight in layers.items():
            shapes |= {f"{tower}.{index}.weight": weight, f"{tower}.{index}.bias": weight[:1]}
            shapes |= norm(f"{tower}.{index + 1}", weight[0])
    for head in ("netfclip", "netfcaud"):
        shapes |= {f"{head}.0.weight": (512, 512), f"{head}.0.bias": (512,), **norm(f"{head}.1", 512)}
        shapes |= {f"{head}.3.weight": (1024, 512), f"{head}.3.bias": (1024,)}
    return shapes


def norm(name: str, channels: int) -> dict[str, tuple[int, ...]]:
    names = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.{part}": (channels,) for part in names} | {f"{name}.num_batches_tracked": ()}


def narrow(size: int = 64, region: Region | None = None) -> SyncNet:
    torch.manual_seed(0)
    net = SyncNet(width=0.05, size=size, region=region).eval()
    for layer in net.modules():  # running statistics that are not those of a fresh network
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
            nn.init.uniform_(layer.running_mean, -0.5, 0.5)
            nn.init.uniform_(layer.running_var, 0.5, 2.0)
    return net


@pytest.fixture(scope="module")
def small() -> SyncNet:
    return narrow()


def images(count: int, height: int = 64, width: int = 64) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def test_published_network_key_for_key() -> None:
    with torch.device("meta"):
        net = SyncNet()
    assert {name: tuple(value.shape) for name, value in net.state_dict().items()} == published_shapes()
    assert len(published_shapes()) == 102
    assert sum(p.numel() for p in net.parameters()) == 13_631_616


def test_published_sizes_in_and_out() -> None:
    with torch.device("meta"):
        net = SyncNet()
        assert net.lips(torch.empty(2, 3, 5, 224, 224)).shape == (2, 1, 1024)
        assert net.sounds(torch.empty(2, 1, 13, 20)).shape == (2, 1, 1024)


def test_published_strides_and_paddings() -> None:
    with torch.device("meta"):
        net = SyncNet().eval()
        lips, sounds = [torch.empty(1, 3, 5, 224, 224)], [torch.empty(1, 1, 13, 20)]
        for layer in net.netcnnlip:
            lips.append(layer(lips[-1]))
        for layer in net.netcnnaud:
            sounds.append(layer(sounds[-1]))
    assert [tuple(lips[i + 1].shape[2:]) for i in (0, 3, 4, 7, 17, 18)] == [
        (1, 109, 109), (1, 54, 54), (1, 26, 26), (1, 13, 13), (1, 6, 6), (1, 1, 1)
    ]  # fmt: skip
    assert [tuple(sounds[i + 1].shape[2:]) for i in (3, 7, 17, 18)] == [(13, 20), (11, 9), (5, 4), (1, 1)]
    assert last_map(224) == 6


@pytest.mark.parametrize("size", [51, 64, 75, 96, 97, 128, 160])
def test_any_size_ends_in_one_pixel_and_every_parameter_learns(size: int) -> None:
    net = SyncNet(width=0.02, size=size)
    lips, sounds = net.lips(torch.rand(2, 3, 6, size, size) * 255), net.sounds(torch.randn(2, 1, 13, 24))
    assert lips.shape == sounds.shape == (2, 2, net.embedding)
    (lips * sounds).sum().backward()
    assert all(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize(("width", "size"), [(1.0, 50), (0.0, 224), (-1.0, 64)])
def test_impossible_shapes_are_refused(width: float, size: int) -> None:
    with pytest.raises(ValueError, match="at least 51 px"):
        SyncNet(width=width, size=size)


def test_a_sequence_gives_what_its_windows_give(small: SyncNet) -> None:
    video = torch.rand(2, 3, 9, 64, 64, generator=torch.Generator().manual_seed(1)) * 255
    whole = small.lips(video)
    for v in range(5):
        torch.testing.assert_close(whole[:, v], small.lips(video[:, :, v : v + 5])[:, 0], rtol=1e-4, atol=1e-5)
    cepstra = torch.randn(2, 1, 13, 33)
    sounds = small.sounds(cepstra)
    assert sounds.shape[1] == 4
    for v in range(4):
        window = small.sounds(cepstra[..., 4 * v : 4 * v + 20])
        torch.testing.assert_close(sounds[:, v], window[:, 0], rtol=1e-4, atol=1e-5)


def test_frames_become_bgr_levels_of_the_region_without_normalisation(small: SyncNet) -> None:
    frame = torch.zeros(1, 3, 64, 64)
    frame[:, 0] = 255
    frame[:, 1] = 7
    prepared = small.prepare(frame)
    assert prepared[0, :, 0, 0].tolist() == [0.0, 7.0, 255.0]
    half = narrow(region=Region(0.25, 0.5, 0.75, 1.0)).prepare(torch.arange(128.0 * 128).view(1, 1, 128, 128))
    assert torch.equal(half[0, 0], torch.arange(128.0 * 128).view(128, 128)[64:, 32:96])


def test_resizing_is_opencvs(small: SyncNet) -> None:
    cv2 = pytest.importorskip("cv2")
    for height, width in ((40, 50), (90, 160), (201, 64)):
        image = images(1, height, width)[0]
        stream = LipStream(small)
        stream.push(image)
        ours = stream._held[0].permute(1, 2, 0).flip(-1).numpy()
        assert np.abs(ours - cv2.resize(image, (64, 64)).astype(float)).max() <= 1


@pytest.mark.parametrize("count", [0, 4, 5, 20, 21, 50])
def test_a_stream_equals_the_whole(small: SyncNet, count: int) -> None:
    frames = images(count)
    found = embed_frames(small, frames)
    assert found.shape == (max(0, count - 4), small.embedding)
    if count >= 5:
        video = torch.from_numpy(frames).permute(3, 0, 1, 2).flip(0)[None].float()
        torch.testing.assert_close(found, small.lips(video)[0].detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("samples", [0, 1, 3199, 3200, 100 * 640 + 17])
def test_sound_windows_start_at_every_frame(small: SyncNet, samples: int) -> None:
    wave = torch.rand(samples, generator=torch.Generator().manual_seed(2)) - 0.5
    found = embed_wave(small, wave)
    cepstra = psf_mfcc(wave[None]) if samples else torch.zeros(1, 1, 13, 0)
    starts = range(0, cepstra.shape[-1] - 19, 4)
    assert found.shape == (len(starts), small.embedding)
    for v in list(starts)[:: max(1, len(starts) // 5)]:
        window = small.sounds(cepstra[..., v : v + 20]).detach()[0, 0]
        torch.testing.assert_close(found[v // 4], window, rtol=1e-4, atol=1e-5)


def test_a_plain_dictionary_loads_by_name_and_may_lack_counters(tmp_path: Path) -> None:
    torch.manual_seed(1)
    net = SyncNet()
    state = {k: v for k, v in net.state_dict().items() if not k.endswith("num_batches_tracked")}
    path = tmp_path / "mine.model"
    torch.save(state, path, _use_new_zipfile_serialization=False)  # the format of the published file
    loaded = load_syncnet(path)
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in state.items())
    assert loaded.name == f"own:{fingerprint(net)}"
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())


def test_the_published_file_gets_its_name_from_its_checksum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from common.files import sha256

    with torch.device("meta"):
        shapes = SyncNet().state_dict()
    path = tmp_path / "syncnet_v2.model"
    torch.save({name: torch.zeros(value.shape, dtype=value.dtype) for name, value in shapes.items()}, path)
    entry = replace(WEIGHTS["syncnet_v2"], sha256=sha256(path))
    monkeypatch.setitem(WEIGHTS, "syncnet_v2", entry)
    monkeypatch.setenv("SPEECHFACE_WEIGHTS", str(tmp_path))
    assert load_syncnet().name == "syncnet_v2"
    monkeypatch.setitem(WEIGHTS, "syncnet_v2", replace(entry, sha256="0" * 64))
    with pytest.raises(UserError, match="torn or another file"):
        load_syncnet()


def test_other_files_are_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPEECHFACE_WEIGHTS", str(tmp_path))
    with pytest.raises(UserError, match=r"'syncnet_v2' are missing: get syncnet_v2\.model"):
        load_syncnet()
    torn = tmp_path / "torn.model"
    torn.write_bytes(b"\x80\x02\x8a\nl\xfc")
    with pytest.raises(UserError, match="torn"):
        load_syncnet(torn)
    with torch.device("meta"):
        shapes = SyncNet().state_dict()
    state = {name: torch.zeros(value.shape) for name, value in shapes.items()}
    for name, value, message in (
        ("netcnnlip.18.weight", torch.zeros(512, 256, 1, 1, 1), r"netcnnlip\.18\.weight is \(512, 256, 1, 1, 1\)"),
        ("generator.weight", torch.zeros(1), r"generator\.weight is \(1,\) there, absent"),
    ):
        path = tmp_path / "other.pth"
        torch.save(state | {name: value}, path)
        with pytest.raises(UserError, match=message):
            load_syncnet(path)
    del state["netfcaud.3.bias"]
    torch.save(state, path)
    with pytest.raises(UserError, match=r"netfcaud\.3\.bias is absent there"):
        load_syncnet(path)


def test_fingerprint_follows_weights_and_shape_only(small: SyncNet) -> None:
    assert fingerprint(small) == fingerprint(narrow())
    assert fingerprint(small) != fingerprint(narrow(region=Region(top=0.5)))
    other = narrow()
    with torch.no_grad():
        other.netfclip[3].bias[0] += 1e-3
    assert fingerprint(small) != fingerprint(other)


@pytest.mark.gpu
def test_cuda_embeds_like_the_cpu(small: SyncNet) -> None:
    frames, wave = images(25), torch.rand(25 * 640, generator=torch.Generator().manual_seed(3)) - 0.5
    lips, sounds = embed_frames(small, frames), embed_wave(small, wave)
    there = narrow().cuda()
    torch.testing.assert_close(embed_frames(there, frames), lips, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(embed_wave(there, wave), sounds, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(F.normalize(lips), F.normalize(embed_frames(there, frames)), rtol=1e-3, atol=1e-3)
