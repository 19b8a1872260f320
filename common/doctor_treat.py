"""A treated copy of a corpus: clips that the doctor refused are dropped, sound that is off is moved.

The corpus that was examined stays as it is. The copy is built by the engine, so that it can be killed and resumed.
"""

import shutil
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from common.audio.io import write_wav
from common.data.corpus import SAMPLE_RATE, SCHEMA, Corpus, Item
from common.data.engine import Drop, Engine, InputError, Job, Outcome, Product, Unit, begin, clean, run_units
from common.data.folder import digest, stamp_of
from common.data.prepare import Report, check_apart, worker_count, write_corpus
from common.data.talking_filter import describe_filter
from common.data.talking_measures import SAMPLES_PER_FRAME
from common.data.talking_prepare import counts_of
from common.doctor_findings import Examination, Finding
from common.errors import UserError
from common.video import Clip

LEAST_CONFIDENCE = 3.0
"""SyncNet's confidence from which on an offset is believed, so that the sound is moved by it."""
_OF_THE_SOUND = frozenset({"visemes.json"})
"""Files whose times are those of the sound: they are left out of a clip whose sound was moved."""


@dataclass(frozen=True)
class Treatment:
    """One clip to copy: the payload of a unit."""

    item: Item
    """Its row in the new corpus."""
    folder: str
    """The clip in the old one."""
    shift: int = 0
    """Frames by which the sound is delayed."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Further manifest columns, as they were."""


def treat(
    examination: Examination,
    out: Path,
    *,
    shift: bool = True,
    workers: int | None = None,
    engine: Engine = "local",
    fresh: bool = False,
) -> Report:
    """Write a corpus without the clips that have problems, and with sound and lips in step.

    Args:
        examination: of a corpus.
        out: the new corpus; may exist if an earlier run of this function began it.
        shift: delay the sound by the measured offset where SyncNet's confidence is at least 3 (or the bound on it);
            silence fills the end that is then empty, since a corpus holds no sound around its clips.
        workers: processes; 0 works in this one, None takes all cores.
        engine: local, or ray.
        fresh: throw away what an earlier run with other options left in `out`.

    Returns:
        The report; dropped clips stand in the manifest with their problems.

    Raises:
        UserError: no corpus was examined, no clip is left, or `out` is not writable.
    """
    corpus = Corpus.open(examination.target)
    check_apart(corpus.root, out)
    findings = {finding.name: finding for finding in examination.findings}
    believed = examination.bounds.min_confidence or LEAST_CONFIDENCE
    units, items, drops = [], [], []
    for row in corpus.items(kind="clip").to_dict("records"):
        item, extra = _item_of(row), _extra_of(row)
        finding = findings.get(item.id)
        if finding is None:
            raise UserError(f"{item.id} was not examined; examine {corpus.root} again")
        if finding.problems:
            reason = "; ".join(finding.problems)
            items.append(replace(item, path="", dropped=reason))
            drops.append(Drop(item.id, reason))
        else:
            units.append(_unit(corpus, item, extra, finding, believed if shift else None))
    bounds = describe_filter(examination.bounds)
    options = {"kind": "doctor", "input": str(corpus.root.resolve()), "bounds": bounds, "shift": shift}
    begin(out, options, fresh=fresh)
    job = Job(out, copy_clip, _no_tools, describe)
    records = run_units(units, job, workers=worker_count(workers, len(units)), label="copying", engine=engine)
    clean(out)
    items += [item for record in records for item in record.items]
    drops += [drop for record in records for drop in record.drops]
    moved = sum(bool(unit.payload.shift) for unit in units)
    notes = [f"filter: {bounds}", f"the sound of {moved} clips was moved"]
    report = Report("doctor", corpus.split_by, counts_of(items), drops, [], notes)
    extras = {key: value for record in records for key, value in record.extra.items()}
    write_corpus(out, report, items, extras)
    return report


def describe(unit: Unit) -> str:
    """A unit by its clip."""
    treatment: Treatment = unit.payload
    return treatment.item.id


def copy_clip(unit: Unit, tools: None) -> Outcome:
    """The product of a `Treatment`."""
    treatment: Treatment = unit.payload
    return Outcome([Product(treatment.item, partial(_fill, treatment=treatment), treatment.extra)])


def _fill(folder: Path, treatment: Treatment) -> None:
    source = Path(treatment.folder)
    clip = Clip(source)
    try:
        sound = clip.wave(-treatment.shift * SAMPLES_PER_FRAME, treatment.item.samples)
        names = sorted(path for path in source.iterdir() if path.is_file())
    except (UserError, OSError) as error:
        raise InputError(f"the clip cannot be read: {error}") from error
    for path in names:
        if treatment.shift and path.name == "audio.wav":
            write_wav(folder / path.name, sound, SAMPLE_RATE)
        elif not (treatment.shift and path.name in _OF_THE_SOUND):
            shutil.copyfile(path, folder / path.name)


def _unit(corpus: Corpus, item: Item, extra: dict[str, Any], finding: Finding, believed: float | None) -> Unit:
    offset, confidence = finding.measures.sync_offset, finding.measures.sync_confidence
    shift = 0
    if offset is not None and confidence is not None:
        shift = round(offset) if believed is not None and confidence >= believed else 0
        item = replace(item, sync_offset=offset - shift, sync_confidence=confidence)
        extra = {**extra, "sync_shift": int(extra.get("sync_shift", 0)) + shift}
    folder = corpus.file(item.path)
    stamps = [f"{path.name} {stamp_of(path)}" for path in sorted(folder.iterdir())]
    return Unit(digest(item.id, 24), digest(f"{stamps}{item}{shift}", 16), Treatment(item, str(folder), shift, extra))


def _item_of(row: dict[Any, Any]) -> Item:
    values = {name.name: row[name.name] for name in fields(Item)}
    missing = {name: None for name in ("sync_offset", "sync_confidence") if values[name] != values[name]}
    return Item(**{**values, **missing})


def _extra_of(row: dict[Any, Any]) -> dict[str, Any]:
    """The manifest's further columns; empty cells are left out."""
    kept = {key: value for key, value in row.items() if key not in SCHEMA.names}
    return {key: value for key, value in kept.items() if value is not None and value == value}


def _no_tools() -> None:
    """Copying needs no models."""
