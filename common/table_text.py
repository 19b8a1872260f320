"""A table of the papers as Markdown and CSV: our figures with intervals beside the printed ones, and the orderings."""

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.stats import t as student

from common.metrics.estimate import CONFIDENCE, Estimate
from common.table_rows import Claim, Metric, Row

NOT_YET = "not run yet"
NOT_GIVEN = "no figures given"


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

    cfg: Any
    """the run's configuration"""
    metrics: dict[str, Any] = field(default_factory=dict)
    failure: str = ""
    diverged: bool = False
    """whether the failure is a loss that is not finite"""


@dataclass(frozen=True)
class Words:
    """What a package says of its own tables."""

    title: str
    papers: str
    """`the papers`, `the paper`"""
    unstated: str
    """what they do not state, for the sentence that says how to read their figures"""
    interval: str
    """what the intervals of one training are over"""
    measured: Callable[[Outcome], str]
    """what the figures of a run were measured on and by"""
    budget: Callable[[Any], str]
    """what a run of this configuration is trained with"""
    remarks: tuple[str, ...] = ()
    """what a reader of the printed figures has to know"""

    @property
    def whose(self) -> str:
        """`the papers'`, `the paper's`."""
        return self.papers + ("'" if self.papers.endswith("s") else "'s")


Outcomes = Mapping[tuple[str, int], Outcome]
Given = Mapping[str, Mapping[str, Any]]
"""Name of a row without experiment -> metrics of that method"""
Figures = dict[str, dict[str, Estimate]]
"""`table/row` -> metric -> figure"""
Difference = Callable[[Mapping[str, Any], Row, Mapping[str, Any], Row, Metric], Estimate | None]


def markdown(
    words: Words,
    head: Head,
    rows: Sequence[Row],
    metrics: Sequence[Metric],
    claims: Sequence[Claim],
    difference: Difference | None,
    outcomes: Outcomes,
    given: Given,
    notes: Sequence[str] = (),
) -> str:
    """The tables as Markdown; rows without outcome are named as such. `notes` are sentences about figures."""
    figures = {_id(row): row_figures(row, metrics, head.seeds, outcomes, given) for row in rows}
    failures = {_id(row): row_failure(row, head.seeds, outcomes, given) for row in rows}
    parts = [f"# {words.title}", "", *_head(words, head, outcomes, rows), ""]
    for table in dict.fromkeys(row.table for row in rows):
        own = [row for row in rows if row.table == table]
        parts += [f"## {table}", "", *_table(own, metrics, figures, failures), ""]
    parts += [f"## Do {words.whose} orderings hold?", ""]
    named = {metric.key: metric for metric in metrics}
    tables = {row.table for row in rows}
    for claim in claims:
        if claim.table in tables:
            apart = _apart(claim, named[claim.metric], rows, head.seeds, outcomes, difference)
            parts.append(f"- {claim_text(claim, named[claim.metric], figures, failures, apart)}")
    if said := row_warnings(rows, outcomes):
        parts += ["", "## Warnings of the evaluations", "", *(f"- {text}" for text in said)]
    if notes:
        parts += ["", "## Figures", "", *(f"- {note}" for note in notes)]
    return "\n".join(parts) + "\n"


def row_figures(
    row: Row, metrics: Sequence[Metric], seeds: Sequence[int], outcomes: Outcomes, given: Given
) -> dict[str, Estimate]:
    """Metric -> figure over the seeds that finished: of one seed with its evaluation's interval, of several their
    mean with the interval of Student's t. Of another method the figures that were given."""
    measured = _measured_by(row, seeds, outcomes) if row.experiment else [given[row.name]] if row.name in given else []
    found = {}
    for metric in metrics:
        estimates = [estimate for values in measured if (estimate := read_figure(values, metric, row.part)) is not None]
        if estimates:
            found[metric.key] = estimates[0] if len(estimates) == 1 else over_seeds(estimates)
    return found


def _measured_by(row: Row, seeds: Sequence[int], outcomes: Outcomes) -> list[dict[str, Any]]:
    done = [outcomes[row.experiment, seed] for seed in seeds if (row.experiment, seed) in outcomes]
    return [outcome.metrics for outcome in done if outcome.metrics]


def read_figure(metrics: Mapping[str, Any], metric: Metric, part: Sequence[str] = ()) -> Estimate | None:
    """The figure of an evaluation; None where it has none."""
    *sections, prefix = (*part, *metric.path)
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


def row_failure(row: Row, seeds: Sequence[int], outcomes: Outcomes, given: Given) -> str:
    """What kept seeds of this row from a figure; empty where nothing did."""
    if not row.experiment:
        return "" if row.name in given else NOT_GIVEN
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
    said: dict[str, list[str]] = {}
    for (experiment, seed), outcome in outcomes.items():
        for text in outcome.metrics.get("warnings", []):
            said.setdefault(text, []).append(f"{', '.join(names[experiment])} (seed {seed})")
    return [f"{'; '.join(runs)}: {text}" for text, runs in said.items()]


def claim_text(
    claim: Claim, metric: Metric, figures: Figures, failures: Mapping[str, str], apart: Estimate | None = None
) -> str:
    """The claim and whether it holds: by the interval of the difference `apart` on the same items where there is one,
    otherwise decided where the 95 % intervals are apart, undecided where they overlap."""
    ids = [f"{claim.table}/{name}" for name in (claim.better, claim.worse)]
    said = f"{claim.table}: {metric.title.partition(',')[0]} of {claim.better} {metric.better} than of {claim.worse}:"
    missing = [name for name in ids if figures.get(name, {}).get(claim.metric) is None]
    if missing:
        reasons = [
            f"{name.partition('/')[2]} has no figure ({failures.get(name) or 'not measured'})" for name in missing
        ]
        return f"{said} **not judged**, {' and '.join(reasons)}"
    better, worse = (figures[name][claim.metric] for name in ids)
    values = f"{_cell(better, metric)} against {_cell(worse, metric)}"
    if apart is None or apart.low is None or apart.high is None:
        return f"{said} **{verdict(better, worse, metric.better)}** ({values})"
    judged = verdict(apart, Estimate(0.0, 0.0, 0.0), metric.better)
    return f"{said} **{judged}** ({values}; difference {_cell(apart, metric)} on the same items)"


