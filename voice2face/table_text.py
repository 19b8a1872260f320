"""A table of the papers as Markdown and CSV: our figures with intervals beside the printed ones, and the orderings."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t as student

from common.files import write_text
from common.metrics.estimate import CONFIDENCE, Estimate
from voice2face.config import Config
from voice2face.table_rows import CLAIMS, METRICS, Claim, Metric, Row

NOT_YET = "not run yet"


@dataclass(frozen=True)
class Head:
    """What the table's figures depend on, apart from the rows."""

    budget: str
    printed_budget: bool
    corpus: str
    synthetic: bool
    seeds: tuple[int, ...]
    hardware: str
    commit: str
    date: str


@dataclass(frozen=True)
class Outcome:
    """One run: its evaluation, or why there is none."""

    cfg: Config
    metrics: dict[str, Any] = field(default_factory=dict)
    failure: str = ""
    diverged: bool = False
    """whether the failure is a loss that is not finite"""


Outcomes = Mapping[tuple[str, int], Outcome]
Figures = dict[str, dict[str, Estimate]]
"""`table/row` -> metric -> figure"""


def write_table(path: Path, head: Head, rows: Sequence[Row], outcomes: Outcomes, notes: Sequence[str] = ()) -> None:
    """Write `path` (Markdown) and the CSV beside it, each whole or not at all; rows without outcome are named as such.

    `notes` are sentences about figures.
    """
    figures = {_id(row): row_figures(row, head.seeds, outcomes) for row in rows}
    failures = {_id(row): row_failure(row, head.seeds, outcomes) for row in rows}
    parts = ["# voice2face: the papers' tables", "", *_head(head, outcomes), ""]
    for table in dict.fromkeys(row.table for row in rows):
        own = [row for row in rows if row.table == table]
        parts += [f"## {table}", "", *_table(own, figures, failures), ""]
    parts += ["## Do the papers' orderings hold?", ""]
    tables = {row.table for row in rows}
    parts += [f"- {claim_text(claim, figures, failures)}" for claim in CLAIMS if claim.table in tables]
    if said := row_warnings(rows, outcomes):
        parts += ["", "## Warnings of the evaluations", "", *(f"- {text}" for text in said)]
    if notes:
        parts += ["", "## Figures", "", *(f"- {note}" for note in notes)]
    write_text(path, "\n".join(parts) + "\n")
    write_text(path.with_suffix(".csv"), _csv(head, rows, figures, failures))


def row_figures(row: Row, seeds: Sequence[int], outcomes: Outcomes) -> dict[str, Estimate]:
    """Metric -> figure over the seeds that finished: of one seed with its evaluation's interval, of several their
    mean with the interval of Student's t."""
    done = [outcomes[row.experiment, seed] for seed in seeds if (row.experiment, seed) in outcomes]
    measured = [outcome.metrics for outcome in done if outcome.metrics]
    found = {}
    for metric in METRICS:
        estimates = [estimate for metrics in measured if (estimate := read_figure(metrics, metric)) is not None]
        if estimates:
            found[metric.key] = estimates[0] if len(estimates) == 1 else over_seeds(estimates)
    return found


def read_figure(metrics: Mapping[str, Any], metric: Metric) -> Estimate | None:
    """The figure of an evaluation; None where it has none."""
    *sections, prefix = metric.path
    section: Any = metrics
    for name in sections:
        section = section.get(name, {})
    named = (section[key] for key in section if key == prefix or (prefix.endswith("[") and key.startswith(prefix)))
    value = next(named, None)
    if isinstance(value, dict):
        value, low, high, n = (value.get(key) for key in ("value", "low", "high", "n"))
    else:
        interval = section.get(f"{metric.key}_interval") or {}
        low, high, n = interval.get("low"), interval.get("high"), section.get("n_fake")
    return None if value is None else Estimate(value, low, high, n or 0)


def over_seeds(estimates: Sequence[Estimate]) -> Estimate:
    """Mean over runs with the 95 % interval of Student's t; `n` counts the runs."""
    values = np.array([estimate.value for estimate in estimates], dtype=np.float64)
    half = student.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return Estimate(float(values.mean()), float(values.mean() - half), float(values.mean() + half), len(values))


