"""What several tests of training share."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.common.toy_gan import toy_config, train_toy


@pytest.fixture(scope="module")
def threads() -> Iterator[None]:
    """Give the process its threads back: the toy's bits are compared on one."""
    count = torch.get_num_threads()
    yield
    torch.set_num_threads(count)


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of an uninterrupted run of the toy; read only."""
    count = torch.get_num_threads()
    folder, _ = train_toy(toy_config(tmp_path_factory.mktemp("whole")))
    torch.set_num_threads(count)
    return folder
