"""Judges: from files under torchvision's names, or trained here; frozen, named, kept."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import vgg19
from torchvision.models.optical_flow import raft_large, raft_small

from common.errors import UserError
from dubbing3d import judges
from dubbing3d.judges import RAFTFlow, VGGFeatures, load_judges
from dubbing3d.judges_base import Frozen
from dubbing3d.judges_features import LEVEL_SCALES, FaceFeatures, train_face_features
from dubbing3d.judges_flow import (
    SmallFlow,
    balanced_error,
    correlate,
    displacements,
    end_point_error,
    random_flow,
    random_pairs,
    random_scale,
    train_flow,
)
from dubbing3d.networks import warp
from tests.dubbing3d.toy_networks import images


def smooth(count: int, side: int = 96) -> Tensor:
    return F.interpolate(images(count, 3, 9, 9), size=side, mode="bicubic", align_corners=False).clamp(-1, 1)


@pytest.fixture(scope="module")
def vgg_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The convolutions of torchvision's network, as its file has them, without the 0.5 GB of linear layers."""
    with torch.device("meta"):
        shapes = {name: x.shape for name, x in vgg19().state_dict().items() if name.startswith("features.")}
    path = tmp_path_factory.mktemp("vgg") / "vgg.pth"
    generator = torch.Generator().manual_seed(0)
    scale = {4: 0.03, 1: 0.0}
    state = {name: torch.randn(shape, generator=generator) * scale[len(shape)] for name, shape in shapes.items()}
    torch.save(state, path)
    return path


def test_vgg_taps_the_five_layers(vgg_file: Path) -> None:
    judge = VGGFeatures(vgg_file)
    assert "VGG-19 from vgg.pth" in judge.name
    picture = images(1, 3, 32, 32)
    seen = judge(picture)
    assert [x.shape[1:] for x in seen] == [(64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4), (512, 2, 2)]
    state = torch.load(vgg_file, weights_only=True)
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = ((picture + 1) / 2 - mean[:, None, None]) / deviation[:, None, None]
    first = F.conv2d(x, state["features.0.weight"], padding=1).relu()
    assert torch.allclose(seen[0], first, atol=1e-5)
    second = F.conv2d(first, state["features.2.weight"], padding=1).relu()
    second = F.conv2d(F.max_pool2d(second, 2), state["features.5.weight"], padding=1).relu()
    assert torch.allclose(seen[1], second, atol=1e-4)


