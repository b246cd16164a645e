"""Model-agnostic meta-learning (MAML) and its relatives, with any backbone: MetaSER's trainer."""

from functools import reduce
from itertools import chain

import torch
from torch import Tensor, nn

from metaser.batch import Batch, EpisodeBatch
from metaser.contracts import Predictor
from metaser.losses import cross_entropy
from metaser.methods.fine_tune import tune_all
from metaser.methods.inner_loop import (
    Inputs,
    Parameters,
    Rates,
    adaptable,
    check_steps,
    check_support,
    descend,
    embed,
    embedding_dim,
    expand,
    gradient_descent,
    heard,
    predictor,
    present_classes,
    prototypes,
    task_loss,
)
from metaser.methods.outer_terms import make_terms
from metaser.model import Model

RATES = ("fixed", "element", "step")
ADAPTS = ("all", "head", "backbone")
HEADS = ("learned", "prototypes")
BACK_ENDS = ("native", "learn2learn")

ABSENT_BIAS = -1e4
"""Bias of a class without a clip in the support set, if the head starts from prototypes."""


class MAML(nn.Module):
    """Learn an initialisation from which a few gradient steps suffice.

    With the default arguments it is first-order MAML (FOMAML), as in the paper. One or two
    arguments make it one of its relatives.

    Parameters
    ----------
    model : Model
        Any backbone and head.
    inner_steps : int
        Gradient steps on the support set while training, at least 0.
    adapt_steps : int
        Gradient steps on the support set of a new language, at least 0.
    adapt_rate : float, optional
        Adapt to a new language by Adam in batches instead of by inner steps: for support sets of
        hundreds of clips. This is the highest rate of its cyclic schedule, the same schedule as in
        fine-tuning.
    rehearsal : float
        With ``adapt_rate``: weight of the source clips while adapting, in clips per class, at least
        0, see ``tune_all``.
    inner_rate : float
        Step size of the inner loop, above 0. If the rates are learnt, it is their initial value.
    rates : {"fixed", "element", "step"}
        "fixed" keeps the step size. The others learn it with the initialisation: "element" one for
        each element of each parameter (Meta-SGD), "step" one for each parameter and inner step
        (MAML++). Steps beyond ``inner_steps`` then use the rates of the last one.
    second_order : bool
        Differentiate through the inner gradients.
    first_order_share : float
        Share of the training, in [0, 1], after which second derivatives begin (MAML++).
    multi_step_share : float
        Share of the training, in [0, 1], in which the query loss after every inner step counts, not
        only the one after the last. The earlier steps count less and less (MAML++).
    adapts : {"all", "head", "backbone"}
        What the inner loop changes: everything, the head alone (ANIL; the backbone then runs once
        per episode), or all but the head (BOIL).
    head : {"learned", "prototypes"}
        Where the head starts: from a learnt state, or in each episode from the class means of the
        support set's embeddings (Proto-MAML).
    checkpoint_steps : bool
        With ``second_order``, compute the inner steps again in the backward pass instead of keeping
        them: the same gradient in less memory.
    back_end : {"native", "learn2learn"}
        What runs the inner loop while training. learn2learn has plain MAML with one fixed rate.
    terms : dict, optional
        Further terms of the outer loss, as arguments of ``OuterTerms``: ``{"adversary": 0.1}``.
    domains : dict of str to int, optional
        How many speakers ("speaker") and corpora ("corpus") the sources have, for adversaries.

    Raises
    ------
    ValueError
        If an argument is out of range, or does not go with the others.

    References
    ----------
    Finn, Abbeel, Levine, ICML 2017 (MAML); Li et al., arXiv:1707.09835 (Meta-SGD); Antoniou,
    Edwards, Storkey, ICLR 2019 (MAML++); Raghu et al., ICLR 2020 (ANIL); Oh et al., ICLR 2021
    (BOIL); Triantafillou et al., ICLR 2020 (Proto-MAML); Chopra et al., "Meta-Learning for
    Low-Resource Speech Emotion Recognition", ICASSP 2021.
    """

    ADAPTATION = frozenset({"adapt_steps", "adapt_rate", "rehearsal"})
    """Arguments that matter only after training."""

    def __init__(
        self,
        model: Model,
        *,
        inner_steps: int = 5,
        adapt_steps: int = 10,
        adapt_rate: float | None = None,
        rehearsal: float = 0.0,
        inner_rate: float = 0.1,
        rates: str = "fixed",
        second_order: bool = False,
        first_order_share: float = 0.0,
        multi_step_share: float = 0.0,
        adapts: str = "all",
        head: str = "learned",
        checkpoint_steps: bool = False,
        back_end: str = "native",
        terms: dict[str, float] | None = None,
        domains: dict[str, int] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.inner_steps = inner_steps
        self.adapt_steps = adapt_steps
        self.adapt_rate = adapt_rate
        self.rehearsal = rehearsal
        self.sources: list[Batch] = []
        self.rates = rates
        self.inner_rate = inner_rate
        self.second_order = second_order
        self.first_order_share = first_order_share
        self.multi_step_share = multi_step_share
        self.adapts = adapts
        self.head = head
        self.checkpoint_steps = checkpoint_steps
        self.back_end = back_end
        self.stackable = back_end == "native"
        self.progress = 1.0
        self._check_choices()
        if head == "prototypes":
            model.head = nn.Linear(embedding_dim(model), model.classes)
        self.log_rates = nn.ParameterDict()
        if rates != "fixed":
            for name, value in self._own().items():
                start = torch.full(self._rate_shape(value), inner_rate).log()
                self.log_rates[name.replace(".", "/")] = nn.Parameter(start)
        if head == "prototypes":  # each episode makes its own head
            model.head.requires_grad_(False)
        self.terms = make_terms(model, terms, domains)
        self.hears_other = self.terms is not None and self.terms.contrast > 0

    def _check_choices(self) -> None:
        """Refuse arguments that are out of range or do not go together."""
        for name, known in (
            ("rates", RATES),
            ("adapts", ADAPTS),
            ("head", HEADS),
            ("back_end", BACK_ENDS),
        ):
            value = getattr(self, name)
            if value not in known:
                raise ValueError(
                    f"{name} must be one of {known}, not {value!r}: choose one of them"
                )
        check_steps(inner_steps=self.inner_steps, adapt_steps=self.adapt_steps)
        if not self.inner_rate > 0:
            raise ValueError(
                f"inner_rate must be above 0, not {self.inner_rate}: take a step size such as 0.1"
            )
        if self.rehearsal and self.adapt_rate is None:
            raise ValueError(
                f"rehearsal must be 0 without adapt_rate, not {self.rehearsal}: set adapt_rate, "
                "such as 1e-3, to adapt by Adam"
            )
        if self.adapt_rate is not None and (self.adapts, self.head) != ("all", "learned"):
            raise ValueError(
                "adapts must be 'all' and head 'learned' with adapt_rate, which tunes everything, "
                f"not {self.adapts!r} and {self.head!r}: leave them as they are, or leave "
                "adapt_rate out"
            )
        if self.adapts == "backbone" and self.head == "prototypes":
            raise ValueError(
                "adapts must be 'all' or 'head' with a head of prototypes, which adapts, not "
                "'backbone': choose one of them, or set head = 'learned'"
            )
        if self.back_end == "learn2learn":
            self._check_learn2learn()

    def _check_learn2learn(self) -> None:
        """Refuse what learn2learn cannot do."""
        shares = (self.first_order_share, self.multi_step_share)
        plain = (self.rates, self.adapts, self.head, *shares)
        if plain != ("fixed", "all", "learned", 0, 0):
            raise ValueError(
                "back_end must be 'native' unless MAML is plain, with one fixed rate, not "
                "'learn2learn': leave rates, adapts, head, first_order_share and multi_step_share "
                "as they are, or use the native back end"
            )
        if self.model.body is not self.model:
            raise ValueError(
                "back_end must be 'native' for a front end that does not adapt, not 'learn2learn', "
                "which adapts the whole model: let the front end adapt (adapts = true), or use the "
                "native back end"
            )

    def _rate_shape(self, value: Tensor) -> tuple[int, ...]:
        """Return the shape of the learnt rates of a parameter."""
        return tuple(value.shape) if self.rates == "element" else (max(self.inner_steps, 1),)

    def _part(self) -> nn.Module:
        """Return the module that the inner loop runs."""
        return self.model.head if self.adapts == "head" else self.model.body

    def _own(self) -> Parameters:
        """Return the learnt parameters that the inner loop changes, by their names in ``_part``."""
        own = adaptable(self._part())
        if self.adapts == "backbone":
            return {name: value for name, value in own.items() if not name.startswith("head.")}
        return own

    def _start(self, support: Batch) -> Parameters:
        """Return the parameters before the first inner step."""
        start = expand(self._own(), support)
        if self.head == "prototypes":
            prefix = "" if self.adapts == "head" else "head."
            centres = prototypes(embed(self.model.body, support), support)
            start[f"{prefix}weight"] = 2 * centres
            bias = -centres.square().sum(dim=-1)
            start[f"{prefix}bias"] = bias.masked_fill(~present_classes(support), ABSENT_BIAS)
        return start

    def _inputs(self, batch: Batch) -> Inputs:
        """Return what ``_part`` takes of a batch."""
        return embed(self.model.body, batch) if self.adapts == "head" else batch.modalities

    def _rates(self, steps: int, start: Parameters) -> list[Rates]:
        """Return the step sizes of each inner step."""
        if self.rates == "fixed":
            return [dict.fromkeys(start, self.inner_rate)] * steps
        rates = {name.replace("/", "."): value.exp() for name, value in self.log_rates.items()}
        without = sorted(start.keys() - rates.keys())
        if without:
            raise ValueError(
                "parameters that adapt must not be frozen when the method is made, because a "
                f"frozen one gets no rate, but {', '.join(without)} were: thaw parameters before"
            )
        if self.rates != "step":
            return [rates] * steps
        last = max(self.inner_steps, 1) - 1
        return [
            {name: values[min(step, last)] for name, values in rates.items()}
            for step in range(steps)
        ]

    def _step_weights(self, progress: float) -> list[float]:
        """Return the weights of the query loss before the first and after each inner step.

        There are ``inner_steps`` + 1 of them, and their sum is 1.
        """
        if self.inner_steps == 0 or progress >= self.multi_step_share:
            return [0.0] * self.inner_steps + [1.0]
        early = (1 - progress / self.multi_step_share) / self.inner_steps
        others = self.inner_steps - 1
        return [0.0] + [early] * others + [1 - early * others]

    def loss(self, episode: EpisodeBatch) -> Tensor:
        """Return the query loss after adapting to the support set, plus the further terms.

        It is a scalar, or one value per task for a stack of episodes. The outer loop sets
        ``progress`` to the share of the training that is over.
        """
        own = self.validation_loss(episode)
        return own if self.terms is None else own + self.terms(self.model, episode, self.progress)

    def validation_loss(self, episode: EpisodeBatch) -> Tensor:
        """Return the query loss after adapting, differentiable in the initialisation."""
        if self.back_end == "learn2learn":
            return self._learn2learn_loss(episode)
        changes = self.training and (self.first_order_share or self.multi_step_share)
        progress = self.progress if changes else 1.0
        differentiated = self.second_order and torch.is_grad_enabled()
        support, query = (heard(self.model, batch) for batch in (episode.support, episode.query))
        part, start = self._part(), self._start(support)
        support_inputs, query_inputs = self._inputs(support), self._inputs(query)
        path = descend(
            lambda adapted: task_loss(part, adapted, support, support_inputs),
            start,
            self._rates(self.inner_steps, start),
            second_order=differentiated and progress >= self.first_order_share,
            checkpoint=self.checkpoint_steps,
            module=part,
        )
        losses = (
            weight * task_loss(part, adapted, query, query_inputs)
            for weight, adapted in zip(self._step_weights(progress), chain([start], path))
            if weight > 0
        )
        return reduce(torch.add, losses)

    def _learn2learn_loss(self, episode: EpisodeBatch) -> Tensor:
        """Return the query loss after learn2learn has adapted the model."""
        from metaser.methods.learn2learn import maml

        learner = maml()(
            self.model,
            lr=self.inner_rate,
            first_order=not self.second_order,
            allow_unused=True,
            allow_nograd=True,
        )
        support = episode.support
        with torch.enable_grad():
            learner = learner.clone()
            for _ in range(self.inner_steps):
                scores = learner(support.modalities)
                learner.adapt(cross_entropy(scores, support.targets, support.classes))
        return cross_entropy(
            learner(episode.query.modalities), episode.query.targets, episode.query.classes
        )

    @property
    def use_sources(self) -> bool:
        """Whether adapting needs the source clips that ``fit`` keeps."""
        return self.rehearsal > 0

    def fit(self, sources: list[Batch]) -> None:
        """Keep the labelled clips of the source tasks for rehearsal."""
        self.sources = sources

    def adapt(self, support: Batch) -> Predictor:
        """Adapt to labelled clips of a language; the method itself does not change."""
        check_support(support)
        if self.adapt_rate is not None:
            steps, rate = self.adapt_steps, self.adapt_rate
            return tune_all(self.model, support, steps, rate, self.sources, self.rehearsal)
        part = self._part()
        with torch.no_grad():
            support = heard(self.model, support)
            start, inputs = self._start(support), self._inputs(support)
        adapted = gradient_descent(
            lambda tuned: task_loss(part, tuned, support, inputs),
            start,
            self._rates(self.adapt_steps, start),
        )
        prefix = "head." if self.adapts == "head" else ""
        whole = {f"{prefix}{name}": value for name, value in adapted.items()}
        return predictor(self.model, whole, support.classes)
