"""The inner loop: gradient steps that adapt a model's parameters, with second derivatives.

No other module knows second derivatives. Everything here takes one task, or a stack of tasks (see
``metaser.batch.stack``). The tensors of a stack have a leading dimension of tasks, and so have the
parameters that adapt.
"""

import copy
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint as checkpointed

from metaser.batch import Batch, Padded
from metaser.losses import ccc_loss, cross_entropy
from metaser.model import Model

Parameters = dict[str, Tensor]
"""Parameters by name."""

Rates = dict[str, Tensor] | dict[str, float]
"""Step sizes by the name of the parameter."""

Inputs = dict[str, Padded] | Tensor
"""The modalities that a model takes, or the embeddings that a head takes."""


def adaptable(module: nn.Module) -> Parameters:
    """Return the parameters that are not frozen, by name."""
    return {name: value for name, value in module.named_parameters() if value.requires_grad}


def check_support(support: Batch) -> None:
    """Refuse a support set that teaches nothing: one class only, or ratings that are all equal.

    Raises
    ------
    ValueError
        If it teaches nothing.
    """
    if support.targets.is_floating_point():
        if all(len(rated[~rated.isnan()].unique()) < 2 for rated in support.targets.T):
            raise ValueError(
                "the support set must have clips that are rated differently, not "
                f"{len(support)} clips that are all rated alike or not at all: add clips with "
                "other ratings"
            )
        return
    present = support.targets.unique().tolist()
    if len(present) < 2:
        raise ValueError(
            "the support set must have clips of at least 2 classes, not "
            f"{len(support)} clips of one class (index {present}): add clips of another class"
        )


def check_steps(**steps: int) -> None:
    """Refuse a negative number of steps; 0 leaves the parameters as they are.

    Raises
    ------
    ValueError
        If a number is below 0; the message names it.
    """
    for name, value in steps.items():
        if value < 0:
            raise ValueError(f"{name} must be at least 0, not {value}: take 0 for no steps")


def is_stack(batch: Batch) -> bool:
    """Return whether a batch is a stack, with the clips of several tasks."""
    return batch.classes.dim() == 2


def expand(parameters: Parameters, batch: Batch) -> Parameters:
    """Return views of the parameters, from which an inner loop starts; for a stack, one per task.

    Inner gradients stop at the views. So nothing else in the inner loss that depends on the same
    parameters, such as the class means of embeddings, adds to them.
    """
    tasks = (len(batch.targets),) if is_stack(batch) else ()
    with torch.enable_grad():
        return {name: value.expand((*tasks, *value.shape)) for name, value in parameters.items()}


def call(module: nn.Module, parameters: Parameters, inputs: Inputs, stacked: bool) -> Tensor:
    """Return the output of a module with other parameters in place of its own.

    Parameters
    ----------
    module : nn.Module
        A model, or the part of it that takes ``inputs``; not changed.
    parameters : dict of str to Tensor
        By their names in the module. It keeps its own parameters where there is none.
    inputs : dict of str to Padded, or Tensor
        Modalities for a model; embeddings (clips, dim) for a head.
    stacked : bool
        Whether inputs and parameters have a leading dimension of tasks. Each task's clips then run
        with the task's own parameters.

    Returns
    -------
    Tensor
        (clips, ...) for one task, (tasks, clips, ...) for a stack.
    """
    if not stacked:
        return functional_call(module, parameters, (inputs,))
    if isinstance(inputs, Tensor):
        return _vmap(lambda own, rows: functional_call(module, own, (rows,)), module)(
            parameters, inputs
        )
    if not parameters:
        return module(flatten_tasks(inputs)).unflatten(0, _tasks_and_clips(inputs))

    def one_task(own: Parameters, values: Parameters, masks: Parameters) -> Tensor:
        modalities = {name: Padded(values[name], masks[name]) for name in values}
        return functional_call(module, own, (modalities,))

    values = {name: padded.values for name, padded in inputs.items()}
    masks = {name: padded.mask for name, padded in inputs.items()}
    return _vmap(one_task, module)(parameters, values, masks)


def _vmap(function: Callable[..., Tensor], module: nn.Module) -> Callable[..., Tensor]:
    """Return a function that runs once per task, with kernels that can be stacked."""
    mapped = vmap(function, randomness="different")

    def stacked(*arguments: Any) -> Tensor:
        with own_kernels(module):
            return mapped(*arguments)

    return stacked


