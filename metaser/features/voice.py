"""Know the voice: normalise by the mean and deviation of who speaks, where that is safe.

How a voice sounds when it is calm differs more between people than between emotions. Features
that are normalised by the statistics of each speaker carry emotion better than those normalised by
the whole corpus. Speakers with few clips lean on the corpus.

It is not always safe. Where most speakers show one emotion only, a speaker's mean *is* the
emotion, and normalising takes it away. The labelled clips can tell: ``gate`` says how far to trust
the statistics of the voices, from how many clips come from speakers who show several emotions, and
from how well a method foretells the clips of one speaker from those of the others.
"""

from dataclasses import replace

import numpy as np
from scipy.special import expit

from metaser.features import store
from metaser.features.table import OUTLIER, Features, all_frames

CENTRE_PRIOR = 3.0
"""Clips that the corpus's mean counts as beside those of a speaker."""

SPREAD_PRIOR = 10.0
"""Clips that the corpus's variance counts as beside those of a speaker."""

SAFE_SHARE = 0.5
"""Share of clips, of speakers who show several emotions, from which on statistics are safe."""

GATE = (2.0, 4.0, 0.25)
"""Weights of evidence and share in the gate, and the share that says nothing.

Chosen on left-out sources, as recorded and with one emotion per speaker: benchmarks/README.md.
"""


def varied_share(targets: np.ndarray, speakers: np.ndarray) -> float:
    """Return the share of clips that come from speakers who show two emotions or more.

    Parameters
    ----------
    targets, speakers : ndarray
        (clips,) emotion and speaker of each labelled clip.

    Examples
    --------
    >>> varied_share(np.array([0, 1, 1, 1]), np.array(["ann", "ann", "ben", "ben"]))
    0.5
    """
    varied = [who for who in set(speakers.tolist()) if len(set(targets[speakers == who])) > 1]
    return float(np.isin(speakers, varied).mean())


def gate(share: float, evidence: float | None = None) -> float:
    """Return how much to trust the statistics of the voices, in [0, 1].

    Parameters
    ----------
    share : float
        See ``varied_share``, of the labelled clips.
    evidence : float, optional
        How much better the labelled clips are foretold with the voices' statistics than with the
        corpus's: a difference of log-probabilities. Without it the share alone decides.

    Examples
    --------
    >>> gate(0.9), gate(0.1), gate(0.25, evidence=0.0)
    (1.0, 0.0, 0.5)
    """
    if evidence is None:
        return float(share >= SAFE_SHARE)
    by_evidence, by_share, middle = GATE
    return float(expit(by_evidence * evidence + by_share * (share - middle)))


def lean(own: np.ndarray, common: np.ndarray, clips: int, weight: float) -> np.ndarray:
    """Return a statistic of some clips, averaged with a common one that counts as more clips.

    >>> lean(np.array([4.0]), np.array([0.0]), clips=9, weight=3.0)
    array([3.])
    """
    share = clips / (clips + weight)
    return share * own + (1 - share) * common


def normalise_voices(
    features: Features,
    speakers: np.ndarray,
    known: np.ndarray | None = None,
    *,
    neutral: np.ndarray | None = None,
) -> Features:
    """Return features normalised by the statistics of each clip's speaker.

    A speaker's mean leans on the corpus's by ``n / (n + CENTRE_PRIOR)`` and the variance by
    ``n / (n + SPREAD_PRIOR)``, where ``n`` is the number of clips known of the voice. Without a
    known clip of it the corpus's statistics stand.

    Parameters
    ----------
    features : Features
        Not normalised; all modalities are.
    speakers : ndarray
        (clips,) who speaks in each.
    known : ndarray of bool, optional
        (clips,) which clips may be looked at to know a voice; all if not given.
    neutral : ndarray of float, optional
        (channels,) where neutral clips lie in normalised features. If given, the known clips are
        neutral ones: their mean is moved by this, and the spread stays that of the corpus.

    Returns
    -------
    Features
        New features, limited to ``OUTLIER`` deviations.
    """
    lengths = features.lengths
    clip_of = np.repeat(np.arange(len(lengths)), lengths)
    frames = all_frames(features).astype(np.float64)
    centre, variance = frames.mean(axis=0), frames.var(axis=0)
    spread = np.sqrt(np.maximum(variance, 1e-12))
    usable = np.ones(len(lengths), bool) if known is None else known
    normalised = np.empty(frames.shape, np.float32)
    for who in np.unique(speakers):
        clips = speakers == who
        heard = (clips & usable)[clip_of]
        count = int(np.count_nonzero(clips & usable & (lengths > 0)))
        own_centre, own_spread = centre, spread
        if count:
            mean = frames[heard].mean(axis=0)
            if neutral is None:
                mixed = lean(frames[heard].var(axis=0), variance, count, SPREAD_PRIOR)
                own_spread = np.sqrt(np.maximum(mixed, 1e-12))
            else:
                mean = mean - spread * neutral
            own_centre = lean(mean, centre, count, CENTRE_PRIOR)
        rows = clips[clip_of]
        normalised[rows] = np.clip((frames[rows] - own_centre) / own_spread, -OUTLIER, OUTLIER)
    return replace(
        features,
        values=store.Ragged(normalised, np.cumsum(lengths) - lengths, lengths),
        beside=tuple(normalise_voices(other, speakers, known) for other in features.beside),
    )
