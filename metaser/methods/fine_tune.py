"""Fine-tuning by Adam: everything or the head alone, with or without rehearsal of source clips."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from metaser.batch import Batch, Padded, stack_batches
from metaser.losses import cross_entropy
from metaser.machine import device_of, generators
from metaser.methods.inner_loop import (
    Parameters,
    Predictor,
    adaptable,
    embed,
    flatten_tasks,
    heard,
    predictor,
    task_loss,
)
from metaser.model import Model

REHEARSED = 128
"""Source clips that a step of rehearsal hears."""


@dataclass(frozen=True)
class Cycle:
    """A cyclic learning rate.

    Parameters
    ----------
    lowest : float
        Lowest rate, as a share of the highest.
    half : int
        Steps from the lowest to the highest rate, and back.
    mode : {"triangular", "triangular2"}
        Keep the highest rate, or halve the distance to it after every cycle.
    """

    lowest: float
    half: int
    mode: Literal["triangular", "triangular2"] = "triangular"


CYCLES = {"paper": Cycle(1 / 5, 8), "released": Cycle(1 / 20, 2000, "triangular2")}
"""The cyclic rates of the MetaSER paper's baselines (2e-5 to 1e-4) and of its released code (1e-6
to 2e-5). Neither tells the length of a cycle: the paper's is ours, the other PyTorch's default."""


def fine_tune(
    loss: Callable[[Parameters, Tensor], Tensor],
    parameters: Parameters,
    clips: int,
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
        Clips a step, at most.
    seed : int
        Chooses the order of the clips.
    cycle : {"paper", "released"}
        How the rate runs up and down, see ``CYCLES``: by default in triangles between a fifth of
        ``rate`` and ``rate``, eight steps up, eight down.
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
    """Fine-tune all parameters on a support set by ``fine_tune``, rehearsing source clips.

    Parameters
    ----------
    model : Model
        Where to start; not changed.
    support : Batch
        Labelled clips of the new language.
    steps, rate
        See ``fine_tune``.
    sources : sequence of Batch
        Labelled clips of other tasks, which every step draws from evenly.
    rehearsal : float
        Clips a class, at least 0, that the sources count as beside the support set. The fewer clips
        the support set has, the more the sources keep the model where it was.

    References
    ----------
    Robins, "Catastrophic Forgetting, Rehearsal and Pseudorehearsal", Connection Science 1995.
    """
    if rehearsal and not sources:
        raise ValueError(f"rehearsal = {rehearsal} needs source clips: call fit(sources) first")
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

    tuned = fine_tune(loss, adaptable(body), len(support), steps, rate)
    return predictor(model, tuned, support.classes)


def _draw_evenly(sources: Sequence[Batch], clips: int, draw: torch.Generator) -> Batch:
    """A stack of as many clips of each source, drawn with replacement; about ``clips`` in all."""
    each = max(clips // len(sources), 1)
    return stack_batches(
        [source[torch.randint(len(source), (each,), generator=draw)] for source in sources]
    )


def tune_head(
    model: Model,
    support: Batch,
    loss: Callable[[Tensor, Tensor, Tensor], Tensor],
    steps: int,
    rate: float,
    cycle: str = "paper",
    anew: bool = False,
    enlarge: Callable[[Batch], Batch] | None = None,
) -> Predictor:
    """Fine-tune the head after a frozen backbone, whose embeddings are computed once.

    ``loss(scores, targets, classes)`` is the scalar loss; ``anew`` starts from a head drawn at
    random instead of the trained one; ``enlarge`` adds to the embeddings (``as_embeddings``); the
    rest is as in ``fine_tune``.
    """
    support = as_embeddings(model, support)
    if enlarge is not None:
        support = enlarge(support)
    embeddings = support.modalities["audio"].mean()

    def head_loss(tuned: Parameters, rows: Tensor) -> Tensor:
        scores = functional_call(model.head, tuned, (embeddings[rows],))
        return loss(scores, support.targets[rows], support.classes)

    start = adaptable(_drawn_anew(model.head) if anew else model.head)
    tuned = fine_tune(head_loss, start, len(support), steps, rate, cycle=cycle)
    whole = {f"head.{name}": value for name, value in tuned.items()}
    return predictor(model, whole, support.classes)


def as_embeddings(model: Model, batch: Batch) -> Batch:
    """The same clips with their embeddings as single frames, the only modality."""
    with torch.no_grad():
        vectors = embed(model, batch).unsqueeze(1)
    mask = torch.ones(vectors.shape[:2], dtype=torch.bool, device=vectors.device)
    return replace(batch, modalities={"audio": Padded(vectors, mask)})


def _drawn_anew(head: nn.Module) -> nn.Module:
    """A copy of a head with initial parameters, always the same ones, wherever it is."""
    device, head = device_of(head), copy.deepcopy(head).cpu()
    with torch.random.fork_rng(devices=generators(device)):
        torch.manual_seed(0)
        for layer in head.modules():
            reset = getattr(layer, "reset_parameters", None)
            if reset is not None:
                reset()
    return head.to(device)
