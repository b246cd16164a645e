"""Adapt a trained model to a few labelled clips of a language, and estimate its UAR."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from itertools import chain

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from scipy.special import softmax
from sklearn.model_selection import GroupKFold, StratifiedKFold

from metaser import metrics
from metaser.adaptation.clips import Clips, contradiction, known_speakers, refuse_two_labels
from metaser.adaptation.expect import Clues, Expected, Folds, Told, expect
from metaser.adaptation.fitted import Fitted, voice_batch, where_neutral
from metaser.adaptation.model_file import NEUTRAL, Adaptation, ModelFile, measured_at
from metaser.batch import Batch
from metaser.contracts import method_traits
from metaser.features.hear import gather, hear, mixed_rates, without_speech
from metaser.features.table import Features, enough_threads
from metaser.features.voice import gate, varied_share
from metaser.methods.inner_loop import Adapted
from metaser.naming import nearest

MOST_FOLDS = 5
"""Folds of a cross-validation, at most."""


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
    progress: bool = False,
) -> ModelFile:
    """Adapt a model to labelled clips.

    Parameters
    ----------
    file : ModelFile
        A model that `metaser train` made; not changed.
    clips : Clips
        Clips of at least two of the model's classes.
    shots : int, optional
        Clips per class, drawn at random; all of them if not given.
    seed : int
        Chooses the clips, and the folds of the cross-validation.
    name : str
        Name of the task or folder that the clips come from, for the header.
    task_version : int, optional
        Version of the task, for the header.
    synthetic : bool
        Whether the clips are synthetic speech, for the header.
    tell : callable
        Called with a warning, if the clips give reason for one.
    progress : bool
        Show a progress bar.

    Returns
    -------
    ModelFile
        The adapted model; ``header.adaptation.expected`` is the UAR to expect on new clips of other
        speakers.

    Raises
    ------
    ValueError
        If the model is adapted already, or the clips cannot be learnt from: see the messages.
    AudioError
        If a clip cannot be read.
    """
    if file.header.adaptation is not None:
        raise ValueError(
            "the model must be one that `metaser train` made, not one that is adapted to "
            f"{file.header.adaptation.name!r} already: adapt the trained model instead"
        )
    clips = replace(clips, speakers=known_speakers(clips.files, clips.speakers))
    clips = _chosen(clips, file.header.classes, shots, seed)
    seen = track(clips.files, "hearing", console=Console(stderr=True), transient=True)
    heard = list(hear(seen if progress else clips.files, file.frontend()))
    refuse_two_labels(clips, [clip.content for clip in heard])
    for doubt in (mixed_rates(heard), contradiction(clips)):
        if doubt:
            tell(doubt)
    if doubt := without_speech(heard):
        tell(f"{doubt}; they are not learnt from, and say nothing about the model")
        spoken = [row for row, clip in enumerate(heard) if not clip.doubt]
        heard, clips = [heard[row] for row in spoken], _some(clips, spoken)
        clips = _chosen(clips, file.header.classes, None, seed)
    contents = [clip.content for clip in heard]
    features, rows = gather(heard), np.arange(len(heard))
    targets = np.array([file.header.classes.index(emotion) for emotion in clips.emotions])
    speakers = None if clips.speakers is None else np.array(clips.speakers)
    fitted = fit(file, features, rows, targets, speakers)
    expected = foresee(file, features, rows, targets, speakers, trust=fitted.trust, seed=seed)
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
        **asdict(expected),
        temperature=measured_at(file.header, fewest).temperature,
        trust=fitted.trust,
    )
    header = file.header.model_copy(update={"adaptation": facts})
    return replace(file, header=header, fitted=fitted)


def _chosen(clips: Clips, classes: Sequence[str], shots: int | None, seed: int) -> Clips:
    """Check the clips and draw ``shots`` of each class; keep all if it is None."""
    by_class: dict[str, list[int]] = {}
    for row, emotion in enumerate(clips.emotions):
        by_class.setdefault(emotion, []).append(row)
    for emotion in by_class:
        if emotion not in classes:
            raise ValueError(
                f"every label must be a class of the model ({', '.join(classes)}), not {emotion!r}."
                f"{nearest(emotion, classes)} Rename the label, or leave its clips out"
            )
    counts = {emotion: len(rows) for emotion, rows in by_class.items()}
    if len(counts) < 2:
        raise ValueError(
            f"the clips must be of at least two classes, not {counts}: add clips of another class"
        )
    if shots is None:
        return clips
    for emotion, count in counts.items():
        if count < shots:
            raise ValueError(
                f"every class must have {shots} clips for {shots} shots, but {emotion!r} has "
                f"{count}: record more, or ask for fewer shots"
            )
    rng = np.random.default_rng(seed)
    rows = sorted(chain.from_iterable(rng.permutation(own)[:shots] for own in by_class.values()))
    return _some(clips, rows)


def _some(clips: Clips, rows: Sequence[int]) -> Clips:
    """Return some of the clips."""
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
    """Adapt a model to clips whose features are known.

    Parameters
    ----------
    file : ModelFile
        A trained model; not changed.
    features : Features
        Not normalised.
    rows, targets : ndarray of int
        The clips and their classes.
    speakers : ndarray, optional
        (clips,) who speaks in each, if that is known.
    present : ndarray of bool, optional
        (classes,) which classes the language has; those of ``targets`` if not given.

    Returns
    -------
    adapted : Adapted
        The predictor.
    constants : Constants
        What features are normalised by before it reads them.

    Raises
    ------
    ValueError
        If the method does not adapt a model's parameters, so that no file can hold the result.
    """
    if present is None:
        present = np.isin(np.arange(len(file.header.classes)), targets)
    own = file.support_constants(features, rows)
    support = features.batch(rows, targets, present)
    if speakers is not None and method_traits(file.method).knows_speakers:
        who = np.unique(speakers, return_inverse=True)[1]
        support = replace(support, domains={"speaker": torch.from_numpy(who)})
    if file.knows_voices and NEUTRAL in file.header.classes:
        neutral = file.header.classes.index(NEUTRAL)
        own = replace(own, neutral=where_neutral(own.apply(support), neutral, own.neutral))
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
            f"the method must adapt the model's parameters, but {file.header.method!r} keeps the "
            "clips, which a model file must not hold: train another method, such as "
            "inner_loop_alone"
        )
    return adapted


def foresee(
    file: ModelFile,
    features: Features,
    rows: np.ndarray,
    targets: np.ndarray,
    speakers: np.ndarray | None,
    *,
    trust: float,
    seed: int = 0,
) -> Expected:
    """Return the UAR to expect on new clips of other speakers; see ``clues_of``."""
    counts = np.bincount(targets)
    fewest = int(counts[counts > 0].min())
    clues = clues_of(file, features, rows, targets, speakers, trust=trust, seed=seed)
    return expect(file.header.bands, fewest, clues)


def clues_of(
    file: ModelFile,
    features: Features,
    rows: np.ndarray,
    targets: np.ndarray,
    speakers: np.ndarray | None,
    *,
    trust: float,
    seed: int = 0,
) -> Clues:
    """Return what labelled clips say about a model.

    Parameters
    ----------
    file : ModelFile
        A trained model; not changed.
    features : Features
        Features that are not normalised.
    rows : ndarray of int
        (clips,) rows of ``features``.
    targets : ndarray of int
        (clips,) class index of each clip.
    speakers : ndarray or None
        (clips,) who speaks; None where that is not known.
    trust : float
        How much the model adapted to all clips relies on who speaks, in [0, 1].
    seed : int
        Chooses the clips of a fold.
    """
    folds, seen = cross_validate(file, features, rows, targets, speakers, seed)
    voices = trust >= 0.5
    before = file.fitted_to(features, rows).scores(features, rows, speakers if voices else None)
    return Clues(len(np.unique(targets)), voices, _told(targets, before), folds, seen)


def _told(targets: np.ndarray, scores: np.ndarray) -> Told:
    """Return how well scores (clips, classes) name clips, among the classes that the clips have."""
    shown, targets = np.unique(targets, return_inverse=True)
    scores = scores[:, shown]
    uar = metrics.uar(targets, scores.argmax(axis=1))
    return Told(uar, metrics.soft_uar(targets, softmax(scores, axis=1)))


def cross_validate(
    file: ModelFile,
    features: Features,
    rows: np.ndarray,
    targets: np.ndarray,
    speakers: np.ndarray | None,
    seed: int = 0,
) -> tuple[Folds, Told | None]:
    """Return how the clips were cross-validated, and how well they were named.

    Each fold leaves out some speakers, or some clips where there is one speaker only; the latter
    gives too high a UAR. There is no cross-validation in two cases. One is a class with one clip.
    The other is that most speakers show one emotion only: leaving such a speaker out leaves out
    most of the emotion, so the UAR would say nothing about a model adapted to all clips.

    Parameters
    ----------
    file : ModelFile
        A trained model; not changed.
    features : Features
        Features that are not normalised.
    rows : ndarray of int
        (clips,) rows of ``features``.
    targets : ndarray of int
        (clips,) class index of each clip.
    speakers : ndarray or None
        (clips,) who speaks; None where that is not known.
    seed : int
        Chooses the clips of a fold.

    Returns
    -------
    folds : {"none", "clips", "speakers"}
        What the folds leave out.
    told : Told or None
        How well the clips that were left out were named; None if ``folds`` is "none".
    """
    counts = np.bincount(targets)
    fewest = int(counts[counts > 0].min())
    people = 1 if speakers is None else len(np.unique(speakers))
    groups = speakers if 1 < people < len(rows) else None
    if fewest < 2 or (groups is not None and _mostly_one_emotion(targets, groups)):
        return "none", None
    kind: Folds = "speakers" if people > 1 else "clips"
    if groups is None:  # or each clip is of somebody else, and leaving it out leaves them out
        split = StratifiedKFold(min(MOST_FOLDS, fewest), shuffle=True, random_state=seed)
    else:
        split = GroupKFold(min(MOST_FOLDS, people))
    present = np.isin(np.arange(len(file.header.classes)), targets)
    scores = np.full((len(rows), len(present)), np.nan)
    for learnt, judged in split.split(rows, targets, groups):
        if len(np.unique(targets[learnt])) < 2:
            continue  # adapting needs two classes
        known = [None if speakers is None else speakers[some] for some in (learnt, judged)]
        fitted = fit(file, features, rows[learnt], targets[learnt], known[0], present)
        scores[judged] = fitted.scores(features, rows[judged], known[1])
    was_judged = ~np.isnan(scores).any(axis=1)
    if set(targets[was_judged]) != set(targets):
        return "none", None
    return kind, _told(targets[was_judged], scores[was_judged])


def _mostly_one_emotion(targets: np.ndarray, speakers: np.ndarray) -> bool:
    """Return whether most speakers show one emotion only."""
    counts = [len(np.unique(targets[speakers == speaker])) for speaker in np.unique(speakers)]
    return bool(np.mean(np.array(counts) == 1) > 0.5)
