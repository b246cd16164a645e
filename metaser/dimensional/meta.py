"""Meta-learning of ratings: models that a few rated clips of a language adapt."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from metaser.batch import Batch, EpisodeBatch, Padded
from metaser.methods.maml import MAML
from metaser.model import Model
from metaser.training.loop import Training, train

HELD_OUT = 0.2
"""Share of each task's speakers whose clips validate."""


@dataclass(frozen=True, eq=False)
class RatedClips:
    """The rated clips of a task.

    Attributes
    ----------
    name : str
        Of the task.
    audio : Padded
        Features of the clips.
    ratings : Tensor
        (clips, ratings) in [-1, 1]; NaN where a clip is not rated.
    units : ndarray
        (clips,) who speaks.
    """

    name: str
    audio: Padded
    ratings: Tensor
    units: np.ndarray

    def __getitem__(self, rows) -> "RatedClips":
        return RatedClips(self.name, self.audio[rows], self.ratings[rows], self.units[rows])

    def batch(self) -> Batch:
        """The clips as a method takes them."""
        every = torch.ones(self.ratings.shape[1], dtype=torch.bool)
        return Batch({"audio": self.audio}, self.ratings, every)


@dataclass(frozen=True)
class RatedEpisodes:
    """Episodes of rated clips: half of the speakers are adapted to, the other half judged on.

    ``draw(index)`` is the same whatever was drawn before. A half with fewer than ``shots`` or
    ``queries`` clips gives some twice.
    """

    clips: RatedClips
    shots: int
    queries: int
    seed: int

    @property
    def name(self) -> str:
        """Of the task."""
        return self.clips.name

    def draw(self, index: int) -> EpisodeBatch:
        """The tensors of episode ``index``."""
        rng = np.random.default_rng([self.seed, self.shots, index, *self.name.encode()])
        heard = rng.permutation(np.unique(self.clips.units))
        inside = np.isin(self.clips.units, heard[: len(heard) // 2])
        return EpisodeBatch(
            *(
                self.clips[_drawn(np.flatnonzero(own), count, rng)].batch()
                for own, count in ((inside, self.shots), (~inside, self.queries))
            )
        )


def meta_learnt(
    model: Model,
    sources: Sequence[RatedClips],
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
        Returns ratings (clips, ratings); it is trained in place.
    sources : sequence of RatedClips
        Tasks to learn from. A fifth of each one's speakers validates, but for tasks of fewer than
        ten speakers, which validate on the speakers that they learn from.
    shots : sequence of int
        Sizes of support sets to learn with.
    queries : int
        Clips that an episode is judged on.
    training : Training
        The outer loop.
    inner_steps, inner_rate, adapt_steps
        See ``MAML``.
    seed : int
        Chooses episodes and dropout.

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
        kept, held_out = _parted(clips, seed)
        learnt += [RatedEpisodes(kept, size, queries, seed) for size in shots]
        validation.append(RatedEpisodes(held_out, min(shots), queries, seed))
    method = MAML(model, inner_steps, adapt_steps, inner_rate=inner_rate, second_order=True)
    train(method, learnt, validation, training, seed)
    return method


def _parted(clips: RatedClips, seed: int) -> tuple[RatedClips, RatedClips]:
    """The clips of the speakers to learn from, and of those that validate."""
    rng = np.random.default_rng([seed, *clips.name.encode()])
    speakers = rng.permutation(np.unique(clips.units))
    if len(speakers) < 2:
        raise ValueError(
            f"{clips.name} has {len(speakers)} speaker; an episode needs one to adapt to and "
            "another to judge on: leave the task out of the sources"
        )
    count = round(HELD_OUT * len(speakers))
    if count < 2:
        return clips, clips
    inside = np.isin(clips.units, speakers[:count])
    return clips[np.flatnonzero(~inside)], clips[np.flatnonzero(inside)]


def _drawn(rows: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    return rng.choice(rows, count, replace=len(rows) < count)
