"""Score a model on labelled clips that it has not heard, with intervals that know of speakers."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from metaser import metrics
from metaser.adaptation.calibration import ece, probabilities
from metaser.adaptation.model_file import ModelFile
from metaser.features.table import Features

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
        UAR on those speakers of whom the model has heard no clip; None where there are none, or
        the model is not adapted to clips of this task.
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
        Adapted, or as `metaser train` made it; that one is normalised by the clips scored. A model
        that knows voices looks at all clips scored of each speaker, without their labels.
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
    speakers = table["speaker"].to_numpy(str)[rows]
    found = file.fitted_to(features, rows).scores(features, rows, speakers)
    units = table["unit"].to_numpy()
    met = np.isin(units, units[learnt])[rows]
    table, units = table.iloc[rows], units[rows]
    targets = np.array([file.header.classes.index(name) for name in table["emotion"]])
    guessed = found.argmax(axis=1)
    names = np.arange(len(file.header.classes))
    new = None
    if learnt.any() and not met.all():
        new = score("uar", targets[~met], guessed[~met], units[~met], seed)
    chosen = [file.header.classes.index(name) for name in classes]
    return Evaluation(
        uar=score("uar", targets, guessed, units, seed),
        macro_f1=score("macro_f1", targets, guessed, units, seed),
        new_speakers=new,
        ece=ece(probabilities(found, file.temperature), targets),
        confusion=metrics.confusion(targets, guessed, names)[np.ix_(chosen, chosen)],
        classes=tuple(classes),
        groups=_groups(table, targets, guessed),
        left_out=int((known & learnt).sum()),
        other_classes=int((~known).sum()),
    )


def score(
    metric: str, targets: np.ndarray, guessed: np.ndarray, units: np.ndarray, seed: int = 0
) -> Score:
    """A score with its interval by the bootstrap over speakers.

    Speakers are drawn anew with all their clips, for clips of one speaker are alike. With one
    speaker, clips are drawn anew, and the interval says nothing about other speakers.

    Parameters
    ----------
    metric : {"uar", "macro_f1"}
        What is scored.
    targets, guessed : ndarray of int
        (clips,) true and predicted classes.
    units : ndarray
        (clips,) who speaks.
    seed : int
        Of the draws.
    """
    people = len(np.unique(units))
    groups = np.unique(units, return_inverse=True)[1] if people > 1 else np.arange(len(units))
    size, classes = groups.max() + 1, max(targets.max(), guessed.max()) + 1
    counts = np.zeros((size, classes, classes))
    np.add.at(counts, (groups, targets, guessed), 1)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(size, np.full(size, 1 / size), size=RESAMPLES)
    values = _from_confusion(metric, np.tensordot(drawn, counts, axes=1))
    low, high = np.nanquantile(values, [0.025, 0.975])
    value = getattr(metrics, metric)(targets, guessed)
    return Score(value, float(low), float(high), len(targets), people)


def _from_confusion(metric: str, counts: np.ndarray) -> np.ndarray:
    """UAR or macro-F1 of confusion matrices (..., classes, classes), for all of them at once."""
    hits = np.diagonal(counts, axis1=-2, axis2=-1)
    true, claimed = counts.sum(axis=-1), counts.sum(axis=-2)
    shares = {"uar": (hits, true), "macro_f1": (2 * hits, true + claimed)}
    above, below = shares[metric]
    return np.nanmean(
        np.divide(above, below, where=below > 0, out=np.full(above.shape, np.nan)), axis=-1
    )


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
