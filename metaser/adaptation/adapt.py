"""Adapt a trained model to a few labelled clips of a language, and say what to expect of it."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain

import numpy as np
import torch
from sklearn.model_selection import GroupKFold, StratifiedKFold

from metaser import metrics
from metaser.adaptation.clips import Clips, refuse_two_labels
from metaser.adaptation.expect import Expected, Folds, expect
from metaser.adaptation.model_file import (
    Adaptation,
    Fitted,
    ModelFile,
    measured_at,
    voice_batch,
)
from metaser.batch import Batch
from metaser.contracts import method_traits
from metaser.features.hear import gather, hear, mixed_rates
from metaser.features.table import Features, enough_threads
from metaser.features.voice import gate, varied_share
from metaser.methods.inner_loop import Adapted
from metaser.naming import nearest

MOST_FOLDS = 5
"""Folds of a cross-validation."""


def adapt(
    file: ModelFile,
    clips: Clips,
    *,
    shots: int | None = None,
    seed: int = 0,
    name: str = "",
    task_version: int | None = None,
    synthetic: bool = False,
    tell: Callable[[str], None] = lambda sentence: None,
) -> ModelFile:
    """Adapt a model to labelled clips.

    Parameters
    ----------
    file : ModelFile
        As `metaser train` made it; not changed.
    clips : Clips
        Clips of at least two of the model's classes.
    shots : int, optional
        Clips a class, drawn at random; all of them if not given.
    seed : int
        Chooses them, and the folds of the cross-validation.
    name, task_version, synthetic
        What to write into the file about the clips.
    tell : callable
        Is given sentences about what is suspicious.

    Returns
    -------
    ModelFile
        ``header.adaptation.expected`` is the UAR to expect on new clips of other speakers.

    Raises
    ------
    ValueError
        If the model is adapted already, a class is unknown or has too few clips, or audio has two
        labels.
    AudioError
        If a clip cannot be read.
    """
    if file.header.adaptation is not None:
        raise ValueError(
            f"the model is adapted to {file.header.adaptation.name!r} already: adapt the file that "
            "`metaser train` made"
        )
    clips = _chosen(clips, file.header.classes, shots, seed)
    heard = list(hear(clips.files, file.frontend()))
    contents = [one.content for one in heard]
    refuse_two_labels(clips, contents)
    if mixed := mixed_rates(heard):
        tell(mixed)
    features, rows = gather(heard), np.arange(len(heard))
    targets = np.array([file.header.classes.index(emotion) for emotion in clips.emotions])
    speakers = None if clips.speakers is None else np.array(clips.speakers)
    fitted = fit(file, features, rows, targets, speakers)
    expected = foresee(file, features, rows, targets, speakers, seed)
    counts = np.bincount(targets)
    fewest = int(counts[counts > 0].min())
    facts = Adaptation(
        name=name,
        task_version=task_version,
        synthetic=synthetic,
        classes=[file.header.classes[index] for index in np.unique(targets)],
        clips=len(rows),
        shots=fewest,
        speakers=None if speakers is None else len(set(speakers)),
        contents=contents,
        uar=expected.uar,
        low=expected.low,
        high=expected.high,
        folds=expected.folds,
        seen=expected.seen,
        temperature=measured_at(file.header, fewest).temperature,
        trust=fitted.trust,
    )
    header = file.header.model_copy(update={"adaptation": facts})
    return replace(file, header=header, fitted=fitted)


def _chosen(clips: Clips, classes: Sequence[str], shots: int | None, seed: int) -> Clips:
    """Check the clips and draw ``shots`` of each class."""
    by_class: dict[str, list[int]] = {}
    for row, emotion in enumerate(clips.emotions):
        by_class.setdefault(emotion, []).append(row)
    for emotion in by_class:
        if emotion not in classes:
            raise ValueError(
                f"{emotion!r} is not a class of the model.{nearest(emotion, classes)} It knows "
                f"{', '.join(classes)}"
            )
    counts = {emotion: len(rows) for emotion, rows in by_class.items()}
    if len(counts) < 2:
        raise ValueError(f"expected clips of at least two classes, came {counts}")
    short = [emotion for emotion, count in counts.items() if shots and count < shots]
    if short:
        raise ValueError(
            f"{shots} shots need {shots} clips of each class, but {short[0]!r} has "
            f"{counts[short[0]]}: record more, or ask for fewer shots"
        )
    if shots is None:
        return clips
    rng = np.random.default_rng(seed)
    rows = sorted(chain.from_iterable(rng.permutation(r)[:shots] for r in by_class.values()))
    return Clips(
        tuple(clips.files[row] for row in rows),
        tuple(clips.emotions[row] for row in rows),
        None if clips.speakers is None else tuple(clips.speakers[row] for row in rows),
    )


def fit(
    file: ModelFile,
    features: Features,
    rows: np.ndarray,
    targets: np.ndarray,
    speakers: np.ndarray | None = None,
    present: np.ndarray | None = None,
) -> Fitted:
    """Adapt to clips whose features are known.

    Parameters
    ----------
    file : ModelFile
        A trained model.
    features : Features
        Not normalised.
    rows, targets : ndarray of int
        The clips and their classes.
    speakers : ndarray, optional
        (clips,) who speaks in each, if that is known.
    present : ndarray of bool, optional
        (classes,) which classes the language has; those of ``targets`` if not given.

    Raises
    ------
    ValueError
        If what the method learns from the clips cannot be kept in a file.
    """
    known = np.arange(len(file.header.classes))
    present = np.isin(known, targets) if present is None else present
    own = file.support_constants(features, rows)
    support = features.batch(rows, targets, present)
    if speakers is not None and method_traits(file.method).knows_speakers:
        who = np.unique(speakers, return_inverse=True)[1]
        support = replace(support, domains={"speaker": torch.from_numpy(who)})
    with enough_threads(features):
        adapted = _adapted(file, own.apply(support))
        if not file.knows_voices or speakers is None:
            return Fitted(adapted, own)
        by_voice = _adapted(file, voice_batch(support, features, rows, speakers, own))
    evidence = None
    if adapted.evidence is not None and by_voice.evidence is not None:
        evidence = by_voice.evidence - adapted.evidence
    trust = gate(varied_share(targets, speakers), evidence)
    return Fitted(adapted, own, by_voice, trust)


def _adapted(file: ModelFile, support: Batch) -> Adapted:
    """Adapt to normalised clips; refuse a method that keeps them."""
    adapted = file.method.adapt(support)
    if not isinstance(adapted, Adapted):
        raise ValueError(
            f"{file.header.method!r} keeps the clips themselves to predict, which a model file "
            "must not: train another method, such as inner_loop_alone"
        )
    return adapted


def foresee(
    file: ModelFile,
    features: Features,
    rows: np.ndarray,
    targets: np.ndarray,
    speakers: np.ndarray | None,
    seed: int = 0,
) -> Expected:
    """The UAR to expect on new clips of other speakers, from cross-validation over these clips."""
    counts = np.bincount(targets)
    fewest, classes = int(counts[counts > 0].min()), int((counts > 0).sum())
    folds, seen = cross_validate(file, features, rows, targets, speakers, seed)
    return expect(file.header.bands, fewest, classes, folds, seen)


def cross_validate(
    file: ModelFile,
    features: Features,
    rows: np.ndarray,
    targets: np.ndarray,
    speakers: np.ndarray | None,
    seed: int = 0,
) -> tuple[Folds, float]:
    """UAR over clips that the model was not adapted to, fold by fold.

    Folds leave out speakers where there are several; else, which flatters, clips. There are none
    where a class has one clip, or where most speakers show one emotion: to leave such a speaker out
    is to leave out most of the emotion, so that would say nothing of what all clips together teach.
    """
    counts = np.bincount(targets)
    fewest = int(counts[counts > 0].min())
    people = 1 if speakers is None else len(np.unique(speakers))
    groups = speakers if people > 1 else None
    if fewest < 2 or (groups is not None and _mostly_one_emotion(targets, groups)):
        return "none", float("nan")
    kind: Folds = "clips" if groups is None else "speakers"
    if groups is None:
        split = StratifiedKFold(min(MOST_FOLDS, fewest), shuffle=True, random_state=seed)
    else:
        split = GroupKFold(min(MOST_FOLDS, people))
    present = np.isin(np.arange(len(file.header.classes)), targets)
    guessed = np.full(len(rows), -1)
    for learnt, asked in split.split(rows, targets, groups):
        if len(np.unique(targets[learnt])) < 2:
            continue  # nothing can be learnt without these speakers
        known = [None if speakers is None else speakers[some] for some in (learnt, asked)]
        fitted = fit(file, features, rows[learnt], targets[learnt], known[0], present)
        guessed[asked] = fitted.scores(features, rows[asked], known[1]).argmax(axis=1)
    scored = guessed >= 0
    if set(targets[scored]) != set(targets):
        return "none", float("nan")
    return kind, metrics.uar(targets[scored], guessed[scored])


def _mostly_one_emotion(targets: np.ndarray, speakers: np.ndarray) -> bool:
    """Whether most speakers show one emotion only."""
    shown = [len(np.unique(targets[speakers == one])) for one in np.unique(speakers)]
    return bool(np.mean(np.array(shown) == 1) > 0.5)
