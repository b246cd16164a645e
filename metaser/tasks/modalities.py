"""What a clip may have in addition to its audio: a transcript, a video, precomputed vectors.

A task folder says where they lie, and `metaser.tasks.matching` finds the clip that each belongs to.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated
from zipfile import BadZipFile

import numpy as np
import pandas as pd
from pydantic import Field, model_validator

from metaser.files import is_system
from metaser.naming import MODALITIES, Section, nearest
from metaser.tasks.text_tables import pick_columns, read_text_table

Text = Annotated[str, Field(min_length=1)]
"""A string that is not empty."""


class Transcripts(Section):
    """One ``[[transcripts]]`` section of task.toml: a table with the words of each clip.

    Attributes
    ----------
    file : str
        Path or glob below the audio folder.
    separator : str
        Text between two columns.
    columns : dict of str to str
        Names of the table's columns for `file` and `text`.
    """

    file: Text
    separator: Text = ","
    columns: dict[Text, Text] = {"file": "file", "text": "text"}

    @model_validator(mode="after")
    def _check(self) -> "Transcripts":
        if set(self.columns) != {"file", "text"}:
            raise ValueError(
                f"[[transcripts]] must have columns = {{ file = …, text = … }}, not "
                f"{self.columns}: name these two columns"
            )
        return self


class Vectors(Section):
    """A ``[vectors.<modality>]`` section of task.toml: a file with one or more vectors per clip.

    Attributes
    ----------
    file : str
        Path below the audio folder; it ends in .csv or .npz.
    """

    file: Text

    @model_validator(mode="after")
    def _check(self) -> "Vectors":
        if Path(self.file).suffix not in (".csv", ".npz"):
            raise ValueError(
                f"vectors must be in a .csv or .npz file, not {self.file!r}: convert the file"
            )
        return self


class Video(Section):
    """The ``[video]`` section of task.toml: one video file per clip.

    Attributes
    ----------
    folder : str
        Folder of the videos, relative to the audio folder.
    extension : str
        Ending of the video files.
    """

    folder: Text = "."
    extension: Text = ".mp4"


def check_modalities(names: Iterable[str], where: str) -> None:
    """Check that all names are in ``metaser.naming.MODALITIES``.

    Parameters
    ----------
    names
        Names to check.
    where
        Where the names stand; it begins the error message.

    Raises
    ------
    ValueError
        If a name is unknown; the message gives the nearest known one.
    """
    for name in names:
        if name not in MODALITIES:
            raise ValueError(
                f"{where} must name one of {', '.join(MODALITIES)}, not {name!r}."
                f"{nearest(name, MODALITIES)}"
            )


def read_transcripts(tables: Iterable[Transcripts], place: Path) -> dict[str, str] | None:
    """Read the transcripts from the first of several tables that is present.

    Parameters
    ----------
    tables
        Sections of task.toml, in the order of preference.
    place
        Folder of the audio.

    Returns
    -------
    dict of str to str or None
        Words by the name of the file; None if no table is present.

    Raises
    ------
    ValueError
        If a file has two transcripts, or a column is missing.
    """
    for table in tables:
        texts: dict[str, str] = {}
        paths = sorted(path for path in place.glob(table.file) if not is_system(path.name))
        for path in paths:
            read = read_text_table(path, table.separator)
            for where, row in pick_columns(read, path, table.columns):
                text = row["text"]
                if texts.setdefault(row["file"], text) != text:
                    raise ValueError(
                        f"each clip must have one transcript, but {where} gives "
                        f"{row['file']!r} two transcripts, {texts[row['file']]!r} and {text!r}: "
                        "correct the table"
                    )
        if paths:
            return texts
    return None


def read_vectors(path: Path) -> dict[str, np.ndarray]:
    """Read precomputed vectors.

    Parameters
    ----------
    path
        A ``.npz`` file with one array per clip, under the clip's name, (channels,) or
        (frames, channels); or a ``.csv`` file with a column ``file`` and columns of numbers, one
        row per frame, in the order of the frames.

    Returns
    -------
    dict of str to numpy.ndarray
        float32, (frames, channels), by the name of each clip; 0 frames where an array is empty.

    Raises
    ------
    ValueError
        If the file cannot be read, holds something other than numbers, holds NaN or infinity, or
        clips differ in the number of channels; the message names the clip.
    """
    try:
        vectors = _from_csv(path) if path.suffix == ".csv" else _from_npz(path)
    except (BadZipFile, EOFError, OSError) as error:
        raise ValueError(
            f"{path} cannot be read ({error}): create or download the file again"
        ) from error
    first: tuple[str, int] | None = None
    for name, frames in vectors.items():
        if frames.dtype.kind not in "biuf":
            raise ValueError(
                f"{path}: {name} must hold numbers, not {frames.dtype}: correct the file"
            )
        if frames.ndim > 2:
            raise ValueError(
                f"{path}: {name} must have the shape (channels,) or (frames, channels), not "
                f"{frames.shape}: correct the file"
            )
        if not np.isfinite(frames).all():
            raise ValueError(
                f"{path}: {name} must hold finite numbers, not NaN or infinity: correct the file"
            )
        if frames.size:
            first = first or (name, frames.shape[-1])
            if frames.shape[-1] != first[1]:
                raise ValueError(
                    f"{path}: all clips must have the same number of channels, but {first[0]} has "
                    f"{first[1]} channels, {name} has {frames.shape[-1]}: correct the file"
                )
    if first is None:
        raise ValueError(f"{path} must hold vectors, but holds no vectors: add them")
    channels = first[1]
    return {
        name: frames.reshape(-1, channels).astype(np.float32) for name, frames in vectors.items()
    }


def _from_npz(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of a .npz file by their names."""
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def _from_csv(path: Path) -> dict[str, np.ndarray]:
    """Return the numbers of a CSV table, (frames, channels), by the name of the clip."""
    table = read_text_table(path)
    if "file" not in table:
        raise ValueError(
            f"{path.name} must have the column 'file', but has {', '.join(table)}: add the column"
        )
    numbers = table.drop(columns="file").apply(pd.to_numeric, errors="coerce")
    words = numbers.isna() & (table.drop(columns="file") != "")
    if words.any(axis=None):
        line, column = words.stack().idxmax()
        raise ValueError(
            f"{path}, line {line}: {column} must be a number, not {table.loc[line, column]!r}: "
            "correct the table"
        )
    return {
        str(name): rows.to_numpy(float) for name, rows in numbers.groupby(table["file"], sort=False)
    }
