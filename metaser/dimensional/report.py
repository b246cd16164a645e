"""From the rows of a protocol of ratings to a Markdown page: tables, intervals, tests, a figure.

Needs neither torch nor audio.
"""

import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from metaser.dimensional.concordance import Concordance, concordances
from metaser.dimensional.system import FIELDS, System
from metaser.files import read_json, write_text
from metaser.rows import read_rows
from metaser.stats import holm

PAGE, FIGURE = "report.md", "ccc.svg"

Scores = dict[System, list[np.ndarray]]
"""By system, one array of moments per target, as ``concordances`` takes them."""


def write(results: str | Path, out: str | Path) -> Path:
    """Write ``report.md`` and ``ccc.svg`` of a results folder.

    Parameters
    ----------
    results : str or Path
        Folder that ``bench.run`` wrote.
    out : str or Path
        Folder of the report; made if it is not there.

    Returns
    -------
    Path
        The path of ``report.md``.

    Raises
    ------
    FileNotFoundError
        If the folder holds no rows.
    ValueError
        If systems lack targets or seeds that others have.
    """
    results, out = Path(results), Path(out)
    rows = read_rows(results / "rows.jsonl")
    if not rows:
        raise FileNotFoundError(
            f"{results} must hold rows in rows.jsonl, but holds no rows: run `metaser "
            "dimensional`, which measures them"
        )
    protocol = read_json(results / "protocol.json")
    table = pd.DataFrame(rows)
    _check_complete(table)
    parts = [
        f"# {protocol['title']}",
        protocol["description"],
        _numbers(protocol, table),
        f"![CCC of every system]({FIGURE})",
        *_tables(protocol, table),
        _reading(protocol),
    ]
    write_text(out / FIGURE, _figure(protocol, table))
    write_text(out / PAGE, "\n\n".join(parts) + "\n")
    return out / PAGE


def _by_system(table: pd.DataFrame) -> Iterator[tuple[System, pd.DataFrame]]:
    """Yield every system with its rows, in the order of their first rows."""
    for key, rows in table.groupby(list(FIELDS), sort=False):
        view, method, loss, tasking, shots, in_sample = key
        yield System(view, method, loss, tasking, int(shots), bool(in_sample)), rows


def _check_complete(table: pd.DataFrame) -> None:
    """Refuse systems that lack a target or seed which others have."""
    expected = len(table[["target", "seed"]].drop_duplicates())
    for system, rows in _by_system(table):
        if len(rows) != expected:
            raise ValueError(
                f"{system.title} must have {expected} rows, not {len(rows)}: run `metaser "
                "dimensional` again, which measures what is missing"
            )


def _scores(table: pd.DataFrame, targets: Sequence[str], rating: str) -> Scores:
    """Return the moments (seeds, speakers, 6) of each system and target, for one rating."""
    scores = {}
    for system, own in _by_system(table):
        arrays = []
        for target in targets:
            rows = own[own["target"] == target].sort_values("seed")
            arrays.append(np.array([list(moments[rating].values()) for moments in rows["moments"]]))
        scores[system] = arrays
    return scores


def _all_ratings(
    table: pd.DataFrame, protocol: dict[str, Any], targets: Sequence[str]
) -> dict[str, Scores]:
    """Return the scores by rating; with several ratings also of their "mean"."""
    each = {rating: _scores(table, targets, rating) for rating in protocol["ratings"]}
    if len(each) > 1:
        each["mean"] = {
            system: [
                np.stack(parts) for parts in zip(*(scores[system] for scores in each.values()))
            ]
            for system in next(iter(each.values()))
        }
    return each


def _numbers(protocol: dict[str, Any], table: pd.DataFrame) -> str:
    """Return the paragraph that says what was learnt from and what was scored."""
    first = table.drop_duplicates("target")
    missing = sum(sum(by_rating.values()) for by_rating in first["missing"])
    speakers = sum(len(next(iter(by_rating.values()))) for by_rating in first["moments"])
    how = (
        f"Learnt on {', '.join(protocol['sources'])}"
        if protocol["sources"]
        else f"Cross-validated within each corpus, {protocol['folds']} parts of other speakers"
    )
    return (
        f"{how}; scored on {', '.join(first['target'])}: {first['clips'].sum()} clips of "
        f"{speakers} speakers, {missing} ratings missing, {table['seed'].nunique()} seeds. "
        "CCC: 1 is perfect, 0 is no better than a constant. In brackets 95 % intervals: speakers "
        "and seeds are drawn again; the corpora are fixed."
    )


