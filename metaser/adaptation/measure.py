"""Measure how good a model is on languages that are left out of its training in turn."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich.console import Console

from metaser import metrics, stats
from metaser.adaptation.adapt import clues_of, fit
from metaser.adaptation.calibration import ece, fit_temperature, probabilities
from metaser.adaptation.expect import Clues, Draw, Told
from metaser.adaptation.model_file import Measured, ModelFile
from metaser.adaptation.recipe import Recipe, train_file
from metaser.benchmark.materials import Material
from metaser.features.table import Features
from metaser.tasks.task import Task

SHOTS = (1, 2, 3, 5, 8, 12, 20)
"""Clips per class at which the quality is measured, besides zero-shot."""

DRAWS = 40
"""Draws per left-out task and number of shots."""

QUERIES = 5
"""Fewest clips of every class that the speakers outside of a draw must have."""

ATTEMPTS = 200
"""Random choices of speakers that are tried for a draw."""


@dataclass(frozen=True)
class Part:
    """Sources to learn from, and sources that are left out.

    Attributes
    ----------
    name : str
        What is left out.
    learnt : dict of str to Material
        What to learn from, by the name of the task.
    raw : dict of str to Features
        Its features before normalisation, by the name of the task.
    held : list of (Task, Features)
        The left-out tasks, with their features before normalisation.
    """

    name: str
    learnt: dict[str, Material]
    raw: dict[str, Features]
    held: list[tuple[Task, Features]]


@dataclass(frozen=True)
class Scored:
    """A draw, with the scores of the clips that it was judged on.

    Attributes
    ----------
    draw : Draw
        The draw.
    named : bool
        Whether it is known who speaks.
    scores : ndarray
        (clips, classes) logits of the judged clips.
    targets : ndarray of int
        (clips,) class index of each judged clip.
    """

    draw: Draw
    named: bool
    scores: np.ndarray
    targets: np.ndarray


def measure(
    recipe: Recipe,
    materials: dict[str, Material],
    raw: dict[str, Features],
    seed: int,
    checkpoints: Path,
    console: Console,
    *,
    draws: int = DRAWS,
    others: Sequence[tuple[Task, Features]] = (),
) -> tuple[str, list[Scored]]:
    """Leave sources out in turn, and score draws from what was left out.

    Parameters
    ----------
    recipe : Recipe
        What to train.
    materials : dict of str to Material
        The sources, by the name of the task.
    raw : dict of str to Features
        Their features before normalisation, by the name of the task.
    seed : int
        Seed of trainings and draws.
    checkpoints : Path
        Folder of checkpoints, from which a stopped training continues.
    console : rich.console.Console
        Where progress is printed.
    draws : int
        Draws per left-out task and number of shots.
    others : sequence of (Task, Features)
        Tasks that no model learns from, with their features before normalisation. Each is scored
        by a model that has not learnt its language.

    Returns
    -------
    kind : {"language", "task", "speakers"}
        What was left out in turn.
    scored : list of Scored
        All draws, with a zero-shot entry (``shots`` 0) per left-out task.
    """
    kind, parts = split_sources(materials, raw)
    parts = with_others(parts, materials, raw, others)
    scored: list[Scored] = []
    for part in parts:
        names = ", ".join(task.name for task, _ in part.held)
        console.print(f"measuring on {names}", highlight=False)
        file = train_file(recipe, part.learnt, part.raw, seed, checkpoints / part.name)
        for task, features in part.held:
            scored += score_draws(file, task, features, seed, draws)
    return kind, scored


def split_sources(
    materials: dict[str, Material], raw: dict[str, Features]
) -> tuple[str, list[Part]]:
    """Return what is left out in turn ("language", "task" or "speakers"), and the parts.

    Parameters
    ----------
    materials : dict of str to Material
        The sources, by the name of the task.
    raw : dict of str to Features
        Their features before normalisation, by the name of the task.
    """
    tasks = {name: material.task for name, material in materials.items()}
    languages = {name: task.language for name, task in tasks.items()}
    kind, groups = "language", languages
    if len(set(languages.values())) == 1:
        kind, groups = "task", {name: name for name in tasks}
    if len(tasks) == 1:
        (name,) = tasks
        return "speakers", [_half_of_speakers(materials[name], raw[name])]
    parts = []
    for group in dict.fromkeys(groups.values()):
        left_out = [name for name in tasks if groups[name] == group]
        learnt = [name for name in tasks if groups[name] != group]
        parts.append(
            Part(
                group,
                {name: materials[name] for name in learnt},
                {name: raw[name] for name in learnt},
                [(tasks[name], raw[name]) for name in left_out],
            )
        )
    return kind, parts


def with_others(
    parts: list[Part],
    materials: dict[str, Material],
    raw: dict[str, Features],
    others: Sequence[tuple[Task, Features]],
) -> list[Part]:
    """Add tasks that are never learnt from to parts that do not learn their languages.

    Where the sources lack a language, that is a part which learns from all of them.
    """
    added = []
    rest = list(others)
    for part in parts:
        learnt = {material.task.language for material in part.learnt.values()}
        spoken = {task.language for task, _ in part.held} - learnt
        fitting = [other for other in rest if other[0].language in spoken]
        rest = [other for other in rest if other[0].language not in spoken]
        added.append(replace(part, held=part.held + fitting))
    languages = {material.task.language for material in materials.values()}
    if known := sorted({task.name for task, _ in rest if task.language in languages}):
        raise ValueError(
            f"no model is trained without the language of {', '.join(known)}, so they cannot be "
            "measured on: leave them out, or add sources in other languages"
        )
    return [*added, Part("all", materials, raw, rest)] if rest else added


def _half_of_speakers(material: Material, raw: Features) -> Part:
    """Return a part that learns from every second speaker of a task and leaves the others out."""
    units = material.task.table["unit"].to_numpy()
    learnt = np.isin(units, np.unique(units)[::2])
    one, other = (_rows_of(material, np.flatnonzero(mask)) for mask in (learnt, ~learnt))
    name = material.task.name
    held = [(other.task, _some(raw, np.flatnonzero(~learnt)))]
    return Part("speakers", {name: one}, {name: _some(raw, np.flatnonzero(learnt))}, held)


def _rows_of(material: Material, rows: np.ndarray) -> Material:
    """Return some clips of a task."""
    task = material.task
    return Material(
        replace(task, table=task.table.iloc[rows].reset_index(drop=True)),
        _some(material.plain, rows),
        tuple(_some(features, rows) for features in material.situations),
    )


def _some(features: Features, rows: np.ndarray) -> Features:
    """Return the features of some clips."""
    return Features(features.values[rows], features.lengths[rows], features.hashes[rows])


def score_draws(
    file: ModelFile, task: Task, features: Features, seed: int, draws: int
) -> list[Scored]:
    """Use a model on a task that it has not learnt from, as a user would, many times.

    A draw takes a few speakers, and some of their clips per class to adapt to. It is judged on all
    clips of the other speakers. In every second draw it is not known who speaks. Numbers of shots
    that the task is too small for are left out.

    Parameters
    ----------
    file : ModelFile
        A trained model; not changed.
    task : Task
        A task that the model has not learnt from.
    features : Features
        The task's features, not normalised.
    seed : int
        Seed of the draws.
    draws : int
        Draws per number of shots.

    Returns
    -------
    list of Scored
        The zero-shot entry first, then all draws.
    """
    targets = task.table["emotion"].map({name: i for i, name in enumerate(file.header.classes)})
    targets = targets.to_numpy().astype(int)
    everything = np.arange(len(targets))
    units = task.table["unit"].to_numpy()
    speakers = task.table["speaker"].to_numpy(str)
    logits = file.fitted_to(features, everything).scores(features, everything, speakers)
    classes = len(np.unique(targets))
    scored = [_judge(task, 0, Clues(classes, True, Told(np.nan, np.nan)), logits, targets)]
    for shots in SHOTS:
        for index in range(draws):
            rng = np.random.default_rng([seed, shots, index, *task.name.encode()])
            drawn = draw_clips(targets, units, shots, rng)
            if drawn is None:
                break
            rows, rest = drawn
            named = index % 2 == 0
            told, asked = (speakers[rows], speakers[rest]) if named else (None, None)
            some = file, features, rows, targets[rows], told
            fitted = fit(*some)
            clues = clues_of(*some, trust=fitted.trust, seed=index)
            logits = fitted.scores(features, rest, asked)
            scored.append(_judge(task, shots, clues, logits, targets[rest], named=named))
    return scored


def draw_clips(
    targets: np.ndarray, units: np.ndarray, shots: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray] | None:
    """Draw clips of a few speakers to adapt to; all clips of the other speakers are the rest.

    Parameters
    ----------
    targets : ndarray of int
        (clips,) class index of each clip.
    units : ndarray
        (clips,) who speaks.
    shots : int
        Clips per class to draw.
    rng : numpy.random.Generator
        Draws speakers and clips.

    Returns
    -------
    tuple of (ndarray of int, ndarray of int), or None
        Rows of the drawn clips, and rows of the rest. None if no try leaves enough clips on both
        sides.
    """
    classes = np.unique(targets)
    people = np.unique(units)
    counts = np.array(
        [[np.sum(targets[units == person] == label) for label in classes] for person in people]
    )
    for _ in range(ATTEMPTS):
        order = rng.permutation(len(people))
        wanted = rng.integers(1, max(len(people) // 2, 1) + 1)
        sums = counts[order].cumsum(axis=0)
        enough = np.flatnonzero((sums >= shots).all(axis=1))
        if not len(enough):
            return None
        size = max(wanted, enough[0] + 1)
        if size == len(people) or (sums[-1] - sums[size - 1] < QUERIES).any():
            continue
        chosen = np.isin(units, people[order[:size]])
        drawn = [
            rng.permutation(np.flatnonzero(chosen & (targets == label)))[:shots]
            for label in classes
        ]
        return np.concatenate(drawn), np.flatnonzero(~chosen)
    return None


def _judge(
    task: Task,
    shots: int,
    clues: Clues,
    logits: np.ndarray,
    targets: np.ndarray,
    *,
    named: bool = True,
) -> Scored:
    """Compare the scores of a draw with the true classes."""
    uar = metrics.uar(targets, logits.argmax(axis=1))
    return Scored(Draw(task.name, shots, clues, uar), named, logits, targets)


def measure_quality(scored: Sequence[Scored]) -> list[Measured]:
    """Return the mean over the left-out tasks at every number of shots; each counts the same.

    It is that of the draws in which it is known who speaks.
    """
    quality = []
    scored = [one for one in scored if one.named]
    for shots in sorted({one.draw.shots for one in scored}):
        own = [one for one in scored if one.draw.shots == shots]
        names = list(dict.fromkeys(one.draw.task for one in own))
        per_task = {name: [one for one in own if one.draw.task == name] for name in names}
        interval = _over_tasks([[one.draw.truth for one in some] for some in per_task.values()])
        chances = [1 / len(np.unique(some[0].targets)) for some in per_task.values()]
        before, after = zip(*(_calibration_error(per_task, name) for name in names))
        quality.append(
            Measured(
                shots=shots,
                uar=interval[0],
                low=interval[1],
                high=interval[2],
                chance=float(np.mean(chances)),
                temperature=fit_temperature(*_pooled(per_task, names)),
                ece_before=float(np.mean(before)),
                ece_after=float(np.mean(after)),
                tasks=names,
                draws=len(own),
            )
        )
    return quality


def _over_tasks(uars: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    """Return mean, low and high: the interval is over tasks, and over the draws within them."""
    found = stats.interval(list(uars))
    return found.mean, found.low, found.high


def _calibration_error(per_task: dict[str, list[Scored]], name: str) -> tuple[float, float]:
    """Return a task's calibration error without and with the temperature of the other tasks."""
    others = [other for other in per_task if other != name] or [name]
    temperature = fit_temperature(*_pooled(per_task, others))
    logits, targets, _ = _pooled(per_task, [name])
    before = ece(probabilities(logits), targets)
    return before, ece(probabilities(logits, temperature), targets)


def _pooled(
    per_task: dict[str, list[Scored]], names: Sequence[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return scores, targets and weights of all judged clips of some tasks.

    Every task weighs the same, and so does every draw of a task.
    """
    own = [(one, len(per_task[name])) for name in names for one in per_task[name]]
    return (
        np.concatenate([one.scores for one, _ in own]),
        np.concatenate([one.targets for one, _ in own]),
        np.concatenate(
            [np.full(len(one.targets), 1 / draws / len(one.targets)) for one, draws in own]
        ),
    )
