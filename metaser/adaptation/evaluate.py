"""Score a model on labelled clips that it has not heard, with intervals over speakers."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from metaser import metrics
from metaser.adaptation.calibration import ece, probabilities
from metaser.adaptation.model_file import ModelFile
from metaser.features.table import Features

RESAMPLES = 2000
"""Bootstrap draws behind an interval."""


@dataclass(frozen=True)
class Score:
    """A score with its 95 % interval.

    Attributes
    ----------
    value : float
        In [0, 1].
    low, high : float
        The ends of the interval over speakers, or over clips where there is one speaker only.
    clips, speakers : int
        How many were scored.
    """

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
        UAR on the speakers of whom the model has heard no clip. None where there are none, or
        where the model is not adapted to clips of this task.
    ece : float
        Expected calibration error, in [0, 1].
    confusion : ndarray of int
        (classes, classes) counts of clips: true classes in rows, predicted ones in columns.
    classes : tuple of str
        The classes, in the order of ``confusion``.
    groups : DataFrame
        One row per gender and per speaker: ``group`` ("gender" or "speaker"), ``name``, ``clips``,
        ``classes`` (how many), ``uar``.
    left_out : int
        Clips that were not scored because the model was adapted to them.
    other_classes : int
        Clips that were not scored because the model does not know their class.
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
        The task's table, one row per clip: ``emotion``, ``speaker``, ``unit`` and perhaps
        ``gender``.
    features : Features
        Features of the same clips, not normalised.
    seed : int
        Seed of the bootstrap.

    Raises
    ------
    ValueError
        If no clip is left to score.
    """
    present = file.predictor.classes.tolist()
    classes = [name for name, has in zip(file.header.classes, present) if has]
    adaptation = file.header.adaptation
    contents = set() if adaptation is None else set(adaptation.contents)
    known = table["emotion"].isin(classes).to_numpy()
    learnt = np.isin(features.hashes, list(contents))
    rows = np.flatnonzero(known & ~learnt)
    if not len(rows):
        raise ValueError(
            f"at least one clip must be left to score, but {int((known & learnt).sum())} of the "
            f"{len(table)} clips were adapted to and {int((~known).sum())} are of other classes "
            f"than {', '.join(classes)}: choose another task"
        )
    speakers = table["speaker"].to_numpy(str)[rows]
    logits = file.fitted_to(features, rows).scores(features, rows, speakers)
    units = table["unit"].to_numpy()
    heard = np.isin(units, units[learnt])[rows]
    table, units = table.iloc[rows], units[rows]
    targets = np.array([file.header.classes.index(name) for name in table["emotion"]])
    guessed = logits.argmax(axis=1)
    names = np.arange(len(file.header.classes))
    new_speakers = None
    if learnt.any() and not heard.all():
        new_speakers = score("uar", targets[~heard], guessed[~heard], units[~heard], seed)
    chosen = [file.header.classes.index(name) for name in classes]
    return Evaluation(
        uar=score("uar", targets, guessed, units, seed),
        macro_f1=score("macro_f1", targets, guessed, units, seed),
        new_speakers=new_speakers,
        ece=ece(probabilities(logits, file.temperature), targets),
        confusion=metrics.confusion(targets, guessed, names)[np.ix_(chosen, chosen)],
        classes=tuple(classes),
        groups=_groups(table, targets, guessed),
        left_out=int((known & learnt).sum()),
        other_classes=int((~known).sum()),
    )


def score(
    metric: str, targets: np.ndarray, guessed: np.ndarray, units: np.ndarray, seed: int = 0
) -> Score:
    """Return a score with its interval by the bootstrap over speakers.

    Clips of one speaker are alike, so speakers are drawn again, each with all their clips. Where
    there is one speaker only, clips are drawn again, and the interval says nothing about other
    speakers.

    Parameters
    ----------
    metric : {"uar", "macro_f1"}
        What is scored.
    targets, guessed : ndarray of int
        (clips,) true and predicted classes.
    units : ndarray
        (clips,) who speaks.
    seed : int
        Seed of the draws.
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
    """Return the UAR or macro-F1 (...) of confusion matrices (..., classes, classes)."""
    hits = np.diagonal(counts, axis1=-2, axis2=-1)
    true, predicted = counts.sum(axis=-1), counts.sum(axis=-2)
    shares = {"uar": (hits, true), "macro_f1": (2 * hits, true + predicted)}
    above, below = shares[metric]
    return np.nanmean(
        np.divide(above, below, where=below > 0, out=np.full(above.shape, np.nan)), axis=-1
    )


def _groups(table: pd.DataFrame, targets: np.ndarray, guessed: np.ndarray) -> pd.DataFrame:
    """Return the UAR of each gender, where it is known, and of each speaker."""
    groups = []
    for column in ("gender", "speaker"):
        if column not in table:
            continue
        own = table[column].replace("", np.nan).to_numpy()
        for name in sorted(set(own[pd.notna(own)])):
            rows = own == name
            groups.append(
                {
                    "group": column,
                    "name": name,
                    "clips": int(rows.sum()),
                    "classes": len(np.unique(targets[rows])),
                    "uar": metrics.uar(targets[rows], guessed[rows]),
                }
            )
    return pd.DataFrame(groups)
