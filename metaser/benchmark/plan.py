"""What a protocol asks for: tasks, trainings, and the cells that are scored on each."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from metaser.features.distances import choose, clips_of
from metaser.features.extraction import extract, lacks
from metaser.frontends import make_frontend
from metaser.naming import nearest
from metaser.protocol.build import settings, training_key
from metaser.protocol.schema import Protocol, Setup
from metaser.rows import read_rows
from metaser.tasks.task import Task, read_task


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


def check_modalities(protocol: Protocol, tasks: dict[str, Task]) -> None:
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
