"""What a model file is trained from: one method of one setup, and its sources."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from torch import nn

from metaser.adaptation.fitted import Constants, constants_of
from metaser.adaptation.model_file import (
    FORMAT,
    NEUTRAL,
    Header,
    ModelFile,
    SourceTask,
    library_versions,
)
from metaser.benchmark.materials import Material, all_clips, count_domains, gather
from metaser.benchmark.plan import Job, present_tasks
from metaser.benchmark.trainings import train_job
from metaser.contracts import extracted, method_traits
from metaser.features.extraction import extract
from metaser.features.table import Features, enough_threads
from metaser.files import Places
from metaser.frontends import make_frontend
from metaser.naming import nearest
from metaser.outside import pinned
from metaser.protocol.build import Settled, make_method, method_type, outside_sources, settle
from metaser.protocol.schema import Protocol, Setup, read_protocol
from metaser.tasks.task import Task
from metaser.version import version

USUAL = "unseen_language_2"
"""The protocol that says how to train if none is named."""

PREFERRED = ("gaussian_process", "inner_loop_alone")
"""Methods that are trained if none is named, the first that a setup has."""


@dataclass(frozen=True)
class Recipe:
    """What to train: one method of one setup of a protocol.

    Attributes
    ----------
    protocol : Protocol
        The protocol with this setup alone and the chosen sources; its targets are the tasks that
        the quality is measured on besides sources left out in turn.
    setup_name : str
        Name of the setup.
    method : str
        Name of the method.
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
    protocol: str | Path | None = None,
    setup: str | None = None,
    method: str | None = None,
    sources: Sequence[str] = (),
    measured_on: Sequence[str] = (),
    *,
    tell: Callable[[str], None] = lambda sentence: None,
) -> Recipe:
    """Choose what to train.

    Parameters
    ----------
    protocol : str or Path, optional
        Name of a bundled protocol, or a file. By default it is ``USUAL``, with the setup that hears
        by the pretrained encoder if that is at hand.
    setup : str, optional
        One of its setups; the first if not given.
    method : str, optional
        One of the setup's methods that can be kept without the sources' clips; by default the first
        of ``PREFERRED`` that it has.
    sources : sequence of str
        Tasks to learn from; those of the protocol if empty.
    measured_on : sequence of str
        Tasks that are not learnt from. The quality is measured on them, too, by models that have
        not learnt their language.
    tell : callable
        Given a sentence where a setup is chosen.

    Raises
    ------
    ValueError
        If there is no such setup or method, or a model file cannot hold it.
    """
    if protocol is None:
        protocol, setup = USUAL, setup or _setup_at_hand(tell)
    plan = read_protocol(protocol)
    name = next(iter(plan.setups)) if setup is None else setup
    if name not in plan.setups:
        raise ValueError(
            f"the setup must be one of {', '.join(plan.setups)} in {plan.name}, not {name!r}."
            f"{nearest(name, plan.setups)} Choose one of them"
        )
    chosen = plan.setups[name]
    if method is None:
        method = next((one for one in PREFERRED if one in chosen.methods), PREFERRED[0])
    if method not in chosen.methods:
        raise ValueError(
            f"the method must be one of {', '.join(chosen.methods)} in setup {name!r} of "
            f"{plan.name}, not {method!r}.{nearest(method, chosen.methods)} Choose one of them"
        )
    with pinned(plan.files):
        _check_method(method, chosen)
        _check_setup(name, chosen)
        # Without the other setups, which may need packages that are not installed.
        alone = chosen.model_copy(update={"methods": {method: chosen.methods[method]}})
        changes = {"setups": {name: alone}, "targets": list(dict.fromkeys(measured_on))}
        if sources:
            changes["sources"] = list(dict.fromkeys(sources))
        if both := set(changes["targets"]) & set(changes.get("sources", plan.sources)):
            raise ValueError(
                f"tasks to measure on must not be learnt from, but {', '.join(sorted(both))} is in "
                "both: leave it out of one"
            )
        plan = plan.model_copy(update=changes)
        return Recipe(plan, name, method, settle(plan)[name])


def _setup_at_hand(tell: Callable[[str], None]) -> str:
    """Return the better setup of ``USUAL`` if its encoder is at hand, else the one without it."""
    try:
        make_frontend({"name": "whisper"})
    except (ModuleNotFoundError, FileNotFoundError) as error:
        tell(
            "training on statistics, not on the encoder whisper-tiny.en, which was better by 12 "
            f"points at 5 clips per class but is not at hand: {error}"
        )
        return "light_voice"
    tell("training on the encoder whisper-tiny.en")
    return "whisper_voice"


