"""Raw talking videos -> corpus of clips: lists a source, runs it through the engine, splits it, writes the manifest.

A run that was killed is resumed by the same command and ends as an uninterrupted one. The manifest is written last.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

from common.data.cmlr import plan_cmlr
from common.data.corpus import SAMPLE_RATE, SPLITS, Item
from common.data.engine import Drop, Engine, Job, Record, Unit, begin, clean, run_units
from common.data.folder import Plan, printable
from common.data.lrs2 import plan_lrs2
from common.data.lrw import plan_lrw
from common.data.prepare import (
    Report,
    SplitBy,
    as_json,
    check_apart,
    place_items,
    shared_files,
    worker_count,
    write_corpus,
)
from common.data.talking import Framing, Recording, TalkingKit, TalkingSettings, TalkingTools
from common.data.talking_filter import PLAIN, RECIPES, ClipFilter, describe_filter, parse_filter
from common.data.talking_plan import plan_clips
from common.data.talking_unit import talk
from common.data.voxceleb_video import plan_voxceleb_video
from common.errors import UserError
from common.syncnet import load_syncnet
from common.weights import WEIGHTS, weights_folder

_SYNCNET = WEIGHTS["syncnet_v2"].file_name
_UNSEEN = 1.05
"""Times by which a crop may be enlarged without a word."""
Kit = Callable[[TalkingSettings, str, Path | None], Callable[[], TalkingTools]]
"""(settings, device, SyncNet weights) -> the factory of the models."""


@dataclass(frozen=True)
class TalkingSource:
    """A layout of raw data, and what is asked of it unless the user says otherwise."""

    plan: Callable[..., Plan]
    """Lists it."""
    defaults: dict[str, Any] = field(default_factory=dict)
    """Fields of `TalkingSettings`."""
    arguments: tuple[str, ...] = ()
    """What `plan` takes besides the folder and `limit`."""


TALKING_SOURCES: dict[str, TalkingSource] = {
    "folder": TalkingSource(plan_clips),
    "cmlr": TalkingSource(plan_cmlr, {"shortest": 0.6, "bounds": RECIPES["clr"]}),
    "lrs2": TalkingSource(plan_lrs2, {"shortest": 0.6}, ("lists", "pretrain")),
    "lrw": TalkingSource(plan_lrw, {"bounds": replace(PLAIN, max_silence=None)}),
    "voxceleb-video": TalkingSource(
        plan_voxceleb_video, {"framing": "tube", "size": 256, "longest": 60.0}, ("metadata",)
    ),
}
"""Source name -> its layout. LRW's clips are one word between others, too short to judge silence by."""


def prepare_talking(
    source: str,
    input: Path,
    out: Path,
    settings: Mapping[str, Any] | None = None,
    *,
    sync: str = "auto",
    split: SplitBy = "auto",
    limit: int | None = None,
    workers: int | None = None,
    engine: Engine = "local",
    fresh: bool = False,
    device: str = "cpu",
    toolkit: Kit = TalkingKit,
    **meta: Any,
) -> Report:
    """Turn raw videos into a corpus of clips, or go on with a run that was interrupted.

    Args:
        source: key of `TALKING_SOURCES`.
        input: the raw data; only read.
        out: the corpus; may exist if an earlier run of this function began it.
        settings: fields of `TalkingSettings` that differ from the source's defaults.
        sync: SyncNet weights: a file, "none", or "auto" for the published ones where the weights folder has them.
        split: see `common.data.prepare.prepare`; official splits are used where there are some, unless it says
            recording or identity.
        limit: at most so many people.
        workers: processes; 0 works in this one, None takes all cores.
        engine: local, or ray for the processes of a Ray cluster.
        fresh: throw away what an earlier run with other options left in `out`.
        device: torch device of the networks.
        toolkit: makes the factory of the models; for tests.
        meta: further arguments of the source.

    Returns:
        The report, which also lies in `out/report.json`.

    Raises:
        UserError: unknown source, no videos, other options than before, nothing usable, or `out` is not writable.
    """
    if source not in TALKING_SOURCES:
        raise UserError(f"unknown source {source!r}; use one of {', '.join(TALKING_SOURCES)}")
    for name in meta:
        if name not in TALKING_SOURCES[source].arguments:
            raise UserError(f"the source {source} has no {name}")
    input, out = Path(input), Path(out)
    check_apart(input, out)
    weights, name = find_syncnet(sync)
    chosen = TalkingSettings(**{**TALKING_SOURCES[source].defaults, **(settings or {}), "sync": name})
    plan = TALKING_SOURCES[source].plan(input, limit=limit, **meta)
    begin(
        out, {"kind": "talking", "source": source, "input": printable(input.resolve()), **as_json(chosen)}, fresh=fresh
    )
    job = Job(out, talk, toolkit(chosen, device, weights), describe)
    count = worker_count(workers, len(plan.units))
    records = run_units(plan.units, job, workers=count, label="preparing", engine=engine)
    clean(out)
    return _finish(source, out, plan, records, chosen, split)


