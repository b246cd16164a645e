"""The benchmark harness: run a protocol's grid, one row a cell, skipping rows already there."""

import datetime
import functools
import hashlib
import inspect
import json
import logging
import os
import platform
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from importlib.metadata import version
from itertools import product
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock, Timeout
from joblib import Parallel, cpu_count, delayed
from rich.console import Console
from torch import nn

from metaser import __version__, metrics
from metaser.audio import content_hash
from metaser.backbones import BACKBONES, make_backbone
from metaser.cluster import workplace
from metaser.devices import CPU, cpu_threads, device_of, find_device
from metaser.distributed import from_first, is_shared, process_group, rank
from metaser.domains import count_domains, number_domains
from metaser.episodes import (
    SplitSampler,
    TaskSampler,
    digest,
    join_same_audio,
    tensors,
    write_manifest,
)
from metaser.features import (
    Features,
    audio_contents,
    extract,
    is_learnable,
    lacks,
    make_frontend,
    normalise,
)
from metaser.labels import nearest
from metaser.methods import METHODS
from metaser.methods.baselines import LogisticRegression
from metaser.methods.meta_batch import MEGABYTE, MetaBatch
from metaser.model import Model
from metaser.protocol import Protocol, Setup, TrainingPlan, typed
from metaser.recording import Situation, draw_situation
from metaser.rows import append_row, cut_torn_line, read_rows
from metaser.selection import choose, clips_of
from metaser.store import Ragged
from metaser.tasks import Task, read_task
from metaser.training import Source, Training, train

PACKAGES = ("torch", "numpy", "librosa", "scikit-learn", "pandas", "soundfile")

SELECTION = {"title", "description", "targets", "seeds", "leave_one_language_out"}
"""Keys of a protocol that choose which cells there are, but do not change a cell's score."""

NOT_TRAINING = {"methods", "choose", "sources_for"}
"""Keys of a set-up that a training does not depend on, besides its sources."""

ALONE = threading.Lock()
"""Held by the one job of a process: training seeds the generator that all its threads share."""


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


@dataclass(frozen=True)
class Job:
    """One training and every cell that stands on it.

    Attributes
    ----------
    setup : str
        Name of the setup.
    methods : tuple of str
        Methods that share the training and differ in how they adapt.
    sources : tuple of str
        Source tasks.
    targets : tuple of str
        Tasks to score on.
    seed : int
        Seed of the training and of the episodes.
    """

    setup: str
    methods: tuple[str, ...]
    sources: tuple[str, ...]
    targets: tuple[str, ...]
    seed: int


def run(
    protocol: Protocol,
    out: Path,
    data: Path | None = None,
    task_folders: Sequence[Path] = (),
    targets: Sequence[str] = (),
    methods: Sequence[str] = (),
    jobs: int = 1,
    cache: Path | None = None,
    scheduler: str = "",
    device: str = "cpu",
    command: str = "",
    console: Console | None = None,
) -> Path:
    """Measure what is missing of a protocol and return the file of rows.

    Processes that ``torchrun`` started share the episodes of every training; the first of them
    scores and writes. On several machines they need a common ``out``.

    Parameters
    ----------
    protocol : Protocol
        What to compare.
    out : Path
        Results folder; made if needed. A run that was stopped goes on in the same folder.
    data : Path, optional
        Data root.
    task_folders : sequence of Path
        Folders with further task folders.
    targets, methods : sequence of str
        Restrict the run to these; empty for all of the protocol.
    jobs : int
        Processes.
    cache : Path, optional
        Feature cache.
    scheduler : str
        Address of a cluster that takes the trainings, ``tcp://HOST:PORT`` (Dask) or
        ``ray://HOST:PORT`` (Ray). Its workers need metaser, but neither the corpora nor ``out``:
        features are extracted here, by ``jobs`` processes, and rows come back and are written
        here when their training is done. No checkpoints are kept there: a training whose worker
        is lost begins anew on another.
    device : str
        Where methods are trained and adapt: "cpu", "cuda", "cuda:1". Under ``torchrun`` "cuda" is
        a GPU for each process. Features are extracted on the processor.
    command : str
        The command line, kept for the report.
    console : rich.console.Console, optional
        Where progress is told.

    Raises
    ------
    ValueError
        If the folder holds another protocol, another run is writing to it, a task cannot give
        the episodes, ``scheduler`` is no address of a cluster, or ``device`` is not there.
    ConnectionError
        If the cluster does not answer, has no worker, or is lost.
    """
    console = console or Console(stderr=True)
    device = find_device(device)
    protocol = settle(protocol)
    out.mkdir(parents=True, exist_ok=True)
    with process_group():
        if rank() > 0:
            _follow(protocol, out, data, task_folders, cache, device)
            return out / "rows.jsonl"
        if is_shared() and (jobs > 1 or scheduler):
            raise ValueError(
                "torchrun's processes share every training, so leave out --jobs and --scheduler"
            )
        return _lead(
            protocol,
            out,
            data,
            task_folders,
            targets,
            methods,
            jobs,
            cache,
            scheduler,
            device,
            command,
            console,
        )


