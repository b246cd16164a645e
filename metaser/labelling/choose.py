"""Which clips of a new language to label first, from their sound alone.

Distances are Euclidean in standardised features. None of these functions sees a label.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from joblib import Parallel, delayed
from sklearn.cluster import KMeans
from sklearn.metrics import pairwise_distances_argmin_min

from metaser import audio
from metaser.frontends.spectral import Statistics


def at_random(
    values: np.ndarray,
    count: int,
    rng: np.random.Generator,
    speakers: Sequence | None = None,
    labelled: Sequence[int] = (),
) -> np.ndarray:
    """Draw clips at random; from all speakers equally often where speakers are given.

    Parameters
    ----------
    values : ndarray of float, shape (clips, channels)
        Standardised features, see `standardise`.
    count : int
        Clips to choose, 1 to the number of clips that are not labelled.
    rng : numpy.random.Generator
    speakers : sequence, optional
        Who speaks each clip.
    labelled : sequence of int
        Rows that were chosen before, and are not chosen again.

    Returns
    -------
    ndarray of int, shape (count,)
        Rows in the order of choice; a smaller choice is not always a part of a larger one.
    """
    _check(values, count, labelled)
    place = rng.permutation(len(values))
    return _one_by_one(count, speakers, len(values), lambda chosen: place, labelled)


def k_centre(
    values: np.ndarray,
    count: int,
    rng: np.random.Generator,
    speakers: Sequence | None = None,
    labelled: Sequence[int] = (),
) -> np.ndarray:
    """Choose the clip that is farthest from all that are chosen, again and again.

    This is the greedy 2-approximation of the k-centre problem (Gonzalez, "Clustering to minimize
    the maximum intercluster distance", 1985), in active learning known as core-set selection
    (Sener, Savarese, ICLR 2018). It goes on from the labelled clips, or begins with the clip
    nearest to the mean, and uses no random numbers. Parameters and result as in `at_random`; each
    choice is a part of larger ones.
    """
    _check(values, count, labelled)
    far = np.full(len(values), np.inf)
    if len(labelled):
        far = pairwise_distances_argmin_min(values, values[list(labelled)])[1]

    def distance(chosen: list[int]) -> np.ndarray:
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
    speakers: Sequence | None = None,
    labelled: Sequence[int] = (),
) -> np.ndarray:
    """Divide the clips into as many clusters as are to be chosen, and take each one's middle.

    The clip nearest to the mean of each cluster by scikit-learn's k-means, the largest cluster
    first. For every labelled clip there is one cluster more, and clusters that hold a labelled clip
    count as chosen. Parameters and result as in `at_random`.
    """
    _check(values, count, labelled)
    seed = int(rng.integers(2**31))
    clusters = count + len(labelled)
    found = KMeans(clusters, n_init=1, random_state=seed).fit(values)
    free = np.setdiff1d(np.arange(clusters), found.labels_[list(labelled)])
    sizes = np.bincount(found.labels_, minlength=clusters)[free]
    centres = found.cluster_centers_[free[np.argsort(-sizes, kind="stable")]]

    def nearness(chosen: list[int]) -> np.ndarray:
        return -np.linalg.norm(values - centres[len(chosen)], axis=1)

    return _one_by_one(count, speakers, len(values), nearness, labelled)


STRATEGIES = {"random": at_random, "k_centre": k_centre, "k_means": k_means}


def hear(paths: Sequence[Path], jobs: int = 1) -> np.ndarray:
    """Pooled statistics of files that belong to no task, float32, shape (files, channels).

    Raises
    ------
    AudioError
        If a file cannot be read; the message names it.
    """
    return np.concatenate(Parallel(n_jobs=jobs)(delayed(_statistics)(path) for path in paths))


def _statistics(path: Path) -> np.ndarray:
    frontend = Statistics()
    return frontend(audio.read(path, frontend.rate))


def standardise(values: np.ndarray, limit: float = 5.0) -> np.ndarray:
    """Give each channel mean 0 and deviation 1, and clip it to `limit` deviations.

    Parameters
    ----------
    values : ndarray of float, shape (clips, channels)
    """
    centred = values - values.mean(axis=0)
    return np.clip(centred / np.maximum(centred.std(axis=0), 1e-6), -limit, limit)


def _one_by_one(
    count: int,
    speakers: Sequence | None,
    clips: int,
    worth: Callable[[list[int]], np.ndarray],
    labelled: Sequence[int],
) -> np.ndarray:
    """Take the clip of most worth, of those whose speaker has been taken least often."""
    who = np.zeros(clips, int)
    if speakers is not None:
        who = np.unique(np.asarray(speakers), return_inverse=True)[1]
    taken = np.bincount(who[list(labelled)], minlength=who.max() + 1)
    left, chosen = ~np.isin(np.arange(clips), labelled), []
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
    free = len(values) - len(labelled)
    if not 1 <= count <= free:
        raise ValueError(
            f"expected to choose 1 to {free} clips, which are there without a label, not {count}"
        )
