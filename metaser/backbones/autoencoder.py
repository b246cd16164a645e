"""Domain-adversarial autoencoder (DAAE): latent and deep features fused by attention."""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from metaser.backbones.layers import check_at_least, masked_mean
from metaser.batch import Padded


class Autoencoder(nn.Module):
    """An autoencoder and a deep network in parallel, and attention that joins their features.

    Two branches of convolutions over time give every frame latent features R_l and deep features
    R_d, each as several vectors ("tokens"), and a dense layer over both gives R_f. Attention by
    several heads has the queries R_d, the keys R_l and the values R_f:

        softmax(R_d W_q (R_l W_k)' / sqrt(width of a head)) R_f W_v

    The embedding is the mean over all tokens of R_f plus the output of the heads. The decoder runs
    the encoder's layers backwards with the same weights, so that ``reconstruction_error`` teaches
    only the encoder. With a front end of one vector per clip, the convolutions are dense layers.

    The paper has spectrograms of segments of 265 ms, trains the autoencoder and its adversaries
    before the rest, and reads the segments by a BLSTM. Here everything is trained at once, by the
    terms of the method (``OuterTerms``), and the frames are averaged.

    Parameters
    ----------
    channels : int
        Channels of the front end.
    width : int
        Width of a token, a multiple of ``heads``.
    tokens : int
        Tokens per frame, at least 1; with one token and one frame, attention has no choice.
    heads : int
        Attention heads.
    kernel : int
        Odd length of the kernels in frames.
    dropout : float
        Share of units dropped after each branch's first layer while training, in [0, 1).

    Raises
    ------
    ValueError
        If a size is below 1, ``kernel`` is even, or ``width`` is not a multiple of ``heads``.

    References
    ----------
    Gao, Liu, Wang, Dang, "Domain-Adversarial Autoencoder with Attention Based Feature Level Fusion
    for Speech Emotion Recognition", ICASSP 2021.
    """

    def __init__(
        self,
        channels: int,
        width: int = 32,
        tokens: int = 4,
        heads: int = 4,
        kernel: int = 3,
        dropout: float = 0.0,
    ) -> None:
        check_at_least(1, width=width, tokens=tokens, heads=heads, kernel=kernel)
        if kernel % 2 == 0:
            raise ValueError(
                f"kernel must be odd, so that frames keep their place, not {kernel}: "
                f"take {kernel - 1} or {kernel + 1}"
            )
        if width % heads:
            raise ValueError(
                f"width must be a multiple of the {heads} heads, not {width}: change one of the two"
            )
        super().__init__()
        self.channels = {"audio": channels}
        self.tokens, self.heads, self.dim = tokens, heads, width
        self.encoder, self.deep = (
            nn.ModuleList(
                nn.Conv1d(before, tokens * width, kernel, padding=kernel // 2)
                for before in (channels, tokens * width)
            )
            for _ in range(2)
        )
        self.dropout = nn.Dropout(dropout)
        self.fuse = nn.Linear(2 * width, width)
        self.query, self.key, self.value = (nn.Linear(width, width, bias=False) for _ in range(3))

    def forward(self, audio: Padded) -> Tensor:
        """Return embeddings (clips, dim)."""
        latent, deep = self._branch(self.encoder, audio), self._branch(self.deep, audio)
        latent, deep = self._as_tokens(latent), self._as_tokens(torch.relu(deep))
        mask = audio.mask.unsqueeze(-1).expand(-1, -1, self.tokens).flatten(1)
        fused = torch.relu(self.fuse(torch.cat([latent, deep], dim=-1)))
        query, key, value = (
            layer(part).unflatten(-1, (self.heads, self.dim // self.heads)).transpose(1, 2)
            for layer, part in ((self.query, deep), (self.key, latent), (self.value, fused))
        )
        scores = query @ key.transpose(-1, -2) / key.shape[-1] ** 0.5
        # Not minus infinity: a softmax over nothing would be NaN, and so would its gradient.
        lowest = torch.finfo(scores.dtype).min
        weights = scores.masked_fill(~mask[:, None, None], lowest).softmax(dim=-1)
        attended = (weights @ value).transpose(1, 2).flatten(-2)
        return masked_mean(fused + attended, mask)

    def reconstruction_error(self, audio: Padded) -> Tensor:
        """Return the mean squared error (clips,) of the autoencoder over real frames and channels.

        Parameters
        ----------
        audio : Padded
            Clips, such as those that are embedded.
        """
        first, second = (cast(nn.Conv1d, layer) for layer in self.encoder)
        frames = self._branch(self.encoder, audio)
        padding = first.kernel_size[0] // 2
        hidden = torch.relu(functional.conv_transpose1d(frames, second.weight, padding=padding))
        hidden = hidden * audio.mask.unsqueeze(1)
        decoded = functional.conv_transpose1d(hidden, first.weight, padding=padding)
        errors = (decoded.transpose(1, 2) - audio.values).square().mean(dim=-1, keepdim=True)
        return masked_mean(errors, audio.mask).squeeze(-1)

    def _branch(self, layers: nn.ModuleList, audio: Padded) -> Tensor:
        """Output (clips, tokens x width, frames) of a branch; 0 where a frame is not real."""
        mask = audio.mask.unsqueeze(1)
        frames = audio.values.transpose(1, 2) * mask
        hidden = self.dropout(torch.relu(layers[0](frames))) * mask
        features: Tensor = layers[1](hidden)
        return features * mask

    def _as_tokens(self, frames: Tensor) -> Tensor:
        """Tokens (clips, frames x tokens, width) of the output of a branch."""
        return frames.transpose(1, 2).reshape(frames.shape[0], -1, self.dim)
