"""`metaser dimensional`: predict ratings such as arousal and valence, and report how well."""

from pathlib import Path
from typing import Annotated

import typer

from metaser.cli.options import Cache, Data, Folders, Jobs, plain_errors, resumable


def dimensional(
    protocol: Annotated[
        str, typer.Argument(help="Name of a protocol of ratings, or path of its TOML file.")
    ] = "dimensional",
    *,
    data: Data = None,
    tasks: Folders = None,
    jobs: Jobs = 1,
    out: Annotated[
        Path | None, typer.Option(help="Results folder; results/PROTOCOL if not given.")
    ] = None,
    report: Annotated[
        Path | None, typer.Option(help="Folder of the report; the results folder if not given.")
    ] = None,
    cache: Cache = None,
    report_only: Annotated[
        bool, typer.Option("--report-only", help="Measure nothing; report the rows that are there.")
    ] = False,
) -> None:
    """Compare ways of predicting ratings; a run that was stopped continues where it was."""
    with plain_errors():
        from metaser.dimensional.protocol import read_dimensional
        from metaser.dimensional.report import write

        plan = read_dimensional(protocol)
        out = out or Path("results") / plan.name
        if not report_only:
            from metaser.dimensional.bench import run
            from metaser.files import Places

            with resumable():
                run(plan, out, Places.at(data, tasks, cache, jobs))
        page = write(out, report or out)
    typer.echo(f"rows: {out / 'rows.jsonl'}\nreport: {page}")
