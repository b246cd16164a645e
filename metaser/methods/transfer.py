"""Transfer learning: train on the source languages, then fine-tune on the target's few clips."""

import torch
from torch import Tensor, nn
from torch.func import functional_call

from metaser.batch import Batch, EpisodeBatch
from metaser.losses import cross_entropy
from metaser.methods.inner_loop import Predictor, fine_tune, predictor, support_loss
from metaser.model import Model


class Transfer(nn.Module):
    """Pre-training on source corpora, then fine-tuning: TransSER and its relatives.

    Parameters
    ----------
    model : Model
        Any backbone and head.
    order : {"sequential", "mixed"}
        Pre-train on one source corpus after the other, as the paper's TransSER does, or on all
        of them in every step.
    pretrain : bool
        Without pre-training the target's clips are all the model ever sees (from scratch).
    trainable : {"head", "all"}
        What fine-tuning changes: the dense layers after a frozen backbone, or everything.
    steps : int
        Fine-tuning steps; 0 leaves the pre-trained model as it is (zero-shot).
    rate : float
        Highest fine-tuning rate of the cyclic schedule.

    References
    ----------
    Chopra et al., "Meta-Learning for Low-Resource Speech Emotion Recognition", ICASSP 2021.
    """

    ADAPTATION = frozenset({"trainable", "steps", "rate"})
    """Arguments that matter only after training."""

    def __init__(
        self,
        model: Model,
        order: str = "mixed",
        pretrain: bool = True,
        trainable: str = "all",
        steps: int = 50,
        rate: float = 1e-3,
    ):
        super().__init__()
        if order not in ("sequential", "mixed"):
            raise ValueError(f"order must be 'sequential' or 'mixed', not {order!r}")
        if trainable not in ("head", "all"):
            raise ValueError(f"trainable must be 'head' or 'all', not {trainable!r}")
        self.model = model
        self.order = order
        self.pretrain = pretrain
        self.trainable = trainable
        self.steps = steps
        self.rate = rate

    def loss(self, episode: EpisodeBatch) -> Tensor:
        """Cross-entropy over all clips of the episode."""
        batch = episode.joined()
        return cross_entropy(self.model(batch.modalities), batch.targets, batch.classes)

    def adapt(self, support: Batch) -> Predictor:
        """Fine-tune on labelled clips of a language; the method itself stays as it is."""
        return adapt_by_fine_tuning(self.model, support, self.trainable, self.steps, self.rate)


def adapt_by_fine_tuning(
    model: Model, support: Batch, trainable: str, steps: int, rate: float
) -> Predictor:
    """Fine-tune the head, or everything, on a support set and return the predictor."""
    if trainable == "all":
        parameters = dict(model.named_parameters())

        def loss(tuned, rows):
            return support_loss(model, tuned, support[rows])
    else:
        parameters = {f"head.{name}": value for name, value in model.head.named_parameters()}
        with torch.no_grad():
            embeddings = model.backbone(**support.modalities)

        def loss(tuned, rows):
            own = {name.removeprefix("head."): value for name, value in tuned.items()}
            scores = functional_call(model.head, own, (embeddings[rows],))
            return cross_entropy(scores, support.targets[rows], support.classes)

    tuned = fine_tune(loss, parameters, len(support), steps, rate)
    return predictor(model, tuned, support.classes)
