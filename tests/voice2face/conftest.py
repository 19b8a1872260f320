"""What several tests of voice2face need."""

import sys
import types
from collections.abc import Iterator

import pytest
import torch

from tests.voice2face.toy_stylegan2_files import EasyDict, reconstruct


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Networks this small gain nothing from a second thread, and wait long for it on a busy machine."""
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(count)


@pytest.fixture
def nvidia_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the test pickle under NVIDIA's names; `reconstruct` fails should the reader ever call it."""
    for module, item, name in (
        ("torch_utils.persistence", reconstruct, "_reconstruct_persistent_obj"),
        ("dnnlib.util", EasyDict, "EasyDict"),
    ):
        monkeypatch.setitem(sys.modules, module.partition(".")[0], types.ModuleType(module.partition(".")[0]))
        fake = types.ModuleType(module)
        setattr(fake, name, item)
        monkeypatch.setitem(sys.modules, module, fake)
