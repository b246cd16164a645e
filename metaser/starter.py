"""Train a model for others to adapt, and measure what it is worth on languages left out in turn."""

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich.console import Console

from metaser import __version__, metrics, stats
from metaser.adaptation import cross_validate, fit, scores, zero_shot
from metaser.benchmark import (
    Job,
    Material,
    gather,
    make_method,
    method_type,
    present_tasks,
    restrict,
    settle,
    train_job,
)
from metaser.calibration import ece, fit_temperature, probabilities
from metaser.domains import count_domains
from metaser.expectation import Draw, fit_bands, skill
from metaser.features import Features, enough_threads, extract, make_frontend
from metaser.labels import nearest
from metaser.model_file import (
    FORMAT,
    Constants,
    Header,
    Measured,
    ModelFile,
    SourceTask,
    constants_of,
    library_versions,
    save,
)
from metaser.protocol import Protocol, Setup, read_protocol
from metaser.tasks import Task

SHOTS = (1, 2, 5, 10, 20)
"""Clips a class at which the quality is measured, besides zero-shot."""

DRAWS = 40
"""Draws a left-out task and number of shots."""

QUERIES = 5
"""Clips of every class that speakers outside of a draw must have."""

ATTEMPTS = 200


@dataclass(frozen=True)
class Recipe:
    """What is trained: one method of one setup of a protocol."""

    protocol: Protocol
    setup_name: str
    method: str

    @property
    def setup(self) -> Setup:
        """The setup with this method alone."""
        setup = self.protocol.setups[self.setup_name]
        return setup.model_copy(update={"methods": {self.method: setup.methods[self.method]}})


@dataclass(frozen=True)
class Part:
    """Some sources to learn from, and others that are held out.

    Attributes
    ----------
    name : str
        What is held out.
    learnt, raw : dict
        Materials, and their features before normalisation, by the task's name.
    held : list of (Material, Features)
        Tasks that are held out, with their features before normalisation.
    """

    name: str
    learnt: dict[str, Material]
    raw: dict[str, Features]
    held: list[tuple[Material, Features]]


@dataclass(frozen=True)
class Scored:
    """A draw with the scores of the clips that it was judged on."""

    draw: Draw
    uar: float
    scores: np.ndarray
    targets: np.ndarray


def read_recipe(
    protocol: str | Path = "unseen_language",
    setup: str | None = None,
    method: str = "inner_loop_alone",
    sources: Sequence[str] = (),
) -> Recipe:
    """Choose what to train.

    Parameters
    ----------
    protocol : str or Path
        A bundled protocol or a file.
    setup : str, optional
        One of its setups; the first if not given.
    method : str
        One of the setup's methods that learns a network and adapts it without the sources' clips.
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
    # Alone: another setup may need packages that are not installed.
    plan = settle(plan.model_copy(update={"setups": {name: plan.setups[name]}}))
    known = plan.setups[name].methods
    if method not in known:
        raise ValueError(
            f"setup {name!r} of {plan.name} has no method {method!r}.{nearest(method, known)} "
            f"It has {', '.join(known)}"
        )
    kind, arguments = method_type(method, plan.setups[name])
    if not hasattr(kind, "loss") or not arguments.get("pretrain", True):
        raise ValueError(f"{method!r} trains no network: choose one such as inner_loop_alone")
    if arguments.get("rehearsal"):
        raise ValueError(
            f"{method!r} needs the sources' clips to adapt, which a model file must not hold: "
            "choose one without rehearsal, such as inner_loop_alone"
        )
    if list(plan.setups[name].frontends) != ["audio"]:
        read = " and ".join(plan.setups[name].frontends)
        raise ValueError(f"a model file hears audio alone, but setup {name!r} reads {read}")
    if plan.setups[name].normalise == "speaker":
        raise ValueError("a model file normalises by the given clips: set normalise = 'corpus'")
    if sources:
        plan = plan.model_copy(update={"sources": list(dict.fromkeys(sources))})
    return Recipe(plan.model_copy(update={"targets": []}), name, method)


def train_model(
    out: str | Path,
    recipe: Recipe,
    data: Path | None = None,
    folders: Sequence[Path] = (),
    seed: int = 0,
    jobs: int = 1,
    cache: Path | None = None,
    console: Console | None = None,
    draws: int = DRAWS,
) -> Header:
    """Train on all sources that are present and write a model file.

    Before, each language is left out in turn (where there is one only, each task; where there is
    one task only, half of its speakers), and clips are drawn from it as a user would give them:
    that says what the model is worth, at which temperature its scores are probabilities, and how
    far cross-validation over few clips can be trusted. A run that was stopped goes on where it was:
    its checkpoints are kept beside ``out`` until it is done.

    Parameters
    ----------
    out : str or Path
        The file.
    recipe : Recipe
        What to train.
    data, folders, cache
        See ``metaser.benchmark.run``.
    seed : int
        Of trainings and draws.
    jobs : int
        Processes that extract features.
    console : rich.console.Console, optional
        Where progress is told.
    draws : int
        Draws a left-out task and number of shots; fewer make the intervals less sure.

    Returns
    -------
    Header
        What the file says about itself.
    """
    out, console = Path(out), console or Console(stderr=True)
    materials, raw = prepare(recipe, data, folders, jobs, cache, console)
    checkpoints = out.with_name(f"{out.name}.checkpoints")
    kind, scored = measure(recipe, materials, raw, seed, checkpoints, console, draws)
    console.print(f"training on {', '.join(materials)}", highlight=False)
    file = train_file(recipe, materials, raw, seed, checkpoints / "all")
    found = {
        "quality": measure_quality(scored),
        "bands": fit_bands([one.draw for one in scored if one.draw.shots]),
        "left_out": kind,
    }
    file = replace(file, header=file.header.model_copy(update=found))
    save(out, file)
    shutil.rmtree(checkpoints, ignore_errors=True)
    return file.header


def prepare(
    recipe: Recipe,
    data: Path | None,
    folders: Sequence[Path],
    jobs: int,
    cache: Path | None,
    console: Console,
) -> tuple[dict[str, Material], dict[str, Features]]:
    """The sources that are present, as they are learnt from, and their features as extracted."""
    tasks, absent = present_tasks(recipe.protocol, data, folders)
    for name in absent:
        console.print(f"{name} is not present and is left out", highlight=False)
    tasks = {name: restrict(task, recipe.protocol.classes) for name, task in tasks.items()}
    console.print(f"hearing {', '.join(tasks)}", highlight=False)
    job = Job(recipe.setup_name, (recipe.method,), tuple(tasks), (), 0)
    materials = gather(recipe.setup, [job], tasks, cache, jobs, console)
    frontend = make_frontend(recipe.setup.frontend)
    raw = {name: extract(task, frontend, cache) for name, task in tasks.items()}
    return materials, raw


def measure(
    recipe: Recipe,
    materials: dict[str, Material],
    raw: dict[str, Features],
    seed: int,
    checkpoints: Path,
    console: Console,
    draws: int = DRAWS,
) -> tuple[str, list[Scored]]:
    """Leave sources out in turn; return what was left out ("language", …) and all draws' scores."""
    kind, parts = split_sources(materials, raw)
    scored: list[Scored] = []
    for part in parts:
        console.print(f"measuring on {part.name}, left out", highlight=False)
        file = train_file(recipe, part.learnt, part.raw, seed, checkpoints / part.name)
        for material, features in part.held:
            scored += score_draws(file, material.task, features, seed, draws)
    return kind, scored


