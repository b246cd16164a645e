"""Baselines without a network: chance, majority, and logistic regression on the mean frame."""

import zlib

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression as SklearnLogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from metaser.batch import Batch, Padded
from metaser.methods.inner_loop import Predictor, check_support


class Constant:
    """Guess without listening.

    Parameters
    ----------
    guess : {"chance", "majority"}
        Draw every clip's class at random, or always say the support set's most frequent class
        (the first of them where several tie).
    seed : int
        Chooses the random guesses, together with the support set.
    """

    def __init__(self, guess: str = "chance", seed: int = 0) -> None:
        if guess not in ("chance", "majority"):
            raise ValueError(f"guess must be 'chance' or 'majority', not {guess!r}")
        self.guess = guess
        self.seed = seed

    def adapt(self, support: Batch) -> Predictor:
        """Return the guesser for the support set's classes."""
        check_support(support)
        counts = torch.bincount(support.targets, minlength=len(support.classes))
        heard = zlib.crc32(mean_frames(support.modalities).tobytes())
        rng = np.random.default_rng([self.seed, heard])

        def predict(modalities: dict[str, Padded]) -> Tensor:
            clips = len(next(iter(modalities.values())))
            if self.guess == "majority":
                scores = counts.to(torch.float32).expand(clips, -1)
            else:
                scores = torch.from_numpy(rng.random((clips, len(counts))))
            return scores.masked_fill(~support.classes, float("-inf"))

        return predict


class LogisticRegression:
    """Multinomial logistic regression on the mean frame of each clip.

    Parameters
    ----------
    strength : float
        Weight of the L2 penalty on the coefficients of standardised features, above 0; as many
        times heavier than the mean loss of a clip.
    use_sources : bool
        Fit on the source corpora and the support set together, each with half of the weight,
        instead of on the support set alone.
    """

    def __init__(self, strength: float = 0.1, use_sources: bool = False) -> None:
        self.strength = strength
        self.use_sources = use_sources
        self.sources: list[Batch] = []

    def fit(self, sources: list[Batch]) -> None:
        """Keep the labelled clips of the source tasks; every task gets the same weight."""
        self.sources = sources if self.use_sources else []

    def adapt(self, support: Batch) -> Predictor:
        """Fit to labelled clips of a language."""
        check_support(support)
        values = [mean_frames(batch.modalities) for batch in [support, *self.sources]]
        targets = [batch.targets.numpy() for batch in [support, *self.sources]]
        share = len(self.sources) or 1
        shares = [
            np.full(len(t), len(support) / len(t) / (1 if i == 0 else share))
            for i, t in enumerate(targets)
        ]
        # A channel that never varies keeps its unit: it may vary in the new language.
        scaler = StandardScaler().fit(np.concatenate(values[1:] or values))
        weights = np.concatenate(shares)
        solver = SklearnLogisticRegression(C=1 / (self.strength * weights.sum()), max_iter=300)
        solver.fit(
            scaler.transform(np.concatenate(values)),
            np.concatenate(targets),
            sample_weight=weights,
        )

        def predict(modalities: dict[str, Padded]) -> Tensor:
            clips = scaler.transform(mean_frames(modalities))
            scores = torch.full((len(clips), len(support.classes)), float("-inf"))
            logits = solver.predict_log_proba(clips)
            scores[:, solver.classes_] = torch.from_numpy(logits).to(scores.dtype)
            return scores.masked_fill(~support.classes, float("-inf"))

        return predict


def mean_frames(modalities: dict[str, Padded]) -> np.ndarray:
    """The mean frame of each clip (clips, channels), modalities side by side."""
    return np.concatenate([padded.mean().numpy() for padded in modalities.values()], axis=1)
