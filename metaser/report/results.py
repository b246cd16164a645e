"""All numbers of a report, computed once from the rows."""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from metaser import stats
from metaser.report.names import METHODS, ROLES

ALPHA = 0.05
UNCLEAR = "not clearly different from"


# --- what the rows say ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Scope:
    """What is averaged over: one target, or all targets of a role."""

    name: str
    title: str
    targets: tuple[str, ...]


@dataclass(frozen=True)
class Entry:
    """One method in one scope at one level (number of shots, or fraction)."""

    uar: stats.Interval
    macro_f1: stats.Interval
    best: bool


@dataclass(frozen=True)
class Test:
    """One paired test with its p-value corrected within its family."""

    result: stats.Comparison
    holm: float
    wins: int
    targets: int


class Results:
    """All numbers of a report, computed once from the rows."""

    def __init__(self, rows: pd.DataFrame):
        self.rows = rows
        self.axis = "shots" if rows["shots"].notna().any() else "fraction"
        self.levels = sorted(rows[self.axis].unique().tolist())
        self.setups = list(dict.fromkeys(rows["setup"]))
        known = list(METHODS)
        names = dict.fromkeys(rows["method"])
        self.methods = sorted(
            names, key=lambda name: known.index(name) if name in known else len(known)
        )
        self.challengers = [name for name in self.methods if name.startswith("metaser")]
        self.seeds = sorted(rows["seed"].unique().tolist())
        self.cells = defaultdict(dict)
        for row in rows.to_dict("records"):
            place = (row["setup"], row["method"], row["target"], row[self.axis])
            self.cells[place][row["seed"]] = row

    def methods_in(self, setup: str) -> list[str]:
        """Names of the methods of a setup."""
        found = set(self.rows.loc[self.rows["setup"] == setup, "method"])
        return [name for name in self.methods if name in found]

    def targets(self, role: str) -> list[str]:
        """Names of the targets of a role, in the order of the rows."""
        return list(dict.fromkeys(self.rows.loc[self.rows["role"] == role, "target"]))

    def scopes(self, role: str) -> list[Scope]:
        """The mean over the targets of a role (if several), then each of them."""
        targets = self.targets(role)
        synthetic = set(self.rows.loc[self.rows["synthetic"].astype(bool), "target"])
        single = [
            Scope(name, name + (" (synthetic)" if name in synthetic else ""), (name,))
            for name in targets
        ]
        if len(targets) < 2:
            return single
        mark = " (synthetic)" if synthetic.issuperset(targets) else ""
        return [
            Scope("mean", f"Mean over {len(targets)} {ROLES[role]}s{mark}", tuple(targets)),
            *single,
        ]

    def scores(
        self, setup: str, methods: Sequence[str], scope: Scope, level: float, metric: str
    ) -> list[list[list[np.ndarray]]] | None:
        """Nested scores of each method over the seeds they share, or None if one has no row."""
        found = [[self.cells.get((setup, m, t, level), {}) for t in scope.targets] for m in methods]
        seeds = sorted(set.intersection(*(set(cell) for cells in found for cell in cells)))
        if not seeds:
            return None
        return [[[cell[seed][metric] for seed in seeds] for cell in cells] for cells in found]

    @cached_property
    def table(self) -> dict[tuple, Entry]:
        """(setup, role, scope, method, level) -> Entry."""
        scores = {}
        for setup, role in product(self.setups, ROLES):
            for scope, m, level in product(self.scopes(role), self.methods, self.levels):
                for metric in ("uar", "macro_f1"):
                    nested = self.scores(setup, [m], scope, level, metric)
                    if nested:
                        scores[setup, role, scope.name, m, level, metric] = nested[0]
        found = stats.intervals(scores)
        best = defaultdict(lambda: -math.inf)
        for (*place, _, level, metric), value in found.items():
            if metric == "uar" and value.mean > best[*place, level]:
                best[*place, level] = value.mean
        return {
            (*place, m, level): Entry(
                value, found[*place, m, level, "macro_f1"], value.mean == best[*place, level]
            )
            for (*place, m, level, metric), value in found.items()
            if metric == "uar"
        }

    @cached_property
    def pairs(self) -> list[tuple[str, str]]:
        """Each method named metaser… against each other method, no pair twice."""
        pairs = []
        for first, second in product(self.challengers, self.methods):
            if first != second and (second, first) not in pairs:
                pairs.append((first, second))
        return pairs

    @cached_property
    def tests(self) -> dict[tuple, Test]:
        """(setup, scope, challenger, other, level) -> Test, on targets only.

        Holm's correction is made within a family: all pairs of one setup, scope and level.
        """
        scores = {}
        for setup, scope, level in product(self.setups, self.scopes("target"), self.levels):
            for pair in self.pairs:
                both = self.scores(setup, pair, scope, level, "uar")
                if both:
                    scores[setup, scope.name, *pair, level] = both
        results = stats.paired_tests(scores)
        families = defaultdict(list)
        for setup, scope, first, second, level in results:
            families[setup, scope, level].append((setup, scope, first, second, level))
        tests = {}
        for keys in families.values():
            corrected = stats.holm([results[key].p for key in keys])
            for key, p in zip(keys, corrected, strict=True):
                gaps = [
                    np.mean([np.mean(x) for x in a]) - np.mean([np.mean(x) for x in b])
                    for a, b in zip(*scores[key], strict=True)
                ]
                wins = sum(gap > 0 for gap in gaps)
                tests[key] = Test(results[key], float(p), wins, len(gaps))
        return tests

    def rival(self, setup: str, level: float) -> str | None:
        """The method not named metaser… with the highest mean UAR over the targets."""
        means = {}
        for scope, m in product(self.scopes("target")[:1], self.methods):
            entry = self.table.get((setup, "target", scope.name, m, level))
            if entry and m not in self.challengers and not math.isnan(entry.uar.mean):
                means[m] = entry.uar.mean
        return max(means, key=means.get) if means else None

    @cached_property
    def grid(self) -> list[tuple]:
        """(setup, method, target, level, seed) of every cell that the rows span.

        Each setup has its own methods; targets and held-out sources have their own seeds.
        """
        cells = []
        for (setup, role), rows in self.rows.groupby(["setup", "role"], sort=False):
            seeds = sorted(self.rows.loc[self.rows["role"] == role, "seed"].unique().tolist())
            methods, targets = rows["method"].unique(), self.targets(role)
            cells += product([setup], methods, targets, self.levels, seeds)
        return cells

    def missing(self) -> list[str]:
        """Cells of the grid that have no row, in words."""
        gaps = defaultdict(list)
        for *place, seed in self.grid:
            if seed not in self.cells.get(tuple(place), {}):
                gaps[tuple(place)].append(seed)
        return [
            f"{' / '.join(names)} / {self.level(level)}: seed(s) {join(seeds)}"
            for (*names, level), seeds in gaps.items()
        ]

    def level(self, value: float) -> str:
        """A level in words."""
        if self.axis == "fraction":
            return f"{100 * value:.3g} %"
        return f"{value:g} shot" + ("s" if value != 1 else "")

    def throughout(self) -> str:
        """At every level, in words."""
        if len(self.levels) == 1:
            return self.levels_text(self.levels)
        return "at every number of shots" if self.axis == "shots" else "at every fraction"

    def levels_text(self, values: Iterable[float], brief: bool = False) -> str:
        """Several levels in words: "at 1, 5 and 10 shots"; all of more than five as a range."""
        values = list(values)
        scale = 100 if self.axis == "fraction" else 1
        numbers = [f"{scale * value:.3g}" for value in values]
        every = values == self.levels and len(values) > 5
        text = f"{numbers[0]} to {numbers[-1]}" if every else join(numbers)
        if self.axis == "fraction":
            return f"at {text} %" + ("" if brief else " of the target’s training data")
        return f"at {text} " + ("shot" if values == [1] else "shots")


def label_of(method: str) -> str:
    return METHODS[method][0] if method in METHODS else method


def count_of(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("s" if number != 1 else "")


def join(items: Iterable[Any]) -> str:
    *head, last = [str(item) for item in items]
    return f"{', '.join(head)} and {last}" if head else last
