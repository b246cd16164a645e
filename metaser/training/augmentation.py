"""Augmentation of features, for training only."""

import torch
from torch import Tensor

from metaser.batch import Padded

MASKS = 2
"""Masks per clip along each axis, as in SpecAugment's policies."""


def spec_augment(audio: Padded, frames: int, channels: int, draw: torch.Generator) -> Padded:
    """Replace stretches of time and bands of channels of every clip by the mean of all clips.

    Parameters
    ----------
    audio : Padded
        Features (clips, frames, channels).
    frames, channels : int
        Widest mask along each axis; every width up to it is equally likely. No mask covers more
        than half of a clip or of the channels.
    draw : torch.Generator
        Decides widths and places.

    Returns
    -------
    Padded
        Masked features of the same shape; the padding stays as it is.

    References
    ----------
    Park et al., "SpecAugment", Interspeech 2019.
    """
    clips, _, width = audio.values.shape
    time = _stretches(audio.mask.sum(dim=-1), audio.mask.shape[-1], frames, draw)
    bands = _stretches(torch.full((clips,), width), width, channels, draw)
    hidden = (time.unsqueeze(-1) | bands.unsqueeze(-2)) & audio.mask.unsqueeze(-1)
    mean = audio.values[audio.mask].mean(dim=0)
    return Padded(torch.where(hidden, mean, audio.values), audio.mask)


def _stretches(lengths: Tensor, size: int, widest: int, draw: torch.Generator) -> Tensor:
    """Return which places (clips, size) are in a stretch, drawn within the length of each clip."""
    shape = MASKS, len(lengths), 1
    lengths = lengths.unsqueeze(-1)
    widths = torch.rand(shape, generator=draw) * ((lengths // 2).clamp(max=widest) + 1)
    widths = widths.long()
    starts = (torch.rand(shape, generator=draw) * (lengths - widths + 1)).long()
    place = torch.arange(size)
    return ((place >= starts) & (place < starts + widths)).any(dim=0)
