from pathlib import Path

import pytest

from common.data.corpus import Corpus, Item, write_manifest
from common.dubbing.held_out import given_or_held_out, held_out_pair
from common.errors import UserError


def corpus_of(root: Path, *tested: tuple[str, str]) -> Corpus:
    """A corpus of clips (person, name), those given in the test split."""
    clips = [("a", "1", "train"), ("b", "1", "val"), *((person, name, "test") for person, name in tested)]
    items = []
    for person, name, split in clips:
        path = f"clips/{person}/{name}"
        (root / path).mkdir(parents=True)
        items.append(Item(path, person, split, "clip", path, frames=50, fps=25.0))
    write_manifest(root, items)
    return Corpus.open(root)


def test_somebody_speaks_with_the_words_of_another(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path, ("d", "2"), ("c", "1"), ("c", "2"))
    assert held_out_pair(corpus) == (tmp_path / "clips/c/1/video.mp4", tmp_path / "clips/d/2/audio.wav")


def test_one_person_alone_speaks_the_words_of_another_clip(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path, ("c", "1"), ("c", "2"))
    assert held_out_pair(corpus) == (tmp_path / "clips/c/1/video.mp4", tmp_path / "clips/c/2/audio.wav")


def test_too_few_clips_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"fewer than two clips in its test split: .*; clips in it: 1, of 50 to 50 frames"
    ):
        held_out_pair(corpus_of(tmp_path, ("c", "1")))


def test_files_or_a_held_out_clip_are_wanted(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path, ("c", "1"), ("c", "2"))
    video, audio = Path("v.mp4"), Path("a.wav")
    assert given_or_held_out(video, audio, False, lambda: corpus) == (video, audio)
    assert given_or_held_out(None, None, True, lambda: corpus) == held_out_pair(corpus)
    for wrong in ((video, None, False), (None, None, False)):
        with pytest.raises(UserError, match="--video and --audio, or --held-out"):
            given_or_held_out(*wrong, lambda: corpus)
    for wrong in ((video, audio, True), (video, None, True)):
        with pytest.raises(UserError, match="leave --video and --audio out"):
            given_or_held_out(*wrong, lambda: corpus)
