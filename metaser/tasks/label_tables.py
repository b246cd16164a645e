"""Read tables of labels from CSV, JSON lines, spreadsheets, audformat and `datasets`."""

import json
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import pandas as pd

from metaser.files import written
from metaser.naming import some
from metaser.tasks.text_tables import read_lines, read_text_table


def read_table(path: Path) -> pd.DataFrame:
    """Read a table of labels: CSV with any usual separator, JSON lines, or a spreadsheet.

    Parameters
    ----------
    path
        File that ends in .xlsx or .jsonl; with any other ending it is read as CSV.

    Returns
    -------
    pandas.DataFrame
        All values as text without surrounding spaces; empty cells are "". The index holds the
        number of each row's line.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is not in UTF-8, is not a table, or has no rows.
    ImportError
        If the file is a spreadsheet and openpyxl is not installed.
    """
    if not path.is_file():
        raise FileNotFoundError(f"the table of labels must be a file, but there is none at {path}")
    kind = path.suffix.lower()
    with path.open("rb") as file:
        is_zip = file.read(4) == b"PK\3\4"
    if kind in (".xlsx", ".xlsm") or is_zip:
        table = _read_spreadsheet(path)
    elif kind in (".jsonl", ".ndjson"):
        table = _read_json_lines(path)
    else:
        table = read_text_table(path)
    if table.empty:
        raise ValueError(f"{path} must hold one row per clip, but holds no rows: add them")
    return table.rename_axis("line")


def _read_json_lines(path: Path) -> pd.DataFrame:
    """Read one JSON object per line; a missing value is empty."""
    rows = {}
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{path}, line {number}: a line must be JSON, but is not ({error})"
            ) from error
        if not isinstance(row, dict):
            raise ValueError(
                f"{path}, line {number}: a line must be a JSON object with the columns as keys, "
                f"not {line[:80]!r}: correct it"
            )
        rows[number] = {key: _plain_value(value) for key, value in row.items()}
    return pd.DataFrame.from_dict(rows, orient="index", dtype=object).fillna("")


def _plain_value(value: object) -> str:
    """Return a value of JSON or of a data set as text; "" where it is missing."""
    missing = value is None or (isinstance(value, float) and math.isnan(value))
    return "" if missing else str(value).strip()


def _read_spreadsheet(path: Path) -> pd.DataFrame:
    """Read the first sheet of a spreadsheet."""
    try:
        table = pd.read_excel(path, dtype=str, keep_default_na=False, engine="openpyxl")
    except ImportError as error:
        raise ImportError(
            "a spreadsheet needs openpyxl, which is not installed: "
            'pip install "metaser[spreadsheet]", or save the table as CSV'
        ) from error
    except (ValueError, KeyError, OSError, EOFError, BadZipFile, SyntaxError) as error:
        raise ValueError(
            f"{path} must be a spreadsheet (.xlsx), but cannot be read as one ({error}): save the "
            "table as CSV in UTF-8"
        ) from error
    table = table.rename(columns=lambda name: str(name).strip()).fillna("").astype(str)
    table = table.map(str.strip).set_axis(range(2, len(table) + 2), axis=0)
    return table[(table != "").any(axis=1)]


def read_audformat(folder: Path) -> pd.DataFrame:
    """Read the file-wise tables of an audformat database as one table.

    Parameters
    ----------
    folder
        Folder of the database, with its `db.yaml`.

    Returns
    -------
    pandas.DataFrame
        All values as text, with a column `file`; empty cells are "".

    Raises
    ------
    ImportError
        If audformat is not installed.
    ValueError
        If the database has no file-wise table.
    """
    try:
        import audformat
    except ImportError as error:
        raise ImportError(
            "an audformat database needs the package audformat, which is not installed: "
            'pip install "metaser[audformat]"'
        ) from error
    database = audformat.Database.load(str(folder))
    file_tables = [
        database[name].get()
        for name in database.tables
        if database[name].type == audformat.define.IndexType.FILEWISE
    ]
    if not file_tables:
        raise ValueError(
            f"{folder} must hold a file-wise table, but holds only segments of longer files: cut "
            "the segments into files of their own, and give a table of their labels by --table"
        )
    table = audformat.utils.concat(file_tables).reset_index()
    return table.astype("string").fillna("").astype(str)


