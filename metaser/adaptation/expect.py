"""The UAR to expect of a model in a new language, from few clips, with an honest interval.

Cross-validation over twenty clips says little, and its own interval is too narrow: the clips come
from few speakers, and the next speakers sound different. So its error is measured where the truth
is known, on languages that were left out of the training. There, a few clips are drawn as a user
would give them (``Draw``), and the cross-validated UAR is compared with the UAR on the other
speakers. The mean difference is a correction. The interval is as wide as was needed for the
left-out language that was hardest to foresee.

All scores are corrected for chance, so that languages with different numbers C of classes can be
compared: skill = (UAR - 1/C) / (1 - 1/C).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

Folds = Literal["none", "clips", "speakers"]
"""How given clips were cross-validated: not at all, by clips, or by speakers."""

FEWEST = 15
"""Fewest draws from which a kind of cross-validation gets a band of its own."""

FEWEST_TASKS = 3
"""Fewest tasks from which these draws must come; all tasks where there are fewer."""


@dataclass(frozen=True)
class Draw:
    """A few labelled clips of a language, as a user would give them, and what came of them.

    Attributes
    ----------
    task : str
        The left-out task.
    shots : int
        Clips per class.
    folds : {"none", "clips", "speakers"}
        What the folds of the cross-validation left out; "clips" where all are of one speaker.
    seen : float
        Skill by cross-validation over the given clips; NaN if ``folds`` is "none".
    truth : float
        Skill on clips of other speakers.
    """

    task: str
    shots: int
    folds: Folds
    seen: float
    truth: float


class Band(BaseModel):
    """How far true skill lies from cross-validated skill, with the width of its 95 % interval.

    Attributes
    ----------
    shots : int
        Clips per class.
    folds : {"none", "clips", "speakers"}
        Kind of cross-validation; with "none" the same is expected whatever the clips are.
    offset : float
        ``truth = seen + offset``, or ``truth = offset`` if ``folds`` is "none"; in units of skill.
    half : float
        Half the width of the interval, in units of skill.
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


@dataclass(frozen=True)
class Expected:
    """The UAR to expect on new clips of other speakers of a language.

    Attributes
    ----------
    uar, low, high : float
        In [0, 1], with the ends of the 95 % interval.
    folds : {"none", "clips", "speakers"}
        How the given clips were cross-validated.
    seen : float
        UAR of that cross-validation; NaN without one.
    """

    uar: float
    low: float
    high: float
    folds: Folds
    seen: float


def skill(uar: float, classes: int) -> float:
    """Return a UAR as a share of the way from chance (0) to perfect (1)."""
    return (uar - 1 / classes) / (1 - 1 / classes)


def uar_of(skill: float, classes: int) -> float:
    """Return the UAR of a skill, within [0, 1]."""
    return float(np.clip(1 / classes + (1 - 1 / classes) * skill, 0, 1))


def fit_bands(draws: Sequence[Draw], confidence: float = 0.95) -> list[Band]:
    """Fit a band for every number of shots and kind of cross-validation.

    The width is conformal over whole tasks. Each task is predicted from the draws of the others,
    and the distance that covers ``confidence`` of its draws is noted. The width is the largest of
    these distances. A new task exceeds the largest of n with probability 1 / (n + 1).

    Parameters
    ----------
    draws : sequence of Draw
        Draws from the left-out tasks.
    confidence : float
        Share of a task's draws that the interval covers, in (0, 1).

    References
    ----------
    Dunn, Wasserman, Ramdas, "Distribution-Free Prediction Sets for Two-Layer Hierarchical Models",
    Journal of the American Statistical Association 2023.
    """
    bands = []
    wanted = min(FEWEST_TASKS, len({draw.task for draw in draws}))
    for shots in sorted({draw.shots for draw in draws}):
        own = [draw for draw in draws if draw.shots == shots]
        bands.append(_fit(own, shots, "none", confidence))
        for folds in ("clips", "speakers"):
            some = [draw for draw in own if draw.folds == folds]
            if len(some) >= FEWEST and len({draw.task for draw in some}) >= wanted:
                bands.append(_fit(some, shots, folds, confidence))
    return bands


def _fit(draws: Sequence[Draw], shots: int, folds: Folds, confidence: float) -> Band:
    """Return the band whose offset is the mean difference, every task counting the same."""
    differences: dict[str, list[float]] = {}
    for draw in draws:
        seen = 0.0 if folds == "none" else draw.seen
        differences.setdefault(draw.task, []).append(draw.truth - seen)
    means = {task: float(np.mean(own)) for task, own in differences.items()}
    widths = []
    for task, own in differences.items():
        others = [mean for name, mean in means.items() if name != task] or [means[task]]
        errors = np.abs(np.array(own) - np.mean(others))
        widths.append(np.quantile(errors, confidence, method="higher"))
    return Band(
        shots=shots,
        folds=folds,
        offset=float(np.mean(list(means.values()))),
        half=float(max(widths)),
        tasks=len(means),
        draws=len(draws),
    )


def expect(bands: Sequence[Band], shots: int, classes: int, folds: Folds, seen: float) -> Expected:
    """Return the UAR to expect, from a cross-validated one.

    Parameters
    ----------
    bands : sequence of Band
        The bands of the model.
    shots : int
        Number of clips of the rarest class. The band of the nearest smaller number is used, or the
        smallest there is.
    classes : int
        Classes that the language has.
    folds : {"none", "clips", "speakers"}
        What the folds of the cross-validation left out.
    seen : float
        UAR by cross-validation, in [0, 1]; not used if ``folds`` is "none".

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
    fewest = min(band.shots for band in bands)
    fitting = [band for band in bands if band.shots <= max(shots, fewest)]
    own = [band for band in fitting if band.folds == folds]
    unspecific = [band for band in fitting if band.folds == "none"]
    band = max(own or unspecific, key=lambda band: band.shots)
    seen_skill = 0.0 if band.folds == "none" else skill(seen, classes)
    middle = seen_skill + band.offset
    ends = (middle, middle - band.half, middle + band.half)
    uar, low, high = (uar_of(value, classes) for value in ends)
    return Expected(uar, low, high, band.folds, seen if folds != "none" else float("nan"))
