"""What a clip may have beside its audio: tables of transcripts, and vectors that others computed.

A task folder says where they lie; see ``metaser.tasks`` for how they find their clips.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated
from zipfile import BadZipFile

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, model_validator

from metaser import naming

MODALITIES = ("audio", "text", "video")

Text = Annotated[str, Field(min_length=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Transcripts(_Strict):
    """One of ``[[transcripts]]``: a table with the words of each clip."""

    file: Text  # path or glob below the audio folder
    separator: Text = ","
    columns: dict[Text, Text] = {"file": "file", "text": "text"}  # our name -> the table's column

    @model_validator(mode="after")
    def _check(self) -> "Transcripts":
        if set(self.columns) != {"file", "text"}:
            raise ValueError(
                f"[[transcripts]] needs columns = {{ file = …, text = … }}, not {self.columns}"
            )
        return self


class Vectors(_Strict):
    """``[vectors.<modality>]``: a file with one or several vectors a clip."""

    file: Text  # .csv or .npz, below the audio folder

    @model_validator(mode="after")
    def _check(self) -> "Vectors":
        if Path(self.file).suffix not in (".csv", ".npz"):
            raise ValueError(f"vectors come in a .csv or .npz file, not {self.file!r}")
        return self


class Video(_Strict):
    """``[video]``: files beside the audio."""

    folder: Text = "."  # below the audio folder
    extension: Text = ".mp4"


def check_modalities(names: Iterable[str], where: str) -> None:
    """Refuse a modality that is none of ``MODALITIES``."""
    for name in names:
        if name not in MODALITIES:
            raise ValueError(
                f"{where} names the modality {name!r}.{naming.nearest(name, MODALITIES)} "
                f"There are {', '.join(MODALITIES)}"
            )


def read_columns(path: Path, separator: str, columns: Mapping[str, str]) -> list[dict[str, str]]:
    """Read some columns of a table as strings, under names of ours.

    Parameters
    ----------
    path
        Text file with a header, in UTF-8.
    separator
        What stands between columns.
    columns
        Our name to the table's column.

    Raises
    ------
    ValueError
        If the table lacks a column; the nearest one is named.
    """
    read = pd.read_csv(path, sep=separator, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    for column in columns.values():
        if column not in read:
            raise ValueError(
                f"{path.name} has no column {column!r}.{naming.nearest(column, read)} "
                f"It has {', '.join(read)}"
            )
    return [
        {name: row[column] for name, column in columns.items()} for row in read.to_dict("records")
    ]


def read_transcripts(tables: Iterable[Transcripts], place: Path) -> dict[str, str] | None:
    """Read the first table that is present: words by the name of the file; None without one.

    Raises
    ------
    ValueError
        If a file has two transcripts, or a column is missing.
    """
    for table in tables:
        texts: dict[str, str] = {}
        paths = sorted(path for path in place.glob(table.file) if not path.name.startswith("."))
        for path in paths:
            for row in read_columns(path, table.separator, table.columns):
                text = row["text"].strip()
                if texts.setdefault(row["file"], text) != text:
                    raise ValueError(
                        f"{path.name} gives {row['file']!r} two transcripts, "
                        f"{texts[row['file']]!r} and {text!r}; correct the table"
                    )
        if paths:
            return texts
    return None


def read_vectors(path: Path) -> dict[str, np.ndarray]:
    """Read precomputed vectors.

    Parameters
    ----------
    path
        ``.npz`` with an array (channels,) or (frames, channels) by the name of each clip; or
        ``.csv`` with a column ``file`` and columns of numbers, one row a frame, in their order.

    Returns
    -------
    dict of str to numpy.ndarray
        (frames, channels) float32 by the name of each clip; no frames where an array is empty.

    Raises
    ------
    ValueError
        If the file cannot be read, is not of numbers, holds NaN or infinity, or clips differ in
        the number of channels; the message names the clip.
    """
    try:
        vectors = _from_csv(path) if path.suffix == ".csv" else _from_npz(path)
    except (BadZipFile, EOFError, OSError) as error:
        raise ValueError(f"{path} cannot be read ({error}): make or fetch it again") from error
    first: tuple[str, int] | None = None
    for name, frames in vectors.items():
        if frames.dtype.kind not in "biuf":
            raise ValueError(f"{path}: {name} must hold numbers, not {frames.dtype}")
        if frames.ndim > 2:
            raise ValueError(
                f"{path}: {name} has the shape {frames.shape}; expected (channels,) or "
                "(frames, channels)"
            )
        if not np.isfinite(frames).all():
            raise ValueError(f"{path}: {name} holds NaN or infinity")
        if frames.size:
            first = first or (name, frames.shape[-1])
            if frames.shape[-1] != first[1]:
                raise ValueError(
                    f"{path}: {first[0]} has {first[1]} channels, {name} has {frames.shape[-1]}: "
                    "all clips must have the same"
                )
    if first is None:
        raise ValueError(f"{path} holds no vectors")
    return {
        name: frames.reshape(-1, first[1]).astype(np.float32) for name, frames in vectors.items()
    }


def _from_npz(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def _from_csv(path: Path) -> dict[str, np.ndarray]:
    table = pd.read_csv(path, dtype={"file": str}, encoding="utf-8-sig")
    if "file" not in table:
        raise ValueError(f"{path.name} has no column 'file'; it has {', '.join(table)}")
    return {
        name: own.drop(columns="file").to_numpy() for name, own in table.groupby("file", sort=False)
    }
