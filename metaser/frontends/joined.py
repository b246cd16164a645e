"""Several front ends side by side."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from metaser.contracts import frontend_traits


@dataclass(frozen=True)
class Joined:
    """The vectors of several front ends, one after the other; each has a store of its own.

    Parameters
    ----------
    parts : sequence of callable
        Front ends of one rate that give one frame per clip, such as ``Statistics``.

    Raises
    ------
    ValueError
        If there are none, or their rates differ.
    """

    parts: Sequence[Callable[[np.ndarray], np.ndarray]]

    def __post_init__(self) -> None:
        rates = {frontend_traits(part).rate for part in self.parts}
        if len(rates) != 1 or None in rates:
            came = ", ".join(sorted(map(str, rates))) or "none"
            raise ValueError(
                f"parts must be front ends of one rate, not of {came}: give them the same rate"
            )
        object.__setattr__(self, "parts", tuple(self.parts))

    @property
    def rate(self) -> int:
        """Sampling rate in Hz that the waveform must have."""
        rate = frontend_traits(self.parts[0]).rate
        assert rate is not None  # __post_init__ refuses parts without one
        return rate

    def __call__(self, waveform: np.ndarray) -> np.ndarray:
        """Return (1, channels) float32 of a mono waveform (samples,) at ``rate``.

        Raises
        ------
        ValueError
            If a front end gives more than one frame.
        """
        return self.join([part(waveform)[None] for part in self.parts])[0]

    def join(self, values: Sequence[np.ndarray]) -> np.ndarray:
        """Return the vectors of each front end, (clips, 1, channels), side by side.

        Raises
        ------
        ValueError
            If a front end gives more than one frame.
        """
        for part, own in zip(self.parts, values):
            if own.shape[1] != 1:
                raise ValueError(
                    f"parts must give one frame per clip, but {type(part).__name__} gives "
                    f"{own.shape[1]}: join others, such as statistics"
                )
        return np.concatenate([np.asarray(own) for own in values], axis=2)
