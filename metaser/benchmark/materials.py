"""Tasks with their features, as trainings and scoring need them."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from joblib import cpu_count

from metaser.batch import Batch
from metaser.benchmark.plan import Job
from metaser.features.extraction import audio_contents, extract
from metaser.features.table import Features, normalise
from metaser.files import Places
from metaser.protocol.build import Settled, training_situations
from metaser.recording import Situation
from metaser.tasks.task import Task, join_same_audio


def count_domains(tasks: Sequence[Task]) -> dict[str, int]:
    """Return how many speakers and corpora some tasks have; no voice is in two of them."""
    return {"speaker": sum(len(_voices(task)) for task in tasks), "corpus": len(tasks)}


def number_domains(tasks: Sequence[Task]) -> list[dict[str, np.ndarray]]:
    """Give the speaker and the corpus of every clip a number.

    Returns
    -------
    list of dict of str to ndarray
        For each task ``speaker`` and ``corpus``, (clips,) int64 in the order of its table; from 0
        to below the numbers of ``count_domains``, and the same number for no two tasks.
    """
    numbers, first = [], 0
    for corpus, task in enumerate(tasks):
        voices = _voices(task)
        speaker = first + np.searchsorted(voices, task.table["speaker"].to_numpy(str))
        numbers.append({"speaker": speaker, "corpus": np.full(len(task.table), corpus)})
        first += len(voices)
    return numbers


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
    """Return the threads per process: 1 for vectors; networks over frames share the cores."""
    if all(material.plain.are_vectors for material in materials.values()):
        return 1
    return int(os.environ.get("OMP_NUM_THREADS") or max(1, cpu_count() // jobs))


def side_by_side(parts: Sequence[Features]) -> Features:
    """Return the features of several modalities of the same clips as one."""
    return replace(parts[0], beside=tuple(parts[1:]))


def gather(
    settled: Settled,
    jobs: Sequence[Job],
    tasks: dict[str, Task],
    places: Places,
    *,
    progress: bool = False,
) -> dict[str, Material]:
    """Extract and normalise the features of all tasks that the jobs touch.

    Parameters
    ----------
    settled : Settled
        A setup and its front ends.
    jobs : sequence of Job
        Name sources and targets.
    tasks : dict of str to Task
        Those that are present.
    places : Places
        Feature cache and number of processes.
    progress : bool
        Whether to show a progress bar.
    """
    setup, frontends = settled
    sources = {name for job in jobs for name in job.sources}
    materials = {}
    for name in sorted(sources | {name for job in jobs for name in job.targets}):
        task = tasks[name]

        def prepared(situation: Situation | None = None, task: Task = task) -> Features:
            parts = [
                extract(
                    task,
                    frontend,
                    places.cache,
                    situation=situation,
                    jobs=places.jobs,
                    progress=progress,
                )
                for frontend in frontends.values()
            ]
            return normalise(side_by_side(parts), task, setup.normalise)

        plain = prepared()
        # Also where no sound is read: every setup is to draw the same episodes.
        contents = audio_contents(task, places.cache, places.jobs, progress)
        situations = training_situations(setup.training, name) if name in sources else ()
        rerecorded = tuple(prepared(situation) for situation in situations)
        materials[name] = Material(join_same_audio(task, contents), plain, rerecorded)
    return materials


def numbered(materials: dict[str, Material], job: Job) -> list[Material]:
    """Return the source tasks of a training, with who speaks and in which corpus."""
    sources = [materials[name] for name in job.sources]
    domains = number_domains([material.task for material in sources])
    return [
        replace(
            material,
            plain=replace(material.plain, domains=numbers),
            situations=tuple(replace(heard, domains=numbers) for heard in material.situations),
        )
        for material, numbers in zip(sources, domains)
    ]


def all_clips(material: Material, classes: Sequence[str]) -> Batch:
    """Return all clips of a task that are of the protocol's classes, as one batch."""
    code = {name: index for index, name in enumerate(classes)}
    codes = material.task.table["emotion"].map(code)
    rows = np.flatnonzero(codes.notna())
    targets = codes.to_numpy()[rows].astype(int)
    return material.plain.batch(rows, targets, np.isin(np.arange(len(classes)), targets))
