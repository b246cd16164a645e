"""Adapting a model's parameters by gradient steps; the only place that knows second derivatives."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call

from metaser.batch import Batch, Padded
from metaser.losses import cross_entropy

Parameters = dict[str, Tensor]
Predictor = Callable[[dict[str, Padded]], Tensor]


def support_loss(model: nn.Module, parameters: Parameters, batch: Batch) -> Tensor:
    """Cross-entropy of ``batch`` under the model with other parameters put in place."""
    scores = functional_call(model, parameters, (batch.modalities,))
    return cross_entropy(scores, batch.targets, batch.classes)


def gradient_descent(
    model: nn.Module,
    parameters: Parameters,
    rates: Parameters,
    support: Batch,
    steps: int,
    second_order: bool = False,
) -> Parameters:
    """Return adapted copies of ``parameters``; the model itself is not changed.

    Parameters
    ----------
    model : nn.Module
        Called with its other parameters as they are.
    parameters : dict of str to Tensor
        The parameters that adapt, by their names in the model.
    rates : dict of str to Tensor
        Step size of each, broadcastable to its parameter.
    support : Batch
        The labelled clips to adapt to.
    steps : int
        Full-batch gradient steps, at least 0.
    second_order : bool
        Keep the graph through the gradients, so that the result can be differentiated exactly.
        Otherwise the gradients count as constants (first-order approximation), while the result
        still depends on the initial parameters and on the rates.

    References
    ----------
    Finn, Abbeel, Levine, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks",
    ICML 2017, algorithm 1.
    """
    with torch.enable_grad():
        for _ in range(steps):
            loss = support_loss(model, parameters, support)
            gradients = torch.autograd.grad(
                loss, list(parameters.values()), create_graph=second_order, materialize_grads=True
            )
            parameters = {
                name: value - rates[name] * gradient
                for (name, value), gradient in zip(parameters.items(), gradients)
            }
    return parameters


def fine_tune(
    loss: Callable[[Parameters, Tensor], Tensor],
    parameters: Parameters,
    clips: int,
    steps: int,
    rate: float,
    batch_size: int = 64,
    seed: int = 0,
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
        Highest learning rate. It runs in triangles between a fifth of this and this, like the
        cyclic rate (2e-5 to 1e-4) of the MetaSER paper's baselines: eight steps up, eight down.
    batch_size : int
        Clips a step, at most.
    seed : int
        Chooses the order of the clips.
    """
    tuned = {name: value.detach().clone().requires_grad_() for name, value in parameters.items()}
    optimiser = torch.optim.Adam(tuned.values(), lr=rate)
    cycle = torch.optim.lr_scheduler.CyclicLR(
        optimiser, base_lr=rate / 5, max_lr=rate, step_size_up=8, cycle_momentum=False
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
            cycle.step()
    return tuned


def tune_all(model: nn.Module, support: Batch, steps: int, rate: float) -> Predictor:
    """Fine-tune all parameters on a support set by ``fine_tune``."""

    def loss(tuned: Parameters, rows: Tensor) -> Tensor:
        return support_loss(model, tuned, support[rows])

    tuned = fine_tune(loss, dict(model.named_parameters()), len(support), steps, rate)
    return predictor(model, tuned, support.classes)


def tune_head(
    model: nn.Module,
    support: Batch,
    loss: Callable[[Tensor, Tensor, Tensor], Tensor],
    steps: int,
    rate: float,
) -> Predictor:
    """Fine-tune the head after a frozen backbone, whose embeddings are computed once.

    ``loss(scores, targets, classes)`` is the scalar loss; the rest is as in ``fine_tune``.
    """
    with torch.no_grad():
        embeddings = model.backbone(**support.modalities)

    def head_loss(tuned: Parameters, rows: Tensor) -> Tensor:
        scores = functional_call(model.head, tuned, (embeddings[rows],))
        return loss(scores, support.targets[rows], support.classes)

    tuned = fine_tune(head_loss, dict(model.head.named_parameters()), len(support), steps, rate)
    whole = {f"head.{name}": value for name, value in tuned.items()}
    return predictor(model, whole, support.classes)


def predictor(model: nn.Module, parameters: Parameters, classes: Tensor) -> Predictor:
    """A function from modalities to scores (clips, classes) under adapted parameters.

    Classes that the task does not have score minus infinity.
    """
    frozen = {name: value.detach() for name, value in parameters.items()}

    @torch.no_grad()
    def predict(modalities: dict[str, Padded]) -> Tensor:
        scores = functional_call(model, frozen, (modalities,))
        return scores.masked_fill(~classes, float("-inf"))

    return predict
