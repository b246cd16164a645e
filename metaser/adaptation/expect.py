"""The UAR to expect of a model in a new language, from few clips, with an honest interval.

Labelled clips give two clues: how well the trained model names them before it adapts, and how well
the adapted model names those that a cross-validation leaves out. Both are noisy and biased: the
clips are few, and the next speakers sound different. How much, is measured on languages that were
left out of the training. There, a few clips are drawn as a user would give them (``Draw``), and the
truth on the other speakers is regressed on the mean of the clues. The noisier the clues, the more
the forecast leans on what other languages gave, and it never looks surer than a few left-out
languages allow.

All scores are corrected for chance, so that languages with different numbers C of classes can be
compared: skill = (UAR - 1/C) / (1 - 1/C).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict
from scipy.stats import t as student

Folds = Literal["none", "clips", "speakers"]
"""How given clips were cross-validated: not at all, by clips, or by speakers."""

FEWEST = 15
"""Fewest draws from which a kind of cross-validation gets a band of its own."""

FEWEST_TASKS = 3
"""Fewest tasks from which these draws must come; all tasks where there are fewer."""

LANGUAGES = 0.25
"""How far the skill of languages is spread (standard deviation), before any is measured."""

BIASES = 0.15
"""How far the bias of clues is spread over languages, before any is measured."""

PRIOR_TASKS = 4
"""Number of tasks that these two count as, beside those that are measured."""


@dataclass(frozen=True)
class Told:
    """How well a model named labelled clips.

    Attributes
    ----------
    uar : float
        UAR, in [0, 1].
    soft : float
        Probability that the model gave to the true class, averaged per class, in [0, 1]. It tells
        the same with less noise.
    """

    uar: float
    soft: float


@dataclass(frozen=True)
class Clues:
    """What labelled clips say about a model.

    Attributes
    ----------
    classes : int
        Classes that the language has.
    voices : bool
        Whether the adapted model relies on who speaks.
    unadapted : Told
        How well the model named the clips before it was adapted.
    folds : {"none", "clips", "speakers"}
        What the folds of the cross-validation left out; "clips" where all are of one speaker, or
        the speakers are not known.
    seen : Told or None
        How well it named the clips that the cross-validation left out; None if ``folds`` is "none".
    """

    classes: int
    voices: bool
    unadapted: Told
    folds: Folds = "none"
    seen: Told | None = None

    def skills(self, folds: Folds) -> list[float]:
        """Return what the clues say: with folds "none", the unadapted model's alone."""
        told = [self.unadapted]
        if folds != "none" and self.seen is not None:
            told.append(self.seen)
        return [skill(one.soft, self.classes) for one in told]


@dataclass(frozen=True)
class Draw:
    """A few labelled clips of a language, as a user would give them, and what came of them.

    Attributes
    ----------
    task : str
        The left-out task.
    shots : int
        Clips per class.
    clues : Clues
        What the clips say.
    truth : float
        UAR on clips of other speakers, in [0, 1].
    """

    task: str
    shots: int
    clues: Clues
    truth: float


@dataclass(frozen=True)
class Forecast:
    """The skill to expect: ends of its interval, how much clips count, and if they contradict."""

    low: float
    high: float
    weight: float
    contradicted: bool = False


class OffsetBand(BaseModel):
    """How true skill follows from cross-validated skill, in model files of format 1 and 2.

    Attributes
    ----------
    shots : int
        Clips per class.
    folds : {"none", "clips", "speakers"}
        Kind of cross-validation; with "none" the same is expected whatever the clips are.
    offset, half : float
        ``truth = seen + offset``, or ``truth = offset`` if ``folds`` is "none", and half the width
        of the interval; in units of skill.
    tasks, draws : int
        How many it was measured on.
    """

    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="constants")
    shots: int
    folds: Folds
    offset: float
    half: float
    tasks: int
    draws: int

    def foresee(self, clues: Clues) -> Forecast:
        """Return the skill to expect."""
        middle, weight = self.offset, 0.0
        if self.folds != "none" and clues.seen is not None:
            middle, weight = middle + skill(clues.seen.uar, clues.classes), 1.0
        return Forecast(middle - self.half, middle + self.half, weight)


