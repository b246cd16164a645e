"""Compute all numbers of a report once from the rows."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from metaser import stats
from metaser.report.names import METHODS, ROLES

ALPHA = 0.05
"""A difference counts as clear if its corrected p-value is at most this."""

UNCLEAR = "not clearly different from"
"""Words for a difference that is not clear."""

Nested = list[list[np.ndarray]]
"""Scores of a method: an array (episodes,) per seed, per target."""


# --- what the rows say ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Scope:
    """The targets over which a mean is taken: one target, or all targets of a role.

    Attributes
    ----------
    name : str
        Name of the target, or "mean".
    title : str
        Heading in the report.
    targets : tuple of str
        Names of the targets.
    """

    name: str
    title: str
    targets: tuple[str, ...]


@dataclass(frozen=True)
class Entry:
    """Scores of one method in one scope at one level (number of shots, or fraction).

    Attributes
    ----------
    uar, macro_f1 : Interval
        Means with their 95 % intervals, as fractions in [0, 1].
    best : bool
        Whether no method has a higher mean UAR in this scope at this level.
    """

    uar: stats.Interval
    macro_f1: stats.Interval
    best: bool


@dataclass(frozen=True)
class Test:
    """One paired test with its p-value corrected within its family.

    Attributes
    ----------
    result : Comparison
        Difference in UAR, challenger minus the other method.
    holm : float
        p-value after Holm's correction, in [0, 1].
    wins : int
        Targets on which the challenger has the higher mean.
    targets : int
        Targets in all.
    """

    result: stats.Comparison
    holm: float
    wins: int
    targets: int


class Results:
    """All numbers of a report, computed once from the rows.

    Parameters
    ----------
    rows : pandas.DataFrame
        As `read_rows` returns them.
    titles : mapping of str to (str, str), optional
        Title and line of explanation of methods that do not come with MetaSER.

    Attributes
    ----------
    axis : str
        "shots" or "fraction": which of the two distinguishes the levels.
    levels : list of float
        Numbers of shots, or fractions in (0, 1], ascending.
    setups, methods : list of str
        Names in the rows; methods in the order of `METHODS`, unknown ones at the end.
    challengers : list of str
        Methods whose name begins with "metaser"; each is tested against all other methods.
    seeds : list of int
        Training seeds, ascending.
    cells : dict
        Rows by seed, by (setup, method, target, level).
    """

    def __init__(
        self, rows: pd.DataFrame, titles: Mapping[str, tuple[str, str]] | None = None
    ) -> None:
        self.rows = rows
        self._titles = {**METHODS, **(titles or {})}
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
        self.cells: dict[tuple, dict[int, dict[str, Any]]] = defaultdict(dict)
        for row in rows.to_dict("records"):
            place = (row["setup"], row["method"], row["target"], row[self.axis])
            self.cells[place][row["seed"]] = row

    def label(self, method: str) -> str:
        """Return the title of a method, or its name if it has none."""
        return self._titles[method][0] if method in self._titles else method

    def about(self, method: str) -> str:
        """Return the line that explains a method."""
        return self._titles.get(method, ("", "not described by this report"))[1]

    def methods_in(self, setup: str) -> list[str]:
        """Return the names of the methods in a setup."""
        names = set(self.rows.loc[self.rows["setup"] == setup, "method"])
        return [name for name in self.methods if name in names]

    def targets(self, role: str) -> list[str]:
        """Return the names of the targets with a role, in the order of the rows."""
        return list(dict.fromkeys(self.rows.loc[self.rows["role"] == role, "target"]))

    def scopes(self, role: str) -> list[Scope]:
        """Return the scopes of a role: all its targets together if there are several, then each."""
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
    ) -> list[Nested] | None:
        """Return the scores of methods over the seeds that they have in common.

        Parameters
        ----------
        setup, methods, scope, level
            Which cells to read.
        metric
            "uar" or "macro_f1".

        Returns
        -------
        list of Nested, or None
            One entry per method: per target and seed an array (episodes,), as fractions in [0, 1].
            None if no seed has a row for each method and target.
        """
        grid = [[self.cells.get((setup, m, t, level), {}) for t in scope.targets] for m in methods]
        seeds = sorted(set.intersection(*(set(cell) for cells in grid for cell in cells)))
        if not seeds:
            return None
        return [[[cell[seed][metric] for seed in seeds] for cell in cells] for cells in grid]

    @cached_property
    def table(self) -> dict[tuple, Entry]:
        """Scores by (setup, role, name of the scope, method, level)."""
        scores = {}
        for setup, role in product(self.setups, ROLES):
            for scope, m, level in product(self.scopes(role), self.methods, self.levels):
                for metric in ("uar", "macro_f1"):
                    nested = self.scores(setup, [m], scope, level, metric)
                    if nested:
                        scores[setup, role, scope.name, m, level, metric] = nested[0]
        intervals = stats.intervals(scores)
        best: dict[tuple, float] = defaultdict(lambda: -math.inf)
        for (*place, _, level, metric), value in intervals.items():
            if metric == "uar" and value.mean > best[*place, level]:
                best[*place, level] = value.mean
        return {
            (*place, m, level): Entry(
                value, intervals[*place, m, level, "macro_f1"], value.mean == best[*place, level]
            )
            for (*place, m, level, metric), value in intervals.items()
            if metric == "uar"
        }

    @cached_property
    def pairs(self) -> list[tuple[str, str]]:
        """Pairs of a challenger and another method, each pair once."""
        pairs: list[tuple[str, str]] = []
        for first, second in product(self.challengers, self.methods):
            if first != second and (second, first) not in pairs:
                pairs.append((first, second))
        return pairs

    @cached_property
    def tests(self) -> dict[tuple, Test]:
        """Paired tests by (setup, name of the scope, challenger, other method, level).

        Only targets are tested, never held-out sources. Holm's correction is made within a family:
        all pairs of one setup, scope and level.
        """
        scores: dict[tuple, tuple[Nested, Nested]] = {}
        for setup, scope, level in product(self.setups, self.scopes("target"), self.levels):
            for pair in self.pairs:
                both = self.scores(setup, pair, scope, level, "uar")
                if both:
                    scores[setup, scope.name, *pair, level] = both[0], both[1]
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
        """Return the method with the highest mean UAR over the targets, challengers left out.

        None if no such method has a mean.
        """
        means: dict[str, float] = {}
        for scope, m in product(self.scopes("target")[:1], self.methods):
            entry = self.table.get((setup, "target", scope.name, m, level))
            if entry and m not in self.challengers and not math.isnan(entry.uar.mean):
                means[m] = entry.uar.mean
        return max(means, key=lambda m: means[m]) if means else None

    @cached_property
    def grid(self) -> list[tuple]:
        """All cells (setup, method, target, level, seed) that a complete run would have.

        They are derived from the rows: each setup has its own methods; targets and held-out sources
        have their own seeds.
        """
        cells: list[tuple] = []
        for (setup, role), rows in self.rows.groupby(["setup", "role"], sort=False):
            seeds = sorted(self.rows.loc[self.rows["role"] == role, "seed"].unique().tolist())
            methods, targets = rows["method"].unique(), self.targets(role)
            cells += product([setup], methods, targets, self.levels, seeds)
        return cells

    def missing(self) -> list[str]:
        """Describe the cells of the grid that have no row, one line per method and level."""
        gaps = defaultdict(list)
        for *place, seed in self.grid:
            if seed not in self.cells.get(tuple(place), {}):
                gaps[tuple(place)].append(seed)
        return [
            f"{' / '.join(names)} / {self.level(level)}: seed(s) {join(seeds)}"
            for (*names, level), seeds in gaps.items()
        ]

    def level(self, value: float) -> str:
        """Return a level in words, such as "5 shots" or "10 %"."""
        if self.axis == "fraction":
            return f"{100 * value:.3g} %"
        return f"{value:g} shot" + ("s" if value != 1 else "")

    def throughout(self) -> str:
        """Return the words for all levels, such as "at every number of shots"."""
        if len(self.levels) == 1:
            return self.levels_text(self.levels)
        return "at every number of shots" if self.axis == "shots" else "at every fraction"

    def levels_text(self, values: Iterable[float], brief: bool = False) -> str:
        """Return several levels in words, such as "at 1, 5 and 10 shots".

        Parameters
        ----------
        values
            The levels; all levels of a run are given as a range if they are more than five.
        brief
            Whether to leave out of what a percentage is the share.
        """
        values = list(values)
        scale = 100 if self.axis == "fraction" else 1
        numbers = [f"{scale * value:.3g}" for value in values]
        every = values == self.levels and len(values) > 5
        text = f"{numbers[0]} to {numbers[-1]}" if every else join(numbers)
        if self.axis == "fraction":
            return f"at {text} %" + ("" if brief else " of the target’s training data")
        return f"at {text} " + ("shot" if values == [1] else "shots")


def count_of(number: int, noun: str) -> str:
    """Return a number with its noun, such as "1 seed" or "5 seeds"."""
    return f"{number:,} {noun}" + ("s" if number != 1 else "")


def join(items: Iterable[Any]) -> str:
    """Join one or more items as in a sentence: "1, 5 and 10"."""
    *head, last = [str(item) for item in items]
    return f"{', '.join(head)} and {last}" if head else last
