"""Adapting a model's parameters by gradient steps; the only place that knows second derivatives.

Everything here takes one task or a stack of them (``metaser.batch.stack``): tensors of a stack have
a leading dimension of tasks, and so have the parameters that adapt.
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
Rates = dict[str, Tensor] | dict[str, float]
Inputs = dict[str, Padded] | Tensor
Predictor = Callable[[dict[str, Padded]], Tensor]


def adaptable(module: nn.Module) -> Parameters:
    """Parameters that are not frozen."""
    return {name: value for name, value in module.named_parameters() if value.requires_grad}


def check_support(support: Batch) -> None:
    """Refuse a support set of one class, or of equal ratings, from which nothing can be learnt."""
    if support.targets.is_floating_point():
        if all(len(own[~own.isnan()].unique()) < 2 for own in support.targets.T):
            raise ValueError(
                f"the {len(support)} clips of the support set are all rated alike or not at all; "
                "adapting needs clips that are rated differently"
            )
        return
    shown = support.targets.unique().tolist()
    if len(shown) < 2:
        raise ValueError(
            f"the support set has {len(support)} clips of one class (index {shown}); adapting "
            "needs labelled clips of at least two classes"
        )


def check_steps(**steps: int) -> None:
    """Refuse a negative number of steps; 0 leaves the parameters as they are."""
    for name, value in steps.items():
        if value < 0:
            raise ValueError(f"{name} must be at least 0, not {value}")


def is_stack(batch: Batch) -> bool:
    """Whether a batch holds the clips of several tasks."""
    return batch.classes.dim() == 2


def expand(parameters: Parameters, batch: Batch) -> Parameters:
    """Views of the parameters as the start of an inner loop, for a stack one a task.

    Inner gradients stop at the views, also where something else in the inner loss, such as class
    means of embeddings, depends on the same parameters.
    """
    tasks = (len(batch.targets),) if is_stack(batch) else ()
    with torch.enable_grad():
        return {name: value.expand((*tasks, *value.shape)) for name, value in parameters.items()}


def call(module: nn.Module, parameters: Parameters, inputs: Inputs, stacked: bool) -> Tensor:
    """Output of a module with other parameters put in place.

    Parameters
    ----------
    module : nn.Module
        A model, or the part of it that takes ``inputs``; not changed.
    parameters : dict of str to Tensor
        By their names in the module, which keeps its own for the rest.
    inputs : dict of str to Padded, or Tensor
        Modalities for a model, embeddings (clips, dim) for a head.
    stacked : bool
        Inputs and parameters have a leading dimension of tasks: each task's clips meet the task's
        own parameters.
    """
    if not stacked:
        return functional_call(module, parameters, (inputs,))
    if isinstance(inputs, Tensor):
        return _vmap(lambda own, x: functional_call(module, own, (x,)), module)(parameters, inputs)
    if not parameters:
        return module(flatten_tasks(inputs)).unflatten(0, _tasks_and_clips(inputs))

    def one_task(own: Parameters, values: Parameters, masks: Parameters) -> Tensor:
        modalities = {name: Padded(values[name], masks[name]) for name in values}
        return functional_call(module, own, (modalities,))

    values = {name: padded.values for name, padded in inputs.items()}
    masks = {name: padded.mask for name, padded in inputs.items()}
    return _vmap(one_task, module)(parameters, values, masks)


def _vmap(function: Callable[..., Tensor], module: nn.Module) -> Callable[..., Tensor]:
    mapped = vmap(function, randomness="different")

    def stacked(*arguments: Any) -> Tensor:
        with own_kernels(module):
            return mapped(*arguments)

    return stacked


def flatten_tasks(modalities: dict[str, Padded]) -> dict[str, Padded]:
    """Clips of all tasks as one large batch."""
    return {name: padded.map(lambda x: x.flatten(0, 1)) for name, padded in modalities.items()}


def _tasks_and_clips(modalities: dict[str, Padded]) -> torch.Size:
    return next(iter(modalities.values())).mask.shape[:2]


def embed(model: Model, batch: Batch) -> Tensor:
    """Embeddings (..., clips, dim) under the model's own backbone, which all tasks share."""
    if not is_stack(batch):
        return model.embed(batch.modalities)
    return model.embed(flatten_tasks(batch.modalities)).unflatten(0, batch.targets.shape)


def heard(model: Model, batch: Batch) -> Batch:
    """The clips as ``model.body`` takes them: a front end that does not adapt has done its work."""
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
    """Length of the model's embeddings."""
    return cast(int, model.backbone.dim)


