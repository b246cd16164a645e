"""Fuse the ratings that several models predict, by stages of support vector regression.

Late fusion learns one regression per rating from the predictions of several models. Each regression
sees the predictions of all ratings, so what is known of arousal helps valence. Multistage fusion
[1]_ appends the output to the inputs and learns again. Early fusion needs nothing of this: it is
one model on joined features (front end ``joined``).

A regression looks good on the rows that it was fitted on. The script published with [1]_ scores
just these rows. Here, whatever is scored, and whatever a later stage learns from, is a prediction
for a clip whose group (a speaker, or a whole language) the model has not learnt from. See
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
"""Stages of a fusion at most, as in the paper."""

EPSILON = 0.02
"""Errors below this cost a regression nothing; ratings lie in [-1, 1]."""

Rows = np.ndarray
"""Numbers of clips, (n,) int."""

Predict = Callable[[np.ndarray], np.ndarray]
"""From n clips (their numbers, or what describes them) to their ratings (n, ratings)."""

Fit = Callable[[Rows], Predict]
"""Learns from some rows and returns what predicts other rows."""


def out_of_fold(fit: Fit, groups: np.ndarray, folds: int) -> np.ndarray:
    """Predict every row by a model that has not learnt from the row's group.

    Parameters
    ----------
    fit : callable
        ``fit(rows)`` learns from the rows with these numbers. It returns a function from numbers of
        rows (n,) to predictions (n, ratings).
    groups : ndarray, shape (rows,)
        Rows of one group stay together, for example the clips of a speaker.
    folds : int
        Number of parts into which the groups are divided. If there are fewer groups, each is a
        part of its own.

    Returns
    -------
    ndarray, shape (rows, ratings)
        Predictions in the order of the rows.

    Raises
    ------
    ValueError
        If there is only one group, or ``folds`` is below 2.
    """
    groups = np.asarray(groups)
    count = len(np.unique(groups))
    if count < 2 or folds < 2:
        raise ValueError(
            "predicting out of fold must have at least 2 groups and 2 folds, not "
            f"{count} groups in {len(groups)} rows and {folds} folds: add speakers or languages, "
            "or raise folds"
        )
    splits = GroupKFold(min(folds, count)).split(groups, groups=groups)
    parts = [(test, fit(train)(test)) for train, test in splits]
    predictions = np.empty((len(groups), parts[0][1].shape[1]))
    for test, predicted in parts:
        predictions[test] = predicted
    return predictions


def fuse(
    predictions: np.ndarray,
    ratings: np.ndarray,
    groups: np.ndarray,
    stages: int = 1,
    strength: float = 0.1,
    folds: int = 5,
) -> Predict:
    """Learn to fuse the predictions of several models.

    Parameters
    ----------
    predictions : ndarray, shape (rows, models x ratings)
        Predictions for clips that the models have not learnt from (see ``out_of_fold``).
    ratings : ndarray, shape (rows, ratings)
        True ratings; NaN where a clip is not rated.
    groups : ndarray, shape (rows,)
        Rows of one group stay together when a stage predicts for the next one.
    stages : int
        1 for late fusion, 2 to 5 for multistage fusion.
    strength : float
        C of the linear support vector regressions, above 0: the larger, the closer the fit.
    folds : int
        Parts into which the groups are divided, see ``out_of_fold``.

    Returns
    -------
    callable
        From predictions (n, models x ratings) of other clips to ratings (n, ratings).

    Raises
    ------
    ValueError
        If ``stages`` is below 1 or above 5, or fewer than 2 clips have one of the ratings.
    """
    if not 1 <= stages <= MOST_STAGES:
        raise ValueError(
            f"stages must be 1 (late fusion) to {MOST_STAGES}, not {stages}: choose one of these"
        )
    inputs, regressions = predictions, []
    for stage in range(stages):
        regressions.append(_regression(inputs, ratings, strength))
        if stage + 1 < stages:
            output = _unlearnt_output(inputs, ratings, groups, strength, folds)
            inputs = np.hstack([inputs, output])

    def fused(others: np.ndarray) -> np.ndarray:
        inputs = others
        for regression in regressions:
            output = regression(inputs)
            inputs = np.hstack([inputs, output])
        return output

    return fused


def _unlearnt_output(
    inputs: np.ndarray, ratings: np.ndarray, groups: np.ndarray, strength: float, folds: int
) -> np.ndarray:
    """Return a stage's output for every row, from regressions fitted without the row's group."""

    def fit(rows: Rows) -> Predict:
        regression = _regression(inputs[rows], ratings[rows], strength)
        return lambda others: regression(inputs[others])

    return out_of_fold(fit, groups, folds)


def _regression(inputs: np.ndarray, ratings: np.ndarray, strength: float) -> Predict:
    """Fit one linear support vector regression per rating, on all inputs (rows, channels)."""
    models = []
    for column in ratings.T:
        rated = ~np.isnan(column)
        if rated.sum() < 2:
            raise ValueError(
                "to fuse, at least 2 clips must have each of the ratings, but one rating is known "
                f"of {rated.sum()} of {len(column)} clips: add rated clips, or leave the rating out"
            )
        # The squared loss is solved exactly in a few steps. The absolute one of the paper's script
        # does not converge here: stages of the same prediction are too much alike.
        svr = LinearSVR(C=strength, epsilon=EPSILON, loss="squared_epsilon_insensitive", dual=False)
        models.append(make_pipeline(StandardScaler(), svr).fit(inputs[rated], column[rated]))
    return lambda others: np.stack([model.predict(others) for model in models], axis=1)
