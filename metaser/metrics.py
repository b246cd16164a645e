"""Scores of predictions: arrays in, numbers out.

Every function takes the true values first and the predicted ones second, both of shape (n,). A
score that is undefined (no samples at all, correlation with a constant) is NaN, never 0 and never
an error. Input that cannot be scored (unequal lengths, more than one axis) raises ``ValueError``.
Scores are fractions, not percentages.

Examples
--------
>>> true = ["angry", "angry", "sad", "sad", "sad", "sad"]
>>> predicted = ["angry", "sad", "sad", "sad", "sad", "sad"]

A model that always says "sad" would be right in 4 of 6 cases. Accuracy likes that; unweighted
average recall, the main score of MetaSER, does not:

>>> round(accuracy(true, ["sad"] * 6), 3)
0.667
>>> uar(true, ["sad"] * 6)
0.5
>>> uar(true, predicted)
0.75
"""

import numpy as np
from numpy.typing import ArrayLike

__all__ = ["accuracy", "ccc", "confusion", "macro_f1", "pcc", "rmse", "uar", "weighted_f1"]


def uar(true: ArrayLike, predicted: ArrayLike) -> float:
    """Return the unweighted average recall: the mean recall of the classes that occur in `true`.

    Also called balanced accuracy. The recall of a class is the share of its samples that are
    predicted as this class. A class that is only predicted has no recall and does not enter the
    mean, but the classes whose samples it took have a lower recall.

    Parameters
    ----------
    true, predicted : array_like, shape (n,)
        Class labels: integers or strings.

    Returns
    -------
    float
        In [0, 1], larger is better; guessing evenly gives 1 / classes. NaN if n = 0.

    Examples
    --------
    One of two angry clips and all three sad clips are recognised: (1/2 + 3/3) / 2.

    >>> uar(["angry", "angry", "sad", "sad", "sad"], ["angry", "sad", "sad", "sad", "sad"])
    0.75
    >>> uar([0, 1, 1], [2, 1, 1])  # class 2 is only predicted: the mean is over 0 and 1
    0.5
    >>> uar([], [])
    nan
    """
    hits, support, _ = _counts(*_labels(true, predicted))
    occurs = support > 0
    return _mean(hits[occurs] / support[occurs])


def accuracy(true: ArrayLike, predicted: ArrayLike) -> float:
    """Return the fraction of samples whose predicted class is the true one.

    Parameters
    ----------
    true, predicted : array_like, shape (n,)
        Class labels: integers or strings.

    Returns
    -------
    float
        In [0, 1], larger is better. NaN if n = 0.

    Examples
    --------
    >>> accuracy(["sad", "sad", "angry", "happy"], ["sad", "sad", "angry", "neutral"])
    0.75
    """
    labels, guesses = _labels(true, predicted)
    return _mean(labels == guesses)


def soft_uar(targets: ArrayLike, probabilities: ArrayLike) -> float:
    """Return the probability that the true class got, averaged per class; in [0, 1].

    It is the UAR to expect if labels are drawn from the probabilities.

    Parameters
    ----------
    targets : array_like of int
        (clips,) true class of each clip.
    probabilities : array_like
        (clips, classes) probability of each class.

    Examples
    --------
    >>> soft_uar([0, 0, 1], [[1.0, 0.0], [0.5, 0.5], [0.4, 0.6]])
    0.675
    """
    targets = np.asarray(targets)
    true = np.asarray(probabilities)[np.arange(len(targets)), targets]
    return float(np.mean([true[targets == label].mean() for label in np.unique(targets)]))


def macro_f1(true: ArrayLike, predicted: ArrayLike) -> float:
    """Return the mean F1 score of the classes that occur in `true` or in `predicted`.

    The F1 score of a class is 2 TP / (2 TP + FP + FN), where TP, FP and FN count its true
    positives, false positives and false negatives. It is 0 for a class that is only predicted or
    never recognised. The mean is that of scikit-learn's ``f1_score(average="macro")``.

    Parameters
    ----------
    true, predicted : array_like, shape (n,)
        Class labels: integers or strings.

    Returns
    -------
    float
        In [0, 1], larger is better. NaN if n = 0.

    Examples
    --------
    Class 0 has an F1 score of 2 / (2 + 1) = 2/3, class 1 of 4 / (4 + 1) = 4/5.

    >>> round(macro_f1([0, 0, 1, 1], [0, 1, 1, 1]), 3)
    0.733
    """
    hits, support, claimed = _counts(*_labels(true, predicted))
    return _mean(2 * hits / (support + claimed))


