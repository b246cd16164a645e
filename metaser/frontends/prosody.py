"""Pitch, voicing and energy, frame by frame."""

from dataclasses import dataclass

import numpy as np

from metaser import safe_librosa as librosa

SLOPE_FRAMES = 9
"""Frames that a slope is fitted to, fewer in shorter stretches."""


@dataclass(frozen=True)
class Prosody:
    """Pitch, voicing, energy and their slopes, in frames of 10 ms.

    The pitch is probabilistic YIN's, in steps of 0.2 semitones: steps of 0.1 take three times as
    long and agree no better with another tracker's on speech.

    Parameters
    ----------
    rate : int
        Sampling rate in Hz that the waveform must have.
    lowest, highest : float
        Search range of the fundamental frequency in Hz. A frame of 60 ms must hold two periods,
        so ``lowest`` is above 34 Hz.
    seconds : float
        Longest clip; what exceeds it is cut. Shorter clips stay short.

    Raises
    ------
    ValueError
        If the search range is empty or reaches too low or too high.

    References
    ----------
    Mauch and Dixon, "pYIN: A Fundamental Frequency Estimator Using Probabilistic Threshold
    Distributions", ICASSP 2014.
    """

    rate: int = 16000
    lowest: float = 65.0
    highest: float = 600.0
    seconds: float = 10.0

    def __post_init__(self) -> None:
        if not 34 <= self.lowest < self.highest <= self.rate / 4:
            raise ValueError(
                f"lowest and highest must be between 34 and {self.rate / 4:g} Hz (a quarter of the "
                f"rate), lowest below highest, not lowest={self.lowest}, highest={self.highest}: "
                "change the range, or raise the rate"
            )

    def __call__(self, waveform: np.ndarray) -> np.ndarray:
        """Return (frames, 5) float32 of a mono waveform (samples,) at ``rate``.

        The channels are: pitch in semitones above 100 Hz, 0 where unvoiced; probability of voicing,
        0 to 1; level (RMS of 40 ms) in dB relative to full scale, at least -100; slope of the pitch
        in semitones per frame, fitted within each voiced stretch and 0 elsewhere; slope of the
        level in dB per frame.
        """
        hop = self.rate // 100
        waveform = waveform[: round(self.seconds * self.rate)]
        pitch, voiced, probability = librosa.pyin(
            waveform,
            fmin=self.lowest,
            fmax=self.highest,
            sr=self.rate,
            frame_length=6 * hop,
            hop_length=hop,
            resolution=0.2,
            fill_na=100.0,
        )
        semitones = 12 * np.log2(pitch / 100)
        rms = librosa.feature.rms(y=waveform, frame_length=4 * hop, hop_length=hop)[0]
        level = librosa.amplitude_to_db(rms, ref=1.0, amin=1e-5, top_db=None)
        slopes = [_slope(semitones, voiced), _slope(level, np.ones_like(voiced))]
        return np.stack([semitones, probability, level, *slopes], axis=1).astype(np.float32)


def _slope(values: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Return the change per frame, fitted within each stretch of frames that are present.

    It is 0 elsewhere, and in stretches of fewer than three frames.
    """
    slope = np.zeros_like(values)
    for stretch in np.split(np.arange(len(values)), np.flatnonzero(np.diff(present)) + 1):
        width = min(SLOPE_FRAMES, len(stretch) - 1 + len(stretch) % 2)
        if present[stretch[0]] and width >= 3:
            slope[stretch] = librosa.feature.delta(values[stretch], width=width)
    return slope
