"""Options and error messages that commands share."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

Data = Annotated[
    Path | None,
    typer.Option(
        "--data", envvar="METASER_DATA", metavar="DIR", help="Data root: the corpora lie below it."
    ),
]
Folders = Annotated[
    list[Path] | None,
    typer.Option(
        "--tasks", metavar="DIR", help="A folder of task folders of your own; may be repeated."
    ),
]
Jobs = Annotated[int, typer.Option(min=1, help="Processes.")]
Cache = Annotated[
    Path | None,
    typer.Option(
        envvar="METASER_CACHE", metavar="DIR", help="Feature cache; the user's cache by default."
    ),
]


@contextmanager
def plain_errors(code: int = 2, hint: str = "") -> Iterator[None]:
    """Turn an error of the user's into one message on stderr and an exit code."""
    try:
        yield
    except (ValueError, ArithmeticError, ImportError, OSError) as error:
        typer.echo(f"metaser: {error} {hint}".rstrip(), err=True)
        raise typer.Exit(code) from error