def flatten_tasks(modalities: dict[str, Padded]) -> dict[str, Padded]:
    """Return the clips of all tasks as one large batch (tasks x clips, ...)."""
    return {name: padded.map(lambda x: x.flatten(0, 1)) for name, padded in modalities.items()}


def _tasks_and_clips(modalities: dict[str, Padded]) -> torch.Size:
    return next(iter(modalities.values())).mask.shape[:2]


def embed(model: Model, batch: Batch) -> Tensor:
    """Return embeddings (..., clips, dim) by the model's own backbone, which all tasks share."""
    if not is_stack(batch):
        return model.embed(batch.modalities)
    return model.embed(flatten_tasks(batch.modalities)).unflatten(0, batch.targets.shape)


def heard(model: Model, batch: Batch) -> Batch:
    """Return the clips as ``model.body`` takes them.

    Where the front end does not adapt, their audio is the output of the front end.
    """
    if model.body is model:
        return batch
    audio = batch.modalities["audio"]
    if is_stack(batch):
        flat = model.hear(audio.map(lambda x: x.flatten(0, 1)))
        audio = flat.map(lambda x: x.unflatten(0, batch.targets.shape))
    else:
        audio = model.hear(audio)
    return replace(batch, modalities={**batch.modalities, "audio": audio})


def embedding_dim(model: Model) -> int:
    """Return how many numbers an embedding of the model has."""
    return cast(int, model.backbone.dim)


def prototypes(embeddings: Tensor, support: Batch) -> Tensor:
    """Return the class means (..., classes, dim) of embeddings (..., clips, dim).

    The mean of a class without a clip is 0.
    """
    members = functional.one_hot(support.targets, support.classes.shape[-1]).to(embeddings.dtype)
    counts = members.sum(dim=-2).clamp(min=1).unsqueeze(-1)
    return members.transpose(-1, -2) @ embeddings / counts


def present_classes(support: Batch) -> Tensor:
    """Return which classes have a clip in the support set, (..., classes) bool."""
    return functional.one_hot(support.targets, support.classes.shape[-1]).any(dim=-2)


def task_loss(
    module: nn.Module, parameters: Parameters, batch: Batch, inputs: Inputs | None = None
) -> Tensor:
    """Return the loss of a batch under other parameters.

    It is the cross-entropy of classes, or the CCC loss of ratings (``losses.ccc_loss``).

    Parameters
    ----------
    module : nn.Module
        A model, or its head.
    parameters : dict of str to Tensor
        By their names in the module.
    batch : Batch
        Labelled clips, or a stack of them.
    inputs : dict of str to Padded, or Tensor, optional
        What the module takes instead of the batch's modalities: embeddings, for a head.

    Returns
    -------
    Tensor
        A scalar, or (tasks,) for a stack.
    """
    inputs = batch.modalities if inputs is None else inputs
    scores = call(module, parameters, inputs, is_stack(batch))
    if batch.targets.is_floating_point():
        return ccc_loss(scores, batch.targets)
    return cross_entropy(scores, batch.targets, batch.classes)


def descend(
    loss: Callable[[Parameters], Tensor],
    parameters: Parameters,
    rates: Sequence[Rates],
    *,
    second_order: bool = False,
    checkpoint: bool = False,
    module: nn.Module | None = None,
) -> Iterator[Parameters]:
    """Take gradient steps and yield the adapted parameters after each.

    Parameters
    ----------
    loss : callable
        From parameters to a scalar, or to one loss per task where they are stacked.
    parameters : dict of str to Tensor
        Where to start; not changed. Those that ``loss`` does not use stay as they are.
    rates : sequence of dict of str to Tensor or float
        One entry per step: the step size of each parameter, a number or a tensor that broadcasts
        to the parameter.
    second_order : bool
        Keep the graph through the gradients, so that the result can be differentiated exactly.
        Otherwise the gradients count as constants (first-order approximation). The result still
        depends on the initial parameters and on the rates.
    checkpoint : bool
        With ``second_order``, keep only the parameters of each step and compute the rest again in
        the backward pass. The gradient is the same. It takes more time, but memory hardly grows
        with the number of steps.
    module : nn.Module, optional
        What ``loss`` runs, see ``own_kernels``.

    Yields
    ------
    dict of str to Tensor
        The parameters after a step, with the names and shapes of ``parameters``.

    References
    ----------
    Finn, Abbeel, Levine, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks",
    ICML 2017, algorithm 1.
    """

    def step(parameters: Parameters, rates: Rates) -> Parameters:
        gradients = _gradients(loss, parameters, second_order, module)
        return {
            name: _gradient_step(value, rates[name], gradients[name])
            for name, value in parameters.items()
        }

    if not parameters:  # everything is frozen, and a step leaves it as it is
        yield from [parameters] * len(rates)
        return
    parameters = {  # parameters that were made under no_grad need a gradient here
        name: value if value.requires_grad else value.detach().requires_grad_()
        for name, value in parameters.items()
    }
    for step_rates in rates:
        with torch.enable_grad():
            if checkpoint and second_order:
                parameters = checkpointed(step, parameters, step_rates, use_reentrant=False)
            else:
                parameters = step(parameters, step_rates)
        yield parameters


