"""Turn result rows into one page and one Markdown file: tables, curves, confusions, paired tests.

The report reads `rows.jsonl` and `run.json` and nothing else: it never computes on audio, needs
neither torch nor the corpora, and every sentence in it is generated from the rows.
"""

import io
import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure
from rich.markup import escape
from rich.table import Table

from metaser import __version__, stats
from metaser.rows import read_rows as read_lines

__all__ = ["episodes", "read_rows", "write"]

ALPHA = 0.05
UNCLEAR = "not clearly different from"

FIELDS = (
    "protocol", "setup", "method", "target", "task_version", "language", "synthetic", "sources",
    "shots", "queries", "fraction", "seed", "episodes", "digest", "speakers", "normalise",
    "frontend", "backbone", "uar", "macro_f1", "confusion", "classes", "role", "train_seconds",
    "adapt_seconds", "parameters",
)  # fmt: skip
CELL = ["setup", "method", "target", "shots", "fraction", "seed"]

METHODS = {
    "metaser": ("MetaSER", "first-order MAML over the sources, then adapted to the support set"),
    "metaser_second_order": (
        "MetaSER (second order)",
        "MAML with second derivatives over the sources, adapted to the support set",
    ),
    "maml": ("MAML", "second derivatives, one fixed inner rate"),
    "fomaml": ("FOMAML", "first-order MAML, one fixed inner rate"),
    "anil": ("ANIL", "MAML whose inner loop changes the head alone"),
    "boil": ("BOIL", "MAML whose inner loop changes the backbone alone"),
    "meta_sgd": ("Meta-SGD", "MAML with a learnt rate for each element of each parameter"),
    "maml_plus_plus": (
        "MAML++",
        "MAML with learnt rates per layer and step, and losses after every inner step early on",
    ),
    "proto_maml": ("Proto-MAML", "MAML whose head starts from the support set's class means"),
    "protonet": ("ProtoNet", "nearest class mean in a learnt embedding, nothing is tuned"),
    "ridge": ("Ridge head", "ridge regression, solved at once, on an embedding learnt for it"),
    "reptile": ("Reptile", "moves the initialisation towards where training on a task leads"),
    "mldg": ("MLDG", "learns so that a step on one source helps on another, then fine-tuned"),
    "inner_loop_alone": (
        "MetaSER, inner loop alone",
        "adapted by the inner loop's steps on the support set, without rehearsing source clips",
    ),
    "multiser": (
        "MultiSER",
        "each emotion a task of its own on all sources, dense layers fine-tuned on the support set",
    ),
    "transser": (
        "TransSER",
        "trained on one source after the other, dense layers fine-tuned on the support set",
    ),
    "transser_released": (
        "TransSER, as released",
        "trained on all sources, new dense layers fine-tuned on the support set with small steps",
    ),
    "multiser_released": (
        "MultiSER, as released",
        "one emotion drawn a step; the support set joins the source clips, all is trained on",
    ),
    "fine_tuning": (
        "Fine-tuning",
        "trained jointly on the sources, then all of it fine-tuned on the support set",
    ),
    "fine_tuning_rehearsal": (
        "Fine-tuning with rehearsal",
        "trained jointly, then fine-tuned on the support set while rehearsing source clips",
    ),
    "adversarial": (
        "Adversarial (DANN)",
        "trained jointly against adversaries of speaker and corpus, then all of it fine-tuned",
    ),
    "daae": (
        "DAAE",
        "autoencoder with adversaries of speaker and corpus, trained jointly, then fine-tuned",
    ),
    "contrastive": (
        "Contrastive",
        "trained jointly, clips of a class drawn together across languages, then fine-tuned",
    ),
    "metaser_adversarial": (
        "MetaSER, adversarial",
        "MetaSER with adversaries of speaker and corpus in its outer loss",
    ),
    "metaser_contrastive": (
        "MetaSER, contrastive",
        "MetaSER whose outer loss draws clips of a class together across languages",
    ),
    "head_tuning": ("Head tuning", "trained jointly on the sources, then its head fine-tuned"),
    "logistic_regression": (
        "Logistic regression",
        "on pooled features of the support set alone, no sources",
    ),
    "logistic_regression_sources": (
        "Logistic regression + sources",
        "on pooled features of the sources and the support set",
    ),
    "gan_augmentation": (
        "GAN augmentation",
        "logistic regression on the support set and on vectors that a GAN generates from it",
    ),
    "gan_head_tuning": (
        "GAN head tuning",
        "head tuning on the support set and on embeddings that a GAN generates from it",
    ),
    "from_scratch": ("From scratch", "the same network trained on the support set alone"),
    "zero_shot": ("Zero-shot", "trained on the sources, not adapted"),
    "majority": ("Majority", "always the most frequent class"),
    "chance": ("Chance", "classes at random"),
}

