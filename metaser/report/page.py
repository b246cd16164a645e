"""Write the report of a benchmark as one page and one Markdown file."""

import json
import math
from collections import defaultdict
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from rich.markup import escape
from rich.table import Table

from metaser.files import write_text
from metaser.report.figures import confusions, curves, legends
from metaser.report.names import ROLES
from metaser.report.reading import read_rows, read_run
from metaser.report.results import ALPHA, Results, join
from metaser.report.words import (
    banners,
    bounds,
    decimal,
    findings,
    how_to_read,
    interval,
    normalisation,
    p_value,
    percent,
    summary,
)
from metaser.version import version


def _method_table(results: Results) -> list[dict[str, Any]]:
    """Describe each method of each setup, with its costs averaged over its cells."""
    table = []
    for (setup, m), rows in results.rows.groupby(["setup", "method"], sort=False):
        costs = rows[["train_seconds", "adapt_seconds", "parameters"]].astype(float).mean()
        table.append(
            {
                "setup": setup,
                "name": m,
                "label": results.label(m),
                "about": results.about(m),
                "train": _cost(costs["train_seconds"], 1, " s"),
                "adapt": _cost(costs["adapt_seconds"], 1000, " ms"),
                "parameters": _cost(costs["parameters"], 1, ""),
            }
        )
    order = {m: index for index, m in enumerate(results.methods)}
    return sorted(table, key=lambda row: (results.setups.index(row["setup"]), order[row["name"]]))


def _cost(value: float, scale: float, unit: str) -> str:
    """Return a cost as text: a whole number if it is large or has no unit, else two digits."""
    if math.isnan(value):
        return "NaN"
    value *= scale
    return (f"{value:,.0f}" if value >= 100 or not unit else f"{value:.2g}") + unit


def _data_card(run: dict[str, Any]) -> list[dict[str, str]]:
    """Return one line per task: what its folder declares and how much of it was present."""
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
    """Say by which command, on which machine and with which versions the rows were made."""
    rows = results.rows
    origin = {
        "Protocol": str(rows["protocol"].iloc[0]),
        "Command": str(run.get("command", "not recorded")),
        "Started": str(run.get("started", "not recorded")),
        "Machine": str(run.get("machine", "not recorded")),
        "Python": str(run.get("python", "not recorded")),
        "MetaSER": join(_versions(rows, "metaser") or [str(run.get("metaser", "not recorded"))]),
        "Packages": ", ".join(f"{k} {v}" for k, v in (run.get("packages") or {}).items())
        or "not recorded",
        "Seeds": join(results.seeds),
        "Query clips per class": join(
            sorted(rows["queries"].dropna().astype(int).unique()) or ["–"]
        ),
        "Speakers of support and query": join(sorted(rows["speakers"].unique())),
    }
    if "created" in rows:
        origin["Rows written"] = f"{rows['created'].min()} to {rows['created'].max()}"
    if len(_versions(rows, "torch")) > 1:
        origin["torch"] = f"{join(_versions(rows, 'torch'))}: rows of several versions are mixed"
    origin["Report by"] = f"MetaSER {version()}"
    return origin


def _versions(rows: pd.DataFrame, column: str) -> list[str]:
    """Return the versions in a column of the rows, without repetition."""
    return sorted(rows[column].dropna().astype(str).unique()) if column in rows else []


def _sources(results: Results) -> list[tuple[str, str]]:
    """Return each target with the sources of its models; one line per setup where these differ."""
    setups_of: dict[str, dict[str, list[str]]] = defaultdict(dict)  # by target and sources
    for row in results.rows.itertuples():
        sources = ", ".join(sorted(row.sources)) or "none"
        setups_of[row.target].setdefault(sources, []).append(row.setup)
    return [
        (name if len(by_sources) == 1 else f"{name} ({join(dict.fromkeys(setups))})", sources)
        for name, by_sources in setups_of.items()
        for sources, setups in by_sources.items()
    ]


def _setup_title(row: pd.Series) -> str:
    """Return front end and backbone, and the modalities if they are not audio alone."""
    title = f"{row['frontend']} + {row['backbone']}"
    modalities = row.get("modalities")
    if not isinstance(modalities, list) or modalities == ["audio"]:
        return title
    return f"{', '.join(modalities)}: {title}"


def _page(results: Results, run: dict[str, Any]) -> dict[str, Any]:
    """Return all values that the two templates show."""
    protocol = run.get("protocol")
    if not isinstance(protocol, dict):
        protocol = {}
    return {
        "results": results,
        "title": str(results.rows["protocol"].iloc[0]),
        "description": str(protocol.get("description", "")),
        "settings": json.dumps(protocol, indent=2, ensure_ascii=False),
        "banners": banners(results),
        "summary": summary(results),
        "findings": findings(results),
        "legends": legends(results),
        "roles": [role for role in ROLES if results.targets(role)],
        "setup_titles": {
            setup: _setup_title(rows.iloc[0])
            for setup, rows in results.rows.groupby("setup", sort=False)
        },
        "curves": {
            (setup, role): curves(results, setup, role)
            for setup, role in product(results.setups, ROLES)
        },
        "confusions": {setup: confusions(results, setup) for setup in results.setups},
        "normalisation": normalisation(results),
        "reading": how_to_read(results),
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
        Folder for `report.html` and `report.md`, made if missing; or the path of the page, ending
        in `.html`, with the Markdown file next to it. Default: the results folder.

    Returns
    -------
    page : Path
        It needs no other file, no network and no script.
    markdown : Path
        The same content as Markdown.

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
            f"no results folder {folder}: pass the folder that `metaser benchmark` has written"
        )
    rows, run = read_rows(folder), read_run(folder)
    scores = Results(rows, run.get("titles"))
    page = _page(scores, run)
    html = Path(out) if out is not None else folder
    html = html if html.suffix == ".html" else html / "report.html"
    markdown = html.with_suffix(".md")
    write_text(html, _render("report.html.jinja", page, scores.label, escape=True))
    write_text(markdown, _render("report.md.jinja", page, scores.label, escape=False))
    return html, markdown


def overview(results: str | Path) -> Table:
    """Return the scores of a results folder as a table for the terminal.

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
    scores = Results(read_rows(results))
    role = "target" if scores.targets("target") else "held_out_source"
    scope = scores.scopes(role)[0]
    table = Table(title=f"{scope.title}: UAR, % [95 % interval]")
    if len(scores.setups) > 1:
        table.add_column("setup")
    table.add_column("method")
    for level in scores.levels:
        table.add_column(scores.level(level), justify="right")
    for setup, method in product(scores.setups, scores.methods):
        entries = [scores.table.get((setup, role, scope.name, method, v)) for v in scores.levels]
        if any(entries):
            cells = [f"{percent(e.uar.mean)} {bounds(e.uar)}" if e else "" for e in entries]
            names = (
                [setup, scores.label(method)] if len(scores.setups) > 1 else [scores.label(method)]
            )
            table.add_row(*names, *map(escape, cells))
    return table


def _render(
    template: str, page: dict[str, Any], label: Callable[[str], str], *, escape: bool
) -> str:
    """Fill a template with the values of the page."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=escape,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(
        percent=percent, bounds=bounds, interval=interval, p=p_value, decimal=decimal,
        label=label,
        cell=lambda text: str(text).replace("|", "\\|").replace("\n", " "),
    )  # fmt: skip
    return environment.get_template(template).render(page, alpha=ALPHA)
