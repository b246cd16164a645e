"""Files: where things are, and writing them whole or not at all."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where corpora, task folders and cached features are, and how many processes may work there.

    Attributes
    ----------
    data : Path or None
        Data root, below which the corpora lie; None for METASER_DATA.
    folders : tuple of Path
        Folders with further task folders.
    cache : Path or None
        Feature cache; None for METASER_CACHE or the user's cache folder.
    jobs : int
        Processes.
    """

    data: Path | None = None
    folders: tuple[Path, ...] = ()
    cache: Path | None = None
    jobs: int = 1

    @classmethod
    def at(
        cls,
        data: str | Path | None = None,
        folders: str | Path | Iterable[str | Path] | None = None,
        cache: str | Path | None = None,
        jobs: int = 1,
    ) -> "Places":
        """Return the places that a user names by paths or texts, one folder or several."""
        several = [folders] if isinstance(folders, str | Path) else folders or ()
        return cls(
            data=None if data is None else Path(data),
            folders=tuple(Path(folder) for folder in several),
            cache=None if cache is None else Path(cache),
            jobs=jobs,
        )


def bundled(name: str) -> Path:
    """Return a folder that comes with MetaSER: inside the package, or at the top of a checkout."""
    aboard = Path(__file__).parent / "aboard" / name
    return aboard if aboard.is_dir() else Path(__file__).parent.parent / name


@contextmanager
def whole(path: str | Path) -> Iterator[Path]:
    """Yield a path to write to, which takes the place of ``path`` if the ``with`` block succeeds.

    Folders above it are made. If the block fails, or is interrupted, ``path`` stays as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all."""
    with whole(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: str | Path, content: Mapping, *, indent: int | None = None) -> None:
    """Write an object as JSON, whole or not at all."""
    end = "\n" if indent else ""
    write_text(path, json.dumps(content, indent=indent, ensure_ascii=False) + end)


def write_table(path: str | Path, table: "pd.DataFrame") -> None:
    """Write a table as CSV without its index, numbers with six digits, whole or not at all."""
    with whole(path) as part:
        table.to_csv(part, index=False, float_format="%.6g")


def read_json(path: Path) -> dict:
    """Read an object; empty if there is no such file.

    Raises
    ------
    ValueError
        If the file holds no JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): delete {path.parent}") from error