def row_failure(row: Row, seeds: Sequence[int], outcomes: Outcomes) -> str:
    """What kept seeds of this row from a figure; empty where nothing did."""
    said = []
    for seed in seeds:
        outcome = outcomes.get((row.experiment, seed))
        if outcome is None:
            said.append(f"seed {seed}: {NOT_YET}")
        elif outcome.failure:
            kind = "diverged" if outcome.diverged else "failed"
            said.append(f"seed {seed} {kind}: {outcome.failure}")
    return "; ".join(said)


def row_warnings(rows: Sequence[Row], outcomes: Outcomes) -> list[str]:
    """What the evaluations warn of (portraits that ignore the voice, a judge that was trained with), by run."""
    names: dict[str, list[str]] = {}
    for row in rows:
        names.setdefault(row.experiment, []).append(f"{row.table}: {row.name}")
    return [
        f"{', '.join(names[experiment])} (seed {seed}): {text}"
        for (experiment, seed), outcome in outcomes.items()
        for text in outcome.metrics.get("warnings", [])
    ]


def claim_text(claim: Claim, figures: Figures, failures: Mapping[str, str]) -> str:
    """The claim and whether it holds: decided where the 95 % intervals are apart, undecided where they overlap."""
    metric = next(metric for metric in METRICS if metric.key == claim.metric)
    ids = [f"{claim.table}/{name}" for name in (claim.better, claim.worse)]
    said = f"{claim.table}: {metric.title.partition(',')[0]} of {claim.better} {metric.better} than of {claim.worse}:"
    missing = [name for name in ids if figures.get(name, {}).get(claim.metric) is None]
    if missing:
        reasons = [
            f"{name.partition('/')[2]} has no figure ({failures.get(name) or 'not measured'})" for name in missing
        ]
        return f"{said} **not judged**, {' and '.join(reasons)}"
    better, worse = (figures[name][claim.metric] for name in ids)
    return (
        f"{said} **{verdict(better, worse, metric.better)}** ({_cell(better, metric)} against {_cell(worse, metric)})"
    )


def verdict(better: Estimate, worse: Estimate, direction: str) -> str:
    """`holds`, `does not hold`, or `within the intervals`; without intervals the point figures and a word of that."""
    sign = 1 if direction == "lower" else -1
    right = sign * _known(better.value) < sign * _known(worse.value)
    if None in (better.low, better.high, worse.low, worse.high):
        return f"{'holds' if right else 'does not hold'} by the point figures, which have no intervals"
    if _known(better.low) <= _known(worse.high) and _known(worse.low) <= _known(better.high):
        return f"within the intervals, the point figures {'agree' if right else 'disagree'}"
    return "holds" if right else "does not hold"


def _known(value: float | None) -> float:
    if value is None:
        raise ValueError("a claim is judged by figures that exist")
    return value


def _id(row: Row) -> str:
    return f"{row.table}/{row.name}"


def _head(head: Head, outcomes: Outcomes) -> list[str]:
    lines = [
        f"- corpus: {head.corpus} ({'synthetic people' if head.synthetic else 'real people'})",
        *_measured(outcomes),
        f"- budget: {head.budget}; {_budget(outcomes)}",
        f"- seeds: {', '.join(map(str, head.seeds))}; intervals are 95 %, {_interval(head.seeds)}",
        f"- hardware: {head.hardware}",
        f"- {head.date}, commit {head.commit}",
        "",
        _reservation(head),
    ]
    return [line.rstrip() for line in lines]


def _measured(outcomes: Outcomes) -> list[str]:
    """N, extractor, embedder and distance, and a warning where rows were not measured on the same images."""
    kinds = dict.fromkeys(_measurement(outcome) for outcome in outcomes.values() if outcome.metrics)
    warning = ["- **warning: rows that were measured on different images do not compare**"] if len(kinds) > 1 else []
    return [*kinds, *warning]


