"""The features of a task's clips, side by side, and how they are normalised."""

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
OUTLIER = 5.0
"""Normalised features are clipped to this many standard deviations."""


@dataclass(frozen=True)
class Features:
    """The features of a task's clips, in the order of its table.

    Attributes
    ----------
    values : ndarray or Ragged
        (clips, frames, channels) float32, zero after a clip's last frame. Those of a store are
        read when they are indexed; ``numpy.asarray`` reads all.
    lengths : ndarray
        (clips,) int; real frames of each clip.
    hashes : ndarray
        (clips,) str; the content of what was heard, read or seen, empty where there is nothing.
    modality : {"audio", "text", "video"}
        What the front end read.
    beside : tuple of Features
        Of other modalities of the same clips.
    domains : dict of str to ndarray
        (clips,) int64 each; see ``Batch.domains``.
    """

    values: np.ndarray | store.Ragged
    lengths: np.ndarray
    hashes: np.ndarray
    modality: str = "audio"
    beside: tuple["Features", ...] = ()
    domains: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def modalities(self) -> dict[str, "Features"]:
        """The features of each modality, this one first."""
        return {part.modality: part for part in (self, *self.beside)}

    @property
    def are_vectors(self) -> bool:
        """Whether no clip has more than one frame, in any modality."""
        return all(part.values.shape[1] <= 1 for part in (self, *self.beside))

    def batch(self, rows: np.ndarray, targets: np.ndarray, classes: np.ndarray) -> Batch:
        """Gather clips into a labelled batch of all modalities, padded to the longest of them.

        A clip that lacks a modality has no real frame there, but at least one that is masked.

        Parameters
        ----------
        rows : ndarray of int
            Rows of the task's table.
        targets : ndarray of int
            Class index of each.
        classes : ndarray of bool
            (classes,) which classes the task has.

        Raises
        ------
        ValueError
            If a clip has no frames of audio.
        """
        padded = {name: part._padded(rows) for name, part in self.modalities.items()}
        domains = {name: torch.from_numpy(ids[rows]) for name, ids in self.domains.items()}
        return Batch(padded, torch.from_numpy(targets), torch.from_numpy(classes), domains)

    def _padded(self, rows: np.ndarray) -> Padded:
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


def enough_threads(features: Features) -> AbstractContextManager:
    """Have PyTorch use one thread where clips are vectors: several would wait for each other."""
    return cpu_threads(1 if features.are_vectors else torch.get_num_threads())


def normalise(features: Features, task: Task, how: str) -> Features:
    """Give every channel of every modality mean 0 and deviation 1 over a corpus or a speaker.

    Neither needs labels, but both look at all audio of the corpus, a target's query clips
    included: results that use them say so.

    Parameters
    ----------
    features : Features
        Of ``task``.
    task : Task
        Tells who speaks.
    how : {"none", "corpus", "speaker"}
        What to pool over; "none" returns the features as they are.

    Raises
    ------
    ValueError
        If ``how`` is none of these.
    """
    if how not in NORMALISATIONS:
        raise ValueError(f"normalise must be one of {NORMALISATIONS}, not {how!r}")
    if how == "none":
        return features
    starts = np.cumsum(features.lengths) - features.lengths
    clips = [slice(start, start + length) for start, length in zip(starts, features.lengths)]
    frames = np.empty((features.lengths.sum(), features.values.shape[2]), np.float32)
    for row, clip in enumerate(clips):
        frames[clip] = features.values[[row]][0, : features.lengths[row]]
    pools = task.table["speaker"] if how == "speaker" else np.zeros(len(clips))
    for own in pd.Series(clips).groupby(np.asarray(pools)):
        _standardise(frames, list(own[1]))
    return replace(
        features,
        values=store.Ragged(frames, starts, features.lengths),
        beside=tuple(normalise(other, task, how) for other in features.beside),
    )


def _standardise(frames: np.ndarray, clips: Sequence[slice]) -> None:
    """Give the frames of some clips mean 0 and deviation 1 together, in place."""
    count = sum(clip.stop - clip.start for clip in clips)
    if not count:  # nobody has seen this speaker
        return
    centre = sum(frames[clip].sum(axis=0, dtype=np.float64) for clip in clips) / count
    spread = np.sqrt(sum(((frames[clip] - centre) ** 2).sum(axis=0) for clip in clips) / count)
    for clip in clips:
        scaled = (frames[clip] - centre) / np.maximum(spread, 1e-6)
        frames[clip] = np.clip(scaled, -OUTLIER, OUTLIER)
