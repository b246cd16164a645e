"""Episodes in which something is known of the voices, and methods that adapt to them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from metaser.batch import Batch
from metaser.contracts import Method, evidence_of
from metaser.episodes import Episode
from metaser.features.table import Features, normalise
from metaser.features.voice import gate, normalise_voices, varied_share
from metaser.protocol.schema import Voice
from metaser.tasks.task import Task


@dataclass(frozen=True)
class Voices:
    """A target's features for setups that know the voice.

    Attributes
    ----------
    raw : Features
        Not normalised.
    voice, corpus : Features
        Normalised by all clips of each voice, and by the corpus.
    plan : Voice
        What is known of a voice.
    neutral : ndarray or None
        (channels,) where the neutral clips of the sources lie.
    """

    raw: Features
    voice: Features
    corpus: Features
    plan: Voice
    neutral: np.ndarray | None = None

    @classmethod
    def of(cls, raw: Features, task: Task, plan: Voice) -> "Voices":
        """Normalise the features of a task's clips in both ways."""
        voice = normalise_voices(raw, task.table["speaker"].to_numpy())
        return cls(raw, voice, normalise(raw, task, "corpus"), plan)

    def known(self, task: Task, episode: Episode) -> np.ndarray:
        """Return (clips,) bool: the given clips of each voice, drawn anew for every episode.

        A given clip is no copy of a clip of the query.
        """
        table = task.table
        free = ~table["clique"].isin(table["clique"].iloc[episode.query]).to_numpy()
        if self.plan.neutral:
            free &= table["emotion"].eq("neutral").to_numpy()
        rng = np.random.default_rng([episode.index, *episode.task.encode()])
        drawn = rng.permutation(np.flatnonzero(free))
        speakers = pd.Series(table["speaker"].to_numpy()[drawn])
        known = np.zeros(len(table), bool)
        known[drawn[speakers.groupby(speakers).cumcount() < self.plan.clips]] = True
        return known

    def features(self, task: Task, episode: Episode) -> tuple[Features, Features]:
        """Return the features of an episode by what is known of the voices, and by the corpus."""
        if self.plan.clips is None:
            return self.voice, self.corpus
        speakers = task.table["speaker"].to_numpy()
        known = self.known(task, episode)
        voice = normalise_voices(self.raw, speakers, known, neutral=self.neutral)
        return voice, self.corpus


def scores_by_voice(
    method: Method, supports: Sequence[Batch], queries: Sequence[Batch], speakers: np.ndarray
) -> tuple[Tensor, float]:
    """Return scores with the voices' statistics and with the corpus's, mixed as far as is safe.

    A method whose predictor has ``evidence`` adapts with both, and probabilities are averaged; any
    other adapts with the one that the speakers' labels speak for.

    Parameters
    ----------
    method : Method
        Ready to adapt.
    supports, queries : sequence of Batch
        The same clips normalised by voices, and by the corpus.
    speakers : ndarray
        (support clips,) who speaks in each.

    Returns
    -------
    scores : Tensor
        (query clips, classes).
    trust : float
        How much the voices' statistics count, in [0, 1].
    """
    share = varied_share(supports[0].targets.cpu().numpy(), speakers)
    first = method.adapt(supports[0])
    evidence = evidence_of(first)
    if evidence is None:
        if trust := gate(share):
            return first(queries[0].modalities), trust
        return method.adapt(supports[1])(queries[1].modalities), trust
    predictors = [first, method.adapt(supports[1])]
    other = evidence_of(predictors[1])
    assert other is not None  # a method has evidence or it has not
    trust = gate(share, evidence - other)
    scores = [predict(query.modalities).double() for predict, query in zip(predictors, queries)]
    weights = torch.tensor([trust, 1 - trust], dtype=torch.double).log()
    mixed = [score.log_softmax(dim=1) + weight for score, weight in zip(scores, weights)]
    return torch.logaddexp(*mixed).to(torch.float32), trust
