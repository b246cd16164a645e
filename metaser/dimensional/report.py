"""Rows of a protocol of ratings to one Markdown page with tables, intervals, tests and a figure.

Needs neither torch nor audio.
"""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from metaser.dimensional.concordance import Concordance, concordances
from metaser.files import read_json
from metaser.rows import read_rows
from metaser.stats import holm

System = tuple[str, str, str, str, int, bool]  # view, method, loss, tasking, shots, in_sample
FIELDS = ["view", "method", "loss", "tasking", "shots", "in_sample"]
PAGE, FIGURE = "report.md", "ccc.svg"


def write(results: str | Path, out: str | Path) -> Path:
    """Write ``report.md`` and ``ccc.svg`` of a results folder.

    Parameters
    ----------
    results : path
        Folder that ``benchmark.run`` wrote.
    out : path
        Folder of the report; made if it is not there.

    Returns
    -------
    Path
        The page.

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
            f"{results} holds no rows: `metaser dimensional` measures them into rows.jsonl"
        )
    protocol = read_json(results / "protocol.json")
    table = pd.DataFrame(rows)
    parts = [
        f"# {protocol['title']}",
        protocol["description"],
        _numbers(protocol, table),
        f"![CCC of every system]({FIGURE})",
        *_tables(protocol, table),
        _reading(protocol),
    ]
    out.mkdir(parents=True, exist_ok=True)
    _replace(out / FIGURE, _figure(protocol, table))
    _replace(out / PAGE, "\n\n".join(parts) + "\n")
    return out / PAGE


def _scores(table: pd.DataFrame, targets: Sequence[str], rating: str) -> dict[System, list]:
    """System to moments (seeds, speakers, 6) of each target, for one rating."""
    found = {}
    for system, own in table.groupby(FIELDS, sort=False):
        arrays = []
        for target in targets:
            rows = own[own["target"] == target].sort_values("seed")
            arrays.append(np.array([list(moments[rating].values()) for moments in rows["moments"]]))
        found[system] = arrays
    _check(table, targets)
    return found


def _check(table: pd.DataFrame, targets: Sequence[str]) -> None:
    expected = table[["target", "seed"]].drop_duplicates()
    for system, own in table.groupby(FIELDS, sort=False):
        if len(own) != len(expected):
            raise ValueError(
                f"{system_name(system)} has {len(own)} of {len(expected)} rows: run "
                "`metaser dimensional` again, which measures what is missing"
            )


def _all_ratings(table: pd.DataFrame, protocol: dict, targets: Sequence[str]) -> dict:
    """Rating, and "mean" where there are several, to system to moments."""
    each = {rating: _scores(table, targets, rating) for rating in protocol["ratings"]}
    if len(each) > 1:
        each["mean"] = {
            system: [
                np.stack(parts) for parts in zip(*(scores[system] for scores in each.values()))
            ]
            for system in next(iter(each.values()))
        }
    return each


def system_name(system: System) -> str:
    """A system in words."""
    view, method, loss, tasking, shots, in_sample = system
    if method == "ridge":
        return f"{view}: ridge regression" + (f" on {shots} clips alone" if shots else "")
    if view == "all":
        names = {"mean": "mean of the views", "late": "late fusion", "multistage": "multistage"}
        return names[method] + (", fitted on what it is scored on" if in_sample else "")
    parts = [{"ccc": "CCC loss", "mse": "MSE loss"}[loss]]
    parts += ["one model a rating"] * (tasking == "single")
    starts = {"network": "", "adapted": "adapted to", "scratch": "from scratch on"}
    start = starts.get(method, "meta-learnt, adapted to")
    return f"{view}: " + ", ".join(parts + [f"{start} {shots} clips"] * bool(shots))


def _numbers(protocol: dict, table: pd.DataFrame) -> str:
    one = table.drop_duplicates("target")
    missing = sum(sum(found.values()) for found in one["missing"])
    speakers = sum(len(next(iter(found.values()))) for found in one["moments"])
    how = (
        f"Learnt on {', '.join(protocol['sources'])}"
        if protocol["sources"]
        else f"Cross-validated within each corpus, {protocol['folds']} parts of other speakers"
    )
    return (
        f"{how}; scored on {', '.join(one['target'])}: {one['clips'].sum()} clips of {speakers} "
        f"speakers, {missing} ratings missing, {table['seed'].nunique()} seeds. CCC: 1 is perfect, "
        "0 is no better than a constant. In brackets 95 % intervals: speakers and seeds are drawn "
        "again; the corpora are fixed."
    )


def _tables(protocol: dict, table: pd.DataFrame) -> Iterable[str]:
    targets = list(table["target"].unique())
    scopes = [("", targets)]
    if not protocol["sources"] and len(targets) > 1:
        scopes = [(f" ({target})", [target]) for target in targets]
    for note, own in scopes:
        found = _all_ratings(table, protocol, own)
        systems = [system for system in next(iter(found.values())) if not system[5]]
        plain = [system for system in systems if not system[4]]
        yield f"## All systems{note}\n\n" + _ccc_table(found, plain)
        yield f"## Paired comparisons{note}\n\n" + _pair_table(found, _pairs(plain))
        adapted = [system for system in systems if system[4]]
        if adapted:
            yield _adaptation(found, plain, adapted)
        inside = [system for system in next(iter(found.values())) if system[5]]
        if inside:
            yield (
                f"## What scoring in sample would have said{note}\n\n"
                "The same fusion, fitted on the target's own ratings and scored on them, as the "
                "script published with the paper does. These are no results.\n\n"
                + _ccc_table(found, inside)
            )
    if len(targets) > 1:
        yield "## By target\n\n" + _by_target(protocol, table)


def _ccc_table(found: dict, systems: Sequence[System]) -> str:
    columns = {}
    for rating, scores in found.items():
        columns[rating] = concordances({system: scores[system] for system in systems})[0]
    lines = [_row("", *columns), _row(*["---"] * (1 + len(columns)))]
    for system in systems:
        cells = [_interval(own[system]) for own in columns.values()]
        lines.append(_row(system_name(system), *cells))
    return "\n".join(lines)


def _pairs(systems: Sequence[System]) -> list[tuple[System, System]]:
    """What is compared: loss, tasking, network, and every fusion with the views' networks."""
    known = set(systems)
    views = list(dict.fromkeys(system[0] for system in systems if system[0] != "all"))
    networks = {view: (view, "network", "ccc", "multi", 0, False) for view in views}
    found = []
    for view, network in networks.items():
        others = [
            (view, "network", "mse", "multi", 0, False),
            (view, "network", "ccc", "single", 0, False),
            (view, "ridge", "ccc", "multi", 0, False),
        ]
        found += [(network, other) for other in others if other in known]
    fusions = [("all", method, "ccc", "multi", 0, False) for method in ("late", "multistage")]
    if fusions[0] in known:
        mean = ("all", "mean", "ccc", "multi", 0, False)
        found += [(fusions[1], fusions[0]), (fusions[0], mean)]
        found += [(fusions[0], network) for network in networks.values()]
    return found


