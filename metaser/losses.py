"""Training losses: for classes, for similarity of embeddings, and for ratings."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional


def cross_entropy(scores: Tensor, targets: Tensor, classes: Tensor) -> Tensor:
    """Return the mean cross-entropy over the classes that a task has.

    Parameters
    ----------
    scores : Tensor
        (..., clips, classes) logits.
    targets : Tensor
        (..., clips) class indices.
    classes : Tensor
        (..., classes) bool, True for a class that the task has. The others do not count, so a
        corpus without anger neither learns nor unlearns anger.

    Returns
    -------
    Tensor
        (...), a scalar for one task; in nats, at least 0.
    """
    scores = scores.masked_fill(~classes.unsqueeze(-2), float("-inf"))
    losses = functional.cross_entropy(scores.flatten(0, -2), targets.flatten(), reduction="none")
    return losses.view(targets.shape).mean(dim=-1)


class _Reversal(Function):
    """Identity whose gradient changes its sign."""

    @staticmethod
    def forward(context: Any, values: Tensor, strength: float) -> Tensor:
        """Return the values unchanged."""
        context.strength = strength
        return values.view_as(values)

    @staticmethod
    def backward(context: Any, slope: Tensor) -> tuple[Tensor, None]:
        """Return the gradient, multiplied by ``-strength``."""
        return -context.strength * slope, None


def gradient_reversal(values: Tensor, strength: float) -> Tensor:
    """Return the values unchanged, but multiply their gradient by ``-strength``.

    The layers behind it learn to lower the loss, the layers before it learn to raise it.

    Parameters
    ----------
    values : Tensor
        Of any shape, such as embeddings.
    strength : float
        At least 0; 0 stops the gradient.

    Returns
    -------
    Tensor
        The same shape and values.

    References
    ----------
    Ganin et al., "Domain-Adversarial Training of Neural Networks", JMLR 17 (2016), eq. 15-16.
    """
    reversed_: Tensor = _Reversal.apply(values, strength)  # type: ignore[no-untyped-call]
    return reversed_


def reversal_ramp(progress: float) -> float:
    """Return the strength of a gradient reversal that grows from 0 to 1 during a training.

    It is 2 / (1 + exp(-10 progress)) - 1, so that the adversaries have learnt something before
    their gradient counts.

    Parameters
    ----------
    progress : float
        Share of the training that is over, in [0, 1].

    Returns
    -------
    float
        In [0, 1).

    References
    ----------
    Ganin et al., "Domain-Adversarial Training of Neural Networks", JMLR 17 (2016), section 5.2.2.
    """
    return 2 / (1 + math.exp(-10 * progress)) - 1


def supervised_contrast(embeddings: Tensor, targets: Tensor, temperature: float = 0.1) -> Tensor:
    """Return the contrastive loss, small where clips of one class are near and others are far.

    It does not matter which corpus a clip comes from.

    Parameters
    ----------
    embeddings : Tensor
        (..., clips, dim) of any length; only their directions count.
    targets : Tensor
        (..., clips) class indices.
    temperature : float
        Above 0; the smaller, the more the nearest neighbours count.

    Returns
    -------
    Tensor
        (...), the mean over clips that have another clip of their class; 0 if none has.

    References
    ----------
    Khosla et al., "Supervised Contrastive Learning", NeurIPS 2020, arXiv:2004.11362, eq. 2.
    """
    directions = functional.normalize(embeddings, dim=-1)
    similarities = directions @ directions.transpose(-1, -2) / temperature
    itself = torch.eye(targets.shape[-1], dtype=torch.bool, device=targets.device)
    # Not minus infinity, because 0 times infinity is NaN.
    lowest = torch.finfo(similarities.dtype).min
    log_shares = similarities.masked_fill(itself, lowest).log_softmax(dim=-1)
    same_class = (targets.unsqueeze(-1) == targets.unsqueeze(-2)) & ~itself
    count = same_class.sum(dim=-1)
    losses = -log_shares.masked_fill(~same_class, 0.0).sum(dim=-1) / count.clamp(min=1)
    return losses.sum(dim=-1) / (count > 0).sum(dim=-1).clamp(min=1)


def ccc_loss(
    predicted: Tensor, true: Tensor, weights: Tensor | None = None, epsilon: float = 1e-4
) -> Tensor:
    """Return one minus the concordance correlation of every dimension, weighted and summed.

    The loss is the sum over dimensions d of w_d (1 - CCC_d), where CCC is that of ``metrics.ccc``
    over the clips of the batch. A clip that is not rated in a dimension does not count there. Where
    a CCC is not defined (fewer than two rated clips, or true ratings that are all the same) it
    counts as about 0, with a gradient of about 0.

    Parameters
    ----------
    predicted : Tensor
        (..., clips, dimensions).
    true : Tensor
        The same shape and unit; NaN where a clip is not rated.
    weights : Tensor, optional
        (dimensions,), at least 0; the alpha, beta and gamma of the paper. All 1 by default.
    epsilon : float
        Added to the denominator, in squared units of the ratings, to keep loss and gradient finite
        where both variances are 0. 1e-4 is the square of a hundredth of a rating unit.

    Returns
    -------
    Tensor
        (...), a scalar for one batch; in [0, 2] times the sum of the weights.

    Raises
    ------
    ValueError
        If the shapes differ.

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
    """Return the mean squared error of every dimension, weighted and summed.

    Parameters
    ----------
    predicted, true, weights
        As in ``ccc_loss``.

    Returns
    -------
    Tensor
        (...), a scalar for one batch; at least 0, in squared units of the ratings.

    Raises
    ------
    ValueError
        If the shapes differ.
    """
    rated, true, count = _rated(predicted, true)
    errors = ((predicted - true) * rated).square().sum(dim=-2) / count
    return _weighted(errors, weights)


RATING_LOSSES: dict[str, Callable[..., Tensor]] = {"ccc": ccc_loss, "mse": mse_loss}
"""Losses for ratings by the names that protocols use."""


def _rated(predicted: Tensor, true: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Which ratings exist, the ratings with 0 for the others, and how many exist per dimension."""
    if predicted.shape != true.shape:
        raise ValueError(
            "predictions and ratings must have the same shape (..., clips, dimensions), not "
            f"{tuple(predicted.shape)} and {tuple(true.shape)}: pass one prediction per rating"
        )
    rated = ~true.isnan()
    return rated, true.nan_to_num(), rated.sum(dim=-2).clamp(min=1)


def _weighted(losses: Tensor, weights: Tensor | None) -> Tensor:
    """Weighted sum over the dimensions."""
    return (losses if weights is None else losses * weights).sum(dim=-1)
