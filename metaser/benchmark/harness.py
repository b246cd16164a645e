"""The benchmark harness: run a protocol's grid, one row per cell, and go on where it stopped."""

import json
import logging
import os
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from joblib import Parallel, delayed
from rich.console import Console
from torch import nn

from metaser.benchmark.card import write_run
from metaser.benchmark.cluster import workplace
from metaser.benchmark.materials import Material, all_clips, gather, threads_for
from metaser.benchmark.plan import Cell, Job, Plan, make_plan
from metaser.benchmark.scoring import cell_sampler, score_cell
from metaser.benchmark.trainings import build_method, train_job
from metaser.contracts import generated_quality, learnt_size, method_traits
from metaser.files import Places, lock, write_text
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
from metaser.outside import File, pinned
from metaser.protocol.build import settings
from metaser.protocol.schema import Protocol, Setup
from metaser.rows import append_row, cut_torn_line

ALONE = threading.Lock()
"""Held by the one job of a process: training seeds the generator that all its threads share."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """What is to be measured, where, and by what.

    Attributes
    ----------
    protocol : Protocol
        What to compare.
    out : Path
        Results folder; made if needed. A run that was stopped goes on in the same folder.
    places : Places
        Corpora, task folders, feature cache and number of processes.
    targets, methods : tuple of str
        Restrict the run to these; empty for all of the protocol.
    scheduler : str
        Address of a cluster that takes the trainings, ``tcp://HOST:PORT`` (Dask) or
        ``ray://HOST:PORT`` (Ray). Its workers need metaser, but neither the corpora nor ``out``:
        features are extracted here, and rows come back and are written here when their training is
        done. No checkpoints are kept there: a training whose worker is lost begins again on
        another.
    device : str
        Where methods are trained and adapt: "cpu", "cuda", "cuda:1". Under ``torchrun`` "cuda" is
        a GPU per process. Features are extracted on the processor.
    command : str
        The command line, kept for the report.
    console : rich.console.Console
        Where progress is printed.
    """

    protocol: Protocol
    out: Path
    places: Places = Places()
    targets: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    scheduler: str = ""
    device: str = "cpu"
    command: str = ""
    console: Console = field(default_factory=lambda: Console(stderr=True))

    @property
    def rows(self) -> Path:
        """The file of rows."""
        return self.out / "rows.jsonl"


@dataclass(frozen=True, kw_only=True)
class Order:
    """What every process needs to know to do the jobs of a run.

    Attributes
    ----------
    protocol : Protocol
        What to compare.
    setups : dict of str to Setup
        Its setups, as they run.
    chosen : dict of str to dict
        Whether, and how, each setup chose its sources, as rows say it.
    outside : dict of str to dict of str to str
        By setup and method: digests of the sources of outside classes.
    files : dict of str to File
        Python files that the protocol names, as they were when it was read.
    done : frozenset of Cell
        Cells that have a row.
    threads : int
        Threads per process.
    device : torch.device
        Where methods are trained and adapt.
    out : Path or None
        Folder that rows are appended to as soon as they are known, and that checkpoints are kept
        in; None on a cluster.
    owner : int or None
        The process that holds the lock of ``out``: when it is gone nothing more is written, for
        another run may have begun.
    """

    protocol: Protocol
    setups: dict[str, Setup]
    outside: dict[tuple[str, str], dict[str, str]] = field(default_factory=dict)
    files: dict[str, File] = field(default_factory=dict)
    done: frozenset[Cell] = frozenset()
    threads: int = 1
    device: torch.device = CPU
    out: Path | None = None
    owner: int | None = None

    @property
    def checkpoints(self) -> Path | None:
        """Folder of checkpoints, if any are kept."""
        return self.out and self.out / "checkpoints"


def run(
    protocol: Protocol,
    out: str | Path,
    *,
    data: str | Path | None = None,
    task_folders: str | Path | Sequence[str | Path] = (),
    targets: Sequence[str] = (),
    methods: Sequence[str] = (),
    jobs: int = 1,
    cache: str | Path | None = None,
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
    out : str or Path
        Results folder; made if needed. A run that was stopped goes on in the same folder.
    data : str or Path, optional
        Data root.
    task_folders : sequence of str or Path
        Folders with further task folders.
    targets, methods : sequence of str
        Restrict the run to these; empty for all of the protocol.
    jobs : int
        Processes.
    cache : str or Path, optional
        Feature cache.
    scheduler, device, command, console
        See ``Run``.

    Raises
    ------
    ValueError
        If the folder holds another protocol, another run is writing to it, a task cannot give
        the episodes, ``scheduler`` is no address of a cluster, or ``device`` is not there.
    ModuleNotFoundError, FileNotFoundError
        If a class from outside, or a package that a front end needs, is not there.
    ConnectionError
        If the cluster does not answer, has no worker, or is lost.
    """
    return measure(
        Run(
            protocol=protocol,
            out=Path(out),
            places=Places.at(data, task_folders, cache, jobs),
            targets=tuple(targets),
            methods=tuple(methods),
            scheduler=scheduler,
            device=device,
            command=command,
            console=console or Console(stderr=True),
        )
    )


