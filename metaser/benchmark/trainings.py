"""One training of a benchmark: the method, its episodes, and the outer loop."""

import functools
import hashlib
import inspect
import sys
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from metaser.benchmark.materials import Material, count_domains, numbered
from metaser.benchmark.plan import Job
from metaser.episodes import (
    TaskSampler,
)
from metaser.protocol.build import is_trained, make_method, training_key
from metaser.protocol.schema import Protocol, Setup, TrainingPlan
from metaser.training.loop import Source, Training, train


def train_method(
    label: str, protocol: Protocol, job: Job, materials: dict[str, Material], checkpoints=None
):
    """Build a method and train it on the job's sources; ready to adapt."""
    setup = protocol.setups[job.setup]
    method = build_method(label, setup, protocol, materials, job)
    if is_trained(method):
        train_job(method, protocol, setup, replace(job, methods=(label,)), materials, checkpoints)
    return method


def build_method(label: str, setup: Setup, protocol: Protocol, materials, job: Job):
    """Build an untrained method around a new model; the seed decides its initial parameters."""
    parts = materials[job.targets[0]].plain.modalities
    stored = {modality: part.values.shape[2] for modality, part in parts.items()}
    domains = count_domains([materials[name].task for name in job.sources])
    return make_method(label, setup, len(protocol.classes), stored, job.seed, domains)


def train_job(method, protocol: Protocol, setup: Setup, job: Job, materials, folder) -> dict:
    """Train a method, with checkpoints in ``folder`` if given; return the history's last entry."""
    sources, validation = [], []
    for material in numbered(materials, job):
        own = source_episodes(material, protocol.classes, setup.training, job.seed)
        sources += own[0]
        validation += own[1]
    if not validation:
        raise ValueError(
            f"none of the source tasks {list(job.sources)} has enough speakers to hold some out "
            "for validation: add a source with more speakers, or raise held_out"
        )
    label = job.methods[0]
    heard = [f"{source} {materials[source].task.version}" for source in job.sources]
    key = f"{training_key(label, setup)} {protocol.classes} {heard} {job.seed}"
    name = hashlib.blake2b(key.encode(), digest_size=8).hexdigest()
    known = inspect.signature(Training).parameters
    plan = Training(**{key: value for key, value in setup.training if key in known})
    history = train(
        method,
        sources,
        validation,
        plan,
        seed=job.seed,
        checkpoint=None if folder is None else folder / f"{name}.pt",
        progress=functools.partial(_tell, job, label, [time.perf_counter()]),
    )
    return history[-1]


def _tell(job: Job, label: str, last: list[float], step: int, loss: float) -> None:
    """Say on stderr, every half minute at most, how far a training is."""
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
    """Training episodes of a source task, and validation episodes of its held-out speakers.

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
