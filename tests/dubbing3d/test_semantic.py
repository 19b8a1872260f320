"""Semantic images come from a folder or from a lip-sync network that never sees the mouth it is to draw."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common.data.corpus import Corpus
from common.errors import UserError
from common.face3d.morphable import load_face_model
from common.video import VideoWriter
from dubbing3d.clips import DubClips
from dubbing3d.coefficients import FaceModelMark
from dubbing3d.config import DataConfig, SemanticConfig
from dubbing3d.semantic import DrawnMouths, far_frames, semantic_images
from lipsync.infer import LipSync
from tests.dubbing3d.toy_dub import toy_dub


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return toy_dub(tmp_path_factory.mktemp("dub") / "corpus", train=2)


def clips(corpus: Corpus, *, cache: bool = False) -> DubClips:
    mark = FaceModelMark.of(load_face_model("builtin"), "builtin")
    return DubClips(corpus, "train", mark, DataConfig(cache=cache), 64, 8)


def test_references_lie_in_another_time() -> None:
    known = np.ones(40, bool)
    known[10:14] = False
    far = far_frames(known)
    assert len(set(far.tolist())) == 2
    assert known[far].all()
    assert (np.abs(far - np.arange(40)) >= 9).all()


class Teacher:
    """In place of a generator: shows the loudness of what is heard, and remembers the references."""

    size, batch, rows = 32, 5, 80

    def __init__(self) -> None:
        from common.audio.lipsync_features import speech_features

        self.features = speech_features("mel")
        self.silence = self.features.silence
        self.seen: list[torch.Tensor] = []

    def draw(self, windows: torch.Tensor, targets: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
        self.seen.append(references)
        loud = (windows.mean((1, 2, 3), keepdim=True) + 4) / 8
        return loud.expand_as(references)


@pytest.mark.parametrize("cache", [False, True])
def test_mouths_are_drawn_for_the_speech(corpus: Corpus, cache: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = Teacher()
    monkeypatch.setattr(LipSync, "load", classmethod(lambda cls, path, **words: (teacher, None)))
    found = DrawnMouths(clips(corpus, cache=cache), Path("x.ckpt"), 40)
    images = found(1, 3, 9)
    assert images.shape == (9, 3, 40, 40)
    assert images.dtype == torch.uint8
    assert torch.equal(found(1, 5, 4), images[2:6])
    assert len(images.flatten(1).float().mean(1).unique()) > 4
    assert len(torch.cat(teacher.seen).flatten(1).unique(dim=0)) <= 2  # frames of another time, not the targets


def test_a_checkpoint_of_another_kind_is_refused(corpus: Corpus, tmp_path: Path) -> None:
    path = tmp_path / "other.ckpt"
    torch.save({"kind": "dubbing3d", "schema": 1, "step": 1, "hyper_parameters": {"cfg": {}}, "state_dict": {}}, path)
    with pytest.raises(UserError) as error:
        semantic_images(clips(corpus), SemanticConfig(checkpoint=str(path)))
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="no such"):
        semantic_images(clips(corpus), SemanticConfig(checkpoint=str(tmp_path / "none.ckpt")))


def test_folders_hold_pictures_or_videos(corpus: Corpus, tmp_path: Path) -> None:
    found = clips(corpus, cache=True)
    levels = np.linspace(20, 230, 24).round().astype(np.uint8)
    for number, level in enumerate(levels):
        path = tmp_path / found.ids[0] / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((50, 60, 3), level)).save(path)
    with pytest.raises(UserError, match="holds 0 pictures, but the clip has 24"):
        semantic_images(found, SemanticConfig(folder=str(tmp_path)))
    (tmp_path / found.ids[1]).parent.mkdir(parents=True, exist_ok=True)
    with VideoWriter(tmp_path / f"{found.ids[1]}.mp4", (48, 48), 25) as writer:
        for level in levels:
            writer.write(np.full((48, 48, 3), level))
    images = semantic_images(found, SemanticConfig(folder=str(tmp_path), size=32))
    for index, tolerance in ((0, 0.5), (1, 6)):
        part = images(index, 4, 6)
        assert part.shape == (6, 3, 32, 32)
        assert np.abs(part.float().mean((1, 2, 3)).numpy() - levels[4:10]).max() <= tolerance
        assert torch.equal(images(index, 6, 3), part[2:5])
    with pytest.raises(UserError, match="no such folder"):
        semantic_images(found, SemanticConfig(folder=str(tmp_path / "none")))
    with pytest.raises(ValueError, match="not both"):
        SemanticConfig(folder="a", checkpoint="b")
