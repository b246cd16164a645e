"""The outer loop: draw episodes, take a step, validate on held-out speakers, save a checkpoint."""

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor, nn

from metaser import files
from metaser.batch import Batch, EpisodeBatch
from metaser.contracts import method_traits, model_of
from metaser.episodes import TaskSampler, tensors
from metaser.features.table import Features
from metaser.machine import device_of, generators, rank, share, sum_over_processes
from metaser.protocol.schema import Training
from metaser.training.augmentation import spec_augment
from metaser.training.diagnosis import diagnose
from metaser.training.meta_batch import MetaBatch
from metaser.version import release, version

STREAM_TASKS, STREAM_DROPOUT, STREAM_MASKS = 1, 2, 3
"""Numbers that keep the random draws of a step apart."""


class _State(TypedDict):
    """How far a run is, as its checkpoint states it."""

    step: int
    seconds: float
    skipped: int
    best: float
    waited: int
    history: list[dict[str, Any]]


@dataclass(frozen=True)
class Source:
    """A source task to learn from: its sampler and its features."""

    sampler: TaskSampler
    features: Features

    @property
    def name(self) -> str:
        """Name of the task."""
        return self.sampler.task.name

    def draw(self, index: int) -> EpisodeBatch:
        """Return the tensors of episode ``index``."""
        return tensors(self.sampler.episode(index), self.features)