class Band(BaseModel):
    """How the truth and the clues differ, from task to task and from draw to draw.

    All are in units of skill.

    Attributes
    ----------
    shots : int
        Clips per class.
    folds : {"none", "clips", "speakers"}
        Kind of cross-validation that is one of the clues; with "none" the unadapted model is the
        only one.
    voices : bool
        Whether the models rely on who speaks.
    level, spread : float
        Mean and variance of the truth.
    bias, bias_spread : float
        Mean and variance, over tasks, of clue minus truth.
    noise : float
        Variance of the clue within a task, for ``classes / (classes - 1)**2 = 1``, by which the
        noise of a UAR grows where classes, and so clips, are fewer.
    gap : float
        Clues that are further apart contradict each other.
    tasks, draws : int
        How many it was measured on.
    """

    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="constants")
    shots: int
    folds: Folds
    voices: bool
    level: float
    spread: float
    bias: float
    bias_spread: float
    noise: float
    gap: float
    tasks: int
    draws: int

    def foresee(self, clues: Clues) -> Forecast:
        """Return the skill to expect: the best linear prediction from the mean of the clues.

        Where the clues are further apart than on any left-out language, it reaches from what the
        lower one alone says to what the higher one alone says.

        References
        ----------
        Robinson, "That BLUP Is a Good Thing", Statistical Science 1991.
        """
        noise = self.noise * clues.classes / (clues.classes - 1) ** 2
        slope = self.spread / (self.spread + self.bias_spread + noise)
        variance = self.spread * (1 - slope) * (1 + 1 / self.tasks)  # the means are of few tasks
        half = student.ppf(0.975, self.tasks - 1 + PRIOR_TASKS) * variance**0.5
        skills = clues.skills(self.folds)
        contradicted = bool(np.ptp(skills) > self.gap)
        ends = (min(skills), max(skills)) if contradicted else (np.mean(skills),) * 2
        low, high = (self.level + slope * (end - self.level - self.bias) for end in ends)
        return Forecast(float(low - half), float(high + half), slope, contradicted)


@dataclass(frozen=True)
class Expected:
    """The UAR to expect on new clips of other speakers of a language.

    Attributes
    ----------
    uar, low, high : float
        In [1/classes, 1], with the ends of the 95 % interval.
    folds : {"none", "clips", "speakers"}
        How the given clips were cross-validated.
    seen : float
        UAR of that cross-validation; NaN without one.
    unadapted : float
        UAR of the model on the clips before it was adapted; NaN where that is not known.
    weight : float
        How much the clips count, in [0, 1]; the rest is what other languages gave.
    contradicted : bool
        Whether the clues contradict each other, so that the interval holds what both say.
    """

    uar: float
    low: float
    high: float
    folds: Folds
    seen: float
    unadapted: float = float("nan")
    weight: float = 1.0
    contradicted: bool = False


def skill(uar: float, classes: int) -> float:
    """Return a UAR as a share of the way from chance (0) to perfect (1)."""
    return (uar - 1 / classes) / (1 - 1 / classes)


def uar_of(skill: float, classes: int) -> float:
    """Return the UAR of a skill, at least that of guessing and at most 1."""
    return float(1 / classes + (1 - 1 / classes) * np.clip(skill, 0, 1))