def _gradient_step(value: Tensor, rate: Tensor | float, gradient: Tensor) -> Tensor:
    """Take a gradient step in one operation."""
    if isinstance(rate, Tensor):
        return torch.addcmul(value, rate, gradient, value=-1)
    return torch.sub(value, gradient, alpha=rate)


def gradient_descent(
    loss: Callable[[Parameters], Tensor],
    parameters: Parameters,
    rates: Sequence[Rates],
    *,
    second_order: bool = False,
    checkpoint: bool = False,
    module: nn.Module | None = None,
) -> Parameters:
    """Return the parameters after the last step of ``descend``, whose arguments it takes."""
    path = descend(
        loss, parameters, rates, second_order=second_order, checkpoint=checkpoint, module=module
    )
    return deque(chain([parameters], path), maxlen=1).pop()


def _gradients(
    loss: Callable[[Parameters], Tensor],
    parameters: Parameters,
    second_order: bool,
    module: nn.Module | None,
) -> Parameters:
    """Return the gradient of the loss in each parameter; 0 where the loss does not use it."""
    with own_kernels(module) if second_order else nullcontext():
        total = loss(parameters).sum()
        values = list(parameters.values())
        gradients = torch.autograd.grad(
            total, values, create_graph=second_order, materialize_grads=True
        )
    return dict(zip(parameters, gradients))


@contextmanager
def own_kernels(module: nn.Module | None = None) -> Iterator[None]:
    """Use only kernels that can be stacked and differentiated twice.

    Fused attention and the recurrent layers of cuDNN cannot. ``backbones.recurrence`` follows this
    setting, too.

    Parameters
    ----------
    module : nn.Module, optional
        What will run. Without recurrent layers it keeps cuDNN, because convolutions on a GPU take
        many times as long without it. If not given, cuDNN is off.
    """
    if torch.compiler.is_compiling():
        yield
        return
    recurs = module is None or any(isinstance(m, nn.RNNBase) for m in module.modules())
    cudnn = torch.backends.cudnn.flags(enabled=False) if recurs else nullcontext()
    with sdpa_kernel(SDPBackend.MATH), cudnn:
        yield


@dataclass(frozen=True, eq=False)
class Adapted:
    """A predictor that is a model with adapted parameters, so that it can be kept in a file.

    Attributes
    ----------
    model : nn.Module
        The model, with the adapted parameters.
    classes : Tensor
        (classes,) bool; True for a class that the task has.
    evidence : float or None
        See ``contracts.evidence_of``.
    """

    model: nn.Module
    classes: Tensor
    evidence: float | None = None

    @torch.no_grad()
    def __call__(self, modalities: dict[str, Padded]) -> Tensor:
        """Return scores (clips, classes); a class that the task does not have scores -infinity."""
        return self.model(modalities).masked_fill(~self.classes, float("-inf"))


def predictor(model: nn.Module, parameters: Parameters, classes: Tensor) -> Adapted:
    """Return a copy of the model with adapted parameters, which no later training changes.

    Parameters
    ----------
    model : nn.Module
        Not changed.
    parameters : dict of str to Tensor
        By their names in the model, which keeps its own for the rest.
    classes : Tensor
        (classes,) bool; True for a class that the task has.
    """
    model = copy.deepcopy(model).eval()
    model.load_state_dict(
        {name: value.detach() for name, value in parameters.items()}, strict=False
    )
    return Adapted(model, classes)
