"""What the commands share: options, error messages, quick imports, checks of output files."""

import codecs
import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

Data = Annotated[
    Path | None,
    typer.Option(
        "--data",
        envvar="METASER_DATA",
        metavar="DIR",
        help="Data root: the folder above the corpora.",
    ),
]
Folders = Annotated[
    list[Path] | None,
    typer.Option(
        "--tasks", metavar="DIR", help="A folder with task folders of your own; may be repeated."
    ),
]
Jobs = Annotated[int, typer.Option(min=1, help="Number of processes.")]
Encoder = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Folder of the pretrained encoder by which the model hears, in place of the hub.",
    ),
]
Cache = Annotated[
    Path | None,
    typer.Option(
        envvar="METASER_CACHE", metavar="DIR", help="Feature cache; the user's cache by default."
    ),
]


Speaker = Annotated[
    str | None,
    typer.Option(
        metavar="PATTERN",
        help="Who speaks: a regular expression whose group in a file's name is the speaker.",
    ),
]
OneSpeaker = Annotated[bool, typer.Option("--one-speaker", help="One person speaks in all files.")]
OneSpeakerPerFile = Annotated[
    bool, typer.Option("--one-speaker-per-file", help="Another person speaks in each file.")
]


def who_speaks(pattern: str | None, one: bool, per_file: bool) -> str | None:
    """Return who speaks, as ``metaser.adaptation.voices.speakers_of`` takes it.

    Raises
    ------
    ValueError
        If it is said in more than one way.
    """
    ways = [pattern, "one" if one else None, "file" if per_file else None]
    given = [way for way in ways if way is not None]
    if len(given) > 1:
        raise ValueError(
            "who speaks must be said in one way, not in several: give one of --speaker, "
            "--one-speaker and --one-speaker-per-file"
        )
    return given[0] if given else None


@contextmanager
def plain_errors(code: int = 2, hint: str = "") -> Iterator[None]:
    """Print an error that the user can mend as one line on stderr, and exit with a code.

    Parameters
    ----------
    code : int
        Exit code of the command.
    hint : str
        Put after the message.

    Raises
    ------
    typer.Exit
        For ValueError, ArithmeticError, ImportError and OSError; other errors pass.
    """
    try:
        yield
    except (ValueError, ArithmeticError, ImportError, OSError) as error:
        typer.echo(f"metaser: {error} {hint}".rstrip(), err=True)
        raise typer.Exit(code) from error


@contextmanager
def quick_imports() -> Iterator[None]:
    """Suspend garbage collection during imports, and exempt what they allocated.

    PyTorch and pandas allocate a million small objects, none of them garbage. Searching these
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
        File to write; None passes.
    example : str
        A name that the file could have, for the message.
    source : Path, optional
        A file that must not be overwritten.

    Raises
    ------
    IsADirectoryError
        If the path is a folder.
    NotADirectoryError
        If the path lies below a file.
    ValueError
        If the path is ``source``.
    """
    if path is None:
        return
    if path.is_dir():
        raise IsADirectoryError(
            f"the file to write must not be a folder, but {path} is one: name a file in it, such "
            f"as {path / example}"
        )
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if not above.is_dir():
        raise NotADirectoryError(
            f"{path} must lie in a folder, but {above} is a file, not a folder: name another path"
        )
    if source is not None and path.resolve() == source.resolve():
        raise ValueError(
            f"the file to write must not be one that is read, but {path} is what is read here, and "
            "would be lost: name another file"
        )


def named_on_stdin() -> list[str]:
    """Return the names of files that standard input gives, one per line or each ended by a zero.

    They may be in any encoding, have the line ends of any system, and begin with a byte-order mark.
    """
    given = sys.stdin.buffer.read()
    if given.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        given = given.decode("utf-16").encode()
    given = given.removeprefix(codecs.BOM_UTF8)
    lines = given.split(b"\0") if b"\0" in given else given.split(b"\n")
    names = map(os.fsdecode, lines)
    return [name if os.path.exists(name) else name.rstrip("\r") for name in names if name.strip()]


@contextmanager
def resumable(where: str = "") -> Iterator[None]:
    """On Ctrl+C, say how to continue and exit with code 130.

    Parameters
    ----------
    where : str
        Place of the results, for the message.

    Raises
    ------
    typer.Exit
        On an interrupt.
    """
    try:
        yield
    except KeyboardInterrupt:
        place = f" {where}" if where else ""
        typer.echo(f"stopped; the same command continues where it was{place}", err=True)
        raise typer.Exit(130) from None
