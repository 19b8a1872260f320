"""Something to dub where nobody gave anything: a person whom training never saw, and somebody else's speech."""

from pathlib import Path

from common.data.corpus import Corpus
from common.errors import UserError
from common.video.clip import AUDIO, VIDEO


def held_out_pair(corpus: Corpus) -> tuple[Path, Path]:
    """The video of the test split's first clip, and the sound of the first clip there of somebody else.

    Where the split has one person, the sound of another of their clips.

    Raises:
        UserError: the split has fewer than two clips.
    """
    rows = corpus.items(kind="clip", split="test").sort_values("id")
    if len(rows) < 2:
        raise UserError(f"{corpus.root} has fewer than two clips in its test split: give --video and --audio")
    first = rows.iloc[0]
    others = rows[rows["identity"] != first["identity"]]
    other = (others if len(others) else rows.iloc[1:]).iloc[0]
    return corpus.file(str(first["path"])) / VIDEO, corpus.file(str(other["path"])) / AUDIO
