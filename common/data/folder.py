"""Source "folder": a user's own talking videos, recordings and photographs, in any mixture.

Who is who follows from the folders: a file belongs to the nearest folder above it whose name is not a mere kind of
media ("videos", "photos", "wav", ...), below the input folder. Where all files lie in one folder, and for files
directly in the input folder, each file name (without its suffix) is a person, so that `ann.wav` and `ann.jpg` go
together.

Consent: use recordings and pictures of people who agreed to it; faces and voices are personal data.
"""

import hashlib
import math
import os
import re
import stat
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from common.data.engine import Drop, Unit
from common.data.ingest import Media, MediaKind
from common.errors import UserError

SUFFIXES: dict[str, MediaKind] = {
    **dict.fromkeys((".mp4", ".mpg", ".mpeg", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".wmv", ".flv"), "video"),
    **dict.fromkeys((".3gp", ".ts", ".mts", ".ogv"), "video"),
    **dict.fromkeys((".wav", ".flac", ".mp3", ".m4a", ".aac", ".ogg", ".oga", ".opus", ".wma", ".aiff"), "voice"),
    **dict.fromkeys((".aif", ".amr", ".au"), "voice"),
    **dict.fromkeys((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"), "photo"),
}
"""Which files are taken, by lower-case suffix."""
_KIND_WORDS = ("audio", "sound", "voice", "recording", "face", "photo", "image", "picture", "portrait", "video", "clip")
KIND_FOLDERS = frozenset([*_KIND_WORDS, *(f"{word}s" for word in _KIND_WORDS), "speech", "wav", "wavs", "media"])
"""Folder names that name no person."""
HELD_OUT_PIECES = 3
"""Items of a person at least, so that val and test can hold one out each."""


@dataclass
class Plan:
    """What a source found: the work, and what will not be worked on."""

    units: list[Unit] = field(default_factory=list)
    """See `common.data.engine`; payloads are lists of `Media`."""
    drops: list[Drop] = field(default_factory=list)
    """Files refused before they were opened."""
    ignored: list[str] = field(default_factory=list)
    """Files that are no media, by their suffix."""
    splits: dict[str, str] | None = None
    """identity -> split; None leaves the choice to `prepare`."""
    notes: list[str] = field(default_factory=list)
    """Facts that the report should state."""


def plan_folder(root: Path, *, limit: int | None = None) -> Plan:
    """List the media below `root`, one unit per file.

    Args:
        root: the input folder.
        limit: at most so many people, in the order of their names.

    Raises:
        UserError: the folder is missing or holds no media.
    """
    plan = Plan()
    files = list_media(root, plan)
    if not files:
        known = " ".join(sorted(SUFFIXES))
        raise UserError(f"{root} holds no videos, recordings or photographs ({known})")
    people = people_of(files, plan)
    if limit is not None:
        people = {person: people[person] for person in sorted(people)[:limit]}
    for person, members in people.items():
        sounding = sum(SUFFIXES[path.suffix.lower()] != "photo" for path in members)
        pieces = math.ceil(HELD_OUT_PIECES / max(sounding, 1))
        plan.units += [_unit(root, path, person, pieces) for path in members]
    return plan


def list_media(root: Path, plan: Plan) -> list[PurePath]:
    """Media files below `root`, relative and sorted; what is refused or ignored is noted in `plan`."""
    if not root.is_dir():
        raise UserError(f"no input folder at {root}")
    media = []
    for path in _walk(root, plan):
        relative = path.relative_to(root)
        if path.name.startswith(".") or path.suffix.lower() not in SUFFIXES:
            plan.ignored.append(printable(relative))
        elif reason := _unusable(root, path):
            plan.drops.append(Drop(printable(relative), reason))
        else:
            media.append(PurePath(relative))
    return media


def printable(path: PurePath | str) -> str:
    """A path as text that can be printed and stored: bytes that are not UTF-8 become \\xNN."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def safe_name(name: str, most_bytes: int = 100) -> str:
    """A name that any file system takes. Letters of any script, digits, spaces and .,+-@()&'# stay; whatever else
    is replaced, and a hash of the original is added then, so that two names stay two."""
    kept = unicodedata.normalize("NFC", printable(name))
    kept = re.sub(r"[^\w .,+\-@()&'#]", "_", kept).strip(". ")
    kept = kept.encode()[:most_bytes].decode(errors="ignore").rstrip(". ")
    return kept if kept and kept == name else f"{kept or 'x'}-{digest(name)}"


def digest(name: PurePath | str, length: int = 6) -> str:
    """Hexadecimal digits that tell names apart."""
    return hashlib.sha256(os.fsencode(name)).hexdigest()[:length]


def stamp_of(path: Path) -> str:
    """Changes when the file is replaced."""
    status = path.stat()
    return f"{status.st_size}-{status.st_mtime_ns}"


def _walk(root: Path, plan: Plan) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        folder = printable(os.path.relpath(error.filename, root))
        plan.drops.append(Drop(folder, f"the folder cannot be read: {error.strerror}"))

    for folder, folders, names in os.walk(root, onerror=refuse):
        for name in sorted(folders):
            if os.path.islink(os.path.join(folder, name)):
                linked = os.path.relpath(os.path.join(folder, name), root)
                plan.drops.append(Drop(printable(linked), "a linked folder; copy it or name it as the input"))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            yield Path(folder) / name


def _unusable(root: Path, path: Path) -> str | None:
    """Why a file is not opened, or None."""
    if path.is_symlink() and not path.resolve().is_relative_to(root.resolve()):
        return "a link that leads outside the input folder"
    try:
        status = path.stat()
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if not stat.S_ISREG(status.st_mode):
        return "not a regular file"
    return None if status.st_size else "the file is empty"


def people_of(files: Sequence[PurePath], plan: Plan) -> dict[str, list[PurePath]]:
    """Safe identity name -> its files, relative to the input; see the module's text for who is who."""
    one_folder = len({path.parent for path in files}) == 1
    if one_folder and len(files) > 1:
        plan.notes.append("all files lie in one folder, so each file name is taken for a person")
    people: dict[str, list[PurePath]] = {}
    homes: dict[str, set[str]] = {}
    for path in files:
        above = path.parent
        while above.name.lower() in KIND_FOLDERS:
            above = above.parent
        alone = one_folder or not above.name
        person = safe_name(path.stem if alone else above.name)
        people.setdefault(person, []).append(path)
        homes.setdefault(person, set()).add(printable(path.parent if alone else above))
    for person, places in sorted(homes.items()):
        if len(places) > 1:
            plan.notes.append(f"{person} is taken for one person in {len(places)} folders: {', '.join(sorted(places))}")
    return people


def _unit(root: Path, path: PurePath, person: str, pieces: int) -> Unit:
    media = Media(
        path=str(root / path),
        source=printable(path),
        kind=SUFFIXES[path.suffix.lower()],
        identity=person,
        name=f"{safe_name(path.stem, 60)}-{digest(path)}",
        pieces=pieces,
    )
    key = f"{digest(person, 8)}-{digest(path, 16)}"
    return Unit(key, f"{stamp_of(root / path)}-{pieces}-{person}", (media,))