def _lead(protocol, out, *arguments) -> Path:
    """Run alone, or as the first of the processes that share every training."""
    try:
        with FileLock(out / "run.lock", timeout=0):
            return _run(protocol, out, *arguments)
    except Timeout as error:
        raise ValueError(
            f"another run is writing to {out}: wait for it, or name another folder by --out"
        ) from error


def _run(
    protocol,
    out,
    data,
    task_folders,
    targets,
    methods,
    jobs,
    cache,
    scheduler,
    device,
    command,
    console,
) -> Path:
    tasks, absent = present_tasks(protocol, data, task_folders)
    _check_modalities(protocol, tasks)
    for name in absent:
        console.print(f"[yellow]{name} is not present and is left out[/yellow]")
    protocol = choose_sources(protocol, tasks, cache, jobs)
    plan = plan_jobs(protocol, tasks, targets, methods)
    for task in tasks.values():
        if (task.clips_found, task.speakers_found) != (task.utterances, task.speakers):
            console.print(
                f"{task.name} is a subset: {task.clips_found} of {task.utterances} clips, "
                f"{task.speakers_found} of {task.speakers} speakers"
            )
    rows = out / "rows.jsonl"
    cut_torn_line(rows)
    done = finished_cells(rows, protocol, tasks)
    missing = [key for job in plan for key in job_cells(protocol, job) if key not in done]
    plan = [job for job in plan if not done.issuperset(job_cells(protocol, job))]
    console.print(f"{len(done)} cells are there, {len(missing)} remain in {len(plan)} trainings")
    from_first(plan)
    if not missing and (out / "run.json").exists():
        return rows
    restricted = {name: restrict(task, protocol.classes) for name, task in tasks.items()}
    for _, _, target, size, seed in missing:
        cell_sampler(protocol, restricted[target], size, seed)[0].episode(0)
    _write_run(out, protocol, tasks, absent, command)
    tasks = restricted
    with workplace(scheduler, jobs) as (place, share):
        for name, setup in protocol.setups.items():
            own = [job for job in plan if job.setup == name]
            if not own:
                continue
            materials = gather(setup, own, tasks, cache, jobs, console)
            threads = 1 if scheduler else _threads(materials, jobs)
            arguments = (share(materials), frozenset(done), threads, device)
            if not scheduler:
                arguments += (out, os.getpid())
            work = Parallel(return_as="generator_unordered", **place)(
                delayed(run_job)(protocol, job, *arguments) for job in own
            )
            started = time.perf_counter()
            for count, (job, seconds, found) in enumerate(work, start=1):
                if scheduler:
                    for row in found:
                        append_row(rows, row)
                spent = time.perf_counter() - started
                left = spent / count * (len(own) - count)
                score = 100 * np.mean([np.mean(row["uar"]) for row in found])
                console.print(
                    f"{count}/{len(own)} {name} {', '.join(job.methods)} seed {job.seed}: "
                    f"{len(found)} cells, mean UAR {score:.1f} % "
                    f"({seconds:.0f} s, {left / 60:.0f} min left)",
                    highlight=False,
                    markup=False,
                )
    return rows


def _follow(protocol: Protocol, out: Path, data, task_folders, cache, device) -> None:
    """Share the trainings of the first process; scoring and writing are its own."""
    plan = from_first(None)
    tasks, _ = present_tasks(protocol, data, task_folders)
    tasks = {name: restrict(task, protocol.classes) for name, task in tasks.items()}
    for name, setup in protocol.setups.items():
        own = [job for job in plan if job.setup == name]
        if not own:
            continue
        materials = gather(setup, own, tasks, cache, 1, Console(quiet=True))
        torch.set_num_threads(_threads(materials, 1))
        for job in own:
            method = build_method(job.methods[0], setup, protocol, materials, job)
            if _is_trained(method):
                method.to(device)
                train_job(method, protocol, setup, job, materials, out / "checkpoints")


