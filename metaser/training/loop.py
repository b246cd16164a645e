"""The one outer loop: episodes, loss, step, validation on held-out source speakers, checkpoint."""

import copy
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import torch
from torch import Tensor, nn

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


@dataclass(frozen=True)
class Source:
    """A source task to learn from: its sampler and its features."""

    sampler: TaskSampler
    features: Features

    @property
    def name(self) -> str:
        """Of the task."""
        return self.sampler.task.name

    def draw(self, index: int) -> EpisodeBatch:
        """The tensors of episode ``index``."""
        return tensors(self.sampler.episode(index), self.features)


def train(
    method: nn.Module,
    sources: Sequence[Source],
    validation: Sequence[Source],
    training: Training,
    seed: int = 0,
    checkpoint: Path | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> list[dict]:
    """Train a method in place and leave it at its best validation loss.

    A method whose ``order`` is "sequential" sees one source task after the other, in the order of
    ``sources``; the rate falls anew within each task's turn, and the last state is kept.

    Under ``torchrun`` the processes share the episodes of each step and of each validation, and
    arrive at the same parameters.

    Every step is a function of (seed, step) and of the parameters, so a run that is stopped and
    resumed from its checkpoint gives the same result as one that was not.

    Parameters
    ----------
    method : nn.Module
        Has ``loss(episode)``, and perhaps ``order``.
    sources, validation : sequence of Source
        Episodes to learn from, and episodes of other speakers of the source languages; whatever
        has a ``name`` and ``draw(index)`` will do.
    training : Training
        Length and rates.
    seed : int
        Chooses tasks, episodes and dropout.
    checkpoint : Path, optional
        File to save to at every validation, and to resume from.
    progress : callable, optional
        Called with the step and the validation loss.

    Returns
    -------
    list of dict
        One entry a validation: ``step``, ``seconds`` so far, training ``loss`` and ``validation``
        loss (means of the method's own loss), and episodes ``skipped`` so far.

    Raises
    ------
    FloatingPointError
        If a loss stops being finite (the message names the episode) or a gradient (it names the
        step), unless what diverged is skipped; or if every validation episode diverges.
    ValueError
        If the checkpoint belongs to another run, backbone or version, or if the method cannot
        learn (see ``diagnose``).
    """
    trainable = [value for value in method.parameters() if value.requires_grad]
    if not trainable:
        raise ValueError(
            f"all parameters of {type(method).__name__} are frozen, so there is nothing to train: "
            "thaw some by requires_grad_(True), or adapt without training"
        )
    optimiser = torch.optim.Adam(trainable, lr=training.rate)
    state = {"step": 0, "seconds": 0.0, "skipped": 0}
    state |= {"best": float("inf"), "waited": 0, "history": []}
    best = copy.deepcopy(_learnt(method))
    facts = _facts(method, training, seed)
    if checkpoint is not None and checkpoint.exists():
        state, best = _load(checkpoint, method, optimiser, facts)
    elif training.updates:
        example = sources[0].draw(0).to(device_of(method))
        diagnose(method, replace(example, other=example.query))
    engine = MetaBatch(method, training.engine, training.compile, training.mixed_precision)
    recent, started = [], time.perf_counter()
    patience = math.inf if _is_sequential(method) else training.patience
    with torch.random.fork_rng(devices=generators(device_of(method))):
        while state["step"] < training.updates and state["waited"] < patience:
            losses = _update(engine, optimiser, sources, training, seed, state["step"])
            finite = [loss for loss in losses if math.isfinite(loss)]
            recent += finite
            state["skipped"] += len(losses) - len(finite)
            state["step"] += 1
            if state["step"] % training.validate_every and state["step"] < training.updates:
                continue
            skip = training.diverged == "skip"
            loss = validation_loss(method, validation, training.validation_episodes, skip)
            state["seconds"] += time.perf_counter() - started
            entry = {key: state[key] for key in ("step", "seconds", "skipped")}
            mean = float(np.mean(recent)) if recent else math.nan
            state["history"].append({**entry, "loss": mean, "validation": loss})
            recent, started = [], time.perf_counter()
            better = loss < state["best"] or _is_sequential(method)
            state["waited"] = 0 if better else state["waited"] + 1
            if better:
                state["best"] = loss
                best = copy.deepcopy(_learnt(method))
            if progress is not None:
                progress(state["step"], loss)
            if checkpoint is not None and rank() == 0:
                _save(checkpoint, method, optimiser, best, state, facts)
    method.load_state_dict(best, strict=False)
    method.eval()
    return state["history"]


def validation_loss(
    method: nn.Module, validation: Sequence[Source], episodes: int, skip: bool = False
) -> float:
    """Mean loss over the same episodes whenever it is asked for, if ``skip`` over the finite ones.

    A method whose ``loss`` says nothing of its quality has a ``validation_loss`` besides.
    """
    method.eval()
    measure = method_traits(method).validation_loss
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
                f"the loss of validation episode {index} of {source.name} is "
                f"{loss}: lower the inner or the outer rate"
            )
    return float(losses[losses.isfinite()].mean())


def _is_sequential(method: nn.Module) -> bool:
    return method_traits(method).order == "sequential"


def _names(sources: Sequence[Source]) -> list[str]:
    return list(dict.fromkeys(source.name for source in sources))


def _rate(method, sources, training: Training, step: int) -> float:
    """The learning rate of a step: along a cosine, of the whole run or of each task's turn."""
    turns = len(_names(sources)) if _is_sequential(method) else 1
    phase = step * turns / training.updates % 1
    return training.rate * (1 + math.cos(math.pi * phase)) / 2