def fit_bands(draws: Sequence[Draw]) -> list[Band]:
    """Fit a band for every number of shots and kind of cross-validation.

    Parameters
    ----------
    draws : sequence of Draw
        Draws from the left-out tasks.
    """
    bands = []
    for shots, voices in sorted({(draw.shots, draw.clues.voices) for draw in draws}):
        own = [draw for draw in draws if (draw.shots, draw.clues.voices) == (shots, voices)]
        wanted = min(FEWEST_TASKS, len({draw.task for draw in own}))
        bands.append(_fit(own, "none"))
        kinds: tuple[Folds, ...] = ("clips", "speakers")
        for folds in kinds:
            some = [draw for draw in own if draw.clues.folds == folds]
            if len(some) >= FEWEST and len({draw.task for draw in some}) >= wanted:
                bands.append(_fit(some, folds))
    return bands


def _fit(draws: Sequence[Draw], folds: Folds) -> Band:
    """Return the band of a kind of clues; tasks count the same.

    How means and biases differ between tasks leans on what is assumed before any is measured.
    """
    names = [draw.task for draw in draws]
    clues = [draw.clues for draw in draws]
    skills = np.array([one.skills(folds) for one in clues])
    truth = np.array([skill(draw.truth, draw.clues.classes) for draw in draws])
    units = np.array([one.classes / (one.classes - 1) ** 2 for one in clues])
    level, level_spread, own = _parts(names, truth, LANGUAGES)
    bias, bias_spread, noise = _parts(names, skills.mean(axis=1) - truth, BIASES)
    tasks, index, counts = np.unique(names, return_inverse=True, return_counts=True)
    weights = 1 / counts[index] / len(tasks)
    return Band(
        shots=draws[0].shots,
        folds=folds,
        voices=clues[0].voices,
        level=level,
        spread=level_spread + float(weights @ own**2),
        bias=bias,
        bias_spread=bias_spread,
        noise=float(weights @ (noise**2 / units)),
        gap=float("inf") if folds == "none" else float(np.ptp(skills, axis=1).max()),
        tasks=len(tasks),
        draws=len(draws),
    )


def _parts(
    names: Sequence[str], values: np.ndarray, before: float
) -> tuple[float, float, np.ndarray]:
    """Return the mean of tasks, the variance between them, and what differs within them.

    The variance leans on ``before``, a standard deviation.
    """
    table = pd.Series(values).groupby(list(names))
    means = table.mean()
    between = np.sum((means - means.mean()) ** 2) + PRIOR_TASKS * before**2
    within = values - table.transform("mean").to_numpy()
    return float(means.mean()), float(between / (len(means) - 1 + PRIOR_TASKS)), within


def expect(bands: Sequence[Band | OffsetBand], shots: int, clues: Clues) -> Expected:
    """Return the UAR to expect, from what labelled clips say.

    Parameters
    ----------
    bands : sequence of Band or OffsetBand
        The bands of the model.
    shots : int
        Number of clips of the rarest class. The band of the nearest smaller number is used, or
        of the smallest there is.
    clues : Clues
        What the clips say.

    Raises
    ------
    ValueError
        If there is no band.
    """
    if not bands:
        raise ValueError(
            "the model file must state its measured quality, but states none: train the model with "
            "`metaser train`"
        )
    same = [b for b in bands if isinstance(b, OffsetBand) or b.voices == clues.voices]
    fitting = same or list(bands)
    fewest = min(band.shots for band in fitting)
    fitting = [band for band in fitting if band.shots <= max(shots, fewest)]
    own = [band for band in fitting if band.folds == clues.folds]
    unspecific = [band for band in fitting if band.folds == "none"]
    band = max(own or unspecific, key=lambda band: band.shots)
    found = band.foresee(clues)
    middle = (found.low + found.high) / 2
    uar, low, high = (uar_of(value, clues.classes) for value in (middle, found.low, found.high))
    return Expected(
        uar=uar,
        low=low,
        high=high,
        folds=clues.folds,
        seen=float("nan") if clues.seen is None else clues.seen.uar,
        unadapted=clues.unadapted.uar,
        weight=found.weight,
        contradicted=found.contradicted,
    )
