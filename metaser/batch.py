"""The only tensor containers: padded sequences, labelled batches, the two sides of an episode."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

Rows = slice | Tensor | np.ndarray | Sequence[int]
"""What selects clips of a batch."""


@dataclass(frozen=True)
class Padded:
    """Sequences of different lengths in one tensor.

    Attributes
    ----------
    values : Tensor
        (clips, frames, channels) float; zero where ``mask`` is False.
    mask : Tensor
        (clips, frames) bool; True where a frame is real. The real frames of a clip come first.
    """

    values: Tensor
    mask: Tensor

    def __len__(self) -> int:
        """Return the number of clips."""
        return len(self.values)

    def mean(self) -> Tensor:
        """Return the mean over the real frames, (clips, channels); 0 where there is none."""
        if self.values.shape[-2] == 1:
            return self.values.squeeze(-2).masked_fill(~self.mask, 0)
        mask = self.mask.unsqueeze(-1)
        return (self.values * mask).sum(dim=-2) / mask.sum(dim=-2).clamp(min=1)

    def map(self, function: Callable[[Tensor], Tensor]) -> "Padded":
        """Apply a function of the leading dimensions to values and mask."""
        return Padded(function(self.values), function(self.mask))

    def lengthened(self, frames: int) -> "Padded":
        """Return the same sequences, padded to this many frames."""
        more = frames - self.mask.shape[-1]
        return Padded(pad(self.values, (0, 0, 0, more)), pad(self.mask, (0, more)))

    def __getitem__(self, rows: Rows) -> "Padded":
        """Return the chosen clips."""
        return Padded(self.values[rows], self.mask[rows])


@dataclass(frozen=True)
class Batch:
    """Labelled clips.

    Attributes
    ----------
    modalities : dict of str to Padded
        One entry per modality, named as backbones name their arguments ("audio", …).
    targets : Tensor
        (clips,) int64 class indices; or (clips, ratings) float, NaN where a clip is not rated, for
        methods whose loss is ``inner_loop.task_loss``.
    classes : Tensor
        (classes,) bool; which of the protocol's classes, or ratings, the task of these clips has.
    domains : dict of str to Tensor
        (clips,) int64 numbers of the "speaker" and the "corpus", which adversaries teach the
        embeddings to hide. They are unique over the source tasks of a training; empty where no
        method needs them.
    """

    modalities: dict[str, Padded]
    targets: Tensor
    classes: Tensor
    domains: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        """Return the number of clips."""
        return len(self.targets)

    def __getitem__(self, rows: Rows) -> "Batch":
        """Return the chosen clips."""
        chosen = {name: padded[rows] for name, padded in self.modalities.items()}
        domains = {name: numbers[rows] for name, numbers in self.domains.items()}
        return Batch(chosen, self.targets[rows], self.classes, domains)

    def to(self, device: str | torch.device) -> "Batch":
        """Return the same clips on another device."""
        moved = {
            name: padded.map(lambda x: x.to(device)) for name, padded in self.modalities.items()
        }
        domains = {name: numbers.to(device) for name, numbers in self.domains.items()}
        return Batch(moved, self.targets.to(device), self.classes.to(device), domains)


@dataclass(frozen=True)
class EpisodeBatch:
    """The tensors of one episode: a method adapts to ``support`` and is scored on ``query``.

    In a stack of episodes (see ``stack``) every tensor has a leading dimension of tasks.

    Attributes
    ----------
    support : Batch
        The clips to adapt to.
    query : Batch
        The clips to score.
    other : Batch, optional
        Clips of another source task, for methods that ask for them (``hears_other``).
    """

    support: Batch
    query: Batch
    other: Batch | None = None

    def map(self, function: Callable[[Batch], Batch]) -> "EpisodeBatch":
        """Apply a function to support, query and, where there are any, the other clips."""
        other = None if self.other is None else function(self.other)
        return EpisodeBatch(function(self.support), function(self.query), other)

    def to(self, device: str | torch.device) -> "EpisodeBatch":
        """Return the same episode on another device."""
        return self.map(lambda batch: batch.to(device))

    def joined(self) -> Batch:
        """Return support and query as one batch, for methods that learn from all clips alike."""
        return join([self.support, self.query])


def join(batches: Sequence[Batch]) -> Batch:
    """Put the clips of several batches, or of stacks of batches, into one.

    Sequences are padded to the longest.

    Parameters
    ----------
    batches : sequence of Batch
        At least one, all with the same modalities and domains.

    Returns
    -------
    Batch
        The clips in the order given; ``classes`` has every class that one of the batches has.
    """
    modalities = {
        name: _join_padded([batch.modalities[name] for batch in batches])
        for name in batches[0].modalities
    }
    domains = {
        name: torch.cat([batch.domains[name] for batch in batches], dim=-1)
        for name in batches[0].domains
    }
    clips = batches[0].classes.dim() - 1  # ratings have a further dimension
    targets = torch.cat([batch.targets for batch in batches], dim=clips)
    classes = torch.stack([batch.classes for batch in batches]).any(dim=0)
    return Batch(modalities, targets, classes, domains)


def mean_frames(modalities: dict[str, Padded]) -> Tensor:
    """Return the mean frame of each clip (clips, channels), modalities side by side."""
    return torch.cat([padded.mean() for padded in modalities.values()], dim=1)


def check_modalities(modalities: dict[str, Padded]) -> None:
    """Refuse modalities that do not have the same clips; only shapes are checked.

    Parameters
    ----------
    modalities : dict of str to Padded
        One entry per modality.

    Raises
    ------
    ValueError
        If they differ in their number of clips, or one has no frames.
    """
    for name, padded in modalities.items():
        if padded.mask.shape[-1] == 0:
            raise ValueError(
                f"modality {name!r} must have sequences of at least 1 frame, not 0: for a clip "
                "without it pass a row whose mask is all False; leave it out where no clip has it"
            )
    clips = {name: int(padded.mask.shape[-2]) for name, padded in modalities.items()}
    if len(set(clips.values())) > 1:
        raise ValueError(
            f"all modalities must have one row per clip, not {clips} rows: for a clip without "
            "a modality pass a row whose mask is all False"
        )


def stack(episodes: Sequence[EpisodeBatch]) -> EpisodeBatch:
    """Stack episodes of equal size into one whose tensors have a leading dimension of tasks.

    Sequences are padded to the longest. Methods take such a stack like an episode, and return one
    loss per task.

    Parameters
    ----------
    episodes : sequence of EpisodeBatch
        At least one.

    Returns
    -------
    EpisodeBatch
        Tensors (tasks, clips, …).

    Raises
    ------
    ValueError
        If the numbers of clips differ.
    """
    others = [episode.other for episode in episodes if episode.other is not None]
    return EpisodeBatch(
        stack_batches([episode.support for episode in episodes]),
        stack_batches([episode.query for episode in episodes]),
        stack_batches(others) if others else None,
    )


def stack_batches(batches: Sequence[Batch]) -> Batch:
    """Stack batches of equal size into one whose tensors are (tasks, clips, …); see ``stack``.

    Raises
    ------
    ValueError
        If the numbers of clips differ.
    """
    sizes = {len(batch) for batch in batches}
    if len(sizes) > 1:
        raise ValueError(
            f"batches to stack must have equally many clips, not {sorted(sizes)}: "
            "stack those of equal size"
        )
    modalities = {
        name: _stack_padded([batch.modalities[name] for batch in batches])
        for name in batches[0].modalities
    }
    targets = torch.stack([batch.targets for batch in batches])
    classes = torch.stack([batch.classes for batch in batches])
    domains = {
        name: torch.stack([batch.domains[name] for batch in batches]) for name in batches[0].domains
    }
    return Batch(modalities, targets, classes, domains)


def _equally_long(parts: Sequence[Padded]) -> list[Padded]:
    """Pad all to the number of frames of the longest."""
    frames = max(part.mask.shape[-1] for part in parts)
    return [part.lengthened(frames) for part in parts]


def _join_padded(parts: Sequence[Padded]) -> Padded:
    """The clips of one modality, one part after the other."""
    parts = _equally_long(parts)
    return Padded(
        torch.cat([part.values for part in parts], dim=-3),
        torch.cat([part.mask for part in parts], dim=-2),
    )


def _stack_padded(parts: Sequence[Padded]) -> Padded:
    """The clips of one modality, with a leading dimension of tasks."""
    parts = _equally_long(parts)
    return Padded(
        torch.stack([part.values for part in parts]), torch.stack([part.mask for part in parts])
    )
