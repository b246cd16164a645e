"""Dense layers on the mean frame: for front ends that give one vector a clip."""

from collections.abc import Sequence

from torch import Tensor, nn

from metaser.batch import Padded


class MLP(nn.Module):
    """Multilayer perceptron with ReLU.

    Parameters
    ----------
    channels : int
        Channels of the front end.
    hidden : sequence of int
        Widths of the layers; the last is the embedding's.
    dropout : float
        Share of units dropped after each layer while training, in [0, 1).
    """

    def __init__(self, channels: int, hidden: Sequence[int] = (128, 128), dropout: float = 0.0):
        super().__init__()
        self.channels = {"audio": channels}
        widths = [channels, *hidden]
        layers = [
            nn.Sequential(nn.Linear(before, after), nn.ReLU(), nn.Dropout(dropout))
            for before, after in zip(widths, widths[1:])
        ]
        self.layers = nn.Sequential(*layers)
        self.dim = widths[-1]

    def forward(self, audio: Padded) -> Tensor:
        """Return embeddings (clips, dim)."""
        return self.layers(audio.mean())
