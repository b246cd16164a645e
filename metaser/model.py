"""A model: a backbone turns clips into embeddings, a head turns embeddings into class scores.

A learnable front end may come before the backbone.
"""

import copy
import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from metaser.batch import Padded, check_modalities
from metaser.contracts import frontend_traits

BATCH_NORMS = ("refuse", "task", "group")
"""What `settle_batch_norm` can do about running statistics."""

HEARD = 16
"""Clips that a front end reads at once where no gradient is needed."""


class Model(nn.Module):
    """A backbone with a head, and a learnable front end if there is one.

    Parameters
    ----------
    backbone : nn.Module
        Takes ``Padded`` arguments named by modality; returns embeddings (clips, ``backbone.dim``).
    classes : int
        Scores per clip.
    hidden : int, optional
        Width of a dense layer without activation between embedding and scores, as in the MetaSER
        paper (128). Without it the head is one dense layer.
    batch_norm : {"refuse", "task", "group"}
        What to do with the backbone's BatchNorm layers, see ``settle_batch_norm``.
    frontend : nn.Module, optional
        Takes the ``Padded`` of modality "audio" and returns another. If its attribute ``adapts`` is
        False, inner loops and fine-tuning on a few clips leave it unchanged.

    Raises
    ------
    ValueError
        If the backbone has layers with running statistics and ``batch_norm`` is "refuse".
    """

    def __init__(
        self,
        backbone: nn.Module,
        classes: int,
        hidden: int | None = None,
        batch_norm: str = "refuse",
        frontend: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.frontend = frontend
        self.backbone = backbone
        settle_batch_norm(backbone, batch_norm)
        self.classes = classes
        dim = cast(int, backbone.dim)
        self.head: nn.Module
        if hidden is None:
            self.head = nn.Linear(dim, classes)
        else:
            self.head = nn.Sequential(nn.Linear(dim, hidden), nn.Linear(hidden, classes))

    def forward(self, modalities: dict[str, Padded]) -> Tensor:
        """Return (clips, classes) logits.

        Raises
        ------
        ValueError
            As in ``embed``.
        """
        logits: Tensor = self.head(self.embed(modalities))
        return logits

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
        embeddings: Tensor = self.backbone(**modalities)
        return embeddings

    def hear(self, audio: Padded) -> Padded:
        """Return the output of the front end; the clips as they are if there is none.

        Where no gradient is needed it reads a few clips at a time, to save memory.
        """
        if self.frontend is None:
            return audio
        if torch.is_grad_enabled():
            frames: Padded = self.frontend(audio)
            return frames
        starts = range(0, len(audio), HEARD)
        parts = [self.frontend(audio[start : start + HEARD]) for start in starts]
        return Padded(
            torch.cat([part.values for part in parts]), torch.cat([part.mask for part in parts])
        )

    @property
    def body(self) -> "Model":
        """The part that adapts to a few clips: all but a front end that does not adapt.

        It shares its parameters with this model, under the same names.
        """
        if self.frontend is None or frontend_traits(self.frontend).adapts:
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
        "refuse" raises an error that names the layers. "task" normalises every batch by its own
        statistics, in adapting and in predicting, so that the prediction of a clip depends on the
        others of its batch. "group" replaces BatchNorm by GroupNorm, which normalises each clip
        alone.

    Raises
    ------
    ValueError
        If there is such a layer and ``how`` is "refuse", or ``how`` is not known.
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
            f"{type(module).__name__} must not have layers with running statistics, which leak "
            f"from one episode into the next, but has some ({', '.join(leaking)}): set batch_norm "
            "= 'task' (statistics of each batch) or 'group' (GroupNorm)"
        )
    for name, layer in leaking.items():
        parent, _, child = name.rpartition(".")
        setattr(module.get_submodule(parent), child, _without_history(layer, how))


def _without_history(layer: _NormBase, how: str) -> nn.Module:
    """Return a layer without running statistics, with the scale and offset of ``layer``."""
    channels, eps, affine = layer.num_features, layer.eps, layer.affine
    new: nn.Module
    if how == "task" or not isinstance(layer, _BatchNorm):
        new = type(layer)(channels, eps=eps, affine=affine, track_running_stats=False)
    else:
        groups = math.gcd(channels, max(channels // 16, 1))  # of 16 channels, if that divides
        new = nn.GroupNorm(groups, channels, eps=eps, affine=affine)
    if affine:
        new.to(layer.weight).load_state_dict(dict(layer.named_parameters()))
        for name, value in layer.named_parameters():
            new.get_parameter(name).requires_grad_(value.requires_grad)
    return new
