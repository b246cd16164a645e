"""The samples themselves, for front ends that are learnt."""

from dataclasses import dataclass
from math import ceil

import numpy as np


@dataclass(frozen=True)
class Waveform:
    """The waveform, cut into frames that do not overlap.

    Parameters
    ----------
    rate : int
        Sampling rate in Hz that the waveform must have.
    hop : int
        Samples per frame.
    seconds : float
        Longest clip; what exceeds it is cut. Shorter clips stay short.

    Raises
    ------
    ValueError
        If ``hop`` or ``seconds`` is not above 0.
    """

    AS_IS = True

    rate: int = 16000
    hop: int = 160
    seconds: float = 10.0

    def __post_init__(self) -> None:
        if self.hop < 1 or self.seconds <= 0:
            raise ValueError(
                f"hop must be at least 1 sample and seconds above 0, not {self.hop} and "
                f"{self.seconds}: raise what is below"
            )

    def __call__(self, waveform: np.ndarray) -> np.ndarray:
        """Return (frames, ``hop``) float32 of a mono waveform (samples,) at ``rate``.

        The last frame is filled with zeros.
        """
        waveform = waveform[: round(self.seconds * self.rate)]
        frames = max(ceil(len(waveform) / self.hop), 1)
        padded = np.zeros(frames * self.hop, np.float32)
        padded[: len(waveform)] = waveform
        return padded.reshape(frames, self.hop)
