"""Find the clip that a name means: patterns and tables are matched against the end of a path."""

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from metaser import audio


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """Compile a regular expression.

    Raises
    ------
    ValueError
        If it is not valid; the message quotes the pattern.
    """
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(
            f"the pattern {pattern!r} is no regular expression ({error}): correct it"
        ) from error


def match_end(pattern: re.Pattern[str], stem: str) -> re.Match[str] | None:
    """Match a pattern against the end of a path without extension.

    The match begins at the name of a file or folder and reaches the end of the path. Of several
    matches the shortest is returned, and None where there is none.
    """
    starts = [0, *(match.end() for match in re.finditer("/", stem))]
    for start in reversed(starts):
        match = pattern.fullmatch(stem, start)
        if match:
            return match
    return None


def without_extension(path: str) -> str:
    """Return a posix path without its audio extension."""
    base, _, extension = path.rpartition(".")
    return base if f".{extension.lower()}" in audio.EXTENSIONS else path


def plain_path(entry: str) -> str:
    r"""Return a path of a table from any system with "/" and in Unicode's normal form NFC.

    >>> plain_path(r".\angry\01.wav")
    'angry/01.wav'
    """
    path = unicodedata.normalize("NFC", entry.strip().replace("\\", "/"))
    return re.sub(r"(?<=/)(\./|/)+", "", re.sub(r"^(\./+)+", "", path))


_ELSEWHERE = re.compile(
    r"[A-Za-z]:/|/|\.\./|~/|\w+://"
)  # begins a path that is not below the audio


def file_finder(files: Iterable[str], place: Path | None = None) -> Callable[[str], list[str]]:
    """Return a function that finds the files which an entry of a table means.

    An entry names a file by its whole path, or by the end of it, with or without extension. The
    whole path goes first: "01.wav" is never "sub/01.wav" if there is such a file. A path from
    another machine is known by the file's whole path below the audio folder.

    Parameters
    ----------
    files
        Posix paths of the audio files.
    place
        Folder above the files, with which an entry may begin.

    Returns
    -------
    callable
        From an entry to posix paths; no path where it names no file, several where it may mean any
        of them.
    """
    above = [] if place is None else plain_path(Path(place).absolute().as_posix()).split("/")
    whole: dict[str, list[str]] = {}
    ends: dict[str, list[str]] = {}
    for file in files:
        path = plain_path(file)
        stem = without_extension(path)
        for name in {path, stem}:
            whole.setdefault(name, []).append(file)
        parts = [*above, *stem.split("/")]
        for i in range(len(parts)):
            ends.setdefault("/".join(parts[i:]), []).append(file)
    folded: dict[str, list[str]] = {}
    for end, found in ends.items():
        folded.setdefault(end.casefold(), []).extend(found)

    def find(entry: str) -> list[str]:
        """Return the files that an entry means."""
        path = plain_path(entry)
        stem = without_extension(path)
        if not stem:
            return []
        for name, known in ((path, whole), (stem, whole), (stem, ends), (stem.casefold(), folded)):
            if name in known:
                return known[name]
        parts = stem.split("/")
        if not _ELSEWHERE.match(path):
            return []
        tails = ("/".join(parts[i:]) for i in range(1, len(parts)))
        return next((whole[tail] for tail in tails if tail in whole), [])

    return find


def by_table(
    found: Iterable[tuple[str, dict[str, str]]], files: Sequence[str], place: Path | None = None
) -> tuple[list[dict[str, str] | None], list[str]]:
    """Find the row of each file in a table.

    Parameters
    ----------
    found
        Rows of the table, each after its place such as "labels.csv, line 3"; `file` names the clip.
    files
        Posix paths of the audio files.
    place
        Folder above them.

    Returns
    -------
    rows : list of dict of str to str, or None
        The row of each file, in which `name` stands in place of `file`; None where there is none.
    stray : list of str
        Place and name of each row that names no file.

    Raises
    ------
    ValueError
        If two different rows name the same file.
    """
    find = file_finder(files, place)
    rows: dict[str, tuple[str, dict[str, str]]] = {}
    stray = []
    for where, row in found:
        entry = row.pop("file")
        meant = find(entry)
        if not meant:
            stray.append(f"{where} ({entry!r})")
        for file in meant:
            before, first = rows.setdefault(
                file, (where, {"name": without_extension(entry), **row})
            )
            if {**first, "name": ""} != {**row, "name": ""}:
                raise ValueError(
                    f"the table describes {file!r} twice, differently ({before}; {where}): keep "
                    "one row per clip, and write paths with their folders"
                )
    return [rows[file][1] if file in rows else None for file in files], stray


def of_clips(
    found: Mapping[str, Any], files: Sequence[str], place: Path | None = None
) -> tuple[list[Any], list[str]]:
    """Give each clip the value that is stored under its name.

    Parameters
    ----------
    found
        Values by the name of a clip, see `file_finder`.
    files
        Posix paths of the clips.
    place
        Folder above them.

    Returns
    -------
    values : list
        One value per clip, in the order of `files`; None where a clip has no value.
    stray : list of str
        Names in `found` that fit no clip.

    Raises
    ------
    ValueError
        If two names with different values fit the same clip.
    """
    find = file_finder(files, place)
    names: dict[str, str] = {}
    stray = []
    for name in found:
        meant = find(name)
        stray += [] if meant else [name]
        for file in meant:
            before = names.setdefault(file, name)
            if before != name and str(found[before]) != str(found[name]):
                raise ValueError(
                    f"each clip must have one name, but {before!r} and {name!r} both fit {file}: "
                    "write paths with their folders"
                )
    return [found[names[file]] if file in names else None for file in files], stray
