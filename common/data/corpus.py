"""The corpus: a folder with `manifest.parquet`, voices, faces and clips, that a person can open.

Layout: `voices/<identity>/*.wav` (16 kHz mono), `faces/<identity>/*.png` (aligned crops), `clips/<id>/`,
`manifest.parquet` (one row per item, in the columns of `Item`) and `report.json` (what was dropped, and why).

Whether an identity may stand in two splits is a property of the corpus, kept in the manifest's metadata and
checked whenever the corpus is written or opened (`SHARED_NOWHERE`).
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Self

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from common.errors import UserError
from common.files import atomic_path, safe_join

MANIFEST = "manifest.parquet"
REPORT = "report.json"
SAMPLE_RATE = 16000
SPLITS = ("train", "val", "test")
KINDS = ("voice", "face", "clip")
SHARED_NOWHERE: dict[str, tuple[tuple[str, str], ...]] = {
    "identity": tuple(combinations(SPLITS, 2)),  # val and test are people whom training never met
    "recording": (),  # held-out recordings and photos of the people in training
    "mixed": (("train", "test"), ("val", "test")),  # val: held-out recordings; test: unseen people
}
"""`split_by` -> the pairs of splits that may have no identity in common."""
_METADATA_KEY = b"speechface"


@dataclass(frozen=True)
class Item:
    """One row of the manifest: a voice recording, a face image or a clip."""

    id: str
    """Unique in the corpus."""
    identity: str
    """Who it is; the name of the folder below `voices/` and `faces/`."""
    split: str
    """train, val or test."""
    kind: str
    """voice, face or clip."""
    path: str
    """Relative to the corpus, with forward slashes; a clip's path is its folder. May be empty when dropped."""
    frames: int = 0
    """Video frames of a clip."""
    fps: float = 0.0
    """Frames per second of a clip."""
    samples: int = 0
    """Audio samples at 16 kHz."""
    language: str = ""
    """ISO 639-1 code ("zh", "en"), empty when unknown."""
    sync_offset: float | None = None
    """Video frames by which the audio must be moved to be in sync; None when not measured."""
    sync_confidence: float | None = None
    """SyncNet confidence of `sync_offset` (median minus minimum distance); None when not measured."""
    dropped: str = ""
    """Why the item is not used; empty for an item that is."""


SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("identity", pa.string()),
        ("split", pa.string()),
        ("kind", pa.string()),
        ("path", pa.string()),
        ("frames", pa.int64()),
        ("fps", pa.float64()),
        ("samples", pa.int64()),
        ("language", pa.string()),
        ("sync_offset", pa.float64()),
        ("sync_confidence", pa.float64()),
        ("dropped", pa.string()),
    ]
)
"""The manifest's columns; further columns may follow and are kept."""
_NULLABLE = {"sync_offset", "sync_confidence"}


