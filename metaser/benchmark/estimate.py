"""How much of a protocol remains, and how long it will take."""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from metaser.benchmark.materials import Material, all_clips, numbered, side_by_side, threads_for
from metaser.benchmark.plan import (
    Job,
    check_modalities,
    choose_sources,
    finished_cells,
    job_cells,
    plan_jobs,
    present_tasks,
    restrict,
)
from metaser.benchmark.scoring import cell_sampler
from metaser.benchmark.trainings import build_method, source_episodes, train_job
from metaser.episodes import (
    tensors,
)
from metaser.features.extraction import extract
from metaser.features.store import Ragged
from metaser.features.table import Features
from metaser.frontends import make_frontend
from metaser.protocol.build import is_trained, settle, training_situations
from metaser.protocol.schema import Protocol, Setup
from metaser.tasks.task import Task
from metaser.training.meta_batch import MEGABYTE, MetaBatch


def forecast(
    protocol: Protocol,
    out: Path,
    data: Path | None = None,
    task_folders: Sequence[Path] = (),
    targets: Sequence[str] = (),
    methods: Sequence[str] = (),
    jobs: int = 1,
    cache: Path | None = None,
) -> str:
    """Tell how much of a protocol remains, timing one step of each kind on random features."""
    protocol = settle(protocol)
    tasks, absent = present_tasks(protocol, data, task_folders)
    check_modalities(protocol, tasks)
    protocol = choose_sources(protocol, tasks, cache, jobs)
    tasks = {name: restrict(task, protocol.classes) for name, task in tasks.items()}
    done = finished_cells(out / "rows.jsonl", protocol, tasks)
    plan = plan_jobs(protocol, tasks, targets, methods)
    plan = [job for job in plan if not done.issuperset(job_cells(protocol, job))]
    cells = sum(key not in done for job in plan for key in job_cells(protocol, job))
    lines = [f"not present, left out: {', '.join(absent)}"] if absent else []
    lines.append(f"{len(done)} cells are there, {cells} remain in {len(plan)} trainings")
    total = 0.0
    for name, setup in protocol.setups.items():
        own = [job for job in plan if job.setup == name]
        if not own:
            continue
        materials, extraction = _random_materials(setup, own, tasks, cache)
        torch.set_num_threads(threads_for(materials, jobs))
        measured, memory = {}, 0
        for job in own:
            if job.methods not in measured:
                measured[job.methods] = _time_job(protocol, setup, job, materials)
                memory = max(memory, _memory(protocol, setup, job, materials))
        seconds = sum(measured[job.methods] for job in own)
        lines.append(
            f"{name}: features {extraction / jobs / 60:.0f} min where the cache lacks them, "
            f"{len(own)} trainings and their cells {seconds / jobs / 60:.0f} min at most, "
            f"{memory / MEGABYTE:.0f} MB a process besides the features"
        )
        total += (extraction + seconds) / jobs
    lines.append(f"about {total / 60:.0f} min at most in {jobs} processes")
    return "\n".join(lines)


def _random_materials(setup: Setup, jobs, tasks, cache) -> tuple[dict[str, Material], float]:
    """Random features of the right shape, and the seconds that the real ones would take."""
    rng = np.random.default_rng(0)
    first = tasks[jobs[0].targets[0]]
    shapes, seconds = {}, {}
    for modality, arguments in setup.frontends.items():
        frontend = make_frontend(arguments, modality)
        frontend = getattr(frontend, "extracted", frontend)
        shapes[modality], seconds[modality] = _try(frontend, first, cache)
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
        sources = any(name in job.sources for job in jobs)
        situations = training_situations(setup.training, name) if sources else ()
        extraction += count * sum(seconds.values())
        extraction += count * len(situations) * seconds.get("audio", 0.0)
    return materials, extraction


def _try(frontend, task: Task, cache) -> tuple[tuple[int, int], float]:
    """Shape of a clip's features, and the seconds that they take: three of noise, or the longest.

    Texts and videos are a task's own, for there is no telling how long they are.
    """
    if getattr(frontend, "modality", "audio") != "audio" or not hasattr(frontend, "rate"):
        started = time.perf_counter()
        values = extract(task, frontend, cache).values
        return values.shape[1:], (time.perf_counter() - started) / len(task.table)
    rng = np.random.default_rng(0)
    clip = rng.standard_normal(3 * frontend.rate).astype(np.float32)
    shape = frontend(clip).shape
    started = time.perf_counter()
    frontend(clip)
    return shape, time.perf_counter() - started


def _time_job(protocol: Protocol, setup: Setup, job: Job, materials) -> float:
    """Seconds of a job, from a few training steps and one episode of every cell."""
    method = build_method(job.methods[0], setup, protocol, materials, job)
    seconds = 0.0
    if is_trained(method):
        plan = setup.training
        spent = []
        for updates in (1, 1, 4):
            short = plan.model_copy(update={"updates": updates})
            short = setup.model_copy(update={"training": short})
            spent.append(train_job(method, protocol, short, job, materials, None)["seconds"])
        step = max(spent[2] - spent[1], 0) / 3
        validation = max(spent[1] - step, 0)
        seconds += plan.updates * step + plan.updates / plan.validate_every * validation
    for label in job.methods:
        method = build_method(label, setup, protocol, materials, job)
        if getattr(method, "use_sources", False):
            method.fit([all_clips(materials[name], protocol.classes) for name in job.sources])
        for key in job_cells(protocol, replace(job, methods=(label,))):
            sampler, count = cell_sampler(protocol, materials[key[2]].task, key[3], job.seed)
            batch = tensors(sampler.episode(0), materials[key[2]].plain)
            started = time.perf_counter()
            method.adapt(batch.support)(batch.query.modalities)
            seconds += count * (time.perf_counter() - started)
    return seconds


def _memory(protocol: Protocol, setup: Setup, job: Job, materials) -> int:
    """Bytes that the largest episodes of a job's training need."""
    method = build_method(job.methods[0], setup, protocol, materials, job)
    if not is_trained(method):
        return 0
    engine = MetaBatch(method, setup.training.engine)
    drawn = []
    for material in numbered(materials, job):
        sources, _ = source_episodes(material, protocol.classes, setup.training, job.seed)
        drawn += [source.draw(0) for source in sources]
    largest = max(drawn, key=lambda episode: len(episode.support) + len(episode.query))
    if getattr(method, "hears_other", False):
        largest = replace(largest, other=largest.query)
    plan = engine.plan(largest)
    return plan.memory * min(plan.tasks, setup.training.meta_batch) // plan.tasks
