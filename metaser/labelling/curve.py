"""Measure how UAR grows with the number of labelled clips, and estimate how many are needed.

The learning curve is measured on the clips at hand, and a power law is fitted to it:
UAR(K) = limit - loss · K^(-rate), where K is the number of clips per class. In many fields the
error falls with the number of examples in this way (Cortes et al., "Learning Curves: Asymptotic
Values and Rate of Convergence", NIPS 1993).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.optimize import curve_fit

from metaser import metrics, stats
from metaser.adaptation import adapt as adaptation
from metaser.adaptation.model_file import ModelFile
from metaser.episodes import Episode, TaskSampler, tensors
from metaser.features.table import Features
from metaser.files import whole
from metaser.methods.baselines import LogisticRegression
from metaser.naming import nearest
from metaser.tasks.task import Task

SHOTS = (1, 2, 5, 10, 20, 50, 100, 200)
"""Numbers of clips per class at which the curve is measured, as far as there are enough clips."""

MOST_QUERIES = 10
"""Largest number of query clips per class that `usual_queries` returns."""

FEWEST = 3
"""Smallest number of points through which a curve is fitted."""

FREE_RATE = 4
"""Number of points from which the rate is fitted too; with fewer points it is 1/2."""


@dataclass(frozen=True)
class Curve:
    """A power law through a learning curve.

    Attributes
    ----------
    limit : float
        UAR that the curve approaches, in [0, 1].
    loss : float
        Difference between `limit` and the UAR at one clip per class, at least 0.
    rate : float
        Exponent, above 0: how fast the curve approaches its limit.
    """

    limit: float
    loss: float
    rate: float

    def at(self, shots: np.ndarray | float) -> np.ndarray | float:
        """Return the UAR at a number of clips per class; for an array, an array of equal shape."""
        return self.limit - self.loss * np.power(shots, -self.rate)

    def needed(self, uar: float) -> float:
        """Return the clips per class at which the curve reaches a UAR; infinity if it never does.

        The result is at least 1.
        """
        if self.at(1.0) >= uar:
            return 1.0
        if uar >= self.limit:
            return float("inf")
        return float((self.loss / (self.limit - uar)) ** (1 / self.rate))


@dataclass(frozen=True)
class Need:
    """Number of clips per class that a wanted UAR needs.

    Attributes
    ----------
    clips : float
        According to the fit to all scores; infinite if the fit levels off below the wanted UAR.
    low, high : float
        95 % interval over resampled episodes; infinite where resamples never reach the wanted UAR.
    unreached : float
        Share of the resamples that never reach it, in [0, 1].
    """

    clips: float
    low: float
    high: float
    unreached: float


def possible_shots(task: Task, queries: int, speakers: str, seed: int = 0) -> list[int]:
    """Return those numbers of clips per class in `SHOTS` for which a task has enough clips.

    Parameters
    ----------
    task : Task
        With audio.
    queries, speakers, seed
        See `TaskSampler`.

    Raises
    ------
    ValueError
        If not even one clip per class is possible; the message says why.
    """
    possible: list[int] = []
    for shots in SHOTS:
        try:
            TaskSampler(task, task.classes, shots, queries, seed, speakers)
        except ValueError:
            if not possible:
                raise
            break
        possible.append(shots)
    return possible


def usual_queries(task: Task) -> int:
    """Return the usual query clips per class: a quarter of the smallest class, 1 to 10."""
    return int(np.clip(min(task.counts.values()) // 4, 1, MOST_QUERIES))


def measure(
    task: Task,
    guess: Callable[[Episode], np.ndarray],
    shots: Sequence[int],
    *,
    queries: int,
    episodes: int,
    seed: int = 0,
    speakers: str = "disjoint",
    classes: Sequence[str] | None = None,
) -> dict[int, list[float]]:
    """Score a classifier that learns from a few clips, on episodes of a task.

    Parameters
    ----------
    task : Task
        With audio.
    guess : callable
        Takes an episode and returns the classes of its query clips, shape (queries,), as
        `logistic_regression` and `adapted_model` provide it.
    shots : sequence of int
        Numbers of clips per class to learn from.
    queries, seed, speakers
        See `TaskSampler`. Equal values give equal episodes, whichever classifier is scored.
    episodes : int
        Number of episodes per number of shots.
    classes : sequence of str, optional
        Classes in the order of the indices in episodes; by default the task's.

    Returns
    -------
    dict of int to list of float
        UAR of each episode, in [0, 1], by the number of shots.
    """
    scores = {}
    for count in shots:
        sampler = TaskSampler(task, classes or task.classes, count, queries, seed, speakers)
        drawn = (sampler.episode(index) for index in range(episodes))
        scores[count] = [metrics.uar(one.query_targets, guess(one)) for one in drawn]
    return scores


def logistic_regression(
    features: Features, strength: float = 1.0
) -> Callable[[Episode], np.ndarray]:
    """Return a function that learns from an episode's support clips by logistic regression.

    Parameters
    ----------
    features : Features
        Normalised features of the task's clips.
    strength : float
        Penalty, see `LogisticRegression`; the default was chosen on source languages.

    Returns
    -------
    callable
        Takes an episode and returns the predicted classes of its query clips, shape (queries,).
    """

    def guess(episode: Episode) -> np.ndarray:
        """Predict the query clips of an episode."""
        batch = tensors(episode, features)
        predict = LogisticRegression(strength).adapt(batch.support)
        return predict(batch.query.modalities).argmax(dim=1).numpy()

    return guess


def fit(scores: Mapping[int, Sequence[float]]) -> Curve:
    """Fit a power law to the mean scores, each weighted by its standard error.

    Parameters
    ----------
    scores : mapping of int to sequence of float
        UAR of each episode, by the number of clips per class. With fewer than four points the rate
        is not fitted but 1/2.

    Raises
    ------
    ValueError
        If there are fewer than three points.
    """
    if len(scores) < FEWEST:
        raise ValueError(
            f"a curve needs three points, but only K = {', '.join(map(str, scores))} can be "
            "measured: label more clips of every class and speaker"
        )
    shots = np.array(list(scores), float)
    mean = np.array([np.mean(values) for values in scores.values()])
    error = np.array([np.std(values) / np.sqrt(len(values)) for values in scores.values()])
    error = np.maximum(error, 1e-3)
    free = len(shots) >= FREE_RATE

    def law(shots: np.ndarray, limit: float, loss: float, rate: float = 0.5) -> np.ndarray:
        """Return the UAR at these numbers of clips per class."""
        return limit - loss * shots**-rate

    start = [min(mean.max() + 0.05, 0.99), max(mean.max() - mean[0], 0.05), 0.5]
    bounds = [0, 0, 0.1], [1, 1, 2]
    size = 3 if free else 2
    fitted = curve_fit(
        law,
        shots,
        mean,
        p0=start[:size],
        sigma=error,
        bounds=tuple(side[:size] for side in bounds),
        max_nfev=10_000,
    )[0]
    return Curve(*map(float, fitted), *([] if free else [0.5]))


def resample(
    scores: Mapping[int, Sequence[float]], rng: np.random.Generator, resamples: int = 500
) -> list[Curve]:
    """Fit the curve to many resamples of the episodes (bootstrap).

    Parameters
    ----------
    scores : mapping of int to sequence of float
        As for `fit`.
    rng : numpy.random.Generator
        Draws the episodes, with replacement.
    resamples : int
        Number of resamples.

    Returns
    -------
    list of Curve
        One per resample.
    """
    arrays = {shots: np.asarray(values) for shots, values in scores.items()}
    return [
        fit({shots: rng.choice(values, len(values)).tolist() for shots, values in arrays.items()})
        for _ in range(resamples)
    ]


def need(curve: Curve, resampled: Sequence[Curve], uar: float) -> Need:
    """Return the clips per class that a UAR needs, with the interval over resamples.

    On scores made by a power law (5 points, 100 episodes each, 120 trials, 100 resamples) the
    nominal 95 % interval contained the truth in 93 to 96 % of the trials.

    Parameters
    ----------
    curve : Curve
        From `fit`.
    resampled : sequence of Curve
        From `resample`.
    uar : float
        The wanted UAR, in (0, 1).

    Raises
    ------
    ValueError
        If `uar` is not in (0, 1).
    """
    if not 0 < uar < 1:
        raise ValueError(
            f"the wanted UAR must be between 0 and 1, such as 0.7, not {uar}: give a fraction"
        )
    counts = np.array([one.needed(uar) for one in resampled])
    low, high = np.quantile(counts, [0.025, 0.975], method="nearest")
    return Need(curve.needed(uar), float(low), float(high), float(np.isinf(counts).mean()))


def tell(found: Need, curve: Curve, uar: float, measured: Sequence[int]) -> str:
    """Say in sentences how many clips per class a UAR needs, and how far that can be trusted.

    Parameters
    ----------
    found : Need
        From `need`.
    curve : Curve
        The fit to all scores.
    uar : float
        The wanted UAR, in (0, 1).
    measured : sequence of int
        Numbers of clips per class that were measured.
    """
    largest, wanted = max(measured), f"UAR {uar:.0%}"
    if np.isinf(found.clips):
        return (
            f"According to the fit, {wanted} cannot be reached: it levels off at "
            f"{curve.limit:.0%}, however many clips there are ({1 - found.unreached:.0%} of the "
            "resamples reach it). Other features, or learning from other languages, may reach it."
        )
    low, high = (_count(value) for value in (found.low, found.high))
    text = f"{wanted} needs about {_count(found.clips)} clips per class [{low}, {high}]."
    if found.clips > largest:
        text += (
            f" That is beyond what was measured (up to {largest}): an extrapolation, to be "
            "measured again when there are more clips."
        )
    elif found.high > largest:
        text += f" The interval reaches beyond what was measured (up to {largest})."
    if found.unreached > 0:
        text += f" {found.unreached:.0%} of the resamples never reach it."
    return text


def _count(value: float) -> str:
    """Return a number of clips in words, rounded up."""
    if np.isinf(value):
        return "never"
    return f"over {10_000:,}" if value > 10_000 else str(int(np.ceil(value - 1e-9)))


def draw(
    path: Path,
    scores: Mapping[int, Sequence[float]],
    curve: Curve | None,
    *,
    resampled: Sequence[Curve],
    title: str,
    chance: float,
    wanted: float | None = None,
) -> None:
    """Draw a learning curve: scores with their intervals, the fit with its band, and chance.

    Parameters
    ----------
    path : Path
        File to write, .png or .svg.
    scores : mapping of int to sequence of float
        As for `fit`.
    curve : Curve or None
        From `fit`; None if there were too few points for a fit.
    resampled : sequence of Curve
        From `resample`; the band holds 95 % of them.
    title : str
        Title of the figure.
    chance : float
        UAR of guessing, in [0, 1].
    wanted : float, optional
        A UAR to mark.

    Raises
    ------
    ValueError
        If the file is neither .png nor .svg.
    """
    kind = path.suffix.lower().removeprefix(".")
    if kind not in ("png", "svg"):
        raise ValueError(
            f"a figure must be a .png or .svg file, not {path.name!r}: choose another name"
        )
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    means = stats.intervals(scores)
    shots = np.array(list(scores))
    centre = np.array([mean.mean for mean in means.values()])
    ends = np.array([(mean.low, mean.high) for mean in means.values()]).T
    axes.errorbar(shots, centre, np.abs(ends - centre), fmt="o", capsize=3, label="measured")
    if curve is not None:
        line = np.geomspace(1, 4 * shots.max(), 100)
        inside = line <= shots.max()
        lines = np.array([one.at(line) for one in resampled])
        low, high = np.quantile(lines, [0.025, 0.975], axis=0)
        axes.fill_between(line, low, high, alpha=0.2, color="C0", linewidth=0)
        axes.plot(line[inside], curve.at(line[inside]), color="C0", label="fit")
        axes.plot(line[~inside], curve.at(line[~inside]), "--", color="C0", label="extrapolated")
    axes.axhline(chance, color="grey", linestyle=":", label="chance")
    if wanted is not None:
        axes.axhline(wanted, color="C1", linestyle="-.", label="wanted")
    axes.set(xscale="log", xlabel="labelled clips per class", ylabel="UAR", title=title)
    axes.legend()
    with whole(path) as part:
        figure.savefig(part, format=kind, dpi=150)


def adapted_model(
    file: ModelFile, features: Features, speakers: np.ndarray
) -> Callable[[Episode], np.ndarray]:
    """Return a function that adapts the model to an episode's support clips.

    Parameters
    ----------
    file : ModelFile
        From `metaser train`; its classes are those of the episodes, in the same order.
    features : Features
        Features of the task's clips from the model's front end, not normalised. As in
        `metaser adapt`, mean and deviation for normalising come from the support clips and the
        sources.
    speakers : ndarray
        (clips,) who speaks in each clip of the task. A model that knows voices looks at the query
        clips of a speaker, without their labels.

    Returns
    -------
    callable
        Takes an episode and returns the predicted classes of its query clips, shape (queries,).
    """

    def guess(episode: Episode) -> np.ndarray:
        """Adapt to the support clips of an episode, and predict its query clips."""
        fitted = adaptation.fit(
            file,
            features,
            episode.support,
            episode.support_targets,
            speakers[episode.support],
        )
        who = speakers[episode.query]
        return fitted.scores(features, episode.query, who).argmax(axis=1)

    return guess


def check_model(file: ModelFile, task: Task) -> None:
    """Check that a model can be scored on a task.

    Raises
    ------
    ValueError
        If the model is adapted already, or does not know a class of the task.
    """
    if file.adapted is not None:
        assert file.header.adaptation is not None  # it says to what the model is adapted
        raise ValueError(
            "the model must not be adapted yet, but is adapted to "
            f"{file.header.adaptation.name!r} already: give the file that `metaser train` wrote"
        )
    known = file.header.classes
    for name in task.classes:
        if name not in known:
            raise ValueError(
                f"{name!r} is not a class of the model.{nearest(name, known)} It knows "
                f"{', '.join(known)}: choose among them by --classes"
            )
