"""Tables of labels, however they are kept: CSV, JSON lines, spreadsheet, audformat, `datasets`."""

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd


def read_table(path: Path) -> pd.DataFrame:
    """Read a table of labels: CSV with any usual separator, JSON lines, or a spreadsheet.

    Returns
    -------
    pandas.DataFrame
        All values as text without spaces around; empty cells are "".

    Raises
    ------
    ValueError
        If the file is not UTF-8, or no table.
    ImportError
        For a spreadsheet without openpyxl.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no table {path}")
    kind = path.suffix.lower()
    try:
        if kind == ".xlsx":
            table = _read_spreadsheet(path)
        elif kind == ".jsonl":
            table = pd.read_json(path, lines=True, dtype=False)
        else:
            table = _read_csv(path)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not in UTF-8: save the table as CSV in UTF-8") from error
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise ValueError(f"{path} cannot be read as a table: {error}") from error
    if table.empty:
        raise ValueError(f"{path} holds no rows; expected one a clip")
    return table.rename(columns=str).fillna("").astype(str).map(str.strip)


def _read_csv(path: Path) -> pd.DataFrame:
    """Read CSV; of the separators in use, the header holds its own most often."""
    with path.open(encoding="utf-8-sig") as file:
        separator = max(",;\t|", key=file.readline().count)
    return pd.read_csv(path, sep=separator, dtype=str, encoding="utf-8-sig", keep_default_na=False)


def _read_spreadsheet(path: Path) -> pd.DataFrame:
    try:
        return pd.read_excel(path, dtype=str, keep_default_na=False)
    except ImportError as error:
        raise ImportError(
            'a spreadsheet needs openpyxl: pip install "metaser[spreadsheet]", or save it as CSV'
        ) from error


def read_audformat(folder: Path) -> pd.DataFrame:
    """Read the file-wise tables of an audformat database as one table.

    Raises
    ------
    ImportError
        Without audformat.
    ValueError
        If the database has no file-wise table.
    """
    try:
        import audformat
    except ImportError as error:
        raise ImportError('audformat is not there: pip install "metaser[audformat]"') from error
    database = audformat.Database.load(str(folder))
    found = [
        database[name].get()
        for name in database.tables
        if database[name].type == audformat.define.IndexType.FILEWISE
    ]
    if not found:
        raise ValueError(
            f"{folder} holds no file-wise table, only segments of longer files: cut the segments "
            "into files of their own, and give a table of their labels by --table"
        )
    table = audformat.utils.concat(found).reset_index()
    return table.astype("string").fillna("").astype(str)


def read_dataset(folder: Path, write_audio: Path | None) -> tuple[pd.DataFrame, Path]:
    """Read a data set that `datasets` saved to disk; its audio becomes files where it is none.

    Audio is stored in such a folder as the bytes of the original files; these are written as they
    are, not decoded.

    Parameters
    ----------
    folder
        What ``save_to_disk`` wrote.
    write_audio
        Folder to make for the audio, which must not exist; needed where the audio is inside the
        data set.

    Returns
    -------
    table : pandas.DataFrame
        With a column `file`; class labels as text.
    audio : pathlib.Path
        Folder of the audio files.
    """
    try:
        import datasets
    except ImportError as error:
        raise ImportError('datasets is not there: pip install "metaser[datasets]"') from error
    loaded = datasets.load_from_disk(str(folder))
    if isinstance(loaded, datasets.DatasetDict):
        loaded = datasets.concatenate_datasets(list(loaded.values()))
    sounds = [key for key, kind in loaded.features.items() if isinstance(kind, datasets.Audio)]
    if len(sounds) != 1:
        raise ValueError(
            f"expected one column of audio in {folder}, found {len(sounds)}: {sounds}; its columns "
            f"are {', '.join(loaded.column_names)}"
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
            f"the audio lies inside of {folder}, not in files: name a new folder for the files by "
            "--write-audio DIR"
        )
    table["file"] = _write_audio(clips, write_audio)
    return table, write_audio


def _write_audio(clips: Sequence[Mapping], place: Path) -> list[str]:
    """Write the bytes of clips as files of a new folder; return their names."""
    if place.exists():
        raise FileExistsError(f"{place} is there already; name a folder that is not")
    place.parent.mkdir(parents=True, exist_ok=True)
    names = [Path(clip["path"] or f"{i:05d}.wav").name for i, clip in enumerate(clips)]
    if len(set(names)) < len(names):
        names = [f"{i:05d}_{name}" for i, name in enumerate(names)]
    with tempfile.TemporaryDirectory(dir=place.parent) as made:
        for name, clip in zip(names, clips, strict=True):
            Path(made, name).write_bytes(clip["bytes"])
        os.chmod(made, 0o755)
        shutil.copytree(made, place)
    return names
