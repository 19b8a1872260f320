"""The reconstruction network, its checkpoints, the alignment against POS and PIL, and coefficients by name."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from scipy import ndimage
from scipy.io import loadmat
from torch import Tensor, nn
from torchvision.models import resnet50

from common.errors import UserError
from common.face3d.coefficients import COUNT, SIZES, join, split
from common.face3d.recon import (
    STANDARD_POINTS,
    ReconNet,
    alignment,
    five_points,
    load_recon,
    reconstruct,
    upwards,
)
from common.faces.align import to_tensor, warp

FIVE = ([36, 39], [42, 45], [30], [48], [54])
WIDTHS = [80, 64, 80, 3, 27, 2, 1]


def face(scale: float, angle: float, centre: tuple[float, float], seed: int = 0, noise: float = 0.0) -> np.ndarray:
    """(68,2) landmarks whose five points are the standard ones, turned, scaled to `scale` px per unit and moved."""
    rng = np.random.default_rng(seed)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    points = rng.uniform(-1, 1, (68, 2))
    for rows, standard in zip(FIVE, STANDARD_POINTS, strict=True):
        points[rows] = standard[:2]
    if len(points):
        points[36, 0] -= 0.1
        points[39, 0] += 0.1
    points += noise * rng.standard_normal((68, 2))
    return points * [1, -1] @ turn * scale + centre


def pos(five: np.ndarray, standard: np.ndarray) -> tuple[np.ndarray, float]:
    """Shift and scale of the least-squares affine map from (5,3) to (5,2), as one system of ten equations."""
    system, target = np.zeros((10, 8)), np.zeros(10)
    for k in range(5):
        system[2 * k, :4] = [*standard[k], 1]
        system[2 * k + 1, 4:] = [*standard[k], 1]
        target[2 * k : 2 * k + 2] = five[k]
    solved = np.linalg.lstsq(system, target, rcond=None)[0]
    return solved[[3, 7]], (np.linalg.norm(solved[:3]) + np.linalg.norm(solved[4:7])) / 2


def upstream_crop(image: np.ndarray, landmarks: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Deep3DFaceRecon's crop with its rounding (224,224,3), the (2,3) map that it amounts to, and the map unrounded."""
    height, width = image.shape[:2]
    pixels = landmarks - 0.5  # whole-pixel coordinates, then counted upwards
    pixels = np.stack([pixels[:, 0], height - 1 - pixels[:, 1]], axis=1)
    five = np.stack([pixels[rows].mean(0) for rows in FIVE])
    shift, scale = pos(five, STANDARD_POINTS)
    zoom = 102 / scale
    columns, rows = int(width * zoom), int(height * zoom)
    left = int(columns / 2 - 112 + (shift[0] - width / 2) * zoom)
    top = int(rows / 2 - 112 + (height / 2 - shift[1]) * zoom)
    picture = Image.fromarray(image).resize((columns, rows), Image.Resampling.BICUBIC)
    cut = np.asarray(picture.crop((left, top, left + 224, top + 224)))
    rounded = np.array([[columns / width, 0, -left], [0, rows / height, -top]])
    exact = np.array(
        [[zoom, 0, 112 - shift[0] * zoom], [0, zoom, 112 - height * zoom + shift[1] * zoom]]
    )  # the same without int()
    return cut, rounded, exact


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).uniform(0, 255, (height, width, 3))
    smooth = ndimage.gaussian_filter(noise, (3, 3, 0))
    return ((smooth - smooth.min()) / np.ptp(smooth) * 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("scale", "angle", "centre"),
    [(102.0, 0.0, (150.0, 140.0)), (61.3, 0.4, (160.2, 133.7)), (170.0, -0.7, (141.1, 190.4))],
)
def test_alignment_is_upstreams_without_its_rounding(scale: float, angle: float, centre: tuple[float, float]) -> None:
    landmarks, image = face(scale, angle, centre, noise=0.03), photo(301, 280)
    cut, rounded, exact = upstream_crop(image, landmarks)
    matrix = alignment(landmarks[None])[0]
    np.testing.assert_allclose(matrix, exact, atol=1e-9)
    box = np.array([[0, 0], [280, 0], [0, 301], [280, 301]])
    moved = box @ (matrix - rounded)[:, :2].T + (matrix - rounded)[:, 2]
    assert 0 < np.abs(moved).max() < 2.5  # upstream's rounding of size and crop
    # the rounded map, drawn by the house, is upstream's picture: the half pixels are right
    drawn = warp(to_tensor(image), rounded[None], (224, 224), border="zeros")[0].permute(1, 2, 0).numpy()
    inside = warp(torch.ones(1, 1, 301, 280), rounded[None], (224, 224), border="zeros")[0, 0].numpy() > 0.99
    inside = ndimage.binary_erosion(inside, iterations=3)
    assert inside.mean() > 0.3
    difference = np.abs(drawn - cut)[inside].mean()
    assert difference < 1.0
    for half in ((0.5, 0), (0, 0.5)):
        shifted = rounded + np.array([[0, 0, half[0]], [0, 0, half[1]]])
        other = warp(to_tensor(image), shifted[None], (224, 224), border="zeros")[0].permute(1, 2, 0).numpy()
        assert np.abs(other - cut)[inside].mean() > 1.5 * difference


