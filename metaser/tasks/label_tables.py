"""Read tables of labels from CSV, JSON lines, spreadsheets, audformat and `datasets`."""

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd


def read_table(path: Path) -> pd.DataFrame:
    """Read a table of labels: CSV with any usual separator, JSON lines, or a spreadsheet.

    Parameters
    ----------
    path
        File that ends in .xlsx or .jsonl; with any other ending it is read as CSV.

    Returns
    -------
    pandas.DataFrame
        All values as text without surrounding spaces; empty cells are "".

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
    try:
        if kind == ".xlsx":
            table = _read_spreadsheet(path)
        elif kind == ".jsonl":
            table = pd.read_json(path, lines=True, dtype=False)
        else:
            table = _read_csv(path)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} must be text in UTF-8, but is not in UTF-8: save the table as CSV in UTF-8"
        ) from error
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise ValueError(
            f"{path} cannot be read as a table ({error}): save the table as CSV in UTF-8"
        ) from error
    if table.empty:
        raise ValueError(f"{path} must hold one row per clip, but holds no rows: add them")
    return table.rename(columns=str).fillna("").astype(str).map(str.strip)


def _read_csv(path: Path) -> pd.DataFrame:
    """Read CSV; the separator is the usual one that occurs most often in the header."""
    with path.open(encoding="utf-8-sig") as file:
        separator = max(",;\t|", key=file.readline().count)
    return pd.read_csv(path, sep=separator, dtype=str, encoding="utf-8-sig", keep_default_na=False)


def _read_spreadsheet(path: Path) -> pd.DataFrame:
    """Read the first sheet of a spreadsheet."""
    try:
        return pd.read_excel(path, dtype=str, keep_default_na=False)
    except ImportError as error:
        raise ImportError(
            "a spreadsheet needs openpyxl, which is not installed: "
            'pip install "metaser[spreadsheet]", or save the table as CSV'
        ) from error


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
        All values as text, class labels by their names, with a column `file`.
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
    clips = loaded.cast_column(sounds[0], datasets.Audio(decode=False))[sounds[0]]
    table = loaded.remove_columns(sounds).to_pandas()
    for key, kind in loaded.features.items():
        if isinstance(kind, datasets.ClassLabel):
            table[key] = [kind.int2str(int(value)) for value in table[key]]
    table = table.astype("string").fillna("").astype(str)
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
    with tempfile.TemporaryDirectory(dir=place.parent) as part:
        for name, clip in zip(names, clips, strict=True):
            Path(part, name).write_bytes(clip["bytes"])
        os.chmod(part, 0o755)
        shutil.copytree(part, place)
    return names
