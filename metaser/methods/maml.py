"""Model-agnostic meta-learning: MetaSER's trainer, around any backbone."""

import torch
from torch import Tensor, nn

from metaser.batch import Batch, EpisodeBatch
from metaser.losses import cross_entropy
from metaser.methods.inner_loop import (
    Predictor,
    gradient_descent,
    predictor,
    support_loss,
    tune_all,
)
from metaser.model import Model

BACK_ENDS = ("native", "learn2learn")


class MAML(nn.Module):
    """Learn an initialisation from which a few gradient steps suffice.

    Parameters
    ----------
    model : Model
        Any backbone and head.
    inner_steps : int
        Gradient steps on the support set while training.
    adapt_steps : int
        Gradient steps on the support set of a new language.
    adapt_rate : float, optional
        Adapt to a new language by Adam in batches, with this highest rate of the cyclic schedule
        that the other methods are fine-tuned with, instead of by inner-loop steps: for support
        sets of hundreds of clips.
    inner_rate : float
        Step size of the inner loop; with ``learn_rates`` its initial value.
    learn_rates : bool
        Learn one step size a parameter along with the initialisation (Meta-SGD).
    second_order : bool
        Differentiate through the inner gradients; otherwise first-order MAML, the paper's choice.
    back_end : {"native", "learn2learn"}
        Who runs the inner loop while training. learn2learn has one fixed rate.

    References
    ----------
    Finn, Abbeel, Levine, ICML 2017; Li et al., "Meta-SGD", arXiv:1707.09835; Chopra et al.,
    "Meta-Learning for Low-Resource Speech Emotion Recognition", ICASSP 2021.
    """

    ADAPTATION = frozenset({"adapt_steps", "adapt_rate"})
    """Arguments that matter only after training."""

    def __init__(
        self,
        model: Model,
        inner_steps: int = 5,
        adapt_steps: int = 10,
        adapt_rate: float | None = None,
        inner_rate: float = 0.1,
        learn_rates: bool = False,
        second_order: bool = False,
        back_end: str = "native",
    ):
        super().__init__()
        if back_end not in BACK_ENDS:
            raise ValueError(f"back_end must be one of {BACK_ENDS}, not {back_end!r}")
        if not inner_rate > 0:
            raise ValueError(f"inner_rate must be above 0, not {inner_rate}")
        if back_end == "learn2learn" and learn_rates:
            raise ValueError("learn2learn's MAML has one fixed rate: set learn_rates = false")
        self.model = model
        self.inner_steps = inner_steps
        self.adapt_steps = adapt_steps
        self.adapt_rate = adapt_rate
        self.second_order = second_order
        self.back_end = back_end
        shapes = {
            name: value.shape if learn_rates else () for name, value in self._adapted().items()
        }
        self.log_rates = nn.ParameterDict(
            {
                name.replace(".", "/"): nn.Parameter(
                    torch.full(shape, inner_rate).log(), requires_grad=learn_rates
                )
                for name, shape in shapes.items()
            }
        )

    def _adapted(self) -> dict[str, nn.Parameter]:
        """The parameters of the inner loop, by name."""
        return {name: value for name, value in self.model.named_parameters() if value.requires_grad}

    def _rates(self) -> dict[str, Tensor]:
        return {name.replace("/", "."): value.exp() for name, value in self.log_rates.items()}

    def loss(self, episode: EpisodeBatch) -> Tensor:
        """Query loss after adapting to the support set, differentiable in the initialisation."""
        if self.back_end == "learn2learn":
            return self._learn2learn_loss(episode)
        adapted = gradient_descent(
            self.model,
            self._adapted(),
            self._rates(),
            episode.support,
            self.inner_steps,
            self.second_order,
        )
        return support_loss(self.model, adapted, episode.query)

    def _learn2learn_loss(self, episode: EpisodeBatch) -> Tensor:
        from metaser.methods.learn2learn import maml

        rate = float(next(iter(self._rates().values())))
        learner = maml()(self.model, lr=rate, first_order=not self.second_order, allow_unused=True)
        support = episode.support
        with torch.enable_grad():
            learner = learner.clone()
            for _ in range(self.inner_steps):
                scores = learner(support.modalities)
                learner.adapt(cross_entropy(scores, support.targets, support.classes))
        return cross_entropy(
            learner(episode.query.modalities), episode.query.targets, episode.query.classes
        )

    def adapt(self, support: Batch) -> Predictor:
        """Adapt to labelled clips of a language; the method itself stays as it is."""
        if self.adapt_rate is not None:
            return tune_all(self.model, support, self.adapt_steps, self.adapt_rate)
        adapted = gradient_descent(
            self.model, self._adapted(), self._rates(), support, self.adapt_steps
        )
        return predictor(self.model, adapted, support.classes)
