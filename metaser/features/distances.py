"""How far the clips of other tasks lie from a target's, to choose what to learn from.

Distances between corpora, computed from features alone in seconds, without any training. Two need
no label of the target: ``mmd`` and ``proxy_a``. Two take a few labelled clips: ``class_mmd`` and
``class_means``. Smaller is nearer. Whether near sources teach more is a matter of measurement, see
``benchmarks/reports/similarity``.

Features as they are show differences of microphone and level, which normalising each corpus
removes; both views can be asked for, by normalising the features before (``features.normalise``).
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

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
LABELLED = ("class_mmd", "class_means")
FOLDS = 5

Statistic = Callable[[np.ndarray, np.ndarray], float]


@dataclass(frozen=True, eq=False)
class Clips:
    """One vector a clip, with what is known of the clips.

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
        return len(self.vectors)

    def __getitem__(self, rows) -> "Clips":
        return Clips(self.vectors[rows], self.speakers[rows], self.emotions[rows])


def clips_of(task: Task, features: Features) -> Clips:
    """The mean frame of every clip of a task, with its speaker and emotion."""
    lengths = features.lengths
    means = [features.values[[row]][0, : lengths[row]].mean(axis=0) for row in range(len(lengths))]
    table = task.table
    return Clips(
        np.array(means, np.float64), table["speaker"].to_numpy(str), table["emotion"].to_numpy(str)
    )


def median_gamma(vectors: np.ndarray) -> float:
    """Width of the RBF kernel by the median heuristic: 1 / (2 · median distance²).

    References
    ----------
    Gretton et al., "A Kernel Two-Sample Test", JMLR 2012, section 8.
    """
    distances = euclidean_distances(vectors, squared=True)
    median = np.median(distances[np.triu_indices_from(distances, k=1)])
    if not median > 0:
        raise ValueError(
            f"at least half of the {len(vectors)} clips have the same features, so there is no "
            "distance to measure: check the audio by `metaser tasks check`"
        )
    return 1 / (2 * median)


def mmd(a: np.ndarray, b: np.ndarray, gamma: float | None = None) -> float:
    """Squared maximum mean discrepancy of two samples, unbiased, under an RBF kernel.

    Parameters
    ----------
    a, b : ndarray
        (clips, channels), at least two clips each.
    gamma : float, optional
        exp(−gamma · distance²); by default the median heuristic over both samples.

    Returns
    -------
    float
        About 0 if both come from one distribution (it may be below), at most 2. NaN if a sample
        has one clip.

    References
    ----------
    Gretton et al., "A Kernel Two-Sample Test", JMLR 2012, equation 3.
    """
    gamma = median_gamma(np.concatenate([a, b])) if gamma is None else gamma
    return _mmd(a, b, gamma)(np.ones(len(a)), np.ones(len(b)))


def _mmd(a: np.ndarray, b: np.ndarray, gamma: float) -> Statistic:
    """The discrepancy as a function of how often each clip counts; no clip is its own partner."""
    within = [rbf_kernel(side, gamma=gamma) for side in (a, b)]
    for kernel in within:
        np.fill_diagonal(kernel, 0)
    between = rbf_kernel(a, b, gamma=gamma)

    def statistic(*weights: np.ndarray) -> float:
        pairs = [w.sum() ** 2 - (w**2).sum() for w in weights]
        if min(pairs) <= 0:
            return float("nan")
        own = sum(w @ kernel @ w / n for w, kernel, n in zip(weights, within, pairs))
        return float(own - 2 * weights[0] @ between @ weights[1] / np.prod([*map(np.sum, weights)]))

    return statistic


def proxy_a_distance(a: Clips, b: Clips, folds: int = FOLDS, seed: int = 0) -> float:
    """How well a logistic regression tells two corpora apart by speakers it has not heard.

    Parameters
    ----------
    a, b : Clips
        The two corpora.
    folds : int
        Of the cross-validation; no speaker stands in two folds.
    seed : int
        Deals the speakers to the folds.

    Returns
    -------
    float
        2 (1 − 2 · error), error being the mean of both corpora's: 2 if they are always told apart,
        0 at chance, below if the classifier misleads, as it does where normalisation has made the
        means of both corpora equal. NaN if a corpus has fewer speakers than folds.

    References
    ----------
    Ben-David, Blitzer, Crammer, Pereira, "Analysis of Representations for Domain Adaptation",
    NIPS 2006, section 4.
    """
    return _proxy_a(a, b, folds, seed)(np.ones(len(a)), np.ones(len(b)))


def _proxy_a(a: Clips, b: Clips, folds: int, seed: int) -> Statistic:
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
        error = np.mean([np.average(own, weights=w) for own, w in zip(wrong, weights)])
        return float(2 * (1 - 2 * error))

    return statistic


