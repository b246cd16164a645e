"""The features of a task's clips as one table, and how they are normalised."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
import torch

from metaser.batch import Batch, Padded
from metaser.features import store
from metaser.machine import cpu_threads
from metaser.tasks.task import Task

NORMALISATIONS = ("none", "corpus", "speaker")
"""What features can be normalised over, see ``normalise``."""

OUTLIER = 5.0
"""Normalised features are clipped to this many standard deviations."""


@dataclass(frozen=True)
class Features:
    """The features of a task's clips, one row per clip, in the order of the task's table.

    Attributes
    ----------
    values : ndarray or Ragged
        (clips, frames, channels) float32, zero after a clip's last frame. Values in a store are
        read when they are indexed; ``numpy.asarray`` reads all.
    lengths : ndarray
        (clips,) int; number of real frames of each clip.
    hashes : ndarray
        (clips,) str; digest of each clip's audio, text or video; "" where a clip has none.
    modality : {"audio", "text", "video"}
        The modality that the front end reads.
    beside : tuple of Features
        Features of the same clips in other modalities.
    domains : dict of str to ndarray
        (clips,) int64 each: numbers of the clips' speakers or corpora, see ``Batch.domains``.
    """

    values: np.ndarray | store.Ragged
    lengths: np.ndarray
    hashes: np.ndarray
    modality: str = "audio"
    beside: tuple["Features", ...] = ()
    domains: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def modalities(self) -> dict[str, "Features"]:
        """Features by modality, this one first."""
        return {part.modality: part for part in (self, *self.beside)}

    @property
    def are_vectors(self) -> bool:
        """Whether no clip has more than one frame, in any modality."""
        return all(part.values.shape[1] <= 1 for part in (self, *self.beside))

    def batch(self, rows: np.ndarray, targets: np.ndarray, classes: np.ndarray) -> Batch:
        """Return clips as a labelled batch of all modalities, padded to the longest of them.

        A clip that lacks a modality has no real frame there, but at least one masked frame.

        Parameters
        ----------
        rows : ndarray of int
            (clips,) rows of the task's table.
        targets : ndarray of int
            (clips,) class index of each clip.
        classes : ndarray of bool
            (classes,) which classes the task has.

        Returns
        -------
        Batch
            The clips, in the order of ``rows``.

        Raises
        ------
        ValueError
            If a clip has no frames of audio.
        """
        padded = {name: part._padded(rows) for name, part in self.modalities.items()}
        domains = {name: torch.from_numpy(ids[rows]) for name, ids in self.domains.items()}
        return Batch(padded, torch.from_numpy(targets), torch.from_numpy(classes), domains)

    def _padded(self, rows: np.ndarray) -> Padded:
        """Return the clips in some rows in this modality alone."""
        lengths = self.lengths[rows]
        if self.modality == "audio" and (lengths == 0).any():
            raise ValueError(
                f"every clip must have at least 1 frame, but those in rows "
                f"{sorted(set(rows[lengths == 0].tolist()))} of the task's table have 0: give the "
                "front end longer clips, or leave them out of the task"
            )
        mask = np.arange(max(lengths.max(initial=0), 1)) < lengths[:, None]
        values = self.values[rows][:, : mask.shape[1]]
        return Padded(torch.from_numpy(values), torch.from_numpy(mask))


def enough_threads(features: Features) -> AbstractContextManager[None]:
    """Return a context in which PyTorch uses one thread if the features are vectors.

    On so few numbers several threads only wait for each other.
    """
    return cpu_threads(1 if features.are_vectors else torch.get_num_threads())


def all_frames(features: Features) -> np.ndarray:
    """Return a copy of the real frames of all clips (frames, channels), one clip after another."""
    values, lengths = features.values, features.lengths
    if isinstance(values, store.Ragged):
        first = np.cumsum(lengths) - lengths
        rows = np.repeat(values.starts - first, lengths) + np.arange(lengths.sum())
        return np.asarray(values.frames)[rows]
    return values[np.arange(values.shape[1]) < lengths[:, None]]


def normalise(features: Features, task: Task, how: str) -> Features:
    """Return features with mean 0 and deviation 1 per channel, over the corpus or each speaker.

    All modalities are normalised. Neither way needs labels, but both look at all audio of the
    corpus, including a target's query clips: results that use them say so.

    Parameters
    ----------
    features : Features
        The features of ``task``.
    task : Task
        Its table says who speaks each clip.
    how : {"none", "corpus", "speaker"}
        Which clips share a mean and a deviation; "none" returns the features unchanged.

    Returns
    -------
    Features
        New features, limited to ``OUTLIER`` deviations.

    Raises
    ------
    ValueError
        If ``how`` is none of these.
    """
    if how not in NORMALISATIONS:
        raise ValueError(
            f"normalise must be one of {NORMALISATIONS}, not {how!r}: choose one of them"
        )
    if how == "none":
        return features
    starts = np.cumsum(features.lengths) - features.lengths
    clips = [slice(start, start + length) for start, length in zip(starts, features.lengths)]
    frames = all_frames(features)
    pools = task.table["speaker"] if how == "speaker" else np.zeros(len(clips))
    for _, pool in pd.Series(clips).groupby(np.asarray(pools)):
        _standardise(frames, list(pool))
    return replace(
        features,
        values=store.Ragged(frames, starts, features.lengths),
        beside=tuple(normalise(other, task, how) for other in features.beside),
    )


def _standardise(frames: np.ndarray, clips: Sequence[slice]) -> None:
    """Give the frames of some clips mean 0 and deviation 1 together, in place."""
    count = sum(clip.stop - clip.start for clip in clips)
    if not count:  # a speaker without clips in this modality
        return
    centre = sum(frames[clip].sum(axis=0, dtype=np.float64) for clip in clips) / count
    spread = np.sqrt(sum(((frames[clip] - centre) ** 2).sum(axis=0) for clip in clips) / count)
    for clip in clips:
        scaled = (frames[clip] - centre) / np.maximum(spread, 1e-6)
        frames[clip] = np.clip(scaled, -OUTLIER, OUTLIER)
