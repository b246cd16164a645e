"""The only tensor containers: padded sequences, labelled batches, the two sides of an episode."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Padded:
    """Sequences of different lengths in one tensor.

    Attributes
    ----------
    values : Tensor
        (clips, frames, channels) float; zero where ``mask`` is False.
    mask : Tensor
        (clips, frames) bool; True where a frame is real. Real frames come first.
    """

    values: Tensor
    mask: Tensor

    def __len__(self) -> int:
        return len(self.values)

    def mean(self) -> Tensor:
        """Mean over the real frames, (clips, channels)."""
        mask = self.mask.unsqueeze(-1)
        return (self.values * mask).sum(dim=1) / mask.sum(dim=1)

    def __getitem__(self, rows) -> "Padded":
        return Padded(self.values[rows], self.mask[rows])


@dataclass(frozen=True)
class Batch:
    """Labelled clips.

    Attributes
    ----------
    modalities : dict of str to Padded
        One entry a modality, named as backbones name their arguments ("audio", …).
    targets : Tensor
        (clips,) int64 class indices.
    classes : Tensor
        (classes,) bool; which of the protocol's classes the task of these clips has.
    """

    modalities: dict[str, Padded]
    targets: Tensor
    classes: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, rows) -> "Batch":
        chosen = {name: padded[rows] for name, padded in self.modalities.items()}
        return Batch(chosen, self.targets[rows], self.classes)


@dataclass(frozen=True)
class EpisodeBatch:
    """The tensors of one episode: a method adapts to ``support`` and is judged on ``query``."""

    support: Batch
    query: Batch

    def joined(self) -> Batch:
        """Support and query as one batch, for methods that learn from all clips alike."""
        pairs = [
            (self.support.modalities[m], self.query.modalities[m]) for m in self.support.modalities
        ]
        joined = [
            Padded(torch.cat([a.values, b.values]), torch.cat([a.mask, b.mask])) for a, b in pairs
        ]
        return Batch(
            dict(zip(self.support.modalities, joined)),
            torch.cat([self.support.targets, self.query.targets]),
            self.support.classes,
        )
