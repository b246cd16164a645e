"""What adapting changes inside a network: the parameters and the output of each layer."""

import copy
from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.func import functional_call

from metaser.batch import EpisodeBatch, Padded
from metaser.contracts import Method, model_of
from metaser.methods.inner_loop import Adapted


def cka(x: Tensor, y: Tensor) -> float:
    """Return the linear centred kernel alignment of two representations of the same clips.

    Parameters
    ----------
    x, y : Tensor
        (clips, channels); the numbers of channels may differ.

    Returns
    -------
    float
        In [0, 1]; 1 if they are equal up to rotation, scale and offset. NaN if one of them is the
        same for all clips.

    References
    ----------
    Kornblith, Norouzi, Lee, Hinton, "Similarity of Neural Network Representations Revisited",
    ICML 2019, equation 5 with linear kernels.
    """
    grams = []
    for side in (x, y):
        centred = side.double() - side.double().mean(dim=0)
        grams.append(centred @ centred.T)
    shared = (grams[0] * grams[1]).sum()
    return float(shared / (grams[0].norm() * grams[1].norm()))


def relative_change(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the relative change of each layer, ‖after − before‖ / ‖before‖.

    Parameters
    ----------
    before, after : mapping of str to Tensor
        Parameters by name, such as ``layer.weight``. Those that ``after`` lacks did not change.

    Returns
    -------
    dict of str to float
        The change by layer, in the order of ``before``; NaN for a layer that was all zero.
    """
    sums: dict[str, list[float]] = {}
    for name, value in before.items():
        layer = sums.setdefault(name.rpartition(".")[0], [0.0, 0.0])
        layer[0] += float((after.get(name, value) - value).double().square().sum())
        layer[1] += float(value.double().square().sum())
    return {
        name: (moved / size) ** 0.5 if size else float("nan")
        for name, (moved, size) in sums.items()
    }


@torch.no_grad()
def activations(
    model: nn.Module, parameters: Mapping[str, Tensor], modalities: dict[str, Padded]
) -> dict[str, Tensor]:
    """Return the output of every layer that has parameters of its own, one vector per clip.

    Parameters
    ----------
    model : nn.Module
        Not changed.
    parameters : mapping of str to Tensor
        Used in place of the model's own, by name.
    modalities : dict of str to Padded
        The clips.

    Returns
    -------
    dict of str to Tensor
        (clips, outputs) by layer, with all frames of a clip in one row. Layers whose output is not
        one tensor are left out.
    """
    model = copy.deepcopy(model).eval()
    outputs: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, object, object], None]:
        def hook(_module: nn.Module, _inputs: object, output: object) -> None:
            if isinstance(output, Tensor):
                outputs[name] = output.flatten(1)

        return hook

    for name, module in model.named_modules():
        if next(module.parameters(recurse=False), None) is not None:
            module.register_forward_hook(keep(name))
    functional_call(model, dict(parameters), (modalities,))
    return outputs


def probe(method: Method, episode: EpisodeBatch) -> pd.DataFrame:
    """Adapt to an episode and compare each layer before and after.

    Parameters
    ----------
    method : Method
        A trained method that adapts the parameters of a model; not changed.
    episode : EpisodeBatch
        The method adapts to the support set; outputs are compared on the query clips.

    Returns
    -------
    DataFrame
        One row per layer, from the input to the output: ``layer``, ``change`` (see
        ``relative_change``) and ``cka``.

    Raises
    ------
    ValueError
        If the method adapts in another way.
    """
    model, clips = model_of(method), episode.query.modalities
    adapted = method.adapt(episode.support)
    if model is None or not isinstance(adapted, Adapted):
        raise ValueError(
            f"{type(method).__name__} must adapt the parameters of a model, not keep the clips: "
            "look into another method, such as metaser"
        )
    before = {name: value.detach() for name, value in model.named_parameters()}
    after = {name: value.detach() for name, value in adapted.model.named_parameters()}
    changes = relative_change(before, after)
    outputs = activations(model, before, clips)
    adapted_outputs = activations(model, after, clips)
    rows = [
        (name, change, cka(outputs[name], adapted_outputs[name]) if name in outputs else np.nan)
        for name, change in changes.items()
    ]
    return pd.DataFrame(rows, columns=["layer", "change", "cka"])
