"""Distances between corpora, to choose the sources for a target.

They are computed from features alone, in seconds, without any training. Two need no labels of the
target: ``mmd`` and ``proxy_a``. Two need a few labelled clips: ``class_mmd`` and ``class_means``.
Smaller is nearer. Whether near sources teach more was measured, see
``benchmarks/reports/similarity``.

Raw features show differences of microphone and level. Normalising each corpus before
(``features.normalise``) removes them.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import ndtri
from sklearn.linear_model import LogisticRegression
from sklearn.metrics.pairwise import euclidean_distances, rbf_kernel
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from metaser.features.table import Features
from metaser.tasks.task import Task

UNLABELLED = ("mmd", "proxy_a")
"""Distances that need no labels of the target."""

LABELLED = ("class_mmd", "class_means")
"""Distances that need labelled clips of the target."""

FOLDS = 5
"""Folds of the cross-validation behind ``proxy_a``, at most."""

Statistic = Callable[..., float]
"""From the weights of both corpora's clips, (clips,) each, to a distance."""


@dataclass(frozen=True, eq=False)
class Clips:
    """One vector per clip, with each clip's speaker and emotion.

    Attributes
    ----------
    vectors : ndarray
        (clips, channels) float64.
    speakers, emotions : ndarray of str
        (clips,).
    """

    vectors: np.ndarray
    speakers: np.ndarray
    emotions: np.ndarray

    def __len__(self) -> int:
        """Return the number of clips."""
        return len(self.vectors)

    def __getitem__(self, rows: slice | np.ndarray) -> "Clips":
        """Return the chosen clips."""
        return Clips(self.vectors[rows], self.speakers[rows], self.emotions[rows])


def clips_of(task: Task, features: Features) -> Clips:
    """Return the mean frame of every clip of a task, with its speaker and emotion."""
    lengths = features.lengths
    means = [features.values[[row]][0, : lengths[row]].mean(axis=0) for row in range(len(lengths))]
    table = task.table
    return Clips(
        np.array(means, np.float64), table["speaker"].to_numpy(str), table["emotion"].to_numpy(str)
    )


def median_gamma(vectors: np.ndarray) -> float:
    """Return the width of the RBF kernel by the median heuristic: 1 / (2 · median distance²).

    Parameters
    ----------
    vectors : ndarray
        (clips, channels).

    Raises
    ------
    ValueError
        If the median distance is 0.

    References
    ----------
    Gretton et al., "A Kernel Two-Sample Test", JMLR 2012, section 8.
    """
    distances = euclidean_distances(vectors, squared=True)
    median = np.median(distances[np.triu_indices_from(distances, k=1)])
    if not median > 0:
        raise ValueError(
            "the median distance between clips must be above 0, but at least half of the "
            f"{len(vectors)} clips have the same features: check the audio by `metaser tasks check`"
        )
    return 1 / (2 * median)


def mmd(a: np.ndarray, b: np.ndarray, gamma: float | None = None) -> float:
    """Return the unbiased squared maximum mean discrepancy of two samples under an RBF kernel.

    Parameters
    ----------
    a, b : ndarray
        (clips, channels), at least two clips each.
    gamma : float, optional
        Width of the kernel exp(−gamma · distance²); by default the median heuristic over both
        samples.

    Returns
    -------
    float
        At most 2; about 0, also below, if both come from one distribution. NaN if a sample has
        only one clip.

    References
    ----------
    Gretton et al., "A Kernel Two-Sample Test", JMLR 2012, equation 3.
    """
    gamma = median_gamma(np.concatenate([a, b])) if gamma is None else gamma
    return _mmd(a, b, gamma)(np.ones(len(a)), np.ones(len(b)))


def _mmd(a: np.ndarray, b: np.ndarray, gamma: float) -> Statistic:
    """Return the discrepancy as a function of the clips' weights; no clip pairs with itself."""
    within = [rbf_kernel(side, gamma=gamma) for side in (a, b)]
    for kernel in within:
        np.fill_diagonal(kernel, 0)
    between = rbf_kernel(a, b, gamma=gamma)

    def statistic(*weights: np.ndarray) -> float:
        pairs = [w.sum() ** 2 - (w**2).sum() for w in weights]
        if min(pairs) <= 0:
            return float("nan")
        same = sum(w @ kernel @ w / n for w, kernel, n in zip(weights, within, pairs))
        mixed = weights[0] @ between @ weights[1]
        return float(same - 2 * mixed / np.prod([*map(np.sum, weights)]))

    return statistic


