"""The recurrent network of the MetaSER paper."""

from torch import Tensor, nn

from metaser.backbones.layers import check_at_least, last_state, shortened
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
        Units per layer.
    layers : int
        LSTM layers.
    pool : int
        Neighbouring frames, at least 1, whose mean is one step of the LSTM; fewer steps are faster.

    Raises
    ------
    ValueError
        If ``pool`` is below 1.

    References
    ----------
    Chopra et al., "Meta-Learning for Low-Resource Speech Emotion Recognition", ICASSP 2021.
    """

    def __init__(self, channels: int, hidden: int = 128, layers: int = 2, pool: int = 1) -> None:
        check_at_least(1, pool=pool)
        super().__init__()
        self.channels = {"audio": channels}
        self.pool = pool
        self.lstm = nn.LSTM(channels, hidden, num_layers=layers, batch_first=True)
        self.dim = hidden

    def forward(self, audio: Padded) -> Tensor:
        """Return embeddings (clips, dim); 0 for a clip without real frames."""
        audio = shortened(audio, self.pool)
        return last_state(recurrent(self.lstm, audio.values, audio.mask), audio.mask)