def weighted_f1(true: ArrayLike, predicted: ArrayLike) -> float:
    """Return the mean F1 score of the classes, weighted by how often each occurs in `true`.

    The F1 score of a class is that of `macro_f1`.

    Parameters
    ----------
    true, predicted : array_like, shape (n,)
        Class labels: integers or strings.

    Returns
    -------
    float
        In [0, 1], larger is better. NaN if n = 0.

    Examples
    --------
    The F1 scores are 2/3 for class 0, which occurs twice, and 6/7 for class 1, which occurs three
    times.

    >>> round(weighted_f1([0, 0, 1, 1, 1], [0, 1, 1, 1, 1]), 3)
    0.781
    >>> round(macro_f1([0, 0, 1, 1, 1], [0, 1, 1, 1, 1]), 3)
    0.762
    """
    hits, support, claimed = _counts(*_labels(true, predicted))
    if not support.sum():
        return float("nan")
    return float(np.sum(support * 2 * hits / (support + claimed)) / support.sum())


def confusion(true: ArrayLike, predicted: ArrayLike, classes: ArrayLike) -> np.ndarray:
    """Count how often each true class was predicted as each class.

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

    Examples
    --------
    One of two sad clips is taken for neutral: row "sad", column "neutral".

    >>> true, predicted = ["sad", "sad", "neutral"], ["neutral", "sad", "neutral"]
    >>> confusion(true, predicted, classes=["neutral", "sad"]).tolist()
    [[1, 0], [1, 1]]
    """
    labels, guesses = _labels(true, predicted)
    names = np.asarray(classes)
    if names.ndim != 1 or len(np.unique(names)) != len(names):
        raise ValueError(
            f"classes must be a flat list of distinct labels, not {names.tolist()}: "
            "name every class once"
        )
    counts = np.zeros((len(names), len(names)), dtype=int)
    if not labels.size:
        return counts
    unknown = np.setdiff1d(np.concatenate([labels, guesses]), names)
    if unknown.size:
        raise ValueError(
            f"every label must be one of the classes {names.tolist()}, not {unknown.tolist()}: "
            "pass every class that can occur"
        )
    order = np.argsort(names)
    rows = order[np.searchsorted(names, labels, sorter=order)]
    columns = order[np.searchsorted(names, guesses, sorter=order)]
    np.add.at(counts, (rows, columns), 1)
    return counts


def ccc(true: ArrayLike, predicted: ArrayLike) -> float:
    """Return the concordance correlation coefficient [1]_ of ratings.

    2 cov / (var true + var predicted + (mean true - mean predicted)²), with population moments. It
    is the correlation, lowered where the predictions have a wrong mean or a wrong spread.

    Parameters
    ----------
    true, predicted : array_like, shape (n,)
        Ratings, both in the same unit.

    Returns
    -------
    float
        In [-1, 1], larger is better. 0 if only one of the two is constant; NaN if n < 2, if both
        are the same constant, or if a rating is NaN.

    References
    ----------
    .. [1] Lin, "A concordance correlation coefficient to evaluate reproducibility", Biometrics
       1989.

    Examples
    --------
    Predictions that are all too high by 1 correlate perfectly, but do not agree.

    >>> round(ccc([1, 2, 3], [2, 3, 4]), 3)
    0.571
    >>> round(pcc([1, 2, 3], [2, 3, 4]), 3)
    1.0
    >>> ccc([1, 2, 3], [2, 2, 2])
    0.0
    """
    x, y = _ratings(true, predicted)
    if x.size < 2 or (np.ptp(x) == np.ptp(y) == 0 and x[0] == y[0]):
        return float("nan")
    covariance = np.mean((x - x.mean()) * (y - y.mean()))
    gap = (x.mean() - y.mean()) ** 2
    return float(2 * covariance / (x.var() + y.var() + gap))


