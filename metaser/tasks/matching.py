"""Which clip a name means: patterns and tables matched against the end of a path."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from metaser import audio


def compile_pattern(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(f"the pattern {pattern!r} is no regular expression: {error}") from error


def match_end(pattern: re.Pattern[str], stem: str) -> re.Match[str] | None:
    """Match the end of a path without extension; the match begins at a file or folder name."""
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


def by_table(found: Iterable[dict[str, str]]):
    rows: dict[str, dict[str, str]] = {}
    for row in found:
        name = without_extension(row.pop("file"))
        if rows.setdefault(name, row) != row:
            raise ValueError(f"the table describes {name!r} twice, differently; correct it")

    def describe(stem: str) -> dict[str, str] | None:
        name = _by_end(rows, stem)
        return None if name is None else {"name": name, **rows[name]}

    return describe


def _by_end(names: Mapping[str, Any], stem: str) -> str | None:
    """The shortest end of a path, beginning at a file or folder name, that is among the names."""
    parts = stem.split("/")
    ends = ("/".join(parts[i:]) for i in reversed(range(len(parts))))
    return next((end for end in ends if end in names), None)


def of_clips(found: Mapping[str, Any], files: Iterable[str]) -> tuple[list[Any], list[str]]:
    """What belongs to each clip, matched by the end of its path, with or without extension.

    Parameters
    ----------
    found
        Anything by the name of a clip.
    files
        Posix paths of clips.

    Returns
    -------
    own : list
        In the order of the clips; None where a clip has nothing.
    stray : list of str
        Names in ``found`` that are no clip's.
    """
    by_stem = {without_extension(name): name for name in found}
    ends = [_by_end(by_stem, without_extension(file)) for file in files]
    own = [None if end is None else found[by_stem[end]] for end in ends]
    used = {by_stem[end] for end in ends if end is not None}
    return own, [name for name in found if name not in used]
