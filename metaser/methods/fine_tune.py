"""Fine-tuning by Adam: the whole model or the head alone, with or without rehearsal."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from metaser.batch import Batch, Padded, stack_batches
from metaser.contracts import Predictor
from metaser.losses import cross_entropy
from metaser.machine import device_of, generators
from metaser.methods.inner_loop import (
    Parameters,
    adaptable,
    embed,
    flatten_tasks,
    heard,
    predictor,
    task_loss,
)
from metaser.model import Model

REHEARSED = 128
"""Source clips per step of rehearsal, in all."""


@dataclass(frozen=True)
class Cycle:
    """A cyclic learning rate.

    Parameters
    ----------
    lowest : float
        Lowest rate, as a share of the highest.
    half : int
        Steps from the lowest to the highest rate, and as many back.
    mode : {"triangular", "triangular2"}
        "triangular" repeats the same cycle. "triangular2" halves the distance from the lowest to
        the highest rate after every cycle.
    """

    lowest: float
    half: int
    mode: Literal["triangular", "triangular2"] = "triangular"


CYCLES = {"paper": Cycle(1 / 5, 8), "released": Cycle(1 / 20, 2000, "triangular2")}
"""The cyclic rates of the MetaSER paper's baselines (2e-5 to 1e-4) and of its released code (1e-6
to 2e-5). Neither says how long a cycle is: 8 steps are this project's choice, 2000 are PyTorch's
default."""


def fine_tune(
    loss: Callable[[Parameters, Tensor], Tensor],
    parameters: Parameters,
    clips: int,
    *,
    steps: int,
    rate: float,
    batch_size: int = 64,
    seed: int = 0,
    cycle: str = "paper",
) -> Parameters:
    """Return copies of ``parameters`` fine-tuned by Adam; the originals are not changed.

    Parameters
    ----------
    loss : callable
        ``loss(parameters, rows)`` is the scalar loss of the clips numbered ``rows``.
    parameters : dict of str to Tensor
        The parameters to tune, by name.
    clips : int
        How many clips there are.
    steps : int
        Adam steps, at least 0.
    rate : float
        Highest learning rate.
    batch_size : int
        Clips per step, at most.
    seed : int
        Decides the order of the clips.
    cycle : {"paper", "released"}
        How the rate rises and falls, see ``CYCLES``. "paper" rises in 8 steps from a fifth of
        ``rate`` to ``rate``, and falls in 8 steps.

    Returns
    -------
    dict of str to Tensor
        The tuned parameters, with the names and shapes of ``parameters``.
    """
    if not parameters or steps == 0:
        return parameters
    tuned = {name: value.detach().clone().requires_grad_() for name, value in parameters.items()}
    optimiser = torch.optim.Adam(tuned.values(), lr=rate)
    shape = CYCLES[cycle]
    schedule = torch.optim.lr_scheduler.CyclicLR(
        optimiser,
        base_lr=rate * shape.lowest,
        max_lr=rate,
        step_size_up=shape.half,
        mode=shape.mode,
        cycle_momentum=False,
    )
    shuffle = torch.Generator().manual_seed(seed)
    order = torch.empty(0, dtype=torch.long)
    with torch.enable_grad():
        for _ in range(steps):
            if len(order) < min(batch_size, clips):
                order = torch.randperm(clips, generator=shuffle)
            rows, order = order[:batch_size], order[batch_size:]
            optimiser.zero_grad()
            loss(tuned, rows).backward(inputs=list(tuned.values()))
            optimiser.step()
            schedule.step()
    return tuned


def tune_all(
    model: Model,
    support: Batch,
    steps: int,
    rate: float,
    sources: Sequence[Batch] = (),
    rehearsal: float = 0.0,
) -> Predictor:
    """Fine-tune all parameters on a support set by ``fine_tune``, with rehearsal of source clips.

    Parameters
    ----------
    model : Model
        Where to start; not changed.
    support : Batch
        Labelled clips of the new language.
    steps : int
        Adam steps, at least 0.
    rate : float
        Highest learning rate.
    sources : sequence of Batch
        Labelled clips of other tasks. Every step draws equally many of each task.
    rehearsal : float
        Weight of the sources beside the support set, in clips per class, at least 0. The fewer
        clips the support set has, the more the sources keep the model where it was.

    Returns
    -------
    Predictor
        The tuned model.

    Raises
    ------
    ValueError
        If there is rehearsal without sources.

    References
    ----------
    Robins, "Catastrophic Forgetting, Rehearsal and Pseudorehearsal", Connection Science 1995.
    """
    if rehearsal and not sources:
        raise ValueError(
            f"sources must have clips where rehearsal is above 0, not none with {rehearsal}: call "
            "fit(sources) first, or set rehearsal = 0"
        )
    shots = len(support) / int(support.classes.sum())
    share = rehearsal / (shots + rehearsal)
    draw = torch.Generator().manual_seed(0)

    body = model.body
    with torch.no_grad():
        support = heard(model, support)

    def loss(tuned: Parameters, rows: Tensor) -> Tensor:
        own = task_loss(body, tuned, support[rows])
        if not share:
            return own
        with torch.no_grad():
            old = heard(model, _draw_evenly(sources, REHEARSED, draw))
        scores = functional_call(body, tuned, (flatten_tasks(old.modalities),))
        scores = scores.unflatten(0, old.targets.shape)
        known = cross_entropy(scores, old.targets, old.classes).mean()
        return (1 - share) * own + share * known

    tuned = fine_tune(loss, adaptable(body), len(support), steps=steps, rate=rate)
    return predictor(model, tuned, support.classes)


def _draw_evenly(sources: Sequence[Batch], clips: int, draw: torch.Generator) -> Batch:
    """Return a stack of equally many clips per source, drawn with replacement, about ``clips``."""
    each = max(clips // len(sources), 1)
    return stack_batches(
        [source[torch.randint(len(source), (each,), generator=draw)] for source in sources]
    )


def tune_head(
    model: Model,
    support: Batch,
    loss: Callable[[Tensor, Tensor, Tensor], Tensor],
    *,
    steps: int,
    rate: float,
    cycle: str = "paper",
    anew: bool = False,
    enlarge: Callable[[Batch], Batch] | None = None,
) -> Predictor:
    """Fine-tune the head after a frozen backbone, whose embeddings are computed once.

    Parameters
    ----------
    model : Model
        Where to start; not changed.
    support : Batch
        Labelled clips of the new language.
    loss : callable
        ``loss(scores, targets, classes)`` is the scalar loss of some clips.
    steps : int
        Adam steps, at least 0.
    rate : float
        Highest learning rate.
    cycle : {"paper", "released"}
        How the rate rises and falls, see ``CYCLES``.
    anew : bool
        Start from a head drawn at random instead of the trained one.
    enlarge : callable, optional
        Adds clips to the support set, which it is given as ``as_embeddings`` returns it.

    Returns
    -------
    Predictor
        The model with the tuned head.
    """
    support = as_embeddings(model, support)
    if enlarge is not None:
        support = enlarge(support)
    embeddings = support.modalities["audio"].mean()

    def head_loss(tuned: Parameters, rows: Tensor) -> Tensor:
        scores = functional_call(model.head, tuned, (embeddings[rows],))
        return loss(scores, support.targets[rows], support.classes)

    start = adaptable(_drawn_anew(model.head) if anew else model.head)
    tuned = fine_tune(head_loss, start, len(support), steps=steps, rate=rate, cycle=cycle)
    whole = {f"head.{name}": value for name, value in tuned.items()}
    return predictor(model, whole, support.classes)


def as_embeddings(model: Model, batch: Batch) -> Batch:
    """Return the clips with their embedding as the only frame of the only modality, "audio"."""
    with torch.no_grad():
        vectors = embed(model, batch).unsqueeze(1)
    mask = torch.ones(vectors.shape[:2], dtype=torch.bool, device=vectors.device)
    return replace(batch, modalities={"audio": Padded(vectors, mask)})


def _drawn_anew(head: nn.Module) -> nn.Module:
    """Return a copy of a head with initial parameters, the same ones on every device."""
    device, head = device_of(head), copy.deepcopy(head).cpu()
    with torch.random.fork_rng(devices=generators(device)):
        torch.manual_seed(0)
        for layer in head.modules():
            reset = getattr(layer, "reset_parameters", None)
            if reset is not None:
                reset()
    return head.to(device)
