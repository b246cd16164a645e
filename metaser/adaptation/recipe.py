"""What a model file is trained from: one method of one set-up, and its sources."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from torch import nn

from metaser.adaptation.model_file import (
    FORMAT,
    Constants,
    Header,
    ModelFile,
    SourceTask,
    constants_of,
    library_versions,
)
from metaser.benchmark.materials import Material, all_clips, count_domains, gather
from metaser.benchmark.plan import Job, present_tasks
from metaser.benchmark.trainings import train_job
from metaser.contracts import extracted, method_traits
from metaser.features.extraction import extract
from metaser.features.table import Features, enough_threads
from metaser.files import Places
from metaser.naming import nearest
from metaser.outside import pinned
from metaser.protocol.build import Settled, make_method, method_type, outside_sources, settle
from metaser.protocol.schema import Protocol, Setup, read_protocol
from metaser.tasks.task import Task
from metaser.version import version

PREFERRED = ("gaussian_process", "inner_loop_alone")
"""Methods that are trained if none is named, the first that a setup has."""


@dataclass(frozen=True)
class Recipe:
    """What is trained: one method of one setup of a protocol.

    Attributes
    ----------
    protocol : Protocol
        As read, with this setup alone, the wanted sources and no targets.
    setup_name, method : str
        Names of the setup and of the method.
    settled : Settled
        The setup with this method alone, and its front end.
    """

    protocol: Protocol
    setup_name: str
    method: str
    settled: Settled

    @property
    def setup(self) -> Setup:
        """The setup with this method alone."""
        return self.settled.setup


def read_recipe(
    protocol: str | Path = "unseen_language",
    setup: str | None = None,
    method: str | None = None,
    sources: Sequence[str] = (),
) -> Recipe:
    """Choose what to train.

    Parameters
    ----------
    protocol : str or Path
        A bundled protocol or a file.
    setup : str, optional
        One of its setups; the first if not given.
    method : str, optional
        One of the setup's methods that can be kept without the sources' clips; by default the first
        of ``PREFERRED`` that it has.
    sources : sequence of str
        Tasks to learn from, instead of the protocol's.

    Raises
    ------
    ValueError
        If there is no such setup or method, or the method cannot go into a file.
    """
    plan = read_protocol(protocol)
    name = next(iter(plan.setups)) if setup is None else setup
    if name not in plan.setups:
        raise ValueError(
            f"{plan.name} has no setup {name!r}.{nearest(name, plan.setups)} It has "
            f"{', '.join(plan.setups)}"
        )
    chosen = plan.setups[name]
    if method is None:
        method = next((one for one in PREFERRED if one in chosen.methods), PREFERRED[0])
    if method not in chosen.methods:
        raise ValueError(
            f"setup {name!r} of {plan.name} has no method {method!r}."
            f"{nearest(method, chosen.methods)} It has {', '.join(chosen.methods)}"
        )
    with pinned(plan.files):
        _check_method(method, chosen)
        _check_setup(name, chosen)
        # Alone: another setup may need packages that are not installed.
        alone = chosen.model_copy(update={"methods": {method: chosen.methods[method]}})
        changes = {"setups": {name: alone}, "targets": []}
        if sources:
            changes["sources"] = list(dict.fromkeys(sources))
        plan = plan.model_copy(update=changes)
        return Recipe(plan, name, method, settle(plan)[name])


def _check_method(method: str, setup: Setup) -> None:
    """Refuse a method that cannot go into a file."""
    kind, arguments = method_type(method, setup)
    traits = method_traits(kind, arguments)
    if not traits.learns and not (traits.fits and issubclass(kind, nn.Module)):
        raise ValueError(
            f"{method!r} learns nothing that can be kept: choose one such as inner_loop_alone"
        )
    if arguments.get("rehearsal"):
        raise ValueError(
            f"{method!r} needs the sources' clips to adapt, which a model file must not hold: "
            "choose one without rehearsal, such as inner_loop_alone"
        )


def _check_setup(name: str, setup: Setup) -> None:
    """Refuse a setup that a model file cannot hold."""
    if list(setup.frontends) != ["audio"]:
        read = " and ".join(setup.frontends)
        raise ValueError(f"a model file hears audio alone, but setup {name!r} reads {read}")
    if setup.normalise == "speaker":
        raise ValueError("a model file normalises by the given clips: set normalise = 'corpus'")


def prepare(
    recipe: Recipe, places: Places, console: Console
) -> tuple[dict[str, Material], dict[str, Features]]:
    """Return the sources that are present, as they are learnt from, and their raw features."""
    tasks, absent = present_tasks(recipe.protocol, places)
    for name in absent:
        console.print(f"{name} is not present and is left out", highlight=False)
    console.print(f"hearing {', '.join(tasks)}", highlight=False)
    job = Job(recipe.setup_name, (recipe.method,), tuple(tasks), (), 0)
    materials = gather(recipe.settled, [job], tasks, places, progress=console.is_terminal)
    frontend = recipe.settled.frontends["audio"]
    raw = {name: extract(task, frontend, places.cache) for name, task in tasks.items()}
    return materials, raw


def train_file(
    recipe: Recipe,
    materials: dict[str, Material],
    raw: dict[str, Features],
    seed: int,
    checkpoints: Path,
) -> ModelFile:
    """Train on some materials; the file says nothing yet of what it is worth."""
    setup, classes = recipe.setup, recipe.protocol.classes
    job = Job(recipe.setup_name, (recipe.method,), tuple(materials), (), seed)
    channels = {"audio": next(iter(raw.values())).values.shape[2]}
    domains = count_domains([material.task for material in materials.values()])
    method = make_method(
        recipe.method,
        setup,
        classes=len(classes),
        stored=channels,
        seed=seed,
        domains=domains,
    )
    traits = method_traits(method)
    with enough_threads(next(iter(raw.values()))):
        if traits.learns:
            train_job(method, recipe.protocol, setup, job, materials, checkpoints=checkpoints)
        if traits.fits:
            method.fit([all_clips(material, classes) for material in materials.values()])
    frontend = extracted(recipe.settled.frontends["audio"])
    header = Header(
        format=FORMAT,
        metaser=version(),
        libraries=library_versions(frontend),
        protocol=recipe.protocol.name,
        setup_name=recipe.setup_name,
        setup=setup,
        method=recipe.method,
        classes=list(classes),
        channels=channels,
        domains=domains,
        seed=seed,
        sources=[_facts(material.task) for material in materials.values()],
        left_out="",
        quality=[],
        bands=[],
        outside=outside_sources(setup, recipe.method),
    )
    return ModelFile(header, method, _source_constants(raw.values()))


def _facts(task: Task) -> SourceTask:
    names = ("name", "version", "language", "corpus", "licence", "reference", "synthetic")
    return SourceTask(
        **{name: getattr(task, name) for name in names},
        clips=len(task.table),
        speakers=task.table["speaker"].nunique(),
    )


def _source_constants(tables: Iterable[Features]) -> Constants:
    """Mean and deviation within a task, averaged over the tasks."""
    own = [constants_of(features, np.arange(len(features.lengths))) for features in tables]
    spread = np.sqrt(np.mean([one.spread.astype(float) ** 2 for one in own], axis=0))
    centre = np.mean([one.centre for one in own], axis=0)
    return Constants(centre.astype(np.float32), spread.astype(np.float32))
