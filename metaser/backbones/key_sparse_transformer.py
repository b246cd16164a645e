"""Key-sparse transformer (KS-Transformer) of audio, or of audio and text."""

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout

from metaser.backbones.layers import (
    audio_and_text,
    check_at_least,
    masked_mean,
    shortened,
    text_beside,
    with_positions,
)
from metaser.batch import Padded


class KeySparseTransformer(nn.Module):
    """Transformer whose later layers attend only to the most important frames.

    Each modality is a stream. It passes a projection and LayerNorm, then ``vanilla_layers`` with
    ordinary attention. If there are two streams, each attends to the other by ``cross_blocks``
    (CCAB): a layer that attends to the other stream and one that attends to its own, with a
    residual around all blocks. Then come ``sparse_layers``, the mean over the frames, and dense
    layers on the concatenated streams. Every layer is post-LN (normalised after the residual) and
    adds sinusoidal positions to its queries and keys.

    A clip without text is embedded by its audio alone: the cross-attention adds 0 to the audio, and
    the mean of the text is 0. The same holds without audio. If no clip has text, pass None.

    The keys that are kept come from a ranking, which may change between inner steps. So the loss of
    an adapted model is not continuous in its initial parameters, and second derivatives do not show
    the jumps. Prefer first-order methods (FOMAML), or those that adapt the head (ANIL).

    Parameters
    ----------
    channels : int or dict of str to int
        Channels of "audio", and of "text" for two streams; an int is for audio alone.
    width : int or dict of str to int
        Channels of each stream inside, divisible by ``heads`` and by 2. The paper has those of its
        inputs (512 and 1024), without a projection.
    heads : int
        Attention heads.
    keep_rate : float
        Share of the keys kept, in (0, 1]; see ``KeySparseAttention``.
    vanilla_layers, cross_blocks, sparse_layers : int
        Layers per stream, at least 0.
    expansion : float
        Width of the dense layer within each layer, as a multiple of the stream's width.
    dense : sequence of int
        Widths of the dense layers at the end; the last is that of the embedding.
    pool : int
        Neighbouring frames of audio, at least 1, whose mean is one frame here; time and memory grow
        with the square of the frames.
    dropout, dense_dropout : float
        Shares dropped while training, in [0, 1): in the layers, and after each dense layer.

    Raises
    ------
    ValueError
        If audio is missing, a modality is unknown or missing in ``width``, or a number is out of
        its range.

    References
    ----------
    Chen, Xing, Xu, Yang, Pang, "Key-Sparse Transformer for Multimodal Speech Emotion Recognition",
    ICASSP 2022, arXiv:2106.11532.
    """

    def __init__(
        self,
        channels: int | dict[str, int],
        *,
        width: int | dict[str, int] = 64,
        heads: int = 4,
        keep_rate: float = 0.5,
        vanilla_layers: int = 1,
        cross_blocks: int = 1,
        sparse_layers: int = 2,
        expansion: float = 0.5,
        dense: Sequence[int] = (64,),
        pool: int = 4,
        dropout: float = 0.0,
        dense_dropout: float = 0.0,
    ) -> None:
        channels = audio_and_text(channels)
        widths = dict.fromkeys(channels, width) if isinstance(width, int) else width
        if not set(channels) <= set(widths):
            raise ValueError(
                f"width must name all of {list(channels)}, not only {list(widths)}: add the others"
            )
        check_at_least(1, pool=pool, dense=len(dense))
        layers = {
            "vanilla_layers": vanilla_layers,
            "cross_blocks": cross_blocks,
            "sparse_layers": sparse_layers,
        }
        check_at_least(0, **layers)
        super().__init__()
        self.channels = channels
        self.pool = pool
        layer = partial(Layer, heads=heads, expansion=expansion, dropout=dropout)
        names = list(channels)
        self.streams = nn.ModuleDict()
        for name in names:
            other = next((widths[other] for other in names if other != name), None)
            self.streams[name] = Stream(
                channels[name], widths[name], other, layer=layer, keep_rate=keep_rate, **layers
            )
        sizes = [sum(widths[name] for name in names), *dense]
        self.dense = nn.Sequential(
            *(
                nn.Sequential(nn.Linear(before, after), nn.ReLU(), nn.Dropout(dense_dropout))
                for before, after in zip(sizes, sizes[1:])
            )
        )
        self.dim = sizes[-1]
        for value in self.parameters():
            if value.dim() > 1:
                nn.init.xavier_uniform_(value)

    def forward(self, audio: Padded, text: Padded | None = None) -> Tensor:
        """Return embeddings (clips, dim).

        Raises
        ------
        ValueError
            If there is text, but ``channels`` has none.
        """
        streams = cast("Mapping[str, Stream]", self.streams)
        text = text_beside(audio, text, self.channels)
        frames = {"audio": streams["audio"].begin(shortened(audio, self.pool))}
        if text is not None:
            frames["text"] = streams["text"].begin(text)
            audio, text = frames["audio"], frames["text"]
            frames["audio"] = streams["audio"].ask(audio, text)
            frames["text"] = streams["text"].ask(text, audio)
        means = [streams[name].end(padded) for name, padded in frames.items()]
        return cast(Tensor, self.dense(torch.cat(means, dim=-1)))


