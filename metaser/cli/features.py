"""`metaser features`: extract features into the cache, list or remove them."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from metaser.cli.options import Cache, Data, Folders, Jobs, plain_errors, resumable

if TYPE_CHECKING:
    from metaser.features.cache import Stored


def features(
    tasks: Annotated[
        list[str] | None, typer.Argument(metavar="TASK...", help="Names of tasks.")
    ] = None,
    *,
    data: Data = None,
    folders: Folders = None,
    frontend: Annotated[str, typer.Option(help="Front end.")] = "statistics",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="An argument of the front end."),
    ] = None,
    jobs: Jobs = 1,
    cache: Cache = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Hash every clip again; list those that changed.")
    ] = False,
    show: Annotated[
        bool, typer.Option("--list", help="List the stores of the cache, or of the tasks.")
    ] = False,
    prune: Annotated[
        bool,
        typer.Option(
            "--prune", help="Remove the stores of the tasks; without a task, all outdated ones."
        ),
    ] = False,
) -> None:
    """Extract the features of tasks into the cache; a stopped run continues where it was."""
    from metaser import features as library
    from metaser.frontends import make_frontend
    from metaser.tasks import read_task

    with plain_errors():
        if show or prune:
            stores = (library.prune if prune else library.list_stores)(cache, tasks or ())
            _show_stores(stores, " removed" if prune else "")
            return
        if not tasks:
            raise ValueError(
                "the command must have the name of a task, not none: choose one that "
                "`metaser tasks` lists"
            )
        arguments = dict(map(_argument, settings or ()))
        chosen = make_frontend({"name": frontend, **arguments})
        with resumable():
            for name in tasks:
                task = read_task(name, data, folders or ())
                if verify:
                    changed = library.verify(task, cache, jobs, progress=True)
                    typer.echo(f"{name}: {len(changed)} clips are not what they were")
                    typer.echo("".join(f"  {file}\n" for file in changed), nl=False)
                table = library.extract(task, chosen, cache, jobs=jobs, progress=True)
                clips, frames, channels = table.values.shape
                typer.echo(f"{name}: {clips} clips, {frames} frames at most, {channels} channels")


def _argument(setting: str) -> tuple[str, object]:
    """Split ``NAME=VALUE``; the value is read as TOML (such as a number), else it is text."""
    import tomllib

    name, equals, value = setting.partition("=")
    if not (name and equals) or name == "name":
        raise ValueError(f"--set must be NAME=VALUE, not {setting!r}: write e.g. --set frames=200")
    try:
        return name, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return name, value


def _show_stores(stores: Sequence["Stored"], what: str) -> None:
    """Print a table of feature stores and their total size; ``what`` was done to them."""
    import time

    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(header_style="bold")
    for name in ("task", "front end", "clips", "MB", "days old"):
        table.add_column(name, overflow="fold")
    for store in stores:
        situation = "\nin a made-up recording situation" if store.situation else ""
        outdated = "" if store.current else "\noutdated"
        table.add_row(
            store.task,
            escape(f"{store.frontend}{situation}{outdated}"),
            str(store.clips),
            f"{store.size / 1e6:.1f}",
            f"{(time.time() - store.changed) / 86400:.1f}",
        )
    if stores:
        Console(width=None if sys.stdout.isatty() else 120).print(table)
    total = sum(store.size for store in stores) / 1e6
    typer.echo(f"{len(stores)} stores{what}, {total:.1f} MB")