def _by_class(a: Clips, b: Clips, distance: Callable[[np.ndarray, np.ndarray], Statistic]):
    """Mean over the shared classes of a distance between the clips of each class."""
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
    """Root mean square difference of the mean vectors, over the channels."""

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
    limit: int = 200,
    resamples: int = 200,
    seed: int = 0,
    wanted: Collection[str] = (*UNLABELLED, *LABELLED),
) -> pd.DataFrame:
    """Distances of a target from each source.

    As many clips of each corpus are drawn, so that no distance depends on a corpus's size. Every
    channel is scaled to deviation 1 over all clips drawn, and one kernel width (median heuristic
    over the same clips) and one number of folds serve all sources.

    Parameters
    ----------
    target : Clips
        Emotions are looked at only where ``shots`` is above 0, and only those of the clips drawn.
    sources : mapping of str to Clips
        By name.
    shots : int
        Labelled clips of each class that the target has; 0 leaves the labelled distances out.
    limit : int
        Clips drawn of each corpus, at most.
    resamples : int
        Draws of the speakers behind each interval.
    seed : int
        Chooses clips, folds and draws.
    wanted : collection of str
        Distances to take.

    Returns
    -------
    DataFrame
        One row a source and distance: ``source``, ``distance``, ``value``, ``low``, ``high`` and
        ``clips`` of each corpus. The interval is value ± 1.96 standard errors, the standard error
        being that of drawing the speakers of both corpora again; the percentiles of such draws
        would be shifted, since a speaker who is drawn twice makes a corpus narrower. The interval
        is NaN if a corpus has one speaker.

    Raises
    ------
    ValueError
        If there is no source, a corpus has fewer than two clips, or a class of the target has
        fewer clips than ``shots``.
    """
    if not sources:
        raise ValueError("there is no source to compare with: name at least one other task")
    size = min(limit, len(target), *map(len, sources.values()))
    if size < 2:
        raise ValueError(f"a distance needs at least two clips of each corpus, not {size}")
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
    rows = []
    for name, clips in drawn.items():
        pair = _scaled(target, scale), _scaled(clips, scale)
        for kind, sides, statistic in _statistics(*pair, labelled, gamma, folds, seed, wanted):
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
    """The sources that are nearest to a target, or farthest from it, nearest first.

    Parameters
    ----------
    target, sources, seed
        See ``compare``.
    count : int
        How many; all if there are not so many.
    by : {"mmd", "proxy_a"}
        A distance that needs no label of the target.
    order : {"nearest", "farthest"}
        The latter as a control.

    Raises
    ------
    ValueError
        If the distance is not defined for a source, or is no such distance.
    """
    if by not in UNLABELLED or order not in ("nearest", "farthest"):
        raise ValueError(
            f"by must be one of {UNLABELLED} and order 'nearest' or 'farthest', not {by!r} and "
            f"{order!r}"
        )
    found = compare(target, sources, resamples=0, seed=seed, wanted=(by,))
    values = found.set_index("source")["value"]
    undefined = values.index[values.isna()].tolist()
    if undefined:
        raise ValueError(
            f"{by} is not defined for {undefined[0]}: a corpus has one speaker; choose by 'mmd'"
        )
    ranked = values.sort_values(kind="stable").index.tolist()
    return ranked[:count] if order == "nearest" else ranked[-count:]


def _statistics(
    target: Clips, source: Clips, labelled: Clips, gamma, folds, seed, wanted
) -> Iterator[tuple[str, tuple[Clips, Clips], Statistic]]:
    """Name, the two sides, and the statistic of each distance that is wanted."""
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
    """As many clips of each class, drawn at random."""
    order = rng.permutation(len(target))
    rows = [order[target.emotions[order] == name][:shots] for name in np.unique(target.emotions)]
    for own in rows:
        if len(own) < shots:
            raise ValueError(
                f"class '{target.emotions[own[0]]}' of the target holds {len(own)} clips, not the "
                f"{shots} labelled ones asked for: ask for fewer shots"
            )
    return target[np.concatenate(rows)]


def _standard_error(
    statistic: Statistic, sides: tuple[Clips, Clips], resamples: int, rng: np.random.Generator
) -> float:
    """Deviation of a statistic when the speakers of both sides are drawn again."""
    speakers = [np.unique(side.speakers, return_inverse=True)[1] for side in sides]
    counts = [own.max() + 1 for own in speakers]
    if min(counts) < 2:
        return float("nan")
    values = []
    for _ in range(resamples):
        drawn = [rng.multinomial(count, np.full(count, 1 / count)) for count in counts]
        values.append(statistic(*[own[who].astype(float) for own, who in zip(drawn, speakers)]))
    values = np.array(values)
    values = values[~np.isnan(values)]  # draws that leave a class without clips
    return float(values.std(ddof=1)) if len(values) > 1 else float("nan")