class Stream(nn.Module):
    """The layers of one modality.

    Parameters
    ----------
    channels : int
        Channels of the input.
    width : int
        Channels inside.
    other_width : int, optional
        Channels inside the other stream; None if there is no other to attend to.
    layer : callable
        Makes a ``Layer`` from its width, its keep rate and, for the other stream, that width.
    keep_rate : float
        Share of the keys kept in cross blocks and sparse layers, in (0, 1].
    vanilla_layers, cross_blocks, sparse_layers : int
        As in ``KeySparseTransformer``.
    """

    def __init__(
        self,
        channels: int,
        width: int,
        other_width: int | None,
        *,
        layer: Callable[..., "Layer"],
        keep_rate: float,
        vanilla_layers: int,
        cross_blocks: int,
        sparse_layers: int,
    ) -> None:
        super().__init__()
        self.input = nn.Linear(channels, width)
        self.norm = nn.LayerNorm(width)
        self.vanilla = nn.Sequential(*(layer(width, 1.0) for _ in range(vanilla_layers)))
        if other_width is not None:
            self.cross = nn.ModuleList()
            for _ in range(cross_blocks):
                self.cross.append(layer(width, keep_rate, other_width))
                self.cross.append(layer(width, keep_rate))
            self.norm_cross = nn.LayerNorm(width)
        self.sparse = nn.Sequential(*(layer(width, keep_rate) for _ in range(sparse_layers)))

    def begin(self, padded: Padded) -> Padded:
        """Return frames (clips, frames, width), projected, after they attended to each other."""
        values = padded.values.masked_fill(~padded.mask.unsqueeze(-1), 0)
        return cast(Padded, self.vanilla(Padded(self.norm(self.input(values)), padded.mask)))

    def ask(self, own: Padded, other: Padded) -> Padded:
        """Return the frames of this stream after they attended to the other; the same shape.

        In clips that lack the other stream, attention adds nothing.
        """
        attended = own
        for ask_other, ask_own in zip(self.cross[::2], self.cross[1::2]):
            attended = ask_own(ask_other(attended, other))
        has_other = other.mask.any(dim=-1)[:, None, None]
        values = own.values + (own.values + attended.values) * has_other
        return Padded(self.norm_cross(values), own.mask)

    def end(self, own: Padded) -> Tensor:
        """Return the mean (clips, width) of the frames after the sparse layers."""
        own = self.sparse(own)
        return masked_mean(own.values, own.mask)


class Layer(nn.Module):
    """A post-LN transformer layer that attends to its own stream or to another.

    Parameters
    ----------
    width, keep_rate, other_width, heads, dropout
        As in ``KeySparseAttention``; ``other_width`` is its ``key_width``.
    expansion : float
        Width of the dense layer inside, as a multiple of ``width``.
    """

    def __init__(
        self,
        width: int,
        keep_rate: float,
        other_width: int | None = None,
        *,
        heads: int,
        expansion: float,
        dropout: float,
    ) -> None:
        super().__init__()
        hidden = max(1, round(expansion * width))
        self.attention = KeySparseAttention(width, heads, keep_rate, other_width, dropout)
        self.norm_attention = nn.LayerNorm(width)
        self.dense = nn.Sequential(
            nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, width)
        )
        self.norm_dense = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, own: Padded, other: Padded | None = None) -> Padded:
        """Take and return (clips, frames, width); frames that are not real have no meaning."""
        other = own if other is None else other
        query = Padded(with_positions(own.values), own.mask)
        key = Padded(with_positions(other.values), other.mask)
        values = own.values + self.dropout(self.attention(query, key, other.values))
        values = self.norm_attention(values)
        values = self.norm_dense(values + self.dropout(self.dense(values)))
        return Padded(values, own.mask)


