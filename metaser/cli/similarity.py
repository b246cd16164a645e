"""`metaser similarity` and `metaser transferability`: which languages to learn from."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from metaser.cli.options import Cache, Data, Folders, Jobs, plain_errors

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

RANKED_BY = "mmd"
"""Distance by which the table is sorted."""


def similarity(
    target: Annotated[str, typer.Argument(help="Target task: its name or folder.")],
    *,
    data: Data = None,
    tasks: Folders = None,
    frontend: Annotated[str, typer.Option(help="Front end whose features are compared.")] = (
        "statistics"
    ),
    shots: Annotated[
        int, typer.Option(min=0, help="Labelled clips per class that distances may use.")
    ] = 0,
    measure: Annotated[
        bool,
        typer.Option(
            "--measure", help="Also train on each source alone, and score the model on the target."
        ),
    ] = False,
    protocol: Annotated[
        str, typer.Option(help="Protocol that names sources, classes and training.")
    ] = "similarity",
    out: Annotated[
        Path, typer.Option(help="Results folder of --measure; a stopped run continues there.")
    ] = Path("results/similarity"),
    csv: Annotated[
        Path | None, typer.Option("--csv", help="CSV file to write the table to.")
    ] = None,
    jobs: Jobs = 1,
    cache: Cache = None,
) -> None:
    """Rank the sources for a target by distance of their sound, nearest first.

    Distances use the target's audio alone, and labels where --shots asks for them. They may promise
    little, see benchmarks/README.md: --measure is the real test.
    """
    with plain_errors():
        from rich.console import Console

        from metaser.analysis import transfer as library
        from metaser.files import Places, write_table
        from metaser.tasks.task import find_task

        name = find_task(target, tasks or ()).name
        pool = library.open_pool(target, protocol, Places.at(data, tasks, cache, jobs))
        table = library.distances(pool, name, {"name": frontend}, shots)
        if measure:
            table = library.with_transfer(table, library.measure(pool, out, [name]), name)
        if csv is not None:
            write_table(csv, table)
        Console(width=None if sys.stdout.isatty() else 120).print(_table(table, name))
    if csv is not None:
        typer.echo(f"{csv}")


def _table(scores: "pd.DataFrame", target: str) -> "Table":
    """Return one row per source, nearest first, one column per distance or measured method."""
    from rich.table import Table

    scores = scores.assign(column=scores["distance"] + "\n" + scores["normalise"])
    first = scores[scores["column"] == f"{RANKED_BY}\nnone"].sort_values("value")
    clips = first["clips"].iloc[0]
    table = Table(
        title=f"Sources for {target}, nearest first by {RANKED_BY}",
        caption=f"{clips} clips per corpus; [95 % interval]. none: features as they are, "
        "corpus: each corpus normalised.",
        header_style="bold",
    )
    table.add_column("source")
    columns = list(scores["column"].unique())
    for column in columns:
        table.add_column(column)
    cells = scores.set_index(["source", "column"])
    for source in first["source"]:
        values = [cells.loc[(source, column)] for column in columns]
        table.add_row(
            source, *[f"{v['value']:.3f}\n\\[{v['low']:.2f}, {v['high']:.2f}]" for v in values]
        )
    return table


def transferability(
    data: Data = None,
    tasks: Folders = None,
    out: Annotated[
        Path, typer.Option(help="Results folder; a stopped run continues there.")
    ] = Path("results/similarity"),
    report: Annotated[Path | None, typer.Option(help="Report folder; OUT if not given.")] = None,
    jobs: Jobs = 1,
    cache: Cache = None,
) -> None:
    """Measure how well each corpus teaches each other, and whether distances predict it."""
    with plain_errors():
        from metaser.analysis.report import write
        from metaser.analysis.study import study
        from metaser.files import Places

        study(out, Places.at(data, tasks, cache, jobs))
        page = write(out, report or out)
    typer.echo(f"{page}")
