"""Training losses."""

from torch import Tensor
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