def _update(
    engine: MetaBatch, optimiser, sources, training: Training, seed: int, step: int
) -> list[float]:
    """One outer step over a meta-batch; return the loss of each episode."""
    method = engine.method
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
    chosen = _choose(sources, method, training, seed, step)
    losses = torch.zeros(len(chosen), dtype=torch.float64)
    own = share(range(len(chosen)))
    first = step * training.meta_batch
    drawn = [
        _masked(
            _draw(*chosen[place], first + place, traits.hears_other),
            training,
            [seed, STREAM_MASKS, first + place],
        ).to(device_of(method))
        for place in own
    ]
    if traits.terms is not None:
        traits.terms.catch_up(method.model, drawn, len(chosen))
    losses[list(own)] = torch.tensor(engine.backward(drawn, len(chosen)), dtype=torch.float64)
    sum_over_processes([losses])
    sum_over_processes([value.grad for value in trainable])
    norm = torch.nn.utils.clip_grad_norm_(trainable, training.clip)
    _stop_if_diverged(training, chosen, losses, norm, step)
    if not losses.isfinite().any():
        return losses.tolist()
    if norm.isfinite():
        optimiser.step()
        return losses.tolist()
    return [math.nan] * len(chosen)


def _draw(source: Source, partner: Source, index: int, hears_other: bool) -> EpisodeBatch:
    """An episode of a source; with a partner its query set, or a third set, is the partner's."""
    episode = source.draw(index)
    if partner is source:
        return episode
    theirs = partner.draw(index).query
    return replace(episode, other=theirs) if hears_other else replace(episode, query=theirs)


def _masked(episode: EpisodeBatch, training: Training, seed: list[int]) -> EpisodeBatch:
    """The episode with SpecAugment, where it is wanted."""
    widths = training.mask_frames, training.mask_channels
    if not any(widths):
        return episode
    draw = torch.Generator().manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))

    def mask(batch: Batch) -> Batch:
        audio = spec_augment(batch.modalities["audio"], *widths, draw)
        return replace(batch, modalities={**batch.modalities, "audio": audio})

    return episode.map(mask)


def _stop_if_diverged(training: Training, chosen, losses: Tensor, norm: Tensor, step: int) -> None:
    if training.diverged == "skip":
        return
    remedy = "lower the inner or the outer rate, or set diverged = 'skip'"
    for place, ((source, _), loss) in enumerate(zip(chosen, losses.tolist())):
        if not math.isfinite(loss):
            index = step * training.meta_batch + place
            raise FloatingPointError(
                f"the loss of episode {index} of {source.name} is {loss} at step {step}: {remedy}"
            )
    if not norm.isfinite():
        first = step * training.meta_batch
        drawn = [f"{first + i} of {s.name}" for i, (s, _) in enumerate(chosen)]
        raise FloatingPointError(
            f"the gradient of step {step} has norm {norm.item()}, while the loss of each of its "
            f"episodes ({', '.join(drawn)}) is finite: {remedy}"
        )


def _choose(
    sources, method, training: Training, seed: int, step: int
) -> list[tuple[Source, Source]]:
    """Sources of a step's episodes: one task after the other, or drawn evenly.

    Each comes with a partner: another task for a method that ``pairs_tasks`` or ``hears_other``,
    else itself.
    """
    rng = np.random.default_rng([seed, STREAM_TASKS, step])
    names = _names(sources)
    turn = [names[step * len(names) // training.updates]]
    by_name = {name: [s for s in sources if s.name == name] for name in names}

    wants_partner = method_traits(method).wants_partner

    def one_of(own: list[Source]) -> Source:
        return own[rng.integers(len(own))]

    chosen = []
    for name in rng.choice(turn if _is_sequential(method) else sorted(names), training.meta_batch):
        source = partner = one_of(by_name[name])
        if wants_partner:
            partner = one_of(by_name[rng.choice(_others(names, name))])
        chosen.append((source, partner))
    return chosen


def _others(names: list[str], name: str) -> list[str]:
    others = sorted(set(names) - {name})
    if not others:
        raise ValueError(
            f"the method takes the clips of an episode from two source tasks, and {name} is the "
            "only one: add a source"
        )
    return others


def _facts(method, training: Training, seed: int) -> dict:
    """What a checkpoint must agree on with the run that resumes from it."""
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
    """The state of a method but for frozen parameters, which may be a whole trained encoder."""
    frozen = {name for name, value in method.named_parameters() if not value.requires_grad}
    return {name: value for name, value in method.state_dict().items() if name not in frozen}


def _save(path: Path, method, optimiser, best: dict, state: dict, facts: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        content = {"method": _learnt(method), "optimiser": optimiser.state_dict()}
        torch.save({**content, "best": best, "state": state, "facts": facts}, part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _load(path: Path, method, optimiser, facts: dict) -> tuple[dict, dict]:
    try:
        saved = torch.load(path, map_location=device_of(method), weights_only=True)
        theirs = saved["facts"]
    except (RuntimeError, EOFError, KeyError, TypeError, OSError, UnpicklingError) as error:
        raise ValueError(
            f"{path} is not a readable checkpoint ({type(error).__name__}): delete it"
        ) from error
    changed = [key for key in facts if theirs.get(key) != facts[key]]
    if changed:
        raise ValueError(
            f"{path} was made by another run: {changed[0]} was {theirs.get(changed[0])} and is now "
            f"{facts[changed[0]]}; delete it or write to another folder"
        )
    method.load_state_dict(saved["method"], strict=False)
    optimiser.load_state_dict(saved["optimiser"])
    return saved["state"], saved["best"]