def _threads(materials: dict[str, Material], jobs: int) -> int:
    """Threads of each of some processes: more than one serve networks over frames alone."""
    if all(material.plain.are_vectors for material in materials.values()):
        return 1
    return int(os.environ.get("OMP_NUM_THREADS") or max(1, cpu_count() // jobs))


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
    _check_modalities(protocol, tasks)
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
        torch.set_num_threads(_threads(materials, jobs))
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
        materials[name] = Material(tasks[name], _side_by_side(parts), ())
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


def _side_by_side(parts: Sequence[Features]) -> Features:
    """The features of several modalities of the same clips as one."""
    return replace(parts[0], beside=tuple(parts[1:]))


def _time_job(protocol: Protocol, setup: Setup, job: Job, materials) -> float:
    """Seconds of a job, from a few training steps and one episode of every cell."""
    method = build_method(job.methods[0], setup, protocol, materials, job)
    seconds = 0.0
    if _is_trained(method):
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
            method.fit([_all_clips(materials[name], protocol.classes) for name in job.sources])
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
    if not _is_trained(method):
        return 0
    engine = MetaBatch(method, setup.training.engine)
    drawn = []
    for material in _numbered(materials, job):
        sources, _ = source_episodes(material, protocol.classes, setup.training, job.seed)
        drawn += [source.draw(0) for source in sources]
    largest = max(drawn, key=lambda episode: len(episode.support) + len(episode.query))
    if getattr(method, "hears_other", False):
        largest = replace(largest, other=largest.query)
    plan = engine.plan(largest)
    return plan.memory * min(plan.tasks, setup.training.meta_batch) // plan.tasks


def present_tasks(
    protocol: Protocol, data: Path | None, folders: Sequence[Path]
) -> tuple[dict[str, Task], list[str]]:
    """Read the protocol's tasks; return those whose audio is present, and the names of the rest."""
    names = dict.fromkeys([*protocol.sources, *protocol.targets])
    read = {name: read_task(name, data, folders) for name in names}
    tasks = {name: task for name, task in read.items() if task.table is not None}
    absent = [name for name in names if name not in tasks]
    for label in protocol.classes:
        if not any((task.table["emotion"] == label).any() for task in tasks.values()):
            held = sorted({name for task in tasks.values() for name in task.counts})
            raise ValueError(
                f"no task that is present has class {label!r}.{nearest(label, held)} "
                f"There are {held}"
            )
    if not any(name in tasks for name in protocol.sources):
        raise ValueError(
            f"none of the source tasks {protocol.sources} is present: name the folder above the "
            "corpora by --data or METASER_DATA (`metaser tasks` tells how to obtain them)"
        )
    return tasks, absent


def _check_modalities(protocol: Protocol, tasks: dict[str, Task]) -> None:
    """Refuse a setup that reads what a task does not give."""
    for name, setup in protocol.setups.items():
        for modality, arguments in setup.frontends.items():
            frontend = make_frontend(arguments, modality)
            for task in tasks.values():
                if reason := lacks(task, frontend):
                    raise ValueError(
                        f"setup {name!r} asks for {modality} ({arguments['name']!r}), which "
                        f"{task.name} does not give: {reason}"
                    )


def other_languages(
    protocol: Protocol, tasks: dict[str, Task], target: Task, setup: Setup | None = None
) -> list[str]:
    """The present sources of other languages than the target's, as far as the set-up wants them."""
    present = [tasks[name] for name in protocol.sources if name in tasks]
    others = [task.name for task in present if task.language != target.language]
    if setup is None or target.name not in setup.sources_for:
        return others
    return [name for name in others if name in setup.sources_for[target.name]]


def choose_sources(protocol: Protocol, tasks: dict[str, Task], cache, jobs: int = 1) -> Protocol:
    """Choose every target's sources where a set-up asks for it; see ``protocol.Choice``.

    The choice looks at all unlabelled clips of the target, those of later queries included, and at
    no score.
    """
    targets = dict.fromkeys([*protocol.targets, *protocol.sources])
    setups = {}
    for name, setup in protocol.setups.items():
        if setup.choose is not None:
            clips = {}
            for task in tasks.values():
                task = restrict(task, protocol.classes)
                frontend = make_frontend(setup.frontend)
                clips[task.name] = clips_of(task, extract(task, frontend, cache, jobs=jobs))
            chosen = {}
            for target in (target for target in targets if target in tasks):
                others = other_languages(protocol, tasks, tasks[target])
                sources = {other: clips[other] for other in others}
                chosen[target] = choose(clips[target], sources, **setup.choose.model_dump())
            setup = setup.model_copy(update={"sources_for": chosen})
        setups[name] = setup
    return protocol.model_copy(update={"setups": setups})


def restrict(task: Task, classes: Sequence[str]) -> Task:
    """Return the task with the clips of some classes only."""
    wanted = task.table["emotion"].isin(classes)
    return replace(task, table=task.table[wanted].reset_index(drop=True))


def plan_jobs(
    protocol: Protocol,
    tasks: dict[str, Task],
    targets: Sequence[str] = (),
    methods: Sequence[str] = (),
) -> list[Job]:
    """List the trainings of a protocol and what is scored on each.

    Targets with the same sources share a training, and so do methods that differ only in how they
    adapt. No training sees the language it is scored on. True targets come first, then the
    sources that are left out in turn.
    """
    sources = [name for name in protocol.sources if name in tasks]
    wanted = [name for name in protocol.targets if name in tasks]
    if protocol.leave_one_language_out:
        wanted += [name for name in sources if name not in wanted]
    wanted = _restrict(wanted, targets, "target")
    if not wanted:
        raise ValueError(f"none of the targets {protocol.targets} is present: obtain one of them")
    jobs = []
    known = dict.fromkeys(label for setup in protocol.setups.values() for label in setup.methods)
    chosen = _restrict(list(known), methods, "method")
    for name, setup in protocol.setups.items():
        shared: dict[str, list[str]] = {}
        for label in (label for label in setup.methods if label in chosen):
            shared.setdefault(training_key(label, setup), []).append(label)
        groups: dict[tuple[str, ...], list[str]] = {}
        for target in wanted:
            other = other_languages(protocol, tasks, tasks[target], setup)
            if not other:
                raise ValueError(f"no source task of another language than {target}'s is present")
            groups.setdefault(tuple(other), []).append(target)
        for seed, (others, own), labels in product(protocol.seeds, groups.items(), shared.values()):
            scored = [
                t for t in own if t in protocol.targets or seed in protocol.leave_one_language_out
            ]
            if scored:
                jobs.append(Job(name, tuple(labels), others, tuple(scored), seed))
    return sorted(jobs, key=lambda job: not set(job.targets) & set(protocol.targets))


def _restrict(names: list[str], chosen: Sequence[str], kind: str) -> list[str]:
    unknown = [name for name in chosen if name not in names]
    if unknown:
        raise ValueError(f"{kind} {unknown[0]!r} is not among those of the protocol here: {names}")
    return [name for name in names if not chosen or name in chosen]


def method_type(label: str, setup: Setup):
    """The class of a method, and all arguments it gets: presets, then the protocol's."""
    arguments = dict(setup.methods[label])
    name = arguments.pop("method", label)
    if name not in METHODS:
        raise ValueError(f"method must be one of {sorted(METHODS)}, not {name!r}")
    entry = METHODS[name]
    preset = entry.keywords if isinstance(entry, functools.partial) else {}
    kind = entry.func if isinstance(entry, functools.partial) else entry
    known = set(inspect.signature(kind).parameters) - {"model", "domains"}
    for key in arguments:
        if key not in known:
            raise ValueError(
                f"method {label!r} has no argument {key!r}.{nearest(key, known)} "
                f"It has {sorted(known)}"
            )
    return kind, {**preset, **arguments}


def training_key(label: str, setup: Setup) -> str:
    """Digest of what decides the training of a method; its label if it has none."""
    kind, arguments = method_type(label, setup)
    if not hasattr(kind, "loss") or not arguments.get("pretrain", True):
        return label
    lasting = {k: v for k, v in arguments.items() if k not in kind.ADAPTATION}
    facts = [kind.__name__, lasting, setup.model_dump(exclude=NOT_TRAINING) | _frontend(setup)]
    return hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=6).hexdigest()


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
            return normalise(_side_by_side(parts), task, setup.normalise)

        plain = prepared()
        # Also where nothing is heard: every setup is to draw the same episodes.
        task = join_same_audio(task, audio_contents(task, cache, workers, console.is_terminal))
        situations = training_situations(setup.training, name) if name in sources else ()
        heard = [prepared(situation) for situation in situations]
        materials[name] = Material(task, plain, tuple(heard))
    return materials


def settle(protocol: Protocol) -> Protocol:
    """Check the front ends of all set-ups before any work, and pin the versions of trained ones."""
    setups = {}
    for name, setup in protocol.setups.items():
        _check_backbone(name, setup)
        training_situations(setup.training, "")
        for modality, arguments in setup.frontends.items():
            frontend = make_frontend(arguments, modality)
            if modality == "audio":
                _check_frontend(name, setup, frontend)
            if "model" in arguments:
                revision = getattr(frontend, "extracted", frontend).revision
                pinned = {_key(modality): {**arguments, "revision": revision}}
                setup = setup.model_copy(update=pinned)
        setups[name] = setup
    return protocol.model_copy(update={"setups": setups})


def _key(modality: str) -> str:
    """The key of a setup under which the front end of a modality stands."""
    return "frontend" if modality == "audio" else modality


def _check_backbone(name: str, setup: Setup) -> None:
    """Refuse modalities that a known backbone does not take."""
    own = setup.backbone.get("name")
    if own not in BACKBONES:
        return
    kind = BACKBONES[own]
    kind = getattr(kind, "func", kind)
    takes = dict(inspect.signature(kind.forward).parameters)
    del takes["self"]
    needs = {key for key, value in takes.items() if value.default is value.empty}
    given = set(setup.frontends)
    if not needs <= given <= set(takes):
        raise ValueError(
            f"setup {name!r}: the backbone {own!r} takes {' and '.join(takes)}"
            f"{f' and needs {min(needs)}' if needs and len(takes) > 1 else ''}, but the setup "
            f"gives {' and '.join(setup.frontends)}: mlp and modality_hopping take all"
        )


def _check_frontend(name: str, setup: Setup, frontend) -> None:
    """Refuse what would not do to a front end's frames what it says."""
    own = setup.frontend["name"]
    if getattr(frontend, "AS_IS", False):
        for key, value, wanted in (
            ("normalise", setup.normalise, "none"),
            ("mask_channels", setup.training.mask_channels, 0),
        ):
            if value != wanted:
                raise ValueError(
                    f"setup {name!r}: the frames that go into {own!r} must stay as they are: set "
                    f"{key} = {wanted!r}, not {value!r}"
                )
    if not is_learnable(setup.frontend):
        return
    for label in setup.methods:
        if method_type(label, setup)[0] is LogisticRegression:
            raise ValueError(
                f"setup {name!r}: {label} has no network that {own!r} could be trained with: leave "
                "it out, or take a front end that is not learnt"
            )


def training_situations(plan: TrainingPlan, name: str) -> list[Situation]:
    """The recording situations in which training hears a source task besides its own."""
    seeds = [[index, *name.encode()] for index in range(plan.situations)]
    drawn = [draw_situation(np.random.default_rng(seed)) for seed in seeds]
    try:
        chosen = [Situation(**typed(Situation, facts)) for facts in plan.recordings]
    except TypeError as error:
        names = [field.name for field in fields(Situation)]
        raise ValueError(f"recordings: {error}; a recording has some of {names}") from error
    return drawn + chosen


def job_cells(protocol: Protocol, job: Job) -> Iterator[tuple]:
    """The identities of a job's rows: setup, method, target, shots or fraction, seed."""
    sizes = protocol.episodes.shots if protocol.episodes else protocol.split.fractions
    for method in job.methods:
        for target in job.targets:
            for size in sizes:
                yield job.setup, method, target, size, job.seed


def finished_cells(rows: Path, protocol: Protocol, tasks: dict[str, Task]) -> set[tuple]:
    """The identities of the rows that are there; refuse rows that were measured otherwise."""
    found = set()
    for row in read_rows(rows):
        setup = protocol.setups.get(row["setup"])
        if row["protocol"] != protocol.name:
            raise ValueError(
                f"{rows} holds rows of protocol {row['protocol']!r}, not {protocol.name!r}: write "
                "to another folder by --out"
            )
        if setup is None or row["method"] not in setup.methods:
            continue
        if row["target"] not in tasks:
            continue
        task = tasks[row["target"]]
        now = {
            "settings": settings(protocol, row["setup"], row["method"]),
            "task_version": task.version,
            "sources": other_languages(protocol, tasks, task, setup),
        }
        for key, value in now.items():
            if row[key] != value:
                raise ValueError(
                    f"{rows} holds rows of {row['setup']} {row['method']} on {task.name} that were "
                    f"measured with other {key}, {row[key]} instead of {value}: write to another "
                    "folder by --out, or delete those rows"
                )
        size = row["fraction"] if row["shots"] is None else row["shots"]
        found.add((row["setup"], row["method"], row["target"], size, row["seed"]))
    return found


def settings(protocol: Protocol, setup: str, method: str) -> str:
    """Digest of everything in the protocol that decides the rows of one method."""
    # Without defaults, so that a setting which later versions add leaves old rows as they are.
    whole = protocol.model_dump(exclude={*SELECTION, "setups"}, exclude_defaults=True)
    for section, sizes in (("episodes", "shots"), ("split", "fractions")):
        whole.get(section, {}).pop(sizes, None)
    own = protocol.setups[setup]
    kept = own.model_dump(exclude={"methods", "sources_for"}, exclude_defaults=True)
    chosen = kept | _frontend(own)
    facts = [whole, chosen, own.methods[method]]
    return hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=6).hexdigest()