NORMALISE = {
    "none": "not normalised: nothing of the target is seen but the support set",
    "corpus": (
        "normalised per corpus: mean and deviation of the target come from all its clips, the "
        "unlabelled query clips among them"
    ),
    "speaker": (
        "normalised per speaker: mean and deviation come from all clips of each target speaker, "
        "the unlabelled query clips among them, and speaker identities are taken as known"
    ),
}

ROLES = {"target": "target", "held_out_source": "held-out source"}

AXIS_TITLES = {
    "shots": "labelled clips per class (shots)",
    "fraction": "share of the training data (%)",
}

# Okabe and Ito's palette, safe for colour-blind readers; dashes and markers tell the rest apart.
STYLES = {
    "metaser": ("#0072B2", "-", "o"),
    "metaser_second_order": ("#56B4E9", "-", "s"),
    "multiser": ("#D55E00", "-", "^"),
    "transser": ("#009E73", "-", "v"),
    "fine_tuning": ("#B88A00", "-", "D"),
    "logistic_regression": ("#CC79A7", "--", "P"),
    "logistic_regression_sources": ("#CC79A7", "-", "X"),
    "from_scratch": ("#57606A", "--", "<"),
    "zero_shot": ("#57606A", "-", ">"),
    "majority": ("#8C959F", ":", "d"),
    "chance": ("#8C959F", ":", "."),
}
SPARE_STYLES = tuple(product(("-.", (0, (4, 1, 1, 1, 1, 1))), ("h", "p", "*", "8"), ("#000000",)))

RC = {
    "svg.fonttype": "none",
    "svg.hashsalt": "metaser",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": "#1b1f24",
    "axes.edgecolor": "#57606a",
    "axes.labelcolor": "#1b1f24",
    "xtick.color": "#57606a",
    "ytick.color": "#57606a",
}


# --- reading -------------------------------------------------------------------------------------


def read_rows(path: str | Path) -> pd.DataFrame:
    """Read the rows of a benchmark, one per cell.

    Parameters
    ----------
    path : str or Path
        A results folder, or its `rows.jsonl`.

    Returns
    -------
    pandas.DataFrame
        One row per cell with the fields of the file; `uar` and `macro_f1` hold arrays of one score
        per episode, as fractions in [0, 1], and `confusion` integer arrays (true, predicted).
        `null` is NaN.

    Warns
    -----
    UserWarning
        If the last line is cut, as an interrupted run leaves it: that cell is left out.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is empty, a line is not JSON or lacks a field, lengths do not agree, a cell occurs
        twice, or rows of several protocols or task versions are mixed.
    """
    path = Path(path)
    path = path / "rows.jsonl" if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(
            f"no result rows at {path}; pass a folder that `metaser benchmark` has written"
        )
    parsed = [_checked(row, f"{path}:{number}") for number, row in enumerate(read_lines(path), 1)]
    if not parsed:
        raise ValueError(f"{path} holds no complete row; run `metaser benchmark` first")
    table = pd.DataFrame(parsed)
    _check_together(table, path)
    return table


