"""What a protocol asks for: tasks, trainings, and the cells that are scored on each."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from metaser.features.distances import choose, clips_of
from metaser.features.extraction import extract, lacks
from metaser.files import Places
from metaser.naming import nearest
from metaser.protocol.build import Settled, outside_sources, settings, settle, training_key
from metaser.protocol.schema import Protocol, Setup
from metaser.rows import read_rows
from metaser.tasks.task import Task, read_task, restrict


class Cell(NamedTuple):
    """What one row is about; ``size`` is a number of shots or a fraction of the training data."""

    setup: str
    method: str
    target: str
    size: float
    seed: int


@dataclass(frozen=True)
class Job:
    """One training and every cell that is scored with it.

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

    def cells(self, protocol: Protocol) -> Iterator[Cell]:
        """Yield the cells of the job."""
        for method, target, size in product(self.methods, self.targets, protocol.sizes):
            yield Cell(self.setup, method, target, size, self.seed)


@dataclass(frozen=True)
class Plan:
    """A protocol with all that was settled before the work; the protocol itself stays as read.

    Attributes
    ----------
    protocol : Protocol
        As read.
    settled : dict of str to Settled
        Its setups, with pinned versions and built front ends.
    tasks : dict of str to Task
        Those whose audio is present, with the clips of the protocol's classes.
    absent : list of str
        Names of the others.
    chosen : dict of str to dict of str to list of str
        For each setup that chooses them: the sources of each target.
    """

    protocol: Protocol
    settled: dict[str, Settled]
    tasks: dict[str, Task]
    absent: list[str] = field(default_factory=list)
    chosen: dict[str, dict[str, list[str]]] = field(default_factory=dict)

    @property
    def setups(self) -> dict[str, Setup]:
        """The setups as they run."""
        return {name: settled.setup for name, settled in self.settled.items()}

    def sources_of(self, target: str, setup: str = "") -> list[str]:
        """Return the present sources of other languages than a target's, as a setup wants them."""
        language = self.tasks[target].language
        present = [self.tasks[name] for name in self.protocol.sources if name in self.tasks]
        others = [task.name for task in present if task.language != language]
        wanted = self.chosen.get(setup, {}).get(target, others)
        return [name for name in others if name in wanted]

    def jobs(self, targets: Sequence[str] = (), methods: Sequence[str] = ()) -> list[Job]:
        """List the trainings, and what is scored with each.

        Targets with the same sources share a training, and so do methods that differ only in how
        they adapt. No training sees the language it is scored on. True targets come first, then
        the sources that are left out in turn.

        Parameters
        ----------
        targets, methods : sequence of str
            Only these; all of the protocol if empty.

        Raises
        ------
        ValueError
            If one of them is not there, no target is present, or one has no source of another
            language.
        """
        protocol = self.protocol
        scored = [name for name in protocol.targets if name in self.tasks]
        if protocol.leave_one_language_out:
            sources = [name for name in protocol.sources if name in self.tasks]
            scored += [name for name in sources if name not in scored]
        scored = _only(scored, targets, "target")
        if not scored:
            raise ValueError(
                f"one of the targets {protocol.targets} must be present, but none is: obtain one "
                "of them (`metaser tasks` says where)"
            )
        labels = [label for setup in protocol.setups.values() for label in setup.methods]
        labels = _only(list(dict.fromkeys(labels)), methods, "method")
        jobs = []
        for name, setup in self.setups.items():
            trainings: dict[str, list[str]] = {}
            for label in (label for label in setup.methods if label in labels):
                trainings.setdefault(training_key(label, setup), []).append(label)
            groups = self._by_sources(scored, name)
            for seed, (others, group), shared in product(
                protocol.seeds, groups.items(), trainings.values()
            ):
                left_out = seed in protocol.leave_one_language_out
                wanted = tuple(t for t in group if t in protocol.targets or left_out)
                if wanted:
                    jobs.append(Job(name, tuple(shared), others, wanted, seed))
        return sorted(jobs, key=lambda job: not set(job.targets) & set(protocol.targets))

    def _by_sources(self, targets: Sequence[str], setup: str) -> dict[tuple[str, ...], list[str]]:
        """Group targets by the sources that they are learnt from."""
        groups: dict[tuple[str, ...], list[str]] = {}
        for target in targets:
            sources = self.sources_of(target, setup)
            if not sources:
                raise ValueError(
                    f"a source task of another language than {target}'s must be present, but none "
                    f"is: obtain one of {self.protocol.sources} (`metaser tasks` says where)"
                )
            groups.setdefault(tuple(sources), []).append(target)
        return groups

    @property
    def outside(self) -> dict[tuple[str, str], dict[str, str]]:
        """Digests of the sources of outside classes, by setup and method."""
        return {
            (name, label): outside_sources(setup, label)
            for name, setup in self.setups.items()
            for label in setup.methods
        }

    def finished(self, rows: Path) -> tuple[set[Cell], list[dict[str, Any]]]:
        """Return the cells that have a row, and rows that another source of a class has outdated.

        Raises
        ------
        ValueError
            If there are rows of another protocol, or of other settings, versions or sources.
        """
        finished, outdated, outside = set(), [], self.outside
        for row in read_rows(rows):
            if row["protocol"] != self.protocol.name:
                raise ValueError(
                    f"{rows} must hold rows of protocol {self.protocol.name!r}, not "
                    f"{row['protocol']!r}: write to another folder by --out"
                )
            setup = self.setups.get(row["setup"])
            if setup is None or row["method"] not in setup.methods:
                continue
            if row["target"] not in self.tasks:
                continue
            if row.get("outside", {}) != outside[row["setup"], row["method"]]:
                outdated.append(row)
                continue
            self._check_row(row, rows)
            size = row["fraction"] if row["shots"] is None else row["shots"]
            finished.add(Cell(row["setup"], row["method"], row["target"], size, row["seed"]))
        return finished, outdated

    def _check_row(self, row: dict[str, Any], rows: Path) -> None:
        """Refuse a row that was measured otherwise than this plan would."""
        now = {
            "settings": settings(self.protocol, self.setups[row["setup"]], row["method"]),
            "task_version": self.tasks[row["target"]].version,
            "sources": self.sources_of(row["target"], row["setup"]),
        }
        for key, value in now.items():
            if row[key] != value:
                raise ValueError(
                    f"{rows} holds rows of {row['setup']} {row['method']} on {row['target']} that "
                    f"were measured with other {key}, {row[key]} instead of {value}: write to "
                    "another folder by --out, or delete those rows"
                )


