"""Training losses: of classes, of likeness, and of ratings."""

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


def ccc_loss(
    predicted: Tensor, true: Tensor, weights: Tensor | None = None, epsilon: float = 1e-4
) -> Tensor:
    """One minus the concordance correlation of every dimension, weighted and summed.

    The sum over dimensions d of w_d (1 - CCC_d), with the CCC of Lin (1989) over the clips of the
    batch and population moments, as in ``metrics.ccc``. A clip that is not rated in a dimension
    takes no part in it. Where a CCC is not defined (fewer than two rated clips, or true ratings
    that are all the same) it counts as about 0, and pulls the predictions nowhere or barely.

    Parameters
    ----------
    predicted : Tensor
        (..., clips, dimensions).
    true : Tensor
        The same shape and unit; NaN where a clip is not rated.
    weights : Tensor, optional
        (dimensions,), at least 0; the alpha, beta and gamma of the paper. All 1 by default.
    epsilon : float
        Added to the denominator, in squared units of the ratings: it keeps loss and slope finite
        where both spreads vanish. In [-1, 1], 1e-4 is a hundredth of a rating.

    Returns
    -------
    Tensor
        (...), a scalar for one batch; in [0, 2] times the sum of the weights.

    References
    ----------
    Atmaja and Akagi, "Multitask Learning and Multistage Fusion for Dimensional Audiovisual Emotion
    Recognition", ICASSP 2020, arXiv:2002.11312, equations 2 to 5.
    """
    rated, true, count = _rated(predicted, true)
    predicted = predicted * rated
    mean_true, mean_predicted = true.sum(dim=-2) / count, predicted.sum(dim=-2) / count
    from_true = (true - mean_true.unsqueeze(-2)) * rated
    from_predicted = (predicted - mean_predicted.unsqueeze(-2)) * rated
    covariance = (from_true * from_predicted).sum(dim=-2) / count
    spreads = (from_true.square() + from_predicted.square()).sum(dim=-2) / count
    gap = (mean_true - mean_predicted).square()
    return _weighted(1 - 2 * covariance / (spreads + gap + epsilon), weights)


def mse_loss(predicted: Tensor, true: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean squared error of every dimension, weighted and summed; arguments as in ``ccc_loss``."""
    rated, true, count = _rated(predicted, true)
    error = ((predicted - true) * rated).square().sum(dim=-2) / count
    return _weighted(error, weights)


RATING_LOSSES = {"ccc": ccc_loss, "mse": mse_loss}


def _rated(predicted: Tensor, true: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where a clip is rated, its ratings with 0 elsewhere, and the rated clips of a dimension."""
    if predicted.shape != true.shape:
        raise ValueError(
            "expected as many predictions as ratings, (..., clips, dimensions); got shapes "
            f"{tuple(predicted.shape)} and {tuple(true.shape)}"
        )
    rated = ~true.isnan()
    return rated, true.nan_to_num(), rated.sum(dim=-2).clamp(min=1)


def _weighted(losses: Tensor, weights: Tensor | None) -> Tensor:
    return (losses if weights is None else losses * weights).sum(dim=-1)
