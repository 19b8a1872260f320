"""Source "voxceleb": VoxCeleb 1 and 2 voices with VGGFace or VGGFace2 photographs, in their official layouts.

    vox1_meta.csv  wav/<id10001>/<video>/<00001>.wav     also below dev/, test/, vox1/ ...
    vox2_meta.csv  aac/<id00012>/<video>/<00001>.m4a     also below dev/, test/, vox2/ ...
    photographs    VGG_ALL_FRONTAL/<Name>/*.jpg (Wen et al.), or <n000012>/*.jpg (VGGFace2), or <id10001>/*.jpg

A folder is a person's when its name is the person's VoxCeleb id, VGGFace name or VGGFace2 class, wherever it lies.

VoxCeleb: metadata CC BY-SA 4.0, the media stay their owners'; ask the data set's authors for access.
VGGFace, VGGFace2: research only, photographs of public figures who gave no consent to this use.
"""

import csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from common.data.engine import Unit
from common.data.folder import SUFFIXES, Plan, digest, list_media, printable, safe_name, stamp_of
from common.data.ingest import Media
from common.data.splits import check_people, hash_splits, sf2f_splits, wen_splits
from common.errors import UserError

Scheme = Literal["wen", "sf2f", "hash"]
SCHEMES: dict[str, Callable[[Sequence[str]], dict[str, str]]] = {
    "wen": wen_splits,
    "sf2f": sf2f_splits,
    "hash": hash_splits,
}
"""Split by initials (needs names), by row of the metadata file, or by hash of the identity."""
PARTS = ("vox1_meta.csv", "vox2_meta.csv")
"""Metadata file of each part of VoxCeleb; a copy with names, `full_vox2_meta.csv`, is preferred."""
_PHOTOS_PER_UNIT = 16


@dataclass(frozen=True)
class Person:
    """One row of a metadata file."""

    id: str
    """VoxCeleb identity, id10001."""
    face_id: str
    """VGGFace name (VoxCeleb 1) or VGGFace2 class, n000012 (VoxCeleb 2)."""
    name: str
    """The name, empty when the file has none."""
    gender: str
    """m or f."""
    nationality: str
    """As stated, empty for VoxCeleb 2."""


def plan_voxceleb(root: Path, *, faces: Path | None = None, scheme: Scheme = "wen", limit: int | None = None) -> Plan:
    """List VoxCeleb voices and the photographs of the same people.

    Args:
        root: folder with the metadata files, the audio of either part or both, and the photographs.
        faces: folder of the photographs when they lie elsewhere.
        scheme: key of `SCHEMES`.
        limit: at most so many people, of those that have voices and photographs.

    Raises:
        UserError: no metadata file, a malformed one, nobody's media, names missing for "wen", or one person on two
            sides of the split.
    """
    if scheme not in SCHEMES:
        raise UserError(f"unknown scheme {scheme!r}; use one of {', '.join(SCHEMES)}")
    people, splits = _everybody(root, scheme)
    plan = Plan(splits=splits)
    owners = _owners(people)
    voices: dict[str, list[tuple[Path, Path]]] = {}
    photos: dict[str, list[tuple[Path, Path]]] = {}
    elsewhere = faces is not None and not faces.resolve().is_relative_to(root.resolve())
    for folder in [root, faces] if faces is not None and elsewhere else [root]:
        _sort_media(folder, owners, voices, photos, plan)
    having = [person for person in people if person.id in voices and person.id in photos]
    lacking = len(people) - len(having)
    if not having:
        raise UserError(f"{root}: nobody in the metadata has both voices (wav/, aac/) and photographs; see faces")
    if lacking:
        plan.notes.append(f"{lacking} of the {len(people)} people in the metadata lack voices or photographs here")
    for person in having[:limit]:
        plan.units += _units(person, voices[person.id], "voice") + _units(person, photos[person.id], "photo")
    return plan


