"""Read and check the rows of a benchmark."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from metaser.report.names import ROLES
from metaser.rows import FIELDS
from metaser.rows import read_rows as read_lines

CELL = ["setup", "method", "target", "shots", "fraction", "seed"]


# --- reading -------------------------------------------------------------------------------------


def read_rows(path: str | Path) -> pd.DataFrame:
    """Read the rows of a benchmark, one per cell.

    Parameters
    ----------
    path : str or Path
        A results folder, or its `rows.jsonl`.

    Returns
    -------
    pandas.DataFrame
        One row per cell with the fields of the file; `uar` and `macro_f1` hold arrays of one score
        per episode, as fractions in [0, 1], and `confusion` integer arrays (true, predicted).
        `null` is NaN.

    Warns
    -----
    UserWarning
        If the last line is cut, as an interrupted run leaves it: that cell is left out.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is empty, a line is not JSON or lacks a field, lengths do not agree, a cell occurs
        twice, or rows of several protocols or task versions are mixed.
    """
    path = Path(path)
    path = path / "rows.jsonl" if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(
            f"no result rows at {path}; pass a folder that `metaser benchmark` has written"
        )
    parsed = [_checked(row, f"{path}:{number}") for number, row in enumerate(read_lines(path), 1)]
    if not parsed:
        raise ValueError(f"{path} holds no complete row; run `metaser benchmark` first")
    table = pd.DataFrame(parsed)
    _check_together(table, path)
    return table


def episodes(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per episode instead of one per cell.

    Parameters
    ----------
    rows : pandas.DataFrame
        As `read_rows` returns them.

    Returns
    -------
    pandas.DataFrame
        The same columns with `uar` and `macro_f1` as numbers and a column `episode` that counts
        from 0 within each cell; without the columns that only hold for a whole cell (`confusion`,
        `episodes`).
    """
    single = rows.drop(columns=["confusion", "episodes"])
    single["episode"] = [list(range(len(scores))) for scores in single["uar"]]
    single = single.explode(["uar", "macro_f1", "episode"], ignore_index=True)
    return single.astype({"uar": float, "macro_f1": float, "episode": int})


def _checked(row: dict[str, Any], where: str) -> dict[str, Any]:
    """Return a row with arrays for its lists of numbers; refuse one whose fields do not agree."""
    missing = [field for field in FIELDS if field not in row]
    if missing:
        raise ValueError(
            f"{where} lacks the field(s) {', '.join(missing)}; run the benchmark again"
        )
    row = dict(row)
    for metric in ("uar", "macro_f1"):
        row[metric] = np.array(row[metric], dtype=float)
        if row[metric].shape != (row["episodes"],) or not row["episodes"]:
            raise ValueError(
                f"{where} declares {row['episodes']} episodes but holds {row[metric].size} values "
                f"of {metric}"
            )
    row["confusion"] = np.array(row["confusion"], dtype=float)
    classes = len(row["classes"])
    if row["confusion"].shape != (classes, classes):
        raise ValueError(
            f"{where} names {classes} classes but its confusion has shape {row['confusion'].shape}"
        )
    if (row["shots"] is None) == (row["fraction"] is None):
        raise ValueError(
            f"{where} must have either shots or a fraction, got shots {row['shots']} and "
            f"fraction {row['fraction']}"
        )
    if row["role"] not in ROLES:
        raise ValueError(
            f"{where} has role {row['role']!r}, expected 'target' or 'held_out_source'"
        )
    return row


def _check_together(rows: pd.DataFrame, path: Path) -> None:
    protocols = sorted(rows["protocol"].unique())
    if len(protocols) > 1:
        raise ValueError(
            f"{path} mixes the protocols {', '.join(protocols)}; keep each in a folder of its own"
        )
    if rows["shots"].notna().any() and rows["fraction"].notna().any():
        raise ValueError(f"{path} mixes rows by shots and rows by fraction; keep them apart")
    twice = rows[rows.duplicated(CELL)]
    if len(twice):
        raise ValueError(
            f"{path} holds the cell {twice.iloc[0][CELL].to_dict()} twice; delete one of its lines"
        )
    for column in ("task_version", "classes", "role", "synthetic"):
        per_target = rows.groupby("target")[column].agg(
            lambda values: sorted(set(map(str, values)))
        )
        for target, values in per_target.items():
            if len(values) > 1:
                raise ValueError(
                    f"{path}: rows of target {target} disagree on {column} ({' / '.join(values)}) "
                    "and cannot be compared; keep the rows of one"
                )
    same = ["setup", "target", "shots", "fraction", "seed"]
    digests = rows.groupby(same, dropna=False)["digest"].nunique()
    if (digests > 1).any():
        cell = dict(zip(same, digests[digests > 1].index[0], strict=True))
        raise ValueError(
            f"{path}: methods were not scored on the same episodes in {cell} (digests differ), so "
            "they cannot be compared; delete these rows and run the benchmark again"
        )


def read_run(results: Path) -> dict[str, Any]:
    """Read what a results folder says in addition to its rows.

    Raises
    ------
    FileNotFoundError
        If there is no ``run.json``.
    ValueError
        If it is damaged.
    """
    path = results / "run.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"no {path}: `metaser benchmark` writes it beside rows.jsonl, and without it a report "
            "could not say what was run"
        )
    try:
        run = json.loads(path.read_text("utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(run, dict) or not isinstance(run.get("tasks"), dict):
        raise ValueError(  # noqa: TRY004 - a wrong file, not a wrong argument
            f'{path} lacks "tasks", an object with one entry per task'
        )
    return run
