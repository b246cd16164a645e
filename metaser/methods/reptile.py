"""Reptile: move the initialisation towards where plain training on a task leads."""

from functools import reduce

import torch
from torch import Tensor, nn

from metaser.batch import Batch, EpisodeBatch
from metaser.contracts import Predictor
from metaser.methods.inner_loop import (
    Parameters,
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

    It trains only what its inner loop changes. A front end that does not adapt is not trained.

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

    Raises
    ------
    ValueError
        If a number is out of range.

    References
    ----------
    Nichol, Achiam, Schulman, "On First-Order Meta-Learning Algorithms", arXiv:1803.02999.
    """

    ADAPTATION = frozenset({"adapt_steps"})
    """Arguments that matter only after training."""

    stackable = True

    def __init__(
        self, model: Model, inner_steps: int = 5, adapt_steps: int = 10, inner_rate: float = 0.1
    ) -> None:
        super().__init__()
        check_steps(inner_steps=inner_steps, adapt_steps=adapt_steps)
        if not inner_rate > 0:
            raise ValueError(
                f"inner_rate must be above 0, not {inner_rate}: take a step size such as 0.1"
            )
        self.model = model
        self.inner_steps = inner_steps
        self.adapt_steps = adapt_steps
        self.inner_rate = inner_rate

    def _descend(self, start: Parameters, batch: Batch, steps: int) -> Parameters:
        """Return the parameters after some gradient steps on a batch."""
        rates = [dict.fromkeys(start, self.inner_rate)] * steps
        body = self.model.body
        return gradient_descent(lambda parameters: task_loss(body, parameters, batch), start, rates)

    def loss(self, episode: EpisodeBatch) -> Tensor:
        """Return half the squared distance from the initialisation to the adapted parameters.

        Its gradient, initialisation minus adapted parameters, is the direction of the paper. It is
        a scalar, or one value per task for a stack of episodes.
        """
        batch = heard(self.model, episode.joined())
        start = expand(adaptable(self.model.body), batch)
        fixed = {name: value.detach().requires_grad_() for name, value in start.items()}
        reached = self._descend(fixed, batch, self.inner_steps)
        gaps = [(start[name] - reached[name].detach()).square() for name in start]
        tasks = batch.targets.shape[:-1]
        nothing = batch.targets.new_zeros(tasks, dtype=torch.get_default_dtype())
        sums = (gap.reshape(*tasks, -1).sum(dim=-1) for gap in gaps)
        return reduce(torch.add, sums, nothing) / 2

    def validation_loss(self, episode: EpisodeBatch) -> Tensor:
        """Return the query loss after adapting; the distance does not say how good a model is."""
        support, query = (heard(self.model, batch) for batch in (episode.support, episode.query))
        start = expand(adaptable(self.model.body), support)
        reached = self._descend(start, support, self.inner_steps)
        return task_loss(self.model.body, reached, query)

    def adapt(self, support: Batch) -> Predictor:
        """Adapt to labelled clips of a language; the method itself does not change."""
        check_support(support)
        with torch.no_grad():
            support = heard(self.model, support)
        reached = self._descend(adaptable(self.model.body), support, self.adapt_steps)
        return predictor(self.model, reached, support.classes)