def proxy_a_distance(a: Clips, b: Clips, folds: int = FOLDS, seed: int = 0) -> float:
    """Return how well a logistic regression tells two corpora apart, on unknown speakers.

    Parameters
    ----------
    a, b : Clips
        The two corpora.
    folds : int
        Number of folds of the cross-validation; no speaker is in two folds.
    seed : int
        Decides which speakers are in which fold.

    Returns
    -------
    float
        2 (1 − 2 · error), where error is the mean of both corpora's error rates: 2 if they are
        always told apart, 0 at chance. It is below 0 if the classifier misleads, as it does where
        normalisation has made the means of both corpora equal. NaN if a corpus has fewer speakers
        than folds.

    References
    ----------
    Ben-David, Blitzer, Crammer, Pereira, "Analysis of Representations for Domain Adaptation",
    NIPS 2006, section 4.
    """
    return _proxy_a(a, b, folds, seed)(np.ones(len(a)), np.ones(len(b)))


def _proxy_a(a: Clips, b: Clips, folds: int, seed: int) -> Statistic:
    """Return ``proxy_a_distance`` as a function of the clips' weights."""
    if folds < 2 or min(len(np.unique(side.speakers)) for side in (a, b)) < folds:
        return lambda *weights: float("nan")
    corpus = np.repeat([0, 1], [len(a), len(b)])
    speakers = [f"{side} {name}" for side, clips in enumerate((a, b)) for name in clips.speakers]
    guesses = cross_val_predict(
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)),
        np.concatenate([a.vectors, b.vectors]),
        corpus,
        groups=speakers,
        cv=StratifiedGroupKFold(folds, shuffle=True, random_state=seed),
    )
    wrong = np.split(guesses != corpus, [len(a)])

    def statistic(*weights: np.ndarray) -> float:
        error = np.mean([np.average(errors, weights=w) for errors, w in zip(wrong, weights)])
        return float(2 * (1 - 2 * error))

    return statistic


def _by_class(
    a: Clips, b: Clips, distance: Callable[[np.ndarray, np.ndarray], Statistic]
) -> Statistic:
    """Return the mean over the shared classes of the distance between a class's clips."""
    shared = sorted(set(a.emotions) & set(b.emotions))
    rows = [(a.emotions == name, b.emotions == name) for name in shared]
    parts = [distance(a.vectors[one], b.vectors[other]) for one, other in rows]

    def statistic(*weights: np.ndarray) -> float:
        values = [
            part(weights[0][one], weights[1][other]) for part, (one, other) in zip(parts, rows)
        ]
        return float(np.mean(values)) if values else float("nan")

    return statistic


def _means(a: np.ndarray, b: np.ndarray) -> Statistic:
    """Return the root mean square difference of the mean vectors, over the channels."""

    def statistic(*weights: np.ndarray) -> float:
        if not all(w.any() for w in weights):
            return float("nan")
        centres = [np.average(side, axis=0, weights=w) for side, w in zip((a, b), weights)]
        return float(np.sqrt(np.mean((centres[0] - centres[1]) ** 2)))

    return statistic


def compare(
    target: Clips,
    sources: Mapping[str, Clips],
    shots: int = 0,
    *,
    limit: int = 200,
    resamples: int = 200,
    seed: int = 0,
    wanted: Collection[str] = (*UNLABELLED, *LABELLED),
) -> pd.DataFrame:
    """Return the distances of a target from each source.

    The same number of clips is drawn from each corpus, so that no distance depends on a corpus's
    size. Every channel is scaled to deviation 1 over all drawn clips. All sources share one kernel
    width (median heuristic over the same clips) and one number of folds.

    Parameters
    ----------
    target : Clips
        The target. Its emotions are used only where ``shots`` is above 0, and only those of the
        drawn clips.
    sources : mapping of str to Clips
        The sources by name.
    shots : int
        Labelled clips per class of the target; 0 leaves the labelled distances out.
    limit : int
        Largest number of clips drawn from each corpus.
    resamples : int
        Number of resamples of the speakers, for each interval.
    seed : int
        Decides clips, folds and resamples.
    wanted : collection of str
        Distances to compute.

    Returns
    -------
    DataFrame
        One row per source and distance: ``source``, ``distance``, ``value``, ``low``, ``high``
        and ``clips`` drawn per corpus. The interval is value ± 1.96 standard errors, estimated by
        drawing the speakers of both corpora again. (The percentiles of these draws would be
        shifted, because a speaker who is drawn twice makes a corpus narrower.) The interval is NaN
        if a corpus has only one speaker.

    Raises
    ------
    ValueError
        If there is no source, a corpus has fewer than two clips, or a class of the target has
        fewer clips than ``shots``.
    """
    if not sources:
        raise ValueError("sources must hold at least 1 corpus, not 0: name at least one other task")
    size = min(limit, len(target), *map(len, sources.values()))
    if size < 2:
        raise ValueError(
            f"a distance needs at least two clips of each corpus, not {size}: add clips, or raise "
            "limit"
        )
    rng = np.random.default_rng([seed, 0])
    labelled = _shots(target, shots, rng)
    target = target[rng.permutation(len(target))[:size]]
    drawn = {  # a source's clips do not depend on which other sources there are
        name: clips[np.random.default_rng([seed, *name.encode()]).permutation(len(clips))[:size]]
        for name, clips in sources.items()
    }
    pooled = np.concatenate([target.vectors, *[clips.vectors for clips in drawn.values()]])
    scale = StandardScaler().fit(pooled)
    gamma = median_gamma(scale.transform(pooled))
    folds = min(FOLDS, *[len(np.unique(clips.speakers)) for clips in (target, *drawn.values())])
    labelled = _scaled(labelled, scale)
    options: dict[str, Any] = {"gamma": gamma, "folds": folds, "seed": seed, "wanted": wanted}
    rows = []
    for name, clips in drawn.items():
        pair = _scaled(target, scale), _scaled(clips, scale)
        for kind, sides, statistic in _statistics(*pair, labelled, **options):
            value = statistic(*[np.ones(len(side)) for side in sides])
            error = _standard_error(statistic, sides, resamples, np.random.default_rng([seed, 1]))
            half = ndtri(0.975) * error
            rows.append((name, kind, value, value - half, value + half, size))
    return pd.DataFrame(rows, columns=["source", "distance", "value", "low", "high", "clips"])