def write_manifest(
    root: Path,
    rows: Iterable[Item],
    *,
    split_by: str = "identity",
    extra: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Write `root/manifest.parquet` atomically, sorted by (kind, identity, id), in the types of `SCHEMA`.

    `split_by` is a key of `SHARED_NOWHERE`. `extra` maps an item's id to further columns, such as
    `{"voices/a/1": {"gender": "f"}}`; items without a value get null. The same rows give the same bytes.

    Raises `UserError` for unknown kinds or splits, repeated ids, unsafe paths, and an identity that stands in
    two splits which `split_by` keeps apart.
    """
    items = sorted(rows, key=lambda item: (item.kind, item.identity, item.id))
    table = pa.Table.from_pylist([asdict(item) for item in items], schema=SCHEMA)
    names = sorted({name for values in (extra or {}).values() for name in values})
    for name in names:
        if name in SCHEMA.names:
            raise ValueError(f"the extra column {name} would hide the manifest's own")
        values = [(extra or {}).get(item.id, {}).get(name) for item in items]
        table = table.append_column(name, pa.array(values))
    path = root / MANIFEST
    frame = table.to_pandas()
    _check_rows(frame, path)
    for relative in frame.loc[frame["dropped"] == "", "path"]:
        safe_join(root, relative)
    _check_split_by(split_by, path)
    _check_shared(frame, split_by, path)
    table = table.replace_schema_metadata({_METADATA_KEY: json.dumps({"split_by": split_by}).encode()})
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary)


@dataclass(frozen=True)
class Corpus:
    """An opened corpus. Use `Corpus.open`; the constructor checks nothing."""

    root: Path
    """The corpus folder."""
    table: pd.DataFrame
    """The whole manifest, dropped rows and extra columns included, in the manifest's order."""
    split_by: str
    """A key of `SHARED_NOWHERE`: whether splits share identities."""

    @classmethod
    def open(cls, root: Path) -> Self:
        """Read and check the corpus at `root`.

        Raises `UserError` (one line) when the folder or manifest is missing, is not parquet or is cut off,
        lacks columns, has unknown kinds or splits, repeated ids or unsafe paths, breaks its own `split_by`, or
        names files that are not there (the first and their number).
        """
        root = Path(root)
        path = root / MANIFEST
        if not root.is_dir():
            raise UserError(f"no corpus at {root}: there is no such folder; build one with `prepare`")
        if not path.is_file():
            raise UserError(f"no corpus at {root}: it holds no {MANIFEST}; build one with `prepare`")
        table = _read_table(path)
        split_by = _read_split_by(table, path)
        frame = table.to_pandas()
        _check_rows(frame, path)
        _check_files(root, frame.loc[frame["dropped"] == "", "path"])
        corpus = cls(root=root, table=frame, split_by=split_by)
        check_disjoint(corpus)
        return corpus

    def items(self, *, kind: str | None = None, split: str | None = None) -> pd.DataFrame:
        """The rows in use (not dropped) of a kind and split, or of all where None; index 0..n-1."""
        if kind is not None and kind not in KINDS:
            raise ValueError(f"unknown kind {kind!r}: use one of {KINDS}")
        if split is not None and split not in SPLITS:
            raise ValueError(f"unknown split {split!r}: use one of {SPLITS}")
        keep = self.table["dropped"] == ""
        if kind is not None:
            keep &= self.table["kind"] == kind
        if split is not None:
            keep &= self.table["split"] == split
        return self.table[keep].reset_index(drop=True)

    def identities(self, split: str | None = None) -> list[str]:
        """Sorted identities with at least one item in use in the split (or anywhere)."""
        return sorted(self.items(split=split)["identity"].unique())

    def file(self, relative: str) -> Path:
        """The file of a row's `path`; `UserError` if it would leave the corpus."""
        return safe_join(self.root, relative)

    def stock(self, split: str) -> str:
        """What a split has, for messages about what it lacks: `clips in it: 3, of 12 to 40 frames at 25 fps`."""
        items = self.items(split=split)
        clips = items[items["kind"] == "clip"]
        if not len(clips):
            counts = ", ".join(f"{(items['kind'] == kind).sum()} {kind}s" for kind in KINDS)
            elsewhere = ", ".join(f"{other} {len(self.items(split=other))}" for other in SPLITS if other != split)
            return f"in it: {counts} (items in other splits: {elsewhere})"
        rates = " or ".join(f"{rate:g}" for rate in sorted(clips["fps"].unique()))
        return f"clips in it: {len(clips)}, of {clips['frames'].min()} to {clips['frames'].max()} frames at {rates} fps"

    def summary(self) -> str:
        """Counts per split and kind, identities and hours of speech, as lines of text."""
        lines = [f"corpus {self.root} (split by {self.split_by})"]
        for split in SPLITS:
            items = self.items(split=split)
            counts = [f"{(items['kind'] == kind).sum()} {kind}s" for kind in KINDS if (items["kind"] == kind).any()]
            minutes = items["samples"].sum() / SAMPLE_RATE / 60
            sound = f"{minutes / 60:.1f} h" if minutes >= 60 else f"{minutes:.1f} min"
            people = items["identity"].nunique()
            lines.append(f"  {split:5} {people} identities, {', '.join(counts) or 'nothing'}, {sound} of audio")
        dropped = int((self.table["dropped"] != "").sum())
        if dropped:
            lines.append(f"  {dropped} items dropped: {REPORT} names each with its reason")
        return "\n".join(lines)


def check_disjoint(corpus: Corpus) -> None:
    """Raise `UserError` naming the identities that stand in two splits which `corpus.split_by` keeps apart."""
    _check_shared(corpus.table, corpus.split_by, corpus.root / MANIFEST)


def _read_table(path: Path) -> pa.Table:
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).split(".")[0]
        raise UserError(f"cannot read {path}: not a whole parquet file ({reason}); prepare the corpus again") from error
    missing = [name for name in SCHEMA.names if name not in table.column_names]
    if missing:
        raise UserError(f"{path} lacks the columns {', '.join(missing)}; prepare the corpus again")
    for field in SCHEMA:
        index = table.column_names.index(field.name)
        try:
            table = table.set_column(index, field, table.column(index).cast(field.type))
        except pa.ArrowException as error:
            raise UserError(f"{path}: column {field.name} does not hold {field.type} values") from error
        if field.name not in _NULLABLE and table.column(index).null_count:
            raise UserError(f"{path}: column {field.name} has empty cells")
    return table