def test_alignment_of_the_standard_face_by_hand() -> None:
    matrix = alignment(face(102.0, 0.0, (300.0, 200.0))[None])[0]
    np.testing.assert_allclose(matrix, [[1, 0, -187.5], [0, 1, -88.5]], atol=1e-6)
    matrix = alignment(face(51.0, 0.0, (300.0, 200.0))[None])[0]
    np.testing.assert_allclose(matrix[:, :2], 2 * np.eye(2), atol=1e-6)
    np.testing.assert_allclose(alignment(face(51.0, 0.0, (9, 9))[None], scale=51.0)[0, :, :2], np.eye(2), atol=1e-6)


def test_alignment_of_many_frames_and_of_none() -> None:
    frames = np.stack([face(80 + k, 0.1 * k, (100 + k, 90), seed=k, noise=0.05) for k in range(5)]).astype(np.float32)
    frames[2, 40] = np.nan
    matrices = alignment(frames)
    assert np.isnan(matrices[2]).all()
    for k in (0, 1, 3, 4):
        np.testing.assert_allclose(matrices[k], alignment(frames[k : k + 1])[0])
    assert alignment(np.zeros((0, 68, 2))).shape == (0, 2, 3)
    assert np.isnan(alignment(np.full((2, 68, 2), np.nan))).all()
    with pytest.raises(UserError, match="all lie in one point"):
        alignment(np.full((1, 68, 2), 5.0))
    with pytest.raises(UserError, match=r"not \(68, 2\)"):
        alignment(np.zeros((68, 2)))


def test_landmarks_as_upstream_counts_them() -> None:
    landmarks = np.array([[0.5, 0.5], [10.5, 99.5], [3.0, 4.0]])
    np.testing.assert_array_equal(upwards(landmarks, 100), [[0, 99], [10, 0], [2.5, 95.5]])
    marks = face(60, 0.2, (70, 60), noise=0.1)[None]
    np.testing.assert_allclose(five_points(marks)[0], [marks[0, rows].mean(0) for rows in FIVE])


@pytest.mark.media
def test_standard_points_are_those_of_the_published_file(media: Path) -> None:
    path = media / "bfm_index" / "similarity_Lm3D_all.mat"
    if not path.is_file():
        pytest.skip(f"no {path}")
    marks = loadmat(path)["lm"].astype(np.float64)
    np.testing.assert_allclose(STANDARD_POINTS, [marks[rows].mean(0) for rows in FIVE], atol=1e-7)