def prototypes(embeddings: Tensor, support: Batch) -> Tensor:
    """Class means (..., classes, dim) of embeddings (..., clips, dim); 0 where there is no clip."""
    members = functional.one_hot(support.targets, support.classes.shape[-1]).to(embeddings.dtype)
    counts = members.sum(dim=-2).clamp(min=1).unsqueeze(-1)
    return members.transpose(-1, -2) @ embeddings / counts


def present_classes(support: Batch) -> Tensor:
    """(..., classes) bool: which classes have a clip in the support set."""
    return functional.one_hot(support.targets, support.classes.shape[-1]).any(dim=-2)


def task_loss(
    module: nn.Module, parameters: Parameters, batch: Batch, inputs: Inputs | None = None
) -> Tensor:
    """Loss of a batch under other parameters: a scalar, or (tasks,) for a stack.

    Cross-entropy of classes; of ratings the CCC loss, see ``losses.ccc_loss``.
    ``inputs`` stands in for the batch's modalities where ``module`` is a head.
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
    second_order: bool = False,
    checkpoint: bool = False,
    module: nn.Module | None = None,
) -> Iterator[Parameters]:
    """Take gradient steps; yield the adapted parameters after each.

    Parameters
    ----------
    loss : callable
        From parameters to a scalar, or to one loss a task where they are stacked.
    parameters : dict of str to Tensor
        Where to start; not changed. Those that ``loss`` does not use stay as they are.
    rates : sequence of dict of str to Tensor or float
        One entry a step: the step size of each parameter, as a tensor broadcastable to it.
    second_order : bool
        Keep the graph through the gradients, so that the result can be differentiated exactly.
        Otherwise the gradients count as constants (first-order approximation), while the result
        still depends on the initial parameters and on the rates.
    checkpoint : bool
        Keep only the parameters of each step and compute the rest again when it is differentiated:
        the same gradient in more time, and memory that hardly grows with the steps.
    module : nn.Module, optional
        What ``loss`` runs, see ``own_kernels``.

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

    if not parameters:  # everything is frozen
        rates = ()
    parameters = {  # whoever calls without gradients has made some that have none
        name: value if value.requires_grad else value.detach().requires_grad_()
        for name, value in parameters.items()
    }
    for own in rates:
        with torch.enable_grad():
            if checkpoint and second_order:
                parameters = checkpointed(step, parameters, own, use_reentrant=False)
            else:
                parameters = step(parameters, own)
        yield parameters


def _gradient_step(value: Tensor, rate: Tensor | float, gradient: Tensor) -> Tensor:
    """A gradient step in one operation."""
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
    """Return the parameters after the last step of ``descend``."""
    path = descend(loss, parameters, rates, second_order, checkpoint, module)
    return deque(chain([parameters], path), maxlen=1).pop()


def _gradients(
    loss: Callable[[Parameters], Tensor],
    parameters: Parameters,
    second_order: bool,
    module: nn.Module | None,
) -> Parameters:
    with own_kernels(module) if second_order else nullcontext():
        total = loss(parameters).sum()
        values = list(parameters.values())
        gradients = torch.autograd.grad(
            total, values, create_graph=second_order, materialize_grads=True
        )
    return dict(zip(parameters, gradients))


@contextmanager
def own_kernels(module: nn.Module | None = None) -> Iterator[None]:
    """Keep to kernels that can be stacked and differentiated twice.

    Fused attention and cuDNN's recurrent layers cannot; ``backbones.recurrence`` heeds this, too.
    A module without recurrent layers keeps cuDNN, without which convolutions on a GPU take many
    times as long.
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
    """A predictor that is a model with parameters of its own, so that it can be kept in a file.

    Attributes
    ----------
    model : nn.Module
        With the adapted parameters in place.
    classes : Tensor
        (classes,) bool; which classes the task has.
    """

    model: nn.Module
    classes: Tensor

    @torch.no_grad()
    def __call__(self, modalities: dict[str, Padded]) -> Tensor:
        """Return scores (clips, classes); classes that the task does not have score -infinity."""
        return self.model(modalities).masked_fill(~self.classes, float("-inf"))


def predictor(model: nn.Module, parameters: Parameters, classes: Tensor) -> Adapted:
    """The model under adapted parameters; it stays, whatever becomes of the method."""
    model = copy.deepcopy(model).eval()
    model.load_state_dict(
        {name: value.detach() for name, value in parameters.items()}, strict=False
    )
    return Adapted(model, classes)
