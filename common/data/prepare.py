"""Raw data -> corpus: `prepare` lists a source, runs it through the engine, splits it and writes the manifest.

A run that was killed is resumed by the same command. The manifest is written last.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from common.data.corpus import REPORT, SPLITS, Corpus, Item, write_manifest
from common.data.engine import Drop, Engine, Job, Record, Unit, begin, clean, run_units
from common.data.folder import Plan, plan_folder, printable
from common.data.ingest import Settings, ToolKit, Tools, ingest
from common.data.splits import ENOUGH_IDENTITIES, hash_splits, recording_splits
from common.data.voxceleb import plan_voxceleb
from common.errors import UserError
from common.files import write_json
from common.hardware import cores

SplitBy = Literal["auto", "identity", "recording"]
SOURCES: dict[str, Callable[..., Plan]] = {"folder": plan_folder, "voxceleb": plan_voxceleb}
"""Source name -> what lists it; further arguments of `prepare` go there."""
_MOST_SHOWN = 50


@dataclass(frozen=True)
class Report:
    """What became of the input; stored as `report.json`."""

    source: str
    """Name of the source."""
    split_by: str
    """identity or recording."""
    counts: dict[str, dict[str, int]]
    """split -> voices, faces, identities; or clips, identities, seconds."""
    dropped: list[Drop]
    """Everything that is not in the corpus, with the reason."""
    ignored: list[str]
    """Files that are no media."""
    notes: list[str]
    """What else one should know."""

    def text(self) -> str:
        """The report for the terminal; the longest lists are cut, with a word on where the rest is."""
        lines = [f"split by {self.split_by}"]
        for split, counts in self.counts.items():
            lines.append(f"  {split:5} " + ", ".join(f"{number} {kind}" for kind, number in counts.items()))
        lines += [f"note: {note}" for note in self.notes]
        if self.ignored:
            lines.append(f"ignored {len(self.ignored)} files that are no media: {_cut_short(self.ignored, 5)}")
        lines += [f"dropped {drop.source}: {drop.reason}" for drop in self.dropped[:_MOST_SHOWN]]
        if len(self.dropped) > _MOST_SHOWN:
            lines.append(f"dropped {len(self.dropped) - _MOST_SHOWN} more, each named in {REPORT}")
        return "\n".join(lines)


def prepare(
    source: str,
    input: Path,
    out: Path,
    *,
    size: int = 256,
    backend: str = "dlib",
    faces_per_video: int = 8,
    split: SplitBy = "auto",
    keep_incomplete: bool = False,
    limit: int | None = None,
    workers: int | None = None,
    engine: Engine = "local",
    fresh: bool = False,
    device: str = "cpu",
    toolkit: Callable[[Settings, str], Callable[[], Tools]] = ToolKit,
    **meta: Any,
) -> Report:
    """Turn raw data into a corpus, or go on with a run that was interrupted.

    Args:
        source: key of `SOURCES`.
        input: the raw data; only read.
        out: the corpus; may exist if an earlier run of this function began it.
        size: side of the stored faces in pixels; training reduces them as needed.
        backend: face backend.
        faces_per_video: at most so many faces of one video.
        split: by identity (people of val and test are never in train), by recording (everybody trains, the last
            recordings and photos are held out), or auto: by identity from 30 people on. Sources with a published
            split use that.
        keep_incomplete: keep people with voices but no faces or the reverse, for encoder pre-training.
        limit: at most so many people.
        workers: processes; 0 works in this one, None takes all cores.
        engine: local, or ray for the processes of a Ray cluster.
        fresh: throw away what an earlier run with other options left in `out`.
        device: torch device of the face backend.
        toolkit: makes the factory of the models; for tests.
        meta: further arguments of the source, see `plan_folder` and `plan_voxceleb`.

    Returns:
        The report, which also lies in `out/report.json`.

    Raises:
        UserError: unknown source, no media, other options than before, nothing usable, or `out` is not writable.
    """
    if source not in SOURCES:
        raise UserError(f"unknown source {source!r}; use one of {', '.join(SOURCES)}")
    input, out = Path(input), Path(out)
    check_apart(input, out)
    settings = Settings(size=size, backend=backend, faces_per_video=faces_per_video)
    plan = SOURCES[source](input, limit=limit, **meta)
    begin(out, {"source": source, "input": printable(input.resolve()), **as_json(settings)}, fresh=fresh)
    job = Job(root=out, function=ingest, tools=toolkit(settings, device), describe=describe)
    records = run_units(
        plan.units, job, workers=worker_count(workers, len(plan.units)), label="preparing", engine=engine
    )
    clean(out)
    return _finish(source, out, plan, records, size, split=split, keep_incomplete=keep_incomplete)


def describe(unit: Unit) -> str:
    """A unit by its first file."""
    return str(unit.payload[0].source)


def check_apart(input: Path, out: Path) -> None:
    """Raise `UserError` where the output would lie in the raw data or the reverse."""
    if out.resolve().is_relative_to(input.resolve()) or input.resolve().is_relative_to(out.resolve()):
        raise UserError(f"the output {out} and the input {input} lie in one another; choose another output folder")


def worker_count(workers: int | None, units: int) -> int:
    """As many processes as asked for, all cores where None, and no more than units."""
    return min(cores() if workers is None else workers, units)


def as_json(settings: Any) -> dict[str, Any]:
    """A dataclass with its tuples as lists, as they come back from a file."""
    value: dict[str, Any] = json.loads(json.dumps(asdict(settings)))
    return value


def _finish(
    source: str, out: Path, plan: Plan, records: Sequence[Record], size: int, *, split: SplitBy, keep_incomplete: bool
) -> Report:
    """Decide who is complete and who tests; write the report, then the manifest."""
    origin = {item.id: record.source for record in records for item in record.items}
    extra = {key: value for record in records for key, value in record.extra.items()}
    items = [item for record in records for item in record.items]
    drops = [*plan.drops, *(drop for record in records for drop in record.drops)]
    if not keep_incomplete:
        items, incomplete = _without_incomplete(items)
        drops += incomplete
    used = [item for item in items if not item.dropped]
    split_by, places = place_items(used, origin, plan.splits, split)
    items = [replace(item, split=places.get(item.id, "train")) for item in items]
    notes = [*plan.notes, *shared_files(items, origin), *_notes(items, extra, size)]
    report = Report(source, split_by, _counts(items), drops, plan.ignored, notes)
    write_corpus(out, report, items, extra)
    return report


def shared_files(items: Sequence[Item], origin: Mapping[str, str]) -> list[str]:
    """A note where pieces of one file (`origin` of an item's id) both train and are held out; else nothing."""
    places: dict[str, set[str]] = {}
    for item in items:
        if not item.dropped:
            places.setdefault(origin[item.id], set()).add(item.split)
    shared = sorted(file for file, splits in places.items() if len(splits) > 1)
    if not shared:
        return []
    return [
        f"pieces of {len(shared)} files both train and are held out, the first is {shared[0]}: figures on them "
        "flatter; three files a person, or splitting by identity, would hold out whole files"
    ]


def write_corpus(out: Path, report: Report, items: Sequence[Item], extra: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the report, then the manifest; `UserError` with the first reason where no item is in use."""
    write_json(out / REPORT, asdict(report))
    if all(item.dropped for item in items):
        raise UserError(f"nothing in the input can be used; {out / REPORT} says why, first: {_first(report.dropped)}")
    write_manifest(out, items, split_by=report.split_by, extra=extra)
    Corpus.open(out)


def _without_incomplete(items: Sequence[Item]) -> tuple[list[Item], list[Drop]]:
    """Mark the items of people who lack voices or faces as dropped; their files stay, for `keep_incomplete`."""
    kinds: dict[str, set[str]] = {}
    for item in items:
        kinds.setdefault(item.identity, set()).add(item.kind)
    reasons = {
        identity: f"has {'voices' if 'voice' in have else 'faces'} but no {'faces' if 'voice' in have else 'voices'}"
        for identity, have in sorted(kinds.items())
        if not {"voice", "face"} <= have
    }
    kept = [
        replace(item, dropped=f"{item.identity} {reasons[item.identity]}") if item.identity in reasons else item
        for item in items
    ]
    return kept, [Drop(identity, f"the person {reason}") for identity, reason in reasons.items()]


def place_items(
    items: Sequence[Item], origin: Mapping[str, str], given: Mapping[str, str] | None, split: SplitBy
) -> tuple[str, dict[str, str]]:
    """How the corpus is split, and the split of each item."""
    people = {item.identity for item in items}
    by_hash = hash_splits(people)
    balanced = len(people) >= ENOUGH_IDENTITIES and set(by_hash.values()) == set(SPLITS)
    if given is not None and split != "recording":
        return "identity", {item.id: given[item.identity] for item in items}
    if split == "identity" or (split == "auto" and balanced):
        return "identity", {item.id: by_hash[item.identity] for item in items}
    groups: dict[tuple[str, str], dict[str, str]] = {}
    for item in items:
        groups.setdefault((item.identity, item.kind), {})[item.id] = origin[item.id]
    return "recording", {key: place for group in groups.values() for key, place in recording_splits(group).items()}


def _counts(items: Sequence[Item]) -> dict[str, dict[str, int]]:
    table = {}
    for split in SPLITS:
        used = [item for item in items if item.split == split and not item.dropped]
        kinds = Counter(item.kind for item in used)
        table[split] = {"voices": kinds["voice"], "faces": kinds["face"], "identities": len({i.identity for i in used})}
    return table


def _notes(items: Sequence[Item], extra: Mapping[str, Mapping[str, Any]], size: int) -> list[str]:
    notes = []
    for split, counts in _counts(items).items():
        missing = [kind for kind in ("voices", "faces") if not counts[kind]]
        if missing:
            notes.append(f"there are no {' and no '.join(missing)} for {split}: too little data to hold any out")
    pixels = [extra[item.id]["face_pixels"] for item in items if item.kind == "face" and not item.dropped]
    enlarged = sum(side < size for side in pixels)
    if enlarged:
        notes.append(f"{enlarged} of {len(pixels)} faces were enlarged to {size} px, from {min(pixels)} px at least")
    return notes


def _first(drops: Sequence[Drop]) -> str:
    return f"{drops[0].source}: {drops[0].reason}" if drops else "no item was found"


def _cut_short(names: Sequence[str], most: int) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