def measure(run: Run) -> Path:
    """Measure what is missing of a run and return the file of rows; errors as in ``run``."""
    device = find_device(run.device)
    with pinned(run.protocol.files), process_group():
        if rank() > 0:
            _follow(run, device)
            return run.rows
        if is_shared() and (run.places.jobs > 1 or run.scheduler):
            raise ValueError(
                "torchrun's processes share every training, so leave out --jobs and --scheduler"
            )
        plan = make_plan(run.protocol, run.places)
        with ExitStack() as held:
            try:
                held.enter_context(lock(run.out / "run.lock", 0))
            except TimeoutError as error:
                raise ValueError(
                    f"another run is writing to {run.out}: wait for it, or name another folder by "
                    "--out"
                ) from error
            return _lead(run, plan, device)


def _lead(run: Run, plan: Plan, device: torch.device) -> Path:
    """Run alone, or as the first of the processes that share every training."""
    _report_tasks(plan, run.console)
    cut_torn_line(run.rows)
    done, outdated = plan.finished(run.rows)
    cells = {job: list(job.cells(plan.protocol)) for job in plan.jobs(run.targets, run.methods)}
    jobs = [job for job, own in cells.items() if not done.issuperset(own)]
    missing = [cell for job in jobs for cell in cells[job] if cell not in done]
    run.console.print(
        f"{len(done)} cells are there, {len(missing)} remain in {len(jobs)} trainings"
    )
    from_first(jobs)
    if not missing and (run.out / "run.json").exists():
        return run.rows
    for cell in missing:
        cell_sampler(plan.protocol, plan.tasks[cell.target], cell.size, cell.seed)[0].episode(0)
    _set_aside(outdated, run)
    write_run(run.out, plan, run.command)
    order = Order(
        protocol=plan.protocol,
        setups=plan.setups,
        outside=plan.outside,
        files=run.protocol.files,
        done=frozenset(done),
        device=device,
        out=None if run.scheduler else run.out,
        owner=os.getpid(),
    )
    with workplace(run.scheduler, run.places.jobs) as (place, share):
        for name, settled in plan.settled.items():
            ours = [job for job in jobs if job.setup == name]
            if not ours:
                continue
            progress = run.console.is_terminal
            materials = gather(settled, ours, plan.tasks, run.places, progress=progress)
            threads = 1 if run.scheduler else threads_for(materials, run.places.jobs)
            arguments = replace(order, threads=threads), share(materials)
            work = Parallel(return_as="generator_unordered", **place)(
                delayed(run_job)(job, *arguments) for job in ours
            )
            _collect(work, len(ours), run)
    return run.rows


def _report_tasks(plan: Plan, console: Console) -> None:
    """Print which tasks are left out, and which are not whole."""
    for name in plan.absent:
        console.print(f"[yellow]{name} is not present and is left out[/yellow]")
    for task in plan.tasks.values():
        if (task.clips_found, task.speakers_found) != (task.utterances, task.speakers):
            console.print(
                f"{task.name} is a subset: {task.clips_found} of {task.utterances} clips, "
                f"{task.speakers_found} of {task.speakers} speakers"
            )


def _set_aside(outdated: Sequence[dict[str, Any]], run: Run) -> None:
    """Move rows of classes whose source has changed to a file of their own."""
    if not outdated:
        return
    aside = run.out / "outdated.jsonl"
    for row in outdated:
        append_row(aside, row)
    moved = {json.dumps(row, sort_keys=True) for row in outdated}
    lines = run.rows.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if json.dumps(json.loads(line), sort_keys=True) not in moved]
    write_text(run.rows, "".join(kept))
    names = sorted({name for row in outdated for name in row.get("outside", {})})
    run.console.print(
        f"{len(outdated)} cells were measured with another source of {', '.join(names)}: they are "
        f"measured again, and their rows are now in {aside}",
        highlight=False,
    )