def _tables(protocol: dict[str, Any], table: pd.DataFrame) -> Iterable[str]:
    """Yield the sections with tables; a section per target where each is cross-validated."""
    targets = list(table["target"].unique())
    scopes = [("", targets)]
    if not protocol["sources"] and len(targets) > 1:
        scopes = [(f" ({target})", [target]) for target in targets]
    for note, scope in scopes:
        found = _all_ratings(table, protocol, scope)
        systems = next(iter(found.values()))
        plain = [system for system in systems if not (system.in_sample or system.shots)]
        adapted = [system for system in systems if system.shots]
        in_sample = [system for system in systems if system.in_sample]
        yield f"## All systems{note}\n\n" + _ccc_table(found, plain)
        yield f"## Paired comparisons{note}\n\n" + _pair_table(found, _pairs(plain))
        if adapted:
            yield _adaptation(found, plain, adapted)
        if in_sample:
            yield (
                f"## What scoring in sample would have said{note}\n\n"
                "The same fusion, fitted on the target's own ratings and scored on them, as the "
                "script published with the paper does. These are no results.\n\n"
                + _ccc_table(found, in_sample)
            )
    if len(targets) > 1:
        yield "## By target\n\n" + _by_target(protocol, table)


def _ccc_table(found: dict[str, Scores], systems: Sequence[System]) -> str:
    """Return a table of CCCs with intervals: one row per system, one column per rating."""
    columns = {}
    for rating, scores in found.items():
        columns[rating] = concordances({system: scores[system] for system in systems})[0]
    lines = [_row("", *columns), _row(*["---"] * (1 + len(columns)))]
    for system in systems:
        cells = [_interval(column[system]) for column in columns.values()]
        lines.append(_row(system.title, *cells))
    return "\n".join(lines)


def _pairs(systems: Sequence[System]) -> list[tuple[System, System]]:
    """Return what is compared: loss, tasking, network, and fusions with the views' networks."""
    known = set(systems)
    views = dict.fromkeys(system.view for system in systems if system.view != "all")
    networks = [System(view, "network") for view in views]
    pairs = []
    for network in networks:
        others = [
            replace(network, loss="mse"),
            replace(network, tasking="single"),
            replace(network, method="ridge"),
        ]
        pairs += [(network, other) for other in others if other in known]
    late = System("all", "late")
    if late in known:
        pairs += [(System("all", "multistage"), late), (late, System("all", "mean"))]
        pairs += [(late, network) for network in networks]
    return pairs


def _pair_table(found: dict[str, Scores], pairs: Sequence[tuple[System, System]]) -> str:
    """Return a table of differences with intervals and corrected p-values: one row per pair."""
    scores = found.get("mean") or next(iter(found.values()))
    compared = concordances(scores, pairs)[1]
    corrected = holm([compared[pair].p for pair in pairs])
    over = "the mean over the ratings" if "mean" in found else next(iter(found))
    lines = [
        f"Difference in the CCC of {over}, paired by speaker and seed; p of a bootstrap over "
        "both or of a t-test over seeds, whichever is larger, corrected by Holm for these "
        f"{len(pairs)} comparisons.",
        "",
        _row("", "difference", "p"),
        _row("---", "---", "---"),
    ]
    for (a, b), p in zip(pairs, corrected, strict=True):
        difference = _interval(compared[a, b], signed=True)
        lines.append(_row(f"{a.title} − {b.title}", difference, f"{p:.3f}"))
    return "\n".join(lines)


