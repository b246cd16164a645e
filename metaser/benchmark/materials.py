"""Tasks with their features, as trainings and scoring need them."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from joblib import cpu_count

from metaser.benchmark.plan import Job
from metaser.episodes import (
    join_same_audio,
)
from metaser.features.extraction import audio_contents, extract
from metaser.features.table import Features, normalise
from metaser.frontends import make_frontend
from metaser.protocol.build import training_situations
from metaser.protocol.schema import Setup
from metaser.tasks.task import Task


def count_domains(tasks: Sequence[Task]) -> dict[str, int]:
    """How many speakers and corpora some tasks have; no voice is taken to be in two of them."""
    return {"speaker": sum(len(_voices(task)) for task in tasks), "corpus": len(tasks)}


def number_domains(tasks: Sequence[Task]) -> list[dict[str, np.ndarray]]:
    """Number the speaker and the corpus of every clip.

    Returns
    -------
    list of dict of str to ndarray
        For each task ``speaker`` and ``corpus``, (clips,) int64 in the order of its table; from 0
        to below the numbers of ``count_domains``, and the same number for no two tasks.
    """
    found, first = [], 0
    for corpus, task in enumerate(tasks):
        voices = _voices(task)
        speaker = first + np.searchsorted(voices, task.table["speaker"].to_numpy(str))
        found.append({"speaker": speaker, "corpus": np.full(len(task.table), corpus)})
        first += len(voices)
    return found


def _voices(task: Task) -> np.ndarray:
    return np.unique(task.table["speaker"].to_numpy(str))


@dataclass(frozen=True)
class Material:
    """A task with its features under one setup.

    Attributes
    ----------
    task : Task
        Clips that share audio share a unit.
    plain : Features
        As recorded.
    situations : tuple of Features
        As heard in made-up recording situations; for source tasks.
    """

    task: Task
    plain: Features
    situations: tuple[Features, ...]


def threads_for(materials: dict[str, Material], jobs: int) -> int:
    """Threads of each of some processes: more than one serve networks over frames alone."""
    if all(material.plain.are_vectors for material in materials.values()):
        return 1
    return int(os.environ.get("OMP_NUM_THREADS") or max(1, cpu_count() // jobs))


def side_by_side(parts: Sequence[Features]) -> Features:
    """The features of several modalities of the same clips as one."""
    return replace(parts[0], beside=tuple(parts[1:]))


def gather(
    setup: Setup, jobs: Sequence[Job], tasks: dict[str, Task], cache, workers: int, console
) -> dict[str, Material]:
    """Extract and normalise the features of all tasks that the jobs touch."""
    frontends = {
        modality: make_frontend(arguments, modality)
        for modality, arguments in setup.frontends.items()
    }
    sources = {name for job in jobs for name in job.sources}
    materials = {}
    for name in sorted(sources | {name for job in jobs for name in job.targets}):
        task = tasks[name]

        def prepared(situation=None, task=task):
            parts = [
                extract(task, frontend, cache, situation, workers, console.is_terminal)
                for frontend in frontends.values()
            ]
            return normalise(side_by_side(parts), task, setup.normalise)

        plain = prepared()
        # Also where nothing is heard: every setup is to draw the same episodes.
        task = join_same_audio(task, audio_contents(task, cache, workers, console.is_terminal))
        situations = training_situations(setup.training, name) if name in sources else ()
        heard = [prepared(situation) for situation in situations]
        materials[name] = Material(task, plain, tuple(heard))
    return materials


def numbered(materials: dict[str, Material], job: Job) -> list[Material]:
    """The source tasks of a training, told who speaks and in which corpus."""
    own = [materials[name] for name in job.sources]
    return [
        replace(
            material,
            plain=replace(material.plain, domains=domains),
            situations=tuple(replace(heard, domains=domains) for heard in material.situations),
        )
        for material, domains in zip(own, number_domains([material.task for material in own]))
    ]


def all_clips(material: Material, classes: Sequence[str]):
    """All clips of a task that are of the protocol's classes, as one batch."""
    code = {name: index for index, name in enumerate(classes)}
    targets = material.task.table["emotion"].map(code)
    rows = np.flatnonzero(targets.notna())
    targets = targets.to_numpy()[rows].astype(int)
    return material.plain.batch(rows, targets, np.isin(np.arange(len(classes)), targets))
