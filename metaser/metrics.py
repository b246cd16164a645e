"""Scores of predictions: arrays in, numbers out.

Every function takes the true values first and the predicted ones second, both of shape (n,). What
is undefined (no samples at all, correlation with a constant) is NaN, never 0 and never an error;
input that cannot be scored (unequal lengths, more than one axis) is a ``ValueError``. Scores are
fractions, not percentages.
"""

import numpy as np
from numpy.typing import ArrayLike

__all__ = ["accuracy", "ccc", "confusion", "macro_f1", "pcc", "rmse", "uar", "weighted_f1"]


def uar(true: ArrayLike, predicted: ArrayLike) -> float:
    """Unweighted average recall: the mean of the recalls of the classes that occur in `true`.

    Also called balanced accuracy. A class that is only ever predicted has no recall and does not
    enter the mean; it costs the classes whose samples it took.

    Parameters
    ----------
    true, predicted : array_like, shape (n,)
        Class labels: integers or strings.

    Returns
    -------
    float
        In [0, 1], larger is better; guessing evenly gives 1 / classes. NaN if n = 0.
    """
    true, predicted = _labels(true, predicted)
    hits, support, _ = _counts(true, predicted)
    occurs = support > 0
    return _mean(hits[occurs] / support[occurs])


def accuracy(true: ArrayLike, predicted: ArrayLike) -> float:
    """Fraction of samples whose predicted class is the true one.

    Parameters
    ----------
    true, predicted : array_like, shape (n,)
        Class labels: integers or strings.

    Returns
    -------
    float
        In [0, 1], larger is better. NaN if n = 0.
    """
    true, predicted = _labels(true, predicted)
    return _mean(true == predicted)


def macro_f1(true: ArrayLike, predicted: ArrayLike) -> float:
    """Mean of the F1 scores of the classes that occur in `true` or in `predicted`.

    The F1 score of a class is 2 TP / (2 TP + FP + FN), which is 0 for a class that is only
    predicted or never hit. This is scikit-learn's ``f1_score(average="macro")``.

    Parameters
    ----------
    true, predicted : array_like, shape (n,)
        Class labels: integers or strings.

    Returns
    -------
    float
        In [0, 1], larger is better. NaN if n = 0.
    """
    hits, support, claimed = _counts(*_labels(true, predicted))
    return _mean(2 * hits / (support + claimed))


def weighted_f1(true: ArrayLike, predicted: ArrayLike) -> float:
    """Mean of the F1 scores of the classes, weighted by how often each occurs in `true`.

    Parameters
    ----------
    true, predicted : array_like, shape (n,)
        Class labels: integers or strings.

    Returns
    -------
    float
        In [0, 1], larger is better. NaN if n = 0.
    """
    hits, support, claimed = _counts(*_labels(true, predicted))
    if not support.sum():
        return float("nan")
    return float(np.sum(support * 2 * hits / (support + claimed)) / support.sum())


def confusion(true: ArrayLike, predicted: ArrayLike, classes: ArrayLike) -> np.ndarray:
    """How often each true class was predicted as each class.

    Parameters
    ----------
    true, predicted : array_like, shape (n,)
        Class labels: integers or strings.
    classes : array_like, shape (c,)
        The distinct labels, in the order of the rows and columns.

    Returns
    -------
    numpy.ndarray of int, shape (c, c)
        Counts; row = true class, column = predicted class.

    Raises
    ------
    ValueError
        If a label occurs that is not among `classes`, or a class is named twice.
    """
    true, predicted = _labels(true, predicted)
    classes = np.asarray(classes)
    if classes.ndim != 1 or len(np.unique(classes)) != len(classes):
        raise ValueError(f"classes must be a flat list of distinct labels, got {classes.tolist()}")
    counts = np.zeros((len(classes), len(classes)), dtype=int)
    if not true.size:
        return counts
    strange = np.setdiff1d(np.concatenate([true, predicted]), classes)
    if strange.size:
        raise ValueError(
            f"labels {strange.tolist()} are not among the classes {classes.tolist()}; "
            "pass every class that can occur"
        )
    order = np.argsort(classes)
    rows = order[np.searchsorted(classes, true, sorter=order)]
    columns = order[np.searchsorted(classes, predicted, sorter=order)]
    np.add.at(counts, (rows, columns), 1)
    return counts


