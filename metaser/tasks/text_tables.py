"""Read tables of text so that every row stands on the line that it is said to stand on.

A quote that is never closed makes other readers join the lines up to the next quote, and a clip
then gets the label of another one. Here a row is what stands in its line: quotes count only where
they leave the row with as many cells as the header has.
"""

import csv
import io
import unicodedata
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from metaser.naming import nearest

SEPARATORS = (",", ";", "\t", "|")
"""What may stand between the columns of a table whose separator nobody has told."""

SPANNING = ",;"
"""Separators of tables in which a cell in quotes may hold a line break."""

LOOKED_AT = 50
"""Lines by which the separator is found, and that a row may take."""


def read_lines(path: Path, errors: str = "strict") -> list[str]:
    """Read the lines of a text file in UTF-8, or in UTF-16 with a byte-order mark.

    Parameters
    ----------
    path
        The file.
    errors
        What becomes of other bytes, as in ``bytes.decode``.

    Raises
    ------
    ValueError
        If the file is not such a text.
    """
    content = path.read_bytes()
    wide = content.startswith((b"\xff\xfe", b"\xfe\xff"))
    try:
        text = content.decode("utf-16" if wide else "utf-8-sig", errors)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(
            f"{path} must be text in UTF-8, but line {line} is not in UTF-8: save the table as CSV "
            "in UTF-8"
        ) from error
    if "\0" in text:
        raise ValueError(f"{path} must be text, but it holds zero bytes: save the table as CSV")
    return text.replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n").split("\n")


def read_text_table(path: Path, separator: str | None = None) -> pd.DataFrame:
    """Read a table of text with a header.

    Parameters
    ----------
    path
        Text file in UTF-8.
    separator
        Text between two columns; if not given, one of ``SEPARATORS`` that suits the lines.

    Returns
    -------
    pandas.DataFrame
        All values as text without spaces around them; the index holds the number of each row's
        line. Lines without any value are passed over.

    Raises
    ------
    ValueError
        If the file is not a text, is empty, names two columns alike, or a line has more or
        fewer cells than the header; the message gives its number.
    """
    lines = read_lines(path)
    start = 0
    if lines[0].lower().startswith("sep=") and len(lines[0]) == 5:  # as Excel writes it
        separator, start = separator or lines[0][4], 1
    while start < len(lines) and not lines[start].strip():
        start += 1
    if start == len(lines):
        raise ValueError(f"{path} must hold a table, but it is empty: fill it, or name another")
    separator = separator or _usual_separator(lines[start:])
    header = [_tidy(cell) for cell in _cells(lines[start], separator, 0) or ()]
    while header and not header[-1]:
        header.pop()
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise ValueError(
            f"{path} must name each column once, but {twice[0]!r} stands in its header "
            f"{header.count(twice[0])} times: rename one"
        )
    rows: dict[int, list[str]] = {}
    place = start + 1
    while place < len(lines):
        cells, used = _row(path, lines, place, separator, len(header))
        if any(cells):
            rows[place + 1] = cells
        place += used
    table = pd.DataFrame.from_dict(rows, orient="index", columns=header, dtype=object)
    return table.rename_axis("line")


def _tidy(cell: str) -> str:
    return unicodedata.normalize("NFC", cell).strip()


def _usual_separator(lines: list[str]) -> str:
    """Return the separator that divides most lines into as many cells as the header."""

    def fit(separator: str) -> tuple[int, int]:
        header, *others = [
            len(_cells(line, separator, 0) or ()) for line in lines[:LOOKED_AT] if line.strip()
        ]
        return (sum(count == header for count in others) if header > 1 else -1), header

    return max(SEPARATORS, key=fit)


def _cells(line: str, separator: str, columns: int) -> list[str] | None:
    """Return the cells of one line, or None where a quote stays open at its end.

    Quotes count unless the line has the right number of cells only without them.
    """
    plain = line.split(separator)
    if '"' not in line or len(separator) > 1:
        return plain
    quoted, is_open = _by_quotes(line, separator)
    if quoted is not None and (len(quoted) == columns or len(plain) != columns):
        return quoted
    if is_open and (separator in SPANNING or len(plain) != columns):
        return None
    return plain


def _by_quotes(text: str, separator: str) -> tuple[list[str] | None, bool]:
    """Return the cells of one row by the rules of CSV, None if it breaks them.

    Return also whether a quote stays open at the end.
    """
    try:
        return next(csv.reader(io.StringIO(text, ""), delimiter=separator, strict=True)), False
    except csv.Error as error:
        return None, "end of data" in str(error)


def _row(
    path: Path, lines: list[str], place: int, separator: str, columns: int
) -> tuple[list[str], int]:
    """Return the cells of the row that begins at a line, and how many lines it takes."""
    one = _cells(lines[place], separator, columns)
    cells, used = (
        (one, 1) if one is not None else _several_lines(path, lines, place, separator, columns)
    )
    while len(cells) > columns and not cells[-1].strip():
        cells.pop()
    if not any(cell.strip() for cell in cells):
        return [], used
    if len(cells) != columns:
        raise ValueError(
            f"{path}, line {place + 1}: a row must have {columns} cells, as the header has, not "
            f"{len(cells)} ({separator.join(cells)[:80]!r}): correct the line, or name another "
            "separator"
        )
    return [_tidy(cell) for cell in cells], used


def _several_lines(
    path: Path, lines: list[str], place: int, separator: str, columns: int
) -> tuple[list[str], int]:
    """Return the cells of a row with a line break inside of quotes, and how many lines it takes."""
    for end in range(place + 2, min(place + LOOKED_AT, len(lines)) + 1):
        cells, is_open = _by_quotes("\n".join(lines[place:end]), separator)
        joined = all(line.count(separator) + 1 >= columns for line in lines[place:end])
        if cells is not None and len(cells) == columns and not joined:
            return cells, end - place
        if not is_open:
            break
    raise ValueError(
        f"{path}, line {place + 1}: a quote must be closed in its own cell, but this one is not "
        f"({lines[place][:80]!r}), and would swallow the lines below: close it or remove it"
    )


def pick_columns(
    table: pd.DataFrame, path: Path, columns: Mapping[str, str]
) -> list[tuple[str, dict[str, str]]]:
    """Return some columns of a table under new names, and where each row stands.

    Parameters
    ----------
    table
        As ``read_text_table`` returns it.
    path
        The file that it comes from, for messages.
    columns
        New name of each column to its name in the table.

    Returns
    -------
    list of (str, dict of str to str)
        For each row, its place such as "labels.csv, line 3", and its values by the new names.

    Raises
    ------
    ValueError
        If the table lacks a column; the message gives the nearest one.
    """
    for column in columns.values():
        if column not in table:
            raise ValueError(
                f"{path.name} must have the column {column!r}, but has {', '.join(table)}: correct "
                f"the table, or the name in task.toml.{nearest(column, list(table))}"
            )
    chosen = table[list(columns.values())]
    return [
        (f"{path.name}, line {line}", dict(zip(columns, row, strict=True)))
        for line, row in zip(table.index, chosen.itertuples(index=False, name=None), strict=True)
    ]