def read_meta(path: Path) -> list[Person]:
    """Rows of `vox1_meta.csv` (tabs) or `vox2_meta.csv` (commas, padded cells, a Name column in some copies).

    Raises:
        UserError: unreadable, columns missing, or an identity twice.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    first = text.partition("\n")[0]
    rows = csv.reader(text.splitlines(), delimiter="\t" if "\t" in first and "," not in first else ",")
    table = [[cell.strip() for cell in row] for row in rows if any(cell.strip() for cell in row)]
    header = table[0] if table else []
    columns = {name: place for place, name in enumerate(header)}
    identity = next((name for name in columns if name.startswith("VoxCeleb")), None)
    face = next((name for name in columns if name.startswith("VGGFace")), None)
    if identity is None or face is None:
        raise UserError(f"{path} has the columns {', '.join(header) or '(none)'}, not VoxCeleb1 ID, VGGFace1 ID, ...")
    people = [_person(row, columns, identity, face, path) for row in table[1:]]
    seen: set[str] = set()
    for person in people:
        if person.id in seen or safe_name(person.id) != person.id:
            raise UserError(f"{path} names {person.id!r} twice, or it is no identity")
        seen.add(person.id)
    return people


def split_people(people: Sequence[Person], scheme: str) -> dict[str, str]:
    """VoxCeleb id -> split, for the rows of one part in the order of its file."""
    if scheme == "wen":
        unnamed = [person.id for person in people if not person.name]
        if unnamed:
            raise UserError(
                f"the split by initials needs names, but {len(unnamed)} people have none, the first is {unnamed[0]}; "
                "add a Name column to the metadata file or choose the scheme sf2f or hash"
            )
        places = wen_splits(person.name for person in people)
        return {person.id: places[person.name] for person in people}
    return SCHEMES[scheme]([person.id for person in people])


def _person(row: Sequence[str], columns: Mapping[str, int], identity: str, face: str, path: Path) -> Person:
    if len(row) < len(columns):
        raise UserError(f"{path}: the row {row!r} has {len(row)} cells, the header {len(columns)}")

    def cell(name: str) -> str:
        return row[columns[name]] if name in columns else ""

    name = cell("Name") or (cell(face) if face.startswith("VGGFace1") else "")
    return Person(cell(identity), cell(face), name, cell("Gender"), cell("Nationality"))


def _everybody(root: Path, scheme: str) -> tuple[list[Person], dict[str, str]]:
    """The people of all parts, and the split of each id."""
    if not root.is_dir():
        raise UserError(f"no input folder at {root}")
    people: list[Person] = []
    splits: dict[str, str] = {}
    for name in PARTS:
        # Deeper than a part's own folder lie only media.
        tables = sorted(path for place in (".", "*") for path in root.glob(f"{place}/*{name}"))
        if tables:
            full = next((path for path in tables if path.name.startswith("full_")), tables[0])
            part = read_meta(full)
            people += part
            splits |= split_people(part, scheme)
    if not people:
        raise UserError(f"{root} holds neither {' nor '.join(PARTS)}; get them from the VoxCeleb site")
    check_people((person.name or person.face_id, splits[person.id]) for person in people)
    return people, splits


def _owners(people: Iterable[Person]) -> dict[str, Person]:
    """Folder name -> whose it is. Some systems strip the dot from a folder `Harry_Connick_Jr.`."""
    names = {}
    for person in people:
        for name in (person.id, person.face_id, person.name, person.name.rstrip(".")):
            if name:
                names[name] = person
    return names


def _sort_media(
    root: Path,
    owners: Mapping[str, Person],
    voices: dict[str, list[tuple[Path, Path]]],
    photos: dict[str, list[tuple[Path, Path]]],
    plan: Plan,
) -> None:
    """File each voice and photograph below `root`, as (root, relative path), under its person's id."""
    strangers: set[str] = set()
    for relative in list_media(root, plan):
        person = next((owners[part] for part in relative.parts[:-1] if part in owners), None)
        kind = SUFFIXES[relative.suffix.lower()]
        if person is None or kind == "video":
            strangers.add(printable(relative.parent))
        else:
            kept = voices if kind == "voice" else photos
            kept.setdefault(person.id, []).append((root, Path(relative)))
    if strangers:
        first = min(strangers)
        plan.notes.append(f"{len(strangers)} folders hold videos or belong to nobody in the metadata, such as {first}")


def _units(person: Person, files: Sequence[tuple[Path, Path]], kind: Literal["voice", "photo"]) -> list[Unit]:
    """One unit per video's folder of utterances; photographs go in fixed portions."""
    groups: dict[str, list[Media]] = {}
    stamps: dict[str, str] = {}
    extra = {"name": person.name or person.face_id, "gender": person.gender, "nationality": person.nationality}
    for index, (root, relative) in enumerate(files):
        voice = kind == "voice"
        group = printable(relative.parent) if voice else f"photos {index // _PHOTOS_PER_UNIT}"
        stem = f"{relative.parent.name}_{relative.stem}" if voice else relative.stem
        media = Media(
            path=str(root / relative),
            source=printable(relative),
            kind=kind,
            identity=person.id,
            name=f"{safe_name(stem, 60)}-{digest(relative)}",
            whole=True,
            extra=extra,
        )
        groups.setdefault(group, []).append(media)
        stamps[group] = stamps.get(group, "") + f"{media.source}|{stamp_of(root / relative)}|"
    return [
        Unit(f"{person.id}-{digest(group, 16)}", digest(stamps[group], 16), tuple(members))
        for group, members in groups.items()
    ]
