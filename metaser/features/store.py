"""Arrays of different lengths kept in one memory-mapped file and found by content.

A store is a folder with two files: ``values.f32`` holds the frames of all clips, one after the
other, and ``index.json`` says where each clip begins. An addition writes its frames behind those
that the index knows and then replaces the index, so whatever interrupts it, the index names whole
clips only. Writers take turns by a lock of theirs; readers need none, for frames never move.
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from metaser.files import read_json, write_json


@dataclass(frozen=True, eq=False)
class Ragged:
    """Sequences of different lengths, looking like one zero-padded array to those who index it.

    Only the sequences that are asked for are read. ``numpy.asarray`` gives the padded array.

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
        """Clips, frames of the longest, channels."""
        return len(self.lengths), int(self.lengths.max(initial=0)), self.frames.shape[1]

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, rows) -> np.ndarray:
        """Return the sequences of some rows, (rows, longest of all, channels)."""
        starts, lengths = self.starts[rows, None], self.lengths[rows, None]
        place = np.arange(self.shape[1])
        real = place < lengths
        values = np.zeros((*real.shape, self.shape[2]), np.float32)
        values[real] = np.asarray(self.frames)[(starts + place)[real]]
        return values

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return self[:].astype(dtype or np.float32, copy=False)


def append(folder: Path, clips: Mapping[str, np.ndarray], facts: Mapping[str, str]) -> None:
    """Add clips that a store does not hold yet; make the store if there is none.

    The caller holds the lock of the cache.

    Parameters
    ----------
    folder : Path
        The store.
    clips : mapping of str to ndarray
        (frames, channels) float32 by content.
    facts : mapping of str to str
        What a new store says about itself.

    Raises
    ------
    ValueError
        If a clip has another number of channels than those before it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    index = read_json(folder / "index.json") or {**facts, "contents": [], "lengths": []}
    values, held = folder / "values.f32", set(index["contents"])
    news = {content: clip for content, clip in clips.items() if content not in held}
    with values.open("r+b" if values.exists() else "w+b") as file:
        file.seek(4 * index.get("channels", 0) * sum(index["lengths"]))
        for content, clip in news.items():
            channels = index.setdefault("channels", clip.shape[1])
            if clip.shape[1] != channels:
                raise ValueError(
                    f"{folder}: expected {channels} channels a frame, came {clip.shape[1]}: a "
                    "front end must give all clips the same number"
                )
            file.write(np.ascontiguousarray(clip, "<f4").data)
            index["contents"].append(content)
            index["lengths"].append(len(clip))
        file.flush()
        os.fsync(file.fileno())
    write_json(folder / "index.json", index)


def contents(folder: Path) -> set[str]:
    """The contents of all clips that a store holds."""
    return set(read_json(folder / "index.json").get("contents", ()))


def read(folder: Path, wanted: Iterable[str]) -> Ragged:
    """Map the clips of some contents; their values are read when they are asked for.

    Raises
    ------
    FileNotFoundError
        If the store does not hold one of them.
    ValueError
        If the store's values are cut short.
    """
    index = read_json(folder / "index.json")
    place = {content: row for row, content in enumerate(index.get("contents", ()))}
    try:
        rows = np.array([place[content] for content in wanted], int)
    except KeyError as error:
        raise FileNotFoundError(
            f"the feature store {folder} does not hold clip {error}: another process has removed "
            "it; run the same again"
        ) from error
    lengths = np.array(index["lengths"], int)
    shape = int(lengths.sum()), index["channels"]
    values = folder / "values.f32"
    size, expected = values.stat().st_size, 4 * shape[0] * shape[1]
    if size < expected:
        raise ValueError(
            f"{values} is damaged: expected {expected} bytes or more, found {size}; delete "
            f"{folder}, and its features are extracted anew"
        )
    frames = np.memmap(values, "<f4", "r", shape=shape) if expected else np.empty(shape, "<f4")
    return Ragged(frames, (np.cumsum(lengths) - lengths)[rows], lengths[rows])