def split_sources(
    materials: dict[str, Material], raw: dict[str, Features]
) -> tuple[str, list[Part]]:
    """What is left out in turn: "language", "task" or "speakers", and the parts.

    Parameters
    ----------
    materials, raw
        Normalised and not, by the task's name.
    """
    tasks = {name: material.task for name, material in materials.items()}
    languages = {name: task.language for name, task in tasks.items()}
    kind, groups = "language", languages
    if len(set(languages.values())) == 1:
        kind, groups = "task", {name: name for name in tasks}
    if len(tasks) == 1:
        return "speakers", [_half_of_speakers(*materials.values(), *raw.values())]
    parts = []
    for group in dict.fromkeys(groups.values()):
        inside = [name for name in tasks if groups[name] == group]
        learnt = [name for name in tasks if groups[name] != group]
        parts.append(
            Part(
                group,
                {name: materials[name] for name in learnt},
                {name: raw[name] for name in learnt},
                [(materials[name], raw[name]) for name in inside],
            )
        )
    return kind, parts


def _half_of_speakers(material: Material, raw: Features) -> Part:
    """Learn from every second speaker of a task, hold the others."""
    units = material.task.table["unit"].to_numpy()
    learnt = np.isin(units, np.unique(units)[::2])
    one, other = (_rows_of(material, np.flatnonzero(mask)) for mask in (learnt, ~learnt))
    name = material.task.name
    held = [(other, _some(raw, np.flatnonzero(~learnt)))]
    return Part("speakers", {name: one}, {name: _some(raw, np.flatnonzero(learnt))}, held)


def _rows_of(material: Material, rows: np.ndarray) -> Material:
    task = material.task
    return Material(
        replace(task, table=task.table.iloc[rows].reset_index(drop=True)),
        _some(material.plain, rows),
        tuple(_some(features, rows) for features in material.situations),
    )


