"""MultiSER as in the released code of its paper, which differs from the paper."""

import copy
from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from metaser.batch import Batch, EpisodeBatch, join
from metaser.contracts import Predictor
from metaser.machine import device_of, generators
from metaser.methods.inner_loop import (
    check_steps,
    check_support,
    embedding_dim,
    heard,
    predictor,
)
from metaser.model import Model


class BinaryHeads(nn.Module):
    """A dense layer that all emotions share, then one network per emotion that says no or yes.

    Parameters
    ----------
    dim : int
        Length of the embedding.
    classes : int
        Number of emotions.
    shared : int
        Width of the shared layer, which has no activation.
    hidden : int
        Width of the dense layer of each emotion, before BatchNorm and ReLU.
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
        """Return logits (clips, 2) of no and yes for one emotion, given by its index."""
        logits: Tensor = self.emotions[emotion](self.shared(embedding))
        return logits

    def forward(self, embedding: Tensor) -> Tensor:
        """Return (clips, classes): the logarithm of each emotion's probability of yes."""
        scores = [
            self.answers(embedding, emotion).log_softmax(dim=1)[:, 1]
            for emotion in range(self.classes)
        ]
        return torch.stack(scores, dim=1)

    @property
    def classes(self) -> int:
        """Number of emotions."""
        return len(self.emotions)


class MultitaskReleased(nn.Module):
    """Every emotion is a binary task; every step trains one of them, drawn at random.

    To adapt, the clips of the new language join the pool of source clips, and the whole network is
    trained on by plain gradient descent. Nothing is frozen, and a new clip weighs no more than a
    source clip.

    Three things differ from the released code. Training on the sources comes first. Its outer loop
    is that of all methods here: Adam and episodes of one corpus each, not SGD and batches of 512
    clips from the pool. And no epoch is chosen by the test set.

    Parameters
    ----------
    model : Model
        Its backbone is used; its head is replaced by ``BinaryHeads``.
    steps : int
        Steps on the pool when adapting, at least 0.
    rate : float
        Step size when adapting.
    batch_size : int
        Clips of the pool per step.

    Raises
    ------
    ValueError
        If ``steps`` is below 0.

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
        """Return the cross-entropy of no and yes: of one emotion while training, else of all."""
        batch = episode.joined()
        if self.training:
            return _binary_losses(self.model, batch, [_drawn(batch.classes)]).sum()
        losses = _binary_losses(self.model, batch, range(self.model.classes))
        return (losses * batch.classes).sum() / batch.classes.sum()

    def fit(self, sources: list[Batch]) -> None:
        """Keep the labelled clips of the source tasks for the pool that adapting trains on."""
        self.sources = sources

    def adapt(self, support: Batch) -> Predictor:
        """Train on, with the labelled clips in the pool; the method itself does not change."""
        check_support(support)
        model = copy.deepcopy(self.model).train()
        body = model.body
        with torch.no_grad():
            pool = heard(model, join([support, *self.sources]))
        optimiser = torch.optim.SGD(body.parameters(), lr=self.rate)
        forked = generators(device_of(self))
        with torch.random.fork_rng(devices=forked), torch.enable_grad():
            torch.manual_seed(0)
            for _ in range(self.steps):
                batch = pool[torch.randperm(len(pool))[: self.batch_size]]
                optimiser.zero_grad()
                _binary_losses(body, batch, [_drawn(support.classes)]).sum().backward()
                optimiser.step()
        return predictor(model, {}, support.classes)


def _drawn(classes: Tensor) -> int:
    """Return the index of a class that the task has, all equally likely."""
    present = classes.nonzero().flatten()
    return int(present[torch.randint(len(present), (1,))])


def _binary_losses(model: Model, batch: Batch, emotions: Iterable[int]) -> Tensor:
    """Return the cross-entropy (emotions,) of no and yes for each of some emotions."""
    heads, embedding = cast(BinaryHeads, model.head), model.embed(batch.modalities)
    losses = [
        cross_entropy(heads.answers(embedding, emotion), (batch.targets == emotion).long())
        for emotion in emotions
    ]
    return torch.stack(losses)
