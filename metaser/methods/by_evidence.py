"""MetaSER by evidence: a meta-learnt network beside heads that say how far to trust it."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from metaser.batch import Batch, EpisodeBatch, Padded
from metaser.methods.gaussian_process import GaussianProcess
from metaser.methods.inner_loop import Adapted, check_support
from metaser.methods.maml import MAML
from metaser.model import Model


class Mixture(nn.Module):
    """The probabilities of several models, mixed.

    Parameters
    ----------
    models : sequence of nn.Module
        Each gives scores (clips, classes) that are log-odds once they are multiplied.
    weights : sequence of float
        How much each counts; they sum to 1.
    factors : sequence of float
        What the scores of each are multiplied by.
    """

    frontend = None
    weights: Tensor

    def __init__(
        self, models: Sequence[nn.Module], weights: Sequence[float], factors: Sequence[float]
    ) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)
        self.channels = models[-1].channels
        self.register_buffer("weights", torch.tensor(weights))
        self.factors = tuple(factors)

    def forward(self, modalities: dict[str, Padded]) -> Tensor:
        """Return the logarithm of the mixed probabilities, (clips, classes)."""
        parts = [
            (factor * model(modalities)).log_softmax(dim=-1)
            for factor, model in zip(self.factors, self.models)
        ]
        weights = self.weights.log()[:, None, None]
        return torch.logsumexp(torch.stack(parts) + weights, dim=0)


class ByEvidence(nn.Module):
    """Mix a learnt network with a Gaussian process, weighed by what the labelled clips say.

    Both adapt to the labelled clips. Each is then asked for the clips of every speaker as foretold
    from the clips of the others, and counts by how well that goes. The Gaussian process itself
    weighs heads from "the target's clips alone" to "the sources alone", so that a language to which
    the sources say nothing is learnt from its own clips.

    Parameters
    ----------
    model : Model
        Any backbone and head.
    channels, classes : int
        Numbers per frame, and classes.
    network : dict, optional
        Arguments of ``MAML``.
    process : dict, optional
        Arguments of ``GaussianProcess``.
    folds : int
        Groups of speakers at most, of which each is foretold from the others.
    factor : float
        What the network's scores are multiplied by to be log-odds; above 0.
    prior : float
        Weight of the network before any clip speaks, in (0, 1).
    """

    knows_speakers = True
    stackable = True
    ADAPTATION = frozenset({"process", "folds", "factor", "prior"})

    def __init__(
        self,
        model: Model,
        channels: int,
        classes: int,
        *,
        network: dict[str, Any] | None = None,
        process: dict[str, Any] | None = None,
        folds: int = 5,
        factor: float = 0.5,
        prior: float = 0.5,
    ) -> None:
        super().__init__()
        if not 0 < prior < 1:
            raise ValueError(f"prior must be between 0 and 1, not {prior}")
        if folds < 2:
            raise ValueError(f"folds must be at least 2, not {folds}")
        self.network = MAML(model, **(network or {}))
        self.process = GaussianProcess(channels, classes, **(process or {}))
        self.folds = folds
        self.factor = factor
        self.prior = prior

    @property
    def second_order(self) -> bool:
        """Whether the network's gradient needs second derivatives."""
        return self.network.second_order

    @property
    def model(self) -> Mixture:
        """What training left, before any clip of a language is known."""
        weights = (self.prior, 1 - self.prior)
        network = copy.deepcopy(self.network.model)
        return Mixture([network, self.process.model], weights, (self.factor, 1.0))

    def loss(self, episode: EpisodeBatch) -> Tensor:
        """Return the loss of the network."""
        return self.network.loss(episode)

    def fit(self, sources: Sequence[Batch]) -> None:
        """Give the Gaussian process the labelled clips of the source tasks."""
        self.process.fit(sources)

    def adapt(self, support: Batch) -> Adapted:
        """Adapt both to labelled clips, and weigh them; the method itself stays as it is."""
        check_support(support)
        head = self.process.adapt(support)
        network = self.network.adapt(support)
        assert isinstance(network, Adapted) and head.evidence is not None
        evidence = torch.tensor([self._foretold(support), head.evidence], dtype=torch.float64)
        prior = torch.tensor([self.prior, 1 - self.prior], dtype=torch.float64).log()
        told = evidence + prior
        weights = told.softmax(dim=0).tolist()
        mixed = Mixture([network.model, head.model], weights, (self.factor, 1.0)).eval()
        return Adapted(mixed, support.classes, float(told.logsumexp(dim=0)))

    def _foretold(self, support: Batch) -> float:
        """Return the tempered log-probability of the clips by the network, fold by fold."""
        total = 0.0
        for left_out in self._groups(support):
            rest, asked = support[~left_out], support[left_out]
            if len(rest.targets.unique()) < 2:
                with torch.no_grad():
                    scores = self.network.model(asked.modalities)
            else:
                scores = self.network.adapt(replace(rest, domains={}))(asked.modalities)
            scores = (self.factor * scores).masked_fill(~support.classes, float("-inf"))
            chances = scores.double().log_softmax(dim=1)
            total += float(chances.gather(1, asked.targets[:, None]).clamp(min=-10).sum())
        return self.process.temperature * total

    def _groups(self, support: Batch) -> list[Tensor]:
        """Return masks (clips,) of the speakers that are left out together."""
        speakers = support.domains.get("speaker", torch.arange(len(support)).to(support.targets))
        numbers = speakers.unique(return_inverse=True)[1]
        folds = min(self.folds, int(numbers.max()) + 1)
        return [numbers % folds == fold for fold in range(folds)]
