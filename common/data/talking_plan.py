"""What the sources of talking videos share, and the source "folder": a user's own clips.

Who is who follows from the folders as for `common.data.folder`: a video belongs to the nearest folder above it that
is not a mere kind of media, or is a person of its own where all lie in one folder. A sound file beside a video, with
its name, replaces the video's sound; a text file (.txt) with its name tells what is said.

Consent: use recordings of people who agreed to it; faces and voices are personal data.
"""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePath
from typing import Any

from common.data.engine import Drop, Unit
from common.data.folder import (
    HELD_OUT_PIECES,
    SUFFIXES,
    Plan,
    digest,
    list_media,
    people_of,
    printable,
    safe_name,
    stamp_of,
)
from common.data.talking import Recording
from common.errors import UserError

TEXT_SUFFIX = ".txt"
_LONGEST_TEXT = 100_000


def plan_clips(root: Path, *, limit: int | None = None) -> Plan:
    """List the videos below `root`, one unit per file.

    Args:
        root: the input folder.
        limit: at most so many people, in the order of their names.

    Raises:
        UserError: the folder is missing or holds no video.
    """
    plan = Plan()
    media = list_media(root, plan)
    videos = [path for path in media if SUFFIXES[path.suffix.lower()] == "video"]
    sounds = {path.with_suffix(""): path for path in media if SUFFIXES[path.suffix.lower()] == "voice"}
    texts = take_texts(plan)
    if not videos:
        known = " ".join(sorted(suffix for suffix, kind in SUFFIXES.items() if kind == "video"))
        raise UserError(f"{root} holds no videos ({known})")
    people = people_of(videos, plan)
    read: set[str] = set()
    for person in sorted(people)[:limit]:
        pieces = math.ceil(HELD_OUT_PIECES / len(people[person]))
        for path in people[person]:
            stem = path.with_suffix("")
            audio, text = sounds.get(stem), texts.get(str(stem))
            said = ""
            if text is not None:
                read.add(text)
                said = text_of(root / text)
            plan.units.append(unit_of(root, path, person, audio=audio, text=said, whole=bool(said), pieces=pieces))
    plan.ignored = [name for name in plan.ignored if name not in read]
    paired = {unit.payload.audio for unit in plan.units}
    alone = [path for path in sounds.values() if str(root / path) not in paired]
    photos = [path for path in media if SUFFIXES[path.suffix.lower()] == "photo"]
    plan.drops += [Drop(printable(path), "a sound file without a video of its name") for path in alone]
    plan.drops += [Drop(printable(path), "a photograph does not talk") for path in photos]
    return plan


def take_texts(plan: Plan) -> dict[str, str]:
    """Path without suffix -> path of each text file among what `list_media` set aside."""
    return {name.removesuffix(TEXT_SUFFIX): name for name in plan.ignored if name.endswith(TEXT_SUFFIX)}


def unit_of(root: Path, path: PurePath, identity: str, *, audio: PurePath | None = None, **known: Any) -> Unit:
    """The unit of one video.

    Args:
        root: the input folder.
        path: the video below it.
        identity: who speaks, a safe name.
        audio: a sound file below `root` that replaces its sound.
        known: further fields of `Recording`.
    """
    part = str(known.pop("part", ""))
    mark = digest(f"{printable(path)}{part}")
    stem = safe_name(path.stem + part, 60)
    recording = Recording(
        path=str(root / path),
        source=printable(path),
        identity=identity,
        name=f"{identity}-{mark}" if stem == identity else f"{safe_name(identity, 60)}_{stem}-{mark}",
        audio=str(root / audio) if audio is not None else None,
        **known,
    )
    stamps = [stamp_of(root / path)] + ([stamp_of(root / audio)] if audio is not None else [])
    key = f"{digest(identity, 8)}-{digest(f'{printable(path)}{part}', 16)}"
    return Unit(key, digest(f"{stamps}{recording}", 16), recording)


def text_of(path: Path) -> str:
    """What is said according to a text file: its first line that says something, without the tag "Text:".

    LRS2, LRS3 and CMLR put the sentence there and the times of the words below it. An unreadable file says nothing.
    """
    try:
        lines = path.read_bytes()[:_LONGEST_TEXT].decode("utf-8-sig", "replace").splitlines()
    except OSError:
        return ""
    for line in lines:
        words = " ".join(line.removeprefix("Text:").split())
        if words:
            return words
    return ""


def read_lists(root: Path, names: Mapping[str, str], places: Iterable[str] = (".", "filelists", "*")) -> dict[str, str]:
    """Official split lists: entry -> split, for the files that are there.

    Args:
        root: the input folder.
        names: file name -> split.
        places: folders below `root` to look in, as glob patterns.

    Returns:
        The first word of each line (what follows a space or comma is dropped), without the suffix of a medium.

    Raises:
        UserError: a list that cannot be read, or an entry in two splits.
    """
    splits: dict[str, str] = {}
    for name, split in names.items():
        path = next((path for place in places for path in sorted(root.glob(f"{place}/{name}"))), None)
        if path is None:
            continue
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read {path}: {error}") from error
        for line in lines:
            entry = line.replace(",", " ").split(maxsplit=1)[0] if line.replace(",", " ").strip() else ""
            entry = PurePath(entry).as_posix()
            suffix = PurePath(entry).suffix.lower()
            entry = entry[: -len(suffix)] if suffix in SUFFIXES or suffix == TEXT_SUFFIX else entry
            if entry in (".", ""):
                continue
            if splits.setdefault(entry, split) != split:
                raise UserError(f"{path} puts {entry} into {split}, another list into {splits[entry]}")
    return splits