def _measurement(outcome: Outcome) -> str:
    m, settings = outcome.metrics, outcome.cfg.evaluation
    quality, retrieval = m.get("quality", {}), m.get("identity", {}).get("retrieval", {})
    chance = retrieval.get("r@1", {}).get("chance")
    return (
        f"- measured on: {m.get('split')} split, {m.get('identities')} identities, {m.get('recordings')} recordings, "
        f"{m.get('image_size')} px; FID and KID of N = {quality.get('n_fake')} portraits against "
        f"{quality.get('n_real')} faces by {quality.get('extractor')}; identity by {settings.embedder}, gallery of "
        f"{retrieval.get('gallery_size')} (chance {chance if chance is None else format(chance, '.4g')}); path length "
        f"by {settings.distance}"
    )


def _budget(outcomes: Outcomes) -> str:
    kinds = dict.fromkeys(
        f"{c.trainer.steps} steps of {c.data.batch_size} images ({c.trainer.steps * c.data.batch_size} images seen), "
        f"after {c.encoder.steps} encoder steps of {c.encoder.batch_size}, at {c.data.image_size} px"
        for c in (outcome.cfg for outcome in outcomes.values())
    )
    return "; or ".join(kinds)


def _interval(seeds: Sequence[int]) -> str:
    if len(seeds) > 1:
        return "Student's t over the seeds"
    return "of one training each, over identities (path length: over pairs; KID: over images)"


def _reservation(head: Head) -> str:
    reasons = [
        *(["the people are synthetic"] if head.synthetic else []),
        *([] if head.printed_budget else ["the budget is a small part of the papers'"]),
    ]
    if reasons:
        return (
            f"**This is not a replication of the papers: {' and '.join(reasons)}.** The printed figures stand beside "
            "ours for their order only; the papers state neither extractor nor N."
        )
    return "The papers state neither extractor nor N, so compare the orders of the rows and not the figures."


def _table(rows: Sequence[Row], figures: Figures, failures: Mapping[str, str]) -> list[str]:
    columns = [
        metric
        for metric in METRICS
        if any(metric.key in row.printed or metric.key in figures[_id(row)] for row in rows)
    ]
    heads: list[str] = ["row"]
    for metric in columns:
        heads += [metric.title] + ([f"{metric.title}, paper"] if _printed(rows, metric) else [])
    lines = [_line([*heads, "note"]), _line(["---"] * (len(heads) + 1))]
    for row in rows:
        cells = [row.name]
        for metric in columns:
            cells.append(_cell(figures[_id(row)].get(metric.key), metric))
            if _printed(rows, metric):
                cells.append(_value(row.printed.get(metric.key), metric))
        lines.append(_line([*cells, failures[_id(row)]]))
    return lines


def _printed(rows: Sequence[Row], metric: Metric) -> bool:
    return any(metric.key in row.printed for row in rows)


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _cell(figure: Estimate | None, metric: Metric) -> str:
    if figure is None:
        return ""
    if figure.low is None or figure.high is None:
        return _value(figure.value, metric)
    return f"{_value(figure.value, metric)} [{_value(figure.low, metric)}, {_value(figure.high, metric)}]"


def _value(value: float | None, metric: Metric) -> str:
    return "" if value is None else f"{value * (100 if metric.percent else 1):.4g}"


def _csv(head: Head, rows: Sequence[Row], figures: Figures, failures: Mapping[str, str]) -> str:
    """One line a row and metric, figures unscaled; a row without figures keeps its lines, with the reason."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["table", "row", "experiment", "seeds", "metric", "value", "low", "high", "n", "paper", "note"])
    for row in rows:
        for metric in METRICS:
            figure = figures[_id(row)].get(metric.key)
            numbers = ["", "", "", ""] if figure is None else [figure.value, figure.low, figure.high, figure.n]
            place = [row.table, row.name, row.experiment, " ".join(map(str, head.seeds)), metric.key]
            writer.writerow([*place, *numbers, row.printed.get(metric.key, ""), failures[_id(row)]])
    return buffer.getvalue()
