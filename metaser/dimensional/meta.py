"""Meta-learning of ratings: models that adapt to a few rated clips of a language."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor

from metaser.batch import Batch, EpisodeBatch, Padded
from metaser.methods.maml import MAML
from metaser.model import Model
from metaser.training import Source, Training, train

HELD_OUT = 0.2
"""Share of each task's speakers whose clips validate, and are not learnt from."""


@dataclass(frozen=True, eq=False)
class RatedClips:
    """Rated clips of a task.

    Attributes
    ----------
    name : str
        Name of the task.
    audio : Padded
        (clips, frames, channels) features.
    ratings : Tensor
        (clips, ratings) in [-1, 1]; NaN where a clip is not rated.
    units : ndarray
        (clips,) str; clips of one unit share a speaker or a duplicate.
    """

    name: str
    audio: Padded
    ratings: Tensor
    units: np.ndarray

    def __getitem__(self, rows: np.ndarray) -> "RatedClips":
        """Return the clips in these rows."""
        return RatedClips(self.name, self.audio[rows], self.ratings[rows], self.units[rows])

    def batch(self) -> Batch:
        """Return the clips as a method takes them."""
        every = torch.ones(self.ratings.shape[1], dtype=torch.bool)
        return Batch({"audio": self.audio}, self.ratings, every)


@dataclass(frozen=True)
class RatedEpisodes:
    """Episodes of rated clips: one half of the speakers is adapted to, the other scored on.

    Attributes
    ----------
    clips : RatedClips
        The clips to draw from.
    shots, queries : int
        Clips of the support set and of the query set. If a half has fewer clips than that, some
        are drawn twice.
    seed : int
        Decides the episodes. ``draw(index)`` is the same whatever was drawn before.
    """

    clips: RatedClips
    shots: int
    queries: int
    seed: int

    @property
    def name(self) -> str:
        """Name of the task."""
        return self.clips.name

    def draw(self, index: int) -> EpisodeBatch:
        """Return the tensors of episode ``index``."""
        rng = np.random.default_rng([self.seed, self.shots, index, *self.name.encode()])
        units = rng.permutation(np.unique(self.clips.units))
        inside = np.isin(self.clips.units, units[: len(units) // 2])
        support = _drawn(np.flatnonzero(inside), self.shots, rng)
        query = _drawn(np.flatnonzero(~inside), self.queries, rng)
        return EpisodeBatch(self.clips[support].batch(), self.clips[query].batch())


def meta_learnt(
    model: Model,
    sources: Sequence[RatedClips],
    *,
    shots: Sequence[int],
    queries: int,
    training: Training,
    inner_steps: int,
    inner_rate: float,
    adapt_steps: int,
    seed: int,
) -> MAML:
    """Meta-learn ratings by second-order MAML with the CCC loss in both loops.

    Parameters
    ----------
    model : Model
        Returns ratings (clips, ratings). It is trained in place.
    sources : sequence of RatedClips
        Tasks to learn from. The clips of ``HELD_OUT`` of each task's speakers validate. Where that
        is fewer than two speakers, all speakers both validate and are learnt from.
    shots : sequence of int
        Sizes of the support sets to learn with.
    queries : int
        Query clips per episode.
    training : Training
        Length and rate of the outer loop.
    inner_steps : int
        Steps of the inner loop while training.
    inner_rate : float
        Step size of the inner loop, above 0.
    adapt_steps : int
        Steps of the inner loop after training.
    seed : int
        Decides episodes and dropout.

    Returns
    -------
    MAML
        ``adapt(clips.batch())`` gives a predictor of ratings.

    Raises
    ------
    ValueError
        If a task has fewer than two speakers.

    References
    ----------
    Finn, Abbeel, Levine, ICML 2017; the loss is that of Atmaja and Akagi, ICASSP 2020.
    """
    learnt, validation = [], []
    for clips in sources:
        kept, held_out = _held_out(clips, seed)
        learnt += [RatedEpisodes(kept, size, queries, seed) for size in shots]
        validation.append(RatedEpisodes(held_out, min(shots), queries, seed))
    method = MAML(
        model,
        inner_steps=inner_steps,
        adapt_steps=adapt_steps,
        inner_rate=inner_rate,
        second_order=True,
    )
    # Rated episodes have the two things that train asks of a source: name and draw(index).
    train(method, cast(list[Source], learnt), cast(list[Source], validation), training, seed)
    return method


def _held_out(clips: RatedClips, seed: int) -> tuple[RatedClips, RatedClips]:
    """Return the clips of the speakers to learn from, and of those that validate."""
    rng = np.random.default_rng([seed, *clips.name.encode()])
    speakers = rng.permutation(np.unique(clips.units))
    if len(speakers) < 2:
        raise ValueError(
            f"{clips.name} must have at least 2 speakers, one to adapt to and one to score on, not "
            f"{len(speakers)}: leave the task out of the sources"
        )
    count = round(HELD_OUT * len(speakers))
    if count < 2:
        return clips, clips
    inside = np.isin(clips.units, speakers[:count])
    return clips[np.flatnonzero(~inside)], clips[np.flatnonzero(inside)]


def _drawn(rows: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Draw this many rows; the same row again only if there are too few."""
    return rng.choice(rows, count, replace=len(rows) < count)
