"""Score a model on labelled clips that it has not heard, with intervals that know of speakers."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from metaser import metrics
from metaser.adaptation import scores
from metaser.calibration import ece, probabilities
from metaser.features import Features
from metaser.model_file import ModelFile

RESAMPLES = 2000


@dataclass(frozen=True)
class Score:
    """A value with its 95 % interval over speakers (or clips, where there is one speaker)."""

    value: float
    low: float
    high: float
    clips: int
    speakers: int


@dataclass(frozen=True)
class Evaluation:
    """How well a model does on clips of a task.

    Attributes
    ----------
    uar, macro_f1 : Score
        In [0, 1].
    new_speakers : Score or None
        UAR on those speakers of whom the model has heard no clip; None where that is not all
        or none of them.
    ece : float
        Expected calibration error.
    confusion : ndarray
        (classes, classes) counts; row = true class.
    classes : tuple of str
        Their order.
    groups : DataFrame
        ``group`` ("gender" or "speaker"), ``name``, ``clips``, ``classes``, ``uar``.
    left_out : int
        Clips that the model was adapted to.
    other_classes : int
        Clips of classes that it does not know.
    """

    uar: Score
    macro_f1: Score
    new_speakers: Score | None
    ece: float
    confusion: np.ndarray
    classes: tuple[str, ...]
    groups: pd.DataFrame
    left_out: int
    other_classes: int


def evaluate(file: ModelFile, table: pd.DataFrame, features: Features, seed: int = 0) -> Evaluation:
    """Score a model on a task's clips.

    Parameters
    ----------
    file : ModelFile
        Adapted, or as `metaser train` made it; that one is normalised by the clips scored.
    table : DataFrame
        Of the task: ``emotion``, ``speaker``, ``unit`` and perhaps ``gender``, a row a clip.
    features : Features
        Of the same clips, not normalised.
    seed : int
        Of the bootstrap.

    Raises
    ------
    ValueError
        If no clip is left to score.
    """
    classes = [n for n, has in zip(file.header.classes, file.predictor.classes.tolist()) if has]
    adaptation = file.header.adaptation
    contents = set() if adaptation is None else set(adaptation.contents)
    known = table["emotion"].isin(classes).to_numpy()
    learnt = np.isin(features.hashes, list(contents))
    rows = np.flatnonzero(known & ~learnt)
    if not len(rows):
        raise ValueError(
            f"no clip is left to score: {int((known & learnt).sum())} of {len(table)} were adapted "
            f"to, {int((~known).sum())} are of other classes than {', '.join(classes)}"
        )
    own = file.support_constants(features, rows) if file.own is None else file.own
    found = scores(file.predictor, own, features, rows)
    units = table["unit"].to_numpy()
    met = np.isin(units, units[learnt])[rows]
    table, units = table.iloc[rows], units[rows]
    targets = np.array([file.header.classes.index(name) for name in table["emotion"]])
    guessed = found.argmax(axis=1)
    names = np.arange(len(file.header.classes))
    new = None
    if met.any() and not met.all():
        new = score(metrics.uar, targets[~met], guessed[~met], units[~met], seed)
    chosen = [file.header.classes.index(name) for name in classes]
    return Evaluation(
        uar=score(metrics.uar, targets, guessed, units, seed),
        macro_f1=score(metrics.macro_f1, targets, guessed, units, seed),
        new_speakers=new,
        ece=ece(probabilities(found, file.temperature), targets),
        confusion=metrics.confusion(targets, guessed, names)[np.ix_(chosen, chosen)],
        classes=tuple(classes),
        groups=_groups(table, targets, guessed),
        left_out=int((known & learnt).sum()),
        other_classes=int((~known).sum()),
    )


def score(
    metric: Callable[[np.ndarray, np.ndarray], float],
    targets: np.ndarray,
    guessed: np.ndarray,
    units: np.ndarray,
    seed: int = 0,
) -> Score:
    """A score with its interval by the bootstrap over speakers.

    Speakers are drawn anew with all their clips, for clips of one speaker are alike. With one
    speaker, clips are drawn anew, and the interval says nothing about other speakers.

    Parameters
    ----------
    metric : callable
        From true and predicted classes to a number.
    targets, guessed : ndarray of int
        (clips,)
    units : ndarray
        (clips,) who speaks.
    """
    people = np.unique(units)
    groups = units if len(people) > 1 else np.arange(len(units))
    rows = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(RESAMPLES):
        drawn = np.concatenate([rows[i] for i in rng.integers(len(rows), size=len(rows))])
        values.append(metric(targets[drawn], guessed[drawn]))
    low, high = np.quantile(values, [0.025, 0.975])
    value = metric(targets, guessed)
    return Score(value, float(low), float(high), len(targets), len(people))


def _groups(table: pd.DataFrame, targets: np.ndarray, guessed: np.ndarray) -> pd.DataFrame:
    """UAR of each gender, where known, and of each speaker."""
    found = []
    for column in ("gender", "speaker"):
        if column not in table:
            continue
        own = table[column].replace("", np.nan).to_numpy()
        for name in sorted(set(own[pd.notna(own)])):
            rows = own == name
            found.append(
                {
                    "group": column,
                    "name": name,
                    "clips": int(rows.sum()),
                    "classes": len(np.unique(targets[rows])),
                    "uar": metrics.uar(targets[rows], guessed[rows]),
                }
            )
    return pd.DataFrame(found)
