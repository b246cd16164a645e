"""How well a language is recognised by the number of labelled clips, and how many are needed.

The curve is measured on the clips at hand, and a power law fitted to it:
UAR(K) = limit - loss · K^(-rate), as error falls with the number of examples in many fields (Cortes
et al., "Learning Curves: Asymptotic Values and Rate of Convergence", NIPS 1993).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.optimize import curve_fit

from metaser import metrics, stats
from metaser.adaptation import adapt as adaptation
from metaser.adaptation.model_file import ModelFile, scores
from metaser.episodes import Episode, TaskSampler, tensors
from metaser.features.table import Features
from metaser.files import whole
from metaser.methods.baselines import LogisticRegression
from metaser.naming import nearest
from metaser.tasks.task import Task

SHOTS = (1, 2, 5, 10, 20, 50, 100, 200)
"""Clips a class that are tried, as far as the clips allow."""

MOST_QUERIES = 10
FEWEST = 3
"""Points without which no curve is fitted."""

FREE_RATE = 4
"""Points from which on the rate is fitted too; with fewer it is 1/2."""


@dataclass(frozen=True)
class Curve:
    """A power law through a learning curve.

    Attributes
    ----------
    limit : float
        UAR that the curve approaches, in [0, 1].
    loss : float
        By how much UAR at one clip a class is below it, at least 0.
    rate : float
        Exponent, above 0.
    """

    limit: float
    loss: float
    rate: float

    def at(self, shots: np.ndarray | float) -> np.ndarray | float:
        """UAR at a number of clips a class."""
        return self.limit - self.loss * np.power(shots, -self.rate)

    def needed(self, uar: float) -> float:
        """Clips a class at which the curve reaches a UAR; infinite if it never does."""
        if self.at(1.0) >= uar:
            return 1.0
        if uar >= self.limit:
            return float("inf")
        return float((self.loss / (self.limit - uar)) ** (1 / self.rate))


@dataclass(frozen=True)
class Need:
    """Clips a class that a wanted UAR asks for.

    Attributes
    ----------
    clips : float
        By the fit to all scores; infinite if the fit levels off below.
    low, high : float
        95 % interval over resampled episodes; infinite where a resample never gets there.
    unreached : float
        Share of the resamples that never get there, in [0, 1].
    """

    clips: float
    low: float
    high: float
    unreached: float


def possible_shots(task: Task, queries: int, speakers: str, seed: int = 0) -> list[int]:
    """Numbers of clips a class, of `SHOTS`, for which a task has episodes.

    Raises
    ------
    ValueError
        If not even one clip a class is possible; it says why.
    """
    found = []
    for shots in SHOTS:
        try:
            TaskSampler(task, task.classes, shots, queries, seed, speakers)
        except ValueError:
            if not found:
                raise
            break
        found.append(shots)
    return found


def usual_queries(task: Task) -> int:
    """Query clips a class: a quarter of the smallest class, 1 to 10."""
    return int(np.clip(min(task.counts.values()) // 4, 1, MOST_QUERIES))


def measure(
    task: Task,
    guess: Callable[[Episode], np.ndarray],
    shots: Sequence[int],
    queries: int,
    episodes: int,
    seed: int = 0,
    speakers: str = "disjoint",
    classes: Sequence[str] | None = None,
) -> dict[int, list[float]]:
    """Score what learns from some clips on episodes of a task.

    Parameters
    ----------
    task : Task
        With audio.
    guess : callable
        From an episode to the classes of its query clips, such as `logistic_regression` gives.
    shots : sequence of int
        Clips a class to learn from.
    queries, episodes, seed, speakers
        See `TaskSampler`; the same ones give the same episodes, whatever guesses.
    classes : sequence of str, optional
        Which classes the indices in episodes stand for; the task's if not given.

    Returns
    -------
    dict of int to list of float
        UAR of each episode, by the number of shots.
    """
    found = {}
    for count in shots:
        sampler = TaskSampler(task, classes or task.classes, count, queries, seed, speakers)
        drawn = (sampler.episode(index) for index in range(episodes))
        found[count] = [metrics.uar(one.query_targets, guess(one)) for one in drawn]
    return found


def logistic_regression(
    features: Features, strength: float = 1.0
) -> Callable[[Episode], np.ndarray]:
    """What guesses by logistic regression on an episode's support clips.

    Parameters
    ----------
    features : Features
        Of the task's clips, normalised.
    strength : float
        Penalty, see `LogisticRegression`; the default was chosen on source languages.
    """

    def guess(episode: Episode) -> np.ndarray:
        batch = tensors(episode, features)
        predict = LogisticRegression(strength).adapt(batch.support)
        return predict(batch.query.modalities).argmax(dim=1).numpy()

    return guess


def fit(scores: Mapping[int, Sequence[float]]) -> Curve:
    """Fit a power law to the mean scores, each weighted by its standard error.

    With fewer than four points the rate is 1/2.

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
    error = [np.std(values) / np.sqrt(len(values)) for values in scores.values()]
    error = np.maximum(error, 1e-3)
    free = len(shots) >= FREE_RATE

    def law(shots, limit, loss, rate=0.5):
        return limit - loss * shots**-rate

    start = [min(mean.max() + 0.05, 0.99), max(mean.max() - mean[0], 0.05), 0.5]
    bounds = [0, 0, 0.1], [1, 1, 2]
    size = 3 if free else 2
    found = curve_fit(
        law,
        shots,
        mean,
        p0=start[:size],
        sigma=error,
        bounds=tuple(side[:size] for side in bounds),
        max_nfev=10_000,
    )[0]
    return Curve(*map(float, found), *([] if free else [0.5]))