def _frontend(setup: Setup) -> dict:
    """What each front end is, wherever the files of its model lie."""
    found = {}
    for modality, facts in setup.frontends.items():
        if "revision" in facts:
            facts = {key: value for key, value in facts.items() if key != "model"}
        found[_key(modality)] = facts
    return found


def run_job(
    protocol: Protocol,
    job: Job,
    materials: dict[str, Material],
    done: frozenset,
    threads: int,
    device: torch.device = CPU,
    out: Path | None = None,
    owner: int | None = None,
) -> tuple[Job, float, list[dict]]:
    """Train once and score every cell that is missing; return the seconds and the rows.

    With ``out`` every row is appended there as soon as it is known, and the training keeps
    checkpoints. ``owner`` is the process that holds the lock of ``out``: when it is gone nothing
    more is written, for another run may have begun.
    """
    logging.basicConfig(level=os.environ.get("METASER_LOG", "WARNING").upper())
    started = time.perf_counter()
    rows = []
    with ALONE, cpu_threads(threads):
        checkpoints = out and out / "checkpoints"
        for row in _rows(protocol, job, materials, done, checkpoints, device):
            if out is not None:
                if owner not in (os.getpid(), os.getppid()):
                    raise RuntimeError(f"the run that writes to {out} is gone")
                append_row(out / "rows.jsonl", row)
            rows.append(row)
    return job, time.perf_counter() - started, rows


