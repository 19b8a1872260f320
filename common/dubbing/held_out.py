"""Something to dub where nobody gave anything: a person whom training never saw, and somebody else's speech."""

from collections.abc import Callable
from pathlib import Path

from common.data.corpus import Corpus
from common.errors import UserError
from common.video.clip import AUDIO, VIDEO


def given_or_held_out(
    video: Path | None, audio: Path | None, held_out: bool, corpus: Callable[[], Corpus]
) -> tuple[Path, Path]:
    """What a `dub` command is to dub: the files that it was given, or `held_out_pair`.

    Raises:
        UserError: neither, or both.
    """
    if held_out and video is None and audio is None:
        return held_out_pair(corpus())
    if held_out:
        raise UserError("--held-out chooses video and speech itself: leave --video and --audio out")
    if video is None or audio is None:
        raise UserError("dub needs --video and --audio, or --held-out for a clip of the training corpus")
    return video, audio


def held_out_pair(corpus: Corpus) -> tuple[Path, Path]:
    """The video of the test split's first clip, and the sound of the first clip there of somebody else.

    Where the split has one person, the sound of another of their clips.

    Raises:
        UserError: the split has fewer than two clips.
    """
    rows = corpus.items(kind="clip", split="test").sort_values("id")
    if len(rows) < 2:
        raise UserError(
            f"{corpus.root} has fewer than two clips in its test split: give --video and --audio; "
            f"{corpus.stock('test')}"
        )
    first = rows.iloc[0]
    others = rows[rows["identity"] != first["identity"]]
    other = (others if len(others) else rows.iloc[1:]).iloc[0]
    return corpus.file(str(first["path"])) / VIDEO, corpus.file(str(other["path"])) / AUDIO
