"""Dense layers on the mean frame: for front ends that give one vector per clip."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from metaser.batch import Padded
from metaser.naming import MODALITIES


class MLP(nn.Module):
    """Multilayer perceptron with ReLU, on the concatenated mean frames of all modalities.

    A modality that a clip lacks is 0, the mean of normalised features.

    Parameters
    ----------
    channels : int or dict of str to int
        Channels of each modality ("audio", "text", "video"); an int is for audio alone.
    hidden : sequence of int
        Widths of the layers; the last is the embedding's.
    dropout : float
        Share of units dropped after each layer while training, in [0, 1).

    Raises
    ------
    ValueError
        If a modality is unknown.
    """

    def __init__(
        self,
        channels: int | dict[str, int],
        hidden: Sequence[int] = (128, 128),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        channels = {"audio": channels} if isinstance(channels, int) else channels
        if not channels or not set(channels) <= set(MODALITIES):
            raise ValueError(
                f"channels must name some of {MODALITIES}, not {list(channels)}: "
                "give at least one of them, and no other"
            )
        self.channels = channels
        self.names = [name for name in MODALITIES if name in channels]
        widths = [sum(channels.values()), *hidden]
        layers = [
            nn.Sequential(nn.Linear(before, after), nn.ReLU(), nn.Dropout(dropout))
            for before, after in zip(widths, widths[1:])
        ]
        self.layers = nn.Sequential(*layers)
        self.dim = widths[-1]

    def forward(
        self, audio: Padded | None = None, text: Padded | None = None, video: Padded | None = None
    ) -> Tensor:
        """Return embeddings (clips, dim).

        Raises
        ------
        ValueError
            If the modalities are not those of ``channels``.
        """
        given = {"audio": audio, "text": text, "video": video}
        means = {name: padded.mean() for name, padded in given.items() if padded is not None}
        if list(means) != self.names:
            raise ValueError(
                f"this backbone must get {' and '.join(self.names)}, as its channels say, "
                f"not {' and '.join(means) or 'nothing'}: choose front ends for these modalities"
            )
        embeddings: Tensor = self.layers(torch.cat([means[name] for name in self.names], dim=-1))
        return embeddings
