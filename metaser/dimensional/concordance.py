"""Intervals and paired tests for the concordance correlation (CCC) of ratings.

A CCC belongs to a set of clips, not to a clip: it is no mean of scores, so the bootstrap of
``metaser.stats`` does not apply. What a CCC is computed from can be added up, though, and each
speaker's share of it is six numbers. Whole speakers are drawn again with replacement, because
clips of one speaker are alike, and with them the seeds, drawn jointly for all targets, as in
``metaser.stats``. Targets are fixed. The estimate is the mean over targets of the mean over seeds
of the CCC over all clips of a target.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtr, stdtrit

RESAMPLES = 10_000


@dataclass(frozen=True)
class Concordance:
    """A mean CCC, or a difference of two, with its 95 % interval.

    Attributes
    ----------
    value, low, high : float
        In [-1, 1]; a difference in [-2, 2].
    p : float
        Of a difference, two-sided; NaN for a single CCC.
    seeds, speakers, clips : int
        Seeds a target; speakers and rated clips of all targets.
    """

    value: float
    low: float
    high: float
    p: float
    seeds: int
    speakers: int
    clips: int


def moments(true: ArrayLike, predicted: ArrayLike, speakers: ArrayLike) -> dict[str, list[float]]:
    """What each speaker's clips add to a CCC; clips whose true rating is NaN are left out.

    Parameters
    ----------
    true, predicted : array_like, shape (n,)
        Ratings in the same unit.
    speakers : array_like, shape (n,)
        Who speaks.

    Returns
    -------
    dict of str to list of float
        Speaker to [clips, sum of true, of predicted, of true², of predicted², of their product].

    Raises
    ------
    ValueError
        If a prediction is not finite or the lengths differ.
    """
    true, predicted = np.asarray(true, dtype=float), np.asarray(predicted, dtype=float)
    speakers = np.asarray(speakers).astype(str)
    if not true.shape == predicted.shape == speakers.shape or true.ndim != 1:
        raise ValueError(
            "expected a true rating, a prediction and a speaker for each clip; got shapes "
            f"{true.shape}, {predicted.shape} and {speakers.shape}"
        )
    strange = ~np.isfinite(predicted)
    if strange.any():
        raise ValueError(
            f"{strange.sum()} of {len(predicted)} predicted ratings are not finite, for example "
            f"{predicted[strange][0]}"
        )
    found = {}
    for speaker in np.unique(speakers):
        own = (speakers == speaker) & ~np.isnan(true)
        x, y = true[own], predicted[own]
        sums = [x.size, x.sum(), y.sum(), (x * x).sum(), (y * y).sum(), (x * y).sum()]
        found[str(speaker)] = [float(value) for value in sums]
    return found


def ccc_of_moments(sums: ArrayLike) -> np.ndarray:
    """CCC of added-up moments.

    Parameters
    ----------
    sums : array_like, shape (..., 6)
        Moments in the order of ``moments``.

    Returns
    -------
    numpy.ndarray, shape (...)
        As ``metrics.ccc`` defines it; NaN where both are the same constant or nothing is there.
    """
    count, x, y, xx, yy, xy = np.moveaxis(np.asarray(sums, dtype=float), -1, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        x, y, xx, yy, xy = (value / count for value in (x, y, xx, yy, xy))
        return 2 * (xy - x * y) / (xx - x * x + yy - y * y + (x - y) ** 2)


def concordances(
    scores: Mapping[Any, Sequence[np.ndarray]],
    pairs: Sequence[tuple[Any, Any]] = (),
    resamples: int = RESAMPLES,
    rng: np.random.Generator | None = None,
) -> tuple[dict[Any, Concordance], dict[tuple[Any, Any], Concordance]]:
    """Mean CCC of every system, and differences of pairs of them, with 95 % intervals.

    All systems are resampled by the same draws, so that differences are paired by speaker and seed.

    Parameters
    ----------
    scores : mapping
        System to one array of moments a target, shape (seeds, speakers, 6); or (ratings, seeds,
        speakers, 6), whose CCCs are averaged over the ratings. Every system has the same targets,
        seeds and speakers.
    pairs : sequence of pairs
        Systems to compare, the first minus the second. As in ``stats.paired_test``, p is the larger
        one of a bootstrap under the shifted null, (1 + #{|d* - d| >= |d|}) / (resamples + 1), and
        of a t-test over the seeds, because a bootstrap over few seeds is overconfident; the
        interval is the hull of both. Correct a family of them by ``stats.holm``.
    resamples : int
        How often speakers and seeds are drawn again.
    rng : numpy.random.Generator, optional
        Default: a fresh one with seed 0.

    Returns
    -------
    two dicts
        System to ``Concordance`` and pair to ``Concordance``.

    Raises
    ------
    ValueError
        If systems differ in targets, seeds or speakers.
    """
    scores = {
        key: [np.asarray(own) if own.ndim == 4 else np.asarray(own)[None] for own in targets]
        for key, targets in scores.items()
    }
    shapes = {tuple(own.shape[1:3] for own in targets) for targets in scores.values()}
    if len(shapes) != 1:
        raise ValueError(
            "systems are compared on the same targets, seeds and speakers, but their (seeds, "
            f"speakers) are {sorted(shapes)}"
        )
    (shape,) = shapes
    rng = np.random.default_rng(0) if rng is None else rng
    draws = _draws(shape, resamples, rng)
    seeds = {key: _mean_ccc(targets, _each_seed(shape)) for key, targets in scores.items()}
    drawn = {key: _mean_ccc(targets, draws) for key, targets in scores.items()}
    single = {key: _concordance(seeds[key], drawn[key], scores[key], test=False) for key in scores}
    compared = {
        (a, b): _concordance(seeds[a] - seeds[b], drawn[a] - drawn[b], scores[a], test=True)
        for a, b in pairs
    }
    return single, compared


def _draws(shape, resamples: int, rng: np.random.Generator) -> tuple[np.ndarray, list[np.ndarray]]:
    """How often each seed, and each speaker of a target, comes up in each resample."""
    seeds = shape[0][0]
    times = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples)
    people = [
        rng.multinomial(speakers, np.full(speakers, 1 / speakers), size=resamples)
        for _, speakers in shape
    ]
    return times, people


def _each_seed(shape) -> tuple[np.ndarray, list[np.ndarray]]:
    """As many "resamples" as there are seeds, each of one seed and all speakers."""
    seeds = shape[0][0]
    return np.eye(seeds), [np.ones((seeds, speakers)) for _, speakers in shape]


def _mean_ccc(targets: Sequence[np.ndarray], draws) -> np.ndarray:
    """Mean CCC over ratings, targets and seeds of every resample, shape (resamples,)."""
    times, people = draws
    total = 0
    for own, drawn in zip(targets, people, strict=True):
        sums = np.einsum("bp,rspm->brsm", drawn, own, optimize=True)
        total = total + np.einsum("bs,brs->b", times, ccc_of_moments(sums)) / own.shape[0]
    return total / (times[0].sum() * len(targets))


def _concordance(seeds: np.ndarray, drawn: np.ndarray, targets, test: bool) -> Concordance:
    """From the value of each seed and the resampled means."""
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
