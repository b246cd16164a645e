"""Choose which clips of a new language to label first, by their sound alone.

Distances are Euclidean, between standardised features. None of these functions sees a label.
"""

from collections.abc import Callable, Hashable, Sequence
from pathlib import Path

import numpy as np
from joblib import Parallel, delayed
from sklearn.cluster import KMeans
from sklearn.metrics import pairwise_distances_argmin_min

from metaser.features.hear import at_rate, compute_frames, read_clip
from metaser.frontends import make_frontend


def at_random(
    values: np.ndarray,
    count: int,
    rng: np.random.Generator,
    speakers: Sequence[Hashable] | None = None,
    labelled: Sequence[int] = (),
) -> np.ndarray:
    """Choose clips at random; equally many of each speaker where speakers are given.

    Parameters
    ----------
    values : ndarray of float, shape (clips, channels)
        Standardised features, see `standardise`.
    count : int
        Number of clips to choose, from 1 to the number of clips without a label.
    rng : numpy.random.Generator
        Source of random numbers.
    speakers : sequence, optional
        Speaker of each clip.
    labelled : sequence of int
        Rows of the clips that have a label; they are not chosen again.

    Returns
    -------
    ndarray of int, shape (count,)
        Rows in the order of choice; a smaller choice is not always a part of a larger one.

    Raises
    ------
    ValueError
        If `count` is out of range.
    """
    _check(values, count, labelled)
    place = rng.permutation(len(values))
    return _one_by_one(count, speakers, len(values), lambda chosen: place, labelled)


def k_centre(
    values: np.ndarray,
    count: int,
    rng: np.random.Generator,
    speakers: Sequence[Hashable] | None = None,
    labelled: Sequence[int] = (),
) -> np.ndarray:
    """Choose, one after the other, the clip that is farthest from all chosen clips.

    This is the greedy 2-approximation of the k-centre problem (Gonzalez, "Clustering to minimize
    the maximum intercluster distance", 1985), known in active learning as core-set selection
    (Sener, Savarese, ICLR 2018). Labelled clips count as chosen; without any, the first choice is
    the clip nearest to the mean. No random numbers are used. Parameters and result are those of
    `at_random`, but a smaller choice is always a part of a larger one.
    """
    del rng  # every strategy takes one; this one does not draw
    _check(values, count, labelled)
    far = np.full(len(values), np.inf)
    if len(labelled):
        far = pairwise_distances_argmin_min(values, values[list(labelled)])[1]

    def distance(chosen: list[int]) -> np.ndarray:
        """Return the distance of each clip to the nearest chosen one."""
        if not chosen and not len(labelled):
            return -np.linalg.norm(values - values.mean(axis=0), axis=1)
        if chosen:
            np.minimum(far, np.linalg.norm(values - values[chosen[-1]], axis=1), out=far)
        return far

    return _one_by_one(count, speakers, len(values), distance, labelled)


def k_means(
    values: np.ndarray,
    count: int,
    rng: np.random.Generator,
    speakers: Sequence[Hashable] | None = None,
    labelled: Sequence[int] = (),
) -> np.ndarray:
    """Divide the clips into clusters, and choose the clip nearest to the centre of each.

    The clusters are those of scikit-learn's k-means; the largest one comes first. There is one
    cluster per clip to choose and one more per labelled clip. Clusters that hold a labelled clip
    count as covered. Parameters and result are those of `at_random`.
    """
    _check(values, count, labelled)
    seed = int(rng.integers(2**31))
    clusters = count + len(labelled)
    clustering = KMeans(clusters, n_init=1, random_state=seed).fit(values)
    free = np.setdiff1d(np.arange(clusters), clustering.labels_[list(labelled)])
    sizes = np.bincount(clustering.labels_, minlength=clusters)[free]
    centres = clustering.cluster_centers_[free[np.argsort(-sizes, kind="stable")]]

    def nearness(chosen: list[int]) -> np.ndarray:
        """Return how near each clip is to the centre of the next cluster."""
        return -np.linalg.norm(values - centres[len(chosen)], axis=1)

    return _one_by_one(count, speakers, len(values), nearness, labelled)


STRATEGIES = {"random": at_random, "k_centre": k_centre, "k_means": k_means}
"""Ways to choose clips, by the names that `metaser select` takes."""


def hear(paths: Sequence[Path], jobs: int = 1) -> np.ndarray:
    """Extract pooled statistics from audio files that belong to no task.

    Parameters
    ----------
    paths : sequence of Path
        The audio files.
    jobs : int
        Processes that extract.

    Returns
    -------
    ndarray of float32, shape (files, channels)
        One row per file, see `metaser.frontends.spectral.Statistics`.

    Raises
    ------
    AudioError
        If a file cannot be read, or its features are not finite; the message names it.
    """
    return np.concatenate(Parallel(n_jobs=jobs)(delayed(_statistics)(path) for path in paths))


def _statistics(path: Path) -> np.ndarray:
    """Extract the statistics of one file of any length, (1, channels)."""
    frontend = make_frontend({"name": "statistics"})
    (heard,) = compute_frames([at_rate(read_clip(path), frontend.rate)], frontend)
    return heard.frames


def standardise(values: np.ndarray, limit: float = 5.0) -> np.ndarray:
    """Scale each channel to mean 0 and standard deviation 1, and clip outliers.

    Parameters
    ----------
    values : ndarray of float, shape (clips, channels)
        Features; a constant channel becomes 0.
    limit : float
        Largest magnitude of the result, in standard deviations.

    Returns
    -------
    ndarray of float, shape (clips, channels)
        In [-limit, limit].
    """
    centred = values - values.mean(axis=0)
    return np.clip(centred / np.maximum(centred.std(axis=0), 1e-6), -limit, limit)


def _one_by_one(
    count: int,
    speakers: Sequence[Hashable] | None,
    clips: int,
    worth: Callable[[list[int]], np.ndarray],
    labelled: Sequence[int],
) -> np.ndarray:
    """Choose, one after the other, the best clip among those of the speakers chosen least often.

    `worth` takes the rows chosen so far and returns one value per clip. Labelled clips count as
    chosen.
    """
    who = np.zeros(clips, int)
    if speakers is not None:
        who = np.unique(np.asarray(speakers), return_inverse=True)[1]
    taken = np.bincount(who[list(labelled)], minlength=who.max() + 1)
    left = ~np.isin(np.arange(clips), labelled)
    chosen: list[int] = []
    for _ in range(count):
        value = worth(chosen)
        least = taken[who[left]].min()
        open_ = np.flatnonzero(left & (taken[who] == least))
        best = int(open_[np.argmax(value[open_])])
        chosen.append(best)
        left[best] = False
        taken[who[best]] += 1
    return np.array(chosen)


def _check(values: np.ndarray, count: int, labelled: Sequence[int]) -> None:
    """Check that there are enough clips without a label."""
    free = len(values) - len(labelled)
    if not 1 <= count <= free:
        raise ValueError(
            f"the number of clips to choose must be from 1 to {free}, the number of clips without "
            f"a label, not {count}: choose another number"
        )
