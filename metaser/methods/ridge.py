"""Ridge regression, solved in closed form, as the head on a learnt embedding."""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional

from metaser.batch import Batch, EpisodeBatch, Padded
from metaser.contracts import Predictor
from metaser.losses import cross_entropy
from metaser.methods.inner_loop import check_support, embed
from metaser.model import Model


class Ridge(nn.Module):
    """Learn an embedding on which ridge regression to the classes works after a few clips.

    The solution is differentiable in the embedding, so the backbone learns what the regression
    needs. Adapting solves one linear system.

    Parameters
    ----------
    model : Model
        Any backbone. Its head is used with ``around_head`` alone.
    around_head : bool
        Regress the error of the learnt head, instead of the classes themselves. With few clips the
        head decides most, with many the clips do.
    strength : float
        Initial ridge penalty, above 0; it is learnt.

    Raises
    ------
    ValueError
        If ``strength`` is not above 0.

    References
    ----------
    Bertinetto, Henriques, Torr, Vedaldi, "Meta-learning with Differentiable Closed-form Solvers",
    ICLR 2019 (R2-D2).
    """

    ADAPTATION: frozenset[str] = frozenset()
    """Arguments that matter only after training: none."""

    stackable = True

    def __init__(self, model: Model, around_head: bool = False, strength: float = 1.0) -> None:
        super().__init__()
        if not strength > 0:
            raise ValueError(f"strength must be above 0, not {strength}: take a penalty such as 1")
        self.model = model
        self.around_head = around_head
        if not around_head:
            model.head = nn.Identity()
        self.log_strength = nn.Parameter(torch.tensor(float(strength)).log())
        self.log_scale = nn.Parameter(torch.tensor(10.0).log())

    def loss(self, episode: EpisodeBatch) -> Tensor:
        """Return the cross-entropy of the query clips, a scalar or one value per task."""
        weights = self._solve(embed(self.model, episode.support), episode.support)
        scores = self._scores(embed(self.model, episode.query), weights)
        return cross_entropy(scores, episode.query.targets, episode.query.classes)

    def adapt(self, support: Batch) -> Predictor:
        """Solve the regression on labelled clips; the method itself does not change."""
        check_support(support)
        kept = copy.deepcopy(self).eval()
        with torch.no_grad():
            weights = kept._solve(embed(kept.model, support), support)

        @torch.no_grad()
        def predict(modalities: dict[str, Padded]) -> Tensor:
            scores = kept._scores(kept.model.embed(modalities), weights)
            return scores.masked_fill(~support.classes, float("-inf"))

        return predict

    def _design(self, embeddings: Tensor) -> Tensor:
        """Return embeddings with a constant column, scaled by the root of their length.

        So the penalty has the same effect however long the embeddings are.
        """
        return functional.pad(embeddings / embeddings.shape[-1] ** 0.5, (0, 1), value=1.0)

    def _solve(self, embeddings: Tensor, support: Batch) -> Tensor:
        """Return regression weights (..., dim + 1, classes); the system has one row per clip."""
        design = self._design(embeddings)
        members = functional.one_hot(support.targets, support.classes.shape[-1]).to(design.dtype)
        residuals = members - self._base(embeddings)
        gram = design @ design.transpose(-1, -2)
        penalty = self.log_strength.exp() * torch.eye(gram.shape[-1]).to(gram)
        return design.transpose(-1, -2) @ torch.linalg.solve(gram + penalty, residuals)

    def _base(self, embeddings: Tensor) -> Tensor | float:
        """Return what is predicted before the regression: the head's scores, or 0."""
        return self.model.head(embeddings) if self.around_head else 0.0

    def _scores(self, embeddings: Tensor, weights: Tensor) -> Tensor:
        """Return scores (..., clips, classes) by regression weights."""
        predicted = self._base(embeddings) + self._design(embeddings) @ weights
        return self.log_scale.exp() * predicted