def test_coefficients_by_name() -> None:
    flat = torch.arange(2.0 * COUNT).view(2, COUNT)
    parts = split(flat)
    starts = {"identity": 0, "expression": 80, "albedo": 144, "angles": 224, "gamma": 227, "translation": 254}
    assert {name: part[0, 0].item() for name, part in parts.items()} == starts
    assert {name: part.shape[1] for name, part in parts.items()} == dict(SIZES)
    assert COUNT == 257
    assert torch.equal(join(dict(reversed(parts.items()))), flat), "order comes from names"
    clip = {name: torch.rand(7, size) for name, size in SIZES.items()} | {"identity": torch.rand(80)}
    joined = join(clip)
    assert joined.shape == (7, 257)
    for name, part in split(joined).items():
        assert torch.equal(part, clip[name].expand_as(part))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda p: p.pop("gamma"), r"lack \['gamma'\]"),
        (lambda p: p.update(pose=torch.zeros(6)), r"unknown \['pose'\]"),
        (lambda p: p.update(angles=torch.zeros(2, 6)), r"angles has shape \(2, 6\): its last axis must hold 3"),
        (lambda p: p.update(angles=torch.tensor(1.0)), "angles has shape"),
        (lambda p: p.update(gamma=torch.zeros(3, 27), albedo=torch.zeros(2, 80)), "leading axes do not fit"),
    ],
)
def test_coefficients_that_do_not_fit_are_named(edit: Callable[[dict[str, Tensor]], object], message: str) -> None:
    parts = {name: torch.zeros(size) for name, size in SIZES.items()}
    edit(parts)
    with pytest.raises(UserError, match=message):
        join(parts)
    with pytest.raises(UserError, match=r"shape \(4, 256\): the last axis must hold 257"):
        split(torch.zeros(4, 256))


def published_shapes() -> dict[str, torch.Size]:
    """Keys and shapes of `net_recon`: torchvision's ResNet-50 without its classifier, and seven heads."""
    with torch.device("meta"):
        backbone = resnet50(weights=None).state_dict()
    shapes = {f"backbone.{name}": value.shape for name, value in backbone.items() if not name.startswith("fc.")}
    for index, width in enumerate(WIDTHS):
        shapes |= {f"final_layers.{index}.weight": torch.Size([width, 2048, 1, 1])}
        shapes |= {f"final_layers.{index}.bias": torch.Size([width])}
    return shapes


def tiny_state() -> dict[str, Tensor]:
    """A state of the published shapes that takes a few bytes per tensor on disk: every tensor is one number."""
    generator = torch.Generator().manual_seed(1)
    return {
        name: torch.tensor(7) if "num_batches" in name else (0.02 * torch.rand(1, generator=generator)).expand(shape)
        for name, shape in published_shapes().items()
    }


def write_checkpoint(path: Path, state: dict[str, Tensor]) -> Path:
    """epoch_20.pth as upstream's BaseModel saves it: network, Adam and its schedule."""
    weight = nn.Parameter(torch.zeros(3))
    adam = torch.optim.Adam([weight], lr=1e-4)
    weight.grad = torch.ones(3)
    schedule = torch.optim.lr_scheduler.StepLR(adam, step_size=10, gamma=0.2)
    adam.step()
    schedule.step()
    torch.save({"net_recon": state, "opt_00": adam.state_dict(), "sched_00": schedule.state_dict()}, path)
    return path


@pytest.fixture(scope="module")
def source() -> ReconNet:
    """The real network with random weights, made without ResNet's slow initialisation."""
    with torch.device("meta"):
        network = ReconNet()
    network.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    for name, value in network.state_dict().items():
        if value.is_floating_point():
            width = 0.05 if value.dim() == 4 else 0.5
            value.uniform_(-width, width, generator=generator)
            if value.dim() == 1 and not name.endswith("bias"):
                value += 1
        else:
            value.fill_(7)
    return network.eval().requires_grad_(False)


