"""FaceNet on a file of the published names and shapes with random numbers."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from common.errors import UserError
from common.faces import load_embedder
from common.faces.facenet import FaceNetEmbedder, InceptionResNetV1, load_facenet

PEOPLE = 8631


def published() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the published file, written from its layers."""
    shapes: dict[str, tuple[int, ...]] = {}

    def conv(name: str, inner: int, outer: int, *kernel: int) -> None:
        shapes[f"{name}.conv.weight"] = (outer, inner, *kernel)
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.bn.{part}"] = (outer,)
        shapes[f"{name}.bn.num_batches_tracked"] = ()

    for name, inner, outer, side in (
        ("1a", 3, 32, 3), ("2a", 32, 32, 3), ("2b", 32, 64, 3), ("3b", 64, 80, 1), ("4a", 80, 192, 3),
        ("4b", 192, 256, 3),
    ):  # fmt: skip
        conv(f"conv2d_{name}", inner, outer, side, side)

    def block(name: str, channels: int, width: int, tails: list[list[tuple[int, int]]]) -> None:
        conv(f"{name}.branch0", channels, width, 1, 1)
        for branch, kernels in enumerate(tails, start=1):
            conv(f"{name}.branch{branch}.0", channels, width, 1, 1)
            for number, kernel in enumerate(kernels, start=1):
                conv(f"{name}.branch{branch}.{number}", width, width, *kernel)
        shapes[f"{name}.conv2d.weight"] = (channels, width * (1 + len(tails)), 1, 1)
        shapes[f"{name}.conv2d.bias"] = (channels,)

    for i in range(5):
        block(f"repeat_1.{i}", 256, 32, [[(3, 3)], [(3, 3), (3, 3)]])
        block(f"repeat_3.{i}", 1792, 192, [[(1, 3), (3, 1)]])
    for i in range(10):
        block(f"repeat_2.{i}", 896, 128, [[(1, 7), (7, 1)]])
    block("block8", 1792, 192, [[(1, 3), (3, 1)]])
    conv("mixed_6a.branch0", 256, 384, 3, 3)
    for number, (inner, outer, side) in enumerate([(256, 192, 1), (192, 192, 3), (192, 256, 3)]):
        conv(f"mixed_6a.branch1.{number}", inner, outer, side, side)
    for branch, widths in enumerate([(256, 384), (256, 256), (256, 256, 256)]):
        for number, (inner, outer) in enumerate(zip((896, *widths), widths, strict=False)):
            conv(f"mixed_7a.branch{branch}.{number}", inner, outer, *(1, 1) if number == 0 else (3, 3))
    shapes["last_linear.weight"] = (512, 1792)
    shapes |= {f"last_bn.{part}": (512,) for part in ("weight", "bias", "running_mean", "running_var")}
    return shapes | {"last_bn.num_batches_tracked": (), "logits.weight": (PEOPLE, 512), "logits.bias": (PEOPLE,)}


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    """Random numbers of a size that neither dies nor explodes through sixty layers."""
    random = torch.Generator().manual_seed(0)
    values = {}
    for name, shape in published().items():
        if name.startswith("logits"):
            values[name] = torch.zeros(1)  # left out by the loader, which must not mind its size
        elif len(shape) > 1:
            fan = int(np.prod(shape[1:]))
            values[name] = torch.randn(shape, generator=random) * (2 / fan) ** 0.5
        elif name.endswith("tracked"):
            values[name] = torch.tensor(7)
        else:
            low = 0.5 if name.endswith(("weight", "var")) else -0.1
            values[name] = torch.rand(shape, generator=random) * (1.0 if low > 0 else 0.2) + low
    return values


