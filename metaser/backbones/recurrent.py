"""The recurrent network of the MetaSER paper."""

from torch import Tensor, nn

from metaser.backbones.layers import last_state
from metaser.backbones.recurrence import recurrent
from metaser.batch import Padded


class Recurrent(nn.Module):
    """Stacked LSTM layers; the embedding is the last layer's state after the last real frame.

    With 20 channels and a head of 128 hidden units for four classes the model has the paper's
    225,924 parameters.

    Parameters
    ----------
    channels : int
        Channels of the front end.
    hidden : int
        Units a layer.
    layers : int
        LSTM layers.

    References
    ----------
    Chopra et al., "Meta-Learning for Low-Resource Speech Emotion Recognition", ICASSP 2021.
    """

    def __init__(self, channels: int, hidden: int = 128, layers: int = 2):
        super().__init__()
        self.channels = {"audio": channels}
        self.lstm = nn.LSTM(channels, hidden, num_layers=layers, batch_first=True)
        self.dim = hidden

    def forward(self, audio: Padded) -> Tensor:
        """Return embeddings (clips, dim); 0 for a clip without real frames."""
        return last_state(recurrent(self.lstm, audio.values, audio.mask), audio.mask)