def verdict(better: Estimate, worse: Estimate, direction: str) -> str:
    """`holds`, `does not hold`, or `within the intervals`; without intervals the point figures and a word of that."""
    sign = 1 if direction == "lower" else -1
    right = sign * _known(better.value) < sign * _known(worse.value)
    if None in (better.low, better.high, worse.low, worse.high):
        return f"{'holds' if right else 'does not hold'} by the point figures, which have no intervals"
    if _known(better.low) <= _known(worse.high) and _known(worse.low) <= _known(better.high):
        return f"within the intervals, the point figures {'agree' if right else 'disagree'}"
    return "holds" if right else "does not hold"


def _apart(
    claim: Claim,
    metric: Metric,
    rows: Sequence[Row],
    seeds: Sequence[int],
    outcomes: Outcomes,
    difference: Difference | None,
) -> Estimate | None:
    """The difference of a claim's rows, run by run of equal seeds."""
    found = [
        [row for row in rows if (row.table, row.name) == (claim.table, name)] for name in (claim.better, claim.worse)
    ]
    if difference is None or not all(found):
        return None
    (better,), (worse,) = found
    both = [seed for seed in seeds if all((row.experiment, seed) in outcomes for row in (better, worse))]
    pairs = [(outcomes[better.experiment, seed].metrics, outcomes[worse.experiment, seed].metrics) for seed in both]
    each = [difference(first, better, second, worse, metric) for first, second in pairs if first and second]
    known = [estimate for estimate in each if estimate is not None and estimate.value is not None]
    return None if not known else known[0] if len(known) == 1 else over_seeds(known)


def _known(value: float | None) -> float:
    if value is None:
        raise ValueError("a claim is judged by figures that exist")
    return value


def _id(row: Row) -> str:
    return f"{row.table}/{row.name}"


def _head(words: Words, head: Head, outcomes: Outcomes, rows: Sequence[Row]) -> list[str]:
    over = "Student's t over the seeds" if len(head.seeds) > 1 else f"of one training each, {words.interval}"
    lines = [
        f"- corpus: {head.corpus} ({'synthetic people' if head.synthetic else 'real people'})",
        *_measured(words, outcomes, rows),
        f"- budget: {head.budget}; {_budget(words, outcomes)}",
        f"- seeds: {', '.join(map(str, head.seeds))}; intervals are 95 %, {over}",
        f"- hardware: {head.hardware}",
        f"- {head.date}, commit {head.commit}",
        "",
        _reservation(words, head),
        *([""] if words.remarks else []),
        *(f"- {remark}" for remark in words.remarks),
    ]
    return [line.rstrip() for line in lines]


def _measured(words: Words, outcomes: Outcomes, rows: Sequence[Row]) -> list[str]:
    """What was measured on and by, and a warning where rows of one table were not measured on the same items."""
    kinds: dict[str, set[str]] = {}
    for (experiment, _), outcome in outcomes.items():
        for table in {row.table for row in rows if row.experiment == experiment and outcome.metrics}:
            kinds.setdefault(table, set()).add(words.measured(outcome))
    apart = any(len(found) > 1 for found in kinds.values())
    warning = ["- **warning: rows that were measured on different images do not compare**"] if apart else []
    said = dict.fromkeys(words.measured(outcome) for outcome in outcomes.values() if outcome.metrics)
    return [*(f"- measured on: {kind}" for kind in said), *warning]


def _budget(words: Words, outcomes: Outcomes) -> str:
    return "; or ".join(dict.fromkeys(words.budget(outcome.cfg) for outcome in outcomes.values()))


def _reservation(words: Words, head: Head) -> str:
    reasons = [
        *(["the people are synthetic"] if head.synthetic else []),
        *([] if head.printed_budget else [f"the budget is a small part of {words.whose}"]),
    ]
    if reasons:
        return (
            f"**This is not a replication of {words.papers}: {' and '.join(reasons)}.** The printed figures stand "
            f"beside ours for their order only; {words.unstated}."
        )
    first, rest = words.unstated[0].upper(), words.unstated[1:]
    return f"{first}{rest}, so compare the orders of the rows and not the figures."


def _table(rows: Sequence[Row], metrics: Sequence[Metric], figures: Figures, failures: Mapping[str, str]) -> list[str]:
    columns = [
        metric
        for metric in metrics
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


def csv_text(head: Head, rows: Sequence[Row], metrics: Sequence[Metric], outcomes: Outcomes, given: Given) -> str:
    """One line a row and metric, figures unscaled; a row without figures keeps its lines, with the reason."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["table", "row", "experiment", "seeds", "metric", "value", "low", "high", "n", "paper", "note"])
    for row in rows:
        figures = row_figures(row, metrics, head.seeds, outcomes, given)
        failure = row_failure(row, head.seeds, outcomes, given)
        for metric in metrics:
            figure = figures.get(metric.key)
            numbers = ["", "", "", ""] if figure is None else [figure.value, figure.low, figure.high, figure.n]
            place = [row.table, row.name, row.experiment, " ".join(map(str, head.seeds)), metric.key]
            writer.writerow([*place, *numbers, row.printed.get(metric.key, ""), failure])
    return buffer.getvalue()
