"""Fuse the ratings that several models predict, by stages of support vector regression.

Late fusion learns, from the predictions of several models, one regression for each rating; it sees
the predictions of all ratings, so that what is known of arousal helps valence. Multistage fusion
[1]_ appends its output to its inputs and learns again. Early fusion needs nothing of this: it is
one model on joined features (front end ``joined``).

A regression fits what it was fitted on. The script published with [1]_ scores the very rows that
its regression was fitted on; here every prediction that a later stage learns from, and every one
that is scored, is of a clip whose group (a speaker, or a whole language) the model has not met:
``out_of_fold``.

References
----------
.. [1] Atmaja and Akagi, "Multitask Learning and Multistage Fusion for Dimensional Audiovisual
   Emotion Recognition", ICASSP 2020, arXiv:2002.11312.
"""

from collections.abc import Callable

import numpy as np
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVR

MOST_STAGES = 5
"""As in the paper."""

EPSILON = 0.02
"""Errors below this cost a regression nothing; ratings lie in [-1, 1]."""

Rows = np.ndarray
Fit = Callable[[Rows], Callable[[Rows], np.ndarray]]


def out_of_fold(fit: Fit, groups: np.ndarray, folds: int) -> np.ndarray:
    """Predict every row by a model that was fitted without the row's group.

    Parameters
    ----------
    fit : callable
        ``fit(rows)`` learns from the rows with these numbers and returns a function from numbers of
        rows to predictions (rows, ratings).
    groups : ndarray, shape (rows,)
        Rows of one group stay together, for example the clips of a speaker.
    folds : int
        Into how many parts the groups are divided; where there are fewer groups, one each.

    Returns
    -------
    ndarray, shape (rows, ratings)

    Raises
    ------
    ValueError
        If there is one group only, or folds are fewer than 2.
    """
    groups = np.asarray(groups)
    count = len(np.unique(groups))
    if count < 2 or folds < 2:
        raise ValueError(
            f"predicting out of fold needs at least 2 groups and 2 folds; there are {count} groups "
            f"in {len(groups)} rows, and {folds} folds are wanted"
        )
    splits = GroupKFold(min(folds, count)).split(groups, groups=groups)
    parts = [(test, fit(train)(test)) for train, test in splits]
    found = np.empty((len(groups), parts[0][1].shape[1]))
    for test, predicted in parts:
        found[test] = predicted
    return found


def fuse(
    predictions: np.ndarray,
    ratings: np.ndarray,
    groups: np.ndarray,
    stages: int = 1,
    strength: float = 0.1,
    folds: int = 5,
) -> Callable[[np.ndarray], np.ndarray]:
    """Learn to fuse predictions.

    Parameters
    ----------
    predictions : ndarray, shape (rows, models x ratings)
        What several models predict of clips that they have not learnt from (``out_of_fold``).
    ratings : ndarray, shape (rows, ratings)
        True ratings; NaN where a clip is not rated.
    groups : ndarray, shape (rows,)
        Rows of one group stay together when a stage predicts for the next one.
    stages : int
        1 is late fusion, 2 to 5 multistage fusion.
    strength : float
        C of the linear support vector regressions, above 0.
    folds : int
        See ``out_of_fold``.

    Returns
    -------
    callable
        From predictions (n, models x ratings) of other clips to ratings (n, ratings).

    Raises
    ------
    ValueError
        If stages are fewer than 1 or more than 5, or a rating is known of fewer than 2 rows.
    """
    if not 1 <= stages <= MOST_STAGES:
        raise ValueError(f"stages must be 1 (late fusion) to {MOST_STAGES}, not {stages}")
    inputs, fitted = predictions, []
    for stage in range(stages):
        fitted.append(_regression(inputs, ratings, strength))
        if stage + 1 < stages:
            inputs = np.hstack([inputs, _next_inputs(inputs, ratings, groups, strength, folds)])

    def fused(predictions: np.ndarray) -> np.ndarray:
        inputs = predictions
        for regression in fitted:
            output = regression(inputs)
            inputs = np.hstack([inputs, output])
        return output

    return fused


def _next_inputs(inputs, ratings, groups, strength: float, folds: int) -> np.ndarray:
    def fit(rows: Rows):
        regression = _regression(inputs[rows], ratings[rows], strength)
        return lambda others: regression(inputs[others])

    return out_of_fold(fit, groups, folds)


def _regression(inputs: np.ndarray, ratings: np.ndarray, strength: float):
    """One linear support vector regression a rating, on all inputs."""
    models = []
    for column in ratings.T:
        rated = ~np.isnan(column)
        if rated.sum() < 2:
            raise ValueError(
                f"fusing needs at least 2 rated clips of each rating; one has {rated.sum()} of "
                f"{len(column)}"
            )
        # The squared loss is solved exactly in a few steps; the absolute one, as in the paper's
        # script, does not converge on inputs that are as alike as stages of the same prediction.
        svr = LinearSVR(C=strength, epsilon=EPSILON, loss="squared_epsilon_insensitive", dual=False)
        models.append(make_pipeline(StandardScaler(), svr).fit(inputs[rated], column[rated]))
    return lambda inputs: np.stack([model.predict(inputs) for model in models], axis=1)
