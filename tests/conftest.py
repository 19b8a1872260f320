"""Fixtures that several packages' tests share."""

import os
from pathlib import Path

import pytest
import torch

from common.data.corpus import Corpus

# librosa compiles itself into a cache on disk, which numba does not guard against two processes that write at a time.
_WORKER = os.environ.get("PYTEST_XDIST_WORKER", "main")
os.environ["NUMBA_CACHE_DIR"] = str(Path(__file__).parents[1] / ".pytest_cache" / f"numba-{_WORKER}")

# The networks of tests are too small to share, and threads that wait for each other stall on a busy machine.
torch.set_num_threads(1)


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


@pytest.fixture(scope="session")
def identity_corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Three synthetic people with three recordings and three faces of 32 px each; read only."""
    from common.synthetic.build import IdentityCorpusOptions, build_identity_corpus  # most tests need none of it

    options = IdentityCorpusOptions(identities=3, voices=3, faces=3, size=32)
    return build_identity_corpus(tmp_path_factory.mktemp("identity") / "corpus", options, workers=0)


@pytest.fixture(scope="session")
def talking_corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Three synthetic people who say a Mandarin sentence each, in 64 px: one to train on, one in val, one in test."""
    from common.synthetic.talking import TalkingCorpusOptions, build_talking_corpus  # most tests need none of it

    options = TalkingCorpusOptions(identities=3, seconds=6, size=64, languages=["zh"])
    return build_talking_corpus(tmp_path_factory.mktemp("talking") / "corpus", options, workers=0)
