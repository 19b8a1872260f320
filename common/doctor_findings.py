"""What the data doctor found, one row a clip, and its table."""

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from common.data.talking_filter import ClipFilter
from common.data.talking_measures import NAMES, Measures
from common.files import atomic_path

_IN_STEP = 0.1
"""Seconds by which sound and pictures may differ in length without a remark."""
_MOST_SHOWN = 50


@dataclass(frozen=True)
class Finding:
    """One row of the examination."""

    name: str
    identity: str
    split: str
    measures: Measures
    problems: tuple[str, ...]
    """In words; empty for a healthy clip."""
    synthetic: bool = False
    """Labelled as generated."""
    thumbnail: Path | None = None
    """PNG, while the examination's working folder is there."""


@dataclass(frozen=True)
class Examination:
    """All findings, and how they were made."""

    target: Path
    extractor: str
    """Name of the SyncNet; empty where sync was not measured."""
    bounds: ClipFilter
    findings: list[Finding]
    notes: list[str]

    def summary(self) -> str:
        """Lines for the terminal."""
        sick = [finding for finding in self.findings if finding.problems]
        lines = [f"{self.target}: {len(self.findings)} clips, {len(sick)} with problems"]
        lines += [f"note: {note}" for note in self.notes]
        lines += [f"{finding.name}: {'; '.join(finding.problems)}" for finding in sick[:_MOST_SHOWN]]
        if len(sick) > _MOST_SHOWN:
            lines.append(f"{len(sick) - _MOST_SHOWN} more clips with problems stand in the page and the table")
        return "\n".join(lines)


def write_table(path: Path, examination: Examination) -> None:
    """One row a clip as Parquet: id, identity, split, the measures, `problems` and `synthetic`."""
    rows = []
    for finding in examination.findings:
        head = {"id": finding.name, "identity": finding.identity, "split": finding.split}
        tail = {"problems": "; ".join(finding.problems), "synthetic": finding.synthetic}
        rows.append({**head, **finding.measures.columns(), **tail})
    whole = {"frames", "faces", "n_chars"}
    kinds = {name: pa.int64() if name in whole else pa.float64() for name in NAMES}
    text = dict.fromkeys(("id", "identity", "split"), pa.string())
    schema = pa.schema({**text, **kinds, "problems": pa.string(), "synthetic": pa.bool_()})
    with atomic_path(path) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), temporary)


def out_of_step(measures: Measures) -> list[str]:
    """A remark where sound and pictures differ in length, whatever the filter asks."""
    difference = measures.av_difference or 0.0
    if abs(difference) <= _IN_STEP:
        return []
    return [f"the sound is {abs(difference):.2f} s {'longer' if difference > 0 else 'shorter'} than the pictures"]
