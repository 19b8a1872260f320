"""Source "lrs2": Lip Reading Sentences 2 (BBC; Son Chung et al. 2017).

    mvlrs_v1/main/<id>/<00001>.mp4 + .txt        lists train.txt val.txt test.txt, lines "id/00001"
    mvlrs_v1/pretrain/<id>/<00001>.mp4 + .txt    list pretrain.txt; all of it trains

The lists lie beside the folders or in `filelists`; what follows a space in a line is dropped. The data set names no
speakers, so a programme (the folder) counts as an identity; the official splits share none.

BBC licence: non-commercial research, on application.
"""

from pathlib import Path

from common.data.engine import Drop
from common.data.folder import SUFFIXES, Plan, list_media, printable, safe_name
from common.data.talking_plan import read_lists, take_texts, text_of, unit_of
from common.errors import UserError

_LISTS = {"train.txt": "train", "val.txt": "val", "test.txt": "test"}
_PARTS = ("main", "pretrain")


def plan_lrs2(root: Path, *, limit: int | None = None, lists: Path | None = None, pretrain: bool = True) -> Plan:
    """List the utterances below `root`.

    Args:
        root: `mvlrs_v1` or the folder around it.
        limit: at most so many programmes.
        lists: folder of the lists when they lie elsewhere.
        pretrain: take the part `pretrain`, whose utterances are longer, too.

    Raises:
        UserError: no videos in `main` or `pretrain`, or no lists for `main`.
    """
    plan = Plan()
    videos = [path for path in list_media(root, plan) if SUFFIXES[path.suffix.lower()] == "video"]
    parts = {path: next((part for part in _PARTS if part in path.parts[:-2]), "") for path in videos}
    if not any(parts.values()):
        raise UserError(f"{root} holds no main/ID/*.mp4 and no pretrain/ID/*.mp4; give the folder mvlrs_v1")
    splits = read_lists(lists or root, _LISTS)
    if not splits and "main" in parts.values():
        raise UserError(
            f"{root} holds the part main but none of {', '.join(_LISTS)}; put the lists beside it, or name their folder"
        )
    texts = take_texts(plan)
    programmes = sorted({path.parent.name for path, part in parts.items() if part})[:limit]
    for path, part in parts.items():
        programme, entry = path.parent.name, f"{path.parent.name}/{path.stem}"
        if programme not in programmes or (part == "pretrain" and not pretrain):
            continue
        split = "train" if part == "pretrain" else splits.get(entry, "")
        if not part or not split:
            plan.drops.append(Drop(printable(path), "no official list names it" if part else "not in main or pretrain"))
            continue
        text = texts.get(str(path.with_suffix("")))
        said = text_of(root / text) if text is not None else ""
        plan.units.append(
            unit_of(root, path, safe_name(programme), text=said, language="en", whole=part == "main", split=split)
        )
    plan.ignored = [name for name in plan.ignored if not name.endswith(".txt")]
    plan.notes.append("LRS2 names no speakers: each programme counts as an identity")
    return plan
