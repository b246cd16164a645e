"""MultiSER as the paper's released code has it, which differs from the paper."""

import copy
from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from metaser.batch import Batch, EpisodeBatch, join
from metaser.machine import device_of, generators
from metaser.methods.inner_loop import (
    Predictor,
    check_steps,
    check_support,
    embedding_dim,
    heard,
    predictor,
)
from metaser.model import Model


class BinaryHeads(nn.Module):
    """A dense layer that all emotions share, and a network for each that says no or yes.

    Parameters
    ----------
    dim : int
        Width of the embedding.
    classes : int
        Emotions.
    shared : int
        Width of the shared layer, without activation.
    hidden : int
        Width of each emotion's dense layer, before BatchNorm and ReLU.
    """

    def __init__(self, dim: int, classes: int, shared: int = 128, hidden: int = 64) -> None:
        super().__init__()
        self.shared = nn.Linear(dim, shared)
        self.emotions = nn.ModuleList(
            nn.Sequential(
                nn.Linear(shared, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, 2)
            )
            for _ in range(classes)
        )

    def answers(self, embedding: Tensor, emotion: int) -> Tensor:
        """Logits (clips, 2) of an emotion's no and yes."""
        return self.emotions[emotion](self.shared(embedding))

    def forward(self, embedding: Tensor) -> Tensor:
        """Return (clips, classes): the logarithm of each emotion's probability of yes."""
        every = [self.answers(embedding, k).log_softmax(dim=1)[:, 1] for k in range(self.classes)]
        return torch.stack(every, dim=1)

    @property
    def classes(self) -> int:
        """How many emotions there are."""
        return len(self.emotions)


class MultitaskReleased(nn.Module):
    """Emotions are binary tasks; every step trains one of them, drawn at random.

    A new language's clips join the pool of source clips, on which the whole network goes on
    training by plain gradient descent: nothing is frozen, and nothing weighs the few new clips
    more than as many of the sources. What differs from the released code: training on the sources
    comes first and its outer loop is that of all methods (Adam, episodes of one corpus each,
    instead of SGD on batches of 512 from the pool), and no epoch is chosen by the test set.

    Parameters
    ----------
    model : Model
        Its backbone is used; its head is replaced by ``BinaryHeads``.
    steps : int
        Steps on the pool when adapting, at least 0.
    rate : float
        Step size when adapting.
    batch_size : int
        Clips of the pool a step.

    References
    ----------
    Released code of Chopra et al., "Meta-Learning for Low-Resource Speech Emotion Recognition",
    ICASSP 2021 (folder multi-task-classification).
    """

    ADAPTATION = frozenset({"steps", "rate", "batch_size"})
    """Arguments that matter only after training."""

    use_sources = True

    def __init__(
        self, model: Model, steps: int = 50, rate: float = 0.1, batch_size: int = 512
    ) -> None:
        super().__init__()
        check_steps(steps=steps)
        self.model = model
        self.model.head = BinaryHeads(embedding_dim(model), model.classes)
        self.steps = steps
        self.rate = rate
        self.batch_size = batch_size
        self.sources: list[Batch] = []

    def loss(self, episode: EpisodeBatch) -> Tensor:
        """Cross-entropy of one emotion's no and yes while training, else the mean over all."""
        batch = episode.joined()
        if self.training:
            return _binary_losses(self.model, batch, [_drawn(batch.classes)]).sum()
        losses = _binary_losses(self.model, batch, range(self.model.classes))
        return (losses * batch.classes).sum() / batch.classes.sum()

    def fit(self, sources: list[Batch]) -> None:
        """Keep the labelled clips of the source tasks, the pool that adapting trains on."""
        self.sources = sources

    def adapt(self, support: Batch) -> Predictor:
        """Train on with the labelled clips in the pool; the method itself stays as it is."""
        check_support(support)
        model = copy.deepcopy(self.model).train()
        body = model.body
        with torch.no_grad():
            pool = heard(model, join([support, *self.sources]))
        optimiser = torch.optim.SGD(body.parameters(), lr=self.rate)
        own = generators(device_of(self))
        with torch.random.fork_rng(devices=own), torch.enable_grad():
            torch.manual_seed(0)
            for _ in range(self.steps):
                batch = pool[torch.randperm(len(pool))[: self.batch_size]]
                optimiser.zero_grad()
                _binary_losses(body, batch, [_drawn(support.classes)]).sum().backward()
                optimiser.step()
        return predictor(model, {}, support.classes)


def _drawn(classes: Tensor) -> int:
    """One of the classes that are there, all equally likely."""
    there = classes.nonzero().flatten()
    return int(there[torch.randint(len(there), (1,))])


def _binary_losses(model: Model, batch: Batch, emotions: Iterable[int]) -> Tensor:
    """Cross-entropy of no and yes, of each of some emotions."""
    heads, embedding = cast(BinaryHeads, model.head), model.embed(batch.modalities)
    losses = [
        cross_entropy(heads.answers(embedding, k), (batch.targets == k).long()) for k in emotions
    ]
    return torch.stack(losses)