def _rows(protocol, job: Job, materials, done, checkpoints, device) -> Iterator[dict]:
    """Train once, and yield the row of every cell that is missing."""
    setup = protocol.setups[job.setup]
    state, trained = None, {"seconds": 0.0, "skipped": 0}
    for label in job.methods:
        method = build_method(label, setup, protocol, materials, job)
        if isinstance(method, nn.Module):
            method.to(device)
        if state is not None:
            method.load_state_dict(state)
        elif _is_trained(method):
            trained = train_job(method, protocol, setup, job, materials, checkpoints)
            state = method.state_dict()
        if getattr(method, "use_sources", False):
            heard = [_all_clips(materials[name], protocol.classes) for name in job.sources]
            method.fit([batch.to(device_of(method)) for batch in heard])
        for key in job_cells(protocol, replace(job, methods=(label,))):
            if key in done:
                continue
            row = score_cell(protocol, setup, method, key, materials[key[2]])
            parameters = getattr(method, "parameters", list)()
            generated = getattr(method, "quality", None)
            yield row | {
                **({"generated": asdict(generated)} if generated else {}),
                "protocol": protocol.name,
                "sources": list(job.sources),
                "chosen": setup.choose and setup.choose.model_dump(),
                "settings": settings(protocol, job.setup, label),
                "train_seconds": round(trained["seconds"], 2),
                "skipped_episodes": trained["skipped"],
                "parameters": sum(v.numel() for v in parameters if v.requires_grad),
            }


