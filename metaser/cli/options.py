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


def check_out(path: Path | None, example: str, source: Path | None = None) -> None:
    """Refuse a file that cannot be written, before any work is done for it.

    Parameters
    ----------
    path : Path or None
        To write; None is fine.
    example : str
        A name that the file could have.
    source : Path, optional
        A file that must not be written over.
    """
    if path is None:
        return
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: name a file in it, such as {path / example}")
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if not above.is_dir():
        raise NotADirectoryError(f"{path} cannot be written, for {above} is a file, not a folder")
    if source is not None and path.resolve() == source.resolve():
        raise ValueError(
            f"{path} is what is read here, and would be lost: name another file to write"
        )


@contextmanager
def resumable(where: str = "") -> Iterator[None]:
    """End a command that is interrupted with a word on how to go on, and exit code 130."""
    try:
        yield
    except KeyboardInterrupt:
        place = f" {where}" if where else ""
        typer.echo(f"stopped; the same command goes on where it was{place}", err=True)
        raise typer.Exit(130) from None