def train(
    method: nn.Module,
    sources: Sequence[Source],
    validation: Sequence[Source],
    training: Training,
    seed: int = 0,
    *,
    checkpoint: Path | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> list[dict[str, Any]]:
    """Train a method in place and return it to the state of its best validation loss.

    A method whose ``order`` is "sequential" sees one source task after the other, in the order of
    ``sources``. The learning rate then falls to 0 within each task's turn, and the last state is
    kept.

    Under ``torchrun`` the processes share the episodes of each step and of each validation, and
    arrive at the same parameters.

    Every step depends only on the seed, the step and the parameters. So a run that is stopped and
    resumed from its checkpoint gives the same result as one without interruption.

    Parameters
    ----------
    method : nn.Module
        A method that learns, see ``contracts.LearningMethod``.
    sources, validation : sequence of Source
        Episodes to learn from, and episodes of other speakers of the source languages. Any object
        with ``name`` and ``draw(index)`` will do.
    training : Training
        Length, rates and engine.
    seed : int
        Decides tasks, episodes and dropout.
    checkpoint : Path, optional
        File to save to at every validation, and to resume from.
    progress : callable, optional
        Called with the step and the validation loss after each validation.

    Returns
    -------
    list of dict
        One entry per validation: ``step``, ``seconds`` so far, mean training ``loss`` and
        ``validation`` loss, and episodes ``skipped`` so far.

    Raises
    ------
    FloatingPointError
        If a loss or a gradient is not finite, unless ``training`` skips it, or if every validation
        episode diverges. The message names the episode or the step.
    ValueError
        If the checkpoint belongs to another run, model or version, or if the method cannot learn
        (see ``diagnose``).
    """
    run = _begin(method, sources, training, seed, checkpoint)
    engine = MetaBatch(
        method,
        training.engine,
        compile=training.compile,
        mixed_precision=training.mixed_precision,
    )
    skip = training.diverged == "skip"
    started = time.perf_counter()
    with torch.random.fork_rng(devices=generators(device_of(method))):
        while not run.is_over():
            step = run.state["step"]
            run.note_step(_update(engine, run.optimiser, sources, training, seed, step))
            if not run.is_to_validate():
                continue
            loss = validation_loss(method, validation, training.validation_episodes, skip)
            run.note_validation(loss, time.perf_counter() - started)
            started = time.perf_counter()
            if progress is not None:
                progress(run.state["step"], loss)
            if checkpoint is not None and rank() == 0:
                run.save(checkpoint)
    method.load_state_dict(run.best, strict=False)
    method.eval()
    return run.state["history"]


def _begin(
    method: nn.Module,
    sources: Sequence[Source],
    training: Training,
    seed: int,
    checkpoint: Path | None,
) -> "_Run":
    """Return a run that goes on from its checkpoint, or a new one of a method that can learn."""
    run = _Run(method, training, seed)
    if checkpoint is not None and checkpoint.exists():
        run.load(checkpoint)
    elif training.updates:
        example = sources[0].draw(0).to(device_of(method))
        diagnose(method, replace(example, other=example.query))
    return run


class _Run:
    """A training under way: what changes from step to step, and the checkpoint that holds it.

    Parameters
    ----------
    method : nn.Module
        A method that learns.
    training : Training
        Length and rates.
    seed : int
        Seed of the run.

    Attributes
    ----------
    optimiser : Adam
        Of the parameters that learn.
    state : _State
        How far the run is.
    best : dict of Tensor
        The method's state that is kept at the end.
    """

    def __init__(self, method: nn.Module, training: Training, seed: int) -> None:
        self.optimiser = torch.optim.Adam(_trainable(method), lr=training.rate)
        self.state: _State = {
            "step": 0,
            "seconds": 0.0,
            "skipped": 0,
            "best": float("inf"),
            "waited": 0,
            "history": [],
        }
        self.best = copy.deepcopy(_learnt(method))
        self._method = method
        self._training = training
        self._facts = _facts(method, training, seed)
        self._recent: list[float] = []  # training losses since the last validation

    def is_over(self) -> bool:
        """Return whether all steps are done, or the validation loss no longer falls."""
        patience = math.inf if _is_sequential(self._method) else self._training.patience
        return self.state["step"] >= self._training.updates or self.state["waited"] >= patience

    def is_to_validate(self) -> bool:
        """Return whether a validation follows the step that was taken last."""
        step = self.state["step"]
        return step % self._training.validate_every == 0 or step >= self._training.updates

    def note_step(self, losses: list[float]) -> None:
        """Count a step, given the loss of each of its episodes."""
        finite = [loss for loss in losses if math.isfinite(loss)]
        self._recent += finite
        self.state["skipped"] += len(losses) - len(finite)
        self.state["step"] += 1

    def note_validation(self, loss: float, seconds: float) -> None:
        """Enter a validation into the history; keep the method's state if it is the best so far.

        ``seconds`` is the time since the last validation. If tasks come one after the other, the
        newest state is always kept.
        """
        state = self.state
        state["seconds"] += seconds
        state["history"].append(
            {
                "step": state["step"],
                "seconds": state["seconds"],
                "skipped": state["skipped"],
                "loss": float(np.mean(self._recent)) if self._recent else math.nan,
                "validation": loss,
            }
        )
        self._recent = []
        if _is_sequential(self._method) or loss < state["best"]:
            state["best"] = loss
            state["waited"] = 0
            self.best = copy.deepcopy(_learnt(self._method))
        else:
            state["waited"] += 1

    def save(self, path: Path) -> None:
        """Write a checkpoint, whole or not at all."""
        content = {
            "method": _learnt(self._method),
            "optimiser": self.optimiser.state_dict(),
            "best": self.best,
            "state": self.state,
            "facts": self._facts,
        }
        with files.whole(path) as part:
            torch.save(content, part)

    def load(self, path: Path) -> None:
        """Go on from a checkpoint.

        Raises
        ------
        ValueError
            If the file is damaged, or of another run, model or version.
        """
        try:
            saved = torch.load(path, map_location=device_of(self._method), weights_only=True)
            saved_facts = saved["facts"]
        except (RuntimeError, EOFError, KeyError, TypeError, OSError, UnpicklingError) as error:
            raise ValueError(
                f"{path} must be a checkpoint, but is not readable as one "
                f"({type(error).__name__}): delete it"
            ) from error
        facts = self._facts
        changed = [key for key in facts if saved_facts.get(key) != facts[key]]
        if changed:
            raise ValueError(
                f"{path} must be a checkpoint of this run, not of another: {changed[0]} was "
                f"{saved_facts.get(changed[0])} and is now {facts[changed[0]]}: delete it, or "
                "write to another folder"
            )
        self._method.load_state_dict(saved["method"], strict=False)
        self.optimiser.load_state_dict(saved["optimiser"])
        self.state, self.best = saved["state"], saved["best"]


def _trainable(method: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that learn; refuse a method without any."""
    trainable = [value for value in method.parameters() if value.requires_grad]
    if not trainable:
        raise ValueError(
            f"{type(method).__name__} must have parameters that learn, but all are frozen: thaw "
            "some by requires_grad_(True), or adapt without training"
        )
    return trainable


def validation_loss(
    method: nn.Module, validation: Sequence[Source], episodes: int, skip: bool = False
) -> float:
    """Return the mean loss over the validation episodes, which are the same in every call.

    It is the mean of the method's ``validation_loss``, where it has one, else of its ``loss``.

    Parameters
    ----------
    method : nn.Module
        A method that learns; it is left in evaluation mode.
    validation : sequence of Source
        Where the episodes come from.
    episodes : int
        Number of episodes, divided evenly among the sources; at least one per source.
    skip : bool
        Leave episodes out whose loss is not finite.

    Raises
    ------
    FloatingPointError
        If a loss is not finite, or with ``skip`` if none is; the message names the episode.
    """
    method.eval()
    measure = method_traits(method).validation_loss
    assert measure is not None  # a method that learns has a loss
    each = max(episodes // len(validation), 1)
    places = [(source, index) for source in validation for index in range(each)]
    losses = torch.zeros(len(places), dtype=torch.float64)
    for place in share(range(len(places))):
        source, index = places[place]
        with torch.no_grad():
            losses[place] = measure(source.draw(index).to(device_of(method)))
    sum_over_processes([losses])
    for (source, index), loss in zip(places, losses.tolist()):
        if not math.isfinite(loss) and not (skip and losses.isfinite().any()):
            raise FloatingPointError(
                f"the loss of validation episode {index} of {source.name} must be finite, not "
                f"{loss}: lower the inner or the outer rate"
            )
    return float(losses[losses.isfinite()].mean())


def _is_sequential(method: nn.Module) -> bool:
    return method_traits(method).order == "sequential"


def _names(sources: Sequence[Source]) -> list[str]:
    return list(dict.fromkeys(source.name for source in sources))


def _rate(method: nn.Module, sources: Sequence[Source], training: Training, step: int) -> float:
    """Return the learning rate of a step, along one cosine per run or per task's turn."""
    turns = len(_names(sources)) if _is_sequential(method) else 1
    phase = step * turns / training.updates % 1
    return training.rate * (1 + math.cos(math.pi * phase)) / 2


def _update(
    engine: MetaBatch,
    optimiser: torch.optim.Optimizer,
    sources: Sequence[Source],
    training: Training,
    seed: int,
    step: int,
) -> list[float]:
    """Take an outer step over a meta-batch; return the loss of each episode."""
    method: Any = engine.method  # with what its traits say
    method.train()
    traits = method_traits(method)
    if traits.shows_progress:
        method.progress = step / training.updates
    torch.manual_seed(
        int(np.random.SeedSequence([seed, STREAM_DROPOUT, step, rank()]).generate_state(1)[0])
    )
    for group in optimiser.param_groups:
        group["lr"] = _rate(method, sources, training, step)
    trainable = [value for group in optimiser.param_groups for value in group["params"]]
    for value in trainable:  # zeros also where this process's episodes give no gradient
        value.grad = torch.zeros_like(value)
    pairs = _choose(sources, method, training, seed, step)
    losses = torch.zeros(len(pairs), dtype=torch.float64)
    places = share(range(len(pairs)))  # of this process
    first = step * training.meta_batch
    episodes = []
    for place in places:
        source, partner = pairs[place]
        episode = _draw(source, partner, first + place, traits.hears_other)
        masked = _masked(episode, training, [seed, STREAM_MASKS, first + place])
        episodes.append(masked.to(device_of(method)))
    if traits.terms is not None:
        traits.terms.catch_up(method.model, episodes, len(pairs))
    losses[list(places)] = torch.tensor(engine.backward(episodes, len(pairs)), dtype=torch.float64)
    sum_over_processes([losses])
    sum_over_processes([value.grad for value in trainable])
    norm = torch.nn.utils.clip_grad_norm_(trainable, training.clip)
    _stop_if_diverged(training, [source for source, _ in pairs], losses, norm, step)
    if not losses.isfinite().any():
        return losses.tolist()
    if norm.isfinite():
        optimiser.step()
        return losses.tolist()
    return [math.nan] * len(pairs)


def _draw(source: Source, partner: Source, index: int, hears_other: bool) -> EpisodeBatch:
    """Return an episode of a source.

    With a partner, its query clips are the episode's query set, or its third set ``other``.
    """
    episode = source.draw(index)
    if partner is source:
        return episode
    clips = partner.draw(index).query
    return replace(episode, other=clips) if hears_other else replace(episode, query=clips)


def _masked(episode: EpisodeBatch, training: Training, seed: list[int]) -> EpisodeBatch:
    """Return the episode with SpecAugment, if the training masks."""
    widths = training.mask_frames, training.mask_channels
    if not any(widths):
        return episode
    draw = torch.Generator().manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))

    def mask(batch: Batch) -> Batch:
        audio = spec_augment(batch.modalities["audio"], *widths, draw)
        return replace(batch, modalities={**batch.modalities, "audio": audio})

    return episode.map(mask)