def train_method(
    label: str, protocol: Protocol, job: Job, materials: dict[str, Material], checkpoints=None
):
    """Build a method and train it on the job's sources; ready to adapt."""
    setup = protocol.setups[job.setup]
    method = build_method(label, setup, protocol, materials, job)
    if _is_trained(method):
        train_job(method, protocol, setup, replace(job, methods=(label,)), materials, checkpoints)
    return method


def _is_trained(method) -> bool:
    """Whether a method learns by gradient steps on the source tasks."""
    return hasattr(method, "loss") and getattr(method, "pretrain", True)


def build_method(label: str, setup: Setup, protocol: Protocol, materials, job: Job):
    """Build an untrained method around a new model; the seed decides its initial parameters."""
    parts = materials[job.targets[0]].plain.modalities
    stored = {modality: part.values.shape[2] for modality, part in parts.items()}
    domains = count_domains([materials[name].task for name in job.sources])
    return make_method(label, setup, len(protocol.classes), stored, job.seed, domains)


def make_method(
    label: str,
    setup: Setup,
    classes: int,
    stored: dict[str, int],
    seed: int,
    domains: dict[str, int] | None = None,
):
    """Build an untrained method for features of as many channels of each modality as are stored.

    ``domains`` counts the speakers and corpora that adversaries tell apart.
    """
    kind, arguments = method_type(label, setup)
    if "model" not in inspect.signature(kind).parameters:
        return kind(**arguments)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # Others are done with their work, and to build them here would need their packages.
        frontend = make_frontend(setup.frontend) if is_learnable(setup.frontend) else None
        channels = stored | ({"audio": frontend.channels} if frontend else {})
        only_heard = list(channels) == ["audio"]
        model = Model(
            make_backbone(setup.backbone, channels["audio"] if only_heard else channels),
            classes,
            setup.head_hidden,
            setup.batch_norm,
            frontend,
        )
        if "domains" in inspect.signature(kind).parameters:
            arguments["domains"] = domains
        return kind(model, **arguments).eval()


