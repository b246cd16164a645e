"""Multitask learning: every emotion is a task of its own (MultiSER)."""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from metaser.batch import Batch, EpisodeBatch
from metaser.contracts import Predictor
from metaser.methods.fine_tune import tune_head
from metaser.methods.inner_loop import (
    call,
    check_steps,
    check_support,
    embedding_dim,
    is_stack,
)
from metaser.model import Model


class ClassHeads(nn.Module):
    """One small network per class on a shared embedding, which scores the class against the rest.

    Parameters
    ----------
    dim : int
        Length of the embedding.
    classes : int
        Number of classes, and so of networks.
    hidden : int
        Width of the dense layer of each network.
    """

    def __init__(self, dim: int, classes: int, hidden: int) -> None:
        super().__init__()
        self.classes = classes
        self.dense = nn.Linear(dim, classes * hidden)
        self.score = nn.Conv1d(classes * hidden, classes, kernel_size=1, groups=classes)

    def forward(self, embedding: Tensor) -> Tensor:
        """Return (clips, classes) logits, each for its class against the rest."""
        return self.score(torch.relu(self.dense(embedding)).unsqueeze(-1)).squeeze(-1)

    def spread(self) -> Tensor:
        """Return the mean squared distance of the classes' dense layers from their mean."""
        weights = self.dense.weight.unflatten(0, (self.classes, -1))
        return (weights - weights.mean(dim=0)).square().sum(dim=(1, 2)).mean()


class Multitask(nn.Module):
    """Learn to tell each emotion from the rest; the emotions share the backbone.

    The paper trains the emotions in turn, and ties their parameters together softly. Here one step
    trains all emotions, and their dense layers are pulled towards their mean. On a new language,
    the dense layers are fine-tuned while the backbone is frozen.

    Parameters
    ----------
    model : Model
        Its backbone is used; its head is replaced by ``ClassHeads``.
    hidden : int
        Width of the dense layer of each class; the released code of the paper has 64.
    sharing : float
        Weight of the pull between the classes' dense layers, at least 0.
    steps : int
        Fine-tuning steps on the support set, at least 0.
    rate : float
        Highest rate of the cyclic schedule of fine-tuning.

    Raises
    ------
    ValueError
        If ``steps`` is below 0.

    References
    ----------
    Chopra et al., "Meta-Learning for Low-Resource Speech Emotion Recognition", ICASSP 2021.
    """

    ADAPTATION = frozenset({"steps", "rate"})
    """Arguments that matter only after training."""

    order = "mixed"
    stackable = True

    def __init__(
        self,
        model: Model,
        hidden: int = 64,
        sharing: float = 1e-3,
        steps: int = 50,
        rate: float = 1e-3,
    ) -> None:
        super().__init__()
        check_steps(steps=steps)
        self.model = model
        self.model.head = ClassHeads(embedding_dim(model), model.classes, hidden)
        self.sharing = sharing
        self.steps = steps
        self.rate = rate

    def loss(self, episode: EpisodeBatch) -> Tensor:
        """Return the mean binary cross-entropy of the classes, plus the pull between them."""
        batch = episode.joined()
        scores = call(self.model, {}, batch.modalities, is_stack(batch))
        loss = _one_against_rest(scores, batch.targets, batch.classes)
        return loss + self.sharing * cast(ClassHeads, self.model.head).spread()

    def adapt(self, support: Batch) -> Predictor:
        """Fine-tune the dense layers on labelled clips; the method itself does not change."""
        check_support(support)
        return tune_head(self.model, support, _one_against_rest, steps=self.steps, rate=self.rate)


def _one_against_rest(scores: Tensor, targets: Tensor, classes: Tensor) -> Tensor:
    """Return the mean binary cross-entropy over clips and the classes that a task has.

    It is a scalar, or one value per task for a stack.
    """
    members = functional.one_hot(targets, scores.shape[-1]).to(scores.dtype)
    losses = functional.binary_cross_entropy_with_logits(scores, members, reduction="none")
    return (losses.mean(dim=-2) * classes).sum(dim=-1) / classes.sum(dim=-1)
