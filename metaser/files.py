"""Files: where things are, and writing them whole or not at all."""

import errno
import fcntl
import json
import logging
import os
import shutil
import tempfile
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


log = logging.getLogger(__name__)

SYSTEM = frozenset(
    ("thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "icon\r", "__macosx")
    + ("$recycle.bin", "system volume information", "lost+found", "@eadir", "#recycle")
)
"""Files and folders that systems leave among a user's own, beside those that begin with a dot."""


def readable_name(path: str | Path) -> str:
    """Return a path as text; bytes that are no UTF-8 stand as codes that begin with a backslash."""
    return str(path).encode("utf-8", "backslashreplace").decode()


def is_system(name: str) -> bool:
    """Return whether a name is of a file or folder that a system made, and nobody recorded.

    >>> [is_system(name) for name in (".DS_Store", "Thumbs.db", "~$labels.xlsx", "01.wav")]
    [True, True, True, False]
    """
    return name.startswith((".", "~$")) or name.casefold() in SYSTEM


def users_files(folder: Path) -> list[Path]:
    """Return the files below a folder at any depth, sorted, without those of the system."""
    found: list[Path] = []
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not is_system(name)]
        found += [Path(root, name) for name in names if not is_system(name)]
    return sorted(found)


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

    Raises
    ------
    OSError
        If the disk is full or cannot be written; the message names the path.
    """
    path = Path(path)
    with written(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.stem}.{os.getpid()}.part{path.suffix}")
        try:
            yield part
            with part.open("rb+") as file:
                os.fsync(file.fileno())
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)


FULL = 2**16
"""Bytes that are free on a disk which counts as full."""


@contextmanager
def written(path: str | Path) -> Iterator[None]:
    """Have errors of writing say which path could not be written, and what to do.

    Raises
    ------
    OSError
        In place of one that comes from the disk, or of a RuntimeError while the disk is full.
    """
    path = Path(path)
    try:
        yield
    except TimeoutError:
        raise
    except (OSError, RuntimeError) as error:
        reason = error.errno if isinstance(error, OSError) else None
        if reason in (errno.ENOSPC, errno.EDQUOT) or _is_full(path):
            raise OSError(
                f"{path} must be written, but its disk is full: free some space, or name a place "
                "on another disk"
            ) from error
        if reason in (errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EFBIG):
            place = getattr(error, "filename", None) or path
            raise OSError(
                f"{place} must be written, but cannot be ({os.strerror(reason)}): name a place "
                "where you may write"
            ) from error
        raise


def _is_full(path: Path) -> bool:
    above = next(folder for folder in path.absolute().parents if folder.exists())
    try:
        return shutil.disk_usage(above).free < FULL
    except OSError:
        return False


@contextmanager
def lock(path: str | Path, seconds: float = 120.0) -> Iterator[None]:
    """Hold a lock for the length of a ``with`` block; other processes wait for it.

    Where the file system has no locks (``flock``), a file stands for the lock.

    Parameters
    ----------
    path : str or Path
        File of the lock; it and the folders above it are made.
    seconds : float
        How long to wait.

    Raises
    ------
    TimeoutError
        If another process holds it all the time; the message names the path.
    OSError
        If the file cannot be written; the message names the path.
    """
    from filelock import FileLock, SoftFileLock, Timeout

    path = Path(path)
    with written(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        kind, place = (FileLock, path) if _has_locks(path) else (SoftFileLock, Path(f"{path}.held"))
    held = kind(place)
    for wait in (min(SILENT_WAIT, seconds), seconds - SILENT_WAIT):
        try:
            with written(place):
                held.acquire(timeout=wait)
            break
        except Timeout as error:
            if wait == seconds - SILENT_WAIT or seconds <= SILENT_WAIT:
                raise TimeoutError(
                    f"the lock {place} must be free within {seconds:g} s, but another process "
                    "holds it: wait for that process or end it; if none is at work here or on "
                    "another machine, delete the file"
                ) from error
            log.warning("waiting for the lock %s, which another process holds", place)
    try:
        yield
    finally:
        held.release()


SILENT_WAIT = 3.0
"""Seconds of waiting for a lock about which nothing is said."""


def _has_locks(path: Path) -> bool:
    """Return whether the file system of a file has locks; the file is made."""
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return True


def write_text(path: str | Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all."""
    with whole(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: str | Path, content: Mapping, *, indent: int | None = None) -> None:
    """Write an object as JSON, whole or not at all."""
    end = "\n" if indent else ""
    text = json.dumps(content, indent=indent, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # names of files in another encoding
        text = json.dumps(content, indent=indent)
    write_text(path, text + end)


def write_table(path: str | Path, table: "pd.DataFrame") -> None:
    """Write a table as CSV without its index, numbers with six digits, whole or not at all."""
    with whole(path) as part:
        table.to_csv(part, index=False, float_format="%.6g")


def writable(*folders: str | Path, mode: int = 0o777) -> Path | None:
    """Return the first of some folders in which files can be made; it is made if it is not there.

    None if there is no such folder among them.
    """
    for folder in map(Path, folders):
        try:
            folder.mkdir(mode=mode, parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                return folder
        except OSError:
            continue
    return None


def read_toml(path: Path) -> dict:
    """Read a TOML file in UTF-8, with or without a byte-order mark, or in UTF-16 with one.

    Raises
    ------
    ValueError
        If it is no TOML; the message says where.
    """
    content = path.read_bytes()
    wide = content.startswith((b"\xff\xfe", b"\xfe\xff"))
    try:
        return tomllib.loads(content.decode("utf-16" if wide else "utf-8-sig"))
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(
            f"a TOML file must be text in UTF-8, but line {line} is not: save it in UTF-8"
        ) from error
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ValueError(f"not valid TOML ({error}): correct it there") from error


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
