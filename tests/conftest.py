"""Fixtures that several packages' tests share."""

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(2)


@pytest.fixture(scope="session")
def media() -> Path:
    """The folder of real photographs, speech and clips; tests that use it carry the `media` marker."""
    folder = os.environ.get("SPEECHFACE_MEDIA")
    if not folder:
        pytest.skip("SPEECHFACE_MEDIA is not set: no real photographs and recordings to test on")
    path = Path(folder)
    if not (path / "real").is_dir():
        pytest.skip(f"SPEECHFACE_MEDIA={folder} has no folder real/")
    return path
