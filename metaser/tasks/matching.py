"""Find the clip that a name means: patterns and tables are matched against the end of a path."""

import re
from collections.abc import Callable, Iterable, Mapping
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


def by_table(found: Iterable[dict[str, str]]) -> Callable[[str], dict[str, str] | None]:
    """Return a function that looks up the row of a clip in a table.

    Parameters
    ----------
    found
        Rows of the table; the column `file` names the clip.

    Returns
    -------
    callable
        It takes a path without extension and returns the clip's row, in which `name` stands in
        place of `file`; None where the table does not name the clip.

    Raises
    ------
    ValueError
        If two different rows name the same clip.
    """
    rows: dict[str, dict[str, str]] = {}
    for row in found:
        name = without_extension(row.pop("file"))
        if rows.setdefault(name, row) != row:
            raise ValueError(
                f"the table describes {name!r} twice, differently: keep one row per clip"
            )

    def describe(stem: str) -> dict[str, str] | None:
        """Return the row of the clip at this path without extension."""
        name = _by_end(rows, stem)
        return None if name is None else {"name": name, **rows[name]}

    return describe


def _by_end(names: Mapping[str, Any], stem: str) -> str | None:
    """Return the shortest end of a path (whole file and folder names) that is among the names."""
    parts = stem.split("/")
    ends = ("/".join(parts[i:]) for i in reversed(range(len(parts))))
    return next((end for end in ends if end in names), None)


def of_clips(found: Mapping[str, Any], files: Iterable[str]) -> tuple[list[Any], list[str]]:
    """Give each clip the value that is stored under its name.

    A name fits a clip if it is the end of the clip's path, with or without extension.

    Parameters
    ----------
    found
        Values by the name of a clip.
    files
        Posix paths of the clips.

    Returns
    -------
    values : list
        One value per clip, in the order of `files`; None where a clip has no value.
    stray : list of str
        Names in `found` that fit no clip.
    """
    by_stem = {without_extension(name): name for name in found}
    ends = [_by_end(by_stem, without_extension(file)) for file in files]
    values = [None if end is None else found[by_stem[end]] for end in ends]
    used = {by_stem[end] for end in ends if end is not None}
    return values, [name for name in found if name not in used]
