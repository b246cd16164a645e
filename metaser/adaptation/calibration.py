"""Make a score a probability, and say how far a probability can be trusted."""

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

BINS = 15
"""Bins of confidence, of equal width, in which the calibration error is taken."""

COOLEST, HOTTEST = 0.05, 20.0
"""Range in which temperatures are looked for."""


def probabilities(scores: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Probabilities (clips, classes) of scores (clips, classes); a score of -infinity gives 0.

    Parameters
    ----------
    scores : ndarray
        Logits.
    temperature : float
        Above 0; above 1 the probabilities are drawn towards each other.
    """
    return softmax(np.asarray(scores, float) / temperature, axis=1)


def fit_temperature(
    scores: np.ndarray, targets: np.ndarray, weights: np.ndarray | None = None
) -> float:
    """The temperature of the largest likelihood.

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
    """Expected calibration error: how far confidence and accuracy lie apart.

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
        In [0, 1], smaller is better; NaN without clips. Few clips make it too large.

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
    place = np.minimum((confidence * BINS).astype(int), BINS - 1)
    return float(np.abs(np.bincount(place, gap)).sum() / weights.sum())