def ccc(true: ArrayLike, predicted: ArrayLike) -> float:
    """Concordance correlation coefficient [1]_ of ratings.

    2 cov / (var true + var predicted + (mean true - mean predicted)²), with population moments:
    correlation that is also penalised for a wrong mean and a wrong spread.

    Parameters
    ----------
    true, predicted : array_like, shape (n,)
        Ratings, in any but the same unit.

    Returns
    -------
    float
        In [-1, 1], larger is better. 0 if just one of the two is constant; NaN if n < 2, if both
        are the same constant, or if a rating is NaN.

    References
    ----------
    .. [1] Lin, "A concordance correlation coefficient to evaluate reproducibility", Biometrics
       1989.
    """
    true, predicted = _ratings(true, predicted)
    if true.size < 2 or (np.ptp(true) == np.ptp(predicted) == 0 and true[0] == predicted[0]):
        return float("nan")
    covariance = np.mean((true - true.mean()) * (predicted - predicted.mean()))
    gap = (true.mean() - predicted.mean()) ** 2
    return float(2 * covariance / (true.var() + predicted.var() + gap))


def pcc(true: ArrayLike, predicted: ArrayLike) -> float:
    """Pearson correlation coefficient of ratings.

    Parameters
    ----------
    true, predicted : array_like, shape (n,)
        Ratings; shift and scale do not matter.

    Returns
    -------
    float
        In [-1, 1], larger is better. NaN if n < 2, if either is constant, or if a rating is NaN.
    """
    true, predicted = _ratings(true, predicted)
    if true.size < 2 or np.ptp(true) == 0 or np.ptp(predicted) == 0:
        return float("nan")
    x, y = true - true.mean(), predicted - predicted.mean()
    value = np.sum(x * y) / (np.linalg.norm(x) * np.linalg.norm(y))
    return float(np.clip(value, -1, 1))


def rmse(true: ArrayLike, predicted: ArrayLike) -> float:
    """Root of the mean squared error of ratings.

    Parameters
    ----------
    true, predicted : array_like, shape (n,)
        Ratings, in any but the same unit.

    Returns
    -------
    float
        In [0, inf), in the unit of the ratings, smaller is better. NaN if n = 0 or a rating is NaN.
    """
    true, predicted = _ratings(true, predicted)
    return float(np.sqrt(_mean((true - predicted) ** 2)))


def _mean(values: np.ndarray) -> float:
    return float(np.mean(values)) if values.size else float("nan")


def _pair(true: np.ndarray, predicted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if true.ndim != 1 or true.shape != predicted.shape:
        hint = " (did you pass scores instead of classes?)" if predicted.ndim == 2 else ""
        raise ValueError(
            "expected two arrays of one axis and equal length, "
            f"got shapes {true.shape} and {predicted.shape}{hint}"
        )
    return true, predicted


def _labels(true: ArrayLike, predicted: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    true, predicted = _pair(np.asarray(true), np.asarray(predicted))
    for name, values in (("true", true), ("predicted", predicted)):
        if values.dtype.kind == "f" and values.size and not np.all(values == np.floor(values)):
            strange = values[values != np.floor(values)][0]
            raise ValueError(
                f"{name} holds {strange}, which is no class label "
                "(did you pass probabilities or ratings?)"
            )
    if true.size and (true.dtype.kind in "US") != (predicted.dtype.kind in "US"):
        raise ValueError(
            f"true holds {true.dtype} and predicted holds {predicted.dtype}: "
            "pass both as indices or both as names"
        )
    return true, predicted


def _ratings(true: ArrayLike, predicted: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    return _pair(np.asarray(true, dtype=float), np.asarray(predicted, dtype=float))


def _counts(true: np.ndarray, predicted: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per class that occurs at all: hits, occurrences in `true`, occurrences in `predicted`."""
    classes, index = np.unique(np.concatenate([true, predicted]), return_inverse=True)
    rows, columns = index[: true.size], index[true.size :]
    number = len(classes)
    return (
        np.bincount(rows[rows == columns], minlength=number),
        np.bincount(rows, minlength=number),
        np.bincount(columns, minlength=number),
    )
