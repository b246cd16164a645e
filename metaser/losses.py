"""Training losses."""

from torch import Tensor
from torch.nn import functional


def cross_entropy(scores: Tensor, targets: Tensor, classes: Tensor) -> Tensor:
    """Mean cross-entropy over the classes that a task has.

    Parameters
    ----------
    scores : Tensor
        (clips, classes) logits.
    targets : Tensor
        (clips,) class indices.
    classes : Tensor
        (classes,) bool; the others take no part, so a corpus without anger neither learns nor
        unlearns anger.

    Returns
    -------
    Tensor
        Scalar, in nats, at least 0.
    """
    return functional.cross_entropy(scores.masked_fill(~classes, float("-inf")), targets)