@pytest.fixture(scope="module")
def file(state: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("facenet") / "20180402-114759-random.pt"
    torch.save(state, path)
    return path


def test_names_and_shapes_are_the_published_ones() -> None:
    with torch.device("meta"):
        own = {name: tuple(value.shape) for name, value in InceptionResNetV1().state_dict().items()}
    wanted = {name: shape for name, shape in published().items() if not name.startswith("logits.")}
    assert own == wanted
    counted = [shape for name, shape in published().items() if not name.endswith(("tracked", "mean", "var"))]
    assert sum(int(np.prod(shape)) for shape in counted) == 27_910_327  # with the classifier, as published


def reference(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """The network layer by layer, by names."""

    def conv(name: str, x: Tensor, stride: int = 1, padding: tuple[int, int] = (0, 0)) -> Tensor:
        y = F.conv2d(x, state[f"{name}.conv.weight"], stride=stride, padding=padding)
        norm = [state[f"{name}.bn.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        return F.relu(F.batch_norm(y, *norm, training=False, eps=0.001))

    def residual(name: str, x: Tensor, scale: float, pads: list[list[tuple[int, int]]]) -> Tensor:
        outputs = [conv(f"{name}.branch0", x)]
        for branch, paddings in enumerate(pads, start=1):
            y = x
            for number, padding in enumerate([(0, 0), *paddings]):
                y = conv(f"{name}.branch{branch}.{number}", y, padding=padding)
            outputs.append(y)
        y = F.conv2d(torch.cat(outputs, 1), state[f"{name}.conv2d.weight"], state[f"{name}.conv2d.bias"])
        return x + scale * y

    x = conv("conv2d_2b", conv("conv2d_2a", conv("conv2d_1a", x, 2)), padding=(1, 1))
    x = conv("conv2d_4b", conv("conv2d_4a", conv("conv2d_3b", F.max_pool2d(x, 3, 2))), 2)
    for i in range(5):
        x = F.relu(residual(f"repeat_1.{i}", x, 0.17, [[(1, 1)], [(1, 1), (1, 1)]]))
    y = conv("mixed_6a.branch1.1", conv("mixed_6a.branch1.0", x), padding=(1, 1))
    x = torch.cat([conv("mixed_6a.branch0", x, 2), conv("mixed_6a.branch1.2", y, 2), F.max_pool2d(x, 3, 2)], 1)
    for i in range(10):
        x = F.relu(residual(f"repeat_2.{i}", x, 0.1, [[(0, 3), (3, 0)]]))
    first, second = (conv(f"mixed_7a.branch{b}.1", conv(f"mixed_7a.branch{b}.0", x), 2) for b in (0, 1))
    y = conv("mixed_7a.branch2.1", conv("mixed_7a.branch2.0", x), padding=(1, 1))
    x = torch.cat([first, second, conv("mixed_7a.branch2.2", y, 2), F.max_pool2d(x, 3, 2)], 1)
    for i in range(5):
        x = F.relu(residual(f"repeat_3.{i}", x, 0.2, [[(0, 1), (1, 0)]]))
    x = residual("block8", x, 1.0, [[(0, 1), (1, 0)]]).mean((2, 3)) @ state["last_linear.weight"].T
    norm = [state[f"last_bn.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
    x = F.batch_norm(x, *norm, training=False, eps=0.001)
    return x / x.norm(dim=1, keepdim=True)


def test_a_published_file_computes_its_layers(file: Path, state: dict[str, Tensor]) -> None:
    network = load_facenet(file)
    x = torch.randn(2, 3, 91, 80, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(network(x), reference(state, x), rtol=1e-4, atol=1e-5)
    assert not any(p.requires_grad for p in network.parameters())


def test_crops_of_any_size_become_unit_rows(file: Path) -> None:
    embedder = FaceNetEmbedder(weights=file)
    rng = np.random.default_rng(0)
    crops = [rng.integers(0, 256, (side, side, 3), dtype=np.uint8) for side in (31, 64)]
    rows = embedder.embed(crops)
    assert rows.shape == (2, embedder.dim)
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(2))
    images = torch.from_numpy(crops[1]).permute(2, 0, 1)[None].float() / 127.5 - 1
    torch.testing.assert_close(embedder.embed_tensor(images)[0], rows[1], rtol=1e-3, atol=1e-4)
    images.requires_grad_()
    embedder.embed_tensor(images)[0, 0].backward()
    assert images.grad is not None
    assert images.grad.abs().sum() > 0
    with pytest.raises(UserError, match="square aligned crop"):
        embedder.embed([crops[0][:20]])


def test_other_files_are_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"conv2d_1a.conv.weight": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(UserError, match=r"other\.pt is not FaceNet's") as caught:
        load_facenet(tmp_path / "other.pt")
    assert "\n" not in str(caught.value)
    monkeypatch.setenv("SPEECHFACE_WEIGHTS", str(tmp_path))
    with pytest.raises(UserError, match=r"weights 'facenet_vggface2' are missing: get 20180402-114759-vggface2\.pt"):
        load_embedder("facenet_vggface2")
