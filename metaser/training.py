"""The one outer loop: episodes, loss, step, validation on held-out source speakers, checkpoint."""

import copy
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import torch
from torch import nn

from metaser.batch import EpisodeBatch
from metaser.episodes import TaskSampler, tensors
from metaser.features import Features

STREAM_TASKS, STREAM_DROPOUT = 1, 2


@dataclass(frozen=True)
class Source:
    """A source task to learn from: its sampler and its features."""

    sampler: TaskSampler
    features: Features

    def draw(self, index: int) -> EpisodeBatch:
        """The tensors of episode ``index``."""
        return tensors(self.sampler.episode(index), self.features)


@dataclass(frozen=True)
class Training:
    """How the outer loop runs.

    Parameters
    ----------
    updates : int
        Outer steps at most.
    meta_batch : int
        Episodes a step.
    rate : float
        Adam's learning rate at the start; it falls to 0 along a cosine.
    clip : float
        Largest norm of the gradient.
    validate_every : int
        Steps between validations.
    validation_episodes : int
        Episodes a validation, shared out over the source tasks.
    patience : int
        Validations without gain before training stops.
    """

    updates: int = 1000
    meta_batch: int = 8
    rate: float = 1e-3
    clip: float = 1.0
    validate_every: int = 50
    validation_episodes: int = 40
    patience: int = 6


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

    Every step is a function of (seed, step) and of the parameters, so a run that is stopped and
    resumed from its checkpoint gives the same result as one that was not.

    Parameters
    ----------
    method : nn.Module
        Has ``loss(episode)``, and perhaps ``order``.
    sources, validation : sequence of Source
        Episodes to learn from, and episodes of other speakers of the source languages.
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
        loss (means of the method's own loss).

    Raises
    ------
    FloatingPointError
        If the loss stops being finite; the message names the episode.
    ValueError
        If the checkpoint belongs to another run.
    """
    trainable = [value for value in method.parameters() if value.requires_grad]
    optimiser = torch.optim.Adam(trainable, lr=training.rate)
    state = {"step": 0, "seconds": 0.0, "best": float("inf"), "waited": 0, "history": []}
    best = copy.deepcopy(method.state_dict())
    facts = {**asdict(training), "seed": seed, "shapes": [list(v.shape) for v in trainable]}
    if checkpoint is not None and checkpoint.exists():
        state, best = _load(checkpoint, method, optimiser, facts)
    recent, started = [], time.perf_counter()
    patience = math.inf if _is_sequential(method) else training.patience
    with torch.random.fork_rng(devices=[]):
        while state["step"] < training.updates and state["waited"] < patience:
            recent.append(_update(method, optimiser, sources, training, seed, state["step"]))
            state["step"] += 1
            if state["step"] % training.validate_every and state["step"] < training.updates:
                continue
            loss = validation_loss(method, validation, training.validation_episodes)
            state["seconds"] += time.perf_counter() - started
            entry = {key: state[key] for key in ("step", "seconds")}
            state["history"].append({**entry, "loss": float(np.mean(recent)), "validation": loss})
            recent, started = [], time.perf_counter()
            better = loss < state["best"] or _is_sequential(method)
            state["waited"] = 0 if better else state["waited"] + 1
            if better:
                state["best"] = loss
                best = copy.deepcopy(method.state_dict())
            if progress is not None:
                progress(state["step"], loss)
            if checkpoint is not None:
                _save(checkpoint, method, optimiser, best, state, facts)
    method.load_state_dict(best)
    method.eval()
    return state["history"]


def validation_loss(method: nn.Module, validation: Sequence[Source], episodes: int) -> float:
    """Mean loss over the same episodes whenever it is asked for."""
    method.eval()
    each = max(episodes // len(validation), 1)
    losses = []
    for source in validation:
        for index in range(each):
            with torch.no_grad():
                losses.append(method.loss(source.draw(index)).item())
            if not math.isfinite(losses[-1]):
                raise FloatingPointError(
                    f"the loss of validation episode {index} of {source.sampler.task.name} is "
                    f"{losses[-1]}: lower the inner or the outer rate"
                )
    return float(np.mean(losses))


def _is_sequential(method: nn.Module) -> bool:
    return getattr(method, "order", "mixed") == "sequential"


def _names(sources: Sequence[Source]) -> list[str]:
    return list(dict.fromkeys(source.sampler.task.name for source in sources))


def _rate(method, sources, training: Training, step: int) -> float:
    """The learning rate of a step: along a cosine, of the whole run or of each task's turn."""
    turns = len(_names(sources)) if _is_sequential(method) else 1
    phase = step * turns / training.updates % 1
    return training.rate * (1 + math.cos(math.pi * phase)) / 2


def _update(method, optimiser, sources, training: Training, seed: int, step: int) -> float:
    """One outer step over a meta-batch; return its mean loss."""
    method.train()
    torch.manual_seed(
        int(np.random.SeedSequence([seed, STREAM_DROPOUT, step]).generate_state(1)[0])
    )
    for group in optimiser.param_groups:
        group["lr"] = _rate(method, sources, training, step)
    optimiser.zero_grad()
    total = 0.0
    chosen = _choose(sources, method, training, seed, step)
    for place, source in enumerate(chosen):
        index = step * training.meta_batch + place
        loss = method.loss(source.draw(index)) / training.meta_batch
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"the loss of episode {index} of {source.sampler.task.name} is {loss.item()} at "
                f"step {step}: lower the inner or the outer rate"
            )
        loss.backward()
        total += loss.item()
    trainable = [value for group in optimiser.param_groups for value in group["params"]]
    torch.nn.utils.clip_grad_norm_(trainable, training.clip)
    optimiser.step()
    return total


def _choose(sources, method, training: Training, seed: int, step: int) -> list[Source]:
    """The sources of a step's episodes: drawn evenly over tasks, or one task after the other."""
    rng = np.random.default_rng([seed, STREAM_TASKS, step])
    names = _names(sources)
    turn = [names[step * len(names) // training.updates]]
    chosen = []
    for name in rng.choice(turn if _is_sequential(method) else sorted(names), training.meta_batch):
        own = [source for source in sources if source.sampler.task.name == name]
        chosen.append(own[rng.integers(len(own))])
    return chosen


def _save(path: Path, method, optimiser, best: dict, state: dict, facts: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        content = {"method": method.state_dict(), "optimiser": optimiser.state_dict()}
        torch.save({**content, "best": best, "state": state, "facts": facts}, part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _load(path: Path, method, optimiser, facts: dict) -> tuple[dict, dict]:
    try:
        saved = torch.load(path, weights_only=True)
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
    method.load_state_dict(saved["method"])
    optimiser.load_state_dict(saved["optimiser"])
    return saved["state"], saved["best"]
