"""Tasks with their features, as trainings and scoring need them."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from joblib import cpu_count

from metaser.batch import Batch
from metaser.benchmark.plan import Job
from metaser.benchmark.voices import Voices
from metaser.features.extraction import audio_contents, extract
from metaser.features.table import Features, normalise
from metaser.features.voice import gate, normalise_voices, varied_share
from metaser.files import Places
from metaser.protocol.build import Settled, training_situations
from metaser.protocol.schema import Setup
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
    voices : Voices or None
        How episodes of a target are normalised by who speaks, if they are.
    """

    task: Task
    plain: Features
    situations: tuple[Features, ...]
    voices: Voices | None = None


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

        def heard(situation: Situation | None = None, task: Task = task) -> Features:
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
            return side_by_side(parts)

        raw = heard()
        plain = _normalised(raw, task, setup)
        # Also where no sound is read: every setup is to draw the same episodes.
        contents = audio_contents(task, places.cache, places.jobs, progress)
        situations = training_situations(setup.training, name) if name in sources else ()
        rerecorded = tuple(_normalised(heard(situation), task, setup) for situation in situations)
        voices = None
        if setup.normalise == "voice":
            voices = Voices.of(raw, task, setup.voice)
        materials[name] = Material(join_same_audio(task, contents), plain, rerecorded, voices)
    if setup.voice.neutral:
        neutral = _where_neutral(materials[name] for name in sorted(sources))
        return {
            name: replace(one, voices=one.voices and replace(one.voices, neutral=neutral))
            for name, one in materials.items()
        }
    return materials


def _normalised(features: Features, task: Task, setup: Setup) -> Features:
    """Normalise all clips of a task; by its voices only where its labels say that it is safe."""
    if setup.normalise != "voice":
        return normalise(features, task, setup.normalise)
    speakers, emotions = task.table["speaker"].to_numpy(), task.table["emotion"].to_numpy()
    if gate(varied_share(emotions, speakers)):
        return normalise_voices(features, speakers)
    return normalise(features, task, "corpus")


def _where_neutral(materials: Iterable[Material]) -> np.ndarray:
    """Return the mean frame (channels,) of neutral clips, averaged over the tasks that have any."""
    means = []
    for material in materials:
        rows = np.flatnonzero(material.task.table["emotion"] == "neutral")
        if len(rows):
            real = np.arange(material.plain.values.shape[1]) < material.plain.lengths[rows, None]
            means.append(material.plain.values[rows][real].mean(axis=0, dtype=np.float64))
    if not means:
        raise ValueError(
            "voice.neutral needs a source with neutral clips, but none has any: add one, or leave "
            "neutral out"
        )
    return np.mean(means, axis=0)


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