def read_dataset(folder: Path, write_audio: Path | None) -> tuple[pd.DataFrame, Path]:
    """Read a data set that the package `datasets` has saved to disk.

    Such a data set refers to audio files, or holds the bytes of the original files. Bytes are
    written to new files as they are, without decoding.

    Parameters
    ----------
    folder
        Folder that ``save_to_disk`` wrote.
    write_audio
        Folder to make for the audio files; it must not exist yet. None is allowed only where the
        data set refers to audio files.

    Returns
    -------
    table : pandas.DataFrame
        Values as text, class labels by their names, with a column `file`; a missing value is "".
    audio : pathlib.Path
        Folder of the audio files.

    Raises
    ------
    ImportError
        If `datasets` is not installed.
    ValueError
        If the data set does not have exactly one column of audio, or holds its audio inside and
        `write_audio` is None.
    FileExistsError
        If `write_audio` exists already.
    """
    try:
        import datasets
    except ImportError as error:
        raise ImportError(
            "a saved data set needs the package datasets, which is not installed: "
            'pip install "metaser[datasets]"'
        ) from error
    loaded = datasets.load_from_disk(str(folder))
    if isinstance(loaded, datasets.DatasetDict):
        loaded = datasets.concatenate_datasets(list(loaded.values()))
    sounds = [key for key, kind in loaded.features.items() if isinstance(kind, datasets.Audio)]
    if len(sounds) != 1:
        raise ValueError(
            f"{folder} must have exactly one column of audio, not {len(sounds)} {sounds}; its "
            f"columns are {', '.join(loaded.column_names)}: cast one to datasets.Audio, or remove "
            "the others"
        )
    clips = list(loaded.cast_column(sounds[0], datasets.Audio(decode=False))[sounds[0]])
    silent = [row for row, clip in enumerate(clips) if not _has_audio(clip)]
    if silent:
        raise ValueError(
            f"every row of {folder} must have audio, but {len(silent)} of {len(clips)} have none: "
            f"rows {some(list(map(str, silent)))}; remove them, for example by dataset.filter"
        )
    columns = {name: list(loaded[name]) for name in loaded.column_names if name not in sounds}
    for name, kind in loaded.features.items():
        if isinstance(kind, datasets.ClassLabel):
            columns[name] = [_label(kind.names, value) for value in columns[name]]
    table = pd.DataFrame({name: list(map(_plain_value, own)) for name, own in columns.items()})
    if all(clip["bytes"] is None for clip in clips):
        table["file"] = [clip["path"] for clip in clips]
        return table, Path(os.path.commonpath([os.path.dirname(clip["path"]) for clip in clips]))
    if write_audio is None:
        raise ValueError(
            f"the audio must lie in files, but lies inside {folder}: name a new folder for the "
            "files by --write-audio DIR"
        )
    table["file"] = _write_audio(clips, write_audio)
    return table, write_audio


def _has_audio(clip: Mapping[str, Any] | None) -> bool:
    return clip is not None and (clip["bytes"] is not None or bool(clip["path"]))


def _label(names: Sequence[str], value: int | None) -> str:
    """Return the name of a class label; "" for a clip without one, which is None or -1."""
    return "" if value is None or value < 0 else names[value]


def _write_audio(clips: Sequence[Mapping[str, Any]], place: Path) -> list[str]:
    """Write the bytes of clips as files in a new folder; return the names of the files."""
    if place.exists():
        raise FileExistsError(
            f"--write-audio must name a new folder, but {place} exists already: choose another"
        )
    place.parent.mkdir(parents=True, exist_ok=True)
    names = [Path(clip["path"] or f"{i:05d}.wav").name for i, clip in enumerate(clips)]
    if len(set(names)) < len(names):
        names = [f"{i:05d}_{name}" for i, name in enumerate(names)]
    with written(place), tempfile.TemporaryDirectory(dir=place.parent) as part:
        own = Path(part, place.name)
        own.mkdir()
        for name, clip in zip(names, clips, strict=True):
            content = clip["bytes"]
            (own / name).write_bytes(
                Path(clip["path"]).read_bytes() if content is None else content
            )
        os.rename(own, place)
    return names
