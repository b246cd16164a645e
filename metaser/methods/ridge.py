"""A closed-form ridge head on a learnt embedding."""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional

from metaser.batch import Batch, EpisodeBatch, Padded
from metaser.losses import cross_entropy
from metaser.methods.inner_loop import Predictor, check_support, embed
from metaser.model import Model


class Ridge(nn.Module):
    """Learn an embedding on which ridge regression to the classes works after a few clips.

    The solution is differentiable in the embedding, so the backbone learns what the regression
    needs; adapting takes one linear solve.

    Parameters
    ----------
    model : Model
        Any backbone; its head is the starting point with ``around_head``, else unused.
    around_head : bool
        Regress what the learnt head leaves over, instead of the classes themselves: with few clips
        the head prevails, with many the clips do.
    strength : float
        Initial ridge penalty, above 0; it is learnt.

    References
    ----------
    Bertinetto, Henriques, Torr, Vedaldi, "Meta-learning with Differentiable Closed-form Solvers",
    ICLR 2019 (R2-D2).
    """

    ADAPTATION: frozenset[str] = frozenset()
    stackable = True

    def __init__(self, model: Model, around_head: bool = False, strength: float = 1.0) -> None:
        super().__init__()
        if not strength > 0:
            raise ValueError(f"strength must be above 0, not {strength}")
        self.model = model
        self.around_head = around_head
        if not around_head:
            model.head = nn.Identity()
        self.log_strength = nn.Parameter(torch.tensor(float(strength)).log())
        self.log_scale = nn.Parameter(torch.tensor(10.0).log())

    def loss(self, episode: EpisodeBatch) -> Tensor:
        """Cross-entropy of the query clips, a scalar or one value a task for a stack."""
        weights = self._solve(embed(self.model, episode.support), episode.support)
        scores = self._scores(embed(self.model, episode.query), weights)
        return cross_entropy(scores, episode.query.targets, episode.query.classes)

    def adapt(self, support: Batch) -> Predictor:
        """Solve the regression on labelled clips; the method itself stays as it is."""
        check_support(support)
        own = copy.deepcopy(self).eval()
        with torch.no_grad():
            weights = own._solve(embed(own.model, support), support)

        @torch.no_grad()
        def predict(modalities: dict[str, Padded]) -> Tensor:
            scores = own._scores(own.model.embed(modalities), weights)
            return scores.masked_fill(~support.classes, float("-inf"))

        return predict

    def _design(self, embeddings: Tensor) -> Tensor:
        """Embeddings with a constant column, at a length that does not depend on their width."""
        return functional.pad(embeddings / embeddings.shape[-1] ** 0.5, (0, 1), value=1.0)

    def _solve(self, embeddings: Tensor, support: Batch) -> Tensor:
        """Regression weights (..., dim + 1, classes), by a system as large as there are clips."""
        design = self._design(embeddings)
        wanted = functional.one_hot(support.targets, support.classes.shape[-1]).to(design.dtype)
        wanted = wanted - self._base(embeddings)
        gram = design @ design.transpose(-1, -2)
        penalty = self.log_strength.exp() * torch.eye(gram.shape[-1]).to(gram)
        return design.transpose(-1, -2) @ torch.linalg.solve(gram + penalty, wanted)

    def _base(self, embeddings: Tensor) -> Tensor | float:
        """What is predicted before the regression."""
        return self.model.head(embeddings) if self.around_head else 0.0

    def _scores(self, embeddings: Tensor, weights: Tensor) -> Tensor:
        predicted = self._base(embeddings) + self._design(embeddings) @ weights
        return self.log_scale.exp() * predicted
