"""Result rows on disk: one JSON object a line, one line a score."""

import datetime
import json
import math
import os
import warnings
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from metaser.files import lock, written


class Row(TypedDict):
    """One cell of a benchmark: one method of a setup on one target at one size with one seed."""

    protocol: str
    setup: str
    method: str
    target: str
    task_version: int
    language: str
    synthetic: bool
    sources: list[str]
    shots: int | None
    queries: int | None
    fraction: float | None
    seed: int
    episodes: int
    digest: str
    speakers: str
    normalise: str
    frontend: str
    backbone: str
    uar: list[float]
    macro_f1: list[float]
    confusion: list[list[int]]
    classes: list[str]
    role: str
    train_seconds: float
    adapt_seconds: float
    parameters: int
    settings: NotRequired[str]
    modalities: NotRequired[list[str]]
    batch_norm: NotRequired[str]
    voice: NotRequired[str]  # what was known of the voices
    trust: NotRequired[float]  # how far their statistics were trusted, the mean over episodes
    chosen: NotRequired[dict[str, Any] | None]
    skipped_episodes: NotRequired[int]
    generated: NotRequired[dict[str, float]]
    outside: NotRequired[dict[str, str]]
    device: NotRequired[str]
    metaser: NotRequired[str]
    torch: NotRequired[str]
    created: NotRequired[str]


FIELDS = tuple(name for name in Row.__annotations__ if name in Row.__required_keys__)
"""Fields that every row has; the others came later, or stand where they apply."""


def append_row(path: Path, row: dict) -> None:
    """Append one row and make sure it is on disk; other processes may append at the same time.

    NaN, which JSON does not know, is written as null.
    """
    line = json.dumps(_without_nan(row), allow_nan=False) + "\n"
    with lock(f"{path}.lock"), written(path):
        cut_torn_line(path)
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            cut_torn_line(path)
            raise


def read_rows(path: Path) -> list[dict]:
    """Read all rows; a last line cut short by an interrupted run is left out with a warning.

    Raises
    ------
    ValueError
        If any other line is not a JSON object; the message gives its number.
    """
    rows = []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    for number, line in enumerate(lines, start=1):
        if number == len(lines) and not line.endswith("\n"):
            warnings.warn(
                f"{path}: line {number}, the last, is cut short; it is left out and will be "
                "measured again",
                stacklevel=2,
            )
            break
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}: line {number} is not a row ({error}): delete it") from error
        if not isinstance(row, dict):
            raise ValueError(f"{path}: line {number} is not a JSON object: delete it")
        rows.append(row)
    return rows


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def cut_torn_line(path: Path) -> None:
    """Remove a last line that an interrupted run cut short, so that rows can be appended."""
    if not path.exists() or path.stat().st_size == 0:
        return
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        if file.read() == b"\n":
            return
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)


def now() -> str:
    """Return the time in UTC, to the second, as rows state it."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