def test_network_has_the_published_keys_and_order(source: ReconNet) -> None:
    assert {name: value.shape for name, value in source.state_dict().items()} == published_shapes()
    assert sum(WIDTHS) == COUNT
    with torch.device("meta"):
        plain = resnet50(weights=None)
    classifier = {"fc.weight": torch.zeros(1000, 2048), "fc.bias": torch.zeros(1000)}
    plain.load_state_dict(source.backbone.state_dict() | classifier, assign=True)
    seen: list[Tensor] = []
    plain.avgpool.register_forward_hook(lambda module, inputs, output: seen.append(output.flatten(1)))
    images = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain.eval()(images)
    expected = [seen[0] @ head.weight.flatten(1).T + head.bias for head in source.final_layers]
    found = source(images)
    assert found.shape == (2, COUNT)
    assert found.std() > 1e-3
    torch.testing.assert_close(found, torch.cat(expected, dim=1), rtol=1e-3, atol=1e-3 * float(found.std()))


def test_both_checkpoints_load_to_the_same_frozen_network(source: ReconNet, tmp_path: Path) -> None:
    state = source.state_dict()
    others = {"mapping.face_3drecon.bias": torch.zeros(2), "audio2exp.weight": torch.zeros(3)}
    paths = [write_checkpoint(tmp_path / "epoch_20.pth", state), tmp_path / "SadTalker_V0.0.2_256.safetensors"]
    save_file({f"face_3drecon.{name}": value for name, value in state.items()} | others, paths[1])
    for path in (*paths, tmp_path):
        network = load_recon(path)
        assert not any(module.training for module in network.modules())
        assert not any(parameter.requires_grad for parameter in network.parameters())
        loaded = network.state_dict()
        assert loaded.keys() == state.keys()
        assert all(torch.equal(loaded[name], value) for name, value in state.items())
    assert network(torch.rand(1, 3, 64, 64)).shape == (1, COUNT)
    for path in paths:
        path.unlink()  # 100 MB each


def test_weights_folder_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPEECHFACE_WEIGHTS", str(tmp_path))
    with pytest.raises(UserError, match=r"epoch_20\.pth from https://github.com/sicxu/Deep3DFaceRecon_pytorch"):
        load_recon()
    with pytest.raises(UserError, match=r"put it at .*mine\.pth"):
        load_recon(tmp_path / "mine.pth")
    write_checkpoint(tmp_path / "epoch_20.pth", tiny_state())
    assert load_recon().final_layers[6].bias.shape == (1,)


def renamed(state: dict[str, Tensor], old: str, new: str) -> dict[str, Tensor]:
    return {name.replace(old, new): value for name, value in state.items()}


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda s: s.pop("backbone.bn1.weight"), r"ResNet-50 and seven heads\): it lacks backbone.bn1.weight"),
        (lambda s: s.update({"backbone.fc.weight": torch.zeros(2)}), "it also holds backbone.fc.weight"),
        (lambda s: s.update({"final_layers.3.bias": torch.zeros(6)}), r"final_layers.3.bias is \(6,\), wanted \(3,\)"),
        (lambda s: s.update({"final_layers.3.bias": torch.full((3,), torch.nan)}), "final_layers.3.bias is not finite"),
        (lambda s: s.clear(), "it"),
        (lambda s: s.update(renamed(s, "backbone.", "net.")), "it also holds net.* and 3.* more"),
    ],
)
def test_other_networks_are_named(tmp_path: Path, edit: Callable[[dict[str, Tensor]], object], message: str) -> None:
    state = tiny_state()
    edit(state)
    path = write_checkpoint(tmp_path / "mine.pth", state)
    with pytest.raises(UserError, match=message) as caught:
        load_recon(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.pth"
    torch.save({"g_ema": tiny_state(), "args": {}}, path)
    with pytest.raises(UserError, match="no dictionary 'net_recon'; it holds g_ema, args"):
        load_recon(path)
    save_file({"generator.weight": torch.zeros(2)}, path)
    with pytest.raises(UserError, match=r"no keys face_3drecon\.\*, it holds generator: use SadTalker's"):
        load_recon(path)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(UserError, match="torn"):
        load_recon(path)
    for content in (b"", b"<html>404</html>", (1 << 40).to_bytes(8, "little") + b"{}"):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"mine\.pth"):
            load_recon(path)


