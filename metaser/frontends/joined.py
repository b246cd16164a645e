"""Several front ends side by side."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Joined:
    """The vectors of several front ends, one after the other; each has a store of its own.

    Parameters
    ----------
    parts : sequence of callable
        Front ends of one rate that give one frame a clip, such as ``Statistics``.

    Raises
    ------
    ValueError
        If there are none, or their rates differ.
    """

    parts: Sequence[Callable[[np.ndarray], np.ndarray]]

    def __post_init__(self):
        rates = sorted({part.rate for part in self.parts})
        if len(rates) != 1:
            raise ValueError(f"parts must be front ends of one rate, came rates {rates}")
        object.__setattr__(self, "parts", tuple(self.parts))

    @property
    def rate(self) -> int:
        """Sampling rate in Hz that the waveform must have."""
        return self.parts[0].rate

    def __call__(self, waveform: np.ndarray) -> np.ndarray:
        """Return (1, channels) float32 of a mono waveform (samples,) at ``rate``.

        Raises
        ------
        ValueError
            If a front end gives more than one frame.
        """
        return self.join([part(waveform)[None] for part in self.parts])[0]

    def join(self, values: Sequence[np.ndarray]) -> np.ndarray:
        """Put the vectors of each front end, (clips, 1, channels), side by side."""
        for part, own in zip(self.parts, values):
            if own.shape[1] != 1:
                raise ValueError(
                    f"{type(part).__name__} gives {own.shape[1]} frames, which cannot stand beside "
                    "the others: join front ends that give one vector a clip"
                )
        return np.concatenate([np.asarray(own) for own in values], axis=2)
