"""Options, error messages and a quick start that commands share."""

import gc
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


@contextmanager
def quick_imports() -> Iterator[None]:
    """Import packages without looking for garbage meanwhile, nor among what they hold later.

    PyTorch and pandas come with a million small objects, none of them garbage: to go through these
    again and again, and once more at the end, takes a sixth of the time of a short command.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
