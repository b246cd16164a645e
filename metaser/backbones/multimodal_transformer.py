"""Transformer over the sequences of audio and text together, of a clip or of a dialogue."""

import torch
from torch import Tensor, nn

from metaser.backbones.layers import (
    audio_and_text,
    check_at_least,
    masked_mean,
    shortened,
    text_beside,
    with_positions,
)
from metaser.backbones.recurrence import recurrent
from metaser.batch import Padded


class MultimodalTransformer(nn.Module):
    """Audio and text, projected to one width and laid end to end, attend to themselves and others.

    The paper reads dialogues, the two sequences being embeddings of its utterances: say so by
    ``dialogue``. A row of the batch is then a dialogue, a frame an utterance, and the output is
    (dialogues, utterances, dim): what audio and text became at that utterance, side by side, and 0
    where neither is real. A ``Model`` makes (dialogues, utterances, classes) of it; give utterances
    that are not real the target -100, which PyTorch's cross-entropy leaves out.

    Otherwise a row is a clip, and the output (clips, dim) is the mean of its frames of audio beside
    the mean of its tokens. A modality that a clip or utterance lacks is attended to by no one, and
    is 0 in the output. Without all text, give None.

    Parameters
    ----------
    channels : int or dict of str to int
        Channels of "audio", and of "text" for both; an int is for audio alone.
    width : int
        Channels of each modality inside, even and divisible by ``heads``.
    layers, heads, feedforward : int
        Layers of the transformer, its attention heads, and the width of the dense layer in each.
    context : int
        Units of each direction of ``Context``, the recurrent layers that each modality passes
        first. 0 leaves them out: then sines and cosines tell the order.
    dropout : float
        Share dropped while training, in [0, 1).
    pool : int
        Neighbouring frames of audio, at least 1, whose mean is one frame here; 1 for dialogues.
    dialogue : bool
        Whether rows are dialogues.

    Raises
    ------
    ValueError
        If a modality is unknown or without audio, or a number is out of its range.

    References
    ----------
    Dutta, Ganapathy, "Multimodal Transformer with Learnable Frontend and Self Attention for Emotion
    Recognition", ICASSP 2022.
    """

    def __init__(
        self,
        channels: int | dict[str, int],
        width: int = 32,
        layers: int = 1,
        heads: int = 4,
        feedforward: int = 64,
        context: int = 0,
        dropout: float = 0.0,
        pool: int = 4,
        dialogue: bool = False,
    ) -> None:
        channels = audio_and_text(channels)
        check_at_least(0, layers=layers, context=context)
        check_at_least(1, pool=pool)
        if width % heads or width % 2:
            raise ValueError(f"width must be even and divisible by {heads} heads, not {width}")
        if dialogue and pool != 1:
            raise ValueError(f"pool must be 1 for dialogues, which have no frames, not {pool}")
        super().__init__()
        self.channels = channels
        self.pool, self.dialogue = pool, dialogue
        self.context = nn.ModuleDict()
        if context:
            self.context.update({name: Context(size, context) for name, size in channels.items()})
        self.inputs = nn.ModuleDict(
            {name: nn.Linear(2 * context or size, width) for name, size in channels.items()}
        )
        self.layers = nn.ModuleList(
            EncoderLayer(width, heads, feedforward, dropout) for _ in range(layers)
        )
        self.dropout = nn.Dropout(dropout)
        self.dim = width * len(channels)

    def forward(self, audio: Padded, text: Padded | None = None) -> Tensor:
        """Return embeddings (clips, dim), or (dialogues, utterances, dim).

        Raises
        ------
        ValueError
            If there is text, but ``channels`` has none.
        """
        given = {
            "audio": shortened(audio, self.pool),
            "text": text_beside(audio, text, self.channels),
        }
        begun = {name: self._begin(name, given[name]) for name in self.channels}
        values = torch.cat([padded.values for padded in begun.values()], dim=1)
        mask = torch.cat([padded.mask for padded in begun.values()], dim=1)
        for layer in self.layers:
            values = layer(values, mask)
        lengths = [padded.mask.shape[-1] for padded in begun.values()]
        parts = [Padded(*part) for part in zip(values.split(lengths, 1), mask.split(lengths, 1))]
        if self.dialogue:
            parts = [part.lengthened(max(lengths)) for part in parts]
            ended = [part.values * part.mask.unsqueeze(-1) for part in parts]
        else:
            ended = [masked_mean(part.values, part.mask) for part in parts]
        return self.dropout(torch.cat(ended, dim=-1))

    def _begin(self, name: str, padded: Padded) -> Padded:
        """One modality, projected to the common width."""
        values = padded.values.masked_fill(~padded.mask.unsqueeze(-1), 0)
        if self.context:
            values = self.context[name](Padded(values, padded.mask))
        values = self.dropout(self.inputs[name](values))
        return Padded(values if self.context else with_positions(values), padded.mask)


