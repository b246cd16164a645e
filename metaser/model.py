"""A model: a backbone turns clips into embeddings, a head turns embeddings into class scores.

A learnable front end may come before the backbone.
"""

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from metaser.batch import Padded, check_modalities

BATCH_NORMS = ("refuse", "task", "group")

HEARD = 16
"""Clips that a front end hears at once where no gradient is wanted."""


class Model(nn.Module):
    """Learnable front end, where there is one, backbone and head.

    Parameters
    ----------
    backbone : nn.Module
        Takes ``Padded`` arguments named by modality; returns embeddings (clips, ``backbone.dim``).
    classes : int
        Scores a clip.
    hidden : int, optional
        Width of a dense layer without activation between embedding and scores, as in the MetaSER
        paper (128). Without it the head is one dense layer.
    batch_norm : {"refuse", "task", "group"}
        What becomes of the backbone's BatchNorm layers, see ``settle_batch_norm``.
    frontend : nn.Module, optional
        Takes the ``Padded`` of modality "audio" and returns another. If its attribute ``adapts`` is
        False, inner loops and fine-tuning on a few clips leave it as it is.
    """

    def __init__(
        self,
        backbone: nn.Module,
        classes: int,
        hidden: int | None = None,
        batch_norm: str = "refuse",
        frontend: nn.Module | None = None,
    ):
        super().__init__()
        self.frontend = frontend
        self.backbone = backbone
        settle_batch_norm(backbone, batch_norm)
        self.classes = classes
        if hidden is None:
            self.head = nn.Linear(backbone.dim, classes)
        else:
            self.head = nn.Sequential(nn.Linear(backbone.dim, hidden), nn.Linear(hidden, classes))

    def forward(self, modalities: dict[str, Padded]) -> Tensor:
        """Return (clips, classes) logits."""
        return self.head(self.embed(modalities))

    def embed(self, modalities: dict[str, Padded]) -> Tensor:
        """Return embeddings (clips, ``backbone.dim``).

        Raises
        ------
        ValueError
            If the modalities differ in their number of clips, or one has no frames.
        """
        check_modalities(modalities)
        if self.frontend is not None:
            modalities = {**modalities, "audio": self.hear(modalities["audio"])}
        return self.backbone(**modalities)

    def hear(self, audio: Padded) -> Padded:
        """What the front end makes of clips, some at a time where memory need not hold them all."""
        if torch.is_grad_enabled():
            return self.frontend(audio)
        starts = range(0, len(audio), HEARD)
        parts = [self.frontend(audio[start : start + HEARD]) for start in starts]
        return Padded(
            torch.cat([part.values for part in parts]), torch.cat([part.mask for part in parts])
        )

    @property
    def body(self) -> "Model":
        """What adapting to a few clips changes: all but a front end that is left as it is.

        It shares its parameters with this model, under the same names.
        """
        if self.frontend is None or getattr(self.frontend, "adapts", True):
            return self
        body = copy.copy(self)
        body._modules = {**self._modules, "frontend": None}
        return body


def settle_batch_norm(module: nn.Module, how: str) -> None:
    """Replace layers whose running statistics would leak from one episode into the next.

    Parameters
    ----------
    module : nn.Module
        Changed in place.
    how : {"refuse", "task", "group"}
        Raise an error that names the layers; normalise every batch by its own statistics, so that
        the clips of a task are seen together, in adapting and in predicting; or take GroupNorm,
        which looks at one clip alone.

    Raises
    ------
    ValueError
        If there is such a layer and it is to be refused.
    """
    if how not in BATCH_NORMS:
        raise ValueError(f"batch_norm must be one of {BATCH_NORMS}, not {how!r}")
    leaking = {
        name: layer
        for name, layer in module.named_modules(remove_duplicate=False)
        if isinstance(layer, _NormBase) and layer.track_running_stats
    }
    if leaking and how == "refuse":
        raise ValueError(
            f"{type(module).__name__} has layers with running statistics ({', '.join(leaking)}), "
            "which would leak from one episode into the next: set batch_norm = 'task' "
            "(statistics of each batch) or 'group' (GroupNorm)"
        )
    for name, layer in leaking.items():
        parent, _, own = name.rpartition(".")
        setattr(module.get_submodule(parent), own, _without_history(layer, how))


def _without_history(layer: _NormBase, how: str) -> nn.Module:
    """A layer that keeps nothing, with the scale and offset of ``layer``."""
    channels, options = layer.num_features, {"eps": layer.eps, "affine": layer.affine}
    if how == "task" or not isinstance(layer, _BatchNorm):
        new = type(layer)(channels, track_running_stats=False, **options)
    else:
        groups = math.gcd(channels, max(channels // 16, 1))  # of 16 channels, where that goes
        new = nn.GroupNorm(groups, channels, **options)
    if layer.affine:
        new.to(layer.weight).load_state_dict(dict(layer.named_parameters()))
        for name, value in layer.named_parameters():
            new.get_parameter(name).requires_grad_(value.requires_grad)
    return new