def resample(
    scores: Mapping[int, Sequence[float]], rng: np.random.Generator, resamples: int = 500
) -> list[Curve]:
    """Fit the curve to episodes drawn again with replacement, again and again."""
    values = {shots: np.asarray(own) for shots, own in scores.items()}
    return [
        fit({shots: rng.choice(own, len(own)) for shots, own in values.items()})
        for _ in range(resamples)
    ]


def need(curve: Curve, resampled: Sequence[Curve], uar: float) -> Need:
    """Clips a class that a UAR in (0, 1) asks for, with the interval over resamples.

    On scores made by a power law (5 points, 100 episodes each, 120 trials, 100 resamples) the
    nominal 95 % held the truth in 93 to 96 % of the trials.
    """
    if not 0 < uar < 1:
        raise ValueError(
            f"the UAR that is wanted must lie between 0 and 1, such as 0.7; came {uar}"
        )
    counts = np.array([one.needed(uar) for one in resampled])
    low, high = np.quantile(counts, [0.025, 0.975], method="nearest")
    return Need(curve.needed(uar), float(low), float(high), float(np.isinf(counts).mean()))


def tell(found: Need, curve: Curve, uar: float, measured: Sequence[int]) -> str:
    """Say in sentences how many clips a class a UAR asks for, and how far that can be trusted."""
    largest, asked = max(measured), f"UAR {uar:.0%}"
    if np.isinf(found.clips):
        return (
            f"{asked} cannot be reached by the fit: it levels off at {curve.limit:.0%}, however "
            f"many clips ({1 - found.unreached:.0%} of the resamples get there). Other features, "
            "or learning from other languages, may."
        )
    low, high = (_count(value) for value in (found.low, found.high))
    told = f"{asked} needs about {_count(found.clips)} clips of each class [{low}, {high}]."
    if found.clips > largest:
        told += (
            f" That is outside of what was measured (up to {largest}): an extrapolation, to be "
            "measured again when there are more clips."
        )
    elif found.high > largest:
        told += f" The interval reaches beyond what was measured (up to {largest})."
    if found.unreached > 0:
        told += f" {found.unreached:.0%} of the resamples never get there."
    return told


def _count(value: float) -> str:
    if np.isinf(value):
        return "never"
    return f"over {10_000:,}" if value > 10_000 else str(int(np.ceil(value - 1e-9)))


def draw(
    path: Path,
    scores: Mapping[int, Sequence[float]],
    curve: Curve | None,
    resampled: Sequence[Curve],
    title: str,
    chance: float,
    wanted: float | None = None,
) -> None:
    """Draw the scores with their intervals, the fit with its band, and chance.

    Raises
    ------
    ValueError
        If the file is neither .png nor .svg.
    """
    kind = path.suffix.lower().removeprefix(".")
    if kind not in ("png", "svg"):
        raise ValueError(f"a figure is a .png or .svg file, not {path.name!r}")
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
        low, high = np.quantile([one.at(line) for one in resampled], [0.025, 0.975], axis=0)
        axes.fill_between(line, low, high, alpha=0.2, color="C0", linewidth=0)
        axes.plot(line[inside], curve.at(line[inside]), color="C0", label="fit")
        axes.plot(line[~inside], curve.at(line[~inside]), "--", color="C0", label="extrapolated")
    axes.axhline(chance, color="grey", linestyle=":", label="chance")
    if wanted is not None:
        axes.axhline(wanted, color="C1", linestyle="-.", label="wanted")
    axes.set(xscale="log", xlabel="labelled clips of each class", ylabel="UAR", title=title)
    axes.legend()
    with whole(path) as part:
        figure.savefig(part, format=kind, dpi=150)


def adapted_model(file: ModelFile, features: Features) -> Callable[[Episode], np.ndarray]:
    """What guesses by a model that is adapted to an episode's support clips, and knows no others.

    Parameters
    ----------
    file : ModelFile
        As `metaser train` made it; its classes are those of the episodes, in their order.
    features : Features
        Of the task's clips, by the model's front end, not normalised: as `metaser adapt` does, the
        support clips and the sources decide by what they are normalised.
    """

    def guess(episode: Episode) -> np.ndarray:
        adapted, own = adaptation.fit(file, features, episode.support, episode.support_targets)
        return scores(adapted, own, features, episode.query).argmax(axis=1)

    return guess


def check_model(file: ModelFile, task: Task) -> None:
    """Refuse a model that is adapted already, or classes of the task that it does not know."""
    if file.adapted is not None:
        raise ValueError(
            f"the model is adapted to {file.header.adaptation.name!r} already: give the file that "
            "`metaser train` made"
        )
    known = file.header.classes
    for name in task.classes:
        if name not in known:
            raise ValueError(
                f"{name!r} is not a class of the model.{nearest(name, known)} It knows "
                f"{', '.join(known)}: choose among them by --classes"
            )
