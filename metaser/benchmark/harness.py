"""The benchmark harness: run a protocol's grid, one row a cell, skipping rows already there."""

import logging
import os
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock, Timeout
from joblib import Parallel, delayed
from rich.console import Console
from torch import nn

from metaser.benchmark.card import write_run
from metaser.benchmark.cluster import workplace
from metaser.benchmark.materials import Material, all_clips, gather, threads_for
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
from metaser.benchmark.scoring import cell_sampler, score_cell
from metaser.benchmark.trainings import build_method, train_job
from metaser.machine import (
    CPU,
    cpu_threads,
    device_of,
    find_device,
    from_first,
    is_shared,
    process_group,
    rank,
)
from metaser.protocol.build import is_trained, settings, settle
from metaser.protocol.schema import Protocol
from metaser.rows import append_row, cut_torn_line

ALONE = threading.Lock()
"""Held by the one job of a process: training seeds the generator that all its threads share."""


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
    check_modalities(protocol, tasks)
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
    write_run(out, protocol, tasks, absent, command)
    tasks = restricted
    with workplace(scheduler, jobs) as (place, share):
        for name, setup in protocol.setups.items():
            own = [job for job in plan if job.setup == name]
            if not own:
                continue
            materials = gather(setup, own, tasks, cache, jobs, console)
            threads = 1 if scheduler else threads_for(materials, jobs)
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
        torch.set_num_threads(threads_for(materials, 1))
        for job in own:
            method = build_method(job.methods[0], setup, protocol, materials, job)
            if is_trained(method):
                method.to(device)
                train_job(method, protocol, setup, job, materials, out / "checkpoints")


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
        elif is_trained(method):
            trained = train_job(method, protocol, setup, job, materials, checkpoints)
            state = method.state_dict()
        if getattr(method, "use_sources", False):
            heard = [all_clips(materials[name], protocol.classes) for name in job.sources]
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