@pytest.mark.parametrize(("build", "size"), [(raft_small, "small"), (raft_large, "large")])
def test_raft_is_read_and_enlarges_small_images(build: type[nn.Module], size: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = tmp_path / "raft.pth"
    network = build().eval()
    torch.save(network.state_dict(), path)
    judge = RAFTFlow(path)
    assert f"RAFT {size} from raft.pth" in judge.name
    first, second = smooth(1, 64), smooth(1, 64).roll(2, dims=3)
    big = [F.interpolate(x, size=128, mode="bilinear") for x in (first, second)]
    with torch.no_grad():
        expected = F.interpolate(network(*big, num_flow_updates=5)[-1], size=64, mode="bilinear") / 2
        assert torch.allclose(judge(first, second), expected, atol=1e-5)
        assert judge.features(first).shape[2:] == (16, 16)


def test_files_of_other_networks_are_refused(vgg_file: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a state dict of torchvision's RAFT"):
        RAFTFlow(vgg_file)
    other = tmp_path / "other.pth"
    torch.save({"weight": torch.zeros(2)}, other)
    with pytest.raises(UserError, match="not a state dict of VGG-19"):
        VGGFeatures(other)
    with pytest.raises(UserError, match="cannot read weights"):
        VGGFeatures(tmp_path / "absent.pth")
    other.write_bytes(b"torn")
    with pytest.raises(UserError, match=r"other\.pth"):
        VGGFeatures(other)


@pytest.mark.parametrize("build", [SmallFlow, FaceFeatures])
def test_a_frozen_judge_does_not_move(build: type[Frozen]) -> None:
    torch.manual_seed(0)
    holder = nn.Module()
    holder.judge = judge = build().freeze()
    before = {name: value.clone() for name, value in judge.state_dict().items()}
    holder.train()
    assert not any(module.training for module in judge.modules())
    picture = images(2, 3, 96, 96).requires_grad_()
    seen = judge(picture, picture.detach()) if isinstance(judge, SmallFlow) else judge(picture)[-1]
    seen.square().sum().backward()
    assert all(value.grad is None and not value.requires_grad for value in judge.parameters())
    for name, value in judge.state_dict().items():
        assert torch.equal(value, before[name]) or value.isnan().all()
    if isinstance(judge, FaceFeatures):
        assert picture.grad is not None
        assert picture.grad.any()


def test_known_flows_are_smooth_and_within_reach() -> None:
    flow = random_flow(32, 96, torch.Generator().manual_seed(0))
    assert flow.shape == (32, 2, 96, 96)
    assert 1 < flow.norm(dim=1).mean() < 10
    assert flow.diff(dim=3).abs().max() < 2
    assert torch.equal(flow, random_flow(32, 96, torch.Generator().manual_seed(0)))


def test_known_flows_lead_from_the_first_image_to_the_second() -> None:
    frames = smooth(16)
    first, second, flow = random_pairs(frames, torch.Generator().manual_seed(1), torch.ones(16, 1, 1, 1))
    centred = [x - x.mean(dim=(2, 3), keepdim=True) for x in (first, second, warp(second, flow, border="reflection"))]
    assert (centred[2] - centred[0]).abs().mean() < 0.6 * (centred[1] - centred[0]).abs().mean()


def test_correlation_agrees_with_a_loop() -> None:
    first, second = images(2, 3, 5, 6), images(2, 3, 5, 6).flip(0)
    found = correlate(first, second, 1).unflatten(1, (3, 3))
    one, two = (F.normalize(x - x.mean(dim=(2, 3), keepdim=True), dim=1, eps=1e-3) for x in (first, second))
    for y in range(5):
        for x in range(6):
            for down in (-1, 0, 1):
                for right in (-1, 0, 1):
                    inside = 0 <= y + down < 5 and 0 <= x + right < 6
                    wanted = (one[1, :, y, x] @ two[1, :, y + down, x + right]).item() if inside else 0.0
                    assert found[1, down + 1, right + 1, y, x].item() == pytest.approx(wanted, abs=1e-5)


def test_the_likeliest_displacement_is_that_of_the_best_cost() -> None:
    costs = torch.zeros(1, 25, 2, 2)
    costs[0, 2 * 5 + 4, 0, 0] = 1.0  # row 2 of -2 to 2 is 0, column 4 is 2
    costs[0, 3 * 5 + 1, 1, 1] = 1.0
    cautious, bold = displacements(costs, 2).split(2, dim=1)
    torch.testing.assert_close(bold[0, :, 0, 0], torch.tensor([2.0, 0.0]), atol=1e-3, rtol=0)
    torch.testing.assert_close(bold[0, :, 1, 1], torch.tensor([-1.0, 1.0]), atol=1e-3, rtol=0)
    assert bold[0, :, 0, 1].abs().max() < 1e-6
    assert 1 < cautious[0, 0, 0, 0] < bold[0, 0, 0, 0]


def test_half_of_the_flows_are_small() -> None:
    scale = random_scale(2000, torch.Generator().manual_seed(0)).flatten()
    assert (scale == 1).float().mean().item() == pytest.approx(0.5, abs=0.05)
    small = scale[scale < 1].log10()
    assert (small.min().item(), small.max().item()) == pytest.approx((-1.7, 0), abs=0.05)
    assert small.mean().item() == pytest.approx(-0.85, abs=0.05)


def test_balanced_errors_weigh_small_flows_more() -> None:
    flow = torch.zeros(2, 2, 8, 8)
    flow[0, 0, :, :6], flow[1, 0] = 2.0, 0.1
    flow[0, 0, :, 6:] = -2.0
    error = balanced_error(flow + torch.tensor([0.0, 0.3])[:, None, None], flow).item()
    inside = (torch.tensor([64, 8 * 7]) * 0.3 / torch.tensor([2.3, 0.4]).sqrt()).sum() / (64 + 8 * 7)
    assert error == pytest.approx(inside.item(), rel=1e-3)


def test_errors_count_where_the_flow_stays_in_the_image() -> None:
    flow = torch.zeros(1, 2, 4, 4)
    flow[:, 0, :, 2:] = 2.0
    found = flow.clone()
    found[:, :, :, 2:] = 100.0
    found[0, 1, 0, 0] = 8.0
    assert end_point_error(found, flow).item() == pytest.approx(1.0, abs=1e-2)


def test_the_own_flow_network_learns_in_the_direction_of_warp() -> None:
    """A few steps already explain part of a shift; the sign and the size at 96 and 192 px are right."""
    frames = smooth(32)
    judge = train_flow(frames, steps=25)
    assert (judge.error > 0).all()
    assert (judge.error < torch.tensor([1.05, 0.95]) * judge.still).all()
    assert 0.3 < judge.still[0] < 1 < judge.still[1]
    assert "of no flow's where faces hardly move" in judge.quality()
    flow = torch.zeros(8, 2, 96, 96)
    flow[:, 0] = 4
    second = frames[:8]
    first = warp(second, flow, border="reflection")
    found = judge(first, second)
    assert found[:, 0].mean() > 0.5
    big = judge(*(F.interpolate(x, size=192, mode="bilinear") for x in (first, second)))
    assert big.shape == (8, 2, 192, 192)
    assert big[:, 0].mean().item() == pytest.approx(2 * found[:, 0].mean().item(), rel=0.2)
    assert judge.features(first).shape == (8, 24, 24, 24)


def test_own_features_are_standardised_and_differ_by_picture() -> None:
    judge = train_face_features(smooth(40), steps=4)
    seen = judge(smooth(40))
    assert [x.shape[2] for x in seen] == [96, 48, 24, 12, 6]
    for x, scale in zip(seen, LEVEL_SCALES, strict=True):
        assert (x / scale).mean(dim=(0, 2, 3)).abs().max() < 0.5
        assert 0.3 < (x / scale).std() < 3
    lighter = judge(smooth(40) * 1.2 + 0.1)
    assert all((a - b).abs().mean() < 0.1 * a.abs().mean() for a, b in zip(seen, lighter, strict=True))
    assert judge(images(1, 3, 64, 64))[-1].shape[2] == 4


def test_own_judges_are_trained_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    frames = smooth(32, 64)
    first = load_judges(lambda: frames, tmp_path / "judges", steps=1, log=said.append)
    files = sorted(path.name for path in (tmp_path / "judges").iterdir())
    assert [name.rsplit("-", 1)[0] for name in files] == ["judge-features", "judge-flow"]
    assert "face features own:" in said[0]
    assert "flow network own:" in said[1]

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("trained again")

    for name in ("train_flow", "train_face_features"):
        monkeypatch.setattr(judges, name, refuse)
    again = load_judges(lambda: frames, tmp_path / "judges", steps=1, log=said.append)
    picture = images(1, 3, 96, 96)
    assert all(torch.equal(a, b) for a, b in zip(first.features(picture), again.features(picture), strict=True))
    assert torch.equal(first.flow(picture, -picture), again.flow(picture, -picture))
    assert again.flow.name == first.flow.name
    with pytest.raises(AssertionError, match="trained again"):
        load_judges(lambda: -frames, tmp_path / "judges", steps=1, log=said.append)


def test_files_need_no_frames(vgg_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "raft.pth"
    torch.save(raft_small().state_dict(), path)

    def refuse() -> Tensor:
        raise AssertionError("not needed")

    said: list[str] = []
    both = load_judges(refuse, tmp_path, vgg=vgg_file, raft=path, log=said.append)
    assert isinstance(both.features, VGGFeatures)
    assert isinstance(both.flow, RAFTFlow)
    assert "VGG-19" in said[0]
    assert "RAFT small" in said[1]


def test_too_few_frames_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at least 32 frames, got 3"):
        load_judges(lambda: smooth(3), tmp_path, steps=1)