def _check_method(method: str, setup: Setup) -> None:
    """Refuse a method that a model file cannot hold."""
    kind, arguments = method_type(method, setup)
    traits = method_traits(kind, arguments)
    if not traits.learns and not (traits.fits and issubclass(kind, nn.Module)):
        raise ValueError(
            f"the method must learn something that can be kept, but {method!r} does not: choose "
            "one such as inner_loop_alone"
        )
    if arguments.get("rehearsal"):
        raise ValueError(
            f"the method must adapt without the sources' clips, but {method!r} needs them for "
            "rehearsal, and a model file must not hold them: choose one such as inner_loop_alone"
        )


def _check_setup(name: str, setup: Setup) -> None:
    """Refuse a setup that a model file cannot hold."""
    if list(setup.frontends) != ["audio"]:
        read = " and ".join(setup.frontends)
        raise ValueError(
            f"the setup of a model file must read audio alone, but {name!r} reads {read}: choose "
            "another setup"
        )
    if setup.normalise == "speaker":
        raise ValueError(
            "the setup of a model file must normalise by all given clips, not by each speaker's: "
            "set normalise = 'corpus'"
        )


def prepare(
    recipe: Recipe, places: Places, console: Console
) -> tuple[dict[str, Material], dict[str, Features], list[tuple[Task, Features]]]:
    """Hear the tasks that are present.

    Returns
    -------
    materials : dict of str to Material
        The sources, by name.
    raw : dict of str to Features
        Their features before normalisation, by name.
    others : list of (Task, Features)
        The tasks that the quality is measured on, too.
    """
    tasks, absent = present_tasks(recipe.protocol, places)
    for name in absent:
        console.print(f"{name} is not present and is left out", highlight=False)
    console.print(f"hearing {', '.join(tasks)}", highlight=False)
    sources = [name for name in tasks if name in recipe.protocol.sources]
    job = Job(recipe.setup_name, (recipe.method,), tuple(sources), (), 0)
    materials = gather(recipe.settled, [job], tasks, places, progress=console.is_terminal)
    frontend = recipe.settled.frontends["audio"]
    shown = console.is_terminal
    raw = {n: extract(task, frontend, places.cache, progress=shown) for n, task in tasks.items()}
    others = [(tasks[name], raw.pop(name)) for name in tasks if name not in sources]
    return materials, raw, others


def train_file(
    recipe: Recipe,
    materials: dict[str, Material],
    raw: dict[str, Features],
    seed: int,
    checkpoints: Path,
) -> ModelFile:
    """Train on some sources and return the model, which does not state its quality yet.

    Parameters
    ----------
    recipe : Recipe
        What to train.
    materials : dict of str to Material
        The sources, by the name of the task.
    raw : dict of str to Features
        Their features before normalisation, by the name of the task.
    seed : int
        Seed of the training.
    checkpoints : Path
        Folder of checkpoints, from which a stopped training continues.
    """
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
    return ModelFile(header, method, _source_constants(materials, raw))


def _facts(task: Task) -> SourceTask:
    """Return what the header says about a source."""
    names = ("name", "version", "language", "corpus", "licence", "reference", "synthetic")
    return SourceTask(
        **{name: getattr(task, name) for name in names},
        clips=len(task.table),
        speakers=task.table["speaker"].nunique(),
    )


def _source_constants(materials: dict[str, Material], raw: dict[str, Features]) -> Constants:
    """Return mean and deviation within a task and where neutral lies, averaged over the tasks."""
    own, neutral = [], []
    for name, material in materials.items():
        constants = constants_of(raw[name], np.arange(len(raw[name].lengths)))
        own.append(constants)
        rows = np.flatnonzero(material.task.table["emotion"] == NEUTRAL)
        if len(rows):
            mean = constants_of(raw[name], rows).centre
            neutral.append((mean - constants.centre) / constants.spread)
    spread = np.sqrt(np.mean([one.spread.astype(float) ** 2 for one in own], axis=0))
    centre = np.mean([one.centre for one in own], axis=0)
    where = np.mean(neutral, axis=0).astype(np.float32) if neutral else None
    return Constants(centre.astype(np.float32), spread.astype(np.float32), where)
