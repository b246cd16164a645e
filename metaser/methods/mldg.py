"""Meta-learning for domain generalisation (MLDG): a step on one corpus should help on another."""

from torch import Tensor, nn

from metaser.batch import Batch, EpisodeBatch
from metaser.contracts import Predictor
from metaser.methods.fine_tune import tune_all
from metaser.methods.inner_loop import (
    adaptable,
    check_steps,
    check_support,
    expand,
    gradient_descent,
    heard,
    task_loss,
)
from metaser.model import Model


class MLDG(nn.Module):
    """Train so that a gradient step on some domains lowers the loss on others.

    The domains are the source tasks. In training, the support set comes from one task and the
    query set from another (``pairs_tasks``).

    Parameters
    ----------
    model : Model
        Any backbone and head.
    inner_rate : float
        Size of the virtual step, above 0.
    weight : float
        Weight of the other domain's loss after the step, at least 0.
    second_order : bool
        Differentiate through the virtual step, as the paper does.
    steps : int
        Fine-tuning steps on the support set of a new language, at least 0; 0 leaves the model as
        it is.
    rate : float
        Highest rate of the cyclic schedule of fine-tuning.

    Raises
    ------
    ValueError
        If a number is out of range.

    References
    ----------
    Li, Yang, Song, Hospedales, "Learning to Generalize: Meta-Learning for Domain Generalization",
    AAAI 2018, algorithm 1.
    """

    ADAPTATION = frozenset({"steps", "rate"})
    """Arguments that matter only after training."""

    stackable = True
    pairs_tasks = True

    def __init__(
        self,
        model: Model,
        inner_rate: float = 0.1,
        weight: float = 1.0,
        second_order: bool = True,
        steps: int = 50,
        rate: float = 1e-3,
    ) -> None:
        super().__init__()
        check_steps(steps=steps)
        if not inner_rate > 0:
            raise ValueError(
                f"inner_rate must be above 0, not {inner_rate}: take a step size such as 0.1"
            )
        if weight < 0:
            raise ValueError(
                f"weight must be at least 0, not {weight}: take 0 to leave the other domain out"
            )
        self.model = model
        self.inner_rate = inner_rate
        self.weight = weight
        self.second_order = second_order
        self.steps = steps
        self.rate = rate

    def loss(self, episode: EpisodeBatch) -> Tensor:
        """Return the support loss, plus the weighted query loss after a step on the support set.

        It is a scalar, or one value per task for a stack of episodes.
        """
        body = self.model.body
        support, query = (heard(self.model, batch) for batch in (episode.support, episode.query))
        start = expand(adaptable(body), support)
        stepped = gradient_descent(
            lambda parameters: task_loss(body, parameters, support),
            start,
            [dict.fromkeys(start, self.inner_rate)],
            second_order=self.second_order,
            module=body,
        )
        support_loss = task_loss(body, start, support)
        return support_loss + self.weight * task_loss(body, stepped, query)

    def adapt(self, support: Batch) -> Predictor:
        """Fine-tune on labelled clips of a language; the method itself does not change."""
        check_support(support)
        return tune_all(self.model, support, self.steps, self.rate)