def _read_split_by(table: pa.Table, path: Path) -> str:
    """A manifest that others wrote may lack the entry; then the stricter reading holds."""
    metadata = (table.schema.metadata or {}).get(_METADATA_KEY)
    if metadata is None:
        return "identity"
    try:
        split_by = str(json.loads(metadata)["split_by"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: its speechface metadata is not readable; prepare the corpus again") from error
    _check_split_by(split_by, path)
    return split_by


def _check_split_by(split_by: str, path: Path) -> None:
    if split_by not in SHARED_NOWHERE:
        raise UserError(f"{path}: unknown split_by {split_by!r}; use one of {', '.join(SHARED_NOWHERE)}")


def _check_rows(frame: pd.DataFrame, path: Path) -> None:
    for column, allowed in (("kind", KINDS), ("split", SPLITS)):
        unknown = frame.loc[~frame[column].isin(allowed)]
        if len(unknown):
            row = unknown.iloc[0]
            known = ", ".join(allowed)
            raise UserError(f"{path}: unknown {column} {row[column]!r} of item {row['id']!r}; use one of {known}")
    repeated = frame.loc[frame["id"].duplicated(), "id"]
    if len(repeated):
        raise UserError(f"{path}: the id {repeated.iloc[0]!r} stands there twice ({len(repeated)} repeats in all)")


def _check_files(root: Path, paths: Iterable[str]) -> None:
    """List each folder once: a million single look-ups on a network drive would take minutes."""
    listings: dict[str, set[str]] = {}
    missing: list[str] = []
    for relative in paths:
        parent, _, name = relative.rpartition("/")
        if parent not in listings:
            folder = safe_join(root, relative).parent
            listings[parent] = set(os.listdir(folder)) if folder.is_dir() else set()
        if name not in listings[parent]:
            safe_join(root, relative)
            missing.append(relative)
    if missing:
        raise UserError(
            f"the manifest of {root} names {len(missing)} files that are not there, the first is {missing[0]}; "
            "copy them back or prepare the corpus again"
        )


def _check_shared(frame: pd.DataFrame, split_by: str, path: Path) -> None:
    used = frame[frame["dropped"] == ""]
    people = {split: set(used.loc[used["split"] == split, "identity"]) for split in SPLITS}
    for first, second in SHARED_NOWHERE[split_by]:
        shared = sorted(people[first] & people[second])
        if shared:
            raise UserError(
                f"{path}: {len(shared)} identities stand in both {first} and {second} ({_some(shared)}), "
                f"but the corpus is split by {split_by}; split it again"
            )


def _some(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