class KeySparseAttention(nn.Module):
    """Attention by several heads, each of which drops the least important keys of the clip.

    Each head has the usual A = softmax(Q K' / sqrt(width of a head)). Of the n real keys of the
    clip it keeps the ``max(1, floor(keep_rate n))`` that get most attention from all real queries
    together. The columns of A of the other keys become 0, and the rows are not normalised again.
    Frames that are not real are never kept, and never count as queries.

    Parameters
    ----------
    width : int
        Channels of the queries and of the output, divisible by ``heads`` and by 2.
    heads : int
        Attention heads.
    keep_rate : float
        Share of the keys kept, in (0, 1]; 1 is ordinary attention.
    key_width : int, optional
        Channels of keys and values; ``width`` by default.
    dropout : float
        Share of the weights dropped while training, in [0, 1).

    Raises
    ------
    ValueError
        If ``width`` is odd or not divisible by ``heads``, or ``keep_rate`` is out of its range.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        keep_rate: float,
        key_width: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        if width % heads or width % 2:
            raise ValueError(
                f"a stream's width must be even and divisible by its {heads} heads, not {width}: "
                "change one of the two"
            )
        if not 0 < keep_rate <= 1:
            raise ValueError(
                f"keep_rate must be in (0, 1], not {keep_rate}: choose a share, 1 to keep all keys"
            )
        super().__init__()
        key_width = key_width or width
        self.heads = heads
        self.keep_rate = keep_rate
        self.dropout = dropout
        self.query = nn.Linear(width, width)
        # No offset: it would add the same to all scores of a query, and the softmax ignores that.
        self.key = nn.Linear(key_width, width, bias=False)
        self.value = nn.Linear(key_width, width)
        self.output = nn.Linear(width, width)

    def forward(self, query: Padded, key: Padded, values: Tensor) -> Tensor:
        """Return (clips, queries, width), the values that the queries attend to.

        Parameters
        ----------
        query : Padded
            (clips, queries, width).
        key : Padded
            (clips, keys, key width).
        values : Tensor
            (clips, keys, key width).
        """
        query_heads, key_heads, value_heads = (
            project(x).unflatten(-1, (self.heads, -1)).transpose(-2, -3)
            for project, x in (
                (self.query, query.values),
                (self.key, key.values),
                (self.value, values),
            )
        )
        scores = query_heads * query_heads.shape[-1] ** -0.5 @ key_heads.transpose(-1, -2)
        # Not minus infinity: a softmax over nothing would be NaN, and so would its gradient.
        lowest = torch.finfo(scores.dtype).min
        weights = scores.masked_fill(~key.mask[:, None, None], lowest).softmax(dim=-1)
        kept = kept_keys(weights.detach(), query.mask, key.mask, self.keep_rate)
        weights = dropout(weights * kept.unsqueeze(-2), self.dropout, self.training)
        return cast(Tensor, self.output((weights @ value_heads).transpose(-2, -3).flatten(-2)))


def kept_keys(weights: Tensor, queries: Tensor, keys: Tensor, keep_rate: float) -> Tensor:
    """Return which keys each head keeps.

    Parameters
    ----------
    weights : Tensor
        (clips, heads, queries, keys); each row adds up to 1.
    queries, keys : Tensor
        (clips, queries) and (clips, keys) bool, True where they are real.
    keep_rate : float
        Share of the real keys, in (0, 1].

    Returns
    -------
    Tensor
        (clips, heads, keys) bool, True for the floor(keep_rate n) of n real keys, at least one if
        there is one, that real queries attend to most; of equal ones the earlier. If ``keep_rate``
        is 1, (clips, 1, keys).
    """
    real = keys.unsqueeze(-2)
    if keep_rate == 1:
        return real
    importance = (queries[:, None, None].to(weights.dtype) @ weights).squeeze(-2)
    share = Fraction(keep_rate).limit_denominator(10**6)  # in floats, 0.29 x 100 is below 29
    count = (keys.sum(dim=-1) * share.numerator // share.denominator).clamp(min=1)
    importance = importance.masked_fill(~real, -1)
    this, other = importance.unsqueeze(-1), importance.unsqueeze(-2)
    place = torch.arange(importance.shape[-1], device=importance.device)
    # The rank is counted, because ONNX has no stable sorting.
    rank = ((other > this) | ((other == this) & (place < place.unsqueeze(-1)))).sum(dim=-1)
    return (rank < count[:, None, None]) & real