def episodes(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per episode instead of one per cell.

    Parameters
    ----------
    rows : pandas.DataFrame
        As `read_rows` returns them.

    Returns
    -------
    pandas.DataFrame
        The same columns with `uar` and `macro_f1` as numbers and a column `episode` that counts
        from 0 within each cell; without the columns that only hold for a whole cell (`confusion`,
        `episodes`).
    """
    single = rows.drop(columns=["confusion", "episodes"])
    single["episode"] = [np.arange(len(scores)) for scores in single["uar"]]
    single = single.explode(["uar", "macro_f1", "episode"], ignore_index=True)
    return single.astype({"uar": float, "macro_f1": float, "episode": int})


def _checked(row: dict[str, Any], where: str) -> dict[str, Any]:
    """A row whose fields are there and agree, with arrays for its lists of numbers."""
    missing = [field for field in FIELDS if field not in row]
    if missing:
        raise ValueError(
            f"{where} lacks the field(s) {', '.join(missing)}; run the benchmark again"
        )
    row = dict(row)
    for metric in ("uar", "macro_f1"):
        row[metric] = np.array(row[metric], dtype=float)
        if row[metric].shape != (row["episodes"],) or not row["episodes"]:
            raise ValueError(
                f"{where} declares {row['episodes']} episodes but holds {row[metric].size} values "
                f"of {metric}"
            )
    row["confusion"] = np.array(row["confusion"], dtype=float)
    classes = len(row["classes"])
    if row["confusion"].shape != (classes, classes):
        raise ValueError(
            f"{where} names {classes} classes but its confusion has shape {row['confusion'].shape}"
        )
    if (row["shots"] is None) == (row["fraction"] is None):
        raise ValueError(
            f"{where} must have either shots or a fraction, got shots {row['shots']} and "
            f"fraction {row['fraction']}"
        )
    if row["role"] not in ROLES:
        raise ValueError(
            f"{where} has role {row['role']!r}, expected 'target' or 'held_out_source'"
        )
    return row


def _check_together(rows: pd.DataFrame, path: Path) -> None:
    protocols = sorted(rows["protocol"].unique())
    if len(protocols) > 1:
        raise ValueError(
            f"{path} mixes the protocols {', '.join(protocols)}; keep each in a folder of its own"
        )
    if rows["shots"].notna().any() and rows["fraction"].notna().any():
        raise ValueError(f"{path} mixes rows by shots and rows by fraction; keep them apart")
    twice = rows[rows.duplicated(CELL)]
    if len(twice):
        raise ValueError(
            f"{path} holds the cell {twice.iloc[0][CELL].to_dict()} twice; delete one of its lines"
        )
    for column in ("task_version", "classes", "role", "synthetic"):
        per_target = rows.groupby("target")[column].agg(
            lambda values: sorted(set(map(str, values)))
        )
        for target, values in per_target.items():
            if len(values) > 1:
                raise ValueError(
                    f"{path}: rows of target {target} disagree on {column} ({' / '.join(values)}) "
                    "and cannot be compared; keep the rows of one"
                )
    same = ["setup", "target", "shots", "fraction", "seed"]
    digests = rows.groupby(same, dropna=False)["digest"].nunique()
    if (digests > 1).any():
        cell = dict(zip(same, digests[digests > 1].index[0], strict=True))
        raise ValueError(
            f"{path}: methods were not scored on the same episodes in {cell} (digests differ), so "
            "they cannot be compared; delete these rows and run the benchmark again"
        )


def _read_run(results: Path) -> dict[str, Any]:
    path = results / "run.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"no {path}: `metaser benchmark` writes it beside rows.jsonl, and without it a report "
            "could not say what was run"
        )
    try:
        run = json.loads(path.read_text("utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(run, dict) or not isinstance(run.get("tasks"), dict):
        raise ValueError(  # noqa: TRY004 - a wrong file, not a wrong argument
            f'{path} lacks "tasks", an object with one entry per task'
        )
    return run


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
            f"{' / '.join(names)} / {self.level(level)}: seed(s) {_join(seeds)}"
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
        text = f"{numbers[0]} to {numbers[-1]}" if every else _join(numbers)
        if self.axis == "fraction":
            return f"at {text} %" + ("" if brief else " of the target’s training data")
        return f"at {text} " + ("shot" if values == [1] else "shots")


def _label(method: str) -> str:
    return METHODS[method][0] if method in METHODS else method


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("s" if number != 1 else "")


def _join(items: Iterable[Any]) -> str:
    *head, last = [str(item) for item in items]
    return f"{', '.join(head)} and {last}" if head else last


# --- words ---------------------------------------------------------------------------------------


def _banners(results: Results) -> list[str]:
    rows = results.rows
    banners = []
    synthetic = list(dict.fromkeys(rows.loc[rows["synthetic"].astype(bool), "target"]))
    if synthetic:
        which = "" if len(synthetic) == rows["target"].nunique() else f" ({', '.join(synthetic)})"
        banners.append(
            f"SYNTHETIC SPEECH{which}: says that the pipeline works, nothing about real emotion."
        )
    if (rows["speakers"] == "any").any():
        banners.append("LEAKY BY DESIGN: speakers appear on both sides.")
    own = sorted({r.target for r in rows.itertuples() if r.target in r.sources})
    if own:
        banners.append(f"LEAKY: {_join(own)} among the sources of its own training.")
    return banners


def _summary(results: Results) -> str:
    """What was scored, in one sentence or a few."""
    role, scope = _headline(results)
    rows = results.rows
    chance = _join(f"{100 / n:.1f}" for n in sorted({len(names) for names in rows["classes"]}))
    unit = "episode" if results.axis == "shots" else "split"
    per_cell = _join(_count(n, unit) for n in sorted(set(rows["episodes"])))
    sentences = [
        (
            f"{_count(len(results.methods), 'method')} scored on "
            f"{_count(len(scope.targets), ROLES[role])} ({_join(scope.targets)}) "
            f"{results.levels_text(results.levels)}, with {_count(len(results.seeds), 'seed')} and "
            f"{per_cell} per cell. Guessing evenly gives {chance} % UAR."
        )
    ]
    if role != "target":
        sentences.append("No target was scored: nothing here is a result on an unseen language.")
    if not results.challengers:
        sentences.append("No method named metaser… is among them, so nothing is tested against it.")
    if len(results.seeds) < 2:
        sentences.append("With one seed, nothing here says what another training run would give.")
    elif len(results.seeds) < 4:
        sentences.append(
            f"With {len(results.seeds)} seeds a test over trainings has little power: that a "
            "difference is not clear is then to be expected, however large it looks."
        )
    done, whole = len(results.rows), len(results.grid)
    if done < whole:
        sentences.append(f"{whole - done} of {whole} cells are missing.")
    return " ".join(sentences)


def _findings(results: Results) -> list[tuple[str, list[str]]]:
    """Per setup: which method scores highest where, and whom the challengers beat."""
    role, scope = _headline(results)
    return [
        (setup, [_winners(results, setup, role, scope), *_verdicts(results, setup, role, scope)])
        for setup in results.setups
    ]


def _headline(results: Results) -> tuple[str, Scope]:
    """The role and scope that the summary speaks of: targets, or else held-out sources."""
    role = "target" if results.targets("target") else "held_out_source"
    return role, results.scopes(role)[0]


def _winners(results: Results, setup: str, role: str, scope: Scope) -> str:
    winners = defaultdict(list)
    for m, level in product(results.methods, results.levels):
        entry = results.table.get((setup, role, scope.name, m, level))
        if entry and entry.best:
            winners[m].append((level, entry.uar.mean))
    if not winners:
        return "No method has rows for every target, so no mean can be compared."
    parts = []
    for m, found in winners.items():
        scores = _join(f"{100 * mean:.1f}" for _, mean in found)
        where = results.levels_text((level for level, _ in found), brief=True)
        parts.append(f"{_label(m)} {where} ({scores} %)")
    what = f"{scope.title[0].lower()}{scope.title[1:]}" if len(scope.targets) > 1 else scope.title
    return (
        f"Highest UAR on {what if len(scope.targets) == 1 else 'the ' + what}: {'; '.join(parts)}."
    )


def _verdicts(results: Results, setup: str, role: str, scope: Scope) -> list[str]:
    """One sentence per challenger: whom it beats, and where, by the corrected p-value."""
    sentences = []
    for challenger in results.challengers if role == "target" else []:
        others = [m for m in results.methods if m != challenger]
        patterns = defaultdict(list)
        for other in others:
            outcomes = defaultdict(list)
            for level in results.levels:
                outcome = _outcome(results, setup, scope, challenger, other, level)
                outcomes[outcome].append(level)
            patterns[tuple((k, tuple(v)) for k, v in outcomes.items())].append(_label(other))
        parts = []
        for pattern, labels in sorted(patterns.items(), key=lambda item: len(item[0])):
            if len(pattern) == 1:
                parts.append(f"{pattern[0][0]} {_join(labels)} {results.throughout()}")
                continue
            where = [
                f"{words.rsplit(maxsplit=1)[0]} {results.levels_text(levels, brief=True)}"
                for words, levels in pattern
                if words != UNCLEAR
            ]
            where += ["not clearly different elsewhere"] * (UNCLEAR in dict(pattern))
            parts.append(f"compared with {_join(labels)}, {', '.join(where)}")
        sentences.append(f"{_label(challenger)} is {'; '.join(parts)}.")
    return sentences


def _outcome(
    results: Results, setup: str, scope: Scope, challenger: str, other: str, level: float
) -> str:
    """How a challenger stands against another method, by the corrected p-value."""
    sign = 1
    test = results.tests.get((setup, scope.name, challenger, other, level))
    if test is None:
        sign = -1
        test = results.tests.get((setup, scope.name, other, challenger, level))
    if test is None or math.isnan(test.holm):
        return "not tested against"
    if test.holm > ALPHA:
        return UNCLEAR
    return "higher than" if sign * test.result.difference > 0 else "lower than"


def _normalisation(results: Results) -> list[str]:
    """Which methods look at unlabelled audio of the target, in words."""
    grouped = results.rows.groupby(["setup", "normalise"], sort=False)["method"].unique()
    setups = defaultdict(list)
    for (setup, how), methods in grouped.items():
        setups[how, tuple(m for m in results.methods if m in methods)].append(setup)
    sentences = []
    for (how, methods), names in setups.items():
        who = "All methods" if len(methods) == len(results.methods) else _join(map(_label, methods))
        where = "" if len(names) == len(results.setups) else f", setup {_join(names)}"
        words = NORMALISE.get(how, f"normalised by “{how}”, whose reach this report does not know")
        sentences.append(f"{who}{where}: features are {words}.")
    return sentences + _choices(results)


def _choices(results: Results) -> list[str]:
    """Which set-ups chose their sources by the target's unlabelled audio."""
    sentences = []
    for setup, rows in results.rows.groupby("setup", sort=False):
        choice = rows["chosen"].iloc[0] if "chosen" in rows else None
        if isinstance(choice, dict):
            sentences.append(
                f"Setup {setup}: each target learns from the {choice['count']} {choice['order']} "
                f"sources by {choice['by']}, a distance that looks at all unlabelled audio of the "
                "target, query clips included."
            )
    return sentences


def _reading(results: Results) -> list[str]:
    """What the numbers can and cannot say."""
    again = "episodes" if results.axis == "shots" else "splits"
    notes = [
        (
            "UAR is the mean recall over the classes (balanced accuracy), macro-F1 the mean F1 "
            "score; both in percent, averaged over episodes, then seeds, then targets."
        ),
        (
            "Intervals are 95 % percentile intervals of a nested bootstrap with 10,000 "
            "resamples: seeds are drawn again, then episodes within each drawn seed; targets "
            "stay fixed. They are too narrow where few seeds differ strongly: with five seeds "
            "that spread by three times the standard error of a seed’s mean, about 88 % "
            "coverage instead of 95 %."
        ),
        (
            "The paired tests take the difference on the very same episodes. p is two-sided and"
            " the larger of two: the nested bootstrap of the differences, and a t-test over the"
            " means of the seeds, because a bootstrap over a handful of seeds alone is "
            "overconfident. The interval of the difference is the hull of both. Holm’s "
            "correction covers all pairs of one setup, one scope (mean over targets, or one "
            "target) and one column. d is Cohen’s d of the differences of single episodes: "
            "their mean over their standard deviation."
        ),
        (
            "A small p says that the difference would probably persist if the training seeds "
            f"and the {again} were drawn again from these same corpora. It says nothing about "
            f"other speakers, other recordings or other languages: the {again} re-draw the same "
            "clips of the same speakers, and the targets are few and were chosen, not sampled."
        ),
    ]
    if results.axis == "fraction":
        notes.append(
            "Random splits of one corpus overlap, so their scores are not independent and the "
            "p-values are too small (Nadeau and Bengio 2003)."
        )
    if len(results.seeds) < 5:
        notes.append(
            f"{_count(len(results.seeds), 'seed')} can say little about how training runs differ"
            + (", and no t-test over seeds is possible." if len(results.seeds) < 2 else ".")
        )
    return notes


# --- numbers as text -----------------------------------------------------------------------------


def _percent(value: float, signed: bool = False) -> str:
    if math.isnan(value):
        return "NaN"
    return f"{100 * value:{'+' if signed else ''}.1f}".replace("-", "−")


def _bounds(value: stats.Interval | stats.Comparison) -> str:
    return f"[{_percent(value.low)}, {_percent(value.high)}]"


def _interval(value: stats.Interval) -> str:
    return f"{_percent(value.mean)} {_bounds(value)} ({value.episodes})"


def _p(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def _decimal(value: float) -> str:
    return "NaN" if math.isnan(value) else f"{value:.2f}".replace("-", "−")


# --- figures -------------------------------------------------------------------------------------


def _style(results: Results, method: str) -> dict[str, Any]:
    if method in STYLES:
        colour, dashes, marker = STYLES[method]
    else:
        others = [name for name in results.methods if name not in STYLES]
        dashes, marker, colour = SPARE_STYLES[others.index(method) % len(SPARE_STYLES)]
    return {
        "color": colour,
        "linestyle": dashes,
        "marker": marker,
        "markersize": 4.5,
        "linewidth": 2.2 if method == "metaser" else 1.3,
        "zorder": 4 if method == "metaser" else 3,
    }


def _svg(figure: Figure, name: str, label: str) -> Markup:
    """A figure as inline SVG that scales with its container, with ids of its own."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(href="#|url\(#)', rf"\1{name}-", text)
    text = re.sub(r"'DejaVu Sans'", "system-ui, sans-serif", text)
    size = re.search(r'viewBox="([^"]*)"', text).group(0)
    head = f'<svg {size} role="img" aria-label="{Markup.escape(label)}" '
    head += 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">'
    return Markup(re.sub(r"<svg[^>]*>", lambda _: head, text, count=1))


def _legends(results: Results) -> dict[tuple[str, str], list[tuple[str, Markup]]]:
    """Per setup and role: each method with its line and marker, under ids of that place."""
    with matplotlib.rc_context(RC):
        swatches = [_swatch(results, method) for method in results.methods]
    return {
        (setup, role): [
            (
                _label(m),
                Markup(svg.replace("swatch-", f"l{results.setups.index(setup)}{role[0]}{n}-")),
            )
            for n, (m, svg) in enumerate(zip(results.methods, swatches, strict=True))
        ]
        for setup, role in product(results.setups, ROLES)
    }


def _swatch(results: Results, method: str) -> str:
    figure = Figure(figsize=(0.45, 0.16))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.plot([0, 1, 2], [0, 0, 0], markevery=[1], **_style(results, method))
    axes.set(xlim=(0, 2), ylim=(-1, 1))
    axes.axis("off")
    return _svg(figure, "swatch", f"Line style of {_label(method)}")


def _curve(
    results: Results, setup: str, role: str, scope: Scope, limits: tuple[float, float], name: str
) -> Markup:
    """UAR against the number of shots (or the fraction) in one scope, one line per method."""
    figure = Figure(figsize=(3.0, 2.5))
    axes = figure.add_axes((0.15, 0.17, 0.83, 0.79))
    spaced = results.axis == "fraction" or results.levels[0] <= 0
    x = np.array(results.levels) if spaced else np.log2(results.levels)
    alone = len(x) == 1  # one level has no lines to draw: points stand side by side
    step = 0.05 if alone else (x[-1] - x[0]) / 400
    said = []
    for index, m in enumerate(results.methods):
        entries = [results.table.get((setup, role, scope.name, m, v)) for v in results.levels]
        if not any(entries):
            continue
        means, low, high = (
            np.array([100 * getattr(e.uar, part) if e else math.nan for e in entries])
            for part in ("mean", "low", "high")
        )
        style = _style(results, m)
        beside = x + (index - (len(results.methods) - 1) / 2) * step * 2
        if m in results.challengers and not alone:
            axes.fill_between(x, low, high, color=style["color"], alpha=0.18, linewidth=0)
        else:
            axes.vlines(beside, low, high, style["color"], linewidth=0.8, alpha=0.75)
        axes.plot(beside if alone else x, means, label=_label(m), **style)
        said.append(f"{_label(m)} {', '.join('NaN' if np.isnan(v) else f'{v:.1f}' for v in means)}")
    labels = [_tick(results, value) for value in results.levels]
    if len(labels) > 6:
        labels = [text if number % 2 else "" for number, text in enumerate(labels)]
    axes.set_xticks(x, labels)
    if alone:
        axes.set_xlim(x[0] - 1, x[0] + 1)
    axes.set(ylim=limits, ylabel="UAR (%)", xlabel=AXIS_TITLES[results.axis])
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e6e9ed", linewidth=0.7)
    axes.set_axisbelow(True)
    levels = results.levels_text(results.levels)
    return _svg(figure, name, f"{scope.title}: UAR in percent {levels}. {'; '.join(said)}.")


def _tick(results: Results, value: float) -> str:
    return f"{100 * value:.3g}" if results.axis == "fraction" else f"{value:g}"


def _limits(results: Results, setup: str, role: str) -> tuple[float, float]:
    """One scale for all panels of a setup, so that they can be compared by eye."""
    values = [
        100 * bound
        for (s, r, *_), entry in results.table.items()
        if (s, r) == (setup, role)
        for bound in (entry.uar.mean, entry.uar.low, entry.uar.high)
        if not math.isnan(bound)
    ]
    if not values:
        return 0, 100
    return 5 * math.floor(min(values) / 5), 5 * math.ceil(max(values) / 5 + 1e-9)


def _curves(results: Results, setup: str, role: str) -> list[tuple[str, Markup]]:
    limits = _limits(results, setup, role)
    prefix = f"c{results.setups.index(setup)}{role[0]}"
    with matplotlib.rc_context(RC):
        return [
            (scope.title, _curve(results, setup, role, scope, limits, f"{prefix}{number}"))
            for number, scope in enumerate(results.scopes(role))
        ]


# --- the page ------------------------------------------------------------------------------------


def _confusions(results: Results, setup: str) -> list[dict[str, Any]]:
    """Confusions at the middle level: of the first challenger and of its best rival, per target."""
    level = results.levels[(len(results.levels) - 1) // 2]
    methods = [*results.challengers[:1], results.rival(setup, level)]
    groups = []
    for m in filter(None, methods):
        panels = []
        for target in results.targets("target"):
            rows = list(results.cells.get((setup, m, target, level), {}).values())
            if not rows:
                continue
            counts = sum(row["confusion"] for row in rows)
            with np.errstate(invalid="ignore"):
                shares = counts / counts.sum(axis=1, keepdims=True)
            panels.append(
                {
                    "target": target + (" (synthetic)" if rows[0]["synthetic"] else ""),
                    "classes": rows[0]["classes"],
                    "shares": shares.tolist(),
                    "count": counts.sum(),
                }
            )
        groups.append({"method": _label(m), "level": results.level(level), "panels": panels})
    return groups


def _method_table(results: Results) -> list[dict[str, Any]]:
    """What each method is and what it costs, averaged over its cells."""
    table = []
    for (setup, m), rows in results.rows.groupby(["setup", "method"], sort=False):
        costs = rows[["train_seconds", "adapt_seconds", "parameters"]].astype(float).mean()
        table.append(
            {
                "setup": setup,
                "name": m,
                "label": _label(m),
                "about": METHODS.get(m, ("", "not described by this report"))[1],
                "train": _cost(costs["train_seconds"], 1, " s"),
                "adapt": _cost(costs["adapt_seconds"], 1000, " ms"),
                "parameters": _cost(costs["parameters"], 1, ""),
            }
        )
    order = {m: index for index, m in enumerate(results.methods)}
    return sorted(table, key=lambda row: (results.setups.index(row["setup"]), order[row["name"]]))


def _cost(value: float, scale: float, unit: str) -> str:
    if math.isnan(value):
        return "NaN"
    value *= scale
    return (f"{value:,.0f}" if value >= 100 or not unit else f"{value:.2g}") + unit


def _data_card(run: dict[str, Any]) -> list[dict[str, str]]:
    """One line per task with what was found of what its folder declares."""
    card = []
    for name, task in run["tasks"].items():
        clips, speakers = (
            f"{task.get(key, 'NaN')} of {task.get(f'declared_{key}', 'NaN')}"
            for key in ("clips", "speakers")
        )
        counts = {
            key: ", ".join(f"{label} {n}" for label, n in (task.get(key) or {}).items())
            for key in ("classes", "left_out")
        }
        card.append(
            {
                "name": name,
                "synthetic": bool(task.get("synthetic")),
                "role": str(task.get("role", "not recorded")),
                "language": str(task.get("language", "not recorded")),
                "corpus": str(task.get("corpus", "not recorded")),
                "version": str(task.get("version", "not recorded")),
                "clips": clips,
                "speakers": speakers,
                "classes": counts["classes"] or "not recorded",
                "left_out": counts["left_out"] or "none",
                "duplicates": str(task.get("duplicates", "not recorded")),
                "licence": str(task.get("licence", "not recorded")),
                "reference": str(task.get("reference", "not recorded")),
                "leakage": str(task.get("leakage", "no statement recorded")),
            }
        )
    return card


def _provenance(results: Results, run: dict[str, Any]) -> dict[str, str]:
    rows = results.rows
    facts = {
        "Protocol": str(rows["protocol"].iloc[0]),
        "Command": str(run.get("command", "not recorded")),
        "Started": str(run.get("started", "not recorded")),
        "Machine": str(run.get("machine", "not recorded")),
        "Python": str(run.get("python", "not recorded")),
        "MetaSER": _join(_versions(rows, "metaser") or [str(run.get("metaser", "not recorded"))]),
        "Packages": ", ".join(f"{k} {v}" for k, v in (run.get("packages") or {}).items())
        or "not recorded",
        "Seeds": _join(results.seeds),
        "Query clips per class": _join(
            sorted(rows["queries"].dropna().astype(int).unique()) or ["–"]
        ),
        "Speakers of support and query": _join(sorted(rows["speakers"].unique())),
    }
    if "created" in rows:
        facts["Rows written"] = f"{rows['created'].min()} to {rows['created'].max()}"
    if len(_versions(rows, "torch")) > 1:
        facts["torch"] = f"{_join(_versions(rows, 'torch'))}: rows of several versions are mixed"
    facts["Report by"] = f"MetaSER {__version__}"
    return facts


def _versions(rows: pd.DataFrame, column: str) -> list[str]:
    return sorted(rows[column].dropna().astype(str).unique()) if column in rows else []


def _sources(results: Results) -> list[tuple[str, str]]:
    """Each target with the sources that its models were trained on, apart where set-ups differ."""
    found = defaultdict(dict)
    for row in results.rows.itertuples():
        found[row.target].setdefault(", ".join(sorted(row.sources)) or "none", []).append(row.setup)
    return [
        (name if len(own) == 1 else f"{name} ({_join(dict.fromkeys(setups))})", sources)
        for name, own in found.items()
        for sources, setups in own.items()
    ]


def _setup_title(row: pd.Series) -> str:
    """Front end and backbone, and what is read where that is more than the audio."""
    title = f"{row['frontend']} + {row['backbone']}"
    modalities = row.get("modalities")
    if not isinstance(modalities, list) or modalities == ["audio"]:
        return title
    return f"{', '.join(modalities)}: {title}"


def _page(results: Results, run: dict[str, Any]) -> dict[str, Any]:
    """Everything that the HTML template and the Markdown show."""
    protocol = run.get("protocol") if isinstance(run.get("protocol"), dict) else {}
    return {
        "results": results,
        "title": str(results.rows["protocol"].iloc[0]),
        "description": str(protocol.get("description", "")),
        "settings": json.dumps(protocol, indent=2, ensure_ascii=False),
        "banners": _banners(results),
        "summary": _summary(results),
        "findings": _findings(results),
        "legends": _legends(results),
        "roles": [role for role in ROLES if results.targets(role)],
        "setup_titles": {
            setup: _setup_title(rows.iloc[0])
            for setup, rows in results.rows.groupby("setup", sort=False)
        },
        "curves": {
            (setup, role): _curves(results, setup, role)
            for setup, role in product(results.setups, ROLES)
        },
        "confusions": {setup: _confusions(results, setup) for setup in results.setups},
        "normalisation": _normalisation(results),
        "reading": _reading(results),
        "methods": _method_table(results),
        "card": _data_card(run),
        "sources": _sources(results),
        "provenance": _provenance(results, run),
        "missing": results.missing(),
    }


def write(results: str | Path, out: str | Path | None = None) -> tuple[Path, Path]:
    """Write the report of a results folder as one HTML page and one Markdown file.

    Parameters
    ----------
    results : str or Path
        Folder with `rows.jsonl` and `run.json`, as `metaser benchmark` writes it.
    out : str or Path, optional
        Folder for `report.html` and `report.md`, made if missing; or the name of the page, ending
        in `.html`, with the Markdown beside it. Default: the results folder.

    Returns
    -------
    tuple of Path
        The page, which needs no other file, no network and no script, and the Markdown.

    Raises
    ------
    FileNotFoundError
        If the folder or one of its two files is missing.
    ValueError
        If they cannot be read as rows of one protocol; see `read_rows`.
    """
    folder = Path(results)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"no results folder {folder}; pass the folder that `metaser benchmark` has written"
        )
    page = _page(Results(read_rows(folder)), _read_run(folder))
    html = Path(out) if out is not None else folder
    html = html if html.suffix == ".html" else html / "report.html"
    html.parent.mkdir(parents=True, exist_ok=True)
    markdown = html.with_suffix(".md")
    _replace(html, _render("report.html.jinja", page, escape=True))
    _replace(markdown, _render("report.md.jinja", page, escape=False))
    return html, markdown


def overview(results: str | Path) -> Table:
    """The scores of a results folder as a table for the terminal.

    Parameters
    ----------
    results : str or Path
        Folder with `rows.jsonl`.

    Returns
    -------
    rich.table.Table
        UAR in percent with its 95 % interval: one row per method, one column per level; the mean
        over the targets.
    """
    found = Results(read_rows(results))
    role = "target" if found.targets("target") else "held_out_source"
    scope = found.scopes(role)[0]
    table = Table(title=f"{scope.title}: UAR, % [95 % interval]")
    if len(found.setups) > 1:
        table.add_column("setup")
    table.add_column("method")
    for level in found.levels:
        table.add_column(found.level(level), justify="right")
    for setup, method in product(found.setups, found.methods):
        entries = [found.table.get((setup, role, scope.name, method, v)) for v in found.levels]
        if any(entries):
            cells = [f"{_percent(e.uar.mean)} {_bounds(e.uar)}" if e else "" for e in entries]
            names = [setup, _label(method)] if len(found.setups) > 1 else [_label(method)]
            table.add_row(*names, *map(escape, cells))
    return table


def _render(template: str, page: dict[str, Any], escape: bool) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=escape,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(
        percent=_percent, bounds=_bounds, interval=_interval, p=_p, decimal=_decimal, label=_label,
        cell=lambda text: str(text).replace("|", "\\|").replace("\n", " "),
    )  # fmt: skip
    return environment.get_template(template).render(page, alpha=ALPHA)


def _replace(path: Path, text: str) -> None:
    """Write a file at once, so that an interrupted report leaves no half page."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, "utf-8")
    part.replace(path)
