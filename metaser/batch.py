"""The only tensor containers: padded sequences, labelled batches, the two sides of an episode."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad


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
        """Mean over the real frames, (clips, channels); 0 where there is none."""
        if self.values.shape[-2] == 1:
            return self.values.squeeze(-2)
        mask = self.mask.unsqueeze(-1)
        return (self.values * mask).sum(dim=-2) / mask.sum(dim=-2).clamp(min=1)

    def map(self, function: Callable[[Tensor], Tensor]) -> "Padded":
        """Apply a change of leading dimensions to values and mask."""
        return Padded(function(self.values), function(self.mask))

    def lengthened(self, frames: int) -> "Padded":
        """Padded further, to so many frames."""
        more = frames - self.mask.shape[-1]
        return Padded(pad(self.values, (0, 0, 0, more)), pad(self.mask, (0, more)))

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

    def to(self, device: str | torch.device) -> "Batch":
        """The same clips on another device."""
        moved = {
            name: padded.map(lambda x: x.to(device)) for name, padded in self.modalities.items()
        }
        return Batch(moved, self.targets.to(device), self.classes.to(device))


@dataclass(frozen=True)
class EpisodeBatch:
    """The tensors of one episode: a method adapts to ``support`` and is judged on ``query``.

    In a stack of episodes (``stack``) every tensor has a leading dimension of tasks.
    """

    support: Batch
    query: Batch

    def to(self, device: str | torch.device) -> "EpisodeBatch":
        """The same episode on another device."""
        return EpisodeBatch(self.support.to(device), self.query.to(device))

    def joined(self) -> Batch:
        """Support and query as one batch, for methods that learn from all clips alike."""
        pairs = [
            (self.support.modalities[m], self.query.modalities[m]) for m in self.support.modalities
        ]
        joined = [_join_padded(*_equally_long(pair)) for pair in pairs]
        return Batch(
            dict(zip(self.support.modalities, joined)),
            torch.cat([self.support.targets, self.query.targets], dim=-1),
            self.support.classes,
        )


def stack(episodes: Sequence[EpisodeBatch]) -> EpisodeBatch:
    """Put episodes of equal size into one whose tensors have a leading dimension of tasks.

    Sequences are padded to the longest. Methods take such a stack like an episode, and return one
    loss a task.

    Raises
    ------
    ValueError
        If the numbers of clips differ.
    """
    return EpisodeBatch(
        stack_batches([episode.support for episode in episodes]),
        stack_batches([episode.query for episode in episodes]),
    )


def stack_batches(batches: Sequence[Batch]) -> Batch:
    """Put batches of equal size into one, see ``stack``."""
    sizes = {len(batch) for batch in batches}
    if len(sizes) > 1:
        raise ValueError(f"batches to stack must have equally many clips, not {sorted(sizes)}")
    modalities = {
        name: _stack_padded([batch.modalities[name] for batch in batches])
        for name in batches[0].modalities
    }
    targets = torch.stack([batch.targets for batch in batches])
    return Batch(modalities, targets, torch.stack([batch.classes for batch in batches]))


def _equally_long(parts: Sequence[Padded]) -> list[Padded]:
    """Pad all to the frames of the longest."""
    frames = max(part.mask.shape[-1] for part in parts)
    return [part.lengthened(frames) for part in parts]


def _join_padded(a: Padded, b: Padded) -> Padded:
    return Padded(torch.cat([a.values, b.values], dim=-3), torch.cat([a.mask, b.mask], dim=-2))


def _stack_padded(parts: Sequence[Padded]) -> Padded:
    parts = _equally_long(parts)
    return Padded(
        torch.stack([part.values for part in parts]), torch.stack([part.mask for part in parts])
    )
