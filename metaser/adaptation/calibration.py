"""Turn scores into probabilities, and measure how far these can be trusted."""

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

BINS = 15
"""Bins of confidence, of equal width, in which the calibration error is taken."""

COOLEST, HOTTEST = 0.05, 20.0
"""The lowest and the highest temperature that is tried."""


def probabilities(scores: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Return the probabilities of scores.

    Parameters
    ----------
    scores : ndarray
        (clips, classes) logits; -infinity gives a probability of 0.
    temperature : float
        Above 0. Scores are divided by it: above 1 the probabilities come closer to each other.

    Returns
    -------
    ndarray
        (clips, classes) in [0, 1]; each row sums to 1.
    """
    return softmax(np.asarray(scores, float) / temperature, axis=1)


def fit_temperature(
    scores: np.ndarray, targets: np.ndarray, weights: np.ndarray | None = None
) -> float:
    """Return the temperature that makes the true classes most likely.

    Parameters
    ----------
    scores : ndarray
        (clips, classes) logits; -infinity for classes that a clip's task does not have.
    targets : ndarray of int
        (clips,) true classes.
    weights : ndarray, optional
        (clips,) how much each clip counts.

    Returns
    -------
    float
        Between ``COOLEST`` and ``HOTTEST``.

    References
    ----------
    Guo, Pleiss, Sun, Weinberger, "On Calibration of Modern Neural Networks", ICML 2017.
    """
    scores = np.asarray(scores, float)
    rows = np.arange(len(targets))

    def loss(log_temperature: float) -> float:
        likelihood = log_softmax(scores / np.exp(log_temperature), axis=1)[rows, targets]
        return -np.average(likelihood, weights=weights)

    found = minimize_scalar(loss, bounds=np.log([COOLEST, HOTTEST]), method="bounded")
    return float(np.exp(found.x))


def ece(probability: np.ndarray, targets: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Return the expected calibration error: how far confidence and accuracy lie apart.

    Parameters
    ----------
    probability : ndarray
        (clips, classes) in [0, 1].
    targets : ndarray of int
        (clips,) true classes.
    weights : ndarray, optional
        (clips,) how much each clip counts.

    Returns
    -------
    float
        In [0, 1]; smaller is better. NaN without clips; too large where there are few.

    References
    ----------
    Naeini, Cooper, Hauskrecht, "Obtaining Well Calibrated Probabilities Using Bayesian Binning",
    AAAI 2015.
    """
    probability = np.asarray(probability, float)
    if not len(targets):
        return float("nan")
    weights = np.ones(len(targets)) if weights is None else np.asarray(weights, float)
    confidence = probability.max(axis=1)
    gap = weights * ((probability.argmax(axis=1) == targets) - confidence)
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    return float(np.abs(np.bincount(bins, gap)).sum() / weights.sum())
