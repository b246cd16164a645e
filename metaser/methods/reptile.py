"""Reptile: move the initialisation towards where plain training on a task leads."""

from functools import reduce

import torch
from torch import Tensor, nn

from metaser.batch import Batch, EpisodeBatch
from metaser.methods.inner_loop import (
    Parameters,
    Predictor,
    adaptable,
    check_steps,
    check_support,
    expand,
    gradient_descent,
    heard,
    predictor,
    task_loss,
)
from metaser.model import Model


class Reptile(nn.Module):
    """First-order meta-learning that needs no query set while it trains.

    It trains what its inner loop changes: a front end that does not adapt stays as it was.

    Parameters
    ----------
    model : Model
        Any backbone and head.
    inner_steps : int
        Gradient steps on all clips of an episode while training, at least 0.
    adapt_steps : int
        Gradient steps on the support set of a new language, at least 0.
    inner_rate : float
        Step size of both, above 0.

    References
    ----------
    Nichol, Achiam, Schulman, "On First-Order Meta-Learning Algorithms", arXiv:1803.02999.
    """

    ADAPTATION = frozenset({"adapt_steps"})
    stackable = True

    def __init__(
        self, model: Model, inner_steps: int = 5, adapt_steps: int = 10, inner_rate: float = 0.1
    ) -> None:
        super().__init__()
        check_steps(inner_steps=inner_steps, adapt_steps=adapt_steps)
        if not inner_rate > 0:
            raise ValueError(f"inner_rate must be above 0, not {inner_rate}")
        self.model = model
        self.inner_steps = inner_steps
        self.adapt_steps = adapt_steps
        self.inner_rate = inner_rate

    def _descend(self, start: Parameters, batch: Batch, steps: int) -> Parameters:
        rates = [dict.fromkeys(start, self.inner_rate)] * steps
        return gradient_descent(lambda own: task_loss(self.model.body, own, batch), start, rates)

    def loss(self, episode: EpisodeBatch) -> Tensor:
        """Half the squared distance from the initialisation to the adapted parameters.

        Its gradient, initialisation minus adapted parameters, is the direction of the paper.
        A scalar, or one value a task for a stack of episodes.
        """
        batch = heard(self.model, episode.joined())
        start = expand(adaptable(self.model.body), batch)
        fixed = {name: value.detach().requires_grad_() for name, value in start.items()}
        reached = self._descend(fixed, batch, self.inner_steps)
        gaps = [(start[name] - reached[name].detach()).square() for name in start]
        tasks = batch.targets.shape[:-1]
        return reduce(torch.add, (gap.reshape(*tasks, -1).sum(dim=-1) for gap in gaps)) / 2

    def validation_loss(self, episode: EpisodeBatch) -> Tensor:
        """Query loss after adapting to the support set: the distance says nothing of quality."""
        support, query = (heard(self.model, batch) for batch in (episode.support, episode.query))
        start = expand(adaptable(self.model.body), support)
        reached = self._descend(start, support, self.inner_steps)
        return task_loss(self.model.body, reached, query)

    def adapt(self, support: Batch) -> Predictor:
        """Adapt to labelled clips of a language; the method itself stays as it is."""
        check_support(support)
        with torch.no_grad():
            support = heard(self.model, support)
        reached = self._descend(adaptable(self.model.body), support, self.adapt_steps)
        return predictor(self.model, reached, support.classes)
