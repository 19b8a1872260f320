"""Source "lrw": Lip Reading in the Wild (BBC; Chung and Zisserman 2016), 500 words, 29 frames a clip.

    lipread_mp4/WORD/{train,val,test}/WORD_00001.mp4 + .txt

The data set names no speakers: every clip is taken for a person of its own, and nobody can say whether somebody
stands in two of the official splits.

BBC licence: non-commercial research, on application.
"""

from pathlib import Path

from common.data.corpus import SPLITS
from common.data.engine import Drop
from common.data.folder import SUFFIXES, Plan, list_media, printable, safe_name
from common.data.talking_plan import unit_of
from common.errors import UserError


def plan_lrw(root: Path, *, limit: int | None = None) -> Plan:
    """List the clips below `root`.

    Args:
        root: `lipread_mp4` or a folder around it.
        limit: at most so many words.

    Raises:
        UserError: no clip in a folder WORD/train, WORD/val or WORD/test.
    """
    plan = Plan()
    clips = []
    for path in list_media(root, plan):
        if SUFFIXES[path.suffix.lower()] != "video":
            plan.ignored.append(printable(path))
        elif len(path.parts) < 3 or path.parts[-2] not in SPLITS:
            plan.drops.append(Drop(printable(path), "not in a folder WORD/train, WORD/val or WORD/test"))
        else:
            clips.append(path)
    if not clips:
        raise UserError(f"{root} holds no WORD/train/*.mp4, WORD/val/*.mp4 or WORD/test/*.mp4; give lipread_mp4")
    words = sorted({path.parts[-3] for path in clips})[:limit]
    for path in clips:
        word, split = path.parts[-3], path.parts[-2]
        if word in words:
            identity = safe_name(f"{path.stem}-{split}")
            plan.units.append(unit_of(root, path, identity, text=word, language="en", whole=True, split=split))
    plan.ignored = [name for name in plan.ignored if not name.endswith(".txt")]
    plan.notes.append("LRW names no speakers: every clip counts as an identity of its own")
    return plan
