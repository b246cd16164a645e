"""Intervals and paired tests for the concordance correlation (CCC) of ratings.

A CCC belongs to a set of clips, not to a single clip. It is no mean of scores per clip, so the
bootstrap of ``metaser.stats`` does not apply. But the sums that a CCC is computed from can be
added up: each speaker contributes six numbers (``moments``).

Whole speakers are drawn again with replacement, because clips of one speaker are alike. Seeds are
drawn again too, the same ones for all targets, as in ``metaser.stats``. Targets are fixed. The
estimate is the mean over targets of the mean over seeds of the CCC over all clips of a target.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtr, stdtrit

Key = TypeVar("Key", bound=Hashable)
Shape = tuple[tuple[int, int], ...]  # (seeds, speakers) of each target
Draws = tuple[np.ndarray, list[np.ndarray]]

RESAMPLES = 10_000
"""How often speakers and seeds are drawn again."""


@dataclass(frozen=True)
class Concordance:
    """A mean CCC, or a difference of two, with its 95 % interval.

    Attributes
    ----------
    value, low, high : float
        In [-1, 1]; a difference in [-2, 2].
    p : float
        Two-sided p-value of a difference; NaN for a single CCC.
    seeds : int
        Seeds per target.
    speakers, clips : int
        Speakers and rated clips of all targets together.
    """

    value: float
    low: float
    high: float
    p: float
    seeds: int
    speakers: int
    clips: int


def moments(true: ArrayLike, predicted: ArrayLike, speakers: ArrayLike) -> dict[str, list[float]]:
    """Return what each speaker's clips add to a CCC, without clips whose true rating is NaN.

    Parameters
    ----------
    true, predicted : array_like, shape (n,)
        Ratings in the same unit.
    speakers : array_like, shape (n,)
        Name of the speaker of each clip.

    Returns
    -------
    dict of str to list of float
        By speaker: the number of clips, and the sums of true, predicted, true², predicted² and
        true times predicted.

    Raises
    ------
    ValueError
        If a prediction is not finite or the lengths differ.
    """
    true, predicted = np.asarray(true, dtype=float), np.asarray(predicted, dtype=float)
    speakers = np.asarray(speakers).astype(str)
    if not true.shape == predicted.shape == speakers.shape or true.ndim != 1:
        raise ValueError(
            "true ratings, predictions and speakers must be flat and equally long, not of shapes "
            f"{true.shape}, {predicted.shape} and {speakers.shape}: pass one of each per clip"
        )
    infinite = ~np.isfinite(predicted)
    if infinite.any():
        raise ValueError(
            f"predicted ratings must be finite, not {predicted[infinite][0]} as in "
            f"{infinite.sum()} of {len(predicted)} clips: look whether the model has diverged"
        )
    found = {}
    for speaker in np.unique(speakers):
        own = (speakers == speaker) & ~np.isnan(true)
        x, y = true[own], predicted[own]
        sums = [x.size, x.sum(), y.sum(), (x * x).sum(), (y * y).sum(), (x * y).sum()]
        found[str(speaker)] = [float(value) for value in sums]
    return found


def ccc_of_moments(sums: ArrayLike) -> np.ndarray:
    """Return the CCC that belongs to added-up moments.

    Parameters
    ----------
    sums : array_like, shape (..., 6)
        Sums over speakers of what ``moments`` returns, in the same order.

    Returns
    -------
    numpy.ndarray, shape (...)
        As ``metrics.ccc`` defines it. NaN where there are no clips, or where true and predicted
        ratings are the same constant.
    """
    count, x, y, xx, yy, xy = np.moveaxis(np.asarray(sums, dtype=float), -1, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        x, y, xx, yy, xy = (value / count for value in (x, y, xx, yy, xy))
        return 2 * (xy - x * y) / (xx - x * x + yy - y * y + (x - y) ** 2)


def concordances(
    scores: Mapping[Key, Sequence[np.ndarray]],
    pairs: Sequence[tuple[Key, Key]] = (),
    resamples: int = RESAMPLES,
    rng: np.random.Generator | None = None,
) -> tuple[dict[Key, Concordance], dict[tuple[Key, Key], Concordance]]:
    """Return the mean CCC of every system, and differences of pairs, with 95 % intervals.

    All systems are resampled by the same draws, so differences are paired by speaker and seed.

    Parameters
    ----------
    scores : mapping
        By system: one array of moments per target, of shape (seeds, speakers, 6). Arrays of shape
        (ratings, seeds, speakers, 6) are averaged over the CCCs of the ratings. All systems have
        the same targets, seeds and speakers.
    pairs : sequence of pairs
        Systems to compare: the first minus the second. As in ``stats.paired_test``, there are two
        tests: a bootstrap under the shifted null, p = (1 + #{|d* - d| >= |d|}) / (resamples + 1),
        and a t-test over the seeds, because a bootstrap over few seeds is overconfident. The larger
        p counts, and the interval covers those of both. Correct a family of comparisons by
        ``stats.holm``.
    resamples : int
        How often speakers and seeds are drawn again.
    rng : numpy.random.Generator, optional
        By default a new one with seed 0.

    Returns
    -------
    single : dict
        By system: its mean CCC.
    compared : dict
        By pair: its difference.

    Raises
    ------
    ValueError
        If systems differ in targets, seeds or speakers.
    """
    sums = {
        key: [own if own.ndim == 4 else own[None] for own in map(np.asarray, targets)]
        for key, targets in scores.items()
    }
    shapes = {_shape(targets) for targets in sums.values()}
    if len(shapes) != 1:
        raise ValueError(
            "all systems must have the same targets, seeds and speakers, not (seeds, speakers) per "
            f"target of {sorted(shapes)}: compare systems that were scored on the same clips"
        )
    (shape,) = shapes
    rng = np.random.default_rng(0) if rng is None else rng
    draws = _draws(shape, resamples, rng)
    seeds = {key: _mean_ccc(targets, _each_seed(shape)) for key, targets in sums.items()}
    drawn = {key: _mean_ccc(targets, draws) for key, targets in sums.items()}
    single = {key: _concordance(seeds[key], drawn[key], sums[key], test=False) for key in sums}
    compared = {
        (a, b): _concordance(seeds[a] - seeds[b], drawn[a] - drawn[b], sums[a], test=True)
        for a, b in pairs
    }
    return single, compared


def _shape(targets: Sequence[np.ndarray]) -> Shape:
    """Return the numbers of seeds and speakers of each target."""
    return tuple((own.shape[1], own.shape[2]) for own in targets)


def _draws(shape: Shape, resamples: int, rng: np.random.Generator) -> Draws:
    """Return how often each seed, and each speaker of a target, comes up in each resample.

    The counts of seeds are (resamples, seeds), those of a target's speakers (resamples, speakers).
    """
    seeds = shape[0][0]
    times = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples)
    speaker_times = [
        rng.multinomial(speakers, np.full(speakers, 1 / speakers), size=resamples)
        for _, speakers in shape
    ]
    return times, speaker_times


def _each_seed(shape: Shape) -> Draws:
    """Return one "resample" per seed, which has this seed once and every speaker once."""
    seeds = shape[0][0]
    return np.eye(seeds), [np.ones((seeds, speakers)) for _, speakers in shape]


def _mean_ccc(targets: Sequence[np.ndarray], draws: Draws) -> np.ndarray:
    """Return the mean CCC over ratings, targets and seeds of every resample, (resamples,)."""
    times, speaker_times = draws
    total = np.zeros(len(times))
    for own, drawn in zip(targets, speaker_times, strict=True):
        sums = np.einsum("bp,rspm->brsm", drawn, own, optimize=True)
        total = total + np.einsum("bs,brs->b", times, ccc_of_moments(sums)) / own.shape[0]
    return total / (times[0].sum() * len(targets))


def _concordance(
    seeds: np.ndarray, drawn: np.ndarray, targets: Sequence[np.ndarray], *, test: bool
) -> Concordance:
    """Return the mean over the seeds with its interval, and its p-value if there is a test.

    ``seeds`` (seeds,) holds the value of each seed, ``drawn`` (resamples,) the resampled means.
    """
    value, p = seeds.mean(), float("nan")
    low, high = np.quantile(drawn, [0.025, 0.975])
    if test:
        p = float((1 + np.sum(np.abs(drawn - value) >= abs(value))) / (1 + len(drawn)))
    if test and len(seeds) > 1:
        error = seeds.std(ddof=1) / np.sqrt(len(seeds))
        reach = stdtrit(len(seeds) - 1, 0.975) * error
        low, high = min(low, value - reach), max(high, value + reach)
        if error:
            p = max(p, float(2 * stdtr(len(seeds) - 1, -abs(value) / error)))
    return Concordance(
        value=float(value),
        low=float(low),
        high=float(high),
        p=p,
        seeds=targets[0].shape[1],
        speakers=sum(own.shape[2] for own in targets),
        clips=int(sum(own[0, 0, :, 0].sum() for own in targets)),
    )
