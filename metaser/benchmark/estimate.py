"""How much of a protocol remains, and how long it will take."""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from metaser.benchmark.harness import Run
from metaser.benchmark.materials import Material, all_clips, numbered, side_by_side, threads_for
from metaser.benchmark.plan import Job, Plan, make_plan
from metaser.benchmark.scoring import cell_sampler
from metaser.benchmark.trainings import build_method, source_episodes, train_job
from metaser.contracts import extracted, frontend_traits, method_traits
from metaser.episodes import tensors
from metaser.features.extraction import extract
from metaser.features.store import Ragged
from metaser.features.table import Features
from metaser.files import Places
from metaser.outside import pinned
from metaser.protocol.build import Settled, training_situations
from metaser.protocol.schema import Protocol, Setup
from metaser.tasks.task import Task
from metaser.training.meta_batch import MEGABYTE, MetaBatch


def forecast(run: Run) -> str:
    """Say how much of a run remains, after timing one step of each kind on random features."""
    with pinned(run.protocol.files):
        return _forecast(run, make_plan(run.protocol, run.places))


def _forecast(run: Run, plan: Plan) -> str:
    processes = run.places.jobs
    done, _ = plan.finished(run.rows)
    cells = {job: list(job.cells(plan.protocol)) for job in plan.jobs(run.targets, run.methods)}
    jobs = [job for job, own in cells.items() if not done.issuperset(own)]
    missing = sum(cell not in done for job in jobs for cell in cells[job])
    lines = [f"not present, left out: {', '.join(plan.absent)}"] if plan.absent else []
    lines.append(f"{len(done)} cells are there, {missing} remain in {len(jobs)} trainings")
    total = 0.0
    for name, settled in plan.settled.items():
        ours = [job for job in jobs if job.setup == name]
        if not ours:
            continue
        materials, extraction = _random_materials(settled, ours, plan.tasks, run.places)
        torch.set_num_threads(threads_for(materials, processes))
        measured: dict[tuple[str, ...], float] = {}
        memory = 0
        for job in ours:
            if job.methods not in measured:
                measured[job.methods] = _time_job(plan.protocol, settled.setup, job, materials)
                memory = max(memory, _memory(plan.protocol, settled.setup, job, materials))
        seconds = sum(measured[job.methods] for job in ours)
        lines.append(
            f"{name}: features {extraction / processes / 60:.0f} min where the cache lacks them, "
            f"{len(ours)} trainings and their cells {seconds / processes / 60:.0f} min at most, "
            f"{memory / MEGABYTE:.0f} MB a process besides the features"
        )
        total += (extraction + seconds) / processes
    lines.append(f"about {total / 60:.0f} min at most in {processes} processes")
    return "\n".join(lines)


def _random_materials(
    settled: Settled, jobs: Sequence[Job], tasks: dict[str, Task], places: Places
) -> tuple[dict[str, Material], float]:
    """Return random features of the right shape, and the seconds that the real ones would take."""
    rng = np.random.default_rng(0)
    first = tasks[jobs[0].targets[0]]
    shapes, seconds = {}, {}
    for modality, frontend in settled.frontends.items():
        shapes[modality], seconds[modality] = _try(extracted(frontend), first, places)
    materials, extraction = {}, 0.0
    for name in {name for job in jobs for name in (*job.sources, *job.targets)}:
        count = len(tasks[name].table)
        parts = []
        for modality, shape in shapes.items():
            frames = rng.standard_normal(shape, dtype=np.float32)
            lengths = np.full(count, shape[0])
            values = Ragged(frames, np.zeros(count, int), lengths)  # the same clip over and over
            parts.append(Features(values, lengths, np.arange(count).astype(str), modality))
        materials[name] = Material(tasks[name], side_by_side(parts), ())
        is_source = any(name in job.sources for job in jobs)
        situations = training_situations(settled.setup.training, name) if is_source else ()
        extraction += count * sum(seconds.values())
        extraction += count * len(situations) * seconds.get("audio", 0.0)
    return materials, extraction


def _try(frontend: Any, task: Task, places: Places) -> tuple[tuple[int, int], float]:
    """Return the shape of a clip's features (3 s of noise, or the longest), and their seconds.

    Texts and videos are a task's own, for there is no telling how long they are.
    """
    traits = frontend_traits(frontend)
    if traits.modality != "audio" or traits.rate is None:
        started = time.perf_counter()
        values = extract(task, frontend, places.cache).values
        return values.shape[1:], (time.perf_counter() - started) / len(task.table)
    rng = np.random.default_rng(0)
    clip = rng.standard_normal(3 * traits.rate).astype(np.float32)
    shape = frontend(clip).shape
    started = time.perf_counter()
    frontend(clip)
    return shape, time.perf_counter() - started


def _time_job(protocol: Protocol, setup: Setup, job: Job, materials: dict[str, Material]) -> float:
    """Return the seconds of a job, from a few training steps and one episode of every cell."""
    method = build_method(job.methods[0], protocol, setup, job, materials)
    seconds = 0.0
    if method_traits(method).learns:
        plan = setup.training
        spent = []
        for updates in (1, 1, 4):
            few = plan.model_copy(update={"updates": updates})
            short = setup.model_copy(update={"training": few})
            spent.append(train_job(method, protocol, short, job, materials)["seconds"])
        step = max(spent[2] - spent[1], 0) / 3
        validation = max(spent[1] - step, 0)
        seconds += plan.updates * step + plan.updates / plan.validate_every * validation
    for label in job.methods:
        method = build_method(label, protocol, setup, job, materials)
        if method_traits(method).fits:
            method.fit([all_clips(materials[name], protocol.classes) for name in job.sources])
        for cell in replace(job, methods=(label,)).cells(protocol):
            material = materials[cell.target]
            sampler, count = cell_sampler(protocol, material.task, cell.size, cell.seed)
            batch = tensors(sampler.episode(0), material.plain)
            started = time.perf_counter()
            method.adapt(batch.support)(batch.query.modalities)
            seconds += count * (time.perf_counter() - started)
    return seconds


def _memory(protocol: Protocol, setup: Setup, job: Job, materials: dict[str, Material]) -> int:
    """Return the bytes that the largest episodes of a job's training need."""
    method = build_method(job.methods[0], protocol, setup, job, materials)
    traits = method_traits(method)
    if not traits.learns:
        return 0
    engine = MetaBatch(method, setup.training.engine)
    drawn = []
    for material in numbered(materials, job):
        sources, _ = source_episodes(material, protocol.classes, setup.training, job.seed)
        drawn += [source.draw(0) for source in sources]
    largest = max(drawn, key=lambda episode: len(episode.support) + len(episode.query))
    if traits.hears_other:
        largest = replace(largest, other=largest.query)
    plan = engine.plan(largest)
    return plan.memory * min(plan.tasks, setup.training.meta_batch) // plan.tasks
