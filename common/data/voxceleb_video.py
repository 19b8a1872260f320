"""Source "voxceleb-video": VoxCeleb videos as the First Order Motion Model cuts them (video-preprocessing).

    vox-metadata.csv (video_id,start,end,bbox,fps,width,height,partition,person_id) with <video_id>.mp4 anywhere below:
        each row is a clip with the published frames, crop and partition.
    <id10001>/<video>/<00001>.mp4 below the input (VoxCeleb 2's `mp4` tree, or chunks of one's own), without the table:
        tubes are cut by the same rules (`TubeRules`) from tracked faces.

Test people are those of the published lists where ids are VoxCeleb's; the others train, and a tenth of them validates.

VoxCeleb: the media stay their owners'; the links of the table rot, and what is missing is reported.
"""

import csv
import re
from pathlib import Path, PurePath

from common.data.engine import Drop, Unit
from common.data.folder import SUFFIXES, Plan, list_media, printable, safe_name
from common.data.splits import hash_split
from common.data.talking_plan import unit_of
from common.errors import UserError

METADATA = "vox-metadata.csv"
_COLUMNS = ("video_id", "start", "end", "bbox", "fps", "width", "height", "partition")
_PERSON = re.compile(r"id\d{5}")
_VOX1_TEST = range(10270, 10310)
_VOX2_TEST = """
00017 00061 00081 00154 00419 00562 00812 00817 00866 00926 01000 01041 01066 01106 01224 01228 01298 01333 01437
01460 01509 01541 01567 01593 01618 01822 01892 01989 02019 02057 02086 02181 02286 02317 02445 02465 02542 02548
02576 02577 02685 02725 02745 03030 03041 03127 03178 03347 03382 03524 03677 03789 03839 03862 03969 03978 03980
03981 04006 04030 04094 04119 04232 04253 04276 04295 04366 04478 04536 04570 04627 04656 04657 04862 04950 05015
05055 05124 05176 05202 05459 05594 05654 05714 05816 05850 05999 06104 06209 06310 06484 06692 06811 06816 06913
07312 07354 07396 07414 07426 07494 07620 07621 07663 07802 07868 07874 07961 08149 08374 08392 08456 08548 08552
08696 08701 08911 09017
"""
VOX2_TEST = frozenset(_VOX2_TEST.split())
"""The 118 test people of VoxCeleb 2."""


def plan_voxceleb_video(root: Path, *, limit: int | None = None, metadata: Path | None = None) -> Plan:
    """List the clips of VoxCeleb videos below `root`.

    Args:
        root: folder of the videos.
        limit: at most so many people.
        metadata: the table when it does not lie in `root`.

    Raises:
        UserError: no videos, a malformed table, or none of its videos here.
    """
    plan = Plan()
    videos = []
    for path in list_media(root, plan):
        if SUFFIXES[path.suffix.lower()] == "video":
            videos.append(path)
        else:
            plan.ignored.append(printable(path))
    if not videos:
        raise UserError(f"{root} holds no videos")
    table = metadata or root / METADATA
    if metadata is not None or table.is_file():
        _plan_table(root, table, videos, limit, plan)
    else:
        _plan_tree(root, videos, limit, plan)
    return plan


def official_split(identity: str, partition: str = "") -> str:
    """test for the published test people or that partition; a tenth of the others val, by hash; the rest train."""
    if partition == "test" or is_test_person(identity):
        return "test"
    return "val" if hash_split(identity, val=0.1, test=0.0) == "val" else "train"


def is_test_person(identity: str) -> bool:
    """Whether a VoxCeleb id is one of the published test people of part 1 (id10270 to id10309) or 2."""
    number = identity.removeprefix("id")
    return number in VOX2_TEST or (number.isdigit() and int(number) in _VOX1_TEST)


def _plan_tree(root: Path, videos: list[PurePath], limit: int | None, plan: Plan) -> None:
    people: dict[str, list[PurePath]] = {}
    for path in videos:
        # A folder id10001, or FOMM's flat names id10001#video#...
        names = [*reversed(path.parts[:-1]), path.name.partition("#")[0]]
        person = next((name for name in names if _PERSON.fullmatch(name)), None)
        if person is None:
            plan.drops.append(Drop(printable(path), "neither a folder nor the name says whose it is (id and 5 digits)"))
        else:
            people.setdefault(person, []).append(path)
    if not people:
        raise UserError(f"{root} holds neither {METADATA} nor videos in folders such as id10001")
    for person in sorted(people)[:limit]:
        for path in people[person]:
            group = printable(path.parent)
            plan.units.append(unit_of(root, path, person, group=group, split=official_split(person)))


def _plan_table(root: Path, table: Path, videos: list[PurePath], limit: int | None, plan: Plan) -> None:
    by_name = {path.stem: path for path in videos}
    rows = _read_table(table)
    people = sorted({row["person"] for row in rows})[:limit]
    missing: set[str] = set()
    for row in rows:
        if row["person"] not in people:
            continue
        path = by_name.get(row["video_id"])
        if path is None:
            missing.add(row["video_id"])
            continue
        plan.units.append(_unit(root, path, row, table))
    plan.drops += [Drop(name, "the table names this video, which is not here") for name in sorted(missing)]
    if not plan.units:
        raise UserError(
            f"none of the {len(missing)} videos that {table} names lies below {root}, such as {min(missing)}"
        )


def _read_table(path: Path) -> list[dict[str, str]]:
    try:
        rows = list(csv.DictReader(path.read_text(encoding="utf-8-sig").splitlines()))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    lacking = [name for name in _COLUMNS if rows and name not in rows[0]]
    if not rows or lacking:
        raise UserError(f"{path} is no {METADATA}: it lacks {'rows' if not rows else ', '.join(lacking)}")
    for row in rows:
        # Tables of one's own have VIDEO#PERSON in one column, as crop_vox.py writes it.
        row["video_id"], _, person = row["video_id"].partition("#")
        row["person"] = safe_name(row.get("person_id") or person or row["video_id"])
    return rows


def _unit(root: Path, path: PurePath, row: dict[str, str], table: Path) -> Unit:
    try:
        start, end, fps, width, height = (float(row[name]) for name in ("start", "end", "fps", "width", "height"))
        left, top, right, bottom = (float(edge) for edge in row["bbox"].split("-"))
        if not (0 <= start < end and fps > 0 and 0 <= left < right <= width and 0 <= top < bottom <= height):
            raise ValueError("its numbers contradict each other")
    except ValueError as error:
        raise UserError(f"{table}: the row of {row['video_id']} from frame {row['start']} on: {error}") from error
    return unit_of(
        root,
        path,
        row["person"],
        part=f"#{row['start']}-{row['end']}",
        group=row["video_id"],
        split=official_split(row["person"], row["partition"]),
        window=(start / fps, end / fps),
        box=(left / width, top / height, right / width, bottom / height),
        whole=True,
    )