def settings_of(source: str, filter: str | None, bounds: Sequence[str], **chosen: Any) -> dict[str, Any]:
    """What differs from the source's settings, from the words of a command line; None leaves a default.

    Raises:
        UserError: an unknown filter, bound or framing.
    """
    settings = {name: value for name, value in chosen.items() if value is not None}
    if settings.get("framing", "head") not in get_args(Framing):
        raise UserError(f"unknown framing {settings['framing']!r}; use one of {', '.join(get_args(Framing))}")
    default: ClipFilter = TALKING_SOURCES[source].defaults.get("bounds", PLAIN) if source in TALKING_SOURCES else PLAIN
    if filter is not None or bounds:
        settings["bounds"] = parse_filter(filter or default, bounds)
    return settings


def describe(unit: Unit) -> str:
    """A unit by its file."""
    recording: Recording = unit.payload
    return recording.source


def find_syncnet(sync: str) -> tuple[Path | None, str]:
    """The file of SyncNet weights that `sync` asks for and the extractor's name; None and "" where there is none.

    Raises:
        UserError: a file that is missing or holds no SyncNet.
    """
    if sync == "none":
        return None, ""
    path = weights_folder() / _SYNCNET if sync == "auto" else Path(sync)
    if sync == "auto" and not path.is_file():
        return None, ""
    return path, load_syncnet(path).name


def _finish(
    source: str, out: Path, plan: Plan, records: Sequence[Record], settings: TalkingSettings, split: SplitBy
) -> Report:
    recordings: dict[str, Recording] = {unit.key: unit.payload for unit in plan.units}
    owner = {item.id: recordings[record.key] for record in records for item in record.items}
    items = [item for record in records for item in record.items]
    extra = {key: value for record in records for key, value in record.extra.items()}
    drops = [*plan.drops, *(drop for record in records for drop in record.drops)]
    split_by, places = split_items(items, owner, split)
    items = [replace(item, split=places[item.id]) for item in items]
    origin = {key: recording.source for key, recording in owner.items()}
    notes = [*plan.notes, *shared_files(items, origin), *_notes(items, extra, drops, settings)]
    report = Report(source, split_by, counts_of(items), drops, plan.ignored, notes)
    write_corpus(out, report, items, extra)
    return report


def split_items(items: Sequence[Item], owner: Mapping[str, Recording], split: SplitBy) -> tuple[str, dict[str, str]]:
    """How the corpus is split, and the split of each item.

    Args:
        items: all.
        owner: item id -> the recording it was cut from.
        split: "auto" takes the official splits where every recording has one; they are by identity where they share
            nobody. Otherwise and without them see `place_items`; what `Recording.group` joins is held out together.
    """
    official = {item.id: owner[item.id].split for item in items}
    if split == "auto" and all(official.values()):
        people: dict[str, set[str]] = {}
        for item in items:
            people.setdefault(item.identity, set()).add(official[item.id])
        return ("identity" if all(len(places) == 1 for places in people.values()) else "recording"), official
    origin = {key: recording.group or recording.source for key, recording in owner.items()}
    return place_items(items, origin, None, split)


def counts_of(items: Sequence[Item]) -> dict[str, dict[str, int]]:
    """split -> clips, identities and whole seconds of what is in use."""
    table = {}
    for split in SPLITS:
        used = [item for item in items if item.split == split and not item.dropped]
        seconds = round(sum(item.samples for item in used) / SAMPLE_RATE)
        table[split] = {"clips": len(used), "identities": len({item.identity for item in used}), "seconds": seconds}
    return table


def _notes(
    items: Sequence[Item], extra: Mapping[str, Mapping[str, Any]], drops: Sequence[Drop], settings: TalkingSettings
) -> list[str]:
    notes = [f"filter: {describe_filter(settings.bounds)}"]
    rules = Counter(drop.reason.rpartition("(")[2].rstrip(")") for drop in drops if drop.reason.endswith(")"))
    counted = [f"{number} by {rule}" for rule, number in rules.most_common() if hasattr(settings.bounds, rule)]
    if counted:
        notes.append(f"the filter dropped {', '.join(counted)}")
    if settings.sync:
        moved = sum(bool(extra[item.id].get("sync_shift")) for item in items)
        notes.append(f"sync was measured by {settings.sync}; the sound of {moved} clips was moved")
    else:
        notes.append(f"sync was not measured, nor filtered by: no SyncNet weights ({_SYNCNET})")
    notes += [f"there are no clips for {split}" for split, counts in counts_of(items).items() if not counts["clips"]]
    scales = [extra[item.id]["crop_scale"] for item in items]
    enlarged = sum(scale > _UNSEEN for scale in scales)
    if enlarged:
        notes.append(
            f"{enlarged} of {len(items)} clips were enlarged to {settings.size} px, {max(scales):.1f} times at most"
        )
    return notes