def _pair_table(found: dict, pairs: Sequence[tuple[System, System]]) -> str:
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
    for pair, p in zip(pairs, corrected, strict=True):
        names = " − ".join(map(system_name, pair))
        lines.append(_row(names, _interval(compared[pair], signed=True), f"{p:.3f}"))
    return "\n".join(lines)


def _adaptation(found: dict, plain: Sequence[System], adapted: Sequence[System]) -> str:
    views = dict.fromkeys(system[0] for system in adapted)
    start = [("network", "ccc"), ("network", "mse")]
    unadapted = [
        system
        for system in plain
        if system[0] in views and system[1:3] in start and system[3] == "multi"
    ]
    pairs = []
    for view, method, loss, tasking, shots, _ in adapted:
        if (method, loss) == ("adapted", "ccc"):
            own = (view, method, loss, tasking, shots, False)
            others = [
                (view, "network", "ccc", "multi", 0, False),
                (view, "adapted", "mse", "multi", shots, False),
                (view, "scratch", "ccc", "multi", shots, False),
            ]
            pairs += [(own, other) for other in others]
        if method == "meta":
            own = (view, method, loss, tasking, shots, False)
            others = [
                (view, "adapted", "ccc", "multi", shots, False),
                (view, "network", "ccc", "multi", 0, False),
                (view, "ridge", "ccc", "multi", shots, False),
            ]
            pairs += [(own, other) for other in others]
    return (
        "## Adapting to rated clips of the target\n\n"
        "The clips are of one half of the speakers, the scores of the other, and in turn; the CCC "
        "is that of both halves' predictions together. The first rows have had no clip.\n\n"
        + _ccc_table(found, [*unadapted, *adapted])
        + "\n\n"
        + _pair_table(found, pairs)
    )


def _by_target(protocol: dict, table: pd.DataFrame) -> str:
    targets = list(table["target"].unique())
    own = table[~table["in_sample"]]
    lines = [
        "CCC, mean over the seeds" + (" and ratings." if len(protocol["ratings"]) > 1 else "."),
        "",
        _row("", *targets),
        _row(*["---"] * (1 + len(targets))),
    ]
    for system, rows in own.groupby(FIELDS, sort=False):
        means = [
            np.mean([list(ccc.values()) for ccc in rows["ccc"][rows["target"] == target]])
            for target in targets
        ]
        lines.append(_row(system_name(system), *(f"{mean:.3f}" for mean in means)))
    return "\n".join(lines)


def _reading(protocol: dict) -> str:
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


def _figure(protocol: dict, table: pd.DataFrame) -> str:
    """Every system's CCC with its interval, one panel a rating (and target, if apart)."""
    import io

    targets = list(table["target"].unique())
    apart = not protocol["sources"]
    panels = []
    for scope in [[target] for target in targets] if apart else [targets]:
        found = _all_ratings(table, protocol, scope)
        found.pop("mean", None)
        for rating, scores in found.items():
            kept = {system: own for system, own in scores.items() if not (system[4] or system[5])}
            title = f"{rating}, {scope[0]}" if apart else rating
            panels.append((title, concordances(kept)[0]))
    systems = list(panels[0][1])
    figure = Figure(figsize=(3.2 + 3.2 * len(panels), 0.9 + 0.24 * len(systems)), layout="tight")
    for index, (title, scores) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), index + 1)
        places = -np.arange(len(systems))
        values = [scores[system] for system in systems]
        middle = np.array([value.value for value in values])
        below = middle - [value.low for value in values]
        above = np.array([value.high for value in values]) - middle
        axes.errorbar(middle, places, xerr=[below.clip(0), above.clip(0)], fmt="o", markersize=4)
        axes.axvline(0, color="0.7", linewidth=0.8)
        axes.set_yticks(places, [system_name(system) for system in systems] if index == 0 else [])
        axes.set_xlabel(f"CCC, {title}")
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()


def _interval(value: Concordance, signed: bool = False) -> str:
    sign = "+" if signed else ""
    return f"{value.value:{sign}.3f} [{value.low:{sign}.3f}, {value.high:{sign}.3f}]"


def _row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def _replace(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