def _adaptation(
    found: dict[str, Scores], plain: Sequence[System], adapted: Sequence[System]
) -> str:
    """Return the section on systems that adapt, next to the networks that they adapt."""
    views = {system.view for system in adapted}
    unadapted = [
        system
        for system in plain
        if system.view in views and system.method == "network" and system.tasking == "multi"
    ]
    pairs = []
    for system in adapted:
        network = System(system.view, "network")
        others = []
        if (system.method, system.loss) == ("adapted", "ccc"):
            others = [network, replace(system, loss="mse"), replace(system, method="scratch")]
        elif system.method == "meta":
            others = [replace(system, method="adapted"), network, replace(system, method="ridge")]
        pairs += [(system, other) for other in others]
    return (
        "## Adapting to rated clips of the target\n\n"
        "The clips are of one half of the speakers, the scores of the other, and in turn; the CCC "
        "is that of both halves' predictions together. The first rows have had no clip.\n\n"
        + _ccc_table(found, [*unadapted, *adapted])
        + "\n\n"
        + _pair_table(found, pairs)
    )


def _by_target(protocol: dict[str, Any], table: pd.DataFrame) -> str:
    """Return a table of CCCs: one row per system, one column per target."""
    targets = list(table["target"].unique())
    lines = [
        "CCC, mean over the seeds" + (" and ratings." if len(protocol["ratings"]) > 1 else "."),
        "",
        _row("", *targets),
        _row(*["---"] * (1 + len(targets))),
    ]
    for system, rows in _by_system(table[~table["in_sample"]]):
        means = [
            np.mean([list(ccc.values()) for ccc in rows["ccc"][rows["target"] == target]])
            for target in targets
        ]
        lines.append(_row(system.title, *(f"{mean:.3f}" for mean in means)))
    return "\n".join(lines)


def _reading(protocol: dict[str, Any]) -> str:
    """Return the section that says how to read the numbers."""
    notes = [
        "- A mean over corpora has each corpus as one; another choice of corpora might rank the "
        "systems otherwise.",
        "- Every score is of clips whose speakers the system has not learnt from, and so is every "
        "prediction that a fusion learns from.",
    ]
    normalised = {view["normalise"] for view in protocol["views"].values()} - {"none"}
    if normalised:
        notes.append(
            f"- Features are normalised over each {' or '.join(sorted(normalised))}, which looks "
            "at unlabelled clips of the target."
        )
    return "## Reading this\n\n" + "\n".join(notes)


def _figure(protocol: dict[str, Any], table: pd.DataFrame) -> str:
    """Return an SVG of every system's CCC with its interval.

    There is one panel per rating; where each target is cross-validated, per rating and target.
    """
    targets = list(table["target"].unique())
    apart = not protocol["sources"]
    panels = []
    for scope in [[target] for target in targets] if apart else [targets]:
        found = _all_ratings(table, protocol, scope)
        found.pop("mean", None)
        for rating, scores in found.items():
            kept = {
                system: own
                for system, own in scores.items()
                if not (system.shots or system.in_sample)
            }
            title = f"{rating}, {scope[0]}" if apart else rating
            panels.append((title, concordances(kept)[0]))
    systems = list(panels[0][1])
    figure = Figure(figsize=(3.2 + 3.2 * len(panels), 0.9 + 0.24 * len(systems)), layout="tight")
    for index, (title, cccs) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), index + 1)
        heights = -np.arange(len(systems))
        values = [cccs[system] for system in systems]
        middle = np.array([value.value for value in values])
        below = middle - [value.low for value in values]
        above = np.array([value.high for value in values]) - middle
        axes.errorbar(middle, heights, xerr=[below.clip(0), above.clip(0)], fmt="o", markersize=4)
        axes.axvline(0, color="0.7", linewidth=0.8)
        names = [system.title for system in systems]
        axes.set_yticks(heights, names if index == 0 else [])
        axes.set_xlabel(f"CCC, {title}")
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()


def _interval(value: Concordance, *, signed: bool = False) -> str:
    """Return a value with its interval, as in "0.61 [0.58, 0.64]"; signed for a difference."""
    sign = "+" if signed else ""
    return f"{value.value:{sign}.3f} [{value.low:{sign}.3f}, {value.high:{sign}.3f}]"


def _row(*cells: str) -> str:
    """Return a row of a Markdown table."""
    return "| " + " | ".join(cells) + " |"