def make_plan(protocol: Protocol, places: Places) -> Plan:
    """Settle everything that a protocol leaves open, before any work.

    Raises
    ------
    ValueError
        If a setup cannot run, or asks for what a task does not give.
    FileNotFoundError
        If a task folder is not there.
    """
    settled = settle(protocol)
    tasks, absent = present_tasks(protocol, places)
    for name, (setup, frontends) in settled.items():
        for (modality, frontend), task in product(frontends.items(), tasks.values()):
            if reason := lacks(task, frontend):
                wanted = setup.frontends[modality]["name"]
                raise ValueError(
                    f"setup {name!r} asks for {modality} ({wanted!r}), which {task.name} does not "
                    f"give: {reason}"
                )
    return choose_sources(Plan(protocol, settled, tasks, absent), places)


def present_tasks(protocol: Protocol, places: Places) -> tuple[dict[str, Task], list[str]]:
    """Read the tasks of a protocol.

    Returns
    -------
    tasks : dict of str to Task
        Those whose audio is present, with the clips of the protocol's classes.
    absent : list of str
        Names of the others.

    Raises
    ------
    ValueError
        If no source is present, or nobody shows one of the classes.
    """
    names = dict.fromkeys([*protocol.sources, *protocol.targets])
    read = {name: read_task(name, places.data, places.folders) for name in names}
    tasks = {name: task for name, task in read.items() if task.table is not None}
    absent = [name for name in names if name not in tasks]
    for label in protocol.classes:
        if not any((task.table["emotion"] == label).any() for task in tasks.values()):
            shown = sorted({name for task in tasks.values() for name in task.counts})
            raise ValueError(
                f"no task that is present has class {label!r}.{nearest(label, shown)} "
                f"There are {shown}"
            )
    if not any(name in tasks for name in protocol.sources):
        raise ValueError(
            f"none of the source tasks {protocol.sources} is present: name the folder above the "
            "corpora by --data or METASER_DATA (`metaser tasks` tells how to obtain them)"
        )
    return {name: restrict(task, protocol.classes) for name, task in tasks.items()}, absent


def choose_sources(plan: Plan, places: Places) -> Plan:
    """Choose every target's sources where a setup asks for it; see ``protocol.schema.Choice``.

    The choice looks at all unlabelled clips of the target, those of later queries included, and at
    no score.
    """
    targets = dict.fromkeys([*plan.protocol.targets, *plan.protocol.sources])
    chosen = {}
    for name, (setup, frontends) in plan.settled.items():
        if setup.choose is None:
            continue
        clips = {
            task.name: clips_of(
                task, extract(task, frontends["audio"], places.cache, jobs=places.jobs)
            )
            for task in plan.tasks.values()
        }
        chosen[name] = {
            target: choose(
                clips[target],
                {source: clips[source] for source in plan.sources_of(target)},
                **setup.choose.model_dump(),
            )
            for target in targets
            if target in plan.tasks
        }
    return Plan(plan.protocol, plan.settled, plan.tasks, plan.absent, chosen)


def _only(names: list[str], chosen: Sequence[str], kind: str) -> list[str]:
    """Return the chosen ones of some names, all if none is chosen."""
    for name in chosen:
        if name not in names:
            raise ValueError(
                f"{kind} {name!r} is not among those of the protocol here: {', '.join(names)}."
                f"{nearest(name, names)}"
            )
    return [name for name in names if not chosen or name in chosen]
