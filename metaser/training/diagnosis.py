"""Find faults of a model or method on one episode, before a long training."""

import copy
import logging
from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn

from metaser.batch import Batch, EpisodeBatch, Padded
from metaser.contracts import LearningMethod, model_of
from metaser.machine import device_of, generators
from metaser.model import Model

log = logging.getLogger(__name__)


def diagnose(method: nn.Module, episode: EpisodeBatch) -> None:
    """Take the gradient of one loss on a copy of the method; refuse a method that cannot learn.

    Parameters that receive no gradient are named in the log; they do no harm.

    Parameters
    ----------
    method : nn.Module
        A method that learns, see ``contracts.LearningMethod``; not changed.
    episode : EpisodeBatch
        An episode of the training.

    Raises
    ------
    ValueError
        If the loss does not depend on the method's parameters, or the embeddings not on the
        backbone's; or if a layer lacks the second derivative that the method needs. The message
        names the layer.
    """
    method = copy.deepcopy(method)
    _check_backbone(method, episode)
    learnt = {name: value for name, value in method.named_parameters() if value.requires_grad}
    with torch.random.fork_rng(devices=generators(device_of(method))):
        try:
            loss = cast(LearningMethod, method).loss(episode)
            if not loss.requires_grad:
                raise ValueError(
                    f"the loss of {type(method).__name__} must depend on a parameter that learns, "
                    "but does not depend on any: thaw parameters, and do without detach() and "
                    "no_grad() in forward"
                )
            loss.backward()
        except RuntimeError as error:
            _name_layers(method, episode, error)
            raise
    used = {name for name, value in learnt.items() if value.grad is not None and value.grad.any()}
    unused = sorted(learnt.keys() - used)
    if unused:
        log.warning("parameters that receive no gradient: %s", ", ".join(unused))


def _check_backbone(method: nn.Module, episode: EpisodeBatch) -> None:
    """Refuse a backbone whose embeddings depend on none of its parameters."""
    model = model_of(method)
    if not isinstance(model, Model):
        return
    backbone = model.backbone
    learnt = [value for value in backbone.parameters() if value.requires_grad]
    if not learnt:
        return
    with torch.random.fork_rng(devices=generators(device_of(method))):
        total = model.embed(episode.support.modalities).square().sum()
    if total.requires_grad:
        slopes = torch.autograd.grad(total, learnt, allow_unused=True)
        if any(slope is not None for slope in slopes):
            return
    names = [name for name, value in backbone.named_parameters() if value.requires_grad]
    raise ValueError(
        f"the output of {type(backbone).__name__} must depend on its parameters "
        f"({', '.join(names)}), but does not: use them in forward, without detach() or no_grad()"
    )


def _name_layers(method: nn.Module, episode: EpisodeBatch, error: RuntimeError) -> None:
    """Raise an error that names the layers without second derivative, if there are any."""
    model = model_of(method)
    lacking = [] if model is None else layers_without_second_derivative(model, episode.support)
    if lacking:
        raise ValueError(
            f"second order needs layers with a second derivative, but there is no second "
            f"derivative in {', '.join(lacking)}: set second_order = false, or write the layer "
            f"with differentiable operations ({error})"
        ) from error


def layers_without_second_derivative(model: nn.Module, batch: Batch) -> list[str]:
    """Return the innermost modules whose gradient cannot be differentiated.

    Parameters
    ----------
    model : nn.Module
        Takes the modalities of a batch; not changed.
    batch : Batch
        Clips to run it on.

    Returns
    -------
    list of str
        Name and class of each, such as "backbone.0 (Cube)".
    """
    model = copy.deepcopy(model)
    calls: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {}
    handles = [
        module.register_forward_pre_hook(
            lambda _, args, kwargs, name=name: calls.setdefault(name, (args, kwargs)),
            with_kwargs=True,
        )
        for name, module in model.named_modules()
    ]
    with torch.no_grad():
        model(batch.modalities)
    for handle in handles:
        handle.remove()
    modules = {name: model.get_submodule(name) for name in calls}
    lacking = {name: m for name, m in modules.items() if not _twice(m, *calls[name])}

    def holds_another(module: nn.Module) -> bool:
        return any(m is not module and m in lacking.values() for m in module.modules())

    return [
        f"{name or 'model'} ({type(module).__name__})"
        for name, module in lacking.items()
        if not holds_another(module)
    ]


def _twice(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Return whether the gradient of a module's output can be differentiated."""
    inputs = [
        a.detach().requires_grad_() if isinstance(a, Tensor) and a.is_floating_point() else a
        for a in args
    ]
    with torch.enable_grad():
        outputs = _tensors(module(*inputs, **kwargs))
        values = [a for a in inputs if isinstance(a, Tensor) and a.requires_grad]
        values += [value for value in module.parameters() if value.requires_grad]
        total = sum(output.square().sum() for output in outputs if output.requires_grad)
        if not values or not isinstance(total, Tensor):
            return True
        try:
            first = torch.autograd.grad(total, values, create_graph=True, allow_unused=True)
            square = sum(g.square().sum() for g in first if g is not None)
            if isinstance(square, Tensor) and square.requires_grad:
                square.backward()  # grad() would not visit a node that only raises the error
        except RuntimeError:
            return False
    return True


def _tensors(output: Padded | Tensor | Iterable[Any]) -> list[Tensor]:
    """Return the tensors in a module's output; a recurrent layer, for one, returns a tuple."""
    if isinstance(output, Padded):
        return [output.values]
    values = [output] if isinstance(output, Tensor) else output
    return [value for value in values if isinstance(value, Tensor)]
