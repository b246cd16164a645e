"""Baselines without a network: chance, majority, and logistic regression on the mean frame."""

import zlib

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression as SklearnLogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from metaser.batch import Batch, Padded, mean_frames
from metaser.contracts import Predictor
from metaser.methods.inner_loop import check_support


class Constant:
    """Guess a class without listening.

    Parameters
    ----------
    guess : {"chance", "majority"}
        "chance" draws the class of every clip at random. "majority" always says the most frequent
        class of the support set, and the first of them if several are equally frequent.
    seed : int
        Decides the random guesses, together with the support set.

    Raises
    ------
    ValueError
        If ``guess`` is not known.
    """

    def __init__(self, guess: str = "chance", seed: int = 0) -> None:
        if guess not in ("chance", "majority"):
            raise ValueError(
                f"guess must be 'chance' or 'majority', not {guess!r}: choose one of them"
            )
        self.guess = guess
        self.seed = seed

    def adapt(self, support: Batch) -> Predictor:
        """Return a predictor that guesses among the classes of the support set."""
        check_support(support)
        counts = torch.bincount(support.targets, minlength=len(support.classes))
        fingerprint = zlib.crc32(mean_frames(support.modalities).numpy().tobytes())
        rng = np.random.default_rng([self.seed, fingerprint])

        def predict(modalities: dict[str, Padded]) -> Tensor:
            clips = len(next(iter(modalities.values())))
            if self.guess == "majority":
                scores = counts.to(torch.float32).expand(clips, -1)
            else:
                scores = torch.from_numpy(rng.random((clips, len(counts))))
            return scores.masked_fill(~support.classes, float("-inf"))

        return predict


class LogisticRegression:
    """Multinomial logistic regression on the mean frame of each clip, with standardised channels.

    Parameters
    ----------
    strength : float
        Weight of the L2 penalty on the coefficients, above 0. The mean loss per clip has weight 1.
    use_sources : bool
        Fit on the source corpora and the support set together, each with half of the weight.
        Without it, fit on the support set alone.
    """

    def __init__(self, strength: float = 0.1, use_sources: bool = False) -> None:
        self.strength = strength
        self.use_sources = use_sources
        self.sources: list[Batch] = []

    def fit(self, sources: list[Batch]) -> None:
        """Keep the labelled clips of the source tasks; every task has the same weight."""
        self.sources = sources if self.use_sources else []

    def adapt(self, support: Batch) -> Predictor:
        """Return a regression that is fitted to labelled clips of a language."""
        check_support(support)
        batches = [support, *self.sources]
        values = [mean_frames(batch.modalities).numpy() for batch in batches]
        targets = [batch.targets.numpy() for batch in batches]
        # The support set comes first. The sources together weigh as much as it does.
        shares = [1, *[len(self.sources)] * len(self.sources)]
        weights = np.concatenate(
            [
                np.full(len(labels), len(support) / len(labels) / share)
                for labels, share in zip(targets, shares)
            ]
        )
        # StandardScaler leaves a channel as it is that never varies: it may vary elsewhere.
        scaler = StandardScaler().fit(np.concatenate(values[1:] or values))
        solver = SklearnLogisticRegression(C=1 / (self.strength * weights.sum()), max_iter=300)
        solver.fit(
            scaler.transform(np.concatenate(values)),
            np.concatenate(targets),
            sample_weight=weights,
        )

        def predict(modalities: dict[str, Padded]) -> Tensor:
            clips = scaler.transform(mean_frames(modalities).numpy())
            scores = torch.full((len(clips), len(support.classes)), float("-inf"))
            logits = solver.predict_log_proba(clips)
            scores[:, solver.classes_] = torch.from_numpy(logits).to(scores.dtype)
            return scores.masked_fill(~support.classes, float("-inf"))

        return predict
