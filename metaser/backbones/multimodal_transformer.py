"""Transformer over audio and text together, of a clip or of a dialogue."""

from typing import cast

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
    """Audio and text, projected to one width and put end to end, attend to each other.

    The paper reads dialogues; the two sequences are embeddings of the utterances. Set ``dialogue``
    for this: a row of the batch is then a dialogue, a frame is an utterance, and the output is
    (dialogues, utterances, dim), the audio and the text of each utterance after the last layer,
    concatenated; 0 where neither is real. A ``Model`` turns it into (dialogues, utterances,
    classes). Give utterances that are not real the target -100, which PyTorch's cross-entropy
    ignores.

    Otherwise a row is a clip, and the output (clips, dim) is the mean over its audio frames and the
    mean over its text tokens, concatenated. If a clip or utterance lacks a modality, nothing
    attends to it, and it is 0 in the output. If no clip has text, pass None.

    Parameters
    ----------
    channels : int or dict of str to int
        Channels of "audio", and of "text" for both; an int is for audio alone.
    width : int
        Channels of each modality inside, even and divisible by ``heads``.
    layers, heads, feedforward : int
        Layers of the transformer, its attention heads, and the width of the dense layer in each.
    context : int
        Units per direction of ``Context``, the recurrent layers that each modality passes first. 0
        leaves them out; then sines and cosines mark the order.
    dropout : float
        Share dropped while training, in [0, 1).
    pool : int
        Neighbouring frames of audio, at least 1, whose mean is one frame here. Dialogues need 1.
    dialogue : bool
        Whether rows are dialogues.

    Raises
    ------
    ValueError
        If audio is missing or a modality is unknown, or a number is out of its range.

    References
    ----------
    Dutta, Ganapathy, "Multimodal Transformer with Learnable Frontend and Self Attention for Emotion
    Recognition", ICASSP 2022.
    """

    def __init__(
        self,
        channels: int | dict[str, int],
        *,
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
            raise ValueError(
                f"width must be even and divisible by {heads} heads, not {width}: "
                "change one of the two"
            )
        if dialogue and pool != 1:
            raise ValueError(
                f"pool must be 1 for dialogues, whose utterances are not averaged, not {pool}: "
                "set pool = 1"
            )
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
        given = {"audio": shortened(audio, self.pool)}
        text = text_beside(audio, text, self.channels)
        if text is not None:
            given["text"] = text
        inputs = [self._begin(name, padded) for name, padded in given.items()]
        values = torch.cat([padded.values for padded in inputs], dim=1)
        mask = torch.cat([padded.mask for padded in inputs], dim=1)
        for layer in self.layers:
            values = layer(values, mask)
        lengths = [padded.mask.shape[-1] for padded in inputs]
        parts = [Padded(*part) for part in zip(values.split(lengths, 1), mask.split(lengths, 1))]
        if self.dialogue:
            parts = [part.lengthened(max(lengths)) for part in parts]
            outputs = [part.values * part.mask.unsqueeze(-1) for part in parts]
        else:
            outputs = [masked_mean(part.values, part.mask) for part in parts]
        return cast(Tensor, self.dropout(torch.cat(outputs, dim=-1)))

    def _begin(self, name: str, padded: Padded) -> Padded:
        """One modality, projected to the common width."""
        values = padded.values.masked_fill(~padded.mask.unsqueeze(-1), 0)
        if self.context:
            values = self.context[name](Padded(values, padded.mask))
        values = self.dropout(self.inputs[name](values))
        return Padded(values if self.context else with_positions(values), padded.mask)


class Context(nn.Module):
    """Two bidirectional GRU layers; then each direction attends to itself.

    The states O of one direction, (frames, hidden), become softmax((O W)(O W)') O. The softmax is
    over the frames attended to, as in the paper, but unlike in its code.

    Parameters
    ----------
    channels : int
        Channels of the frames.
    hidden : int
        Units per direction.
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.gru = nn.GRU(channels, hidden, 2, batch_first=True, bidirectional=True)
        self.ahead, self.back = (nn.Linear(hidden, hidden, bias=False) for _ in range(2))

    def forward(self, padded: Padded) -> Tensor:
        """Return (clips, frames, 2 x hidden); 0 in a clip without real frames."""
        states = recurrent(self.gru, padded.values, padded.mask)
        ahead, back = states.chunk(2, dim=-1)
        parts = [self._attend(ahead, self.ahead, padded), self._attend(back, self.back, padded)]
        return torch.cat(parts, dim=-1)

    def _attend(self, states: Tensor, project: nn.Linear, padded: Padded) -> Tensor:
        """Attention of the states of one direction to themselves."""
        keys: Tensor = project(states)
        real = padded.mask.unsqueeze(1)
        # Not minus infinity: a softmax over nothing would be NaN, and so would its gradient.
        lowest = torch.finfo(keys.dtype).min
        scores = (keys @ keys.transpose(1, 2)).masked_fill(~real, lowest)
        return (scores.softmax(dim=-1) * real) @ states


class EncoderLayer(nn.Module):
    """A transformer layer as in BERT: post-LN (normalised after the residual), with GELU.

    PyTorch's own layer computes the same, but its kernels cannot be differentiated twice.

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
        """Take and return (clips, frames, width); frames that are not real have no meaning."""
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.attention(values).chunk(3, dim=-1)
        )
        scores = query * query.shape[-1] ** -0.5 @ key.transpose(-1, -2)
        # Not minus infinity: a softmax over nothing would be NaN, and so would its gradient.
        lowest = torch.finfo(scores.dtype).min
        weights = self.dropout(scores.masked_fill(~mask[:, None, None], lowest).softmax(dim=-1))
        attended = self.output((weights @ value).transpose(1, 2).flatten(2))
        values = self.norm_attention(values + self.dropout(attended))
        return cast(Tensor, self.norm_dense(values + self.dropout(self.dense(values))))
