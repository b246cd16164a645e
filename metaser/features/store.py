"""Arrays of different lengths in one memory-mapped file, found by a digest of their content.

A store is a folder with two files: ``values.f32`` holds the frames of all clips, one after the
other, and ``index.json`` says where each clip begins. An addition writes its frames after those
that the index knows and then replaces the index. So the index names only complete clips, even
after an interruption. Writers take turns by a lock; readers need none, because frames never move.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike

from metaser.files import read_json, write_json, written


@dataclass(frozen=True, eq=False)
class Ragged:
    """Sequences of different lengths that can be indexed like one zero-padded array.

    Only the requested sequences are read. ``numpy.asarray`` returns the whole padded array.

    Attributes
    ----------
    frames : ndarray
        (frames, channels) float32 of all sequences, memory-mapped or not.
    starts, lengths : ndarray
        (clips,) int; first frame and number of frames of each sequence.
    """

    frames: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of the padded array: clips, frames of the longest, channels."""
        return len(self.lengths), int(self.lengths.max(initial=0)), self.frames.shape[1]

    def __len__(self) -> int:
        """Return the number of clips."""
        return len(self.lengths)

    def __getitem__(self, rows: slice | Sequence[int] | np.ndarray) -> np.ndarray:
        """Return the sequences of some rows (rows, frames of the longest of all, channels)."""
        starts, lengths = self.starts[rows, None], self.lengths[rows, None]
        place = np.arange(self.shape[1])
        real = place < lengths
        values = np.zeros((*real.shape, self.shape[2]), np.float32)
        values[real] = np.asarray(self.frames)[(starts + place)[real]]
        return values

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        """Return all sequences as one padded array; called by ``numpy.asarray``."""
        return self[:].astype(dtype or np.float32, copy=False)


def append(folder: Path, clips: Mapping[str, np.ndarray], facts: Mapping[str, str]) -> None:
    """Add the clips that a store does not hold yet; make the store if there is none.

    The caller holds the lock of the cache.

    Parameters
    ----------
    folder : Path
        The store.
    clips : mapping of str to ndarray
        Frames (frames, channels) float32, by the content of the clip.
    facts : mapping of str to str
        Entries of the index of a new store: its task, front end and so on.

    Raises
    ------
    ValueError
        If a clip has another number of channels than those before it.
    """
    with written(folder):
        _append(folder, clips, facts)


def _append(folder: Path, clips: Mapping[str, np.ndarray], facts: Mapping[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    index = read_json(folder / "index.json") or {**facts, "contents": [], "lengths": []}
    values, held = folder / "values.f32", set(index["contents"])
    added = {content: clip for content, clip in clips.items() if content not in held}
    with values.open("r+b" if values.exists() else "w+b") as file:
        file.seek(4 * index.get("channels", 0) * sum(index["lengths"]))
        for content, clip in added.items():
            channels = index.setdefault("channels", clip.shape[1])
            if clip.shape[1] != channels:
                raise ValueError(
                    f"{folder}: all clips must have {channels} channels per frame, not "
                    f"{clip.shape[1]}: have the front end return the same number for every clip"
                )
            file.write(np.ascontiguousarray(clip, "<f4").data)
            index["contents"].append(content)
            index["lengths"].append(len(clip))
        file.flush()
        os.fsync(file.fileno())
    write_json(folder / "index.json", index)


def contents(folder: Path) -> set[str]:
    """Return the contents of all clips in a store."""
    return set(read_json(folder / "index.json").get("contents", ()))


def read(folder: Path, wanted: Iterable[str]) -> Ragged:
    """Map the clips of some contents into memory; their values are read when they are indexed.

    Raises
    ------
    FileNotFoundError
        If the store does not hold one of them.
    ValueError
        If the file of values is shorter than the index says.
    """
    index = read_json(folder / "index.json")
    place = {content: row for row, content in enumerate(index.get("contents", ()))}
    try:
        rows = np.array([place[content] for content in wanted], int)
    except KeyError as error:
        raise FileNotFoundError(
            f"the feature store {folder} must hold clip {error}, but does not: another process "
            "has removed it; run the same command again"
        ) from error
    lengths = np.array(index["lengths"], int)
    shape = int(lengths.sum()), index["channels"]
    values = folder / "values.f32"
    size, expected = values.stat().st_size, 4 * shape[0] * shape[1]
    if size < expected:
        raise ValueError(
            f"{values} must have at least {expected} bytes, not {size}; it is damaged: delete "
            f"{folder}, and its features are extracted again"
        )
    frames = np.memmap(values, "<f4", "r", shape=shape) if expected else np.empty(shape, "<f4")
    return Ragged(frames, (np.cumsum(lengths) - lengths)[rows], lengths[rows])
