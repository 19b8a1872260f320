"""What a paper's table holds, as data: metrics, rows with the printed figures, claims, and budgets to train them with.

A package lists its own in `table_rows.py`; `common.table` trains and measures them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Metric:
    """One figure of `metrics.json`."""

    key: str
    title: str
    better: Literal["lower", "higher"]
    path: tuple[str, ...]
    """keys into metrics.json, below a row's `part`; a last one that ends in `[` is a prefix, since names carry
    extractor and distance"""
    percent: bool = False


@dataclass(frozen=True)
class Row:
    """A row of a paper's table and the experiment that stands for it; rows with one experiment share its run."""

    table: str
    name: str
    experiment: str
    """stem of a YAML below the package's experiments; empty for another method, whose figures are given by its name"""
    printed: Mapping[str, float] = field(default_factory=dict)
    """key of a metric -> the paper's figure"""
    part: tuple[str, ...] = ()
    """keys into metrics.json, below which this row's figures lie"""


@dataclass(frozen=True)
class Claim:
    """An ordering that a paper states or implies: row `better` beats row `worse` of `table` in `metric`."""

    table: str
    metric: str
    better: str
    worse: str


@dataclass(frozen=True)
class Budget:
    """What every row is trained with, as `key=value` words over its experiment."""

    name: str
    printed: bool
    """whether the words leave the papers' own budget as it is"""
    jobs: int = 1
    """runs at a time on one machine"""
    recipe: str = ""
    """stem of another YAML of the same folder, whose own lines come first"""
    kept: tuple[str, ...] = ()
    """beginnings of keys that the recipe does not touch: what the rows differ in"""
    words: tuple[str, ...] = ()
    by: Mapping[str, Mapping[str, tuple[str, ...]]] = field(default_factory=dict)
    """dotted key of an experiment's configuration -> its value -> words for such experiments"""
    by_experiment: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """words for one experiment: what it ablates, at this budget's sizes"""