def _collect(work: Iterable[tuple[Job, float, list[dict]]], count: int, run: Run) -> None:
    """Print what each job found; write its rows if they come from a cluster."""
    started = time.perf_counter()
    for done, (job, seconds, rows) in enumerate(work, start=1):
        if run.scheduler:
            for row in rows:
                append_row(run.rows, row)
        left = (time.perf_counter() - started) / done * (count - done)
        score = 100 * np.mean([np.mean(row["uar"]) for row in rows])
        run.console.print(
            f"{done}/{count} {job.setup} {', '.join(job.methods)} seed {job.seed}: "
            f"{len(rows)} cells, mean UAR {score:.1f} % "
            f"({seconds:.0f} s, {left / 60:.0f} min left)",
            highlight=False,
            markup=False,
        )


def _follow(run: Run, device: torch.device) -> None:
    """Share the trainings of the first process, which alone scores and writes."""
    jobs = from_first(None)
    plan = make_plan(run.protocol, run.places)
    places = replace(run.places, jobs=1)
    for name, settled in plan.settled.items():
        ours = [job for job in jobs if job.setup == name]
        if not ours:
            continue
        materials = gather(settled, ours, plan.tasks, places)
        torch.set_num_threads(threads_for(materials, 1))
        for job in ours:
            protocol, setup = plan.protocol, settled.setup
            method = build_method(job.methods[0], protocol, setup, job, materials)
            if method_traits(method).learns:
                method.to(device)
                folder = run.out / "checkpoints"
                train_job(method, protocol, setup, job, materials, checkpoints=folder)


def run_job(
    job: Job, order: Order, materials: dict[str, Material]
) -> tuple[Job, float, list[dict[str, Any]]]:
    """Train once and score every cell that is missing; return the job, the seconds and the rows.

    Raises
    ------
    RuntimeError
        If the run that writes to ``order.out`` is gone.
    """
    logging.basicConfig(level=os.environ.get("METASER_LOG", "WARNING").upper())
    started = time.perf_counter()
    rows = []
    with ALONE, cpu_threads(order.threads), pinned(order.files):
        for row in _rows(job, order, materials):
            if order.out is not None:
                if order.owner not in (os.getpid(), os.getppid()):
                    raise RuntimeError(f"the run that writes to {order.out} is gone")
                append_row(order.out / "rows.jsonl", row)
            rows.append(row)
    return job, time.perf_counter() - started, rows


def _rows(job: Job, order: Order, materials: dict[str, Material]) -> Iterator[dict[str, Any]]:
    """Train once, and yield the row of every cell that is missing."""
    protocol, setup = order.protocol, order.setups[job.setup]
    state, trained = None, {"seconds": 0.0, "skipped": 0}
    for label in job.methods:
        method = build_method(label, protocol, setup, job, materials)
        traits = method_traits(method)
        if isinstance(method, nn.Module):
            method.to(order.device)
        if state is not None:
            method.load_state_dict(state)
        elif traits.learns:
            folder = order.checkpoints
            trained = train_job(method, protocol, setup, job, materials, checkpoints=folder)
            state = method.state_dict()
        if traits.fits:
            clips = [all_clips(materials[name], protocol.classes) for name in job.sources]
            method.fit([batch.to(device_of(method)) for batch in clips])
        for cell in replace(job, methods=(label,)).cells(protocol):
            if cell in order.done:
                continue
            row = score_cell(protocol, setup, method, cell, materials[cell.target])
            generated, outside = generated_quality(method), order.outside.get((job.setup, label))
            yield row | {
                **({"generated": asdict(generated)} if generated else {}),
                **({"outside": outside} if outside else {}),
                "protocol": protocol.name,
                "sources": list(job.sources),
                "chosen": setup.choose and setup.choose.model_dump(),
                "settings": settings(protocol, setup, label),
                "train_seconds": round(trained["seconds"], 2),
                "skipped_episodes": trained["skipped"],
                "parameters": learnt_size(method),
            }