def choose(
    target: Clips,
    sources: Mapping[str, Clips],
    count: int,
    by: str = "mmd",
    order: str = "nearest",
    seed: int = 0,
) -> list[str]:
    """Return the sources that are nearest to a target, or farthest from it; nearest first.

    Parameters
    ----------
    target, sources, seed
        See ``compare``.
    count : int
        Number of sources to choose; all if there are fewer.
    by : {"mmd", "proxy_a"}
        A distance that needs no label of the target.
    order : {"nearest", "farthest"}
        Which to choose; "farthest" serves as a control.

    Returns
    -------
    list of str
        Names of the chosen sources.

    Raises
    ------
    ValueError
        If the distance is undefined for a source, or ``by`` or ``order`` is unknown.
    """
    if by not in UNLABELLED or order not in ("nearest", "farthest"):
        raise ValueError(
            f"by must be one of {UNLABELLED} and order 'nearest' or 'farthest', not {by!r} and "
            f"{order!r}: choose one of these"
        )
    distances = compare(target, sources, resamples=0, seed=seed, wanted=(by,))
    values = distances.set_index("source")["value"]
    undefined = values.index[values.isna()].tolist()
    if undefined:
        raise ValueError(
            f"{by} needs at least two speakers per corpus, but target or {undefined[0]} has one "
            "speaker: choose by 'mmd'"
        )
    ranked = values.sort_values(kind="stable").index.tolist()
    return ranked[:count] if order == "nearest" else ranked[-count:]


def _statistics(
    target: Clips,
    source: Clips,
    labelled: Clips,
    *,
    gamma: float,
    folds: int,
    seed: int,
    wanted: Collection[str],
) -> Iterator[tuple[str, tuple[Clips, Clips], Statistic]]:
    """Yield the name, the two sides and the statistic of each wanted distance."""
    pair = target, source
    if "mmd" in wanted:
        yield "mmd", pair, _mmd(target.vectors, source.vectors, gamma)
    if "proxy_a" in wanted:
        yield "proxy_a", pair, _proxy_a(target, source, folds, seed)
    pair = labelled, source
    if len(labelled) and "class_mmd" in wanted:
        yield "class_mmd", pair, _by_class(*pair, lambda a, b: _mmd(a, b, gamma))
    if len(labelled) and "class_means" in wanted:
        yield "class_means", pair, _by_class(*pair, _means)


def _scaled(clips: Clips, scale: StandardScaler) -> Clips:
    vectors = scale.transform(clips.vectors) if len(clips) else clips.vectors
    return Clips(vectors, clips.speakers, clips.emotions)


def _shots(target: Clips, shots: int, rng: np.random.Generator) -> Clips:
    """Return ``shots`` clips per class, drawn at random."""
    order = rng.permutation(len(target))
    rows = [order[target.emotions[order] == name][:shots] for name in np.unique(target.emotions)]
    for members in rows:
        if len(members) < shots:
            raise ValueError(
                f"class '{target.emotions[members[0]]}' of the target must have {shots} labelled "
                f"clips, not {len(members)}: ask for fewer shots"
            )
    return target[np.concatenate(rows)]


def _standard_error(
    statistic: Statistic, sides: tuple[Clips, Clips], resamples: int, rng: np.random.Generator
) -> float:
    """Return the deviation of a statistic over resamples of both sides' speakers."""
    speakers = [np.unique(side.speakers, return_inverse=True)[1] for side in sides]
    counts = [numbers.max() + 1 for numbers in speakers]
    if min(counts) < 2:
        return float("nan")
    draws = []
    for _ in range(resamples):
        times = [rng.multinomial(count, np.full(count, 1 / count)) for count in counts]
        draws.append(statistic(*[n[who].astype(float) for n, who in zip(times, speakers)]))
    values = np.array(draws)
    values = values[~np.isnan(values)]  # without resamples that leave a class without clips
    return float(values.std(ddof=1)) if len(values) > 1 else float("nan")