class Context(nn.Module):
    """Two bidirectional GRU layers; then each direction attends to itself.

    With O the states of one direction, (frames, hidden), it becomes softmax((O W)(O W)') O. The
    softmax is over the frames attended to, as the paper writes it and unlike its program.

    Parameters
    ----------
    channels : int
        Channels of the frames.
    hidden : int
        Units of each direction.
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.gru = nn.GRU(channels, hidden, 2, batch_first=True, bidirectional=True)
        self.ahead, self.back = (nn.Linear(hidden, hidden, bias=False) for _ in range(2))

    def forward(self, padded: Padded) -> Tensor:
        """Take frames and return (clips, frames, 2 x hidden), 0 in a clip without real frames."""
        states = recurrent(self.gru, padded.values, padded.mask)
        ahead, back = states.chunk(2, dim=-1)
        found = [self._attend(ahead, self.ahead, padded), self._attend(back, self.back, padded)]
        return torch.cat(found, dim=-1)

    def _attend(self, states: Tensor, project: nn.Linear, padded: Padded) -> Tensor:
        keys = project(states)
        real = padded.mask.unsqueeze(1)
        # Not minus infinity: a softmax over nothing would be NaN, and so would its gradient.
        lowest = torch.finfo(keys.dtype).min
        scores = (keys @ keys.transpose(1, 2)).masked_fill(~real, lowest)
        return (scores.softmax(dim=-1) * real) @ states


class EncoderLayer(nn.Module):
    """A layer of the transformer as in BERT: normalised last, GELU.

    PyTorch's own layer computes the same, but by kernels that cannot be differentiated twice.

    Parameters
    ----------
    width, heads, feedforward : int
        Channels, attention heads, and width of the dense layer.
    dropout : float
        Share dropped while training, in [0, 1).
    """

    def __init__(self, width: int, heads: int, feedforward: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.attention = nn.Linear(width, 3 * width)  # queries, keys and values
        self.output = nn.Linear(width, width)
        self.norm_attention = nn.LayerNorm(width)
        self.dense = nn.Sequential(
            nn.Linear(width, feedforward), nn.GELU(), nn.Linear(feedforward, width)
        )
        self.norm_dense = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, values: Tensor, mask: Tensor) -> Tensor:
        """Take and return (clips, frames, width), which means nothing where it is not real."""
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.attention(values).chunk(3, dim=-1)
        )
        scores = query * query.shape[-1] ** -0.5 @ key.transpose(-1, -2)
        # Not minus infinity: a softmax over nothing would be NaN, and so would its gradient.
        lowest = torch.finfo(scores.dtype).min
        weights = self.dropout(scores.masked_fill(~mask[:, None, None], lowest).softmax(dim=-1))
        found = self.output((weights @ value).transpose(1, 2).flatten(2))
        values = self.norm_attention(values + self.dropout(found))
        return self.norm_dense(values + self.dropout(self.dense(values)))
