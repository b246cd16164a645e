"""Training losses."""

import math

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional


def cross_entropy(scores: Tensor, targets: Tensor, classes: Tensor) -> Tensor:
    """Mean cross-entropy over the classes that a task has.

    Parameters
    ----------
    scores : Tensor
        (..., clips, classes) logits.
    targets : Tensor
        (..., clips) class indices.
    classes : Tensor
        (..., classes) bool; the others take no part, so a corpus without anger neither learns nor
        unlearns anger.

    Returns
    -------
    Tensor
        (...), a scalar for one task; in nats, at least 0.
    """
    scores = scores.masked_fill(~classes.unsqueeze(-2), float("-inf"))
    each = functional.cross_entropy(scores.flatten(0, -2), targets.flatten(), reduction="none")
    return each.view(targets.shape).mean(dim=-1)


class _Reversal(Function):
    """Identity whose gradient is turned round."""

    @staticmethod
    def forward(context, values: Tensor, strength: float) -> Tensor:
        context.strength = strength
        return values.view_as(values)

    @staticmethod
    def backward(context, slope: Tensor) -> tuple[Tensor, None]:
        return -context.strength * slope, None


def gradient_reversal(values: Tensor, strength: float) -> Tensor:
    """Return the values as they are; their gradient is multiplied by ``-strength``.

    What comes after learns to lower its loss, what comes before learns to raise it.

    References
    ----------
    Ganin et al., "Domain-Adversarial Training of Neural Networks", JMLR 17 (2016), eq. 15-16.
    """
    return _Reversal.apply(values, strength)


def reversal_ramp(progress: float) -> float:
    """Share of the full reversal when ``progress`` in [0, 1] of the training is over.

    It grows from 0 to 1 as 2 / (1 + exp(-10 progress)) - 1, so that the adversaries have learnt
    something before they are listened to (Ganin et al. 2016, section 5.2.2).
    """
    return 2 / (1 + math.exp(-10 * progress)) - 1


def supervised_contrast(embeddings: Tensor, targets: Tensor, temperature: float = 0.1) -> Tensor:
    """Pull clips of a class together and push all others away, whatever corpus they come from.

    Parameters
    ----------
    embeddings : Tensor
        (..., clips, dim) of any length; their directions count.
    targets : Tensor
        (..., clips) class indices.
    temperature : float
        Above 0; a small one looks at near neighbours.

    Returns
    -------
    Tensor
        (...), the mean over clips that have another of their class; 0 if none has.

    References
    ----------
    Khosla et al., "Supervised Contrastive Learning", NeurIPS 2020, arXiv:2004.11362, eq. 2.
    """
    directions = functional.normalize(embeddings, dim=-1)
    likeness = directions @ directions.transpose(-1, -2) / temperature
    itself = torch.eye(targets.shape[-1], dtype=torch.bool, device=targets.device)
    # Not minus infinity, which times a weight of 0 would be NaN.
    lowest = torch.finfo(likeness.dtype).min
    nearness = likeness.masked_fill(itself, lowest).log_softmax(dim=-1)
    alike = (targets.unsqueeze(-1) == targets.unsqueeze(-2)) & ~itself
    count = alike.sum(dim=-1)
    each = -nearness.masked_fill(~alike, 0.0).sum(dim=-1) / count.clamp(min=1)
    return each.sum(dim=-1) / (count > 0).sum(dim=-1).clamp(min=1)