def pcc(true: ArrayLike, predicted: ArrayLike) -> float:
    """Return the Pearson correlation coefficient of ratings.

    Parameters
    ----------
    true, predicted : array_like, shape (n,)
        Ratings; shift and scale do not matter.

    Returns
    -------
    float
        In [-1, 1], larger is better. NaN if n < 2, if either is constant, or if a rating is NaN.

    Examples
    --------
    >>> round(pcc([1, 2, 3], [10, 20, 30]), 3)
    1.0
    >>> round(pcc([1, 2, 3], [3, 2, 1]), 3)
    -1.0
    >>> pcc([1, 2, 3], [2, 2, 2])
    nan
    """
    ratings, estimates = _ratings(true, predicted)
    if ratings.size < 2 or np.ptp(ratings) == 0 or np.ptp(estimates) == 0:
        return float("nan")
    x, y = ratings - ratings.mean(), estimates - estimates.mean()
    value = np.sum(x * y) / (np.linalg.norm(x) * np.linalg.norm(y))
    return float(np.clip(value, -1, 1))


def rmse(true: ArrayLike, predicted: ArrayLike) -> float:
    """Return the root of the mean squared error of ratings.

    Parameters
    ----------
    true, predicted : array_like, shape (n,)
        Ratings, both in the same unit.

    Returns
    -------
    float
        In [0, inf), in the unit of the ratings, smaller is better. NaN if n = 0 or a rating is NaN.

    Examples
    --------
    >>> rmse([1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 2.0])
    1.0
    """
    ratings, estimates = _ratings(true, predicted)
    return float(np.sqrt(_mean((ratings - estimates) ** 2)))


def _mean(values: np.ndarray) -> float:
    """Mean of the values; NaN if there are none."""
    return float(np.mean(values)) if values.size else float("nan")


def _check_shapes(true: np.ndarray, predicted: np.ndarray) -> None:
    """Refuse arrays that do not hold one value per sample."""
    if true.ndim != 1 or true.shape != predicted.shape:
        hint = " (did you pass scores instead of classes?)" if predicted.ndim == 2 else ""
        raise ValueError(
            "true and predicted must have one axis and equal length, "
            f"not shapes {true.shape} and {predicted.shape}: pass one value per sample{hint}"
        )


def _labels(true: ArrayLike, predicted: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Class labels as checked arrays."""
    labels, guesses = np.asarray(true), np.asarray(predicted)
    _check_shapes(labels, guesses)
    for name, values in (("true", labels), ("predicted", guesses)):
        if values.dtype.kind == "f" and values.size and not np.all(values == np.floor(values)):
            fraction = values[values != np.floor(values)][0]
            raise ValueError(
                f"{name} must hold class labels, not {fraction}: pass whole numbers or names "
                "(did you pass probabilities or ratings?)"
            )
    if labels.size and (labels.dtype.kind in "US") != (guesses.dtype.kind in "US"):
        raise ValueError(
            "true and predicted must hold labels of the same kind, not "
            f"{labels.dtype} and {guesses.dtype}: pass both as indices or both as names"
        )
    return labels, guesses


def _ratings(true: ArrayLike, predicted: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Ratings as checked arrays of floats."""
    ratings, estimates = np.asarray(true, dtype=float), np.asarray(predicted, dtype=float)
    _check_shapes(ratings, estimates)
    return ratings, estimates


def _counts(true: np.ndarray, predicted: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per class that occurs at all: hits, occurrences in `true`, occurrences in `predicted`."""
    classes, index = np.unique(np.concatenate([true, predicted]), return_inverse=True)
    rows, columns = index[: true.size], index[true.size :]
    class_count = len(classes)
    return (
        np.bincount(rows[rows == columns], minlength=class_count),
        np.bincount(rows, minlength=class_count),
        np.bincount(columns, minlength=class_count),
    )
