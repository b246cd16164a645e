"""What a model is worth on languages that were left out in turn."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich.console import Console

from metaser import metrics, stats
from metaser.adaptation.adapt import cross_validate, fit
from metaser.adaptation.calibration import ece, fit_temperature, probabilities
from metaser.adaptation.expect import Draw, Folds, skill
from metaser.adaptation.model_file import Measured, ModelFile
from metaser.adaptation.recipe import Recipe, train_file
from metaser.benchmark.materials import Material
from metaser.features.table import Features
from metaser.tasks.task import Task

SHOTS = (1, 2, 5, 10, 20)
"""Clips a class at which the quality is measured, besides zero-shot."""

DRAWS = 40
"""Draws a left-out task and number of shots."""

QUERIES = 5
"""Clips of every class that speakers outside of a draw must have."""

ATTEMPTS = 200


@dataclass(frozen=True)
class Part:
    """Some sources to learn from, and others that are held out.

    Attributes
    ----------
    name : str
        What is held out.
    learnt, raw : dict
        Materials, and their features before normalisation, by the task's name.
    held : list of (Material, Features)
        Tasks that are held out, with their features before normalisation.
    """

    name: str
    learnt: dict[str, Material]
    raw: dict[str, Features]
    held: list[tuple[Material, Features]]


@dataclass(frozen=True)
class Scored:
    """A draw with the scores of the clips that it was judged on."""

    draw: Draw
    uar: float
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
) -> tuple[str, list[Scored]]:
    """Leave sources out in turn; return what was left out ("language", …) and all draws' scores."""
    kind, parts = split_sources(materials, raw)
    scored: list[Scored] = []
    for part in parts:
        console.print(f"measuring on {part.name}, left out", highlight=False)
        file = train_file(recipe, part.learnt, part.raw, seed, checkpoints / part.name)
        for material, features in part.held:
            scored += score_draws(file, material.task, features, seed, draws)
    return kind, scored


def split_sources(
    materials: dict[str, Material], raw: dict[str, Features]
) -> tuple[str, list[Part]]:
    """What is left out in turn: "language", "task" or "speakers", and the parts.

    Parameters
    ----------
    materials, raw
        Normalised and not, by the task's name.
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
        inside = [name for name in tasks if groups[name] == group]
        learnt = [name for name in tasks if groups[name] != group]
        parts.append(
            Part(
                group,
                {name: materials[name] for name in learnt},
                {name: raw[name] for name in learnt},
                [(materials[name], raw[name]) for name in inside],
            )
        )
    return kind, parts


def _half_of_speakers(material: Material, raw: Features) -> Part:
    """Learn from every second speaker of a task, hold the others."""
    units = material.task.table["unit"].to_numpy()
    learnt = np.isin(units, np.unique(units)[::2])
    one, other = (_rows_of(material, np.flatnonzero(mask)) for mask in (learnt, ~learnt))
    name = material.task.name
    held = [(other, _some(raw, np.flatnonzero(~learnt)))]
    return Part("speakers", {name: one}, {name: _some(raw, np.flatnonzero(learnt))}, held)


def _rows_of(material: Material, rows: np.ndarray) -> Material:
    task = material.task
    return Material(
        replace(task, table=task.table.iloc[rows].reset_index(drop=True)),
        _some(material.plain, rows),
        tuple(_some(features, rows) for features in material.situations),
    )


def _some(features: Features, rows: np.ndarray) -> Features:
    return Features(features.values[rows], features.lengths[rows], features.hashes[rows])


def score_draws(
    file: ModelFile, task: Task, features: Features, seed: int, draws: int
) -> list[Scored]:
    """Use a model on a task that it has not learnt from, as a user would, many times.

    A draw takes few speakers, some clips a class of theirs, and all clips of the others to be
    judged on. Numbers of shots that the task is too small for are left out.
    """
    targets = task.table["emotion"].map({n: i for i, n in enumerate(file.header.classes)})
    targets = targets.to_numpy().astype(int)
    everything = np.arange(len(targets))
    units = task.table["unit"].to_numpy()
    speakers = task.table["speaker"].to_numpy(str)
    heard = file.fitted_to(features, everything).scores(features, everything, speakers)
    found = [_judge(task, 0, "none", np.nan, heard, targets)]
    for shots in SHOTS:
        for index in range(draws):
            rng = np.random.default_rng([seed, shots, index, *task.name.encode()])
            drawn = draw_clips(targets, units, shots, rng)
            if drawn is None:
                break
            rows, rest = drawn
            fitted = fit(file, features, rows, targets[rows], speakers[rows])
            seen = cross_validate(file, features, rows, targets[rows], speakers[rows], index)
            heard = fitted.scores(features, rest, speakers[rest])
            found.append(_judge(task, shots, *seen, heard, targets[rest]))
    return found


def draw_clips(
    targets: np.ndarray, units: np.ndarray, shots: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray] | None:
    """Rows of a few speakers' clips, ``shots`` a class, and of all clips of the other speakers.

    None if no draw in many leaves enough on both sides.
    """
    classes = np.unique(targets)
    people = np.unique(units)
    counts = np.array([[np.sum(targets[units == one] == c) for c in classes] for one in people])
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
        own = [rng.permutation(np.flatnonzero(chosen & (targets == c)))[:shots] for c in classes]
        return np.concatenate(own), np.flatnonzero(~chosen)
    return None


def _judge(
    task: Task, shots: int, folds: Folds, seen: float, heard: np.ndarray, targets: np.ndarray
) -> Scored:
    """Compare scores with the truth."""
    classes = len(np.unique(targets))
    uar = metrics.uar(targets, heard.argmax(axis=1))
    known = skill(seen, classes) if folds != "none" else float("nan")
    draw = Draw(task.name, shots, folds, known, skill(uar, classes))
    return Scored(draw, uar, heard, targets)


def measure_quality(scored: Sequence[Scored]) -> list[Measured]:
    """Means over the left-out tasks at every number of shots, each task counting the same."""
    found = []
    for shots in sorted({one.draw.shots for one in scored}):
        own = [one for one in scored if one.draw.shots == shots]
        names = list(dict.fromkeys(one.draw.task for one in own))
        per_task = {name: [one for one in own if one.draw.task == name] for name in names}
        interval = _over_tasks([[one.uar for one in some] for some in per_task.values()])
        chances = [1 / len(np.unique(some[0].targets)) for some in per_task.values()]
        before, after = zip(*(_calibration_error(per_task, name) for name in names))
        found.append(
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
    return found


def _over_tasks(uars: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    """Mean and 95 % interval over tasks, which are drawn anew, and draws within them."""
    found = stats.interval(list(uars))
    return found.mean, found.low, found.high


def _calibration_error(per_task: dict[str, list[Scored]], name: str) -> tuple[float, float]:
    """Calibration error on a task without a temperature, and with the one of the other tasks."""
    others = [other for other in per_task if other != name] or [name]
    temperature = fit_temperature(*_pooled(per_task, others))
    heard, targets, _ = _pooled(per_task, [name])
    before = ece(probabilities(heard), targets)
    return before, ece(probabilities(heard, temperature), targets)


def _pooled(
    per_task: dict[str, list[Scored]], names: Sequence[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores, targets and weights of all clips of some tasks, every draw of a task the same."""
    own = [(one, len(per_task[name])) for name in names for one in per_task[name]]
    return (
        np.concatenate([one.scores for one, _ in own]),
        np.concatenate([one.targets for one, _ in own]),
        np.concatenate([np.full(len(one.targets), 1 / n / len(one.targets)) for one, n in own]),
    )
