"""Prototypical networks: the nearest class mean of the support set's embeddings."""

import copy

import torch
from torch import Tensor, nn

from metaser.batch import Batch, EpisodeBatch, Padded
from metaser.contracts import Predictor
from metaser.losses import cross_entropy
from metaser.methods.inner_loop import (
    check_support,
    embed,
    present_classes,
    prototypes,
)
from metaser.model import Model


class ProtoNet(nn.Module):
    """Learn an embedding in which a clip lies nearest to the mean of its class.

    Adapting is one pass through the backbone: nothing is tuned.

    Parameters
    ----------
    model : Model
        Its backbone is used, its head is not.

    References
    ----------
    Snell, Swersky, Zemel, "Prototypical Networks for Few-shot Learning", NeurIPS 2017.
    """

    ADAPTATION: frozenset[str] = frozenset()
    """Arguments that matter only after training: none."""

    stackable = True

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model
        self.model.head = nn.Identity()

    def loss(self, episode: EpisodeBatch) -> Tensor:
        """Return the cross-entropy of the query clips, a scalar or one value per task."""
        centres = prototypes(embed(self.model, episode.support), episode.support)
        scores = _scores(embed(self.model, episode.query), centres)
        return cross_entropy(scores, episode.query.targets, present_classes(episode.support))

    def adapt(self, support: Batch) -> Predictor:
        """Take the class means of labelled clips; the method itself does not change."""
        check_support(support)
        model, present = copy.deepcopy(self.model).eval(), present_classes(support)
        with torch.no_grad():
            centres = prototypes(model.embed(support.modalities), support)

        @torch.no_grad()
        def predict(modalities: dict[str, Padded]) -> Tensor:
            scores = _scores(model.embed(modalities), centres)
            return scores.masked_fill(~present, float("-inf"))

        return predict


def _scores(embeddings: Tensor, centres: Tensor) -> Tensor:
    """Return the negative mean squared difference to each class mean, (..., clips, classes).

    The mean over dimensions, not the sum, keeps the scores in a range that suits a softmax, however
    long the embeddings are.
    """
    return -torch.cdist(embeddings, centres).square() / embeddings.shape[-1]