def _some(features: Features, rows: np.ndarray) -> Features:
    return Features(features.values[rows], features.lengths[rows], features.hashes[rows])


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
    method = make_method(recipe.method, setup, len(classes), channels, seed, domains)
    with enough_threads(next(iter(raw.values()))):
        train_job(method, recipe.protocol, setup, job, materials, checkpoints)
    frontend = make_frontend(setup.frontend)
    header = Header(
        format=FORMAT,
        metaser=__version__,
        libraries=library_versions(getattr(frontend, "extracted", frontend)),
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


def score_draws(
    file: ModelFile, task: Task, features: Features, seed: int, draws: int
) -> list[Scored]:
    """Use a model on a task that it has not learnt from, as a user would, many times.

    A draw takes few speakers, some clips a class of theirs, and all clips of the others to be
    judged on. Numbers of shots that the task is too small for are left out.
    """
    targets = task.table["emotion"].map({n: i for i, n in enumerate(file.header.classes)})
    targets = targets.to_numpy().astype(int)
    everything = np.arange(len(targets))
    found = [_judge(task, 0, "none", np.nan, zero_shot(file, features, everything), targets)]
    units = task.table["unit"].to_numpy()
    speakers = task.table["speaker"].to_numpy()
    for shots in SHOTS:
        for index in range(draws):
            rng = np.random.default_rng([seed, shots, index, *task.name.encode()])
            drawn = draw_clips(targets, units, shots, rng)
            if drawn is None:
                break
            rows, rest = drawn
            adapted, own = fit(file, features, rows, targets[rows])
            seen = cross_validate(file, features, rows, targets[rows], speakers[rows], index)
            heard = scores(adapted, own, features, rest)
            found.append(_judge(task, shots, *seen, heard, targets[rest]))
    return found


def draw_clips(
    targets: np.ndarray, units: np.ndarray, shots: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray] | None:
    """Rows of a few speakers' clips, ``shots`` a class, and of all clips of the other speakers.

    None if no draw in many leaves enough on both sides.
    """
    classes = np.unique(targets)
    people = np.unique(units)
    counts = np.array([[np.sum(targets[units == one] == c) for c in classes] for one in people])
    for _ in range(ATTEMPTS):
        order = rng.permutation(len(people))
        wanted = rng.integers(1, max(len(people) // 2, 1) + 1)
        sums = counts[order].cumsum(axis=0)
        enough = np.flatnonzero((sums >= shots).all(axis=1))
        if not len(enough):
            return None
        size = max(wanted, enough[0] + 1)
        if size == len(people) or (sums[-1] - sums[size - 1] < QUERIES).any():
            continue
        chosen = np.isin(units, people[order[:size]])
        own = [rng.permutation(np.flatnonzero(chosen & (targets == c)))[:shots] for c in classes]
        return np.concatenate(own), np.flatnonzero(~chosen)
    return None


def _judge(task: Task, shots: int, folds, seen: float, heard, targets) -> Scored:
    """Compare scores with the truth."""
    classes = len(np.unique(targets))
    uar = metrics.uar(targets, heard.argmax(axis=1))
    known = skill(seen, classes) if folds != "none" else float("nan")
    draw = Draw(task.name, shots, folds, known, skill(uar, classes))
    return Scored(draw, uar, heard, targets)


def measure_quality(scored: Sequence[Scored]) -> list[Measured]:
    """Means over the left-out tasks at every number of shots, each task counting the same."""
    found = []
    for shots in sorted({one.draw.shots for one in scored}):
        own = [one for one in scored if one.draw.shots == shots]
        names = list(dict.fromkeys(one.draw.task for one in own))
        per_task = {name: [one for one in own if one.draw.task == name] for name in names}
        interval = _over_tasks([[one.uar for one in some] for some in per_task.values()])
        chances = [1 / len(np.unique(some[0].targets)) for some in per_task.values()]
        before, after = zip(*(_calibration_error(per_task, name) for name in names))
        found.append(
            Measured(
                shots=shots,
                uar=interval[0],
                low=interval[1],
                high=interval[2],
                chance=float(np.mean(chances)),
                temperature=fit_temperature(*_pooled(per_task, names)),
                ece_before=float(np.mean(before)),
                ece_after=float(np.mean(after)),
                tasks=names,
                draws=len(own),
            )
        )
    return found


def _over_tasks(uars: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    """Mean and 95 % interval over tasks, which are drawn anew, and draws within them."""
    found = stats.interval(list(uars))
    return found.mean, found.low, found.high


def _calibration_error(per_task: dict[str, list[Scored]], name: str) -> tuple[float, float]:
    """Calibration error on a task without a temperature, and with the one of the other tasks."""
    others = [other for other in per_task if other != name] or [name]
    temperature = fit_temperature(*_pooled(per_task, others))
    heard, targets, _ = _pooled(per_task, [name])
    return tuple(ece(probabilities(heard, t), targets) for t in (1.0, temperature))


def _pooled(
    per_task: dict[str, list[Scored]], names: Sequence[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores, targets and weights of all clips of some tasks, every draw of a task the same."""
    own = [(one, len(per_task[name])) for name in names for one in per_task[name]]
    return (
        np.concatenate([one.scores for one, _ in own]),
        np.concatenate([one.targets for one, _ in own]),
        np.concatenate([np.full(len(one.targets), 1 / n / len(one.targets)) for one, n in own]),
    )
