"""Bidirectional gated recurrent units with attention over time, audio only."""

from torch import Tensor, nn

from metaser.backbones.layers import AttentionPooling, check_at_least, shortened
from metaser.backbones.recurrence import recurrent
from metaser.batch import Padded


class GatedRecurrent(nn.Module):
    """Bidirectional GRU; the embedding is the mean of its states, weighted by attention.

    The defaults are those of the paper's word encoder, which reads words; here it reads frames.

    Parameters
    ----------
    channels : int
        Channels of the front end.
    hidden : int
        Units per direction.
    layers : int
        GRU layers.
    pool : int
        Neighbouring frames, at least 1, whose mean is one step of the GRU. Fewer steps are faster,
        and emotion changes more slowly than frames do.

    Raises
    ------
    ValueError
        If ``pool`` is below 1.

    References
    ----------
    Yang et al., "Hierarchical Attention Networks for Document Classification", NAACL 2016.
    """

    def __init__(self, channels: int, hidden: int = 50, layers: int = 1, pool: int = 4) -> None:
        check_at_least(1, pool=pool)
        super().__init__()
        self.channels = {"audio": channels}
        self.pool = pool
        self.gru = nn.GRU(channels, hidden, layers, batch_first=True, bidirectional=True)
        self.dim = 2 * hidden
        self.attention = AttentionPooling(self.dim, self.dim)

    def forward(self, audio: Padded) -> Tensor:
        """Return embeddings (clips, dim); 0 for a clip without real frames."""
        audio = shortened(audio, self.pool)
        states = recurrent(self.gru, audio.values, audio.mask)
        embeddings: Tensor = self.attention(states, states, audio.mask)
        return embeddings
