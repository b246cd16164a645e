"""Multitask learning over emotions: MultiSER."""

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from metaser.batch import Batch, EpisodeBatch
from metaser.methods.inner_loop import Predictor, fine_tune, predictor
from metaser.model import Model


class ClassHeads(nn.Module):
    """One small one-against-the-rest network a class, on a shared embedding.

    Parameters
    ----------
    dim : int
        Width of the embedding.
    classes : int
        Networks, one score each.
    hidden : int
        Width of each network's dense layer.
    """

    def __init__(self, dim: int, classes: int, hidden: int):
        super().__init__()
        self.dense = nn.ModuleList(nn.Linear(dim, hidden) for _ in range(classes))
        self.score = nn.ModuleList(nn.Linear(hidden, 1) for _ in range(classes))

    def forward(self, embedding: Tensor) -> Tensor:
        """Return (clips, classes) logits, each for its class against the rest."""
        pairs = zip(self.dense, self.score)
        return torch.cat([score(torch.relu(dense(embedding))) for dense, score in pairs], dim=1)

    def spread(self) -> Tensor:
        """Mean squared distance of the classes' dense layers from their mean."""
        weights = torch.stack([dense.weight for dense in self.dense])
        return (weights - weights.mean(dim=0)).square().sum(dim=(1, 2)).mean()


class Multitask(nn.Module):
    """Every emotion is a task of its own; the tasks share the backbone.

    The paper trains the emotions in turn and shares parameters softly; one step here takes a whole
    turn, and the dense layers of the emotions are pulled towards their mean. On a new language
    the dense layers are fine-tuned while the backbone is frozen.

    Parameters
    ----------
    model : Model
        Its backbone is used; its head is replaced by one network a class.
    hidden : int
        Width of each class's dense layer; the released code of the paper has 64.
    sharing : float
        Weight of the pull between the classes' dense layers, at least 0.
    steps : int
        Fine-tuning steps on the support set.
    rate : float
        Highest fine-tuning rate of the cyclic schedule.

    References
    ----------
    Chopra et al., "Meta-Learning for Low-Resource Speech Emotion Recognition", ICASSP 2021.
    """

    ADAPTATION = frozenset({"steps", "rate"})
    """Arguments that matter only after training."""

    order = "mixed"

    def __init__(
        self,
        model: Model,
        hidden: int = 64,
        sharing: float = 1e-3,
        steps: int = 50,
        rate: float = 1e-3,
    ):
        super().__init__()
        self.model = model
        self.model.head = ClassHeads(model.backbone.dim, model.classes, hidden)
        self.sharing = sharing
        self.steps = steps
        self.rate = rate

    def loss(self, episode: EpisodeBatch) -> Tensor:
        """Mean binary cross-entropy of the classes, and the pull between their dense layers."""
        batch = episode.joined()
        loss = _one_against_rest(self.model(batch.modalities), batch.targets, batch.classes)
        return loss + self.sharing * self.model.head.spread()

    def adapt(self, support: Batch) -> Predictor:
        """Fine-tune the dense layers on labelled clips; the method itself stays as it is."""
        head = self.model.head
        with torch.no_grad():
            embeddings = self.model.backbone(**support.modalities)

        def loss(tuned, rows):
            scores = functional_call(head, tuned, (embeddings[rows],))
            return _one_against_rest(scores, support.targets[rows], support.classes)

        parameters = dict(head.named_parameters())
        tuned = fine_tune(loss, parameters, len(support), self.steps, self.rate)
        whole = {f"head.{name}": value for name, value in tuned.items()}
        return predictor(self.model, whole, support.classes)


def _one_against_rest(scores: Tensor, targets: Tensor, classes: Tensor) -> Tensor:
    wanted = functional.one_hot(targets, scores.shape[1]).to(scores.dtype)
    return functional.binary_cross_entropy_with_logits(scores[:, classes], wanted[:, classes])
