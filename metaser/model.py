"""A model: a backbone turns clips into embeddings, a head turns embeddings into class scores."""

from torch import Tensor, nn

from metaser.batch import Padded


class Model(nn.Module):
    """Backbone and head.

    Parameters
    ----------
    backbone : nn.Module
        Takes ``Padded`` arguments named by modality; returns embeddings (clips, ``backbone.dim``).
    classes : int
        Scores a clip.
    hidden : int, optional
        Width of a dense layer without activation between embedding and scores, as in the MetaSER
        paper (128). Without it the head is one dense layer.
    """

    def __init__(self, backbone: nn.Module, classes: int, hidden: int | None = None):
        super().__init__()
        self.backbone = backbone
        self.classes = classes
        if hidden is None:
            self.head = nn.Linear(backbone.dim, classes)
        else:
            self.head = nn.Sequential(nn.Linear(backbone.dim, hidden), nn.Linear(hidden, classes))

    def forward(self, modalities: dict[str, Padded]) -> Tensor:
        """Return (clips, classes) logits."""
        return self.head(self.backbone(**modalities))