def train_job(method, protocol: Protocol, setup: Setup, job: Job, materials, folder) -> dict:
    """Train a method, with checkpoints in ``folder`` if given; return the history's last entry."""
    sources, validation = [], []
    for material in _numbered(materials, job):
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


def _numbered(materials: dict[str, Material], job: Job) -> list[Material]:
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


def _all_clips(material: Material, classes: Sequence[str]):
    """All clips of a task that are of the protocol's classes, as one batch."""
    code = {name: index for index, name in enumerate(classes)}
    targets = material.task.table["emotion"].map(code)
    rows = np.flatnonzero(targets.notna())
    targets = targets.to_numpy()[rows].astype(int)
    return material.plain.batch(rows, targets, np.isin(np.arange(len(classes)), targets))


def cell_sampler(protocol: Protocol, task: Task, size, seed: int):
    """The sampler of a cell, and how many episodes it draws."""
    if protocol.episodes is not None:
        plan = protocol.episodes
        sampler = TaskSampler(
            task, protocol.classes, size, plan.queries, seed, speakers=protocol.speakers
        )
        return sampler, plan.count
    return SplitSampler(task, protocol.classes, protocol.split.test, size, seed), 1


def write_episodes(
    protocol: Protocol,
    target: str,
    shots: int,
    seed: int,
    path: Path,
    data: Path | None = None,
    folders: Sequence[Path] = (),
) -> str:
    """Write the manifest of a cell's episodes and return its digest."""
    if protocol.episodes is None or shots not in protocol.episodes.shots:
        sizes = protocol.episodes.shots if protocol.episodes else "splits, not episodes"
        raise ValueError(f"{protocol.name} has no {shots}-shot episodes; it has {sizes}")
    if seed not in protocol.seeds:
        raise ValueError(f"{protocol.name} has no seed {seed}; it has {protocol.seeds}")
    task = read_task(target, data, folders)
    if task.table is None:
        raise FileNotFoundError(f"the audio of {target} is not present: name its root by --data")
    task = restrict(task, protocol.classes)
    task = join_same_audio(
        task, np.array([content_hash(task.audio / f) for f in task.table["file"]])
    )
    sampler, count = cell_sampler(protocol, task, shots, seed)
    return write_manifest(path, task, [sampler.episode(index) for index in range(count)])


