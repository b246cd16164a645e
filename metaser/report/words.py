"""Generate the sentences of a report from the rows."""

import math
from collections import defaultdict
from itertools import product

import pandas as pd

from metaser import stats
from metaser.report.names import NORMALISE, ROLES
from metaser.report.results import ALPHA, UNCLEAR, Results, Scope, count_of, join

# --- words ---------------------------------------------------------------------------------------


def banners(results: Results) -> list[str]:
    """Return the warnings at the top of the report: synthetic speech, and leaks."""
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
    leaked = sorted({r.target for r in rows.itertuples() if r.target in r.sources})
    if leaked:
        banners.append(f"LEAKY: {join(leaked)} among the sources of its own training.")
    return banners


def summary(results: Results) -> str:
    """Say what was scored, and what limits the result, in one or more sentences."""
    role, scope = _headline(results)
    rows = results.rows
    chance = join(f"{100 / n:.1f}" for n in sorted({len(names) for names in rows["classes"]}))
    unit = "episode" if results.axis == "shots" else "split"
    per_cell = join(count_of(n, unit) for n in sorted(set(rows["episodes"])))
    sentences = [
        (
            f"{count_of(len(results.methods), 'method')} scored on "
            f"{count_of(len(scope.targets), ROLES[role])} ({join(scope.targets)}) "
            f"{results.levels_text(results.levels)}, with {count_of(len(results.seeds), 'seed')} "
            f"and {per_cell} per cell. Guessing evenly gives {chance} % UAR."
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
            f"With {len(results.seeds)} seeds a test over trainings has little power: expect that "
            "a difference is not clear, however large it looks."
        )
    done, whole = len(results.rows), len(results.grid)
    if done < whole:
        sentences.append(f"{whole - done} of {whole} cells are missing.")
    return " ".join(sentences)


def findings(results: Results) -> list[tuple[str, list[str]]]:
    """Return the main findings.

    Returns
    -------
    list of (str, list of str)
        Each setup with its sentences: which methods score highest, and which methods each
        challenger beats.
    """
    role, scope = _headline(results)
    return [
        (setup, [_winners(results, setup, role, scope), *_verdicts(results, setup, role, scope)])
        for setup in results.setups
    ]


def _headline(results: Results) -> tuple[str, Scope]:
    """Return the role and scope of the summary: targets, or held-out sources if there are none."""
    role = "target" if results.targets("target") else "held_out_source"
    return role, results.scopes(role)[0]


def _winners(results: Results, setup: str, role: str, scope: Scope) -> str:
    """Say which methods have the highest mean UAR, and at which levels."""
    winners = defaultdict(list)
    for m, level in product(results.methods, results.levels):
        entry = results.table.get((setup, role, scope.name, m, level))
        if entry and entry.best:
            winners[m].append((level, entry.uar.mean))
    if not winners:
        return "No method has rows for every target, so no mean can be compared."
    parts = []
    for m, entries in winners.items():
        scores = join(f"{100 * mean:.1f}" for _, mean in entries)
        where = results.levels_text((level for level, _ in entries), brief=True)
        parts.append(f"{results.label(m)} {where} ({scores} %)")
    what = f"{scope.title[0].lower()}{scope.title[1:]}" if len(scope.targets) > 1 else scope.title
    return (
        f"Highest UAR on {what if len(scope.targets) == 1 else 'the ' + what}: {'; '.join(parts)}."
    )


def _verdicts(results: Results, setup: str, role: str, scope: Scope) -> list[str]:
    """Write one sentence per challenger: which methods it beats, and at which levels."""
    sentences = []
    for challenger in results.challengers if role == "target" else []:
        others = [m for m in results.methods if m != challenger]
        patterns = defaultdict(list)
        for other in others:
            outcomes = defaultdict(list)
            for level in results.levels:
                outcome = _outcome(results, setup, scope, challenger, other, level)
                outcomes[outcome].append(level)
            patterns[tuple((k, tuple(v)) for k, v in outcomes.items())].append(results.label(other))
        parts = []
        for pattern, labels in sorted(patterns.items(), key=lambda item: len(item[0])):
            if len(pattern) == 1:
                parts.append(f"{pattern[0][0]} {join(labels)} {results.throughout()}")
                continue
            where = [
                f"{words.rsplit(maxsplit=1)[0]} {results.levels_text(levels, brief=True)}"
                for words, levels in pattern
                if words != UNCLEAR
            ]
            where += ["not clearly different elsewhere"] * (UNCLEAR in dict(pattern))
            parts.append(f"compared with {join(labels)}, {', '.join(where)}")
        sentences.append(f"{results.label(challenger)} is {'; '.join(parts)}.")
    return sentences


def _outcome(
    results: Results, setup: str, scope: Scope, challenger: str, other: str, level: float
) -> str:
    """Compare a challenger with another method by the corrected p-value, in words."""
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


def normalisation(results: Results) -> list[str]:
    """Say which methods use unlabelled audio of the target, one sentence per way to normalise."""
    rows = results.rows.assign(normalise=_normalised_by(results.rows))
    grouped = rows.groupby(["setup", "normalise"], sort=False)["method"].unique()
    setups = defaultdict(list)
    for (setup, how), methods in grouped.items():
        setups[how, tuple(m for m in results.methods if m in methods)].append(setup)
    sentences = []
    for (how, methods), names in setups.items():
        who = (
            "All methods"
            if len(methods) == len(results.methods)
            else join(map(results.label, methods))
        )
        where = "" if len(names) == len(results.setups) else f", setup {join(names)}"
        kind, _, known = how.partition(": ")
        unknown = f"normalised by “{how}”, which this report does not know"
        words = NORMALISE.get(kind, unknown).format(known=known)
        sentences.append(f"{who}{where}: features are {words}.")
    return sentences + _choices(results)


def _normalised_by(rows: pd.DataFrame) -> pd.Series:
    """Return how each row's features are normalised, with what is known of the voices."""
    if "voice" not in rows:
        return rows["normalise"]
    return rows["normalise"].where(rows["voice"].isna(), rows["normalise"] + ": " + rows["voice"])


def _choices(results: Results) -> list[str]:
    """Say which setups chose their sources by the target's unlabelled audio."""
    sentences = []
    for setup, rows in results.rows.groupby("setup", sort=False):
        choice = rows["chosen"].iloc[0] if "chosen" in rows else None
        if isinstance(choice, dict):
            sentences.append(
                f"Setup {setup}: each target learns from the {choice['count']} {choice['order']} "
                f"sources by {choice['by']}, a distance that uses all unlabelled audio of the "
                "target, query clips included."
            )
    return sentences


def how_to_read(results: Results) -> list[str]:
    """Explain the numbers: how they were computed, and what they can and cannot say."""
    units = "episodes" if results.axis == "shots" else "splits"
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
            "The paired tests take the difference on the same episodes. p is two-sided and the "
            "larger of two: that of a nested bootstrap of the differences, and that of a t-test "
            "over the means of the seeds, because a bootstrap over a handful of seeds alone is "
            "overconfident. The interval of the difference is the smallest that contains both of "
            "their intervals. Holm’s correction covers all pairs of one setup, one scope (mean "
            "over targets, or one target) and one column. d is Cohen’s d of the differences of "
            "single episodes: their mean divided by their standard deviation."
        ),
        (
            "A small p says that the difference would probably persist if the training seeds "
            f"and the {units} were drawn again from these same corpora. It says nothing about "
            f"other speakers, other recordings or other languages: the {units} are drawn from the "
            "same clips of the same speakers, and the targets are few and were chosen, not sampled."
        ),
    ]
    if results.axis == "fraction":
        notes.append(
            "Random splits of one corpus overlap, so their scores are not independent and the "
            "p-values are too small (Nadeau and Bengio 2003)."
        )
    if len(results.seeds) < 5:
        notes.append(
            f"{count_of(len(results.seeds), 'seed')} can say little about how training runs differ"
            + (", and no t-test over seeds is possible." if len(results.seeds) < 2 else ".")
        )
    return notes


# --- numbers as text -----------------------------------------------------------------------------


def percent(value: float, signed: bool = False) -> str:
    """Return a fraction in percent with one decimal; with a plus sign if `signed`."""
    if math.isnan(value):
        return "NaN"
    return f"{100 * value:{'+' if signed else ''}.1f}".replace("-", "−")


def bounds(value: stats.Interval | stats.Comparison) -> str:
    """Return the two ends of an interval in percent, such as "[45.1, 52.3]"."""
    return f"[{percent(value.low)}, {percent(value.high)}]"


def interval(value: stats.Interval) -> str:
    """Return a mean in percent with its interval and the number of episodes."""
    return f"{percent(value.mean)} {bounds(value)} ({value.episodes})"


def p_value(value: float) -> str:
    """Return a p-value with three decimals, or "<0.001"."""
    if math.isnan(value):
        return "NaN"
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def decimal(value: float) -> str:
    """Return a number with two decimals."""
    return "NaN" if math.isnan(value) else f"{value:.2f}".replace("-", "−")