def _stop_if_diverged(
    training: Training, sources: Sequence[Source], losses: Tensor, norm: Tensor, step: int
) -> None:
    """Refuse a loss or gradient that is not finite, unless it is skipped; one source per loss."""
    if training.diverged == "skip":
        return
    remedy = "lower the inner or the outer rate, or set diverged = 'skip'"
    first = step * training.meta_batch
    for index, (source, loss) in enumerate(zip(sources, losses.tolist()), start=first):
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"the loss of episode {index} of {source.name} must be finite, not {loss} at step "
                f"{step}: {remedy}"
            )
    if not norm.isfinite():
        episodes = [f"{i} of {source.name}" for i, source in enumerate(sources, start=first)]
        raise FloatingPointError(
            f"the norm of the gradient of step {step} must be finite, not {norm.item()}, while the "
            f"loss of each of its episodes ({', '.join(episodes)}) is finite: {remedy}"
        )


def _choose(
    sources: Sequence[Source], method: nn.Module, training: Training, seed: int, step: int
) -> list[tuple[Source, Source]]:
    """Return the sources of a step's episodes: one task after the other, or drawn evenly.

    Each comes with a partner: a source of another task for a method that ``pairs_tasks`` or
    ``hears_other``, else itself.
    """
    rng = np.random.default_rng([seed, STREAM_TASKS, step])
    names = _names(sources)
    turn = [names[step * len(names) // training.updates]]
    by_name = {name: [s for s in sources if s.name == name] for name in names}

    wants_partner = method_traits(method).wants_partner

    def one_of(candidates: list[Source]) -> Source:
        return candidates[rng.integers(len(candidates))]

    pairs = []
    for name in rng.choice(turn if _is_sequential(method) else sorted(names), training.meta_batch):
        source = partner = one_of(by_name[name])
        if wants_partner:
            partner = one_of(by_name[rng.choice(_others(names, name))])
        pairs.append((source, partner))
    return pairs


def _others(names: list[str], name: str) -> list[str]:
    """Return the names of the other tasks, sorted; refuse a training without any."""
    others = sorted(set(names) - {name})
    if not others:
        raise ValueError(
            f"the method needs the clips of an episode from two source tasks, but {name} is the "
            "only one: add a source"
        )
    return others


def _facts(method: nn.Module, training: Training, seed: int) -> dict[str, Any]:
    """Return what a checkpoint must have in common with the run that resumes from it."""
    traits = method_traits(method)
    adaptation = {"training", "progress", *traits.adaptation}
    settings = {
        name: value
        for name, value in vars(method).items()
        if isinstance(value, bool | int | float | str) and name not in adaptation
    }
    if traits.terms is not None:
        settings["terms"] = " ".join(repr(traits.terms).split())
    return {
        "metaser": release(version()),
        "method": type(method).__name__,
        "settings": settings,
        "model": " ".join(repr(model_of(method) or method).split()),
        "seed": seed,
        **{name: getattr(training, name) for name in Training.model_fields},
        "parameters": {name: list(value.shape) for name, value in method.named_parameters()},
    }


def _learnt(method: nn.Module) -> dict[str, Tensor]:
    """Return a method's state without frozen parameters, which may be a whole trained encoder."""
    frozen = {name for name, value in method.named_parameters() if not value.requires_grad}
    return {name: value for name, value in method.state_dict().items() if name not in frozen}