def score_cell(protocol: Protocol, setup: Setup, method, key: tuple, material: Material) -> dict:
    """Adapt to and score every episode of a cell."""
    setup_name, label, target, size, seed = key
    sampler, count = cell_sampler(protocol, material.task, size, seed)
    episodes = [sampler.episode(index) for index in range(count)]
    uar, macro_f1, seconds = [], [], []
    confusion = np.zeros((len(protocol.classes),) * 2, int)
    for episode in episodes:
        batch = tensors(episode, material.plain).to(device_of(method))
        started = time.perf_counter()
        scores = method.adapt(batch.support)(batch.query.modalities).cpu()
        seconds.append(time.perf_counter() - started)
        if torch.isnan(scores).any():
            raise FloatingPointError(
                f"{label} gives scores that are not numbers in episode {episode.index} of {target} "
                f"at {size}: lower its rate"
            )
        predicted = scores.argmax(dim=1).numpy()
        uar.append(metrics.uar(episode.query_targets, predicted))
        macro_f1.append(metrics.macro_f1(episode.query_targets, predicted))
        confusion += metrics.confusion(
            episode.query_targets, predicted, range(len(protocol.classes))
        )
    return {
        "setup": setup_name,
        "method": label,
        "target": target,
        "task_version": material.task.version,
        "language": material.task.language,
        "synthetic": material.task.synthetic,
        "shots": size if protocol.episodes else None,
        "queries": protocol.episodes.queries if protocol.episodes else None,
        "fraction": None if protocol.episodes else size,
        "seed": seed,
        "episodes": count,
        "digest": digest(material.task, episodes),
        "speakers": protocol.speakers,
        "normalise": setup.normalise,
        "modalities": list(setup.frontends),
        "frontend": ", ".join(facts["name"] for facts in setup.frontends.values()),
        "backbone": setup.backbone["name"],
        "batch_norm": setup.batch_norm,
        "uar": [round(value, 5) for value in uar],
        "macro_f1": [round(value, 5) for value in macro_f1],
        "confusion": confusion.tolist(),
        "classes": list(protocol.classes),
        "role": "target" if target in protocol.targets else "held_out_source",
        "adapt_seconds": round(float(np.mean(seconds)), 5),
        "device": device_of(method).type,
        "metaser": __version__,
        "torch": torch.__version__,
        "created": _now(),
    }


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _write_run(out: Path, protocol: Protocol, tasks: dict[str, Task], absent, command: str) -> None:
    """Write what the report tells besides the rows: data card, versions, command."""
    facts = {
        "protocol": protocol.model_dump(),
        "command": command,
        "metaser": __version__,
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "machine": f"{os.cpu_count()} × {platform.machine()} {platform.system()}",
        "started": _now(),
        "absent": absent,
        "tasks": {name: _card(task, protocol) for name, task in tasks.items()},
    }
    part = out / "run.json.part"
    part.write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(part, out / "run.json")


def _card(task: Task, protocol: Protocol) -> dict:
    """Facts of a task for the data card."""
    counts = task.table["emotion"].value_counts().to_dict()
    source, target = task.name in protocol.sources, task.name in protocol.targets
    return {
        "language": task.language,
        "corpus": task.corpus,
        "version": task.version,
        "licence": task.licence,
        "reference": task.reference,
        "homepage": task.homepage,
        "synthetic": task.synthetic,
        "clips": task.clips_found,
        "speakers": task.speakers_found,
        "declared_clips": task.utterances,
        "declared_speakers": task.speakers,
        "classes": {name: counts.get(name, 0) for name in protocol.classes},
        "left_out": {k: v for k, v in counts.items() if k not in protocol.classes}
        | dict(task.left_out),
        "leakage": leakage(task, protocol),
        "role": "both" if source and target else "source" if source else "target",
        "duplicates": task.duplicates,
    }


def leakage(task: Task, protocol: Protocol) -> str:
    """One sentence on what support and query clips of a task may have in common."""
    table = task.table[task.table["emotion"].isin(protocol.classes)]
    cells = table.groupby("speaker")["emotion"].nunique()
    parts = []
    if protocol.speakers == "disjoint":
        parts.append("support and query share no speaker and no audio")
    else:
        parts.append("speakers appear on both sides (leaky by design); shared audio does not")
    if task.duplicates:
        parts.append(f"{task.duplicates} declared groups of duplicates are kept on one side")
    if (cells == 1).mean() > 0.5:
        parts.append(
            f"{int((cells == 1).sum())} of {len(cells)} speakers show one emotion only, so a voice "
            "can give the emotion away wherever speakers are shared"
        )
    if "text" in table and table["text"].replace("", np.nan).notna().any():
        parts.append("the same scripted texts are spoken on both sides")
    sentence = "; ".join(parts)
    return sentence[0].upper() + sentence[1:] + "."
