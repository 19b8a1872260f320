"""Returned ratings of a survey as means with intervals, beside those of paper 3's table 3."""

import csv
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError
from common.files import write_text
from common.metrics.estimate import Estimate, cluster_bootstrap
from lipsync.survey_page import BEST, QUESTIONS

PRINTED = {
    "ATVGnet": (2.831, 2.935, 2.916),
    "Wav2Lip": (3.437, 3.359, 3.408),
    "PC-AVS": (3.317, 3.108, 3.219),
    "AD-NeRF": (3.392, 3.307, 3.165),
    "Diff2Lip": (3.419, 3.401, 3.412),
    "M-CSAWav2Lip": (3.921, 3.516, 3.734),
}
"""Paper 3, table 3: 20 raters, in the order of `QUESTIONS`."""
_LARGEST = 1 << 20  # bytes of a file with ratings
_LONGEST_NAME = 80


@dataclass
class Returned:
    """The ratings of one person."""

    rater: str
    file: str
    ratings: dict[str, dict[str, int]] = field(default_factory=dict)
    """video -> question -> 1 to 5"""
    doubts: list[str] = field(default_factory=list)
    """what was left out of the file"""


def write_ratings(folder: Path, key: Path, out: Path) -> str:
    """Write the means of the ratings in `folder` as Markdown; return it with what was left out.

    Files that are no ratings of this survey are named and left out, and so are single ratings that are no whole number
    from 1 to 5 or belong to no video of it. A person counts once, with the file whose name comes last.

    Raises:
        UserError: no key, no folder, not one usable rating.
    """
    survey, methods, items = _read_key(key)
    if not folder.is_dir():
        raise UserError(f"no folder of ratings at {folder}")
    people: dict[str, Returned] = {}
    said: list[str] = []
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in {".json", ".csv"} or path.resolve() == key.resolve():
            continue
        try:
            found = _read(path, survey, items)
        except UserError as error:
            said.append(str(error))
            continue
        said += [f"{path.name}: {doubt}" for doubt in found.doubts]
        if found.rater in people and people[found.rater].ratings != found.ratings:
            said.append(f"{found.rater} rated twice: {people[found.rater].file} gives way to {found.file}")
        people[found.rater] = found
    if not any(person.ratings for person in people.values()):
        raise UserError(f"{folder} holds no ratings of the survey {survey}" + (f": {said[0]}" if said else ""))
    text = _markdown(survey, methods, items, list(people.values()), said)
    write_text(out, text)
    return f"{text}\nwritten: {out}"


def means(
    methods: Sequence[str], items: Mapping[str, Mapping[str, str]], people: Sequence[Returned]
) -> dict[str, dict[str, Estimate]]:
    """Method -> question -> mean with its 95 % interval from resampling raters."""
    found: dict[str, dict[str, Estimate]] = {}
    for method in methods:
        rows = [
            (number, given)
            for number, person in enumerate(people)
            for video, given in person.ratings.items()
            if items[video]["method"] == method
        ]
        found[method] = {}
        for question in QUESTIONS:
            known = [(number, given[question.key]) for number, given in rows if question.key in given]
            table = np.array(known, dtype=np.float64).reshape(-1, 2)
            found[method][question.key] = cluster_bootstrap(table[:, 1], table[:, 0])
    return found


def _read_key(path: Path) -> tuple[str, list[str], dict[str, dict[str, str]]]:
    values = _read_json(path)
    try:
        items = {str(video): {"method": str(item["method"])} for video, item in values["items"].items()}
        return str(values["survey"]), [str(name) for name in values["methods"]], items
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not the key of a survey; give the .key.json that stood beside the page") from error