class Probe(nn.Module):
    """Stands for the ResNet: coarse colours of the crop, so that any shift of the crop shows."""

    def forward(self, images: Tensor) -> Tensor:
        assert images.shape[1:] == (3, 224, 224)
        assert images.min() >= 0
        assert images.max() <= 1
        return nn.functional.adaptive_avg_pool2d(images, 4).flatten(1)


def probe() -> ReconNet:
    torch.manual_seed(0)
    return ReconNet(Probe(), features=48).eval()


@pytest.mark.parametrize("size", [(301, 480), (1201, 1007), (90, 75)])
def test_reconstruct_equals_frame_by_frame(size: tuple[int, int]) -> None:
    network, (height, width) = probe(), size
    scale = min(size) / 3.1
    landmarks = np.stack([face(scale + k, 0.1 * k, (width / 2 + 5 * k, height / 2 - 3 * k), k) for k in range(5)])
    landmarks[4] += [width, 0.3 * height]  # outside the frame
    landmarks[1, 8] = np.nan
    images = np.stack([photo(height, width, seed) for seed in range(5)])
    found = reconstruct(network, iter(images), landmarks, batch=2)
    assert found.matrices.shape == (5, 2, 3)
    values = join(found.coefficients)
    assert values.shape == (5, 257)
    assert values[1].isnan().all()
    assert np.isnan(found.matrices[1]).all()
    for k in (0, 2, 3, 4):
        whole = warp(to_tensor(images[k]) / 255, found.matrices[k][None], (224, 224), border="zeros")
        with torch.no_grad():
            torch.testing.assert_close(values[k], network(whole)[0], atol=2e-4, rtol=0)
    alone = reconstruct(network, images, landmarks, batch=5)
    torch.testing.assert_close(join(alone.coefficients), values, atol=2e-4, rtol=0, equal_nan=True)


def test_reconstruct_reads_no_more_than_a_batch_ahead() -> None:
    taken: list[int] = []

    def frames() -> Iterator[np.ndarray]:
        for k in range(9):
            taken.append(k)
            yield photo(60, 70, k)

    class Counter(Probe):
        def forward(self, images: Tensor) -> Tensor:
            seen.append(len(taken))
            return super().forward(images)

    seen: list[int] = []
    network = ReconNet(Counter(), features=48).eval()
    reconstruct(network, frames(), np.repeat(face(20, 0, (30, 30))[None], 9, axis=0), batch=4)
    assert seen == [4, 8, 9]


def test_reconstruct_refuses_what_does_not_fit() -> None:
    network, landmarks = probe(), np.repeat(face(20, 0, (30, 30))[None], 3, axis=0)
    images = [photo(60, 70, k) for k in range(3)]
    with pytest.raises(UserError, match="there are 2 frames but more rows"):
        reconstruct(network, images[:2], landmarks)
    with pytest.raises(UserError, match="more frames than the 3 rows"):
        reconstruct(network, [*images, images[0]], landmarks, batch=2)
    with pytest.raises(UserError, match=r"frame 2 is float64 \(60, 70, 3\), wanted uint8"):
        reconstruct(network, [*images[:2], images[2] / 255], landmarks)
    with pytest.raises(UserError, match=r"frame 1 is uint8 \(61, 70, 3\)"):
        reconstruct(network, [images[0], photo(61, 70), images[2]], landmarks)
    nothing = reconstruct(network, [], np.zeros((0, 68, 2)))
    assert nothing.coefficients["expression"].shape == (0, 64)
    lost = reconstruct(network, images, np.full((3, 68, 2), np.nan))
    assert lost.coefficients["angles"].isnan().all()
