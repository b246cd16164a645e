"""Train a model that others can adapt, and measure it on languages left out in turn."""

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
from rich.console import Console

from metaser.adaptation.expect import fit_bands
from metaser.adaptation.measure import DRAWS, measure, measure_quality
from metaser.adaptation.model_file import Header, save
from metaser.adaptation.recipe import Recipe, prepare, train_file
from metaser.benchmark.materials import Material
from metaser.benchmark.plan import present_tasks
from metaser.benchmark.trainings import source_episodes
from metaser.contracts import method_traits
from metaser.features.table import Features
from metaser.files import Places
from metaser.outside import pinned
from metaser.protocol.build import method_type
from metaser.tasks.task import Task


def train_model(
    out: str | Path,
    recipe: Recipe,
    places: Places | None = None,
    *,
    seed: int = 0,
    console: Console | None = None,
    draws: int = DRAWS,
) -> Header:
    """Train on all sources that are present and write a model file.

    Before that, each language is left out of a training in turn. Where there is one language only,
    each task is left out; where there is one task only, half of its speakers. Clips are drawn from
    what is left out, and from the recipe's other tasks, as a user would give them. This tells how
    good the model is, which temperature turns its scores into probabilities, and how far what few
    clips say can be trusted.

    A run that was stopped continues where it was: its checkpoints are kept next to ``out`` until it
    is done.

    Parameters
    ----------
    out : str or Path
        Model file to write.
    recipe : Recipe
        What to train.
    places : Places, optional
        Corpora, task folders, feature cache, and processes that extract features.
    seed : int
        Seed of trainings and draws.
    console : rich.console.Console, optional
        Where progress is printed.
    draws : int
        Draws per left-out task and number of shots; with fewer, the intervals are less certain.

    Returns
    -------
    Header
        The header of the file.

    Raises
    ------
    ValueError
        If the sources are too small to learn from; no sound is read then.
    """
    out, console = Path(out), console or Console(stderr=True)
    checkpoints = out.with_name(f"{out.name}.checkpoints")
    with pinned(recipe.protocol.files):
        tasks = present_tasks(recipe.protocol, places or Places())[0]
        sources = {name: tasks[name] for name in tasks if name in recipe.protocol.sources}
        check_sources(recipe, sources, seed)
        materials, raw, others = prepare(recipe, places or Places(), console)
        kind, scored = measure(
            recipe, materials, raw, seed, checkpoints, console, draws=draws, others=others
        )
        console.print(f"training on {', '.join(materials)}", highlight=False)
        file = train_file(recipe, materials, raw, seed, checkpoints / "all")
    quality = {
        "quality": measure_quality(scored),
        "bands": fit_bands([one.draw for one in scored if one.draw.shots]),
        "left_out": kind,
    }
    file = replace(file, header=file.header.model_copy(update=quality))
    save(out, file)
    shutil.rmtree(checkpoints, ignore_errors=True)
    return file.header


def check_sources(recipe: Recipe, tasks: Mapping[str, Task], seed: int) -> None:
    """Refuse sources that are too small to learn from, before any sound is read.

    Parameters
    ----------
    recipe : Recipe
        What to train.
    tasks : mapping of str to Task
        The sources that are present.
    seed : int
        Seed of the trainings.

    Raises
    ------
    ValueError
        If a source has too few clips or speakers, or none has speakers to hold out; the message
        says of which training, and what to do.
    """
    if not method_traits(*method_type(recipe.method, recipe.setup)).learns:
        return
    advice = (
        "add clips and speakers, choose other sources by --sources, or train --method "
        "gaussian_process, which needs no episodes, if the setup has it"
    )
    for what, learnt in _trainings(tasks):
        held_out = False
        for task in learnt:
            nothing = Material(task, cast(Features, None), ())
            try:
                found = source_episodes(
                    nothing, recipe.protocol.classes, recipe.setup.training, seed
                )
            except ValueError as error:
                reason = str(error).rpartition(": ")[0]
                raise ValueError(
                    f"{task.name} is too small to learn from, {what}: {reason}; {advice}"
                ) from error
            held_out = held_out or bool(found[1])
        if not held_out:
            raise ValueError(
                f"one of {', '.join(task.name for task in learnt)} must have enough speakers to "
                f"hold some out for validation, {what}, but none has: {advice}"
            )


def _trainings(tasks: Mapping[str, Task]) -> Iterator[tuple[str, list[Task]]]:
    """Yield what each training is for, and what it learns from; see ``measure.split_sources``."""
    if len(tasks) == 1:
        (task,) = tasks.values()
        units = task.table["unit"]
        half = units.isin(np.unique(units)[::2])
        yield "by half of its speakers, to measure", [replace(task, table=task.table[half])]
    elif tasks:
        languages = {task.language for task in tasks.values()}
        for name in sorted(languages if len(languages) > 1 else tasks):
            others = [task for task in tasks.values() if name not in (task.language, task.name)]
            yield f"with {name} left out, to measure", others
    yield "by all sources", list(tasks.values())
