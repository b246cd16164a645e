"""Layers and checks that backbones share."""

import torch
from torch import Tensor, nn

from metaser.batch import Padded


def statistics_pooling(values: Tensor, mask: Tensor) -> Tensor:
    """Return maximum, mean and standard deviation over the real frames.

    Parameters
    ----------
    values : Tensor
        (clips, channels, frames).
    mask : Tensor
        (clips, frames) bool.

    Returns
    -------
    Tensor
        (clips, 3 x channels); 0 for a clip without real frames.
    """
    not_empty = mask.any(dim=-1, keepdim=True)
    mask = mask.unsqueeze(1)
    count = mask.sum(dim=-1).clamp(min=1)
    top = values.masked_fill(~mask, float("-inf")).amax(dim=-1)
    mean = (values * mask).sum(dim=-1) / count
    variance = ((values - mean.unsqueeze(-1)).square() * mask).sum(dim=-1) / count
    # The square root has no finite slope at 0, the variance of a channel that is constant.
    return torch.cat([top, mean, (variance + 1e-5).sqrt()], dim=-1).masked_fill(~not_empty, 0)


def check_at_least(least: int, **values: int) -> None:
    """Refuse sizes that are below ``least``.

    Parameters
    ----------
    least : int
        The smallest size allowed.
    **values : int
        Sizes by the names of their arguments.

    Raises
    ------
    ValueError
        If one is too small; the message names it.
    """
    for name, value in values.items():
        if value < least:
            raise ValueError(f"{name} must be at least {least}, not {value}")


def audio_and_text(channels: int | dict[str, int]) -> dict[str, int]:
    """Return channels by modality, audio first, for a backbone of audio that may also read text.

    Parameters
    ----------
    channels : int or dict of str to int
        Channels of "audio", and of "text" if it is read; an int is for audio alone.

    Returns
    -------
    dict of str to int
        The channels of "audio", then of "text" if it is read.

    Raises
    ------
    ValueError
        If audio is missing, or there is a modality besides audio and text.
    """
    channels = {"audio": channels} if isinstance(channels, int) else channels
    if "audio" not in channels or not set(channels) <= {"audio", "text"}:
        raise ValueError(
            f"channels must name audio, and may name text, not {list(channels)}: "
            "name audio, or audio and text"
        )
    return {name: channels[name] for name in ("audio", "text") if name in channels}


def text_beside(audio: Padded, text: Padded | None, channels: dict[str, int]) -> Padded | None:
    """Return the text of the clips, for a backbone that may read text next to audio.

    Parameters
    ----------
    audio : Padded
        The audio of the clips.
    text : Padded or None
        Their text, if there is any.
    channels : dict of str to int
        Channels of the modalities that the backbone reads.

    Returns
    -------
    Padded or None
        None if the backbone does not read text; one frame that is not real for every clip if it
        does, but ``text`` is None.

    Raises
    ------
    ValueError
        If there is text, but the backbone does not read it.
    """
    if "text" not in channels:
        if text is not None:
            raise ValueError(
                "text must not go to a backbone that was made for audio alone, but text came: give "
                "it the channels of both, {'audio': …, 'text': …}, or leave the text out"
            )
        return None
    if text is not None:
        return text
    values = audio.values.new_zeros(audio.values.shape[0], 1, channels["text"])
    return Padded(values, values[..., 0].bool())


def shortened(padded: Padded, pool: int) -> Padded:
    """Return the means of every ``pool`` neighbouring frames; of fewer at the end of a clip.

    Parameters
    ----------
    padded : Padded
        (clips, frames, channels).
    pool : int
        At least 1; 1 changes nothing.

    Returns
    -------
    Padded
        (clips, frames / pool rounded up, channels).
    """
    if pool == 1:
        return padded
    frames = padded.mask.shape[-1]
    padded = padded.lengthened(frames + -frames % pool)
    clips, channels = padded.values.shape[0], padded.values.shape[-1]
    values = padded.values.reshape(clips, -1, pool, channels)
    mask = padded.mask.reshape(clips, -1, pool)
    count = mask.sum(dim=-1)
    total = (values * mask.unsqueeze(-1)).sum(dim=-2)
    return Padded(total / count.clamp(min=1).unsqueeze(-1), count > 0)


def last_state(states: Tensor, mask: Tensor) -> Tensor:
    """Return the state at the last real frame of each clip.

    Parameters
    ----------
    states : Tensor
        (clips, frames, dim).
    mask : Tensor
        (clips, frames) bool; real frames come first.

    Returns
    -------
    Tensor
        (clips, dim); 0 for a clip without real frames.
    """
    last = (mask.sum(dim=1) - 1).clamp(min=0)
    states = states[torch.arange(states.shape[0], device=states.device), last]
    return states * mask.any(dim=1, keepdim=True)


def attend(scores: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of the real frames, weighted by the softmax of their scores.

    Parameters
    ----------
    scores : Tensor
        (clips, frames).
    values : Tensor
        (clips, frames, dim).
    mask : Tensor
        (clips, frames) bool.

    Returns
    -------
    Tensor
        (clips, dim); 0 for a clip without real frames.
    """
    # Not minus infinity: a softmax over nothing would be NaN, and so would its gradient.
    lowest = torch.finfo(scores.dtype).min
    weights = scores.masked_fill(~mask, lowest).softmax(dim=-1) * mask
    return (weights.unsqueeze(-2) @ values).squeeze(-2)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of the real frames.

    Parameters
    ----------
    values : Tensor
        (clips, frames, dim).
    mask : Tensor
        (clips, frames) bool.

    Returns
    -------
    Tensor
        (clips, dim); 0 for a clip without real frames.
    """
    mask = mask.unsqueeze(-1)
    return (values * mask).sum(dim=-2) / mask.sum(dim=-2).clamp(min=1)


def with_positions(values: Tensor) -> Tensor:
    """Add sines and cosines of their place to frames.

    Parameters
    ----------
    values : Tensor
        (clips, frames, dim); dim is even.

    Returns
    -------
    Tensor
        (clips, frames, dim).

    References
    ----------
    Vaswani et al., "Attention Is All You Need", NeurIPS 2017, arXiv:1706.03762, section 3.5.
    """
    frames, dim = values.shape[-2], values.shape[-1]
    place = torch.arange(frames, device=values.device, dtype=values.dtype)
    power = torch.arange(0, dim, 2, device=values.device, dtype=values.dtype) / dim
    angles = place.unsqueeze(-1) * 10_000**-power
    return values + torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)


class AttentionPooling(nn.Module):
    """Weighted mean of states; the weight of a state with key x is exp(u . tanh(W x + b)).

    Parameters
    ----------
    channels : int
        Channels of the keys.
    hidden : int
        Length of u.

    References
    ----------
    Yang et al., "Hierarchical Attention Networks for Document Classification", NAACL 2016.
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(channels, hidden)
        self.score = nn.Linear(hidden, 1, bias=False)

    def forward(self, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """Return (clips, dim) of keys (clips, frames, channels) and values (clips, frames, dim)."""
        scores = self.score(self.hidden(keys).tanh()).squeeze(-1)
        return attend(scores, values, mask)
