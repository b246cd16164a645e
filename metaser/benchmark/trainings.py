"""One training of a benchmark: the method, its episodes, and the outer loop."""

import functools
import hashlib
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from metaser.benchmark.materials import Material, count_domains, numbered
from metaser.benchmark.plan import Job
from metaser.contracts import method_traits
from metaser.episodes import TaskSampler
from metaser.protocol.build import make_method, training_key
from metaser.protocol.schema import Protocol, Setup, TrainingPlan
from metaser.training.loop import Source, train


def train_method(
    label: str,
    protocol: Protocol,
    setup: Setup,
    job: Job,
    materials: dict[str, Material],
    *,
    checkpoints: Path | None = None,
) -> Any:
    """Build a method and train it on the job's sources; ready to adapt."""
    job = replace(job, methods=(label,))
    method = build_method(label, protocol, setup, job, materials)
    if method_traits(method).learns:
        train_job(method, protocol, setup, job, materials, checkpoints=checkpoints)
    return method


def build_method(
    label: str, protocol: Protocol, setup: Setup, job: Job, materials: dict[str, Material]
) -> Any:
    """Build an untrained method around a new model; the seed decides its initial parameters."""
    parts = materials[job.targets[0]].plain.modalities
    return make_method(
        label,
        setup,
        classes=len(protocol.classes),
        stored={modality: part.values.shape[2] for modality, part in parts.items()},
        seed=job.seed,
        domains=count_domains([materials[name].task for name in job.sources]),
    )


def train_job(
    method: Any,
    protocol: Protocol,
    setup: Setup,
    job: Job,
    materials: dict[str, Material],
    *,
    checkpoints: Path | None = None,
) -> dict[str, Any]:
    """Train a method in place.

    Parameters
    ----------
    method : LearningMethod
        Untrained.
    protocol, setup, job
        Say how, on which sources and with which seed.
    materials : dict of str to Material
        The sources among them.
    checkpoints : Path, optional
        Folder to keep checkpoints in, and to go on from.

    Returns
    -------
    dict
        The last entry of the history, see ``training.train``.

    Raises
    ------
    ValueError
        If no source has enough speakers to hold some out for validation.
    """
    sources, validation = [], []
    for material in numbered(materials, job):
        learnt, held_out = source_episodes(material, protocol.classes, setup.training, job.seed)
        sources += learnt
        validation += held_out
    if not validation:
        raise ValueError(
            f"none of the source tasks {list(job.sources)} has enough speakers to hold some out "
            "for validation: add a source with more speakers, or raise held_out in the protocol"
        )
    label = job.methods[0]
    versions = [f"{source} {materials[source].task.version}" for source in job.sources]
    key = f"{training_key(label, setup)} {protocol.classes} {versions} {job.seed}"
    name = hashlib.blake2b(key.encode(), digest_size=8).hexdigest()
    history = train(
        method,
        sources,
        validation,
        setup.training,
        seed=job.seed,
        checkpoint=None if checkpoints is None else checkpoints / f"{name}.pt",
        progress=functools.partial(_report, job, label, [time.perf_counter()]),
    )
    return history[-1]


def _report(job: Job, label: str, last: list[float], step: int, loss: float) -> None:
    """Print to stderr, every half minute at most, how far a training is."""
    if time.perf_counter() - last[0] > 30:
        last[0] = time.perf_counter()
        print(
            f"  {job.setup} {label} seed {job.seed}: step {step}, validation loss {loss:.3f}",
            file=sys.stderr,
            flush=True,
        )


def source_episodes(
    material: Material, classes: Sequence[str], plan: TrainingPlan, seed: int
) -> tuple[list[Source], list[Source]]:
    """Return training episodes of a source task, and validation episodes of held-out speakers.

    A task with so few speakers that none can be held out only trains, and a task too small for
    some of the plan's shots trains on the others.
    """
    task = material.task
    units = np.unique(task.table["unit"][task.table["emotion"].isin(classes)])
    count = round(plan.held_out * len(units))
    held_out = np.random.default_rng([seed, *task.name.encode()]).permutation(units)[:count]
    validation = []
    for shots in sorted(set(plan.shots) | {1, 2, 3}, reverse=True):
        try:
            sampler = TaskSampler(
                task,
                classes,
                shots,
                min(shots, plan.queries),
                seed,
                plan.speakers,
                units=tuple(held_out),
            )
        except ValueError:
            continue
        validation = [Source(sampler, material.plain)]
        break
    kept = np.setdiff1d(units, held_out) if validation else units
    sources, refusals = [], []
    for shots in plan.shots:
        try:
            sampler = TaskSampler(
                task, classes, shots, plan.queries, seed, plan.speakers, units=tuple(kept)
            )
        except ValueError as error:
            refusals.append(error)
            continue
        sources += [
            Source(sampler, features) for features in (material.plain, *material.situations)
        ]
    if not sources:
        raise refusals[0]
    return sources, validation