def _read(path: Path, survey: str, items: Mapping[str, Any]) -> Returned:
    """A file of ratings, as far as it is one."""
    values = _read_json(path) if path.suffix.lower() == ".json" else _read_csv(path)
    if values.get("survey") != survey:
        raise UserError(f"{path.name}: it belongs to another survey than {survey}")
    given = values.get("ratings")
    if not isinstance(given, dict):
        raise UserError(f"{path.name}: it holds no ratings")
    found = Returned(_name(values.get("rater")) or path.stem, path.name)
    for video, answers in given.items():
        if video not in items or not isinstance(answers, dict):
            found.doubts.append(f"{_name(video)} is no video of the survey with ratings")
            continue
        kept = {question.key: answers[question.key] for question in QUESTIONS if _is_rating(answers.get(question.key))}
        if len(kept) < len(QUESTIONS):
            missing = ", ".join(question.key for question in QUESTIONS if question.key not in kept)
            found.doubts.append(f"{video}: no rating from 1 to {BEST} for {missing}")
        if kept:
            found.ratings[video] = kept
    return found


def _is_rating(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= BEST


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path.name}: it is no JSON that can be read") from error
    if not isinstance(values, dict):
        raise UserError(f"{path.name}: it holds no JSON object")
    return values


def _read_csv(path: Path) -> dict[str, Any]:
    """The same from the lines of a CSV; what is no rating becomes None."""
    try:
        rows = list(csv.DictReader(_text(path).splitlines()))
    except csv.Error as error:
        raise UserError(f"{path.name}: it is no CSV that can be read") from error
    if not rows or not {"survey", "rater", "video"} <= rows[0].keys():
        raise UserError(f"{path.name}: it has no lines with survey, rater and video")
    marks = {str(value): value for value in range(1, BEST + 1)}
    ratings = {str(row["video"]): {q.key: marks.get((row.get(q.key) or "").strip()) for q in QUESTIONS} for row in rows}
    # The page puts an apostrophe before what a spreadsheet would take for a formula.
    rater = re.sub(r"^'(?=[=+\-@])", "", rows[0]["rater"] or "")
    return {"survey": rows[0]["survey"], "rater": rater, "ratings": ratings}


def _text(path: Path) -> str:
    try:
        if not path.is_file() or path.stat().st_size > _LARGEST:
            raise UserError(f"{path.name}: it is no file, or too large for ratings")
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path.name}: it cannot be read: {error}") from error


def _name(value: Any) -> str:
    """Something that a stranger wrote as one short line."""
    text = " ".join(str(value).split()) if isinstance(value, str) else ""
    return "".join(char for char in text if char.isprintable())[:_LONGEST_NAME]


def _markdown(
    survey: str,
    methods: Sequence[str],
    items: Mapping[str, Mapping[str, str]],
    people: Sequence[Returned],
    said: Sequence[str],
) -> str:
    found, raters = means(methods, items, people), sum(bool(person.ratings) for person in people)
    count = sum(len(person.ratings) for person in people)
    heads = [part for question in QUESTIONS for part in (question.title, "paper")]
    lines = [
        "# User study (paper 3, table 3)",
        "",
        f"- survey {survey}: {raters} raters, {count} rated videos of {len(items)}; 1 to {BEST}, higher is better",
        "- means with 95 % intervals from resampling raters; the paper had 20 raters and prints no intervals",
        "",
        _line(["method", *heads]),
        _line(["---"] * (1 + len(heads))),
    ]
    for method in methods:
        printed = PRINTED.get(method, ())
        cells = [method]
        for place, question in enumerate(QUESTIONS):
            cells += [_cell(found[method][question.key]), f"{printed[place]:.3f}" if printed else ""]
        lines.append(_line(cells))
    if said:
        lines += ["", "Left out:", "", *(f"- {_safe(text)}" for text in said)]
    return "\n".join(lines) + "\n"


def _cell(figure: Estimate) -> str:
    if figure.value is None:
        return "not rated"
    bounds = "" if figure.low is None else f" [{figure.low:.3f}, {figure.high:.3f}]"
    return f"{figure.value:.3f}{bounds} (n {figure.n})"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(_safe(cell) for cell in cells) + " |"


def _safe(text: str) -> str:
    """Text that is neither Markdown's table nor HTML."""
    line = "".join(char if char.isprintable() else " " for char in text)
    return escape(line, quote=False).replace("|", "\\|").replace("`", "\\`").replace("](", "] (")
