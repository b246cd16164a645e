"""Whether a clip can hold speech at all: not silent, not too short, and not one steady sound."""

import numpy as np
from scipy.signal import periodogram

FRAME = 0.02
"""Seconds of a frame whose level is measured."""

SHORT = 0.2
"""Seconds below which a clip is too short for a syllable."""

QUIET = -60.0
"""Level in dB, relative to full scale, below which a frame is silent."""

HEARD = 0.1
"""Seconds of sound that a clip must hold at least."""

STEADY = 6.0
"""Distance in dB between quiet and loud frames; that of speech is larger."""

TONE = 0.9
"""Share of the power within a few Hz, from which on the sound is a tone."""


def lacks_speech(waveform: np.ndarray, rate: int) -> str:
    """Return why a clip can hold no speech, or "" if it can.

    What is said, and whether music is sung, is not told: only that nothing is spoken.

    Parameters
    ----------
    waveform : numpy.ndarray
        float32, shape (samples,), full scale = 1.
    rate : int
        Samples per second.

    Returns
    -------
    str
        Such as "it is silent (peak below -60 dB)".
    """
    seconds = len(waveform) / rate
    if seconds < SHORT:
        return f"it is too short ({seconds:.2f} s)"
    size = max(round(FRAME * rate), 1)
    frames = waveform[: len(waveform) // size * size].reshape(-1, size).astype(np.float64)
    levels = 10 * np.log10(frames.var(axis=1) + 1e-12)
    heard = levels[levels >= QUIET]
    if not len(heard):
        return f"it is silent (no sound above {QUIET:g} dB)"
    if len(heard) * FRAME < HEARD:
        return f"it is silent but for {len(heard) * FRAME:.2f} s"
    low, high = np.percentile(levels, [10, 95])
    if high - low < STEADY:
        return f"it is one steady sound, noise or a tone (its level varies by {high - low:.0f} dB)"
    power = np.sort(periodogram(waveform, rate)[1])[::-1]
    if power[: max(round(6 * seconds), 1)].sum() > TONE * power.sum():
        return "it is a tone, with nearly all power within a few Hz"
    return ""
